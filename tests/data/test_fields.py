"""What turns hold beside role and content, and columns beside a dialogue: honoured, refused or named."""

import json
import logging
from collections import Counter

import pytest
from datasets import Dataset
from families import CHATML, tokenizer_of

from rlhf_kit.data import templates
from rlhf_kit.data.chat import encode_completion, encode_dialogue, encode_prompt, set_chat_template
from rlhf_kit.data.loading import load
from rlhf_kit.data.messages import messages_faults
from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.data.templates import unread
from rlhf_kit.data.unread import notices, refused_columns
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.reward.data import encode_comparisons
from rlhf_kit.sft import encode_demonstrations

USER = {"role": "user", "content": "Hi"}
SAYS = {"role": "assistant", "content": "Hello"}
WRONG = {"role": "assistant", "content": "Go away"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
RESULT = {"role": "tool", "content": "3"}
# ChatML as Qwen has it: tools in front, thoughts and calls in the turn, results as turns of their own.
AGENT = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}",
)


def agent():
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = AGENT
    return tokenizer


def loaded(tmp_path, rows, kind="demonstrations", tell=None):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(str(path), [kind], **({"tell": tell} if tell else {}))[0]


def learnt(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != -100])


# --- weight ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, 0.0, False])
@pytest.mark.parametrize("family", ["gpt2", "qwen", "llama3", "marked", "thought"])
def test_a_turn_of_weight_0_is_not_learnt(tmp_path, family, field, value):
    if family == "gpt2":
        tokenizer = set_chat_template(tokenizer_of("plain", template=False))
    elif family == "marked":
        tokenizer = tokenizer_of("qwen")
        tokenizer.chat_template = MARKED
    else:
        tokenizer = tokenizer_of(family)
    rows = loaded(tmp_path, [{"messages": [USER, {**WRONG, field: value}, USER, {**SAYS, field: 1}]}])
    encoded, _ = encode_demonstrations(rows, tokenizer, None)
    text = learnt(tokenizer, encoded[0]["labels"])
    assert "Hello" in text and "Go away" not in text
    assert "Go away" in tokenizer.decode(encoded[0]["input_ids"])


def test_a_turn_of_weight_0_is_not_learnt_from_python_either():
    rows = Dataset.from_list([{"messages": [USER, {**WRONG, "weight": 0}, USER, SAYS]}, {"messages": [USER, SAYS]}])
    tokenizer = tokenizer_of("qwen")
    encoded, _ = encode_demonstrations(rows, tokenizer, None)
    assert "Go away" not in learnt(tokenizer, encoded[0]["labels"]) and "Hello" in learnt(
        tokenizer, encoded[1]["labels"]
    )


@pytest.mark.parametrize("value", [0.5, 2, "0", -1])
def test_a_weight_between_is_refused(value):
    (fault,) = messages_faults("`messages`", [USER, {**SAYS, "weight": value}])
    assert "`weight`" in fault and "1 (the turn is learnt) or 0" in fault


def test_a_dialogue_with_nothing_to_learn_is_a_fault(tmp_path):
    with pytest.raises(UserError, match="excludes every assistant turn from training"):
        loaded(tmp_path, [{"messages": [USER, {**SAYS, "weight": 0}]}])


def test_answers_inside_a_prompt_are_not_learnt_those_of_a_history_are(tmp_path):
    tokenizer = tokenizer_of("qwen")
    asked = {"prompt": [USER, WRONG, USER], "completion": "Hello"}
    told = {"prompt": "Hi", "completion": "Hello", "history": [["Hi", "Go away"]]}
    rows = loaded(tmp_path, [asked, told])
    encoded, _ = encode_demonstrations(rows, tokenizer, None)
    assert encoded[0]["input_ids"] == encoded[1]["input_ids"]
    assert ["Go away" in learnt(tokenizer, row["labels"]) for row in encoded] == [False, True]


