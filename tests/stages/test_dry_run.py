"""`--dry-run` ends with 2 wherever the run does before it trains, and writes nothing."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from rlhf_kit.data.hub import loading_error
from rlhf_kit.errors import HubUnreachableError, UserError
from tests.tiny_stages import STAGES, run_command

ROW = {
    "pretrain": {"text": "the cat sat on the mat"},
    "mlm": {"text": "the cat sat on the mat"},
    "sft": {"prompt": "hello", "completion": "the cat"},
    "reward": {"prompt": "hello", "completions": ["cat", "a dog"], "ranks": [1, 2]},
    "ppo": {"prompt": "hello"},
}
BAD = {
    "pretrain": {"text": 3},
    "mlm": {"text": 3},
    "sft": {"prompt": "", "completion": "x"},
    "reward": {"prompt": "hello", "completions": ["cat"], "ranks": [1]},
    "ppo": {"prompt": ""},
}
SHORT = ["--max_steps", "1", "--report_to", "none", "--disable_tqdm", "--save_strategy", "no"]
SMALL = "--rollout_batch_size 4 --mini_batch_size 2 --max_completion_length 4 --num_ppo_epochs 1 --max_steps 2".split()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer_folder):
    """A GPT-2 and a BERT, both tiny, their tokenizers beside them."""
    home = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(home / "gpt2")
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    small = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=len(tokenizer), **ends)
    GPT2LMHeadModel(small).save_pretrained(home / "gpt2")
    tokenizer.save_pretrained(home / "scorer")
    scorer = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, n_positions=12, vocab_size=len(tokenizer), num_labels=1, **ends
    )
    GPT2ForSequenceClassification(scorer).save_pretrained(home / "scorer")
    words = BertTokenizer(vocab={w: at for at, w in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat".split())})
    words.save_pretrained(home / "bert")
    BertForMaskedLM(
        BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16, max_position_embeddings=64)
    ).save_pretrained(home / "bert")  # fmt: skip
    return home


@pytest.fixture
def here(tmp_path, folders, monkeypatch):
    """The folder a user stands in, with good data of every stage and both models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    for stage, row in ROW.items():
        Path(f"{stage}.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    for name in ("gpt2", "bert", "scorer"):
        Path(f"my-{name}").symlink_to(folders / name)
    return tmp_path


def command(stage: str, changed: dict) -> list[str]:
    options = {
        "model_name_or_path": "my-bert" if stage == "mlm" else "my-gpt2",
        "dataset_name": f"{stage}.jsonl",
        "output_dir": "out",
        **({"reward_funcs": "tests.rewards:brief"} if stage == "ppo" else {}),
        **changed,
    }
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", *value.split())]
    return [*SHORT, *(SMALL if stage == "ppo" else []), *given]


def files(folder: Path) -> set[tuple]:
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def both_refuse(stage: str, changed: dict, here: Path, capsys) -> str:
    """What the dry run says, once it is known that both end with 2 and that neither writes."""
    before, told = files(here), []
    for more in (["--dry-run"], []):
        assert run_command(stage, [*command(stage, changed), *more]) == 2, more or "the run"
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        told.append(said.err)
    assert files(here) == before
    return told[0]


def broken_file(name: str, row: dict) -> str:
    """A data file or folder with a fault, made as its name says."""
    path = Path(name)
    line = f"{json.dumps(row)}\n"
    if name == "folder":
        path.mkdir()
        (path / "train.jsonl").write_text(line)
    elif name == "no-split":
        path.mkdir()
        (path / "other.jsonl").write_text(line)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "a", "answer": "b"}]), name)
    elif name == "cut.jsonl.gz":
        path.write_bytes(gzip.compress(line.encode() * 50)[:-9])
    elif not name.startswith("missing"):
        path.write_text(line)
    return name


