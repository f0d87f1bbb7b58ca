"""The loss of labelled tokens with the head on these alone, in one row or padded: every architecture's own."""

import copy

import pytest
import torch
from models.test_packed import PACKED, PADDED, model_of
from peft import LoraConfig

from rlhf_kit.data.packing import PackedCollator, row_of
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.forward import labelled_logits, labelled_loss, one_row
from rlhf_kit.models.packed import is_packed, take_packed
from rlhf_kit.models.preflight import Batch, reads_labelled, short_texts

TEXTS = [(9, 4), (3, 1), (17, 12), (2, 1), (6, 5)]  # tokens, how many of the first have no label
STEP = torch.tensor(40)  # labelled tokens of a whole step; 14 of them here


def batch_of(how: str, order: list[int] | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    texts = [(torch.randint(3, 60, (size,), generator=generator).tolist(), skip) for size, skip in TEXTS]
    return PackedCollator(0, how)([row_of([texts[at]]) for at in order or range(len(texts))])


def prepared(model) -> bool:
    """As a trainer does; the batch of texts on which it is tried has other lengths."""
    texts = short_texts(model, [[*range(5, 30)], [*range(30, 41)]])
    batch = PackedCollator(0, "apart")([row_of([(text, 1)]) for text in texts])
    return reads_labelled(model, Batch(texts, [*map(len, texts)], batch))


def found(model, loss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, ours, expected) -> None:
    (loss, own), (plain, gradients) = found(model, ours), expected
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    scale = float(max(gradient.abs().max() for gradient in gradients.values()))
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_the_loss_and_its_gradients_are_the_models_own(name):
    """Soft caps and logit scales after the head too, float32; texts in any order, padded or side by side."""
    model = model_of(name)
    expected = found(model, model(**batch_of("apart"), num_items_in_batch=STEP).loss)
    assert prepared(model)
    assert is_packed(model) == (name in PACKED)
    batches = [batch_of("apart"), batch_of("apart", [4, 2, 0, 1, 3])]
    batches += [batch_of("flattened"), batch_of("flattened", [3, 1, 2, 0, 4])] if name in PACKED else []
    for batch in batches:
        assert_same(model, labelled_loss(model, STEP, **batch)["loss"], expected)
    model.zero_grad()
    mean = labelled_loss(model, **batches[0])["loss"]
    torch.testing.assert_close(mean, expected[0] * 40 / 14)


def test_adapters_learn_the_same():
    model = wrap(model_of("llama"), LoraConfig(r=2, lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = found(model, model(**batch_of("apart"), num_items_in_batch=STEP).loss)
    assert prepared(model) and is_packed(model.get_base_model())
    assert_same(model, labelled_loss(model, STEP, **batch_of("apart"))["loss"], expected)


@pytest.mark.parametrize("packed", [False, True])
def test_the_head_computes_on_what_predicts_a_label(packed):
    model, sizes = model_of("gpt2"), []
    if packed:
        take_packed(model)
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1]))
    logits, tokens = labelled_logits(model, batch_of("apart"))
    assert sizes == [(1, 14)] and len(logits) == len(tokens) == 14


def test_a_model_whose_head_reads_more_is_left_as_it_is(caplog):
    """Logits from which those of the token before are taken: nothing may be left out."""
    model = model_of("gpt2")

    class Differences(torch.nn.Module):
        def forward(self, states):
            return plain(states) - 0.5 * plain(states.roll(1, 1)) * (torch.arange(states.shape[1]) > 0)[:, None]

    plain = copy.deepcopy(model.lm_head)
    model.lm_head = Differences()
    with caplog.at_level("INFO"):
        assert not prepared(model)
    assert not is_packed(model) and "Its LM head computes on all tokens" in caplog.text


def test_texts_side_by_side_by_hand():
    """Of each text the first label goes: three tokens and two, padded and side by side."""
    padded = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "labels": torch.tensor([[5, 6, 7], [-100, 9, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    flat = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9]]),
        "labels": torch.tensor([[5, 6, 7, 8, 9]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
    }
    for batch in (padded, flat):
        rows = {name: value.tolist() for name, value in one_row(batch).items()}
        assert rows == {
            "input_ids": [[5, 6, 7, 8, 9]],
            "position_ids": [[0, 1, 2, 0, 1]],
            "lengths": [3, 2],
            "labels": [[-100, 6, 7, -100, 9]],
        }
        assert batch["labels"][0, 0] == 5  # the batch stays as it was
