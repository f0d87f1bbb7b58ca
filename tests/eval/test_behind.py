"""Continuations are read as they stand behind their context, whatever kind of tokenizer cuts the text."""

import importlib
import importlib.util
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import BEGUN, KINDS, PASSAGES, TOWNS, tokenizer_of_kind
from toy_icl import measured
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit.data.chat import start_ids
from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.icl.prompts import Prompts
from rlhf_kit.eval.icl.tasks import Example, Task
from rlhf_kit.eval.text import lambada
from rlhf_kit.eval.text import tldr as summarize
from rlhf_kit.eval.text.tldr import prompt_ids
from rlhf_kit.generation.generators import encode, encode_begun, encode_behind, first_ids
from rlhf_kit.generation.likelihood import Request, likelihoods
from rlhf_kit.options.reading import read_record

HINT = "\nTL;DR:"
ARTICLE = " ".join(f"{passage}." for passage in PASSAGES)
ALIKE = [passage.rpartition(" ")[0] + f" {TOWNS[0]}" for passage in PASSAGES]


def follower(tokenizer, texts) -> LlamaForCausalLM:
    """A model that writes after each token the one that last followed it in `texts`, and nothing else is likely."""
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=size + size % 2, intermediate_size=2, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(*model.model.embed_tokens.weight.shape))
        model.lm_head.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()  # a layer that adds nothing
        model.model.layers[0].mlp.down_proj.weight.zero_()
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            for before, after in zip(ids, ids[1:], strict=False):
                model.lm_head.weight[:, before] = 0
                model.lm_head.weight[after, before] = 1.0
    return model.eval()


def saved(tokenizer, model, folder) -> str:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


# --- the cut --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_has_the_tokens_that_it_has_in_its_passage(kind):
    tokenizer = tokenizer_of_kind(kind)
    context, word = PASSAGES[0].rsplit(" ", 1)
    ids, (behind,) = encode_behind(tokenizer, context, [f" {word}"])
    assert ids == start_ids(tokenizer) + encode(tokenizer, context) and bool(start_ids(tokenizer)) == (kind in BEGUN)
    spaced = {"byte_bpe": "Ġ", "byte_joined": "Ġ", "wordpiece": ""}.get(kind, "▁")
    expected = f"{spaced}{word.lower() if kind == 'wordpiece' else word}"
    assert tokenizer.convert_ids_to_tokens(behind) == [expected]


def test_llama_2_makes_two_tokens_of_the_word_alone():
    """Or the test above shows nothing."""
    tokenizer = tokenizer_of_kind("prepended")
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, " Riverton")) == ["▁", "▁Riverton"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    context=st.text("AnTo .:\n答：", max_size=8),
    rest=st.lists(st.text("AnTo .\n河。", max_size=5), min_size=1, max_size=3),
)
def test_context_and_continuation_are_the_whole_text(kind, context, rest):
    tokenizer = tokenizer_of_kind(kind)
    try:
        ids, behind = encode_behind(tokenizer, context, rest)
    except UserError as error:  # white space that the tokenizer drops
        assert "no token" in str(error)
        return
    assert ids
    for text, each in zip(rest, behind, strict=True):
        whole = encode_begun(tokenizer, context + text)
        assert ids + each in (whole, first_ids(tokenizer) + whole)
        assert ids == first_ids(tokenizer) or encode_begun(tokenizer, context)[: len(ids)] == ids


@settings(max_examples=60, deadline=None)
@given(context=st.text("ab1.'\"答 \n\t", min_size=1, max_size=9), word=st.text("ab1.'\"答", min_size=1, max_size=4))
def test_before_a_space_gpt2_cuts_where_the_text_was_cut(context, word):
    tokenizer = tokenizer_of_kind("byte_bpe")
    ids, behind = encode_behind(tokenizer, context, [f" {word}"])
    assert (ids, behind) == (encode(tokenizer, context), [encode(tokenizer, f" {word}")])


