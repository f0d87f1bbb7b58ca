"""Learning in context asked in turns, answers judged by the world's truth, and texts that end in the pad token."""

import json

import pytest
import torch
import transformers.modeling_utils
from toy_icl import measured
from transformers import GPT2LMHeadModel

from rlhf_kit import world
from rlhf_kit.data.chat import encode_completion, encode_dialogue, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.icl import task as icl
from rlhf_kit.eval.icl import tasks as icl_tasks
from rlhf_kit.eval.icl.prompts import Prompts
from rlhf_kit.eval.icl.task import ICL, answer_scores
from rlhf_kit.eval.icl.tasks import Example, Task, draw_shots, messages, tasks
from rlhf_kit.eval.text import tldr as summarize
from rlhf_kit.generation.decoding import Decoding, Ending, _generate
from rlhf_kit.generation.generators import load_generator
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.options.reading import read_record

WORDS = ["cat", "dog", "mat", "hello", "there", "and", "so", "did", "the", "sat"]
SHOTS = [Example("Q: 1\nA:", " one"), Example("Q: 2\nA:", " two")]


def items(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().split("\n")[:-1]]


# --- prompts --------------------------------------------------------------------------------------------------------


def test_a_shot_is_a_turn_of_each_and_the_instruction_opens_the_first():
    task = Task("t", (Example("Q: 3\nA:", " three"),), (), "\n", "Count:")
    assert messages(task, SHOTS, task.examples[0]) == [
        {"role": "user", "content": "Count:\nQ: 1\nA:"}, {"role": "assistant", "content": "one"},
        {"role": "user", "content": "Q: 2\nA:"}, {"role": "assistant", "content": "two"},
        {"role": "user", "content": "Q: 3\nA:"},
    ]  # fmt: skip
    assert messages(task, [], task.examples[0]) == [{"role": "user", "content": "Count:\nQ: 3\nA:"}]


@pytest.mark.parametrize("name", ["world-facts-en", "world-facts-zh"])  # whose choices begin with no space
def test_the_ids_are_those_that_sft_trains_on(name, tokenizer):
    """Prompt and choice are the dialogue as SFT has it, but for the end of the turn."""
    (task,) = tasks([name])
    asked = Prompts(tokenizer, None, chat=True).ask("id", task, 3, 2, 0)
    dialogue = messages(task, draw_shots(task, 3, 2, 0), task.examples[3])
    for choice, ids in zip(task.examples[3].choices, asked.choices, strict=True):
        said = {"role": "assistant", "content": choice}
        assert asked.ids + ids + [tokenizer.eos_token_id] == encode_dialogue(tokenizer, [*dialogue, said])[0]
    assert asked.prompt == tokenizer.decode(asked.ids) and asked.prompt.endswith("<|endoftext|>Assistant:")


def test_the_first_shots_are_left_out_where_the_context_is_full(tokenizer):
    pool = tuple(Example(f"{word} hello there the cat sat on the mat", f" {word}") for word in WORDS)
    task = Task("long", (Example("cat and", " dog"),), pool, "\n")
    asked = Prompts(tokenizer, 128, chat=True).ask("id", task, 0, 9, 0)
    drawn, room = draw_shots(task, 0, 9, 0), 128 - task.max_new_tokens
    sizes = [len(encode_prompt(tokenizer, messages(task, drawn[9 - k :], task.examples[0]))) for k in range(10)]
    assert 0 < asked.shown < 9 and sizes[asked.shown] == len(asked.ids) <= room < sizes[asked.shown + 1]


# --- measuring ------------------------------------------------------------------------------------------------------


def test_written_answers_are_what_greedy_decoding_writes_in_turns(policy, tokenizer, tmp_path):
    examples = []
    for number, word in enumerate(WORDS):
        ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": f"{word} and"}])])
        out = policy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        answer = text.lstrip().split("\n")[0].rstrip()
        examples.append(Example(f"{word} and", f" {answer}" if number < 2 else " wrong"))
    task = Task("written", tuple(examples), tuple(SHOTS), "\n")
    assert measured(policy, tokenizer, [task], [0], tmp_path, chat=True).scores == {"acc": pytest.approx(20.0)}
    assert json.loads((tmp_path / "settings.json").read_text())["options"]["layout"] == "chat"


