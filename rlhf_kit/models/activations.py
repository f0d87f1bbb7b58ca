"""How many rows a training forward may hold: what its activations take, beside the memory there is."""

from __future__ import annotations

import os

import torch
from transformers import PretrainedConfig

SHARE = 0.25  # of all memory, for the activations of one forward
UNKNOWN = 8  # rows, where a configuration does not tell how large its layers are


def row_bytes(config: PretrainedConfig, tokens: int, predicted: int, half: bool) -> float | None:
    """About how many bytes a row of `tokens` tokens keeps for the backward, `predicted` of them through the LM head;
    None where the configuration does not tell.

    34 T H bytes a layer in 16 bit, and 5 A T T for the attention of A heads (Korthikanti et al. 2022,
    arXiv:2205.05198, eq. 1), twice that in float32; of the head logits and their gradient.
    """
    config = config.get_text_config()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    hidden, layers, heads, vocabulary = (getattr(config, name, None) for name in names)
    if not all(isinstance(size, int) for size in (hidden, layers, heads, vocabulary)):
        return None
    trunk = layers * (34 * tokens * hidden + 5 * heads * tokens**2)
    return (trunk + 4 * predicted * vocabulary) * (1 if half else 2)


def forwards(rows: int, each: float | None, parts: int, device: torch.device, processes: int = 1) -> int:
    """The fewest equal parts, a divisor of `parts`, in which `rows` rows leave memory for the rest; the same on every
    run on one machine.

    Args:
        each: bytes a row, or None. processes: that share the memory of a CPU.
    """
    if each is None:
        most = UNKNOWN
    elif device.type == "cuda":
        most = SHARE * torch.cuda.get_device_properties(device).total_memory / each
    else:
        most = SHARE * _all_memory() / processes / each
    return next((n for n in range(1, parts) if parts % n == 0 and rows / n <= most), parts)


def _all_memory() -> int:
    """Bytes of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**33