@pytest.mark.parametrize("kind", ["first", "always", "prepended"])
def test_choices_of_one_context_are_all_cut_where_any_is_joined(kind):
    """ "：河口鎮" is one token: the colon is scored for both choices, or their likelihoods do not compare."""
    tokenizer = tokenizer_of_kind(kind)
    ids, behind = encode_behind(tokenizer, "答：", ["河口鎮。", "安娜。"])
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["▁", "答"]
    assert [tokenizer.convert_ids_to_tokens(each) for each in behind] == [["：河口鎮", "。"], ["：", "安", "娜", "。"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_at_the_end_of_a_context_goes_to_the_word_it_is_joined_with(kind):
    tokenizer = tokenizer_of_kind(kind)
    spaced = encode_behind(tokenizer, "home to ", ["Riverton"])
    assert spaced == encode_behind(tokenizer, "home to", [" Riverton"])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_before_a_text_is_its_begin(kind):
    tokenizer = tokenizer_of_kind(kind)
    begin = tokenizer.bos_token_id if kind in BEGUN else tokenizer.eos_token_id
    assert encode_behind(tokenizer, "", ["Anna"]) == ([begin], [encode(tokenizer, "Anna")])


def test_a_begin_that_the_tokenizer_has_and_does_not_put_is_the_begin_of_nothing():
    """As the harness has it: BOS where there is one, put or not (Bloom), and never twice."""
    tokenizer = tokenizer_of_kind("byte_bpe")
    tokenizer.bos_token = "<s>"
    assert not start_ids(tokenizer) and first_ids(tokenizer) == [tokenizer.bos_token_id] != [tokenizer.eos_token_id]
    assert encode_behind(tokenizer, "", ["Anna"])[0] == [tokenizer.bos_token_id]


def test_what_a_tokenizer_drops_is_named():
    tokenizer = tokenizer_of_kind("wordpiece")
    with pytest.raises(UserError, match=r"has no token for ' \\u200b'"):
        encode_behind(tokenizer, "home to", [" Riverton", " \u200b"])
    with pytest.raises(UserError, match=r"^The tokenizer has no token for ' \\x00'"):
        lambada.request_of(tokenizer, "home to \0", None)


# --- what is measured by it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lambada_of_a_model_that_knows_the_passages(kind, tmp_path):
    tokenizer = tokenizer_of_kind(kind)
    folder = saved(tokenizer, follower(tokenizer, ALIKE), tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ALIKE))
    argv = ["--model", folder, "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    runner.run(lambada.Lambada, read_record("lambada", lambada.LambadaArguments, argv))
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert scores["last_word"] == 100 and scores["perplexity_word"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_a_model_that_knows_the_passages(kind, tmp_path):
    """In total the right one is all but certain, and each other as unlikely as its tokens are."""
    tokenizer = tokenizer_of_kind(kind)
    model = follower(tokenizer, ALIKE)
    choices = tuple(f" {town}" for town in TOWNS[:4])
    examples = tuple(Example(text.rpartition(" ")[0], choices[0], choices) for text in ALIKE[:3])
    task = Task("towns", examples, examples, "\n", cue="to")
    found = measured(model, tokenizer, [task], [0], tmp_path)
    assert found.scores["acc"] == found.scores["acc_total"] == 100
    for line in (tmp_path / "items.jsonl").read_text().splitlines():
        right, *others = json.loads(line)["details"]["logprobs"]
        assert right == pytest.approx(0, abs=0.01) and max(others) < -5


def test_choices_are_measured_with_the_shots_that_fit():
    tokenizer = tokenizer_of_kind("prepended")
    examples = tuple(
        Example(text.rpartition(" ")[0], f" {TOWNS[0]}", (f" {TOWNS[0]}", " Oakham bag")) for text in ALIKE
    )
    task = Task("towns", examples, examples, "\n", cue="to")
    whole = Prompts(tokenizer, None).ask("id", task, 0, 3, 0)
    full = len(whole.ids) + max(map(len, whole.choices)) - 1
    assert Prompts(tokenizer, full).ask("id", task, 0, 3, 0) == whole
    assert Prompts(tokenizer, full - 1).ask("id", task, 0, 3, 0).shown == 2
    assert Prompts(tokenizer, None).cue(task, examples[0]).continuations == whole.choices


def test_a_word_longer_than_the_model_reads_is_refused():
    tokenizer = tokenizer_of_kind("byte_bpe")
    model = follower(tokenizer, ALIKE)
    request = lambada.request_of(tokenizer, "home to " + "x" * 300, 256)
    with pytest.raises(UserError, match="request 1 has 1 tokens; the context of 256 less 300 for .* leaves 0"):
        list(likelihoods(model, [request]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_hint_stands_behind_the_article_and_behind_what_is_left_of_it(kind):
    tokenizer = tokenizer_of_kind(kind)
    whole = encode_begun(tokenizer, ARTICLE + HINT)
    assert prompt_ids(tokenizer, ARTICLE, HINT, None) == whole
    assert prompt_ids(tokenizer, ARTICLE, HINT, len(whole) + summarize.MAX_NEW_TOKENS) == whole
    for room in range(12, 40):
        ids = prompt_ids(tokenizer, ARTICLE, HINT, room + summarize.MAX_NEW_TOKENS)
        told = tokenizer.decode(ids[len(start_ids(tokenizer)) :], clean_up_tokenization_spaces=False)
        assert room - 2 <= len(ids) <= room
        assert ids == encode_begun(tokenizer, told)  # no mark of a text's begin before the hint
        hint = " tl ; dr :" if kind == "wordpiece" else HINT
        assert told.endswith(hint) and ARTICLE.lower().startswith(told.removesuffix(hint).lower().replace(" .", "."))


def test_gpt2_keeps_its_tokens_where_a_character_is_cut():
    """Half a character cannot be written as text: the article's own tokens stay, and the hint is what it was."""
    tokenizer = tokenizer_of_kind("byte_bpe")
    ids, hint = encode(tokenizer, "安娜去😀河口鎮。" * 9), encode(tokenizer, HINT)
    for room in range(1, 40):
        limit = room + len(hint) + summarize.MAX_NEW_TOKENS
        assert prompt_ids(tokenizer, "安娜去😀河口鎮。" * 9, HINT, limit) == ids[:room] + hint


# --- lm-evaluation-harness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_choices_in_turns_stand_as_in_the_whole_dialogue(kind):
    tokenizer = tokenizer_of_kind(kind)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    item = Example("Where is Anna?", " Riverton", (" Riverton", " Sunport"))
    asked = Prompts(tokenizer, None, chat=True).ask("1", Task("towns", (item,), (item,), "\n"), 0, 0, 0)
    for choice, ids in zip(item.choices, asked.choices, strict=True):
        said = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": choice.strip()}]
        whole = tokenizer.apply_chat_template(said, tokenize=False).removesuffix(tokenizer.eos_token)
        assert asked.ids + ids == list(tokenizer(whole)["input_ids"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_harness_has_it(kind):
    tokenizer = tokenizer_of_kind(kind)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    api = importlib.import_module("lm_eval.api.instance").Instance
    wrapped = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, add_bos_token=kind in BEGUN
    )
    contexts = [*(passage.rpartition(" ")[0] for passage in PASSAGES[:4]), "home to ", "", "Q: Where?\nA:"]
    choices = [f" {town}" for town in TOWNS[:4]]
    pairs = [
        (context, choice.strip() if context.endswith(" ") else choice) for context in contexts for choice in choices
    ]
    theirs = wrapped.loglikelihood([api("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    ids = [encode_behind(tokenizer, context, [choice]) for context, choice in pairs]
    ours = dict(likelihoods(model, [Request(*each) for each in ids]))
    for at, (total, greedy) in enumerate(theirs):
        (mine,) = ours[at]
        assert math.isclose(mine.total, total, abs_tol=1e-4) and all(mine.greedy) == greedy, pairs[at]
