"""Whole weights where FSDP2 leaves each process a piece of them (Zhao et al. 2023, arXiv:2304.11277).

A rollout reads the policy in ways that FSDP's hooks do not see, and a checkpoint is to be that of one process. Both
use a twin of the model, whose weights are there while somebody needs them and take no memory otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

RECOMPUTED = "_checkpoint_wrapped_module."  # torch's name for a block that computes its activations anew


class Twin:
    """The model as one process would hold it, empty until `fill`.

    Args:
        model: before it is cut into pieces. Its configurations are shared with the twin.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        shared: dict[int, Any] = {
            id(weight): nn.Parameter(torch.empty(0, dtype=weight.dtype, device=device), weight.requires_grad)
            for weight in model.parameters()
        }
        configs = (getattr(module, "config", None) for module in model.modules())
        shared |= {id(config): config for config in configs if config is not None}
        self.model = copy.deepcopy(model, shared).eval()
        self.weights = dict(self.model.named_parameters())

    def fill(self, sharded: nn.Module) -> None:
        """Gather the weights of all processes, which call this together."""
        for name, piece in _pieces(sharded):
            whole = piece.full_tensor() if isinstance(piece, DTensor) else piece
            self.weights[name].data = whole.detach().to(self.weights[name].device)

    def empty(self) -> None:
        for weight in self.weights.values():
            weight.data = weight.new_empty(0)

    @torch.no_grad()
    def give_back(self, sharded: nn.Module) -> None:
        """Each process takes its pieces of the twin's weights, which are the same on all."""
        for name, piece in _pieces(sharded):
            weight = self.weights[name].data
            if isinstance(piece, DTensor):
                weight = distribute_tensor(weight, piece.device_mesh, piece.placements, src_data_rank=None).to_local()
                piece = piece.to_local()
            piece.copy_(weight)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def _pieces(sharded: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters, tied ones once, by the names they had before."""
    return ((name.replace(RECOMPUTED, ""), piece) for name, piece in sharded.named_parameters())


class WholeOptimizer:
    """Saves and loads the state of a sharded optimizer in torch's own form, whole, by the number of the parameter."""

    def __init__(self, sharded: nn.Module, optimizer: torch.optim.Optimizer):
        self.sharded, self.optimizer = sharded, optimizer
        names = {id(weight): name for name, weight in _pieces(sharded)}
        self.names = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
        self.gathered: dict[str, Any] = {}

    def gather(self) -> None:
        """The state of all processes, which call this together; whole on the first."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self.gathered = get_optimizer_state_dict(self.sharded, self.optimizer, options=options)

    def state_dict(self) -> dict[str, Any]:
        numbers = {name: number for number, name in enumerate(self.names)}
        return _renamed(self.gathered, numbers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each process takes its pieces. Raises ValueError for the state of another model."""
        sizes = [
            [len(group["params"]) for group in groups["param_groups"]] for groups in (state, vars(self.optimizer))
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(f"its groups are of {sizes[0]} weights, those of the model of {sizes[1]}")
        renamed = _renamed(state, dict(enumerate(self.names)))
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.sharded, self.optimizer, renamed, options=options)


def _renamed(state: dict[str, Any], names: dict) -> dict[str, Any]:
    """An optimizer's state whose weights are called otherwise."""
    groups = [{**group, "params": [names[weight] for weight in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[weight]: moments for weight, moments in state["state"].items()}, "param_groups": groups}
