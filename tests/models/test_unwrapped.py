"""The model inside what wraps it."""

import pytest
import torch
from accelerate.utils import compile_regions
from peft import LoraConfig, get_peft_model

from rlhf_kit.models import forward
from rlhf_kit.models.forward import unwrapped

WRAPPERS = {
    "compiled": torch.compile,
    "compiled by regions": compile_regions,
    "adapters": lambda model: get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_it_is_found(wrapper, policy):
    wrapped = WRAPPERS[wrapper](policy)
    assert wrapped is not policy and unwrapped(wrapped) is policy


def test_one_that_nothing_wraps_is_given_back_at_once(policy, monkeypatch):
    """accelerate would look through all its modules, for each token that is drawn."""
    monkeypatch.setattr(forward, "extract_model_from_parallel", None)
    assert unwrapped(policy) is policy
