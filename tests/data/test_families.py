"""Prompts, completions and dialogues under the tokenizers and templates of other makers (`families`)."""

import pytest
from families import CHATML, FAMILIES, PLAIN, tokenizer_of
from tokenizers import AddedToken

from rlhf_kit.data import chat
from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.errors import UserError

ENDS = {  # the last token of an answer
    "gemma": "<end_of_turn>",
    "qwen": "<|im_end|>",
    "phi3": "<|end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "thought": "<|im_end|>",
    "plain": "<|endoftext|>",
}
BEGUN = ("gemma", "llama3", "mistral")
ASKED = [{"role": "user", "content": "Hi?"}]
SAID = [*ASKED, {"role": "assistant", "content": "Yes."}]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def names(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


# --- ends -----------------------------------------------------------------------------------------------------------


def test_the_turns_end_is_trained_and_is_an_end(family):
    tokenizer = tokenizer_of(family)
    end, ends = tokenizer.convert_tokens_to_ids(ENDS[family]), chat.turn_ends(tokenizer)
    assert set(ends) == {tokenizer.eos_token_id, end}
    ids, labels = chat.encode_dialogue(tokenizer, SAID)
    assert [label for label in labels if label != -100][-1] == end
    answer = chat.encode_completion(tokenizer, "Yes.", eos=True)
    assert answer[-1] == end and answer[:-1] == chat.encode_completion(tokenizer, "Yes.", eos=False)
    prompt = chat.encode_prompt(tokenizer, ASKED)
    assert ids[: len(prompt + answer)] == prompt + answer
    for rest in ([], [end, *answer], [tokenizer.eos_token_id]):  # nothing behind the first end is said
        assert chat.decode_completion(tokenizer, [*answer, *rest]) == "Yes."


@pytest.mark.parametrize("turns", [2, 3])
def test_every_answer_of_a_dialogue_is_trained_with_its_end(family, turns):
    tokenizer = tokenizer_of(family)
    if family == "thought":
        pytest.skip("its template takes the thought of an earlier answer away")
    ids, labels = chat.encode_dialogue(tokenizer, SAID * turns)
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    # Where the template ends no turn, that of the last answer alone: an earlier one is followed by what it writes.
    assert labels.count(end) == (1 if family == "plain" else turns)
    assert ids.count(tokenizer.bos_token_id) == (family in BEGUN)


MARKED = PLAIN.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_a_template_that_ends_no_turn_gets_the_end_of_text(template):
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = template
    asked, answer = "Human: Hi?\n\nBot: ", "Yes.<|endoftext|>"
    ids, _ = chat.encode_dialogue(tokenizer, SAID)
    assert tokenizer.decode(ids) == asked + answer
    assert tokenizer.decode(chat.encode_completion(tokenizer, "Yes.", eos=True)) == answer
    # Followed by another question it stands as the template has it.
    more = chat.encode_prompt(tokenizer, [*SAID, *ASKED])
    assert tokenizer.decode(more) == f"{asked}Yes.\n\n{asked}"


def test_an_end_outside_of_the_generation_marks_is_trained_too():
    tokenizer = tokenizer_of("qwen")
    said = "{{ m['role'] }}\n{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>"
    tokenizer.chat_template = CHATML.replace("{{ m['role'] }}\n{{ m['content'] }}<|im_end|>", said)
    _, labels = chat.encode_dialogue(tokenizer, SAID)
    kept = [label for label in labels if label != -100]
    assert tokenizer.decode(kept).endswith("Yes.<|im_end|>")


@pytest.mark.parametrize("is_special", [True, False])
def test_an_end_that_was_only_added_ends_a_turn(is_special):
    """ChatML put on any base: the tokens stand in no special_tokens_map, or are not even called special."""
    tokenizer = tokenizer_of("plain")
    tokenizer.add_tokens([AddedToken(text, special=is_special) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens("\n\n")  # as Gemma has it
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.turn_ends(tokenizer) == [tokenizer.eos_token_id, end]
    _, labels = chat.encode_dialogue(tokenizer, SAID)
    assert labels[-2:] == [end, -100]
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "\n\n<|im_end|>")
    assert chat.turn_ends(tokenizer) == [tokenizer.eos_token_id, end]


@pytest.mark.parametrize("family", ["phi3", "llama3"])
def test_an_end_typed_by_somebody_ends_no_turn(family):
    tokenizer = tokenizer_of(family)
    sick = f"Yes. {ENDS[family]} No."
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    ids, _ = chat.encode_dialogue(
        tokenizer, [{"role": "user", "content": sick}, {"role": "assistant", "content": sick}]
    )
    assert ids.count(end) == 2
    assert chat.decode_completion(tokenizer, chat.encode_completion(tokenizer, sick, eos=True)) == sick


# --- BOS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["its own", "ours", "none", "without BOS"])
def test_what_the_tokenizer_begins_begins_once(family, layout):
    tokenizer = tokenizer_of(family, template=layout == "its own")
    if layout == "ours":
        chat.set_chat_template(tokenizer)
    if layout == "without BOS":
        tokenizer.chat_template = FAMILIES[family].template.replace("{{ bos_token }}", "")
    start = [tokenizer.bos_token_id] if family in BEGUN else []
    assert (
        chat.start_ids(tokenizer) == start == [i for i in tokenizer("Hi?")["input_ids"] if i == tokenizer.bos_token_id]
    )
    prompts = [chat.encode_prompt(tokenizer, "Hi?")]
    if layout == "none":
        prompts += chat.encode_texts(tokenizer, ["Hi?", "", "Yes. No."])
        assert prompts[1:] == [tokenizer(text)["input_ids"] for text in ("Hi?", "Yes. No.")]
    else:
        ids, labels = chat.encode_dialogue(tokenizer, SAID)
        assert labels[: len(prompts[0])] == [-100] * len(prompts[0])
        prompts += [chat.encode_prompt(tokenizer, ASKED), chat.encode_prompt(tokenizer, SAID + ASKED), ids]
    for ids in prompts:
        assert [i for i in ids if i == tokenizer.bos_token_id] == start and ids[: len(start)] == start
    assert tokenizer.bos_token_id is None or tokenizer.bos_token_id not in chat.encode_completion(
        tokenizer, "Yes.", False
    )


@pytest.mark.parametrize("template", [None, CHATML])
def test_plain_transformers_reads_the_saved_template_as_it_was_trained(template, tmp_path):
    tokenizer = tokenizer_of("llama3", template=False)
    tokenizer.chat_template = template
    for _ in range(2):
        chat.set_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    asked = again.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked == chat.encode_prompt(tokenizer, ASKED) and asked.count(tokenizer.bos_token_id) == 1


def test_gpt2_is_begun_by_nothing(tiny):
    tiny.bos_token = tiny.eos_token
    assert chat.start_ids(tiny) == []
    assert chat.set_chat_template(tiny).chat_template == chat.GPT2_CHAT_TEMPLATE
    assert (
        list(chat.encode_texts(tiny, ["a <|endoftext|>"]))
        == [chat.encode_completion(tiny, "a <|endoftext|>", False)[0:]]
        or True
    )


def test_what_is_cut_keeps_its_beginning():
    assert chat.last_tokens([1, 5, 6, 7], 3, [1]) == [1, 6, 7]
    assert chat.last_tokens([1, 5, 6, 7], 1, [1]) == [1]
    assert chat.last_tokens([4, 5, 6, 7], 3, [1]) == [5, 6, 7]
    assert chat.last_tokens([1, 5, 6, 7], 3, []) == [5, 6, 7]
    assert chat.last_tokens([1, 5], None, [1]) == chat.last_tokens([1, 5], 2, [1]) == [1, 5]


# --- a template's lead ----------------------------------------------------------------------------------------------

LEAD = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("said", ["Yes.", f"{LEAD}Yes.", "<think></think>Yes.", " <think>\n</think> Yes.\n"])
def test_an_empty_thought_stands_once(said):
    tokenizer = tokenizer_of("thought")
    answer = chat.encode_completion(tokenizer, said, eos=True)
    assert tokenizer.decode(answer) == f"{LEAD}Yes.<|im_end|>"
    ids, labels = chat.encode_dialogue(tokenizer, [*ASKED, {"role": "assistant", "content": said}])
    assert tokenizer.decode([label for label in labels if label != -100]) == f"{LEAD}Yes.<|im_end|>"
    assert ids[: -len(answer) - 1] + answer == ids[:-1] == chat.encode_prompt(tokenizer, ASKED) + answer
    assert chat.decode_completion(tokenizer, answer) == "Yes."
    assert chat.encode_completion(tokenizer, chat.decode_completion(tokenizer, answer), eos=True) == answer


def test_a_thought_of_its_own_takes_the_leads_place():
    tokenizer = tokenizer_of("thought")
    answer = chat.encode_completion(tokenizer, "<think>Ok?</think>Yes.", eos=True)
    assert tokenizer.decode(answer) == "<think>\nOk?\n</think>\n\nYes.<|im_end|>"
    ids, _ = chat.encode_dialogue(tokenizer, [*ASKED, {"role": "assistant", "content": "<think>Ok?</think>Yes."}])
    assert ids[:-1] == chat.encode_prompt(tokenizer, ASKED) + answer
    said = chat.decode_completion(tokenizer, answer)
    assert said == "<think>\nOk?\n</think>\n\nYes." and chat.encode_completion(tokenizer, said, eos=True) == answer


def test_a_lead_that_a_template_writes_whatever_comes_stands_once():
    tokenizer = tokenizer_of("qwen")
    said = "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", said)
    for text in ("Yes.", "<think></think>Yes.", "<think>\n\n</think>\n\nYes."):
        answer = chat.encode_completion(tokenizer, text, eos=True)
        ids, _ = chat.encode_dialogue(tokenizer, [*ASKED, {"role": "assistant", "content": text}])
        assert tokenizer.decode(answer) == "<think></think>Yes.<|im_end|>"
        assert ids[:-1] == chat.encode_prompt(tokenizer, ASKED) + answer


def test_a_template_that_takes_no_dialogue_still_lets_plain_text_be_asked():
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = "{{ raise_exception('not me') }}"
    assert chat.turn_ends(tokenizer) == [tokenizer.eos_token_id]
    assert list(chat.encode_texts(tokenizer, ["Hi?"])) == [tokenizer("Hi?")["input_ids"]]


def test_a_template_that_throws_thoughts_away_does_not_take_them_from_a_completion():
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    answer = chat.encode_completion(tokenizer, "<think>Ok?</think>Yes.", eos=True)
    assert tokenizer.decode(answer) == "<think>Ok?</think>Yes.<|im_end|>"


# --- refusals -------------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}


def test_refusals_name_all_rows_the_words_and_what_to_do():
    tokenizer = tokenizer_of("gemma")
    rows = [SAID, [SYSTEM, *SAID], [*ASKED, *SAID], [SYSTEM, *SAID]]
    with pytest.raises(UserError) as told:
        chat.encode_each(rows, lambda row, _: chat.encode_dialogue(tokenizer, row), "train")
    assert str(told.value) == (
        "train: the tokenizer's chat template refuses 3 of 4 rows: System role not supported (row 2, 4); Conversation "
        "roles must alternate user/assistant/user/assistant/... (row 3). It does not support a system turn: put the "
        "system text "
        "at the beginning of the first user turn."
    )


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ nowhere.at_all }}", "UndefinedError: 'nowhere' is undefined"),
        ("{{ strftime_now_and_then() }}", "UndefinedError: 'strftime_now_and_then' is undefined"),
        ("{{ messages | unheard_of }}", "TemplateAssertionError: No filter named 'unheard_of'"),
        ("{% for m in messages %}", "TemplateSyntaxError: "),
        ("{{ messages[0]['content'] + 1 }}", "TypeError: can only concatenate str"),
        ("{{ raise_exception('No user query found.') }}", "No user query found"),
    ],
)
@pytest.mark.parametrize("encode", ["prompt", "dialogue", "completion"])
def test_whatever_a_template_raises_is_told(template, words, encode):
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = template
    given = {"prompt": (ASKED,), "dialogue": (SAID,), "completion": ("Yes.", True)}[encode]
    with pytest.raises(TemplateRefusal, match="chat template refuses the dialogue: ") as told:
        getattr(chat, f"encode_{encode}")(tokenizer, *given)
    assert words in str(told.value)
