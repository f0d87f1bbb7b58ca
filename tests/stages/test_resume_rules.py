"""What a run may go on with: used as given and recorded, or refused by name; damaged checkpoints; the last step."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.stages import pretrain, reward, sft
from rlhf_kit.training import Trainer, checkpoints
from rlhf_kit.training.checkpoints import damage
from tests.tiny_stages import run_command

TIMED = ("time", "runtime", "per_second")


@pytest.fixture
def run(base, demonstrations, tmp_path, capsys):
    """run("--max_steps", 4, ...) -> (exit status, what was said); the same folder each time."""

    def go(*options, stage=sft, data=demonstrations):
        argv = ["--model_name_or_path", base, "--dataset_name", data, "--output_dir", tmp_path / "out"]
        argv += ["--per_device_train_batch_size", 2, "--save_steps", 2, "--logging_steps", 1, "--disable_tqdm"]
        argv += ["--save_total_limit", 9, "--warmup_steps", 0, *options]
        status = run_command(stage, [str(item) for item in argv])
        return status, capsys.readouterr().err

    go.out = tmp_path / "out"
    return go


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(TIMED)} for row in lines]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_half_written_leaves_nothing_in_the_next(run):
    lora = ("--use_peft", "--lora_r", 2)
    assert run("--max_steps", 4, *lora)[0] == 0
    last = run.out / "checkpoint-4"
    card = (last / "README.md").read_text()
    record = json.loads((last / "checkpoint.json").read_text())
    (last / "checkpoint.json").write_text(json.dumps(record | {"files": None}))
    (last / "README.md").write_text(card[:900])
    status, said = run("--max_steps", 4, *lora, "--resume_from_checkpoint")
    assert status == 0 and "checkpoint-4: it was not completely written" in said, said
    assert (last / "README.md").read_text() == card


# -- the last step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 6])  # inside a pass of 6 steps, and at its end
def test_at_its_last_step_a_run_trains_nothing_more_and_ends_as_an_unbroken_one(steps, run):
    assert run("--max_steps", steps)[0] == 0
    whole, logged, record = weights(run.out), rows(run.out), json.loads((run.out / "run.json").read_text())
    for name in ("run.json", "model.safetensors", "config.json"):  # killed before the end
        (run.out / name).unlink()
    for _ in range(2):
        status, said = run("--max_steps", steps, "--resume_from_checkpoint")
        assert status == 0 and f"checkpoint-{steps} is the last of {steps} steps: nothing is left to train." in said
        again = json.loads((run.out / "run.json").read_text())
        assert again["steps"] == steps and again["metrics"]["train_loss"] == record["metrics"]["train_loss"]
        assert same(weights(run.out), whole) and rows(run.out) == logged
    assert not (run.out / f"checkpoint-{steps + 1}").exists()


def test_fewer_steps_than_done_are_refused_and_more_are_more(run):
    run("--max_steps", 4)
    status, said = run("--max_steps", 3, "--resume_from_checkpoint")
    assert status == 2 and "it has already taken 4 optimizer steps, and this run asks for 3" in said
    status, said = run("--num_train_epochs", 0.5, "--resume_from_checkpoint")
    assert status == 2 and "it has already made 0.6667 passes over the data, and this run asks for 0.5" in said
    assert run("--max_steps", 8, "--resume_from_checkpoint")[0] == 0
    assert json.loads((run.out / "run.json").read_text())["steps"] == 8


def test_counts_go_on_inside_a_logging_interval(run):
    """A log at step 3, a checkpoint at 4, the next log at 6: it is the mean of three steps in both."""
    several = ["--max_steps", 8, "--logging_steps", 3, "--num_train_epochs", 3]
    run(*several)
    whole, logged = weights(run.out), rows(run.out)
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(run.out / name)
    assert run(*several, "--resume_from_checkpoint")[0] == 0
    assert rows(run.out) == logged and same(weights(run.out), whole)


@pytest.mark.parametrize("boundary", [6, 12])  # of passes of 6 steps
def test_a_run_resumed_twice_about_the_end_of_a_pass_reads_the_same_rows(boundary, run):
    """The order of a pass that began with the first resumption is drawn again by the second."""
    steps = ["--max_steps", boundary + 4, "--learning_rate", "1e-2", "--train_sampling_strategy", "group_by_length"]
    run(*steps)
    whole, logged = weights(run.out), rows(run.out)
    for gone in ((boundary + 2, boundary + 4), (boundary + 4,)):
        for number in gone:
            shutil.rmtree(run.out / f"checkpoint-{number}")
        assert run(*steps, "--resume_from_checkpoint")[0] == 0
    assert json.loads((run.out / "run.json").read_text())["resumed_from"] == f"checkpoint-{boundary + 2}"
    assert rows(run.out) == logged and same(weights(run.out), whole)


# -- used as given, and recorded -------------------------------------------------------------------------------------


def test_another_learning_rate_holds_from_the_checkpoint_on(run):
    """train-09: the checkpoint's won, and run.json recorded the other."""
    constant = ["--lr_scheduler_type", "constant"]
    run("--max_steps", 2, "--learning_rate", "1e-3", *constant)
    status, said = run("--max_steps", 4, "--learning_rate", "1e-5", *constant, "--resume_from_checkpoint")
    assert status == 0 and "From step 2 on: --learning_rate 1e-05 (before: 0.001)." in said
    rates = [row["learning_rate"] for row in rows(run.out) if "learning_rate" in row]
    assert rates == [1e-3, 1e-3, 1e-5, 1e-5]
    record = json.loads((run.out / "run.json").read_text())
    assert record["changes"] == [{"from_step": 2, "options": {"learning_rate": [1e-3, 1e-5]}}]
    assert record["config"]["learning_rate"] == 1e-5
    # A third time, unchanged: the history stays.
    assert run("--max_steps", 6, "--learning_rate", "1e-5", *constant, "--resume_from_checkpoint")[0] == 0
    assert json.loads((run.out / "run.json").read_text())["changes"] == record["changes"]


