"""Log-probs of a prompt's tokens: by hand, part by part as at once, in memory that does not grow with the prompt."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_kit.generation import prompt_logprobs as module
from rlhf_kit.generation.prompt_logprobs import _row, prompt_logprobs

ROWS = [[5, 9, 200, 17, 3, 5, 5, 8], [7, 1], [4], list(range(20, 41))]


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("places", [1, 7, 8, 1000])
def test_parts_are_those_of_a_plain_forward(policy, count, places, monkeypatch):
    monkeypatch.setattr(module, "PLACES", places)
    for row, read in zip(ROWS, prompt_logprobs(policy.eval(), ROWS, count), strict=True):
        with torch.no_grad():
            logprobs = policy(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        assert [drawn.token for drawn in read] == row[1:]
        for drawn, of_place in zip(read, logprobs, strict=False):
            assert drawn.logprob == pytest.approx(of_place[drawn.token].item(), abs=1e-5)
            values, tokens = of_place.topk(count)
            assert [token for token, _ in drawn.top] == tokens.tolist()
            assert [value for _, value in drawn.top] == pytest.approx(values.tolist(), abs=1e-5)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made, none of them in the memory of `given`."""

    def __init__(self, given):
        super().__init__()
        self.given, self.size = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.size = max(self.size, tensor.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prompt_takes_no_more_memory_than_a_part_of_it(dtype):
    torch.manual_seed(0)
    logits, row = torch.randn(1000, 50).to(dtype), torch.randint(50, (1000,)).tolist()
    with Largest(logits) as largest:
        read = _row(logits, row, 2)
    assert largest.size == module.PLACES * 50 < logits.numel()
    truth = logits.float().log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
    assert [drawn.logprob for drawn in read] == pytest.approx(truth.tolist(), abs=1e-5)
