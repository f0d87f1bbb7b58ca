"""CoQA asked in turns: the ids that SFT trains on, sharing as exact as in plain text, other templates, the command."""

import json
from dataclasses import replace

import pytest
import torch
from by_generate import alone
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.cli import main
from rlhf_kit.data.chat import GPT2_CHAT_TEMPLATE, encode_dialogue
from rlhf_kit.data.coqa import read_stories, stories
from rlhf_kit.errors import UserError
from rlhf_kit.eval.compare import compare_folders
from rlhf_kit.eval.coqa.task import guessing
from rlhf_kit.eval.coqa.turns import Prompts, answer_by_gold, answer_by_own, gold, messages
from rlhf_kit.generation.contexts import can_share
from rlhf_kit.generation.decoding import Decoding, Ending
from rlhf_kit.generation.generators import layout
from rlhf_kit.models.checkpoints import load_tokenizer

SHORT = Decoding(max_new_tokens=8, stop=("\n", "a", "e", "o", "t", "h", " "))
BEAMS = replace(SHORT, num_beams=4, length_penalty=0.6)
WIDE, TIGHT = 400, 72  # tokens of context: in the second there is room for every story, not for every history
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSING = "{{ raise_exception('only the sages may speak') }}"


def turns(*texts):
    return [{"input_text": text, "turn_id": number} for number, text in enumerate(texts, start=1)]


def rows():
    cat = {
        "id": "cat", "source": "mctest", "story": "The cat sat on the mat.",
        "questions": turns("Who sat?", "Where?"), "answers": turns("the cat", "on the mat"),
    }  # fmt: skip
    dog = {
        "id": "dog", "source": "cnn", "story": "And so did the dog, who was there.",
        "questions": turns("Who?", "Was it the cat?", "Did it sit?", "Really?"),
        "answers": turns("the dog", "no", "yes", "yes, on the mat"),
    }  # fmt: skip
    return [cat, dog]


def model_of(tokenizer, positions=WIDE):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=positions, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    return model.eval()


def chat(tokenizer, context=None):
    return Prompts(tokenizer, context, 8, chat=True)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_the_story_stands_with_the_first_question(tokenizer):
    dog = stories("", rows())[1]
    assert chat(tokenizer).prompt(dog, 2, gold(dog)).text == (
        "User: And so did the dog, who was there.\n\nWho?<|endoftext|>Assistant: the dog<|endoftext|>"
        "User: Was it the cat?<|endoftext|>Assistant: no<|endoftext|>User: Did it sit?<|endoftext|>Assistant:"
    )
    own = chat(tokenizer).prompt(dog, 1, ["a cow"])
    assert own.text.endswith(
        "Who?<|endoftext|>Assistant: a cow<|endoftext|>User: Was it the cat?<|endoftext|>Assistant:"
    )


def test_the_ids_are_those_that_sft_trains_on(tokenizer):
    """Each prompt is the dialogue up to where the answer's first trained token stands."""
    for story in [*stories("", rows()), *read_stories("world", "test")[:10]]:
        ids, labels = encode_dialogue(tokenizer, messages([story], gold(story)))
        starts = [at for at in range(1, len(ids)) if labels[at] >= 0 > labels[at - 1]]
        prompts = [chat(tokenizer).prompt(story, turn, gold(story)).ids for turn in range(len(story.questions))]
        assert prompts == [ids[:start] for start in starts]


def test_demonstrations_are_earlier_turns(tokenizer):
    cat, dog = stories("", rows())
    prompts = chat(tokenizer)
    prompts.demonstrations["cat"] = [replace(dog, questions=dog.questions[:1], answers=dog.answers[:1])]
    assert prompts.prompt(cat, 0, []).text == (
        "User: And so did the dog, who was there.\n\nWho?<|endoftext|>Assistant: the dog<|endoftext|>"
        "User: The cat sat on the mat.\n\nWho sat?<|endoftext|>Assistant:"
    )