def test_another_schedule_is_followed_from_where_the_run_stands(run):
    run("--max_steps", 4, "--learning_rate", "1e-3", "--lr_scheduler_type", "linear")
    shutil.rmtree(run.out / "checkpoint-4")
    more = ["--learning_rate", "1e-3", "--lr_scheduler_type", "constant", "--resume_from_checkpoint"]
    status, said = run("--max_steps", 4, *more)
    assert status == 0 and "--lr_scheduler_type constant (before: linear)" in said
    rates = [row["learning_rate"] for row in rows(run.out) if "learning_rate" in row]
    assert rates == pytest.approx([1e-3, 0.75e-3, 1e-3, 1e-3])


def test_more_steps_stretch_the_schedule_and_say_so(run, caplog):
    run("--max_steps", 2, "--learning_rate", "1e-3", "--lr_scheduler_type", "linear")
    assert run("--max_steps", 4, "--learning_rate", "1e-3", "--lr_scheduler_type", "linear",
               "--resume_from_checkpoint")[0] == 0  # fmt: skip
    rates = [row["learning_rate"] for row in rows(run.out) if "learning_rate" in row]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.5e-3, 0.25e-3])
    assert "The learning rate resumes at 0.0005; the checkpoint ended at 0." in caplog.text


@pytest.mark.parametrize(
    "option,value,key", [("--weight_decay", "0.5", "weight_decay"), ("--adam_beta1", "0.5", "betas")]
)
def test_what_the_optimizer_keeps_is_as_given_now(option, value, key, run):
    """torch restores weight decay and betas with the moments, and recorded were the others."""
    run("--max_steps", 2)
    assert run("--max_steps", 4, option, value, "--resume_from_checkpoint")[0] == 0
    group = torch.load(run.out / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"][0]
    assert group[key] in (0.5, (0.5, 0.999), [0.5, 0.999])


def test_how_often_to_save_is_as_given_now(run):
    run("--max_steps", 2)
    assert run("--max_steps", 4, "--save_steps", 1, "--resume_from_checkpoint")[0] == 0
    assert (run.out / "checkpoint-3").is_dir()


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def never_loaded(monkeypatch):
    def loaded(*args, **options):
        raise AssertionError("a model was loaded")

    def from_here_on():
        monkeypatch.setattr(sft, "load_model", loaded)
        monkeypatch.setattr(reward, "load_reward_model", loaded)

    return from_here_on


def test_what_would_make_one_run_of_two_is_refused_before_a_model_is_loaded(run, ranked, never_loaded):
    run("--max_steps", 2)
    never_loaded()
    before = sorted(path for path in run.out.rglob("*"))
    for options, said in [
        (["--seed", 7], "trained with --seed 42, and this run has 7"),
        (["--per_device_train_batch_size", 4], "trained with --per_device_train_batch_size 2, and this run has 4"),
        (["--gradient_accumulation_steps", 2], "--gradient_accumulation_steps 1, and this run has 2"),
        (["--bf16"], "--bf16 False, and this run has True"),
        (["--dtype", "bfloat16"], "--dtype auto, and this run has bfloat16"),
        (["--use_peft"], "--use_peft False, and this run has True"),
        (["--optim", "adafactor"], "--optim adamw_torch_fused, and this run has adafactor"),
        (["--max_length", 64], "--max_length 1024, and this run has 64"),
        (["--max_train_samples", 6], "the training data has changed"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps", "--eval_steps", 2,
          "--eval_dataset_name", ranked.parent / "demonstrations.jsonl"], "and this run has reduce_lr_on_plateau"),
    ]:  # fmt: skip
        status, told = run("--max_steps", 4, *options, "--resume_from_checkpoint")
        assert status == 2 and said in told, told
        assert re.search(r"start a new run from its weights: --model_name_or_path \S+checkpoint-2 --output_dir", told)
    status, told = run("--max_steps", 4, "--seed", 7, "--optim", "adafactor", "--resume_from_checkpoint")
    assert "--optim" in told and "--seed" in told  # all of it in one message
    status, told = run("--max_steps", 4, "--resume_from_checkpoint", stage=reward, data=ranked)
    assert status == 2 and "it belongs to stage sft, and this is stage reward" in told
    assert sorted(path for path in run.out.rglob("*")) == before


