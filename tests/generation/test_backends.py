"""transformers' `generate` behind the sampler's interface: in float32, for the same seeds, the pool's tokens."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rlhf_kit.errors import UserError
from rlhf_kit.generation.backends import BACKENDS, generate
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.packed import take_packed
from rlhf_kit.ppo.config import BACKENDS as OFFERED

LONGEST = 9
LENGTHS = [1, 11, 2, 5, 1, 14, 3, 8, 2, 6]
GROUPED = {"num_key_value_heads": 1}
ARCHITECTURES = {
    "gpt2": {},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4, "head_dim": 16},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "falcon": {},
    "bloom": {"n_head": 2, "n_layer": 2},
    "mamba": {"state_size": 4},  # of which the pool reads rows anew
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
}


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 60, (length,), generator=generator).tolist() for length in LENGTHS]


def tiny(name, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def drawn(backend, model, **options):
    options = {"eos_ids": list(range(9)), "pad_id": 0, "seeds": range(len(LENGTHS))} | options
    return backend(model, prompts(), max_completion_length=LONGEST, **options)


def assert_same_tokens(rollout, expected):
    for name in ("prompt_ids", "prompt_lengths", "completion_ids", "completion_lengths", "terminated"):
        assert torch.equal(getattr(rollout, name), getattr(expected, name)), name


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tokens_are_those_of_the_pool(name, temperature):
    """Any batch, several end tokens, one, none, and one that is the padding too."""
    model = tiny(name, **ARCHITECTURES[name])
    for ends in (list(range(9)), [0], []):
        options = {"temperature": temperature, "eos_ids": ends}
        expected = drawn(sample, model, **options, batch_size=4)
        for size in (1, 3, None):
            assert_same_tokens(drawn(generate, model, **options, batch_size=size), expected)
    assert {*drawn(sample, model).completion_lengths.tolist()} >= {1, LONGEST}  # some end at once, some never


def test_a_generator_is_drawn_from_as_by_the_pool_and_nothing_else():
    model, expected = tiny("gpt2"), torch.Generator().manual_seed(3)
    ours = drawn(sample, model, seeds=None, generator=expected)
    generator, state = torch.Generator().manual_seed(3), torch.get_rng_state()
    rollout = drawn(generate, model, seeds=None, generator=generator)
    assert_same_tokens(rollout, ours)
    assert torch.equal(generator.get_state(), expected.get_state()) and torch.equal(torch.get_rng_state(), state)
    assert rollout.logprobs is rollout.entropy is rollout.values is None and not rollout.pack


def test_what_the_model_itself_would_change_is_left_out_and_comes_back():
    """A penalty, suppressed tokens, an end of its own: it would be another distribution than PPO trains."""
    model = tiny("gpt2")
    expected = drawn(sample, model)
    own = GenerationConfig(repetition_penalty=9.0, suppress_tokens=[*range(5, 60)], eos_token_id=30, min_new_tokens=4)
    model.generation_config = own
    assert_same_tokens(drawn(generate, model), expected)
    assert model.generation_config is own and own.repetition_penalty == 9.0


def test_adapters_and_packed_attention_are_read_as_by_the_pool():
    model = wrap(tiny("gpt2"), LoraConfig(r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    take_packed(model)
    assert_same_tokens(drawn(generate, model), drawn(sample, model))


def test_a_model_that_reads_padding_is_refused_by_name():
    message = r"^RwkvForCausalLM cannot be sampled from by .* generate, with .*: .*What can: generation_backend='pool'"
    with pytest.raises(UserError, match=message):
        drawn(generate, tiny("rwkv", attention_hidden_size=32, context_length=64))


def test_a_generate_that_reads_something_else_is_refused(monkeypatch):
    model = tiny("gpt2")
    own = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, *args, **options: own(ids.flip(0), *args, **options))
    with pytest.raises(UserError, match="GPT2LMHeadModel cannot be sampled from .* its logits are off by"):
        drawn(generate, model)


def test_the_option_offers_them_all():
    assert tuple(BACKENDS) == OFFERED


@pytest.mark.parametrize("backend", BACKENDS.values())
def test_both_refuse_the_same(backend):
    model = tiny("gpt2")
    for options, message in [
        ({"temperature": -1}, "temperature=-1 must not be negative"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seeds": [1]}, "1 seeds for 10 prompts"),
    ]:
        with pytest.raises(UserError, match=message):
            drawn(backend, model, **options)
