"""The stages on other makers' tokenizers and templates: what is saved ends, begins and refuses as it should."""

import json
from functools import partial

import pytest
from datasets import Dataset
from families import FAMILIES, model_of, tokenizer_of
from peft import LoraConfig
from transformers import AutoTokenizer, GenerationConfig
from trl import SFTConfig

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import end_ids, load_policy, load_tokenizer
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.sft import SFTTrainer
from rlhf_kit.stages import pretrain, sft
from tests.tiny_stages import run_command

QUIET = "--use_cpu --disable_tqdm --report_to none --overwrite_output_dir --max_steps 1".split()
SYSTEM = [{"role": "system", "content": "Be brief."}]
ASKED = [{"role": "user", "content": "Hi?"}]
SAID = [*ASKED, {"role": "assistant", "content": "Yes."}]
DATA = {
    "sft": [{"messages": SAID}, {"messages": [*SYSTEM, *SAID]}],
    "reward": [
        {"prompt": [*given, *ASKED], "completions": ["Yes.", "No."], "ranks": [1, 2]} for given in ([], SYSTEM)
    ],
    "ppo": [{"prompt": ASKED}, {"prompt": [*SYSTEM, *ASKED]}],
}
MAIN = {
    "sft": partial(run_command, "sft"),
    "reward": partial(run_command, "reward"),
    "ppo": partial(run_command, "ppo"),
}


def saved(name, folder):
    """A family's model and tokenizer in a folder; its own list of ends."""
    tokenizer = tokenizer_of(name)
    model = model_of(name, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer.convert_tokens_to_ids(list(FAMILIES[name].ends))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ends_of(folder):
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return ends if isinstance(ends, list) else [ends]


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "llama3", "qwen"])
def test_sft_keeps_the_models_own_list_of_ends(name, tmp_path):
    own = saved(name, tmp_path / "model")
    data = lines(tmp_path / "sft.jsonl", [{"messages": SAID}] * 4)
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", data]
    assert run_command(sft, [*argv, "--output_dir", str(tmp_path / "out"), *QUIET]) == 0
    assert ends_of(tmp_path / "out") == own and len(own) > 1