FILES = (
    "bad.jsonl folder bad.parquet cut.jsonl.gz bad.tsv bad.csv missing.parquet missing.tsv missing/x no-split".split()
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_faulty_source_is_a_fault_of_the_dry_run(stage, name, here, capsys):
    (here / "missing").mkdir()
    told = both_refuse(stage, {"dataset_name": broken_file(name, BAD[stage])}, here, capsys)
    assert name.split("/")[-1] in told


@pytest.mark.parametrize("source", ["wrold", "World", "worlds", "world:sftt", "world/text/x", "world-text", "ranked"])
@pytest.mark.parametrize("option", ["dataset_name", "eval_dataset_name"])
def test_a_misspelt_world_is_never_looked_for_on_the_hub(source, option, here, capsys):
    told = both_refuse("sft", {option: source}, here, capsys)
    assert "hub" not in told and source.partition(":")[0] in told


FAULTS = {
    "evaluation data": {"eval_dataset_name": "bad.jsonl"},
    "evaluation data that is missing": {"eval_dataset_name": "missing.csv"},
    "a split the world has not": {"dataset_name": "world", "dataset_train_split": "trian"},
    "a model that is missing": {"model_name_or_path": "./missing"},
    "a model that is a file": {"model_name_or_path": "bad.jsonl"},
    "a model without weights": {"model_name_or_path": "no-weights"},
    "a model whose weights are cut": {"model_name_or_path": "cut-weights"},
    "a model whose config is broken": {"model_name_or_path": "broken-config"},
    "a tokenizer that is missing": {"tokenizer_name_or_path": "./missing"},
    "a tokenizer of another model": {"tokenizer_name_or_path": "large-tokenizer"},
    "an output that is a file": {"output_dir": "bad.jsonl"},
    "an output below a file": {"output_dir": "bad.jsonl/out"},
    "an output that holds another run": {"output_dir": "old"},
    "an option that is misspelt": {"learning_rat": "1"},
    "a number that is none": {"learning_rate": "nan"},
    "a batch size of 0": {"per_device_train_batch_size": "0"},
    "no rows": {"max_train_samples": "0"},
    "fewer rows than none": {"max_eval_samples": "-1", "eval_dataset_name": "{stage}.jsonl"},
    "a configuration file that is missing": {"config": "missing.yaml"},
    "a configuration file that is broken": {"config": "broken.yaml"},
    "evaluation without data": {"eval_strategy": "steps"},
    "the best of what is not evaluated": {"load_best_model_at_end": "true", "save_strategy": "epoch"},
    "a schedule that is none": {"lr_scheduler_type": "cosign"},
    "an attention that is not installed": {"attn_implementation": "flash_attention_2"},
    "an architecture from scratch that is none": {
        "config_overrides": "n_layerz=1",
        "tokenizer_name_or_path": "my-gpt2",
    },
}
OF_STAGES = {
    "an encoder": (("pretrain", "sft", "ppo"), {"model_name_or_path": "my-bert"}),
    "a model without a mask": (("mlm",), {"model_name_or_path": "my-gpt2"}),
    "an adapter's target": (("pretrain", "sft", "reward", "ppo"), {"use_peft": "", "lora_target_modules": "q_prj"}),
    "an adapter on the head": (("sft",), {"use_peft": "", "lora_target_modules": "lm_head"}),
    "adapters where there are none": (("mlm",), {"use_peft": ""}),
    "nothing but empty texts": (("pretrain", "mlm"), {"dataset_name": "blank.jsonl"}),
    "nothing but empty texts to evaluate": (("pretrain", "mlm"), {"eval_dataset_name": "blank.jsonl"}),
    "nothing to be masked": (("mlm",), {"mlm_probability": "0"}),
    "rows longer than the context": (("pretrain",), {"block_size": "65"}),
    "sinusoids in a trained model": (("mlm",), {"sinusoidal_positions": ""}),
    "a chat template that is missing": (("sft",), {"chat_template_path": "missing.jinja"}),
    "a length that leaves no answer": (("sft", "reward"), {"max_length": "1"}),
    "evaluation of answers too long": (("reward",), {"max_length": "8", "eval_dataset_name": "long.jsonl"}),
    "a policy to calibrate on": (("reward",), {"calibration_policy": "./missing"}),
    "a policy to calibrate on, without weights": (("reward",), {"calibration_policy": "no-weights"}),
    "demonstrations to calibrate on": (("reward",), {"calibration_dataset_name": "missing.jsonl"}),
    "a reward that is missing": (("ppo",), {"reward_funcs": "./missing"}),
    "a reward that is a language model": (("ppo",), {"reward_funcs": "my-gpt2"}),
    "a reward without weights": (("ppo",), {"reward_funcs": "scorer-without-weights"}),
    "a reward of which one is no reward": (("ppo",), {"reward_funcs": "tests.rewards:brief ./missing"}),
    "a reward whose module is missing": (("ppo",), {"reward_funcs": "no_such_module:f"}),
    "a reward whose function is missing": (("ppo",), {"reward_funcs": "tests.rewards:breif"}),
    "a reward whose module raises": (("ppo",), {"reward_funcs": "raising:f"}),
    "a reward that takes no completions": (("ppo",), {"reward_funcs": "narrow:f"}),
    "a reward that reads too little": (("ppo",), {"reward_funcs": "my-scorer", "max_completion_length": "16"}),
    "a value model from two": (("ppo",), {"reward_funcs": "my-scorer ./my-scorer", "value_model": "reward"}),
    "an ensemble of one": (("ppo",), {"reward_funcs": "my-scorer", "reward_ensemble": "mean"}),
    "weights for other rewards": (("ppo",), {"reward_weights": "1 2"}),
    "a reference that is missing": (("ppo",), {"ref_model_name_or_path": "./missing"}),
    "a reference without weights": (("ppo",), {"ref_model_name_or_path": "no-weights"}),
    "a reference that is an encoder": (("ppo",), {"ref_model_name_or_path": "scorer-without-weights"}),
    "a value model that is misspelt": (("ppo",), {"value_model": "shraed"}),
    "a value model that is missing": (("ppo",), {"value_model": "./missing"}),
    "a value model from no reward model": (("ppo",), {"value_model": "reward"}),
    "texts beside PPO that are missing": (("ppo",), {"ptx_dataset_name": "missing.jsonl", "ptx_coef": "1"}),
    "texts beside PPO that are empty": (("ppo",), {"ptx_dataset_name": "blank.jsonl", "ptx_coef": "1"}),
    "texts longer than the context": (
        ("ppo",), {"ptx_dataset_name": "pretrain.jsonl", "ptx_coef": "1", "ptx_max_length": "65"}
    ),
    "texts without a weight": (("ppo",), {"ptx_dataset_name": "pretrain.jsonl"}),
    "batches that do not divide": (("ppo",), {"rollout_batch_size": "3"}),
    "a completion longer than the context": (("ppo",), {"max_completion_length": "64"}),
    "prompts that are all left out": (("ppo",), {"max_prompt_length": "1"}),
}  # fmt: skip
CASES = [(stage, fault, changed) for fault, changed in FAULTS.items() for stage in STAGES]
CASES += [(stage, fault, changed) for fault, (stages, changed) in OF_STAGES.items() for stage in stages]


def make_faulty(here: Path, folders: Path, stage: str) -> None:
    """What FAULTS and OF_STAGES name."""
    model = folders / ("bert" if stage == "mlm" else "gpt2")
    for name, left_out in {
        "no-weights": "model.safetensors",
        "cut-weights": "",
        "broken-config": "",
        "old": "",
    }.items():
        (here / name).mkdir()
        for file in model.iterdir():
            if file.name != left_out:
                (here / name / file.name).write_bytes(file.read_bytes())
    cut = here / "cut-weights" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (here / "broken-config" / "config.json").write_text("{")
    scorer = here / "scorer-without-weights"
    scorer.mkdir()
    config = json.loads((folders / "gpt2" / "config.json").read_text())
    config |= {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "score"}}
    (scorer / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folders / "gpt2")
    tokenizer.save_pretrained(scorer)
    tokenizer.add_tokens([f"<{at}>" for at in range(500)])
    tokenizer.save_pretrained(here / "large-tokenizer")
    (here / "bad.jsonl").write_text(json.dumps(BAD[stage]) + "\n")
    (here / "blank.jsonl").write_text('{"text": " "}\n')
    long = {"prompt": "hello", "completions": ["cat " * 20, "a dog " * 20], "ranks": [1, 2]}
    (here / "long.jsonl").write_text(json.dumps(long) + "\n")
    (here / "broken.yaml").write_text("a: [\n")
    (here / "raising.py").write_text("raise RuntimeError('no')\n")
    (here / "narrow.py").write_text("def f(prompts):\n    return [0.0]\n")


