"""Sampling: the same tokens as transformers' generate, whatever the padding, batch or neighbours."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.generation.cache import growing_cache
from rlhf_kit.generation.drawing import draw
from rlhf_kit.generation.reading import check_sampling
from rlhf_kit.generation.sampling import Rollout, sample
from rlhf_kit.models.value import PolicyAndValue, ValueHead

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [40, 41, 42], [5, 5]]


def by_hand() -> Rollout:
    return Rollout(
        prompt_ids=torch.tensor([[0, 7], [8, 9]]),
        prompt_lengths=torch.tensor([1, 2]),
        completion_ids=torch.tensor([[3, 4], [5, 0]]),
        completion_lengths=torch.tensor([2, 1]),
        terminated=torch.tensor([False, True]),
    )


def greedy(policy, prompts, eos_ids=(), **options):
    return sample(
        policy, prompts, eos_ids=list(eos_ids), pad_id=0, max_completion_length=8, temperature=0, **options
    ).completions()


def test_greedy_equals_generate_row_by_row(policy):
    for prompt, completion in zip(PROMPTS, greedy(policy, PROMPTS), strict=True):
        expected = policy.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert completion == expected[0, len(prompt) :].tolist()


def test_a_row_stops_at_its_end_token_and_the_others_go_on(policy):
    free = greedy(policy, PROMPTS)
    end = free[0][2]
    for before, after in zip(free, greedy(policy, PROMPTS, eos_ids=[end]), strict=True):
        stop = before.index(end) + 1 if end in before else 8
        assert after == before[:stop]


def test_terminated_is_about_the_last_token_only(policy):
    end = greedy(policy, PROMPTS)[0][2]
    rollout = sample(policy, PROMPTS, eos_ids=[end], pad_id=end, max_completion_length=8, temperature=0)
    assert rollout.terminated.tolist() == [row[-1] == end for row in rollout.completions()]
    assert rollout.terminated[0] and not rollout.terminated.all()
    # Padding with the end token's own id changes nothing: masks come from lengths.
    assert rollout.completion_mask.sum(1).tolist() == rollout.completion_lengths.tolist()
    assert rollout.completions() == greedy(policy, PROMPTS, eos_ids=[end])


def test_draws_do_not_depend_on_the_batch_size(policy):
    def run(batch_size):
        generator = torch.Generator().manual_seed(4)
        return sample(
            policy,
            PROMPTS,
            eos_ids=[0],
            pad_id=0,
            max_completion_length=8,
            generator=generator,
            batch_size=batch_size,
        ).completions()

    assert run(None) == run(1) == run(3)


@pytest.mark.parametrize(
    "prompts,options,told",
    [
        (PROMPTS, {"batch_size": -1}, "batch_size=-1 must be at least 1"),
        (PROMPTS, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (PROMPTS, {"max_completion_length": 0, "temperature": -1.0}, "max_completion_length=0 .*; temperature=-1.0"),
        (PROMPTS, {"temperature": float("nan")}, "temperature=nan must be finite"),
        ([[5], []], {}, "the prompt of row 2 has no tokens"),
        ([], {}, "there are no prompts"),
    ],
)
def test_what_cannot_be_sampled_is_told(policy, prompts, options, told):
    with pytest.raises(UserError, match=told):
        sample(policy, prompts, **{"eos_ids": [0], "pad_id": 0, "max_completion_length": 4, **options})


def test_draw_follows_the_distribution():
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    uniforms = torch.linspace(0, 1, 20001)[:-1]
    drawn = draw((logits / 0.5).log_softmax(-1).expand(len(uniforms), -1), uniforms)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.softmax(logits[0] / 0.5, -1), atol=2e-4, rtol=0)


def test_model_inputs_by_hand():
    inputs = by_hand().model_inputs()
    assert inputs["input_ids"].tolist() == [[7, 3, 4], [8, 9, 5]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert inputs["places"].tolist() == [0, 1, 2, 4, 5]  # the last of each row: after its completion


def test_packed_inputs_by_hand():
    rollout = by_hand()
    rollout.prompt_ids, rollout.prompt_lengths = torch.tensor([[0, 7], [8, 9]]), torch.tensor([1, 2])
    rollout.completion_ids, rollout.completion_lengths = torch.tensor([[3, 0], [4, 5]]), torch.tensor([1, 2])
    padded = rollout.model_inputs()
    assert padded["input_ids"].tolist()[1] == [8, 9, 4, 5] and padded["input_ids"].tolist()[0][:2] == [7, 3]
    assert padded["places"].tolist() == [0, 1, 5, 6, 7]
    rollout.pack = True
    packed = rollout.model_inputs()
    assert packed["input_ids"].tolist() == [[7, 3, 8, 9, 4, 5]] and packed["lengths"].tolist() == [2, 4]
    assert packed["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3]]
    assert packed["places"].tolist() == [0, 1, 3, 4, 5]


def test_selected_rows_lose_the_padding_of_the_others():
    rollout = by_hand()
    assert rollout.select(torch.tensor([0])).model_inputs()["input_ids"].tolist() == [[7, 3, 4]]
    assert rollout.select(torch.tensor([1])).model_inputs()["input_ids"].tolist() == [[8, 9, 5]]
    assert torch.cat(list(rollout.by_length(1))).sort().values.tolist() == [0, 1]


def test_sampling_and_scoring_use_the_same_distribution(policy):
    """Many draws of one token against the log-probs the trainer gives it, at a temperature other than 1."""
    generator, count = torch.Generator().manual_seed(0), 20_000
    rollout = sample(
        policy,
        [[5, 6, 7]] * count,
        eos_ids=[],
        pad_id=0,
        max_completion_length=1,
        temperature=0.6,
        generator=generator,
    )
    logits = policy(torch.tensor([[5, 6, 7]])).logits[0, -1].detach()
    tokens = torch.arange(len(logits))
    shares = torch.bincount(rollout.completion_ids[:, 0], minlength=len(logits)) / count

    def distance(temperature):  # total variation
        return (shares - ops.token_logprobs(logits.expand(len(tokens), -1), tokens, temperature).exp()).abs().sum() / 2

    assert distance(0.6) < 0.05 < 0.1 < distance(1.0)
    own = ops.token_logprobs(logits.expand(count, -1), rollout.completion_ids[:, 0], 0.6)
    torch.testing.assert_close(rollout.logprobs[:, 0], own)


def test_logprobs_entropy_and_values_are_those_of_the_training_forward(policy):
    """As the cached loop goes, with rows of different lengths that leave the batch at different times."""
    module = PolicyAndValue(policy, None, ValueHead(32))
    torch.nn.init.normal_(module.value_head.weight)
    rollout = sample(
        policy,
        PROMPTS * 3,
        eos_ids=list(range(40)),
        pad_id=0,
        max_completion_length=9,
        temperature=0.7,
        generator=torch.Generator().manual_seed(3),
        batch_size=5,
        value_head=module.value_head,
    )
    assert len(set(rollout.completion_lengths.tolist())) > 3
    with torch.no_grad():
        inputs = rollout.model_inputs()
        full = module(**inputs, temperature=0.7, with_entropy=True)
    mask = rollout.completion_mask
    torch.testing.assert_close(rollout.logprobs[mask], full["logprobs"][mask], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(rollout.entropy[mask], full["entropy"][mask], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(rollout.values[mask], full["values"][:, :-1][mask], atol=2e-6, rtol=1e-5)
    assert not rollout.logprobs[~mask].any() and not rollout.values[~mask].any()
    part = rollout.select(torch.tensor([2, 5]))
    assert part.logprobs.shape == part.values.shape == part.completion_ids.shape


ARCHITECTURES = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 4, "head_dim": 16},
    "gemma3_text": {"num_key_value_heads": 1, "sliding_window": 4, "head_dim": 16},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 2, "n_layer": 2},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_causal_lm_samples_as_generate_does(name):
    """Grouped heads, sliding windows, rotary, learned and no positions: prompts of other lengths change nothing."""
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape | ARCHITECTURES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    for prompt, completion in zip(PROMPTS, greedy(model, PROMPTS), strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert completion == expected[0, len(prompt) :].tolist()
    assert not check_sampling(model, PROMPTS)  # which finds no need to read rows anew


def test_a_rollout_of_another_backend_is_read_by_the_training_forward(make_trainer):
    """It has no log-probs and values of its own; what is learnt from is the same."""
    gathered = {}
    for backend in ("pool", "transformers"):
        trainer = make_trainer(generation_backend=backend, value_model="shared")
        gathered[backend], _ = trainer.collect([*trainer.prompts][:8], torch.Generator().manual_seed(2))
    ours, theirs = gathered.values()
    assert ours.rollout.values is not None and theirs.rollout.values is None
    assert torch.equal(ours.rollout.completion_ids, theirs.rollout.completion_ids)
    for name in ("scores", "logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-4, msg=name)


def test_the_cache_takes_its_room_once(policy):
    cache = growing_cache(policy, room=12)
    keys = torch.randn(3, 2, 5, 16)
    first, _ = cache.update(keys, keys, 0)
    again, values = cache.update(keys[:, :, :1], keys[:, :, :1] + 1, 0)
    assert torch.equal(again, torch.cat([keys, keys[:, :, :1]], 2)) and again.data_ptr() == first.data_ptr()
    assert torch.equal(values[:, :, -1], keys[:, :, 0] + 1)
    cache.layers[0].reorder_cache(torch.tensor([2, 0]))
    assert torch.equal(cache.layers[0].keys, again[[2, 0]]) and cache.get_seq_length() == 6
