import random
import time

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.data.packing import PackedCollator
from rlhf_kit.data.packs import pack
from rlhf_kit.errors import UserError

EOS = 0
DOCUMENTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]


def test_two_documents_in_a_row_by_hand():
    assert list(pack([[5, 6], [7]], length=6, eos_token_id=EOS)) == [
        {"input_ids": [5, 6, 0, 7, 0], "position_ids": [0, 1, 2, 0, 1], "labels": [-100, 6, 0, -100, 0]}
    ]


def test_a_long_document_is_cut_into_pieces_of_their_own():
    rows = pack([[1, 2, 3, 4, 5]], length=4, eos_token_id=EOS)
    assert [row["input_ids"] for row in rows] == [[1, 2, 3, 4], [5, 0]]
    assert [row["position_ids"] for row in rows] == [[0, 1, 2, 3], [0, 1]]
    assert sum(label != -100 for row in rows for label in row["labels"]) == 6 - 2


def test_a_piece_of_one_token_trains_nothing_and_is_left_out():
    assert [row["input_ids"] for row in pack([[1, 2, 3, 4], []], length=4, eos_token_id=EOS)] == [[1, 2, 3, 4]]


def test_a_row_of_one_token_is_an_error():
    with pytest.raises(UserError, match="a row needs 2 at least"):
        pack([[1]], length=1, eos_token_id=EOS)


def test_every_token_once_tight_fast_and_the_same_each_time():
    rng = random.Random(0)
    documents = [[at + 1] * rng.randint(1, 300) for at in range(20_000)]
    start = time.perf_counter()
    rows = list(pack(documents, length=256, eos_token_id=EOS))
    seconds = time.perf_counter() - start
    assert rows == list(pack(documents, length=256, eos_token_id=EOS))
    assert seconds < 10  # a few times what a busy core needs
    assert all(len(row[name]) == len(row["input_ids"]) <= 256 for row in rows for name in row)
    counts = torch.bincount(torch.tensor([token for row in rows for token in row["input_ids"]]))
    assert counts[1:].tolist() == [len(document) for document in documents]
    assert counts.sum() / (256 * len(rows)) > 0.99


def test_collator_pads_right_with_documents_of_their_own():
    rows = [
        {"input_ids": [5, 0], "position_ids": [0, 1], "labels": [-100, 0]},
        {"input_ids": [5, 6, 7, 0], "position_ids": [0, 1, 2, 3], "labels": [-100, 6, 7, 0]},
    ]
    batch = PackedCollator(pad_token_id=9)(rows)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 0, 9, 9], [5, 6, 7, 0]],
        "position_ids": [[0, 1, 0, 0], [0, 1, 2, 3]],
        "labels": [[-100, 0, -100, -100], [-100, 6, 7, 0]],
    }
    assert all(value.dtype == torch.int64 for value in batch.values())


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel._from_config(config, attn_implementation=request.param).eval()


def packed_batch():
    """All documents in the first row, one more and padding in the second."""
    rows = [*pack(DOCUMENTS, length=16, eos_token_id=EOS), *pack([[3, 2]], length=16, eos_token_id=EOS)]
    assert len(rows) == 2
    return PackedCollator(pad_token_id=EOS)(rows)


def leak(model, batch):
    """Largest difference between the logits of a document in the pack and alone."""
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        worst, start = 0.0, 0
        for document in DOCUMENTS:
            alone = model(torch.tensor([[*document, EOS]])).logits[0]
            worst = max(worst, (packed[start : start + len(alone)] - alone).abs().max().item())
            start += len(alone)
    return worst


def test_logits_in_the_pack_are_those_of_each_document_alone(model):
    batch = packed_batch()
    assert leak(model, batch) < 1e-5
    # The same comparison sees a leak where there is one.
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand(2, -1)
    assert leak(model, batch) > 1e-3


def test_no_gradient_reaches_another_document(model):
    batch = packed_batch()
    embeddings = model.transformer.wte(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, position_ids=batch["position_ids"], use_cache=False).logits
    first, second = slice(0, 4), slice(4, 9)
    logits[0, second].logsumexp(-1).sum().backward()
    assert embeddings.grad[0, first].abs().max() == 0 and embeddings.grad[0, 9:].abs().max() == 0
    assert embeddings.grad[0, second].abs().max() > 0 and embeddings.grad[1].abs().max() == 0


def test_loss_of_the_pack_is_the_token_mean_of_the_documents(model):
    total, tokens = 0.0, 0
    with torch.no_grad():
        packed = model(**packed_batch(), use_cache=False).loss.item()
        for document in [*DOCUMENTS, [3, 2]]:
            ids = torch.tensor([[*document, EOS]])
            total += model(ids, labels=ids).loss.item() * len(document)
            tokens += len(document)
    assert packed == pytest.approx(total / tokens, abs=1e-5)
