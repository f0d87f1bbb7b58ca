"""The zero of a reward model, from Python as from the command line: demonstrations, or a policy's own answers."""

import pytest
import torch
from datasets import Dataset
from toys import EOS, byte_tokenizer, make
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.errors import UserError
from rlhf_kit.models.heads import score_texts
from rlhf_kit.reward import Answers, choose_prompts, demonstrated_answers, policy_answers, recenter

ROWS = Dataset.from_list([{"prompt": text} for text in ("one", "two", "one", "three", "much longer")])


def policy():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=1, bos_token_id=EOS, eos_token_id=EOS
    )
    return GPT2LMHeadModel(config)


def test_prompts_are_different_and_come_again_where_they_are_few():
    chosen = choose_prompts(ROWS, byte_tokenizer(), None, 6, 4, seed=0)
    texts = [prompt for prompt, _ in chosen]
    assert sorted(texts[:4]) == ["much longer", "one", "three", "two"] and texts[4:] == texts[:2]
    assert {prompt: len(ids) for prompt, ids in chosen} == {"one": 20, "two": 20, "three": 22, "much longer": 28}
    assert chosen == choose_prompts(ROWS, byte_tokenizer(), None, 6, 4, seed=0)
    assert [*map(tuple, chosen[:4])] != [*map(tuple, choose_prompts(ROWS, byte_tokenizer(), None, 4, 4, seed=1))]


def test_a_prompt_leaves_room_for_its_answer():
    """Bytes are tokens: "User: three", an end and "Assistant:" are 22, with an answer of 4 they are 26."""
    fitting = {context: choose_prompts(ROWS, byte_tokenizer(), context, 4, 4, seed=0) for context in (25, 26)}
    assert {prompt for prompt, _ in fitting[25]} == {"one", "two"}
    assert {prompt for prompt, _ in fitting[26]} == {"one", "two", "three"}
    with pytest.raises(
        UserError, match="calibration: the shortest prompt has 20 tokens; the context of 23 less 4 for .* leaves 19"
    ):
        choose_prompts(ROWS, byte_tokenizer(), 23, 4, 4, seed=0)


def test_the_last_answer_of_a_dialogue_is_what_was_shown():
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    rows = Dataset.from_list([{"messages": turns[:2]}, {"messages": turns}])
    answers = demonstrated_answers(rows, byte_tokenizer())
    assert answers == Answers([turns[:1], turns[:3]], ["b", "d"])
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    assert demonstrated_answers(rows, byte_tokenizer()) == Answers(["a"], ["b"])


@pytest.mark.parametrize("scale", [True, False])
def test_what_a_policy_answers_gets_mean_zero(tmp_path, scale):
    chosen = choose_prompts(ROWS, byte_tokenizer(), 64, 8, 6, seed=3)
    model = policy().train()
    answers = policy_answers(model, byte_tokenizer(), chosen, 6, seed=3, batch_size=3)
    assert answers == policy_answers(policy().eval(), byte_tokenizer(), chosen, 6, seed=3)  # no dropout, any batch
    assert model.training and answers.prompts == [prompt for prompt, _ in chosen]
    trainer = make(tmp_path, calibrate=False)
    before = score_texts(trainer.model, trainer.tokenizer, *answers)
    recenter(trainer, answers, scale)
    after = score_texts(trainer.model, trainer.tokenizer, *answers)
    expected = (before - before.mean()) / (before.std(correction=0) if scale else 1)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
