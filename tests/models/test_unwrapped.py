"""The model inside what wraps it."""

import pytest
import torch
from accelerate.utils import compile_regions
from peft import LoraConfig, get_peft_model
from torch import nn

from rlhf_kit.models import forward
from rlhf_kit.models.checkpoints import check_vocabulary
from rlhf_kit.models.forward import known_tokens, unwrapped

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


def test_a_vocabulary_whose_embedding_is_in_pieces_is_known_whole(policy, tokenizer):
    """As DeepSpeed's ZeRO-3 leaves it: nothing here, and the shape that it has in all."""
    embedding = policy.get_input_embeddings()
    shape, embedding.weight = embedding.weight.shape, nn.Parameter(torch.empty(0))
    embedding.weight.ds_shape = shape
    assert known_tokens(policy) == shape[0]
    check_vocabulary("m", tokenizer, policy)