def test_changed_content_under_the_same_name_is_refused(run, base, demonstrations, never_loaded):
    run("--max_steps", 2)
    never_loaded()
    kept = demonstrations.read_text()
    demonstrations.write_text(kept.replace("hello 3", "hello 33"))
    status, told = run("--max_steps", 4, "--resume_from_checkpoint")
    assert status == 2 and "the training data has changed" in told
    demonstrations.write_text(kept)
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-1] + b"\x01")
    status, told = run("--max_steps", 4, "--resume_from_checkpoint")
    assert status == 2 and "the --model_name_or_path is not the one the run started with" in told


def test_other_adapters_are_refused(run, never_loaded):
    """Rank and alpha, targets and whole modules: each by its name, though some would fit the checkpoint's tensors."""
    adapted = ["--use_peft", "--lora_r", 4, "--lora_target_modules", "c_attn", "c_fc"]
    run("--max_steps", 2, *adapted)
    never_loaded()
    for options, said in [
        ([*adapted, "--lora_r", 8], "--lora_r 4, and this run has 8"),
        ([*adapted, "--lora_alpha", 7], "--lora_alpha 32, and this run has 7"),
        ([*adapted, "--use_rslora"], "--use_rslora False, and this run has True"),
        ([*adapted, "--lora_modules_to_save", "ln_f"], "--lora_modules_to_save None, and this run has ['ln_f']"),
        (adapted[:3], "--lora_target_modules ['c_attn', 'c_fc'], and this run has None"),
        ([*adapted[:4], "c_attn"], "--lora_target_modules ['c_attn', 'c_fc'], and this run has ['c_attn']"),
        ([*adapted[:4], "c_attn", "c_proj"], "and this run has ['c_attn', 'c_proj']"),
        ([*adapted[:4], "all-linear"], "and this run has ['all-linear']"),
        ([], "--use_peft True, and this run has False"),
    ]:
        status, told = run("--max_steps", 4, *options, "--resume_from_checkpoint")
        assert status == 2 and said in told, told


def test_another_dropout_of_adapters_holds_from_the_checkpoint_on(run):
    adapted = ["--use_peft", "--lora_r", 4]
    run("--max_steps", 2, *adapted, "--lora_dropout", 0)
    status, told = run("--max_steps", 4, *adapted, "--lora_dropout", 0.5, "--resume_from_checkpoint")
    assert status == 0 and "From step 2 on: --lora_dropout 0.5 (before: 0.0)." in told
    assert json.loads((run.out / "adapter_config.json").read_text())["lora_dropout"] == 0.5


def test_a_model_from_scratch_of_another_size_is_refused(scratch, texts, tmp_path, capsys):
    argv = [*scratch, "--dataset_name", str(texts), "--output_dir", str(tmp_path / "out"), "--block_size", "16"]
    argv += ["--max_steps", "2", "--save_steps", "2", "--disable_tqdm"]
    assert run_command(pretrain, argv) == 0
    argv[argv.index("n_layer=2,n_embd=32,n_head=2")] = "n_layer=2,n_embd=32,n_head=4"  # tensors of the same shapes
    assert run_command(pretrain, [*argv, "--resume_from_checkpoint"]) == 2
    assert "--config_overrides n_layer=2,n_embd=32,n_head=2, and this run has n_layer=2,n_embd=32,n_head=4" in (
        capsys.readouterr().err
    )


# -- damage ----------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json", "counted.pt"]


@pytest.fixture
def trained(run):
    run("--max_steps", 4)
    kept = run.out.with_name("kept")
    shutil.copytree(run.out, kept)
    return kept