# --- system and history ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen", "llama3", "gpt2"])
def test_a_system_column_is_the_first_turn(tmp_path, family):
    tokenizer = set_chat_template(tokenizer_of("plain" if family == "gpt2" else family, template=family != "gpt2"))
    system = {"role": "system", "content": "Be kind."}
    beside = [{"messages": [USER, SAYS], "system": "Be kind."}, {"prompt": "Hi", "completion": "Hello", "system": ""}]
    within = [{"messages": [system, USER, SAYS]}, {"messages": [USER, SAYS]}]
    encoded = [encode_demonstrations(loaded(tmp_path, rows), tokenizer, None)[0][:] for rows in (beside, within)]
    assert encoded[0] == encoded[1]


ROWS = {
    "ranked": {"completions": ["a", "b"], "ranks": [1, 2]},
    "pairs": {"chosen": "a", "rejected": "b"},
    "thumbs": {"completion": "a", "label": True},
    "prompts": {},
}


@pytest.mark.parametrize("kind", ROWS)
def test_system_and_history_stand_before_every_prompt(tmp_path, kind):
    row = {"prompt": "And you?", "system": "Be kind.", "history": [["Hi", "Hello"]], **ROWS[kind]}
    (prompt,) = loaded(tmp_path, [row], kind)["prompt"]
    assert [turn["role"] for turn in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[0]["content"] == "Be kind." and prompt[-1]["content"] == "And you?"


def test_a_system_text_that_stands_there_already_is_not_doubled(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    (row,) = loaded(tmp_path, [{"messages": [system, USER, SAYS], "system": "Be kind. "}])
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    with pytest.raises(UserError, match="are two; keep one"):
        loaded(tmp_path, [{"messages": [system, USER, SAYS], "system": "Be rude."}])


@pytest.mark.parametrize("history", [3, [["a"]], [["a", 1]], "a"])
def test_a_history_of_another_shape_is_refused(tmp_path, history):
    with pytest.raises(UserError, match="`history`"):
        loaded(tmp_path, [{"prompt": "Hi", "completion": "Hello", "history": history}])


@pytest.mark.parametrize("column", ["system_prompt", "system_message"])
def test_a_system_column_by_another_name_is_told_to_be_renamed(column):
    (told,) = refused_columns([{"messages": [USER, SAYS], column: "Be kind."}], "demonstrations")
    assert f"`{column}`" in told and "rename it to `system`" in told


# --- tools and calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_calls_and_results_reach_the_template(tmp_path, arguments, tools):
    tokenizer = agent()
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": arguments}}],
    }
    (row,) = loaded(tmp_path, [{"messages": [USER, call, RESULT, SAYS], "tools": tools}])
    ids, labels = encode_dialogue(tokenizer, row["messages"], row["tools"])
    text = tokenizer.apply_chat_template([USER, CALL, RESULT, SAYS], tools=TOOLS, tokenize=False)
    assert tokenizer.decode(ids) == text and '"arguments": {"a": 1}' in text
    said = learnt(tokenizer, labels)
    assert "<call>" in said and "Hello" in said and "3" not in said


def test_a_template_that_does_not_write_calls_or_tools_refuses_them(tmp_path):
    plain = tokenizer_of("qwen")
    rows = loaded(tmp_path, [{"messages": [USER, SAYS]}, {"messages": [USER, {**SAYS, **CALL}, RESULT, SAYS]}])
    with pytest.raises(UserError, match=r"does not write `tool_calls` \(row 2\)"):
        encode_demonstrations(rows, plain, None)
    rows = loaded(tmp_path, [{"messages": [USER, SAYS], "tools": TOOLS}])
    with pytest.raises(UserError, match="does not write `tools`"):
        encode_demonstrations(rows, plain, None)
    with pytest.raises(TemplateRefusal, match="role 'tool'"):
        encode_dialogue(set_chat_template(tokenizer_of("plain", template=False)), [USER, SAYS, RESULT, SAYS])


def test_calls_in_a_prompt_reach_the_template_or_are_refused(tmp_path):
    prompt = [USER, {**CALL, "content": "I add."}, RESULT]
    (row,) = loaded(tmp_path, [{"prompt": prompt, "chosen": "a", "rejected": "b"}], "pairs")
    tokenizer = agent()
    ids = encode_prompt(tokenizer, row["prompt"])
    expected = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == expected and "<call>" in expected
    for plain in (tokenizer_of("qwen"), set_chat_template(tokenizer_of("plain", template=False))):
        with pytest.raises(TemplateRefusal, match="does not write `tool_calls`"):
            encode_prompt(plain, row["prompt"])


def test_a_template_that_leaves_out_a_turn_refuses_it():
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] in ('user', 'assistant') %}"
    )
    with pytest.raises(TemplateRefusal, match="leaves out turns of the role 'system'"):
        encode_dialogue(tokenizer, [{"role": "system", "content": "Be kind."}, USER, SAYS])
    with pytest.raises(TemplateRefusal, match="leaves out turns of the role 'system'"):
        encode_prompt(tokenizer, [{"role": "system", "content": "Be kind."}, USER])


