"""A NaN or an infinity stops every stage: exit 1, the step and the tensor named, the last good checkpoint kept."""

import json

import pytest
import torch
from transformers import GPT2LMHeadModel, TrainingArguments

from rlhf_kit.errors import NotFiniteError
from rlhf_kit.stages import mlm, ppo, pretrain, reward, sft
from rlhf_kit.training import Trainer
from tests.tiny_stages import run_command

STAGES = {"pretrain": pretrain, "sft": sft, "reward": reward, "ppo": ppo, "mlm": mlm}
BERT = "num_hidden_layers=1,hidden_size=16,num_attention_heads=2,intermediate_size=32,max_position_embeddings=32"


@pytest.fixture
def command(base, texts, demonstrations, ranked, tmp_path):
    """(stage, output folder) -> its command line, 6 steps, a checkpoint every second one."""
    data = {"pretrain": texts, "sft": demonstrations, "reward": ranked, "ppo": ranked, "mlm": texts}
    more = {
        "pretrain": ["--block_size", "16", "--model_name_or_path", base],
        "sft": ["--model_name_or_path", base],
        "reward": ["--model_name_or_path", base],
        "ppo": [
            *["--model_name_or_path", base, "--reward_funcs", "tests.rewards:brief", "--rollout_batch_size", 4],
            *["--mini_batch_size", 2, "--num_ppo_epochs", 1, "--max_completion_length", 4],
        ],
        "mlm": ["--model_name_or_path", "bert", "--train_tokenizer", 90, "--config_overrides", BERT],
    }

    def build(stage, *options):
        argv = [*more[stage], "--dataset_name", data[stage], "--output_dir", tmp_path / "out", "--max_steps", 6]
        argv += ["--save_steps", 2, "--logging_steps", 1, "--per_device_train_batch_size", 2, "--disable_tqdm"]
        return [str(item) for item in [*argv, "--report_to", "none", *options]]

    return build


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_none_stops_the_stage(stage, command, tmp_path, monkeypatch, capsys):
    """From the fourth step on the loss is NaN: what is worth keeping is checkpoint-2."""
    kind = STAGES[stage].PPOTrainer if stage == "ppo" else getattr(STAGES[stage], f"{stage.upper()}Trainer", None)
    kind = kind or getattr(STAGES[stage], "RewardTrainer", Trainer)
    compute_loss = kind.compute_loss

    def broken(self, *args, **options):
        loss = compute_loss(self, *args, **options)
        return loss * (float("inf") if self.state.global_step >= 3 else 1.0)

    monkeypatch.setattr(kind, "compute_loss", broken)
    assert run_command(STAGES[stage], command(stage)) == 1
    assert "The loss became NaN or infinite in optimizer step 4. The last checkpoint" in capsys.readouterr().err
    out = tmp_path / "out"
    assert checkpoints(out) == ["checkpoint-2"] and not (out / "run.json").exists()
    assert not list(out.glob("*.safetensors"))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) <= 3


@pytest.mark.parametrize("clipping", ["1.0", "0"])
def test_a_gradient_that_is_none_names_its_parameter(clipping, command, monkeypatch, capsys):
    """The loss is finite; one gradient is not. Clipping by a norm that is NaN would make all of them NaN."""
    load = pretrain.load_model

    def with_a_broken_gradient(*args):
        model = load(*args)
        model.transformer.h[1].mlp.c_fc.weight.register_hook(lambda grad: grad * float("nan"))
        return model

    monkeypatch.setattr(pretrain, "load_model", with_a_broken_gradient)
    assert run_command(pretrain, command("pretrain", "--max_grad_norm", clipping)) == 1
    told = capsys.readouterr().err
    assert "The gradient of transformer.h.1.mlp.c_fc.weight became NaN or infinite in optimizer step 1." in told


def test_an_accumulated_micro_batch_is_looked_at_too(command, monkeypatch, capsys):
    compute_loss, seen = Trainer.compute_loss, []

    def broken(self, *args, **options):
        seen.append(1)
        return compute_loss(self, *args, **options) * (float("nan") if len(seen) == 5 else 1.0)

    monkeypatch.setattr(Trainer, "compute_loss", broken)
    assert run_command(pretrain, command("pretrain", "--gradient_accumulation_steps", "3")) == 1
    assert "The loss became NaN or infinite in optimizer step 2." in capsys.readouterr().err


def test_weights_that_an_optimizer_step_broke_are_never_saved(command, tmp_path, capsys):
    """At a learning rate of 1e38 the third step ends in infinite weights, and would be saved at once."""
    argv = command("pretrain", "--learning_rate", "1e38", "--lr_scheduler_type", "constant", "--warmup_steps", "0")
    argv[argv.index("--save_steps") + 1] = "1"
    assert run_command(pretrain, argv) == 1
    assert "became NaN or infinite in optimizer step" in capsys.readouterr().err
    assert checkpoints(tmp_path / "out") == [] or all(
        torch.isfinite(x).all()
        for path in (tmp_path / "out").glob("checkpoint-*")
        for x in GPT2LMHeadModel.from_pretrained(path).state_dict().values()
    )


def test_weights_that_were_none_from_the_start_are_named(base, command, capsys):
    model = GPT2LMHeadModel.from_pretrained(base)
    model.transformer.h[0].ln_1.weight.data[3] = float("nan")
    model.save_pretrained(base)
    assert run_command(sft, command("sft")) == 2
    told = capsys.readouterr().err
    assert "the weights transformer.h.0.ln_1.weight are NaN or infinite, as it was loaded" in told


class Scaler:
    """An fp16 loss scale that is there and does nothing: no CPU trains in fp16."""

    def __init__(self, scale):
        self.scale = scale

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize("scale", [65536.0, 1.0])
def test_a_gradient_that_overflowed_by_the_loss_scale_is_a_skipped_step(scale, policy, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(policy, args)
    trainer.accelerator.scaler = Scaler(scale)
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    if scale > 1:
        trainer._get_grad_norm(policy, trainer._clip_grad_norm(policy))
    else:
        with pytest.raises(NotFiniteError, match="The gradient of transformer.wte.weight"):
            trainer._get_grad_norm(policy, trainer._clip_grad_norm(policy))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_one_number_of_one_gradient_is_found(number, policy, tmp_path):
    """And a large one is a number."""
    trainer = Trainer(policy, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    policy.transformer.h[1].mlp.c_fc.weight.grad[3, 5] = number
    trainer._total_norm(policy)
    if number < torch.inf and number > 0:
        trainer.watch.check("here")
    else:
        with pytest.raises(NotFiniteError, match="The gradient of transformer.h.1.mlp.c_fc.weight became"):
            trainer.watch.check("here")
