"""LoRA's updates put into the weights they belong to: what a model with adapters computes, as a plain model."""

from __future__ import annotations

from collections import Counter

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel


def merged(model: PeftModel) -> PreTrainedModel:
    """The plain model that `model`, which is used up, computes with its active adapter.

    An update is added in float32 and the sum rounded once, to the type of the weights. An adapted weight that others
    share (a tied embedding) is untied before: they were not adapted.
    """
    base = model.get_base_model()
    trained_in: list[tuple[nn.Module, torch.dtype]] = []
    users = Counter(id(weight) for module in base.modules() for weight in module._parameters.values())
    for module in base.modules():
        if isinstance(module, BaseTunerLayer):
            part = module.get_base_layer()
            trained_in.append((part, part.weight.dtype))
            if users[id(part.weight)] > 1:
                part.weight = nn.Parameter(part.weight.detach().clone())
            part.float()
        elif isinstance(module, ModulesToSaveWrapper):
            dtype = next(module.original_module.parameters()).dtype
            trained_in += [(part, dtype) for part in module.modules_to_save.values()]
    plain = model.merge_and_unload()
    for part, dtype in trained_in:
        part.to(dtype)
    inputs, outputs = plain.get_input_embeddings(), plain.get_output_embeddings()
    if outputs is not None and outputs.weight is not inputs.weight:
        plain.config.tie_word_embeddings = plain.config.get_text_config().tie_word_embeddings = False
    return plain