@pytest.mark.parametrize("template", ["x", "{% for m in messages %}{{ m['role'] }}\n{% endfor %}", "{{ eos_token }}"])
def test_a_template_that_writes_no_content_refuses_all(template):
    tokenizer = tokenizer_of("plain", template=False)
    tokenizer.chat_template = template
    with pytest.raises(TemplateRefusal, match="leaves out turns of the role 'user'. Give another chat template"):
        encode_prompt(tokenizer, [USER])
    with pytest.raises(TemplateRefusal, match="leaves out turns of the role 'user'|does not render the assistant"):
        encode_dialogue(tokenizer, [USER, SAYS])
    with pytest.raises(TemplateRefusal, match="does not render the assistant.s text"):
        encode_completion(tokenizer, "Hi", eos=True)


@pytest.mark.parametrize("field", ["tool_calls", "function_call"])
def test_answers_of_comparisons_are_text(tmp_path, field):
    call = [{"name": "add"}] if field == "tool_calls" else {"name": "add"}
    row = {"prompt": "Hi", "chosen": [{**SAYS, field: call}], "rejected": [WRONG]}
    with pytest.raises(UserError, match="an answer is text"):
        loaded(tmp_path, [row], "pairs")
    row["chosen"] = [{**SAYS, "weight": 0}]
    with pytest.raises(UserError, match="every answer counts"):
        loaded(tmp_path, [row], "pairs")


# --- thoughts and names ---------------------------------------------------------------------------------------------


def test_a_thought_is_learnt_where_the_template_writes_it(tmp_path, caplog):
    rows = loaded(tmp_path, [{"messages": [USER, {**SAYS, "reasoning_content": "hm"}]}, {"messages": [USER, SAYS]}])
    tokenizer = agent()
    with caplog.at_level(logging.WARNING):
        encoded, _ = encode_demonstrations(rows, tokenizer, None)
    assert "<think>hm</think>Hello" in learnt(tokenizer, encoded[0]["labels"]) and not caplog.records
    with caplog.at_level(logging.WARNING):
        encode_demonstrations(rows, tokenizer_of("qwen"), None, "train")
    assert (
        "train: not read, as the chat template does not render them: `reasoning_content` (in 1 of 2 rows)"
        in caplog.text
    )


@pytest.mark.parametrize("field", ["name", "thinking", "id"])
def test_a_field_that_the_template_does_not_write_is_named(field):
    assert unread(tokenizer_of("qwen"), [USER, {**SAYS, field: "x", "weight": 1}]) == [field]
    assert unread(set_chat_template(tokenizer_of("plain", template=False)), [USER, {**SAYS, field: "x"}]) == [field]


@pytest.mark.parametrize("kind", ["pairs", "prompts"])
def test_fields_of_prompts_are_named_where_they_are_encoded(tmp_path, caplog, kind):
    named = {"prompt": [{**USER, "name": "Anna"}], **ROWS[kind]}
    rows, tokenizer = loaded(tmp_path, [named, {"prompt": "Hi", **ROWS[kind]}], kind), tokenizer_of("qwen")
    with caplog.at_level(logging.WARNING):
        if kind == "pairs":
            encode_comparisons(rows, tokenizer, None, name="train")
        else:
            encode_prompts(rows, tokenizer, 8, None, name="train")
    assert "train: not read, as the chat template does not render them: `name` (in 1 of 2 rows)" in caplog.text


