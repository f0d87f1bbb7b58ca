"""Rows as other projects write them: read as they are, which is said, and never with a column lost."""

import json

import pytest

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError

REWARD = ("ranked", "pairs", "thumbs")
SFT = ("demonstrations",)
PPO = ("prompts",)


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def loaded(tmp_path, rows, kinds, name="rows.json"):
    path, told = tmp_path / name, []
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    dataset, kind = load(str(path), kinds, tell=told.append)
    return list(dataset), kind, "\n".join(told)


# --- Alpaca ---------------------------------------------------------------------------------------------------------

ALPACA = [
    {"instruction": "Translate to French.", "input": "cat", "output": "chat"},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]


def test_alpaca_is_read_with_its_input(tmp_path):
    rows, kind, told = loaded(tmp_path, ALPACA, SFT)
    assert kind == "demonstrations"
    assert rows == [
        {"prompt": "Translate to French.\n\ncat", "completion": "chat"},
        {"prompt": "Say hello.", "completion": "Hello."},
    ]
    assert "2 of 2 rows read as Alpaca" in told and "not read" not in told


def test_alpacas_system_and_history_stand_before_the_prompt(tmp_path):
    row = {**ALPACA[0], "system": "Be brief.", "history": [["Hi", "Hello"]]}
    rows, _, _ = loaded(tmp_path, [row], SFT)
    expected = [{"role": "system", "content": "Be brief."}, user("Hi"), says("Hello")]
    assert rows[0]["messages"] == [*expected, user("Translate to French.\n\ncat"), says("chat")]


def test_dolly_is_read_with_its_context_and_the_rest_is_named(tmp_path):
    row = {"instruction": "Who?", "context": "Anna came.", "response": "Anna", "category": "closed_qa"}
    rows, _, told = loaded(tmp_path, [row], SFT)
    assert rows == [{"prompt": "Who?\n\nAnna came.", "completion": "Anna"}]
    assert "not read, as demonstrations have no such columns: `category`" in told


def test_an_instruction_alone_in_the_input_is_the_prompt(tmp_path):
    rows, _, _ = loaded(tmp_path, [{"instruction": "", "input": "2 + 2?", "output": "4"}], SFT)
    assert rows == [{"prompt": "2 + 2?", "completion": "4"}]


@pytest.mark.parametrize("row", [{"chosen": "chat", "rejected": "chien"}, {"output": ["chat", "chien"]}])
def test_alpaca_preferences_are_pairs_with_their_input(tmp_path, row):
    rows, kind, _ = loaded(
        tmp_path, [{"instruction": "Translate.", "input": "cat", "system": "Be brief.", **row}], REWARD
    )
    assert kind == "pairs"
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, user("Translate.\n\ncat")]
    assert rows[0]["completions"] == ["chat", "chien"] and rows[0]["ranks"] == [1, 2]


@pytest.mark.parametrize("tag", ["kto_tag", "label"])
def test_alpaca_with_a_verdict_is_thumbs(tmp_path, tag):
    rows, kind, told = loaded(tmp_path, [{**ALPACA[0], tag: True}, {**ALPACA[1], tag: False}], REWARD)
    assert kind == "thumbs" and [row["label"] for row in rows] == [True, False] and "not read" not in told
    assert rows[0]["prompt"] == "Translate to French.\n\ncat"


def test_alpaca_as_prompts_keeps_every_column_for_the_reward_functions(tmp_path):
    rows, kind, _ = loaded(tmp_path, ALPACA, PPO)
    assert kind == "prompts"
    assert rows[0] == {"prompt": "Translate to French.\n\ncat", **ALPACA[0]}


# --- ShareGPT -------------------------------------------------------------------------------------------------------


def turns(*pairs):
    return [{"from": said, "value": text} for said, text in pairs]


@pytest.mark.parametrize("asks, answers", [("human", "gpt"), ("user", "assistant"), ("human", "chatgpt")])
def test_sharegpt_is_read_as_messages(tmp_path, asks, answers):
    talk = turns(("system", "Be brief."), (asks, "Hi"), (answers, "Hello"), (asks, "Bye"), (answers, "Bye."))
    rows, _, told = loaded(tmp_path, [{"id": "x1", "conversations": talk}], SFT)
    expected = [user("Hi"), says("Hello"), user("Bye"), says("Bye.")]
    assert rows[0]["messages"] == [{"role": "system", "content": "Be brief."}, *expected]
    assert "1 of 1 rows read as ShareGPT" in told and "`id`" in told


@pytest.mark.parametrize("column", ["conversations", "conversation"])
def test_conversations_of_role_and_content_are_messages_too(tmp_path, column):
    rows, _, _ = loaded(tmp_path, [{column: [user("Hi"), says("Hello")], "system": "Be brief."}], SFT)
    assert [turn["content"] for turn in rows[0]["messages"]] == ["Be brief.", "Hi", "Hello"]


