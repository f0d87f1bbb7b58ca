"""The policy and its value function as one module, so that one wrapped forward serves DDP, FSDP and autocast."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapter_checks import is_all_linear, names_found
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.forward import (
    compact_rows,
    completion_logits_and_states,
    output_embeddings,
    read_rows,
    spread,
    states_of,
    trunk_states,
)
from rlhf_kit.models.heads import calibration
from rlhf_kit.models.merging import merged


class ValueHead(nn.Module):
    """A scalar per token, float32 with any autocast, zero at first (Ziegler et al. 2019, code). (.., H) -> (..)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class PolicyAndValue(nn.Module):
    """A causal LM with a value per token, on the same trunk or on a trunk of its own.

    Only completion positions reach the LM head: a completion of `r` tokens has `r + 1` states, the first `r` of which
    predict its tokens; the last is the state after the completion, needed to bootstrap.

        position      ... p   c   c  EOS
        predicts          c   c  EOS  -         logits (M, V), of the M tokens of all rows
        value of state    V0  V1  V2  V3        values (B, R + 1)

    Args:
        value_trunk: a model whose output has `last_hidden_state`, or None to share the policy's.
    """

    def __init__(self, policy: PreTrainedModel | PeftModel, value_trunk: nn.Module | None, value_head: ValueHead):
        super().__init__()
        self.policy = policy
        self.value_trunk = value_trunk
        self.value_head = value_head

    @property
    def config(self):
        return self.policy.config

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that FSDP cuts into pieces one by one."""
        trunks = filter(None, (self.policy, self.value_trunk))
        named = {name for trunk in trunks for name in trunk._no_split_modules or ()}
        return sorted(named & {type(module).__name__ for module in self.modules()})

    def activation_checkpointing_enable(self, **options) -> None:
        """Policy and value trunk compute their activations anew in the backward. Raises UserError: it cannot be."""
        for trunk in filter(None, (self.policy, self.value_trunk)):
            try:
                trunk.activation_checkpointing_enable(**options)
            except ValueError as error:
                raise UserError(f"activation_checkpointing: {error} Leave it out for this architecture.") from error

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **options) -> None:
        """Its name until transformers 6."""
        self.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs, **options)

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor,
        completion_ids: Tensor,
        completion_mask: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
        value_detached: bool = False,
        ptx_ids: Tensor | None = None,
        ptx_lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """logprobs (B, R), values (B, R + 1), entropy (B, R) when asked for, all float32; 0 behind a completion.

        Args:
            input_ids, places, attention_mask, position_ids, lengths: of `Rollout.model_inputs`.
            completion_ids, completion_mask: (B, R).
            value_detached: the value function learns from the shared trunk without moving it.
            ptx_ids, ptx_lengths: (b, T), (b,) texts of which `ptx_logprobs` (b, T - 1) is returned too; here, since a
                wrapped module (DDP) is to be called once a backward.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"lengths": lengths, "places": places, "completion_mask": completion_mask}
        logits, hidden = completion_logits_and_states(self.policy, inputs)
        hidden = hidden.detach() if value_detached else hidden
        if self.value_trunk is not None:
            hidden = trunk_states(self.value_trunk, inputs)
        logprobs = ops.token_logprobs(logits, completion_ids[completion_mask], temperature)
        output = {
            "logprobs": spread(logprobs, completion_mask),
            "values": spread(self.value_head(hidden), states_of(completion_mask)),
        }
        if with_entropy:
            output["entropy"] = spread(ops.entropy(logits, temperature), completion_mask)
        if ptx_ids is not None:
            logits = read_rows(self.policy, compact_rows(ptx_ids, ptx_lengths)).logits[:, :-1]
            output["ptx_logprobs"] = ops.token_logprobs(logits, ptx_ids[:, 1:])
        return output


def completion_logprobs(policy: nn.Module, inputs: dict[str, Tensor], temperature: float = 1.0) -> Tensor:
    """Log-probs of the tokens of completions; 0 behind them. inputs: of `Rollout.model_inputs` -> (B, R) float32."""
    mask, (logits, _) = inputs["completion_mask"], completion_logits_and_states(policy, inputs)
    return spread(ops.token_logprobs(logits, inputs["completion_ids"][mask], temperature), mask)


def adapters_off(model: nn.Module):
    """Context in which a LoRA model is the model it was before: the reference policy for free."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def build_policy_and_value(
    policy: PreTrainedModel | PeftModel,
    value_model: str | PreTrainedModel,
    reward_model: PreTrainedModel | None,
    lora: LoraConfig | None = None,
) -> PolicyAndValue:
    """Put a value function beside `policy`.

    Args:
        value_model: "shared" (a head on the policy's trunk), "separate" (its own trunk, from the policy), "reward"
            (its own trunk and head, from `reward_model`), or a model (its trunk, and its scalar head if it has one).
        lora: adapters for a value trunk of its own; None trains it in full.
    """
    if value_model == "shared":
        return PolicyAndValue(policy, None, ValueHead(_state_size(policy)))
    if value_model == "separate":
        source = copy.deepcopy(policy)
    else:
        source = copy.deepcopy(reward_model if value_model == "reward" else value_model)
    source = merged(source) if isinstance(source, PeftModel) else source
    if type(source).__name__.endswith("ForSequenceClassification") and not hasattr(source, "score"):
        raise UserError(
            f"{type(source).__name__} reads a text from both sides; a value at each token needs a causal model. "
            "Choose value_model='shared' or 'separate'."
        )
    head = ValueHead(_state_size(source))
    if isinstance(getattr(source, "score", None), nn.Linear):  # a reward model: its calibrated score is a first value
        gain, bias = calibration(source.config)
        head.weight.data = gain * source.score.weight.data.float()
        raw_bias = 0.0 if source.score.bias is None else source.score.bias.data.float()
        head.bias.data = (gain * raw_bias + bias) * torch.ones(1)
    trunk = getattr(source, source.base_model_prefix)
    if lora is not None:
        trunk_lora = copy.copy(lora)
        trunk_lora.task_type, trunk_lora.modules_to_save = TaskType.FEATURE_EXTRACTION, None
        if isinstance(lora.target_modules, list | set) and not is_all_linear(lora.target_modules):
            trunk_lora.target_modules = sorted(names_found(trunk, lora.target_modules))  # an LM head is the policy's
        trunk = wrap(trunk, trunk_lora)
    return PolicyAndValue(policy, trunk.requires_grad_(True) if lora is None else trunk, head)


def _state_size(model: PreTrainedModel | PeftModel) -> int:
    """Width of the last hidden state, as the head reads it: OPT-350m's is narrower than its layers (`hidden_size`)."""
    head = getattr(model, "score", None) or output_embeddings(model)
    return model.config.get_text_config().hidden_size if head is None else head.in_features