@pytest.mark.parametrize("counts", [None, Counter()], ids=["refusal", "refusal and notice"])
def test_a_dialogue_with_calls_is_asked_once_for_what_its_template_writes(counts, monkeypatch):
    asked = []
    monkeypatch.setattr(templates, "unread", lambda *given: asked.append(given) or unread(*given))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "id": "x"}
    encode_dialogue(agent(), [USER, call, RESULT, SAYS], unread=counts)
    encode_prompt(agent(), [USER, call, RESULT], counts)
    assert len(asked) == 2 and counts in (None, {"id": 2})


def test_a_field_of_a_dialogue_that_is_cut_counts_once(caplog):
    rows = [{"messages": [USER, {**SAYS, "id": "x"}, USER, SAYS, USER, SAYS]}]
    tokenizer = tokenizer_of("qwen")
    first, _ = encode_demonstrations([{"messages": [USER, SAYS]}], tokenizer, None)
    with caplog.at_level(logging.WARNING):
        _, counts = encode_demonstrations(rows, tokenizer, len(first[0]["input_ids"]), "train")
    assert counts["cut"] == 1 and "`id` (in 1 of 1 rows)" in caplog.text


def test_fields_of_answers_that_are_compared_are_named(tmp_path):
    answers = [[{"role": "assistant", "content": text, "reasoning_content": "hm"}] for text in ("yes", "no")]
    rows = [{"prompt": "Hi", "completions": answers, "ranks": [1, 2]}, {"prompt": "Hi", "completions": ["a", "b"]}]
    (told,) = notices(rows, "ranked")
    assert told == "not read, as answers are text: `reasoning_content` (in 1 of 2 rows)"


# --- templates that write an answer otherwise once others follow ----------------------------------------------------


def test_a_dialogue_under_a_thought_template_is_one_row_an_answer(tmp_path, caplog):
    """Each answer is learnt behind exactly what the policy sees when it is asked for it."""
    tokenizer = tokenizer_of("thought")
    turns = [USER, WRONG, {"role": "user", "content": "Why?"}, SAYS]
    encoded, counts = encode_demonstrations(loaded(tmp_path, [{"messages": turns}]), tokenizer, None)
    assert len(encoded) == 2 and counts == {"rows": 1, "kept": 1, "cut": 0, "dropped": 0}
    for row, asked, said in zip(encoded, (turns[:1], turns[:3]), ("Go away", "Hello"), strict=True):
        prompt, answer = encode_prompt(tokenizer, asked), encode_completion(tokenizer, said, eos=True)
        assert row["input_ids"][: len(prompt + answer)] == prompt + answer
        assert [label for label in row["labels"] if label != -100] == answer
    assert "each answer is a row of its own: 2 of 1 demonstrations" in caplog.text
    _, counts = encode_demonstrations(loaded(tmp_path, [{"messages": turns}]), tokenizer, len(encoded[0]["input_ids"]))
    assert counts["cut"] == 1


# --- objects of different keys, which tables fill up with nulls -----------------------------------------------------


@pytest.mark.parametrize("source", ["jsonl", "parquet", "saved", "python"])
def test_calls_of_different_arguments_keep_their_own(tmp_path, source):
    calls = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": a}}]}
        for a in ({"a": 1}, {"b": 2})
    ]
    rows = [{"messages": [USER, call, RESULT, SAYS], "tools": TOOLS} for call in calls]
    if source == "jsonl":
        dataset = loaded(tmp_path, rows)
    elif source == "parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        dataset = load(str(tmp_path / "rows.parquet"), ["demonstrations"])[0]
    elif source == "saved":
        Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
        dataset = load(str(tmp_path / "saved"), ["demonstrations"])[0]
    else:
        dataset = Dataset.from_list(rows)
    tokenizer = agent()
    encoded, _ = encode_demonstrations(dataset, tokenizer, None)
    texts = [tokenizer.decode(row["input_ids"]) for row in encoded]
    assert ['"arguments": {"a": 1}' in text for text in texts] == [True, False]
    assert ['"arguments": {"b": 2}' in text for text in texts] == [False, True]


@pytest.mark.parametrize("value", [True, 3, None, [3], [None], {"a": 1}])
@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_column_beside_broken_dialogues_is_told_with_their_faults(tmp_path, name, value):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "tools": TOOLS, name: value}
    with pytest.raises(UserError, match="nothing was loaded"):
        loaded(tmp_path, [row], "pairs")