@pytest.mark.parametrize("name", [*FILES, "checkpoint.json"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_said(name, run, trained):
    """Cut, empty, gone, or one byte of it changed."""
    for harm in (cut, empty, garble, lambda path: path.unlink()):
        harm(run.out / "checkpoint-4" / name)
        assert re.search(name, damage(run.out / "checkpoint-4"))
        status, told = run("--max_steps", 4, "--resume_from_checkpoint")
        assert status == 0 and "checkpoint-4" in told and "Resuming from checkpoint-2." in told, told
        assert json.loads((run.out / "run.json").read_text())["resumed_from"] == "checkpoint-2"
        assert same(weights(run.out), weights(trained)) and rows(run.out) == rows(trained)
        assert damage(run.out / "checkpoint-4") is None  # written anew


def test_where_none_is_whole_and_where_the_named_one_is_not_it_is_refused(run, trained):
    for number in (2, 4):
        cut(run.out / f"checkpoint-{number}" / "optimizer.pt")
    status, told = run("--max_steps", 4, "--resume_from_checkpoint")
    assert status == 2 and "no complete checkpoint left. checkpoint-4 is damaged: optimizer.pt has" in told
    status, told = run("--max_steps", 4, "--resume_from_checkpoint", run.out / "checkpoint-2")
    assert status == 2 and "checkpoint-2' is not a complete checkpoint: optimizer.pt has" in told
    assert "Traceback" not in told


def without_record(folder):
    """As an earlier version left it."""
    (folder / ".rlhf_kit").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "checkpoint.json").unlink()
        (checkpoint / "counted.pt").unlink()


@pytest.mark.parametrize("name", FILES[:5])
def test_damage_is_found_without_a_record_too(name, run, trained):
    """Checkpoints that an earlier version wrote: what their formats tell."""
    checkpoint = run.out / "checkpoint-4"
    without_record(run.out)
    assert damage(checkpoint) is None
    for harm in (cut, empty, lambda path: path.unlink()):
        harm(checkpoint / name)
        assert re.search(f"{name}|no weights|not completely written", damage(checkpoint))
        shutil.copy2(trained / "checkpoint-4" / name, checkpoint / name)


@pytest.mark.parametrize("gone", [[], ["counted.pt"], ["trainer_state.json"], ["counted.pt", "trainer_state.json"]])
def test_a_checkpoint_that_lost_its_record_is_none_of_an_earlier_version(gone, run, trained):
    """Without the record a byte changed in its weights would not be seen."""
    checkpoint = run.out / "checkpoint-4"
    garble(checkpoint / "model.safetensors")
    for name in ["checkpoint.json", *gone]:
        (checkpoint / name).unlink()
    status, told = run("--max_steps", 4, "--resume_from_checkpoint")
    assert status == 0 and "checkpoint-4 is damaged: checkpoint.json is missing. Resuming from checkpoint-2." in told
    assert same(weights(run.out), weights(trained)) and rows(run.out) == rows(trained)
    for path in run.out.glob("checkpoint-*"):  # nor is it one that was never whole, to be begun anew
        for name in ["checkpoint.json", *gone]:
            (path / name).unlink()
    status, told = run("--max_steps", 4, "--resume_from_checkpoint")
    assert status == 2 and "no complete checkpoint left. checkpoint-4 is damaged: checkpoint.json is missing" in told


def test_older_checkpoints_stay_until_the_new_one_is_whole(run, monkeypatch):
    seen, seal = [], checkpoints.seal

    def see_and_seal(path):
        seen.append(sorted(p.name for p in run.out.glob("checkpoint-*")))
        seal(path)

    monkeypatch.setattr("rlhf_kit.training.trainer.seal", see_and_seal)
    run("--max_steps", 4, "--save_total_limit", 1)
    assert seen == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]


def test_from_python_a_damaged_checkpoint_is_passed_over_too(run, trained, policy, caplog):
    args = TrainingArguments(str(run.out), use_cpu=True, max_steps=4, report_to="none", save_steps=2)
    maker = Trainer(policy, args)
    garble(run.out / "checkpoint-4" / "optimizer.pt")
    assert maker._whole(True).endswith("checkpoint-2") and "the content of optimizer.pt has changed" in caplog.text
    with pytest.raises(UserError, match="the content of optimizer.pt has changed"):
        maker._whole(str(run.out / "checkpoint-4"))
    for path in (run.out / ".rlhf_kit", run.out / "checkpoint-4" / "checkpoint.json"):  # no recipe kept a record
        path.unlink()
    assert maker._whole(True).endswith("checkpoint-2") and "checkpoint.json is missing" in caplog.text