def test_sharegpts_calls_weights_and_results_are_kept(tmp_path):
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    talk = [*turns(("human", "1 + 1?")), call, *turns(("observation", "2"), ("gpt", "2"))]
    rows, _, _ = loaded(tmp_path, [{"conversations": [*talk[:-1], {**talk[-1], "weight": 1}]}], SFT)
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant", "tool", "assistant"]
    (function,) = rows[0]["messages"][1]["tool_calls"]
    assert function["function"] == {"name": "add", "arguments": {"a": 1}} and rows[0]["messages"][3]["weight"] == 1


def test_sharegpt_preferences_are_pairs(tmp_path):
    (chosen,), (rejected,) = turns(("gpt", "Hello")), turns(("gpt", "Go away"))
    asked = turns(("human", "Hi"))
    rows, kind, _ = loaded(tmp_path, [{"conversations": asked, "chosen": chosen, "rejected": rejected}], REWARD)
    assert kind == "pairs" and rows[0]["prompt"] == [user("Hi")] and rows[0]["completions"] == ["Hello", "Go away"]


@pytest.mark.parametrize(
    "talk, fault",
    [
        (turns(("narrator", "Once"), ("gpt", "Hello")), "unknown role 'narrator'"),
        (turns(("gpt", "Hello")), "begins with a turn of the assistant"),
        (turns(("human", "Hi"), ("gpt", None)), "`content` is nothing"),
        ([3], "turn 1: found the number 3"),
        ([], "empty list"),
    ],
)
def test_what_is_wrong_in_sharegpt_is_told_with_its_row(tmp_path, talk, fault):
    good = {"conversations": turns(("human", "Hi"), ("gpt", "Hello"))}
    with pytest.raises(UserError, match="row 2: ") as error:
        loaded(tmp_path, [good, {"conversations": talk}], SFT)
    assert fault in str(error.value)


# --- transcripts ----------------------------------------------------------------------------------------------------

ASKED = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
TURNS = [user("Hi"), says("Hello"), user("Bye")]


def test_hh_dialogues_as_text_are_pairs(tmp_path):
    rows, kind, told = loaded(tmp_path, [{"chosen": f"{ASKED} Bye.", "rejected": f"{ASKED} No."}], REWARD)
    assert kind == "pairs" and rows[0]["prompt"] == TURNS and rows[0]["completions"] == ["Bye.", "No."]
    assert "read as transcripts" in told


def test_hh_dialogues_that_differ_before_their_last_turn_are_told(tmp_path):
    other = ASKED.replace("Hello", "What?")
    with pytest.raises(UserError, match="row 1: there is no `prompt`, and `chosen` and `rejected` are not dialogues"):
        loaded(tmp_path, [{"chosen": f"{ASKED} Bye.", "rejected": f"{other} No."}], REWARD)


def test_a_transcript_as_the_prompt_is_turns(tmp_path):
    rows, _, _ = loaded(tmp_path, [{"prompt": ASKED, "chosen": "Bye.", "rejected": "No."}], REWARD)
    assert rows[0]["prompt"] == TURNS
    rows, _, _ = loaded(tmp_path, [{"prompt": ASKED, "source": "hh"}], PPO)
    assert rows == [{"prompt": TURNS, "source": "hh"}]
    rows, _, _ = loaded(tmp_path, [{"text": f"{ASKED} Bye."}], SFT)
    assert rows == [{"messages": [*TURNS, says("Bye.")]}]


def test_a_prompt_that_only_speaks_of_humans_stays_text(tmp_path):
    for prompt in ("Human: Hi\n\nAssistant:", "Human: Hi", "Who is Human: a man?\n\nAssistant:", "\n\nHuman: Hi"):
        rows, _, told = loaded(tmp_path, [{"prompt": prompt}], PPO)
        assert rows == [{"prompt": prompt}] and not told


# --- ranked answers and battles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [int, float])
def test_nectars_answers_are_ranked(tmp_path, kind):
    answers = [
        {"answer": text, "rank": kind(rank), "model": "m"} for text, rank in (("ok", 2), ("good", 1), ("bad", 3))
    ]
    rows, found, told = loaded(tmp_path, [{"prompt": ASKED, "answers": answers, "turns": 1}], REWARD)
    assert found == "ranked"
    assert rows == [{"prompt": TURNS, "completions": ["ok", "good", "bad"], "ranks": [2, 1, 3]}]
    assert "read as Nectar" in told and "`turns`" in told


def test_nectars_answers_without_a_rank_are_a_fault(tmp_path):
    row = {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}
    with pytest.raises(UserError, match="row 1: `ranks` holds nothing"):
        loaded(tmp_path, [row], REWARD)


BATTLE = {"conversation_a": [user("Hi"), says("Hello")], "conversation_b": [user("Hi"), says("Go away")]}


