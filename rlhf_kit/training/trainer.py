"""What transformers' Trainer leaves undone in all of the kit's trainers: numbers that are none stop the run."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from rlhf_kit.errors import NotFiniteError
from rlhf_kit.training.checks import ADVICE, Watch, first_not_finite
from rlhf_kit.training.launch import refuse_data_parallel


class TrainerMixin:
    """Before a `transformers.Trainer`: training stops at the first NaN or infinity, before it reaches the weights.

    transformers logs the mean of the losses before in the place of a loss that is none, and trains on.
    """

    def __init__(self, *args: Any, **options: Any):
        self.watch = Watch()
        super().__init__(*args, **options)
        refuse_data_parallel(self.args)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        loss = super().training_step(*args, **options)
        self.watch.look("The loss", loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self._look_at_gradients(model)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float:
        if grad_norm is None:  # it was not clipped
            self._look_at_gradients(model)
        norm = super()._get_grad_norm(model, grad_norm)
        if not self._scaler_skips():
            self.watch.look("The gradient", torch.as_tensor(norm))
        self.watch.check(f"in optimizer step {self.state.global_step + 1}", self._plain_model())
        return norm

    def _look_at_gradients(self, model: nn.Module) -> None:
        """By the parameter, and before clipping: a norm that is NaN makes all of them NaN."""
        if self._plain_model() is None or self._scaler_skips():
            return
        found = {name: p.grad for name, p in self._plain_model().named_parameters() if p.grad is not None}
        largest = [torch.linalg.vector_norm(grad, float("inf")).to(self.args.device) for grad in found.values()]
        for name, fine in zip(found, torch.stack(largest).isfinite() if largest else [], strict=True):
            self.watch.note(f"The gradient of {name}", fine)

    def _plain_model(self) -> nn.Module | None:
        """The model whose weights and gradients are whole on this process; None where they are in pieces."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return self.accelerator.unwrap_model(self.model)

    def _scaler_skips(self) -> bool:
        """Whether fp16's loss scale may be what made a gradient overflow: it halves the scale and skips the step.

        At a scale of 1 nothing was scaled up, and the gradient itself is none.
        """
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def check_weights(self) -> None:
        """Raise before weights that are none would be saved. Raises NotFiniteError."""
        model = self._plain_model()
        name = None if model is None else first_not_finite(model.named_parameters())
        if name is not None:
            raise NotFiniteError(
                f"The weights {name} became NaN or infinite in optimizer step {self.state.global_step}. {ADVICE}"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, trial)


class Trainer(TrainerMixin, transformers.Trainer):
    """transformers' Trainer, with what the kit adds."""
