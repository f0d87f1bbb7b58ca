"""docs/migrating-from-trl.md against TRL's names, our options, and the code it shows.

TRL's names and defaults are data, read from the wheels of TRL 1.12.0 (`trl/experimental/ppo/ppo_config.py`,
`ppo_trainer.py`, and what `trl/trainer/base_config.py` changes) and 0.11.4 (`trl/trainer/ppo_config.py`); the
installed TRL has no PPO any more.
"""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.ppo.config import RENAMED
from rlhf_kit.stages.arguments import DataArguments, ModelArguments, RunArguments, parse
from rlhf_kit.stages.ppo import PPOArguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating-from-trl.md").read_text(encoding="utf-8")

PYTHIA = "EleutherAI/pythia-160m"
TRL_1_12 = {  # field -> default
    "learning_rate": 3e-6,
    "dataset_num_proc": None,
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": None,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": PYTHIA,
    "world_size": None,
    "num_total_batches": None,
    "micro_batch_size": None,
    "local_batch_size": None,
    "batch_size": None,
    "local_mini_batch_size": None,
    "mini_batch_size": None,
    "push_to_hub": False,
    "reward_model_path": PYTHIA,
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}
TRL_1_12_BASE = {
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "bf16": None,
    "lr_scheduler_kwargs": None,
    "use_liger_kernel": False,
    "torch_empty_cache_steps": None,
}
TRL_1_12_TRAINER = (
    "args processing_class model ref_model reward_model train_dataset value_model data_collator eval_dataset "
    "optimizers callbacks peft_config"
).split()
TRL_1_12_LOGS = (
    "eps objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward objective/scores "
    "policy/approxkl_avg policy/clipfrac_avg loss/policy_avg loss/value_avg val/clipfrac_avg policy/entropy_avg "
    "val/ratio val/ratio_var val/num_eos_tokens lr episode"
).split()
TRL_0_11 = (
    "exp_name seed log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs "
    "accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs steps learning_rate "
    "adap_kl_ctrl init_kl_coef kl_penalty target horizon gamma lam cliprange cliprange_value vf_coef batch_size "
    "forward_batch_size mini_batch_size gradient_accumulation_steps world_size ppo_epochs max_grad_norm "
    "optimize_cuda_cache optimize_device_cache early_stopping target_kl compare_steps ratio_threshold "
    "use_score_scaling use_score_norm score_clip whiten_rewards gradient_checkpointing is_encoder_decoder "
    "is_peft_model backward_batch_size global_backward_batch_size global_batch_size dataset_num_proc"
).split()
# Words of other libraries that stand in the text as code.
OTHER = (
    "trl.experimental.ppo input_ids pad eos generate step train create_reference_model LengthSampler PeftModel "
    "AutoModelForCausalLM AutoModelForCausalLMWithValueHead TrainingArguments PPOConfig PPOTrainer config tokenizer "
    "policy ref_policy top_k top_p eos_token_id prompt query training_precision NAME"
).split()

