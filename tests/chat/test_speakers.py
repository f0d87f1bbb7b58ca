"""Models that are talked to: what they read, what they say, and who is kept in memory."""

import threading

import pytest

from rlhf_kit.chat import speakers as speakers_module
from rlhf_kit.chat.speakers import Settings, Speakers
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.generators import load_generator
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer

TURNS = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": " sat"},
    {"role": "user", "content": "on the mat"},
]


@pytest.fixture
def places(policy, tokenizer, tokenizer_folder, tmp_path):
    """A model with a chat template, and one without."""
    policy.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    policy.save_pretrained(tmp_path / "base")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "base")
    return {"base": tmp_path / "base", "sft": tmp_path / "sft"}


def test_turns_are_read_by_the_template_and_a_base_model_continues_text(places):
    with Speakers(places) as speakers:
        sft, base = speakers["sft"], speakers["base"]
        assert sft.chats and not base.chats
        assert sft.encode(TURNS) == encode_prompt(sft.tokenizer, TURNS)
        text = base.tokenizer("the cat sat\non the mat").input_ids
        assert base.encode(TURNS) == sft.encode(TURNS, chats=False) == text
        assert sft.encode("the cat") == base.encode("the cat") == base.tokenizer("the cat").input_ids


@pytest.mark.parametrize("name", ["base", "sft"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_said_is_what_generate_gives(name, seed, places):
    with Speakers(places) as speakers:
        speaker = speakers[name]
        ids = speaker.encode(TURNS)
        said = list(speaker.say(ids, Settings(max_tokens=20, seed=seed)))
    rollout = sample(
        load_policy(places[name]).eval(), [ids], eos_ids=speaker.ends, pad_id=0, max_completion_length=20, seeds=[seed]
    )
    assert [one.drawn.token for one in said] == rollout.completions()[0]
    assert said[-1].finish == ("stop" if rollout.terminated[0] else "length")
    text = "".join(one.text for one in said)
    assert text.strip().rstrip("\ufffd") == rollout.texts(speaker.tokenizer)[0].rstrip("\ufffd")
    assert name == "base" or text == text.lstrip()


@pytest.mark.parametrize("name", ["base", "sft"])
def test_an_answer_in_turns_begins_without_white_space(name, places):
    """Those within it are kept."""
    with Speakers(places) as speakers:
        speaker = speakers[name]
        space, letter = (speaker.tokenizer(text).input_ids[0] for text in (" ", "x"))
        drawn = [
            Drawn(space, -1.0),
            Drawn(space, -1.0),
            Drawn(letter, -1.0),
            Drawn(space, -1.0),
            Drawn(letter, -1.0, finish="length"),
        ]
        speaker.engine.stream = lambda request: iter(drawn)
        said = [one.text for one in speaker.say([5], Settings())]
    assert said == (["", "", "x", " ", "x"] if name == "sft" else [" ", " ", "x", " ", "x"])


def test_a_stop_string_ends_it(places):
    with Speakers(places) as speakers:
        speaker = speakers["base"]
        ids = speaker.encode("the")
        text = "".join(one.text for one in speaker.say(ids, Settings(max_tokens=30, seed=1)))
        stop = text[10:12]
        said = list(speaker.say(ids, Settings(max_tokens=30, seed=1, stop=[stop])))
        assert "".join(one.text for one in said) == text[: text.find(stop)] and said[-1].finish == "stop"
        assert len(said) < 30


def test_models_are_loaded_when_asked_for_and_the_one_longest_unused_is_let_go(places):
    with Speakers({**places, "ppo": places["sft"]}, most=2) as speakers:
        first = speakers["sft"]
        assert speakers["sft"] is first
        base = speakers["base"]
        assert speakers["sft"] is first
        speakers["ppo"]
        assert speakers["sft"] is first and speakers["base"] is not base
        with pytest.raises(UserError, match="There is no model 'sfd'. Did you mean 'sft'?"):
            speakers["sfd"]


def test_the_thread_that_loads_a_model_ends(places, monkeypatch):
    """It would keep OpenMP threads of its own, and with more of them than processors each operation waits."""
    threads = []

    def load(*arguments):
        threads.append(threading.current_thread())
        return load_generator(*arguments)

    monkeypatch.setattr(speakers_module, "load_generator", load)
    with Speakers(places) as speakers:
        assert speakers["sft"].engine.model is not None
        assert [thread.is_alive() for thread in threads] == [False]


def test_an_answer_is_as_long_as_there_is_room_for(places):
    with Speakers(places) as speakers:
        speaker = speakers["sft"]
        assert speaker.fitted(Settings(max_tokens=500), [5] * 100).max_tokens == 28
        assert speaker.fitted(Settings(max_tokens=20), [5] * 100).max_tokens == 20