@pytest.mark.parametrize("stage, fault, changed", CASES, ids=[f"{stage}-{fault}" for stage, fault, _ in CASES])
def test_what_stops_a_run_stops_its_dry_run(stage, fault, changed, here, folders, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    make_faulty(here, folders, stage)
    changed = {name: value.replace("{stage}", stage) for name, value in changed.items()}
    assert both_refuse(stage, changed, here, capsys)


def planned(stage: str, changed: dict, capsys) -> str:
    """The plan of a dry run that ends well, blanks made one."""
    assert run_command(stage, [*command(stage, changed), "--dry-run"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stage", STAGES)
def test_only_what_the_hub_was_to_be_asked_for_is_not_checked(stage, here, capsys):
    assert "not checked" not in planned(stage, {}, capsys)
    told = planned(stage, {"dataset_name": "owner/data", "model_name_or_path": "owner/model"}, capsys)
    assert "not checked │ data 'owner/data'" in told and told.count("not checked") == 2
    Path("owner").mkdir()  # now a path is meant
    assert "owner/data" in both_refuse(stage, {"dataset_name": "owner/data"}, here, capsys)


def test_models_are_looked_at_without_prompts(here, capsys):
    told = planned("ppo", {"dataset_name": "owner/data", "value_model": "separate"}, capsys)
    assert "not checked │ data 'owner/data'" in told and told.count("not checked") == 1


def test_the_plan_tells_the_rows_of_a_forward_where_the_kit_chooses_them(here, capsys, monkeypatch):
    """All of a mini-batch, what memory holds, and nothing where a number is given."""
    assert "rows a forward │ 2 on a device, which fit in 25% of its memory" in planned("ppo", {}, capsys)
    monkeypatch.setattr("rlhf_kit.models.activations._all_memory", lambda: 1)
    assert "rows a forward │ 1 on a device" in planned("ppo", {}, capsys)
    assert "rows a forward" not in planned("ppo", {"per_device_train_batch_size": "2"}, capsys)


def test_an_answer_of_the_hub_is_no_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # it would want the hub's response
    silent = [ConnectionError("refused"), TimeoutError(), LocalEntryNotFoundError("not in the cache")]
    for error in (*silent, OSError("other words"), missing, ValueError("no data files")):
        error.__cause__ = silent[0] if error is missing else OSError("below")  # it was tried again
        wrapped = OSError("could not be loaded")
        wrapped.__cause__ = error
        for name in ("model", "owner/model"):
            assert (loading_error(name, wrapped) is HubUnreachableError) == (error in silent)
        for name in ("./model", "a/b/c", "x.parquet", "a/x.jsonl.gz", "x.tsv", "x.zip", "runs/x", "a\\b"):
            assert loading_error(name, wrapped) is UserError
    (tmp_path / "model").mkdir()
    assert loading_error("model", silent[0]) is loading_error("model/x", silent[0]) is UserError


def test_what_an_earlier_stage_makes_is_not_there_yet_and_no_misspelt_one(here, capsys):
    assert "'runs/sft': not there yet" in planned("ppo", {"model_name_or_path": "runs/sft"}, capsys)
    Path("runs/sft").mkdir(parents=True)
    for name in ("runs/stf", "runs/rows.jsonl"):
        assert run_command("ppo", [*command("ppo", {"model_name_or_path": name}), "--dry-run"]) == 2
    assert run_command("ppo", [*command("ppo", {"dataset_name": "runs/prompts.jsonl"}), "--dry-run"]) == 2


def test_what_a_run_says_of_its_data_stands_in_the_plan(here, capsys):
    Path("sft.jsonl").write_text(json.dumps({**ROW["sft"], "topic": "cats"}) + "\n")
    assert "notice" in (told := planned("sft", {}, capsys)) and "`topic`" in told
    Path("long.jsonl").write_text(json.dumps({**ROW["reward"], "prompt": "hello there " * 60}) + "\n")
    told = planned("reward", {"eval_dataset_name": "long.jsonl"}, capsys)
    assert "notice" in told and "eval: of 1 lists: prompts cut at the beginning 2" in told