@pytest.mark.parametrize("has_list", [True, False])
def test_sft_in_python_extends_it_by_the_templates_end(has_list, tmp_path):
    """ChatML on a base whose list, or only its configuration, knows its end of text."""
    tokenizer = tokenizer_of("qwen")
    model = model_of("qwen", tokenizer)
    end, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id, model.generation_config.eos_token_id = end, [end] if has_list else None
    args = SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, max_steps=1)
    trainer = SFTTrainer(model, args, Dataset.from_list([{"messages": SAID}]), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert ends_of(tmp_path / "out") == [end, turn]
    assert set(end_ids(load_policy(tmp_path / "out"), load_tokenizer(tmp_path / "out"))) == {end, turn}


def test_a_template_given_for_sft_ends_what_is_saved(tmp_path):
    saved("plain", tmp_path / "model")
    (tmp_path / "own.jinja").write_text(FAMILIES["qwen"].template.replace("<|im_end|>", "<|stop|>"))
    tokenizer = tokenizer_of("plain")
    tokenizer.add_tokens("<|stop|>", special_tokens=True)
    model_of("plain", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = lines(tmp_path / "sft.jsonl", [{"messages": SAID}] * 2)
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", data]
    argv += ["--chat_template_path", str(tmp_path / "own.jinja"), "--output_dir", str(tmp_path / "out"), *QUIET]
    assert run_command(sft, [*argv, "--dry-run"]) == 0
    assert run_command(sft, argv) == 0
    assert ends_of(tmp_path / "out") == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|stop|>")]


def test_an_architectures_default_is_no_end_where_the_tokenizer_has_a_text_there():
    tokenizer = tokenizer_of("qwen")
    model = model_of("qwen", tokenizer)
    model.generation_config.eos_token_id = model.config.eos_token_id = 2  # Llama's
    assert 2 not in end_ids(model, tokenizer)
    model.generation_config.eos_token_id = [2, 5]
    assert 5 in end_ids(model, tokenizer)
    mistral = tokenizer_of("mistral")
    assert end_ids(model_of("mistral", mistral), mistral) == [mistral.eos_token_id]


# --- BOS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen"])
def test_documents_begin_where_the_tokenizer_begins_them(name):
    tokenizer = tokenizer_of(name)
    start = [tokenizer.bos_token_id] if FAMILIES[name].bos else []
    texts = Dataset.from_dict({"text": ["Hi?", "Yes. No."]})
    (row,) = pretrain._rows(pretrain.text_tokens(texts, tokenizer, "texts"), tokenizer, 32)
    documents = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in ("Hi?", "Yes. No.")]
    assert row["input_ids"] == sum(documents, []) and documents[0][: len(start)] == start
    assert row["labels"] == sum([[-100, *document[1:]] for document in documents], [])


def test_sft_saves_a_template_that_begins_as_it_trained(tmp_path):
    tokenizer = tokenizer_of("llama3", template=False)
    tokenizer.save_pretrained(tmp_path / "model")
    model_of("llama3", tokenizer).save_pretrained(tmp_path / "model")
    data = lines(tmp_path / "sft.jsonl", [{"messages": SAID}] * 2)
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", data]
    assert run_command(sft, [*argv, "--output_dir", str(tmp_path / "out"), *QUIET]) == 0
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = again.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked[0] == again.bos_token_id and asked.count(again.bos_token_id) == 1


# --- refusals -------------------------------------------------------------------------------------------------------

WORDS = (
    "refuses 1 of 2 rows: System role not supported (row 2). It does not support a system turn: put the system text"
)


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("stage", DATA)
def test_a_refusing_template_is_told_before_a_model_is_loaded(stage, dry, tmp_path, capsys):
    saved("gemma", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    data = lines(tmp_path / "rows.jsonl", DATA[stage])
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", data, *QUIET]
    argv += ["--output_dir", str(tmp_path / "out"), *["--dry-run"][: int(dry)]]
    argv += ["--reward_funcs", "tests.rewards:brief"] if stage == "ppo" else []
    assert MAIN[stage](argv) == 2
    said = capsys.readouterr().err
    assert WORDS in said and "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_refused_evaluation_row_is_told_too(tmp_path, capsys):
    saved("gemma", tmp_path / "model")
    files = [
        lines(tmp_path / f"{at}.jsonl", [{"messages": rows}] * 2) for at, rows in enumerate([SAID, SYSTEM + SAID])
    ]
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", files[0], *QUIET]
    assert run_command(sft, [*argv, "--eval_dataset_name", files[1], "--output_dir", str(tmp_path / "out")]) == 2
    assert "eval: the tokenizer's chat template refuses 2 of 2 rows" in capsys.readouterr().err


def test_refused_demonstrations_to_calibrate_on_are_told_too(tmp_path, capsys):
    saved("gemma", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    pairs = lines(tmp_path / "pairs.jsonl", [{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}])
    rows = lines(tmp_path / "rows.jsonl", [{"messages": SAID}, {"messages": SYSTEM + SAID}])
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", pairs, *QUIET]
    argv += ["--calibration_dataset_name", rows, "--output_dir", str(tmp_path / "out")]
    assert MAIN["reward"](argv) == 2
    assert "calibration: the tokenizer's chat template refuses 1 of 2 rows" in capsys.readouterr().err


@pytest.mark.parametrize("stage", DATA)
def test_the_trainers_tell_it_from_python(stage, tmp_path):
    saved("gemma", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    model, rows = str(tmp_path / "model"), Dataset.from_list(DATA[stage])
    shared = {"report_to": "none", "use_cpu": True}
    with pytest.raises(UserError, match="System role not supported .row 2.. It does not support a system turn"):
        if stage == "sft":
            SFTTrainer(model, SFTConfig(str(tmp_path / "out"), bf16=False, **shared), rows, peft_config=LoraConfig())
        elif stage == "reward":
            ranked = [row | {"ranks": [1, 2]} for row in DATA[stage]]
            RewardTrainer(model, RewardConfig(str(tmp_path / "out"), **shared), Dataset.from_list(ranked))
        else:
            PPOTrainer(model, lambda **_: [], PPOConfig(str(tmp_path / "out"), **shared), rows)
