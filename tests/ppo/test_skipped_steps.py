"""fp16: steps that overflow are skipped. A real scaler and fp16's autocast, on the CPU."""

import itertools
import math

import pytest
import torch

from rlhf_kit.errors import UserError


@pytest.fixture
def in_fp16(monkeypatch):
    """The trainer as a GPU would run it in fp16, its loss scaled by `scale` at first."""

    def change(trainer, scale):
        accelerator = trainer.accelerator
        monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
        monkeypatch.setattr(accelerator, "native_amp", True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return trainer

    return change


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])  # the latter skips inside its own step
def test_steps_that_overflow_in_fp16_are_skipped(make_trainer, in_fp16, optim):
    options = dict(optim=optim, ema_decay=0.5, learning_rate=1e-3, lr_scheduler_type="linear", total_episodes=24)
    trainer = in_fp16(make_trainer(**options), 2.0**28)
    for average in trainer.ema.average.values():
        average.add_(1.0)  # far from the policy, so that a step of the average shows
    step_ended, seen = trainer.step_ended, []

    def state():
        weights = [p.detach().clone() for p in trainer.model.parameters()]
        return weights, [a.clone() for a in trainer.ema.average.values()], trainer.lr_scheduler.last_epoch

    def look(rollout_ended):
        step_ended(rollout_ended)
        seen.append((trainer.step_was_skipped, *state()))

    trainer.step_ended = look
    before = (
        None,
        [p.detach().clone() for p in trainer.model.parameters()],
        [*map(torch.clone, trainer.ema.average.values())],
        0,
    )
    trainer.train()
    skipped = [item[0] for item in seen]
    assert skipped[0] and not skipped[-1]  # the scale was halved until nothing overflowed
    for (_, *then), (was_skipped, *now) in itertools.pairwise([before, *seen]):
        for a, b in zip(then[:2], now[:2], strict=True):
            assert all(map(torch.equal, a, b)) == was_skipped
        assert now[2] == then[2] + (not was_skipped) or optim == "adamw_torch_fused"
    assert trainer.state.global_step == 12
    assert all(math.isfinite(log["policy/ratio"]) for log in trainer.state.log_history if "policy/ratio" in log)
    assert {int(trainer.optimizer.state[p]["step"]) for p in trainer.model.parameters()} == {12 - sum(skipped)}


def test_a_gradient_that_is_nan_without_a_scale_is_named(make_trainer, in_fp16):
    trainer = in_fp16(make_trainer(), 0.5)
    trainer.model.value_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match=r"The gradient.* became NaN or infinite in optimizer step 1"):
        trainer.train()
