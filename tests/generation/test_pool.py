"""Slots: a row's tokens are those that it has alone, read by a plain forward, whatever shares its batch."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_kit.errors import UserError
from rlhf_kit.generation.reading import Anew, Cached, check_sampling
from rlhf_kit.generation.sampling import sample

LONGEST, TEMPERATURE, ENDS = 12, 0.8, list(range(12))  # a fifth of the vocabulary ends a row
LENGTHS = [1, 17, 2, 2, 5, 1, 9, 3, 20, 4, 1, 1, 6, 2, 3, 14, 1, 8, 2, 7]
# What may begin in the place of others: rows of a cache, of whole rows, or none before all have ended.
ARCHITECTURES = {
    "gpt2": ({}, "cache"),
    "llama": ({"num_key_value_heads": 1}, "cache"),
    "bloom": ({"n_head": 2, "n_layer": 2}, "cache"),
    "gpt_neox": ({"rotary_pct": 0.5}, "cache"),
    "mistral": ({"num_key_value_heads": 1, "sliding_window": 4, "head_dim": 16}, "batches"),
    "lfm2": ({"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}, "batches"),
    "mamba": ({"state_size": 4}, "whole rows"),
    "rwkv": ({"attention_hidden_size": 32, "context_length": 64}, "whole rows"),
}


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 60, (length,), generator=generator).tolist() for length in LENGTHS]


def tiny(name):
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": max(LENGTHS) + LONGEST, "bos_token_id": 1}
    shape |= {"pad_token_id": 0, "eos_token_id": 1} | ARCHITECTURES[name][0]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def in_slots(model, rows, slots, **options):
    options = {"temperature": TEMPERATURE, "eos_ids": ENDS, "generator": torch.Generator().manual_seed(7)} | options
    return sample(model, rows, pad_id=0, max_completion_length=LONGEST, batch_size=slots, **options)


@torch.no_grad()
def alone(model, rows):
    """(tokens, log-probs) of each row: its whole text is read for every token, and drawn from by one sum."""
    uniforms = torch.rand(len(rows), LONGEST, generator=torch.Generator().manual_seed(7))
    for row, points in zip(rows, uniforms, strict=True):
        tokens, logprobs = [], []
        for point in points:
            logits = model(torch.tensor([row + tokens])).logits[0, -1] / TEMPERATURE
            cumulative = logits.double().softmax(-1).cumsum(-1)
            tokens.append(int((cumulative <= point * cumulative[-1]).sum()))
            logprobs.append(logits.log_softmax(-1)[tokens[-1]].item())
            if tokens[-1] in ENDS:
                break
        yield tokens, logprobs


@pytest.fixture
def begun(monkeypatch):
    """How many rows began in the places of others, each time some did."""
    counts = []
    for reader in (Cached, Anew):

        def begin(self, places, rows, begin=reader.begin):
            counts.append(len(rows))
            return begin(self, places, rows)

        monkeypatch.setattr(reader, "begin", begin)
    return counts


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_number_of_slots_gives_what_each_row_has_alone(name, begun):
    model, rows = tiny(name), prompts()
    truth = list(alone(model, rows))
    assert {len(tokens) for tokens, _ in truth} >= {1, 2, LONGEST}  # some end at once, some never
    compact = check_sampling(model, rows)
    assert compact is (ARCHITECTURES[name][1] == "whole rows")
    begun.clear()
    for slots in (1, 3, 8, None):
        rollout = in_slots(model, rows, slots, compact=compact)
        assert rollout.completions() == [tokens for tokens, _ in truth]
        assert rollout.terminated.tolist() == [tokens[-1] in ENDS for tokens, _ in truth]
        logprobs = torch.cat([torch.tensor(values) for _, values in truth])
        torch.testing.assert_close(rollout.logprobs[rollout.completion_mask], logprobs, atol=5e-6, rtol=1e-5)
        assert not rollout.logprobs[~rollout.completion_mask].any()
        refilled = ARCHITECTURES[name][1] != "batches" and slots is not None
        assert sum(begun) == (len(rows) - slots if refilled else 0)
        begun.clear()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_of_its_own_seed_is_the_same_wherever_it_stands(name):
    """Any order, neighbours and slots; and a longer limit goes on from where a shorter one stopped."""
    model, rows, seeds = tiny(name), prompts(), [7, 2**40, 7, *range(17)]
    truth = in_slots(model, rows, None, generator=None, seeds=seeds).completions()
    assert truth[0] != truth[2]  # a seed is no prompt
    for order in (list(range(19, -1, -1)), [4, 17, 1], torch.randperm(20).tolist()):
        for slots in (1, 3, None):
            chosen = {"seeds": [seeds[at] for at in order], "generator": None}
            rollout = in_slots(model, [rows[at] for at in order], slots, **chosen)
            assert rollout.completions() == [truth[at] for at in order]
    shorter = sample(
        model, rows, eos_ids=ENDS, pad_id=0, max_completion_length=5, temperature=TEMPERATURE, seeds=seeds
    )
    assert shorter.completions() == [row[:5] for row in truth]


@pytest.mark.parametrize("options", [{"seeds": [1, 2]}, {"seeds": [1], "generator": torch.Generator()}])
def test_seeds_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError, match=r"sample: \d seeds for 1 prompts: give one each, and no generator."):
        sample(tiny("gpt2"), [[5]], eos_ids=[], pad_id=0, max_completion_length=1, **options)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_greedy_is_transformers_own_generate(name):
    """The oracle of another house, for rows that begin where others have ended, and for batches."""
    model, rows = tiny(name), prompts()
    options = {"do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": LONGEST}
    truth = [model.generate(torch.tensor([row]), **options)[0, len(row) :].tolist() for row in rows]
    assert in_slots(model, rows, 3, temperature=0).completions() == truth


def test_rows_begin_by_the_group(begun):
    """Sixteen slots, a row ends in each step or two: others wait for two that have ended, or one at its limit."""
    rows = prompts() * 4
    in_slots(tiny("gpt2"), rows, 16, compact=False, eos_ids=ENDS[:4])
    assert sum(begun) == len(rows) - 16 and begun.count(1) <= 4  # of 23 groups


def test_rows_leave_by_the_group(monkeypatch):
    """Without rows that wait: an eighth of the batch at a time, so that little is copied."""
    kept, keep = [], Cached.keep

    def kept_rows(self, rows):
        kept.append((len(self.lengths), len(rows)))
        keep(self, rows)

    monkeypatch.setattr(Cached, "keep", kept_rows)
    in_slots(tiny("gpt2"), prompts() * 4, None, compact=False)
    assert len(kept) > 3 and all(8 * (before - after) >= before for before, after in kept)


def test_the_batch_is_no_wider_than_its_longest_row(monkeypatch):
    """Slots that are filled again and again: the columns at the beginning are given up, and so is their room."""
    widths, rooms, write = [], [], Cached.write

    def watched(self, step):
        write(self, step)
        layer = self.cache.layers[0]
        assert layer.keys.shape[-2] == layer.get_seq_length() == self.mask.shape[1] - 1
        if step.begun:
            assert self.mask.shape[1] == self.lengths.max()
        widths.append(self.mask.shape[1])
        rooms.append(layer.all_keys.shape[-2])

    monkeypatch.setattr(Cached, "write", watched)
    in_slots(tiny("gpt2"), prompts() * 6, 4, compact=False)
    assert len(widths) > 4 * max(LENGTHS) + LONGEST >= max(rooms) and max(widths) <= max(LENGTHS) + LONGEST


def test_a_model_that_reads_what_was_in_its_slot_reads_whole_rows(monkeypatch):
    """The trial before the first draw fills a slot again: here what stood there is not masked."""
    model, begin = tiny("gpt2"), Cached.begin
    assert not check_sampling(model, prompts())

    def unmasked(self, places, rows):
        begin(self, places, rows)
        self.mask[places] = 1

    monkeypatch.setattr(Cached, "begin", unmasked)
    assert check_sampling(model, prompts())
