"""How many rows a forward may hold: by hand, and in equal parts."""

import pytest
import torch
from transformers import BloomConfig, GPT2Config, PretrainedConfig

from rlhf_kit.models import activations
from rlhf_kit.models.activations import forwards, row_bytes

CPU = torch.device("cpu")


def test_bytes_of_a_row_by_hand():
    """2 layers: 34 x 10 x 8 = 2,720 and 5 x 2 x 100 = 1,000 each; 4 x 3 x 100 = 1,200 for the head; float32: twice."""
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=100)
    assert row_bytes(config, 10, 3, half=True) == 2 * (2720 + 1000) + 1200
    assert row_bytes(config, 10, 3, half=False) == 2 * row_bytes(config, 10, 3, half=True)
    assert row_bytes(BloomConfig(n_layer=2, hidden_size=8, n_head=2, vocab_size=100), 10, 3, True) == 8640
    assert row_bytes(PretrainedConfig(), 10, 3, half=True) is None


@pytest.mark.parametrize(
    ("memory", "rows", "parts", "expected"),
    [
        (800, 16, 16, 1),
        (400, 16, 16, 2),
        (300, 16, 16, 4),
        (399, 6, 6, 1),
        (200, 6, 6, 2),
        (1, 6, 6, 6),
        (100, 12, 4, 4),
    ],
)
def test_the_fewest_equal_parts_that_fit(monkeypatch, memory, rows, parts, expected):
    """Rows of 12 bytes and a quarter of the memory; of 12 rows with 4 texts, never more than 4 parts."""
    monkeypatch.setattr(activations, "_all_memory", lambda: memory)
    assert forwards(rows, 12.0, parts, CPU) == expected


def test_processes_share_a_machine_and_the_unknown_is_small(monkeypatch):
    monkeypatch.setattr(activations, "_all_memory", lambda: 800)
    assert forwards(16, 12.0, 16, CPU, processes=2) == 2
    assert forwards(32, None, 32, CPU) == 4
