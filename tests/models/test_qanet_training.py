"""QANet's training: schedule, optimizer and average by hand, and what Trainer makes of them."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.models.qanet import QANetConfig, QANetForQuestionAnswering
from rlhf_kit.models.qanet.training import (
    ARGUMENTS,
    AveragedWeights,
    average_decay,
    learning_rate_factor,
    qanet_trainer_parts,
)

TINY = QANetConfig(
    vocab_size=20,
    hidden_size=8,
    num_attention_heads=2,
    model_blocks=1,
    word_dim=4,
    char_dim=0,
    dropout=0.0,  # an evaluation draws from the same generator
    survival=1.0,
)


class Pairs(Dataset):
    """Eight questions of made-up words."""

    def __len__(self):
        return 8

    def __getitem__(self, row):
        ids = torch.randint(4, 20, (9,), generator=torch.Generator().manual_seed(row))
        ids[0] = TINY.cls_token_id
        types = torch.tensor([0] * 4 + [1] * 5)
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "start_positions": 4 + row % 5,
            "end_positions": 4 + row % 5,
        }


class Recorded(Trainer):
    """Keeps the first weight after each optimizer step, and as each evaluation sees it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.raw, self.seen = [], []

    def training_step(self, model, *args, **kwargs):
        self.raw.append(weight(model))
        return super().training_step(model, *args, **kwargs)

    def prediction_step(self, model, *args, **kwargs):
        self.seen.append(weight(model))
        return super().prediction_step(model, *args, **kwargs)


def weight(model) -> torch.Tensor:
    return model.word_projection.weight.detach().clone()


def trainer(folder, steps, **options) -> Recorded:
    torch.manual_seed(0)
    model = QANetForQuestionAnswering(TINY)
    options = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, **options}
    args = TrainingArguments(str(folder), max_steps=steps, **ARGUMENTS | {"per_device_train_batch_size": 4}, **options)
    return Recorded(model, args, train_dataset=Pairs(), eval_dataset=Pairs(), **qanet_trainer_parts(model))


def averages(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """After each step, by the recurrence: the first is the first weights."""
    found = [weights[0]]
    for step, now in enumerate(weights[1:], start=2):
        decay = min(0.9999, (1 + step) / (10 + step))
        found.append(decay * found[-1] + (1 - decay) * now)
    return found


def test_the_learning_rate_rises_by_the_logarithm_to_its_top_at_998_steps():
    assert learning_rate_factor(0) == 0
    assert learning_rate_factor(9) == pytest.approx(math.log(10) / math.log(999))
    assert learning_rate_factor(997) < 1 == pytest.approx(learning_rate_factor(998)) == learning_rate_factor(150_000)
    optimizer, schedule = qanet_trainer_parts(nn.Linear(1, 1))["optimizers"]
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([min(0.001, 0.001 / math.log(999) * math.log(step + 1)) for step in range(4)])


def test_the_averages_decay_grows_to_its_limit():
    assert [average_decay(step) for step in (1, 2, 10)] == pytest.approx([2 / 11, 3 / 12, 11 / 20])
    assert average_decay(89_990) == pytest.approx(0.9999) and average_decay(10**7) == 0.9999


def test_a_step_is_adams_with_l2_in_the_gradient():
    """Two steps by the paper of Adam (Kingma and Ba 2015, algorithm 1), on one number."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    frozen = nn.Linear(1, 1)
    frozen.requires_grad_(False)
    optimizer, schedule = qanet_trainer_parts(nn.ModuleList([model, frozen]))["optimizers"]
    w, m, v = 2.0, 0.0, 0.0
    for step, slope in enumerate([0.5, -0.25, 1.0]):
        model.weight.grad = torch.full((1, 1), slope)
        optimizer.step()
        schedule.step()
        gradient = slope + 3e-7 * w
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        w -= 1e-3 * math.log(step + 1) / math.log(999) * m_hat / (math.sqrt(v_hat) + 1e-7)
        assert model.weight.item() == pytest.approx(w, rel=1e-6)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_training_ends_with_the_average_of_the_weights_of_each_step(tmp_path):
    run = trainer(tmp_path, 6)
    run.train()
    raw = [*run.raw[1:], run.optimizer.state[run.model.word_projection.weight]["average"]]  # the last, exchanged
    assert not torch.allclose(raw[-1], raw[-2])
    torch.testing.assert_close(weight(run.model), averages(raw)[-1])


def test_an_evaluation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path):
    plain = trainer(tmp_path / "a", 6)
    plain.train()
    run = trainer(tmp_path / "b", 6, eval_strategy="steps", eval_steps=2)
    run.train()
    assert len(run.seen) == 3
    for mine, theirs in zip(run.raw, plain.raw, strict=True):
        assert mine.equal(theirs)
    expected = averages(run.raw[1:])
    for seen, step in zip(run.seen, (2, 4), strict=False):
        torch.testing.assert_close(seen, expected[step - 1])
    assert run.seen[-1].equal(weight(run.model)) and weight(run.model).equal(weight(plain.model))


def test_an_evaluation_at_the_end_of_an_epoch_sees_the_average_too(tmp_path):
    run = trainer(tmp_path, 4, eval_strategy="epoch")
    run.train()
    assert len(run.seen) == 2  # two batches of four are an epoch
    torch.testing.assert_close(run.seen[0], averages(run.raw[1:3])[-1])


def test_a_resumed_run_ends_with_the_same_average(tmp_path):
    whole = trainer(tmp_path / "whole", 6, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3)
    whole.train()
    again = trainer(tmp_path / "again", 6, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.raw[0].equal(whole.raw[3])  # the checkpoint had the raw weights
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor)


def test_the_best_checkpoint_cannot_be_asked_for(tmp_path):
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    with pytest.raises(UserError, match="load_best_model_at_end"):
        trainer(tmp_path, 2, load_best_model_at_end=True, **options).train()


def test_ending_without_a_step_leaves_the_weights(tmp_path):
    model = nn.Linear(1, 1)
    before = model.weight.item()
    parts = qanet_trainer_parts(model)
    (callback,) = parts["callbacks"]
    assert isinstance(callback, AveragedWeights)
    callback.on_train_end(None, None, None)
    assert model.weight.item() == before