@pytest.mark.parametrize(
    "winner, ranks", [("model_a", [1, 2]), ("model_b", [2, 1]), ("tie", [1, 1]), ("tie (bothbad)", [1, 1])]
)
def test_arena_battles_are_ranked_by_the_winner(tmp_path, winner, ranks):
    rows, kind, told = loaded(tmp_path, [{**BATTLE, "winner": winner, "model_a": "x", "model_b": "y"}], REWARD)
    assert kind == "ranked"
    assert rows == [{"prompt": [user("Hi")], "completions": ["Hello", "Go away"], "ranks": ranks}]
    assert "read as arena battles" in told and "`model_a`" in told


@pytest.mark.parametrize("listed", [False, True])
def test_arena_battles_of_two_texts_are_ranked_by_the_marks(tmp_path, listed):
    texts = {"prompt": "Hi", "response_a": "Hello", "response_b": "Go away"}
    texts = {name: json.dumps([text]) if listed else text for name, text in texts.items()}
    marks = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    rows, _, _ = loaded(tmp_path, [{"id": 7, **texts, **marks}], REWARD)
    assert rows == [{"prompt": [user("Hi")], "completions": ["Hello", "Go away"], "ranks": [2, 1]}]


def test_a_battle_of_dialogues_that_differ_before_is_told(tmp_path):
    longer = {name: [*talk, user("Bye"), says(name)] for name, talk in BATTLE.items()}
    with pytest.raises(
        UserError, match="row 1: `completions`, answer 2 has 4 turns that do not begin with the prompt"
    ):
        loaded(tmp_path, [{**longer, "winner": "model_a"}], REWARD)


def test_a_battle_of_no_verdict_is_no_battle(tmp_path):
    with pytest.raises(UserError, match="the columns are `conversation_a`, `conversation_b`, `winner`"):
        loaded(tmp_path, [{**BATTLE, "winner": "nobody"}], REWARD)


# --- prompts.txt ----------------------------------------------------------------------------------------------------


def test_a_text_file_of_prompts_is_a_prompt_a_line(tmp_path):
    rows, kind, _ = loaded(tmp_path, "Who?\r\n\n  Where to? \nWhat is = this = ?\n", PPO, "prompts.txt")
    assert kind == "prompts" and [row["prompt"] for row in rows] == ["Who?", "  Where to? ", "What is = this = ?"]
    with pytest.raises(UserError, match="plain text, but this stage takes"):
        loaded(tmp_path, "Who?\n", SFT, "prompts.txt")


# --- several in one file --------------------------------------------------------------------------------------------


def test_rows_of_several_shapes_are_each_read_and_counted(tmp_path):
    ours = {"messages": [user("Hi"), says("Hello")]}
    rows, _, told = loaded(tmp_path, [ours, ALPACA[0], {"conversations": turns(("human", "Hi"), ("gpt", "Yes"))}], SFT)
    assert [row["messages"][-1]["content"] for row in rows] == ["Hello", "chat", "Yes"]
    assert "1 of 3 rows read as Alpaca" in told and "1 of 3 rows read as ShareGPT" in told


@pytest.mark.parametrize("value", [None, 3, True, "", [], [None], {}, {"a": 1}, "text", [[]]])
@pytest.mark.parametrize("kinds", [SFT, REWARD, PPO])
def test_broken_values_never_end_in_a_traceback(tmp_path, value, kinds):
    shapes = [
        {**ALPACA[0], "system": "x", "history": [["a", "b"]], "kto_tag": True, "chosen": "a", "rejected": "b"},
        {"conversations": turns(("human", "Hi"), ("gpt", "Hello")), "chosen": turns(("gpt", "a"))[0], "rejected": "b"},
        {"prompt": ASKED, "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        {**BATTLE, "winner": "model_a"},
        {
            "prompt": "a",
            "response_a": "b",
            "response_b": "c",
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        {"chosen": f"{ASKED} a", "rejected": f"{ASKED} b"},
    ]
    for shape in shapes:
        for name in shape:
            try:
                loaded(tmp_path, [{**shape, name: value}], kinds)
            except UserError as error:
                assert str(error)


def test_the_advice_loses_no_column(tmp_path):
    row = {"question": "Who?", "context": "Anna came.", "answer": "Anna", "system_prompt": "Be brief."}
    with pytest.raises(UserError) as error:
        loaded(tmp_path, [row], SFT)
    advice = "Rename `question` to `prompt` and `answer` to `completion` and `system_prompt` to `system`."
    assert str(error.value).endswith(f"{advice} Put `context` into the prompt.")
    renamed = {"prompt": "Who?", "context": "Anna came.", "completion": "Anna", "system": "Be brief."}
    with pytest.raises(UserError, match="`context` is not read"):  # who follows half of it
        loaded(tmp_path, [renamed], SFT)
