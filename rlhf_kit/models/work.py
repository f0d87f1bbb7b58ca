"""What models compute, in FLOPs: one formula for what is planned and for what is counted while a run computes.

Products of matrices alone: a weight and token are two FLOPs (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and
each token attends to itself and those before it. Embeddings are looked up; norms, biases, softmax and optimizer are
left out, as they are by `torch.utils.flop_counter`, which counts attention's masked half too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlhf_kit.data.packing import IGNORED
from rlhf_kit.models.forward import output_embeddings, unwrapped
from rlhf_kit.models.packed import rows_read

Counts = dict[str, dict[str, float]]
COUNTED = ("tokens", "forward", "backward")


@dataclass(frozen=True)
class Products:
    """Of a model. `body`: weights that every token is multiplied by; `head`: those of the LM head, which only
    predicted tokens are; `trained`: the share of the parameters that learns."""

    body: int
    head: int
    layers: int
    hidden: int
    trained: float = 1.0

    @classmethod
    def of(cls, model: nn.Module) -> Products:
        config = unwrapped(model).config.get_text_config()
        sizes = [(_size(x), x.requires_grad) for x in model.parameters()]
        share = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
        return cls(*multiplied(model), config.num_hidden_layers, config.hidden_size, share)

    def forward(self, tokens: float, pairs: float, predicted: float) -> float:
        """Args:
        pairs: of a token and one that it attends to. predicted: tokens that reach the head.
        """
        return 2 * (self.body * tokens + self.head * predicted) + 4 * self.layers * self.hidden * pairs

    def backward(self, tokens: float, pairs: float, predicted: float, recomputes: bool = False) -> float:
        """The gradients of states cost a forward, those of trained weights another one, as far as it multiplies by
        them, and attention has two states to give gradients to. `recomputes`: activations are computed anew."""
        weights = 2 * self.trained * (self.body * tokens + self.head * predicted)
        attention = 4 * self.layers * self.hidden * pairs
        return self.forward(tokens, pairs, predicted) * (2 if recomputes else 1) + weights + attention


def multiplied(model: nn.Module) -> tuple[int, int]:
    """Weights of the body, and of the LM head, that states are multiplied by. All experts of a mixture count."""
    head = output_embeddings(model)
    head_weight = getattr(getattr(head, "base_layer", head), "weight", None)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = (
        x for name, x in model.named_parameters() if ".original_module." not in name
    )  # of what is trained in full
    weights = [x for x in named if len(getattr(x, "ds_shape", x.shape)) > 1]
    body = sum(_size(x) for x in weights if id(x) not in looked_up and x is not head_weight)
    return body, 0 if head_weight is None else _size(head_weight)


def _size(parameter: Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # in pieces, under ZeRO-3


# --- while a run computes -------------------------------------------------------------------------------------------


@contextmanager
def counted(models: Mapping[str, nn.Module], counts: Counts) -> Iterator[None]:
    """Within, what passes through `models` is added to `counts`, by name: tokens, padding among them, and FLOPs of
    forwards and of the backwards that they lead to."""
    handles: list[RemovableHandle] = []
    for name, model in models.items():
        handles += _counting(model, counts.setdefault(name, dict.fromkeys(COUNTED, 0.0)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting(model: nn.Module, count: dict[str, float]) -> list[RemovableHandle]:
    """Hooks on the trunk and on the head, wherever they are called from."""
    inner, products = unwrapped(model), Products.of(model)
    trunk, head = inner.base_model, inner.get_output_embeddings()
    with_head = [False]  # whether the head was called since the trunk was

    def add(tokens: int, pairs: float, predicted: int, learns: bool, recomputes: bool) -> None:
        count["tokens"] += tokens
        count["forward"] += products.forward(tokens, pairs, predicted)
        if learns:
            count["backward"] += products.backward(tokens, pairs, predicted, recomputes)

    def after_trunk(_: nn.Module, args: tuple, options: dict[str, Any], output: Any) -> None:
        with_head[0] = False
        rows, width = output[0].shape[:2]
        pairs = attended(rows, width, options.get("attention_mask"))
        learns = output[0].requires_grad
        add(rows * width, pairs, 0, learns, learns and _recomputes(inner))

    def after_head(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        with_head[0] = True
        add(0, 0, args[0].shape[:-1].numel(), output.requires_grad, False)

    def after_model(_: nn.Module, args: tuple, options: dict[str, Any], output: Any) -> None:
        labels = options.get("labels")
        if labels is not None and not with_head[0]:  # TRL's losses multiply by its weight themselves, twice
            add(0, 0, _scored(labels), output[0].requires_grad, True)

    handles = [trunk.register_forward_hook(after_trunk, with_kwargs=True)]
    if head is not None:
        handles += [head.register_forward_hook(after_head)]
        handles += [inner.register_forward_hook(after_model, with_kwargs=True)]
    return handles


def attended(rows: int, width: int, mask: Tensor | None) -> float:
    """Pairs of a token and one that it attends to, of rows (B, T) with what a cache holds before them, by the shape of
    the mask; of packed rows what they are with their padding."""
    apart = rows_read()
    if apart is not None:
        rows, width = apart.shape
        mask = None
    seen = max(width, mask.shape[-1]) if isinstance(mask, Tensor) else width
    return rows * (width * seen - width * (width - 1) / 2)


def _recomputes(model: nn.Module) -> bool:
    return bool(getattr(model, "is_activation_checkpointing", False))


def _scored(labels: Tensor) -> int:
    """How many tokens TRL's fused head scores: on a GPU those with a label alone."""
    following = labels[:, 1:]
    return following.numel() if labels.device.type == "cpu" else int((following != IGNORED).sum())
