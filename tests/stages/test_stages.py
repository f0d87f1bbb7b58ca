"""Each stage end to end with tiny models, and what it refuses: exit status 2, one clear sentence, nothing written."""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_kit.cli import launch as script
from rlhf_kit.cli.commands import COMMANDS
from rlhf_kit.data.loading import load
from rlhf_kit.models.checkpoints import load_policy, load_reward_model, load_tokenizer
from rlhf_kit.models.heads import score_texts
from rlhf_kit.ppo.rewards import resolve_reward
from rlhf_kit.reward import policy_answers
from rlhf_kit.stages import calibration, ppo, pretrain, reward, sft
from rlhf_kit.stages.output import MetricsFile
from rlhf_kit.terminal import interrupts
from tests.tiny_stages import METHODS, STAGES, run_command

QUIET = ["--disable_tqdm", "--logging_steps", "2"]
PPO = [
    *("--rollout_batch_size", "4", "--mini_batch_size", "2", "--num_ppo_epochs", "1", "--total_episodes", "8"),
    *("--max_completion_length", "4"),
]
STEPS = ["--max_steps", "6", "--save_steps", "2", "--block_size", "32", "--per_device_train_batch_size", "2"]


def words(*items):
    return [str(item) for item in items]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_pretrain_from_scratch_with_a_vocabulary_of_its_own(texts, tmp_path):
    out = tmp_path / "out"
    argv = words("--model_name_or_path", "gpt2", "--config_overrides", "n_layer=2,n_embd=32,n_head=2")
    argv += words("--train_tokenizer", 300, "--dataset_name", texts, "--eval_dataset_name", texts, "--output_dir", out)
    assert run_command(pretrain, [*argv, *STEPS, *QUIET]) == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.config.n_positions == 32 and model.config.use_cache
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id
    told = record(out)
    assert told["steps"] == 6 and told["stage"] == "pretrain" and told["config"]["max_steps"] == 6
    assert told["metrics"]["eval_perplexity"] == pytest.approx(2.718281828 ** told["metrics"]["eval_loss"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert all(row.keys() >= {"step", "time"} for row in rows)
    assert sorted(item.name for item in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


KILLED = """
import os, signal, sys
from rlhf_kit.cli import main
from rlhf_kit.stages.output import MetricsFile
log = MetricsFile.on_log
def kill_at_four(self, args, state, control, **kwargs):
    log(self, args, state, control, **kwargs)
    if state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsFile.on_log = kill_at_four
sys.exit(main(["pretrain", *sys.argv[1:]]))
"""


def test_a_killed_run_resumes_to_the_same_end(texts, tmp_path, scratch):
    argv = [*scratch, *words("--dataset_name", texts), *STEPS, *QUIET, "--seed", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(pretrain, [*argv, "--output_dir", str(whole)]) == 0
    ended = subprocess.run([sys.executable, "-c", KILLED, *argv, "--output_dir", str(killed)], capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    assert not (killed / "run.json").exists() and not (killed / "config.json").exists()
    torn = killed / "checkpoint-4"
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text("{")  # as if the kill had come while it was written
    assert run_command(pretrain, [*argv, "--output_dir", str(killed), "--resume_from_checkpoint"]) == 0
    told = record(killed)
    assert told["resumed_from"] == "checkpoint-2" and told["steps"] == record(whole)["steps"] == 6
    first, second = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]


def test_an_interrupt_says_how_to_go_on(texts, tmp_path, scratch, monkeypatch, capsys):
    def interrupt(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(MetricsFile, "on_log", interrupt)
    argv = [*scratch, *words("--dataset_name", texts, "--output_dir", tmp_path / "out"), *STEPS, *QUIET]
    assert run_command(pretrain, argv) == 130
    assert "--resume_from_checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lora", [[], ["--use_peft"], ["--use_peft", "--merge_adapter"]], ids=["full", "lora", "merged"]
)
def test_the_chain_full_and_with_adapters(base, demonstrations, ranked, tmp_path, lora):
    fine, judge, best = tmp_path / "sft", tmp_path / "reward", tmp_path / "ppo"
    common = [*QUIET, *lora, "--per_device_train_batch_size", "2", "--learning_rate", "1e-3"]
    argv = words("--model_name_or_path", base, "--dataset_name", demonstrations, "--output_dir", fine)
    assert run_command(sft, [*argv, *common, "--num_train_epochs", "1"]) == 0
    argv = words("--model_name_or_path", fine, "--dataset_name", ranked, "--eval_dataset_name", ranked)
    assert run_command(reward, [*argv, *common, "--output_dir", str(judge), "--gradient_accumulation_steps", "1"]) == 0
    assert 0 <= record(judge)["metrics"]["eval_accuracy"] <= 1
    card = (judge / "README.md").read_text(encoding="utf-8")
    accuracy = record(judge)["metrics"]["eval_accuracy"]
    assert f"| Pair accuracy 成對準確率 | {accuracy:.3f} |" in card and "length" in card and "base_model: " in card
    argv = words("--model_name_or_path", fine, "--dataset_name", ranked, "--output_dir", best)
    assert run_command(ppo, [*argv, *common, *PPO, "--reward_funcs", str(judge), "rlhf_kit.world:truth_reward"]) == 0
    assert record(best)["steps"] == 4
    adapter_only = lora == ["--use_peft"]
    for folder in (fine, judge, best):
        assert (folder / "adapter_config.json").exists() == adapter_only
        assert not (folder / ".saving").exists()
        assert AutoTokenizer.from_pretrained(folder).chat_template
    if adapter_only:
        load_policy(best)
    else:
        assert AutoModelForSequenceClassification.from_pretrained(judge).config.num_labels == 1
        AutoModelForCausalLM.from_pretrained(best)


def refused(main, argv, out, capsys):
    """The message of a run that must end with status 2 and leave no trace."""
    assert main([*argv, *words("--output_dir", out)]) == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    "stage, row, message",
    [
        ("pretrain", {"body": "x"}, "Rename `body`|needed: `text`"),
        ("sft", {"text": "x"}, "needed: `messages`"),
        ("reward", {"prompt": "x", "completion": "y"}, "needed: `prompt`"),
        ("reward", {"prompt": "x", "completions": ["", "b"]}, "empty"),
        ("reward", {"prompt": "x", "completions": ["a"]}, "one|two"),
        ("reward", {"prompt": "x", "completions": ["a", "b"], "ranks": [1]}, "ranks"),
        ("ppo", {"words": "x"}, "needed: `prompt`"),
        ("sft", {"prompt": "the cat " * 200, "completion": "x"}, "fits max_length=128"),
        ("ppo", {"prompt": "the cat " * 200}, "row 1, has .* leaves 124"),
    ],
)
def test_bad_data(base, write_jsonl, tmp_path, capsys, stage, row, message):
    data = write_jsonl("data.jsonl", [row])
    argv = words("--model_name_or_path", base, "--dataset_name", data)
    if stage == "ppo":
        argv += ["--reward_funcs", "rlhf_kit.world:truth_reward", "--max_completion_length", "4"]
    said = refused(partial(run_command, stage), argv, tmp_path / "out", capsys)
    assert re.search(message, said), said


def test_files_and_folders_that_are_not_there(base, texts, demonstrations, ranked, tmp_path, capsys):
    out = tmp_path / "out"
    argv = words("--model_name_or_path", base, "--dataset_name", tmp_path / "textz.jsonl")
    assert "Did you mean 'texts.jsonl'?" in refused(partial(run_command, "pretrain"), argv, out, capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = words("--model_name_or_path", empty, "--dataset_name", demonstrations)
    assert "holds no model" in refused(partial(run_command, "sft"), argv, out, capsys)
    argv = words("--model_name_or_path", tmp_path / "nothing", "--dataset_name", ranked)
    assert "There is no folder" in refused(partial(run_command, "reward"), argv, out, capsys)


def test_a_reward_model_with_two_labels(base, ranked, reward_model, tokenizer, tmp_path, capsys):
    reward_model.config.num_labels = 2
    judge = tmp_path / "judge"
    type(reward_model)(reward_model.config).save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    argv = words("--dataset_name", ranked)
    out = tmp_path / "out"
    said = refused(partial(run_command, "reward"), [*argv, "--model_name_or_path", str(judge)], out, capsys)
    assert "2 labels" in said
    said = refused(
        partial(run_command, "ppo"),
        [*argv, "--model_name_or_path", str(base), "--reward_funcs", str(judge)],
        out,
        capsys,
    )
    assert "2 labels" in said


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_module:f", "importing 'no_such_module' failed"),
        ("rlhf_kit.world:truth_rewards", "does not exist.*Did you mean 'truth_reward'"),
        ("rlhf_kit.world:BASE", "is a PosixPath, not a function"),
    ],
)
def test_reward_functions_that_do_not_resolve(base, ranked, tmp_path, capsys, name, message):
    argv = words("--model_name_or_path", base, "--dataset_name", ranked, "--reward_funcs", name)
    assert re.search(message, refused(partial(run_command, "ppo"), argv, tmp_path / "out", capsys))


def test_a_reward_function_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_of_a_test.py").write_text("def short(completions, **_):\n    return [0.0]\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_reward("my_rewards_of_a_test:short")(completions=["x"]) == [0.0]
    assert resolve_reward("org/model") == "org/model"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--eval_strategy", "steps"], "give --eval_dataset_name"),
        (["--merge_adapter"], "--merge_adapter needs --use_peft"),
        (["--block_size", "4096"], "more than the 128 positions"),
        (["--train_tokenizer", "400"], "it needs --config_overrides"),
        (["--config_overrides", "n_layer"], "should read key=value"),
        (["--config_overrides", "n_layerz=2"], "needs a vocabulary|n_layerz"),
    ],
)
def test_options_that_do_not_go_together(base, texts, tmp_path, capsys, argv, message):
    argv = [*words("--model_name_or_path", base, "--dataset_name", texts), *argv]
    assert re.search(message, refused(partial(run_command, "pretrain"), argv, tmp_path / "out", capsys))