OPTIONS = {  # every option of the PPO stage -> default
    item.name: item.default
    for cls in (PPOConfig, PPOArguments, ModelArguments, DataArguments, RunArguments)
    for item in dataclasses.fields(cls)
}
ARGUMENTS = set(inspect.signature(PPOTrainer.__init__).parameters)
LOGS = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def is_value(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True


def table(title: str) -> list[tuple[list[str], list[str]]]:
    """Rows of the table below a heading: (old names, the other cells)."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(code(first), [*rest]) for first, *rest in cells]


def old_names(title: str) -> list[str]:
    return [name for names, _ in table(title) for name in names]


# --- Every old name is told of -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title, names",
    [
        ("Options", [*TRL_1_12, *TRL_1_12_BASE]),
        ("Arguments of the trainer", TRL_1_12_TRAINER),
        ("Names in the logs", TRL_1_12_LOGS),
        ("From TRL 0.x", TRL_0_11),
    ],
)
def test_every_old_name_has_one_row(title, names):
    told = old_names(title)
    assert len(told) == len(set(told))
    assert not set(names) - set(told)


@pytest.mark.parametrize("name", TRL_1_12)
def test_every_field_of_1_12_is_ours_or_refused_with_what_to_write(name):
    assert name in OPTIONS or name in RENAMED, f"add {name!r} to RENAMED in rlhf_kit/ppo/config.py"


def test_a_renamed_name_is_no_option_and_stands_in_the_page_as_it_is_told():
    rows = {}
    for title in ("From TRL 0.x", "Options"):
        rows |= {name: " | ".join(cells) for names, cells in table(title) for name in names}
    for name, instead in RENAMED.items():
        assert name not in OPTIONS, name
        told = [word for word in re.findall(r"\w+", instead) if word in OPTIONS]
        if not instead.startswith("nothing"):
            assert told and f"`{told[0]}`" in rows[name], name
        assert name in rows, name


@pytest.mark.parametrize("name", ["response_length", "whiten_rewards"])
def test_an_old_name_is_refused_with_what_to_write(name):
    with pytest.raises(UserError, match=re.escape(f"--{name}: this option was renamed; write {RENAMED[name]}.")):
        parse("ppo", PPOConfig, [f"--{name}", "1", "--output_dir", "x"], PPOArguments, renamed=RENAMED)


# --- Every name in the page exists -------------------------------------------------------------------------------


def test_new_names_in_the_tables_exist():
    for names, (_, new, *_) in table("Options"):
        assert new == "nothing" or set(code(new)) <= OPTIONS.keys(), (names, new)
    for names, (new, *_) in table("Arguments of the trainer"):
        assert new == "nothing" or set(code(new)) <= ARGUMENTS, (names, new)
    for names, (new, *_) in table("Names in the logs"):
        assert new == "nothing" or set(code(new)) <= LOGS, (names, new)
    for names, (new, *_) in table("From TRL 0.x"):
        known = names if new == "the same" else code(new)
        assert new == "nothing" or known and set(known) <= OPTIONS.keys(), (names, new)


def test_every_word_of_code_in_the_text_is_known():
    known = {*OPTIONS, *ARGUMENTS, *LOGS, *TRL_1_12, *TRL_1_12_BASE, *TRL_1_12_TRAINER, *TRL_1_12_LOGS, *TRL_0_11}
    known |= {*OTHER}
    text = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    unknown = []
    for span in code(text):
        if span in known or is_value(span) or (ROOT / span).exists() or span.startswith("rlhf-kit "):
            continue
        name, _, value = span.partition("=")  # `name="value"`
        if name not in known or not is_value(value):
            unknown.append(span)
    assert not unknown


def test_the_defaults_in_the_table_are_the_defaults():
    theirs = {item.name: item.default for item in dataclasses.fields(TrainingArguments)} | TRL_1_12 | TRL_1_12_BASE
    for (name,), (there, new, here, _) in table("Options"):
        assert ast.literal_eval(there.strip("`")) == theirs[name], name
        if new == "nothing":
            assert not here, name
        else:
            assert ast.literal_eval(here.strip("`")) == OPTIONS[code(new)[0]], name


def test_what_is_new_is_new():
    listed = re.search(r"^New here: (.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)[1].split(". ")[0]
    new = {item.name for item in dataclasses.fields(PPOConfig)} - {
        item.name for item in dataclasses.fields(TrainingArguments)
    }
    assert set(code(listed)) <= new - set(TRL_1_12)


# --- The code ----------------------------------------------------------------------------------------------------


def programs() -> tuple[str, str]:
    before, after = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return before, after


def keywords(program: str, callee: str) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if getattr(node.func, "id", "") == callee]
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_before_uses_names_of_1_12_and_after_names_of_ours():
    before, after = programs()
    base = {item.name for item in dataclasses.fields(TrainingArguments)}
    assert keywords(before, "PPOConfig") <= base | TRL_1_12.keys()
    assert keywords(before, "PPOTrainer") <= set(TRL_1_12_TRAINER)
    assert keywords(after, "PPOConfig") <= OPTIONS.keys() and keywords(after, "PPOTrainer") <= ARGUMENTS


def test_after_runs_and_saves_a_plain_model(policy, reward_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, folder in ((policy, "runs/my/sft"), (reward_model, "runs/my/reward")):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "prompts.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "the cat sat"}\n')
    program = programs()[1]
    small = {"total_episodes": 8, "rollout_batch_size": 8, "mini_batch_size": 4, "max_completion_length": 6}
    small |= {"per_device_train_batch_size": 4, "num_ppo_epochs": 2}
    for name, value in small.items():
        program, changed = re.subn(rf"\b{name}=\w+", f"{name}={value}", program)
        assert changed == 1, name
    namespace: dict = {}
    exec(compile(program, "docs/migrating-from-trl.md", "exec"), namespace)
    assert namespace["trainer"].state.global_step == 4
    assert namespace["trainer"].model.value_trunk is not None
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "new")


def test_the_command_is_one(tmp_path):
    (block,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    kit, stage, *argv = block.split()
    settings = parse(stage, PPOConfig, argv, PPOArguments, renamed=RENAMED)
    assert kit == "rlhf-kit" and settings.training.rollout_batch_size == 512 and settings.extra.value_model == "reward"
