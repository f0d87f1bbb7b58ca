"""Models whose files do not hold what they should, in every role that a command loads one in: one message, exit status
2, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import unsound as bad
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    GPT2Config,
)

from rlhf_kit import world
from rlhf_kit.cli import main
from rlhf_kit.data import runaway

ROWS = {
    "text": {"text": "the cat sat on the mat"},
    "turns": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}]},
    "ranked": {"prompt": "hello", "completions": ["the cat", "the mat"], "ranks": [1, 2]},
    "prompts": {"prompt": "hello there"},
    "articles": {"article": "the cat sat. the dog ran.", "highlights": "the cat"},
}
SQUAD = {"name": "zh", "source": "world:squad_zh", "language": "zh", "size": 4}
TRAINING = {"max_length": 64, "step": 16, "max_query_length": 24, "max_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def good(tmp_path_factory, tokenizer_folder):
    """A folder of sound models, of each kind that commands load, and of data for them."""
    home = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer_folder)
    end = words.eos_token_id
    gpt = GPT2Config(
        vocab_size=len(words), n_layer=2, n_embd=16, n_head=2, n_positions=512, bos_token_id=end, eos_token_id=end
    )
    letters = sorted({letter for row in world.rows("squad_zh", "test", seed=0) for letter in row["context"]})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(letter for letter in letters if letter.strip())]
    characters = BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})
    bert = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    for name, auto_class, config, tokenizer in (
        ("policy", AutoModelForCausalLM, gpt, words),
        ("reward", AutoModelForSequenceClassification, gpt, words),
        ("masked", AutoModelForMaskedLM, bert, characters),
        ("reader", AutoModelForQuestionAnswering, bert, characters),
    ):
        config.num_labels, config.pad_token_id = (1, end) if name == "reward" else (2, config.pad_token_id)
        auto_class.from_config(config).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    model = AutoModelForCausalLM.from_pretrained(home / "policy")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(model, lora).save_pretrained(home / "adapter")
    words.save_pretrained(home / "adapter")
    for name, row in ROWS.items():
        (home / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    entry = {"name": "text", "command": "perplexity", "options": {"data": str(home / "text.jsonl")}}
    entry |= {"figure": "bits_per_byte", "paired": "nll", "higher_is_better": False}
    (home / "suite.yaml").write_text(yaml.safe_dump([entry]))
    row = {"name": "row", "model": "model", "fine_tuned_on": ["zh"]}
    table = {"seeds": [0], "training": TRAINING, "data": [SQUAD], "tests": [{**SQUAD, "scorers": ["drcd"]}]}
    (home / "table.yaml").write_text(yaml.safe_dump({**table, "rows": [row]}))
    (home / "new.yaml").write_text(yaml.safe_dump({**table, "rows": [{**row, "from_scratch": True}]}))
    return home


def stage(name, model, data, *more):
    return [name, "--model_name_or_path", model, "--dataset_name", f"GOOD/{data}.jsonl", "--max_steps", "1", *more]


def ppo(policy, reward, *more):
    return [*stage("ppo", policy, "prompts"), "--reward_funcs", reward, *more]


def measured(name, *options):
    return ["eval", name, *options]


SPANS = ("--data", "world:squad_zh", "--scorer", "drcd", "--max-length", "64", "--limit", "4")
# By the kind of model that is BAD: the commands that load one. GOOD is the folder of sound ones.
COMMANDS = {
    "policy": {
        "pretrain": stage("pretrain", "BAD", "text"),
        "sft": stage("sft", "BAD", "turns"),
        "sft with adapters": stage("sft", "BAD", "turns", "--use_peft"),
        "reward": stage("reward", "BAD", "ranked"),
        "calibration": stage("reward", "GOOD/policy", "ranked", "--calibration_policy", "BAD"),
        "ppo": ppo("BAD", "GOOD/reward"),
        "ppo in a dry run": ppo("BAD", "GOOD/reward", "--dry_run"),
        "ppo, reference": ppo("GOOD/policy", "GOOD/reward", "--ref_model_name_or_path", "BAD"),
        "ppo, values": ppo("GOOD/policy", "GOOD/reward", "--value_model", "BAD"),
        "eval coqa": measured("coqa", "--model", "BAD", "--data", "world", "--limit", "1"),
        "eval icl": measured("icl", "--models", "BAD", "--tasks", "world-sums", "--limit", "1"),
        "eval tldr": measured("tldr", "--models", "BAD", "--data", "GOOD/articles.jsonl"),
        "eval lambada": measured("lambada", "--model", "BAD", "--data", "GOOD/text.jsonl"),
        "eval perplexity": measured("perplexity", "--model", "BAD", "--data", "GOOD/text.jsonl"),
        "eval suite": measured("suite", "--models", "a=BAD", "b=GOOD/policy", "--suite", "GOOD/suite.yaml"),
    },
    "reward": {
        "reward, continued": stage("reward", "BAD", "ranked"),
        "ppo, reward": ppo("GOOD/policy", "BAD"),
        "ppo, ensemble": ppo("GOOD/policy", "GOOD/reward", "BAD", "--reward_ensemble", "mean"),
        "ppo, values of a reward model": ppo("GOOD/policy", "GOOD/reward", "--value_model", "BAD"),
        "eval reward": measured("reward", "--model", "BAD", "--data", "GOOD/ranked.jsonl"),
        "score": ["score", "--model", "BAD", "--data", "GOOD/ranked.jsonl"],
        "score, ensemble": ["score", "--model", "GOOD/reward", "BAD", "--data", "GOOD/ranked.jsonl"],
    },
    "masked": {"mlm": stage("mlm", "BAD", "text")},
    "reader": {
        "eval extractive": measured("extractive", "--model", "BAD", *SPANS),
        "eval extractive, trained": measured("extractive", "--model", "BAD", *SPANS, "--train-data", "world:squad_zh"),
        "eval transfer": measured("transfer", "--table", "GOOD/table.yaml"),
        "eval transfer, from scratch": measured("transfer", "--table", "GOOD/new.yaml"),
    },
    "adapter": {"merge": ["merge", "BAD"], "sft of an adapter": stage("sft", "BAD", "turns")},
}
OUTPUT = {"score": "--output", "eval": "--output"}
ALL = ("policy", "reward", "masked", "reader")
# What is wrong: (how, what the message says, kinds of model that are tried; all where it is not said).
FAULTS = {
    "config empty": (bad.file_of("config.json", ""), "config.json is not valid JSON", ALL),
    "config a list": (bad.file_of("config.json", "[1]"), "config.json' holds a list", ALL),
    "config gone": (bad.without("config.json"), "could not be loaded", ("policy",)),
    "config in UTF-16": (bad.file_of("config.json", "{}".encode("utf-16")), "It is UTF-16", ("policy",)),
    "config of thousands of digits": (
        bad.file_of("config.json", '{"model_type": "gpt2", "n_layer": ' + "9" * 5000 + "}"),
        "thousands of digits",
        ("policy",),
    ),
    "no type": (bad.no_type, "model_type", ALL),
    "a list as type": (bad.config_with(model_type=["gpt2"]), "could not be loaded", ("policy",)),
    "another architecture": (bad.config_with(model_type="opt"), "its files", ("policy", "reward")),
    "architectures no names": (bad.config_with(architectures=[3]), "the architectures [3]", ALL),
    "no heads": (bad.size("heads", 0), "num_attention_heads is 0", ALL),
    "no layers": (bad.size("layers", 0), "num_hidden_layers is 0", ALL),
    "more layers than any has": (bad.size("layers", 5000), "num_hidden_layers is 5000", ALL),
    "heads do not divide": (bad.size("heads", 3), "could not be loaded", ALL),
    "a layer more in the config": (bad.size("layers", 3), "its files lack", ALL),
    "a layer more in the files": (bad.size("layers", 1), "layers that its config.json does not have", ALL),
    "another width": (bad.size("width", 32), "weights whose shapes differ from those of its config.json", ALL),
    "width of text": (bad.size("width", "x"), "could not be loaded", ("policy",)),
    "unknown quantization": (bad.config_with(quantization_config="x"), "could not be loaded", ("policy",)),
    "weights cut off": (bad.cut_off("model.safetensors"), "could not be loaded", ALL),
    "weights empty": (bad.file_of("model.safetensors", ""), "could not be loaded", ("policy",)),
    "weights gone": (bad.without("model.safetensors"), "could not be loaded", ALL),
    "weights a pipe": (bad.pipe("model.safetensors"), "could not be loaded", ("policy",)),
    "weights infinite, bfloat16": (bad.one_is(torch.inf, torch.bfloat16), "are NaN or infinite", ALL),
    "weights NaN": (bad.one_is(torch.nan), "are NaN or infinite", ALL),
    "a layer gone": (bad.weights_with(lambda w: {k: x for k, x in w.items() if not bad.is_first(k)}), "lack", ALL),
    "a shard gone": (bad.index_of(None), "which its index of weights names (model-00001-of-00002.safetensors)", ALL),
    "index broken": (bad.index_of("{"), "model.safetensors.index.json is not valid JSON", ALL),
    "index of nothing": (bad.index_of('{"weight_map": {}}'), "is not a valid index of weights", ("policy",)),
    "index of another folder": (
        bad.index_of('{"weight_map": {"x": "../other/model.safetensors"}}'),
        "is not a valid index of weights",
        ("policy",),
    ),
    "a pickle that runs code": (bad.code_in("pytorch_model.bin", "model.safetensors"), "could not be loaded", ALL),
    "a bare pickle that runs code": (
        bad.code_in("pytorch_model.bin", "model.safetensors", by_torch=False), "could not be loaded", ("policy",),
    ),
    "an encoder and a decoder": (bad.encoder_decoder, "could not be loaded", ("policy",)),
    "tokenizer broken": (bad.file_of("tokenizer.json", "{"), "okenizer could not be loaded", ALL),
    "tokenizer broken beside a vocabulary": (
        lambda folder: [bad.file_of(name, "{")(folder) for name in ("tokenizer.json", "vocab.json", "merges.txt")],
        "okenizer could not be loaded",
        ("policy",),
    ),
    "special tokens a list": (bad.file_of("special_tokens_map.json", "[]"), "holds a list", ("policy",)),
    "an end that is no token": (
        bad.file_of("generation_config.json", '{"eos_token_id": "x"}'),
        "has the eos_token_id 'x'",
        ("policy",),
    ),
    "a text as longest text": (
        bad.with_values("tokenizer_config.json", model_max_length="x"),
        "the model_max_length 'x'",
        ALL,
    ),
    "more tokens": (bad.more_tokens, "tokens and the model knows", ALL),
    "generation broken": (bad.file_of("generation_config.json", "{"), "generation_config.json is not valid", ALL),
    "two labels": (
        bad.config_with(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}), "has 2 labels", ("reward",),
    ),
}  # fmt: skip
ADAPTERS = {
    "broken": (bad.file_of("adapter_config.json", "{"), "adapter_config.json is not valid JSON"),
    "a list": (bad.file_of("adapter_config.json", "[]"), "holds a list"),
    "of no type": (bad.file_of("adapter_config.json", "{}"), "dapter"),
    "of an unknown type": (bad.adapter_with(peft_type="NEW"), "'NEW', which the installed peft does not support"),
    "learnt prompts": (bad.adapter_with(peft_type="PROMPT_TUNING"), "of the kind PROMPT_TUNING"),
    "without a base": (bad.adapter_with(base_model_name_or_path=None), "names no base model"),
    "with an empty base": (bad.adapter_with(base_model_name_or_path=""), "names no base model"),
    "whose base is gone": (bad.adapter_with(base_model_name_or_path="/no/such/base"), "there is no such folder"),
    "whose base is a number": (bad.adapter_with(base_model_name_or_path=3), "base_model_name_or_path 3; a text"),
    "on itself": (bad.adapter_with(base_model_name_or_path="model"), "is its own base"),
    "rank of text": (bad.adapter_with(r="x"), "r=x must be a number"),
    "rank without end": (bad.adapter_with(r=10**9), "r=1000000000 must be at most"),
    "another rank": (bad.adapter_with(r=4), "n adapter could not be loaded"),
    "other targets": (bad.adapter_with(target_modules=["no_such"]), "dapter"),
    "targets a number": (bad.adapter_with(target_modules=3), "dapter"),
    "weights gone": (bad.without("adapter_model.safetensors"), "no weights"),
    "weights cut off": (bad.cut_off("adapter_model.safetensors"), "n adapter could not be loaded"),
    "a pickle that runs code": (
        bad.code_in("adapter_model.bin", "adapter_model.safetensors"), "n adapter could not be loaded",
    ),
}  # fmt: skip
EACH = {
    "policy": "eval perplexity",
    "reward": "score",
    "masked": "mlm",
    "reader": "eval extractive",
    "adapter": "merge",
}
FEW = ("config a list", "no heads", "a layer gone", "weights NaN")  # for every command that reads what is wrong
UNREAD = {"ppo in a dry run": ["weights NaN"], "eval transfer, from scratch": ["a layer gone", "weights NaN"]}


@pytest.fixture
def refused(good, tmp_path, monkeypatch, capsys):
    """`refused(kind, command, spoil)`: what a command says of a model of this kind that was spoilt; it says it in one
    message, and leaves nothing."""
    monkeypatch.setattr(runaway, "SECONDS", 1)
    monkeypatch.chdir(tmp_path)

    def run(kind, command, spoil):
        shutil.copytree(good / kind, "model")
        spoil(Path("model"))
        there = sorted(path for path in tmp_path.rglob("*"))
        words = COMMANDS[kind][command]
        option = OUTPUT.get(words[0], "--output_dir")
        argv = [word.replace("GOOD", str(good)).replace("BAD", "model") for word in words]
        assert main([*argv, option, "out"]) == 2
        told = capsys.readouterr()
        assert sorted(path for path in tmp_path.rglob("*")) == there
        assert "Traceback" not in told.out + told.err
        return told.err

    return run


@pytest.mark.parametrize("kind, fault", [(kind, fault) for fault in FAULTS for kind in FAULTS[fault][2]])
def test_each_kind_of_model_is_refused_for_what_is_wrong(kind, fault, refused):
    spoil, told, _ = FAULTS[fault]
    assert told in refused(kind, EACH[kind], spoil)


@pytest.mark.parametrize(
    "kind, command, fault",
    [
        (kind, name, fault)
        for kind in ALL
        for name in COMMANDS[kind]
        for fault in FEW
        if fault not in UNREAD.get(name, ())
    ],
)
def test_each_command_loads_models_by_the_one_gate(kind, command, fault, refused):
    spoil, told, _ = FAULTS[fault]
    assert told in refused(kind, command, spoil)


@pytest.mark.parametrize("fault", ADAPTERS)
@pytest.mark.parametrize("command", COMMANDS["adapter"])
def test_an_adapter_that_is_none_is_refused(command, fault, refused):
    spoil, told = ADAPTERS[fault]
    assert told in refused("adapter", command, spoil)


@pytest.mark.parametrize("fault", FEW)
@pytest.mark.parametrize("command", COMMANDS["adapter"])
def test_an_adapter_of_a_base_that_is_none_is_refused(command, fault, good, tmp_path, refused):
    shutil.copytree(good / "policy", tmp_path / "base")
    spoil, told, _ = FAULTS[fault]
    spoil(tmp_path / "base")
    assert told in refused("adapter", command, bad.adapter_with(base_model_name_or_path="base"))


@pytest.mark.parametrize("name", ["icl", "tldr", "suite"])
def test_several_models_are_looked_at_before_the_first_is_measured(name, good, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("BAD", f"{good}/policy") for word in COMMANDS["policy"][f"eval {name}"]]
    shutil.copytree(good / "policy", "bad")
    FAULTS["a layer gone"][0](Path("bad"))
    at = words.index("--models") + 2
    words[at:at] = ["bad"]
    assert main([*(word.replace("GOOD", str(good)) for word in words), "--output", "out"]) == 2
    assert "its files lack" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("kind", ALL)
def test_no_memory_is_taken_for_what_the_files_do_not_hold(kind, refused):
    """A config of terabytes of weights, which no machine has: by its files alone it is none."""
    told = refused(kind, EACH[kind], bad.config_with(vocab_size=10**12))
    assert "weights whose shapes differ from those of its config.json" in told
