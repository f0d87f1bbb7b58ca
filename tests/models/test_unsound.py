"""Models whose files do not hold what they should: one message from stages and evaluations alike."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from rlhf_kit.cli import main
from rlhf_kit.data import runaway
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo import PPOConfig, PPOTrainer

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def config_with(**values):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def file_of(name, text):
    return lambda folder: (folder / name).write_text(text)


def weights_with(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def template(text):
    return file_of("chat_template.jinja", text)


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_type(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "model_type"}))


def more_tokens(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(9)])
    tokenizer.save_pretrained(folder)


def nan(weights):
    weights["transformer.h.0.ln_1.weight"][0] = torch.nan


def without_a_layer(weights):
    for name in [name for name in weights if ".h.0." in name]:
        del weights[name]


def with_a_layer(weights):
    weights |= {name.replace(".h.0.", ".h.7."): x.clone() for name, x in weights.items() if ".h.0." in name}


UNSOUND = {
    "config: no JSON": (file_of("config.json", "{"), "config.json is not valid JSON"),
    "config: a list": (file_of("config.json", "[1]"), "config.json' holds a list; a mapping is needed"),
    "config: nested deeply": (
        file_of("config.json", '{"a":' * 9999 + "1" + "}" * 9999),
        "config.json is not valid JSON",
    ),
    "config: no type": (no_type, "model_type"),
    "config: unknown type": (config_with(model_type="gpt2x"), "gpt2x"),
    "config: no heads": (config_with(n_head=0), "makes no gpt2 model: num_attention_heads is 0"),
    "config: no layers": (config_with(n_layer=0), "makes no gpt2 model: num_hidden_layers is 0"),
    "config: heads do not divide": (config_with(n_head=3), "divisible"),
    "config: width of text": (config_with(n_embd="x"), "could not be loaded"),
    "config: more layers": (config_with(n_layer=9), "its files lack"),
    "weights: cut off": (cut_off, "could not be loaded"),
    "weights: no safetensors": (file_of("model.safetensors", "x" * 50), "could not be loaded"),
    "weights: NaN": (weights_with(nan), "the weights transformer.h.0.ln_1.weight are NaN or infinite"),
    "weights: a layer less": (weights_with(without_a_layer), "its files lack"),
    "weights: a layer more": (weights_with(with_a_layer), "layers that its config.json does not have"),
    "tokenizer: no JSON": (file_of("tokenizer.json", "{"), "okenizer could not be loaded"),
    "tokenizer: empty": (file_of("tokenizer.json", "{}"), "okenizer could not be loaded"),
    "tokenizer: config a list": (file_of("tokenizer_config.json", "[]"), "tokenizer_config.json' holds a list"),
    "tokenizer: more tokens": (more_tokens, "tokens and the model knows"),
}
TEMPLATES = {
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "unknown function": ("{{ strftime_later('x') }}", "is undefined"),
    "raises": ("{{ raise_exception('never, and never') }}", "never, and never"),
    "endless": (ENDLESS, "does not terminate: for one short turn it ran for"),
    "huge": ("{{ 'x' * 10000000000 }}", "does not terminate: for one short turn it wrote more than"),
    "long": ("{% for m in messages %}{{ 'x' * 2000000 }}{% endfor %}", "it wrote more than"),
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(runaway, "SECONDS", 1)


@pytest.fixture
def base(policy, tokenizer_folder, tmp_path):
    folder = tmp_path / "base"
    load_tokenizer(tokenizer_folder).save_pretrained(folder)
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def command(base, tmp_path):
    """`command(name)`: the exit status of a stage or an evaluation with the model in `base`."""
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "the cat"}]
    path.write_text(json.dumps({"messages": turns, "text": "the cat sat on the mat"}) + "\n")
    stage = ["--model_name_or_path", base, "--dataset_name", path, "--output_dir", tmp_path / "out", "--max_steps", 1]
    given = {
        "sft": ["sft", *stage],
        "sft in a dry run": ["sft", *stage, "--dry_run"],
        "eval lambada": ["eval", "lambada", "--model", base, "--data", path],
        "eval icl": ["eval", "icl", "--models", base, "--tasks", "world", "--limit", 1, "--apply_chat_template"],
    }
    return lambda name: main([str(word) for word in given[name]])


@pytest.mark.parametrize("name", ["sft", "eval lambada"])
@pytest.mark.parametrize("fault", UNSOUND)
def test_a_model_that_is_none_is_one_message(name, fault, base, command, capsys):
    spoil, told = UNSOUND[fault]
    spoil(base)
    assert command(name) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


@pytest.mark.parametrize("name", ["sft", "sft in a dry run", "eval icl"])
@pytest.mark.parametrize("fault", TEMPLATES)
def test_a_template_that_is_none_is_one_message(name, fault, base, command, capsys):
    text, told = TEMPLATES[fault]
    template(text)(base)
    assert command(name) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_template_is_tried_once_and_a_sound_one_leaves_no_trace(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    first = encode_prompt(tokenizer, [{"role": "user", "content": "hello there"}])
    assert tokenizer.chat_template in runaway._tried
    assert encode_prompt(tokenizer, [{"role": "user", "content": "hello there"}]) == first


def test_a_child_that_waits_is_no_verdict(monkeypatch):
    monkeypatch.setattr(runaway, "PATIENCE", 0.2)
    runaway.refuse_runaway("a template that sleeps", lambda: __import__("time").sleep(60) or "")


@pytest.mark.parametrize("role", ["reward_funcs", "ref_model"])
def test_ppo_in_python_reads_no_judge_of_nan(role, policy, reward_model, tokenizer, tmp_path):
    models = {"reward_funcs": reward_model, "ref_model": copy.deepcopy(policy)}
    models[role].transformer.h[0].ln_1.weight.data[0] = torch.nan
    args = PPOConfig(str(tmp_path), use_cpu=True, report_to="none", max_completion_length=4)
    rows = Dataset.from_dict({"prompt": ["hello there"]})
    with pytest.raises(UserError, match="the weights transformer.h.0.ln_1.weight are NaN or infinite"):
        PPOTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer, **models)


def test_two_bad_rewards_are_both_told(base, tmp_path, capsys):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    given = ["--model_name_or_path", base, "--dataset_name", rows, "--output_dir", tmp_path / "out", "--reward_funcs"]
    assert main(["ppo", *map(str, given), str(base), "no_such_module:f", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "is not a reward model" in error and "no_such_module" in error and "nowhere" in error


def test_each_tells_all_and_hands_on_a_single_fault_as_it_is():
    def check(number):
        if number < 0:
            raise UserError(f"{number} is below 0.")
        return number + 1

    assert each(check, [1, 2]) == [2, 3]
    with pytest.raises(UserError, match="^-1 is below 0.\n-2 is below 0.$"):
        each(check, [-1, 1, -2])