def test_a_dry_run_writes_nothing_and_counts(base, texts, demonstrations, ranked, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    for stage, data in (("pretrain", texts), ("sft", demonstrations), ("reward", ranked), ("ppo", ranked)):
        argv = words("--model_name_or_path", base, "--dataset_name", data, "--output_dir", out, "--dry-run")
        if stage == "ppo":
            argv += [*PPO, "--reward_funcs", "tests.rewards:brief"]
        assert run_command(stage, argv) == 0
        said = capsys.readouterr().out
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
        assert f"{parameters:,} parameters" in said and "rows" in said and "GiB" in said
        steps = re.search(r"optimizer steps *│ (\d+)", said)[1]
        # 12 demonstrations / 8 a step x 3 epochs; 8 lists in one step of 64; 8 episodes / 4 a rollout x 2 mini-batches
        assert stage == "pretrain" or int(steps) == {"sft": 6, "reward": 1, "ppo": 4}[stage]
    assert not out.exists()


def test_long_prompts_can_be_left_out(base, write_jsonl, tmp_path, caplog):
    rows = [{"prompt": "the cat " * 200}, {"prompt": "hello"}]
    argv = words("--model_name_or_path", base, "--dataset_name", write_jsonl("p.jsonl", rows), "--dry-run")
    argv += ["--reward_funcs", "rlhf_kit.world:truth_reward", "--max_prompt_length", "20", "--output_dir", "x"]
    assert run_command(ppo, argv) == 0
    assert "1 of 2 prompts, of more than 20 tokens, are left out" in caplog.text


def test_ppo_with_pretraining_texts_and_a_moving_average(base, texts, ranked, tmp_path, capsys):
    out = tmp_path / "ppo"
    argv = words("--model_name_or_path", base, "--dataset_name", ranked, "--reward_funcs", "tests.rewards:brief")
    argv += [*PPO, *QUIET, "--ptx_coef", "1.0"]
    assert "give both" in refused(partial(run_command, "ppo"), argv, out, capsys)
    argv += words("--ptx_dataset_name", texts, "--ema_decay", 0.9, "--log_completions", "--output_dir", out)
    for more in ([], ["--overwrite_output_dir"]):  # the second time every file and folder is replaced
        assert run_command(ppo, [*argv, *more]) == 0
        average, last = load_file(out / "ema" / "model.safetensors"), load_file(out / "model.safetensors")
        assert average.keys() == last.keys() and any(not torch.equal(average[key], last[key]) for key in last)
        assert len(list((out / "completions").iterdir())) == 2
        assert "loss/ptx" in (out / "metrics.jsonl").read_text()


@pytest.fixture
def judges(tmp_path, reward_model, tokenizer):
    """Two reward models of one folder name."""
    folders = [tmp_path / seed / "reward" for seed in "12"]
    for folder in folders:
        reward_model.score.weight.data.normal_()
        reward_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return words(*folders)


def test_ppo_against_an_ensemble_and_a_function(base, ranked, judges, tmp_path):
    argv = words(
        "--model_name_or_path", base, "--dataset_name", ranked, *PPO, *QUIET, "--output_dir", tmp_path / "out"
    )
    argv += ["--reward_funcs", judges[0], "tests.rewards:brief", judges[1], "--reward_weights", "1", "0.5"]
    assert run_command(ppo, [*argv, *words("--reward_ensemble", "mean-std", "--reward_ensemble_std_coef", 0.5)]) == 0
    logged = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "rewards/ensemble-mean-std" in logged and "rewards/brief" in logged and "rewards/reward" not in logged
    assert record(tmp_path / "out")["config"]["reward_ensemble"] == "mean-std"


@pytest.mark.parametrize(
    "models, argv, message",
    [
        (1, ["--reward_ensemble", "min"], "needs at least two reward models; reward_funcs names 1"),
        ((0, 0), ["--reward_ensemble", "min"], "names a reward model twice"),
        (2, ["--reward_ensemble", "minn"], "needs one of mean, min, mean-std"),
        (2, ["--reward_ensemble", "min", "--value_model", "reward"], "value_model 'reward' starts from one reward"),
        (
            2,
            ["--reward_ensemble", "min", "--reward_ensemble_std_coef", "1"],
            "applies to reward_ensemble='mean-std' only",
        ),
        (2, ["--reward_ensemble_std_coef", "1"], "applies to reward_ensemble='mean-std' only"),
        (2, ["--reward_ensemble", "mean-std", "--reward_ensemble_std_coef", "-1"], "must not be negative"),
    ],
)
def test_ensembles_that_make_no_sense(base, ranked, judges, tmp_path, capsys, models, argv, message):
    judges = [judges[i] for i in models] if isinstance(models, tuple) else judges[:models]
    argv = [*words("--model_name_or_path", base, "--dataset_name", ranked), *argv]
    argv += ["--reward_funcs", *judges, "tests.rewards:brief"]
    assert re.search(message, refused(partial(run_command, "ppo"), argv, tmp_path / "out", capsys))


FRONT = Path(__file__).parents[2]


def test_a_recipe_runs_as_a_script_from_its_own_folder(base):
    command = [sys.executable, "ppo.py", "--model_name_or_path", str(base)]
    ended = subprocess.run(command, cwd=FRONT / "recipes", capture_output=True, text=True)
    assert ended.returncode == 2 and "rlhf-kit ppo: " in ended.stderr and "Traceback" not in ended.stderr
    assert {path.stem for path in (FRONT / "recipes").glob("*.py")} == {*STAGES, *METHODS}


@pytest.mark.parametrize(
    "path", sorted([*FRONT.glob("recipes/*.py"), *FRONT.glob("eval/*.py")]), ids=lambda path: path.stem
)
def test_a_script_launches_what_it_is_named_for(path):
    words = ["eval", path.stem] if path.parent.name == "eval" else [path.stem]
    assert path.read_text().endswith(f"    launch({', '.join(map(json.dumps, words))})\n")
    assert path.parent.name == "recipes" or f"eval {path.stem}" in COMMANDS
    assert path.stem not in packages_distributions(), "it would stand for a library"


@pytest.mark.parametrize("folder, words", [("recipes", ["sft"]), ("eval", ["eval", "coqa"])])
def test_a_script_does_not_see_the_files_beside_it(folder, words, monkeypatch):
    """Its folder comes first in the search path; what stands there must not stand for a library."""
    monkeypatch.setattr(sys, "path", [str(FRONT / folder), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(FRONT / folder / "sft.py"), "--x"])
    monkeypatch.setattr(interrupts, "_commands", [])  # the tests go on in this process, which is no script's
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    ran, handler = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(script, "main", lambda argv: ran.append(argv) or 7)
    try:
        with pytest.raises(SystemExit) as ended:
            script.launch(*words)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 7 and ran == [[*words, "--x"]] and str(FRONT / folder) not in sys.path


def calibrated(folder, base, ranked, *options):
    argv = words("--model_name_or_path", base, "--dataset_name", ranked, "--output_dir", folder)
    steps = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2"]
    return run_command(reward, [*argv, *QUIET, *steps, *map(str, options)])


def test_demonstrations_can_be_the_zero_of_the_scores(base, ranked, demonstrations, tmp_path):
    rows, _ = load(str(demonstrations), ["demonstrations"])
    shown = [(row["messages"][:-1], row["messages"][-1]["content"]) for row in rows]
    means = []
    for name, options in (("plain", []), ("moved", ["--calibration_dataset_name", demonstrations])):
        assert calibrated(tmp_path / name, base, ranked, *options) == 0
        model, tokenizer = load_reward_model(tmp_path / name), load_tokenizer(tmp_path / name)
        means.append(score_texts(model, tokenizer, *zip(*shown, strict=True)).mean().item())
        answers = [(row["prompt"], text) for row in load(str(ranked), ["ranked"])[0] for text in row["completions"]]
        spread = score_texts(model, tokenizer, *zip(*answers, strict=True)).std(correction=0).item()
        assert spread == pytest.approx(1, abs=1e-3)
    assert means[1] == pytest.approx(0, abs=1e-3) != pytest.approx(means[0], abs=1e-3)


def test_a_policys_answers_can_be_the_scale_of_the_scores(base, ranked, tmp_path, monkeypatch):
    made = []

    def answered(*arguments):
        made.append(policy_answers(*arguments))
        return made[-1]

    monkeypatch.setattr(calibration, "policy_answers", answered)
    options = ["--calibration_policy", base, "--calibration_samples", 12, "--calibration_max_completion_length", 8]
    assert calibrated(tmp_path / "reward", base, ranked, *options) == 0
    assert len(made) == 1 and len(made[0].completions) == 12
    model, tokenizer = load_reward_model(tmp_path / "reward"), load_tokenizer(tmp_path / "reward")
    scores = score_texts(model, tokenizer, *made[0])
    assert scores.mean().item() == pytest.approx(0, abs=1e-3)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--calibration_policy", "x", "--calibration_dataset_name", "y"], "give one of them"),
        (["--calibration_policy", "x", "--calibrate", "false"], "has no effect"),
        (["--calibration_samples", "5"], "has no effect without --calibration_policy"),
        (["--calibration_policy", "x", "--calibration_samples", "0"], "at least 1"),
    ],
)
def test_calibration_options_that_do_not_go_together(base, ranked, tmp_path, capsys, options, message):
    assert calibrated(tmp_path / "reward", base, ranked, *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "reward").exists()
