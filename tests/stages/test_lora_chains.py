"""Adapters from stage to stage: what a stage leaves is what it trained, wherever and by whomever it is read."""

import copy
import os
import re
import shutil
from functools import partial

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from rlhf_kit.cli import main
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.checkpoints import load_policy, load_reward_model, load_tokenizer
from rlhf_kit.models.forward import unwrapped
from rlhf_kit.models.heads import calibration
from rlhf_kit.models.merging import merged
from rlhf_kit.models.precision import cast_frozen
from rlhf_kit.stages import merging, ppo, pretrain, reward, sft
from rlhf_kit.storage import Folder
from tests.tiny_stages import run_command

MAIN = {
    "pretrain": partial(run_command, "pretrain"),
    "sft": partial(run_command, "sft"),
    "reward": partial(run_command, "reward"),
    "ppo": partial(run_command, "ppo"),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 40, 41]])
COMMON = ["--disable_tqdm", "--learning_rate", "1e-2", "--per_device_train_batch_size", "2", "--save_strategy", "no"]
LORA = ["--use_peft", "--lora_r", "2"]
OPTIONS = {
    "pretrain": ["--max_steps", "2", "--block_size", "32"],
    "sft": ["--max_steps", "2"],
    "reward": ["--max_steps", "2", "--gradient_accumulation_steps", "1"],
    "ppo": [
        *("--rollout_batch_size", "4", "--mini_batch_size", "2", "--num_ppo_epochs", "1", "--total_episodes", "4"),
        *("--max_completion_length", "4", "--reward_funcs", "judge"),
    ],
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer_folder):
    """A folder with a base model, and LoRA runs of SFT and a reward model on it (`sft`, `judge`)."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tokenizer_folder, folder / "base")
    torch.manual_seed(0)
    size = len(load_tokenizer(tokenizer_folder))
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=128, vocab_size=size))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    model.save_pretrained(folder / "base")
    rows = {
        "pretrain": '{"text": "the cat %d sat on the mat"}\n',
        "sft": '{"prompt": "hello %d", "completion": "the cat"}\n',
        "reward": '{"prompt": "say %d", "completions": ["the cat", "a dog", "mat"]}\n',
        "ppo": '{"prompt": "hello %d"}\n',
    }
    for stage, row in rows.items():
        (folder / f"{stage}.jsonl").write_text("".join(row % i for i in range(16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("sft", "base", "sft", *LORA) == 0
        assert run("reward", "base", "judge", *LORA) == 0
    return folder


def run(stage, model, out, *options) -> int:
    """A stage on its rows in the current folder, whose paths are relative, as a user gives them."""
    argv = ["--model_name_or_path", model, "--dataset_name", f"{stage}.jsonl", "--output_dir", str(out)]
    return MAIN[stage]([*argv, *COMMON, *OPTIONS[stage], *options])


@pytest.fixture
def trained(monkeypatch, home):
    """The trainer of the last run, as it was when it had ended. The folder is `home`."""
    seen = {}
    monkeypatch.chdir(home)
    for recipe in (pretrain, sft, reward, ppo):
        finish = recipe.finish

        def finished(trainer, *args, finish=finish):
            seen["trainer"] = trainer
            return finish(trainer, *args)

        monkeypatch.setattr(recipe, "finish", finished)
    return seen


@pytest.mark.parametrize("stage", MAIN)
def test_all_weights_are_trained_from_the_folder_of_an_adapter(stage, trained, home, tmp_path):
    before = {name: weight.clone() for name, weight in load_policy(home / "sft").state_dict().items()}
    assert run(stage, "sft", tmp_path / "out") == 0
    load = load_reward_model if stage == "reward" else load_policy
    after = load(tmp_path / "out").state_dict()
    shared = before.keys() & after.keys()
    assert len(shared) >= len(before) - 1
    assert [name for name in shared if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("kind", ["full", "lora", "merged"])
@pytest.mark.parametrize("start", ["base", "sft"])
@pytest.mark.parametrize("stage", MAIN)
def test_what_a_stage_leaves_loads_in_plain_transformers(stage, start, kind, trained, home, tmp_path, monkeypatch):
    options = {"full": [], "lora": LORA, "merged": [*LORA, "--merge_adapter"]}[kind]
    out = tmp_path / "out"
    ema = ["--ema_decay", "0.5"] if stage == "ppo" else []
    assert run(stage, start, out, *options, *ema, "--save_strategy", "steps", "--save_steps", "1") == 0
    model = getattr(trained["trainer"].model, "policy", trained["trainer"].model)
    gain, bias = calibration(unwrapped(model).config)
    expected = gain * logits(model) + bias
    monkeypatch.chdir(tmp_path)  # a relative path would be lost here

    auto, auto_peft, ours, labels = AutoModelForCausalLM, AutoPeftModelForCausalLM, load_policy, {}
    if stage == "reward":
        auto, auto_peft = AutoModelForSequenceClassification, AutoPeftModelForSequenceClassification
        ours, labels = load_reward_model, {"num_labels": 1}
    steps = [path for path in out.glob("checkpoint-*")]
    assert steps
    for folder in [out, *steps, *([out / "ema"] if ema else [])]:
        is_adapter = kind == "lora" or (kind == "merged" and folder != out)
        assert (folder / "adapter_config.json").exists() == is_adapter != (folder / "config.json").exists()
        mine = ours(folder)
        left = calibration(mine.config)[1]
        assert left == 0 or stage == "reward"
        if start == "sft" and is_adapter and kind == "merged":  # its base is an adapter: for this kit to load
            continue
        plain = auto.from_pretrained(folder, **labels if is_adapter else {})
        again = auto_peft.from_pretrained(folder, **labels) if is_adapter else plain
        torch.testing.assert_close(logits(plain), logits(again))
        torch.testing.assert_close(logits(plain), logits(mine), atol=1e-5, rtol=1e-5)
        if folder == out:
            torch.testing.assert_close(logits(plain) + left, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--use_peft", "--lora_target_modules", "q_proj", "v_proj"], "no 'q_proj', 'v_proj' .* has c_attn, c_fc, c_"),
        (["--use_peft", "--lora_target_modules", "c_attn", "c_prj"], "no 'c_prj' .* Did you mean 'c_proj'"),
        (["--use_peft", "--lora_target_modules", "ln_f"], "no 'ln_f'"),
        (["--use_peft", "--lora_target_modules", "all-linear", "c_fc"], "no 'all-linear'"),
        (
            ["--use_peft", "--lora_target_modules", "c_attn", "wte"],
            "'wte' is tied to 'lm_head'.*--lora_modules_to_save",
        ),
        (["--use_peft", "--lora_target_modules", "lm_head"], "'lm_head' is tied to 'wte'"),
        (["--use_peft", "--lora_modules_to_save", "embed_tokens"], "no 'embed_tokens' .* has .*wte"),
        (["--lora_r", "4"], "^rlhf-kit sft: --lora_r needs --use_peft"),
        (["--use_dora", "--lora_target_modules", "c_fc"], "--lora_target_modules needs.*--use_dora needs"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry"])
def test_what_lora_cannot_do_is_refused_before_anything_is_written(options, message, dry, trained, tmp_path, capsys):
    assert run("sft", "base", tmp_path / "out", *options, *dry) == 2
    told = capsys.readouterr().err
    assert re.search(message, told, re.DOTALL) and not (tmp_path / "out").exists() and not trained


@pytest.mark.parametrize("stage", MAIN)
def test_all_linear_is_pefts_word(stage, trained, tmp_path):
    assert run(stage, "base", tmp_path / "out", "--use_peft", "--lora_target_modules", "all-linear") == 0
    model = getattr(trained["trainer"].model, "policy", trained["trainer"].model)
    adapted = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    assert adapted == {"c_attn", "c_proj", "c_fc"}


# --- rlhf-kit merge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("adapter", ["sft", "judge"])
def test_merge_makes_a_plain_model_of_an_adapter(adapter, dtype, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["merge", adapter, "--output_dir", str(tmp_path / "plain"), "--dtype", dtype]) == 0
    auto, load = AutoModelForCausalLM, load_policy
    if adapter == "judge":
        auto, load = AutoModelForSequenceClassification, load_reward_model
    plain, expected = auto.from_pretrained(tmp_path / "plain"), load(home / adapter)
    rounded = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert plain.dtype == rounded
    score = logits(expected) + calibration(expected.config)[1]  # which the last norm takes
    torch.testing.assert_close(logits(plain).float(), score, atol=1e-5 if dtype == "auto" else 0.15, rtol=1e-5)
    if adapter == "sft":
        for name, weight in expected.to(rounded).state_dict().items():
            assert torch.equal(plain.state_dict()[name], weight), name
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").vocab_size == load_tokenizer(home / "base").vocab_size
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert adapter in card and "merged" in card and "More Information" not in card
    assert not {"adapter_config.json", ".saving"} & {item.name for item in (tmp_path / "plain").iterdir()}


def test_merge_replaces_an_earlier_merge_only_where_it_is_told_to(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    out, again = tmp_path / "plain", ["merge", "sft", "--output_dir", str(tmp_path / "plain")]
    assert main([*again, "--dtype", "bfloat16"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(again) == 2
    told = capsys.readouterr().err
    assert "contains an earlier merge (README.md, " in told and "--overwrite_output_dir" in told
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "README.md").write_text("mine")
    assert main([*again, "--overwrite_output_dir"]) == 2  # a file that somebody has changed is his
    assert "README.md" in capsys.readouterr().err and (out / "README.md").read_text() == "mine"
    assert {path.name for path in out.iterdir()} == {*before}
    (out / "README.md").unlink()
    assert main([*again, "--overwrite-output-dir"]) == 0
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_a_merge_that_was_cut_off_is_begun_again_and_one_at_work_is_left_alone(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    out = Folder(tmp_path / "plain", "merge")
    out.claim(".saving")  # as a kill leaves it
    (out.path / ".saving").mkdir()
    (out.path / ".saving" / "model.safetensors").write_bytes(b"half")
    again = ["merge", "sft", "--output_dir", str(out.path)]
    out.lock()
    assert main(again) == 2 and "is held by another run" in capsys.readouterr().err
    out.unlock()

    def save_half(model, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    with monkeypatch.context() as full:
        full.setattr(merging, "save", save_half)
        assert main(again) == 1 and "cannot be written: No space left" in capsys.readouterr().err
    assert [path.name for path in out.path.iterdir()] == [".rlhf_kit"]
    assert main(again) == 0 and AutoModelForCausalLM.from_pretrained(out.path).dtype == torch.float32


def test_merge_refuses_what_is_no_adapter_and_keeps_what_is_there(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["merge", "base", "--output_dir", str(tmp_path / "plain")]) == 2
    assert "'base' is not an adapter" in capsys.readouterr().err and not (tmp_path / "plain").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["merge", "sft", "--output_dir", str(tmp_path / "mine" / "notes.txt")]) == 2
    assert "notes.txt' is a file; give a folder" in capsys.readouterr().err
    assert main(["merge", "sft", "--output_dir", str(tmp_path / "mine")]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    shutil.copytree("sft", tmp_path / "moved")
    path = tmp_path / "moved" / "adapter_config.json"
    path.write_text(path.read_text().replace(str(home / "base"), "/nowhere/base"))
    assert main(["merge", str(tmp_path / "moved"), "--output_dir", str(tmp_path / "plain")]) == 2
    assert "was trained on the model in '/nowhere/base'" in capsys.readouterr().err


def test_merge_leaves_the_models_below_an_adapter_alone(home, trained, tmp_path, capsys):
    below, adapter = tmp_path / "below", tmp_path / "adapter"
    assert main(["merge", "sft", "--output_dir", str(below)]) == 0  # recorded there: only its place speaks for it
    assert run("sft", str(below), adapter, *LORA) == 0
    before = {path.name: path.read_bytes() for path in below.iterdir()}
    for name, into in ((adapter, below), (adapter, adapter)):
        assert main(["merge", str(name), "--output_dir", str(into)]) == 2
        assert "holds what is merged" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in below.iterdir()} == before


@pytest.mark.parametrize("stage", [*MAIN, "merge"])
def test_an_adapter_that_is_no_part_of_the_weights_is_refused_by_its_kind(stage, home, trained, tmp_path, capsys):
    base = GPT2LMHeadModel.from_pretrained(home / "base")
    get_peft_model(base, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "p"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(home / "base" / name, tmp_path / "p")
    out = tmp_path / "out"
    given = str(tmp_path / "p")
    assert (main(["merge", given, "--output_dir", str(out)]) if stage == "merge" else run(stage, given, out)) == 2
    assert "is of the kind PROMPT_TUNING, which is not part of the weights" in capsys.readouterr().err
    assert not out.exists()


def test_the_card_of_a_merged_run_is_not_pefts(trained, tmp_path):
    assert run("sft", "base", tmp_path / "out", *LORA, "--merge_adapter") == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "merged" in card and "base_model" in card and "More Information" not in card


def test_ppo_in_bf16_merges_into_the_float32_base(trained, home, tmp_path):
    """An adapter that has learnt nothing adds nothing: what is left is the base, to the last bit."""
    out = tmp_path / "out"
    assert run("ppo", "base", out, *LORA, "--merge_adapter", "--bf16", "--learning_rate", "0") == 0
    before, after = (load_policy(folder).state_dict() for folder in (home / "base", out))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_merge_in_memory_under_bf16_is_the_tuned_model():
    """What PPO computes with is a cast copy of the frozen weights; merging must not go on with it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=64, vocab_size=50)).eval()
    adapted = wrap(model, LoraConfig(r=2, init_lora_weights=False)).eval()
    cast_frozen(adapted, torch.bfloat16, keep=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, off = logits(adapted).float(), logits(adapted.disable_adapter_layers() or adapted).float()
        adapted.enable_adapter_layers()
        for plain in (copy.deepcopy(adapted).merge_and_unload(), merged(copy.deepcopy(adapted))):
            gap = (logits(plain).float() - expected).abs().max()
            assert gap < 0.05 * (expected - off).abs().max()