def test_the_oldest_turns_are_dropped_and_the_story_goes_to_the_next(tokenizer):
    dog = stories("", rows())[1]
    shorter = chat(tokenizer).prompt(replace(dog, questions=dog.questions[2:], answers=dog.answers[2:]), 1, ["yes"])
    for room in (len(shorter.ids), len(shorter.ids) + 1):
        found = chat(tokenizer, room + 8).prompt(dog, 3, gold(dog))
        assert (found.text, found.ids, found.dropped) == (shorter.text, shorter.ids, 2)
    longest = max(len(chat(tokenizer).prompt(replace(dog, questions=(q,)), 0, []).ids) for q in dog.questions)
    chat(tokenizer, longest + 8).check([dog])
    with pytest.raises(UserError, match=f"'dog', has {longest} tokens"):
        chat(tokenizer, longest + 7).check([dog])


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [SHORT, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("context", [WIDE, TIGHT])
@pytest.mark.parametrize("history", ["gold", "own"])
def test_answers_are_those_of_generate_on_every_turn(how, context, history, tokenizer):
    model, prompts = model_of(tokenizer), chat(tokenizer, context)
    chosen = stories("", rows())
    prompts.check(chosen)
    answer = answer_by_gold if history == "gold" else answer_by_own
    found = {(one.story.id, one.turn): one for one in answer(model, prompts, chosen, how, 4096)}
    assert len(found) == 6
    assert any(one.prompt.dropped for one in found.values()) == (context == TIGHT)
    for story in chosen:
        said = []
        for turn in range(len(story.questions)):
            one = found[story.id, turn]
            assert one.prompt == prompts.prompt(story, turn, gold(story) if history == "gold" else said)
            assert one.continuation.ids == alone(model, tokenizer, one.prompt.ids, how)
            said.append(one.continuation.answer)


def test_a_story_is_read_once(tokenizer):
    model, dog = model_of(tokenizer), stories("", rows())[1]
    prompts, read = chat(tokenizer), []
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    assert can_share(model)
    tried = len(read)
    list(answer_by_gold(model, prompts, [dog], SHORT, 4096))
    assert read[tried] == len(prompts.prompt(dog, 3, gold(dog)).ids) - 1
    assert max(read[tried + 1 :]) == 4  # then a token of each turn at a time


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chatml(tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_a_template_ends_a_turn_by_its_own_token(chatml):
    cat = stories("", rows())[0]
    assert layout(chatml, chat=True)["layout"] == "chat" and chatml.chat_template == CHATML
    prompt = Prompts(chatml, None, 8, chat=True).prompt(cat, 0, [])
    assert prompt.text == ("<|im_start|>user\nThe cat sat on the mat.\n\nWho sat?<|im_end|>\n<|im_start|>assistant\n")
    for end in (chatml.convert_tokens_to_ids("<|im_end|>"), chatml.eos_token_id):
        found = Ending(model_of(chatml), chatml, Decoding(8)).continuation([*chatml("the cat")["input_ids"], end])
        assert (found.answer, found.ended) == ("the cat", True)


def test_without_a_template_it_is_the_one_that_sft_gives(tokenizer_folder):
    plain, asked = load_tokenizer(tokenizer_folder), load_tokenizer(tokenizer_folder)
    assert layout(plain, chat=False) == {"layout": "plain"} and not plain.chat_template
    assert layout(asked, chat=True).keys() == {"layout", "chat_template"}
    assert asked.chat_template == GPT2_CHAT_TEMPLATE


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer_folder, tmp_path):
    """Of a tokenizer without a template, as a base model's is."""
    tokenizer, folder = load_tokenizer(tokenizer_folder), tmp_path / "model"
    model_of(tokenizer, 640).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "coqa.json"
    path.write_text(json.dumps({"version": "1.0", "data": rows()}))
    return path


def run(model, *argv):
    return main(["eval", "coqa", "--model", str(model), *map(str, argv)])


def test_the_command_keeps_the_layout_and_tells_it(saved, data, tmp_path, capsys):
    plain, asked = tmp_path / "plain", tmp_path / "asked"
    assert run(saved, "--data", data, "--output", plain) == 0
    assert "plain layout" in capsys.readouterr().out
    assert run(saved, "--data", data, "--output", asked, "--apply_chat_template") == 0
    assert "chat layout" in capsys.readouterr().out
    options = {
        folder: json.loads((folder / "results.json").read_text())["settings"]["options"] for folder in (plain, asked)
    }
    assert options[plain]["layout"] == "plain" and "chat_template" not in options[plain]
    assert options[asked]["layout"] == "chat" and len(options[asked]["chat_template"]) == 16
    found = compare_folders(plain, asked)  # allowed: base as it reads best, SFT as it reads best
    assert found["other_prompts"] == 6
    assert [told["layout"] for told in found["settings"]["options"]] == ["plain", "chat"]
    assert run(saved, "--data", data, "--output", plain, "--apply_chat_template") == 2
    assert "option layout 'plain', now 'chat'" in capsys.readouterr().err


def test_a_template_that_refuses_is_told_in_a_sentence(saved, data, capsys):
    tokenizer = load_tokenizer(saved)
    tokenizer.chat_template = REFUSING
    tokenizer.save_pretrained(saved)
    assert run(saved, "--data", data, "--apply_chat_template") == 2
    said = capsys.readouterr().err
    assert "refuses 2 of 2 rows: only the sages may speak (row cat, dog)" in said and "ask in plain text" in said
    assert "Traceback" not in said


def test_on_the_world_guessing_the_type_stands_beside(saved, tmp_path, capsys):
    assert run(saved, "--data", "world", "--limit", 3, "--output", tmp_path / "out") == 0
    told = json.loads((tmp_path / "out" / "results.json").read_text())["details"]["type_guess"]
    assert told == guessing(read_stories("world", "test")[:3])
    assert "type guess" in capsys.readouterr().out


def test_guessing_is_the_mean_over_questions_whose_type_is_known():
    story = "Nora came by bus. Rita traveled by taxi. Rita has a red hat. Nora has a blue hat."
    made = {
        "id": "1", "story": story, "questions": turns("How did Nora come?", "What does she carry?", "Who are you?"),
        "answers": turns("bus", "blue hat", "nobody"),
    }  # fmt: skip
    # One of bus and taxi; one of red hat (one word of two, F1 1/2) and blue hat.
    assert guessing(stories("", [made])) == {"em": 50.0, "f1": pytest.approx(62.5), "questions": 2}
    assert guessing(stories("", rows())) is None  # no question of the world's