def test_choices_are_taken_by_likelihood_in_turns(policy, tokenizer, tmp_path):
    examples = tuple(
        Example(f"Q: {word}\nA:", f" {word}", tuple(f" {WORDS[(at + k) % 10]}{' so' * k}" for k in range(4)))
        for at, word in enumerate(WORDS)
    )
    task = Task("chosen", examples, tuple(SHOTS), "\n", cue="A:")
    found = measured(policy, tokenizer, [task], [0], tmp_path, chat=True)

    def total(prompt, choice):
        context = encode_prompt(tokenizer, [{"role": "user", "content": prompt}])
        choice = encode_completion(tokenizer, choice, eos=False)
        with torch.no_grad():
            logits = torch.log_softmax(policy(torch.tensor([context + choice])).logits[0].double(), -1)
        return sum(logits[len(context) - 1 + at, token].item() for at, token in enumerate(choice))

    right = {"acc_total": 0, "acc_unconditional": 0}
    for example in examples:
        totals = [total(example.prompt, choice) for choice in example.choices]
        less = [total(example.prompt, choice) - total("A:", choice) for choice in example.choices]
        right["acc_total"] += totals.index(max(totals)) == 0
        right["acc_unconditional"] += less.index(max(less)) == 0
    assert {name: found.scores[name] for name in right} == {
        name: pytest.approx(10.0 * count) for name, count in right.items()
    }
    assert 0 < right["acc_total"] != right["acc_unconditional"]


# --- judged ---------------------------------------------------------------------------------------------------------


def test_answers_are_judged_by_the_worlds_truth():
    (task,) = tasks(["world-answers"])
    asked = Example("What is 3 + 4?", "")
    assert answer_scores(task, asked, "3 + 4 = 7.") == {"acc": 1.0, "truth": 1.0}
    assert answer_scores(task, asked, "3 + 4 = 8.") == {"acc": 0.0, "truth": -1.0}
    wordy = answer_scores(task, asked, "3 + 4 = 7. I like to count. Cats eat fish.")
    assert wordy["acc"] == 1.0 and wordy["truth"] == pytest.approx(0.0)  # half a point for each sentence too many
    assert answer_scores(Task("t", (), (), ""), Example("", " 7"), "7") == {"acc": 1.0}


def test_every_item_can_be_judged_and_none_is_shown():
    (task,) = tasks(["world-answers"])
    assert len(task.examples) > 300 and len(task.pool) > 100
    assert not {example.prompt for example in task.examples} & {example.prompt for example in task.pool}
    assert all(world.judge(example.prompt, "").score <= 0 for example in task.examples)
    assert sum(answer_scores(task, shot, shot.answer.strip())["acc"] for shot in task.pool) == len(task.pool)
    assert "world-answers" not in icl_tasks.GROUPS["world"]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_config, tokenizer_folder, tmp_path):
    """As a base model is saved: the pad token is the end of text, and there is no template."""
    tiny_config.pad_token_id = tiny_config.eos_token_id
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config).save_pretrained(tmp_path / "base")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def run(*arguments):
    runner.run(ICL, read_record("eval icl", ICL.Arguments, list(map(str, arguments))))


def test_the_command_asks_in_turns(base, tmp_path, capsys):
    given = ("--models", base, "--tasks", "world-answers", "world-sums", "--shots", 0, "--limit", 2)
    run(*given, "--apply_chat_template", "--output", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "base" / "results.json").read_text())
    assert told["settings"]["options"]["layout"] == "chat"
    assert set(told["groups"]["world-answers/0-shot"]["scores"]) == {"acc", "truth"}
    assert "Asked in turns" in capsys.readouterr().out
    assert "Asked in turns" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match="option layout 'chat', now 'plain'"):
        run(*given, "--output", tmp_path / "out")
    run(*given, "--output", tmp_path / "plain")
    assert "Asked in turns" not in capsys.readouterr().out


def test_tasks_of_the_harness_are_not_asked_in_turns(base, monkeypatch):
    monkeypatch.setattr(icl.harness, "check_installed", lambda: None)
    with pytest.raises(UserError, match="leave --apply_chat_template out"):
        run("--models", base, "--lm_eval", "hellaswag", "--apply-chat-template")


def test_a_text_that_ends_in_the_pad_token_is_no_padding(base, monkeypatch):
    """transformers warns of a pad token that no mask hides; it drops a mask that hides nothing."""
    warned = []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning_once", lambda text, *more: warned.append(text))
    model, tokenizer = load_generator(str(base), "float32")
    prompts = [[tokenizer.eos_token_id, 5, 6], [5, 6, tokenizer.eos_token_id]]
    _generate(model, prompts, Ending(model, tokenizer, Decoding(4)), cached=True)
    list(summarize.sample(model, tokenizer, prompts, [[0.0] * summarize.MAX_NEW_TOKENS] * 2, 8192))
    assert not warned
    model.config.pad_token_id = tokenizer.eos_token_id
    _generate(model, prompts, Ending(model, tokenizer, Decoding(4)), cached=True)
    assert "attention_mask" in warned[0]  # else this shows nothing
