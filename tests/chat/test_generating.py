"""`rlhf-kit generate`: what is answered and written, and that a broken run's file is that of an unbroken one."""

import fcntl
import json
import os
import random
import signal

import pytest
import torch
from forked import forked
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_kit.chat import generating
from rlhf_kit.cli import main
from rlhf_kit.storage import whole_lines
from tests.stages.test_full_disk import files_of_at_most

WORDS = ["the cat", "hello there", "the dog sat", "on", "so did the cat, and the dog", "mat"]
SHORT = ["--max_completion_length", "12"]


@pytest.fixture
def base(tmp_path, policy, tokenizer_folder):
    """A language model without a chat template."""
    policy.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def chat(tmp_path, policy, tokenizer):
    """One with a template, as SFT saves it."""
    policy.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


@pytest.fixture
def data(tmp_path):
    """data(rows) -> the file of them."""

    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def prompts(data):
    return data([{"prompt": f"{word} {number}", "number": number} for number, word in enumerate(WORDS * 3)])


def generate(model, source, out, *more) -> int:
    options = ["--dataset_name", source, "--output_file", str(out), *SHORT, *map(str, more)]
    return main(["generate", model, *options])


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def refused(capsys, *words) -> str:
    said = " ".join(capsys.readouterr().err.split())
    assert all(word in said for word in words), said
    return said


# --- what is answered -----------------------------------------------------------------------------------------------


def by_transformers(folder, ids, tokenizer) -> tuple[list[int], bool]:
    """Greedily, one prompt alone: the tokens without the end, and whether there was one."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    written = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :]
    ended = written[-1] == tokenizer.eos_token_id
    return written[: len(written) - int(ended)].tolist(), bool(ended)


def test_a_base_model_goes_on_with_the_text_as_transformers_does(base, prompts, tmp_path):
    assert generate(base, prompts, tmp_path / "out.jsonl", "--temperature", 0, "--batch_size", 4) == 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    for line in lines_of(tmp_path / "out.jsonl"):
        ids, ended = by_transformers(base, tokenizer(line["prompt"])["input_ids"], tokenizer)
        assert line["completion"] == tokenizer.decode(ids)  # the space before the first word too
        assert line["finish_reason"] == ("stop" if ended else "length")


def test_an_answer_that_ends_and_one_that_is_cut_off(base, prompts, tmp_path):
    assert generate(base, prompts, tmp_path / "out.jsonl", "--temperature", 9, "--n", 9) == 0
    lines = lines_of(tmp_path / "out.jsonl")
    assert {line["finish_reason"] for line in lines} == {"stop", "length"}
    texts = [line["completion"] for line in lines]
    assert not any("endoftext" in text for text in texts)
    assert any(text != text.strip() for text in texts)  # it goes on with a text, and blanks are of it


@pytest.mark.parametrize("as_text", [True, False])
def test_a_model_with_a_template_answers_in_turns(as_text, chat, data, tmp_path):
    asked = [[{"role": "user", "content": word}] for word in WORDS]
    rows = [{"prompt": turns[0]["content"] if as_text else turns} for turns in asked]
    assert generate(chat, data(rows), tmp_path / "out.jsonl", "--temperature", 0) == 0
    tokenizer = AutoTokenizer.from_pretrained(chat)
    for line, row, turns in zip(lines_of(tmp_path / "out.jsonl"), rows, asked, strict=True):
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        ids, _ = by_transformers(chat, encoded["input_ids"], tokenizer)
        assert line["completion"] == tokenizer.decode(ids).strip() and line["prompt"] == row["prompt"]


def test_turns_are_put_to_a_base_model_in_the_kits_template(base, chat, data, tmp_path):
    rows = data([{"prompt": [{"role": "user", "content": word}]} for word in WORDS])
    for model, name in ((base, "base.jsonl"), (chat, "chat.jsonl")):
        assert generate(model, rows, tmp_path / name, "--temperature", 0) == 0
    answers = [[line["completion"] for line in lines_of(tmp_path / f"{name}.jsonl")] for name in ("base", "chat")]
    assert answers[0] == answers[1]


def test_every_row_is_handed_on_and_what_is_not_is_named(base, data, tmp_path, capsys):
    rows = [{"prompt": "the", "topic": {"a": 1, "b": None}, "completion": "cat", "seed": 7, "大小": 1.0}]
    assert generate(base, data(rows), tmp_path / "out.jsonl", "--seed", 3) == 0
    refused(capsys, "not handed on", "`completion`, `seed`; rename them")
    (line,) = lines_of(tmp_path / "out.jsonl")
    names = ["prompt", "topic", "大小", "completion", "finish_reason", "model", "seed"]
    assert list(line) == names and line["topic"] == {"a": 1, "b": None} and line["大小"] == 1.0
    assert line["model"] == base and line["seed"] == 3 and line["completion"] != "cat"


def test_a_system_prompt_is_a_turn_before_each_prompt(chat, data, tmp_path, capsys):
    rows = [{"prompt": "the cat"}, {"prompt": "the dog", "system": ""}]
    assert generate(chat, data(rows), tmp_path / "out.jsonl", "--system_prompt", "Be brief.") == 0
    system = {"role": "system", "content": "Be brief."}
    asked = [line["prompt"] for line in lines_of(tmp_path / "out.jsonl")]
    assert asked == [[system, {"role": "user", "content": row["prompt"]}] for row in rows]
    told = data([{"prompt": "the cat"}, {"prompt": "the dog", "system": "Sing."}], "told.jsonl")
    assert generate(chat, told, tmp_path / "new.jsonl", "--system_prompt", "Be brief.") == 2
    refused(capsys, "second system text in 1 rows (row 2)")
    assert generate(chat, told, tmp_path / "new.jsonl") == 0
    line = lines_of(tmp_path / "new.jsonl")[1]
    assert [turn["role"] for turn in line["prompt"]] == ["system", "user"] and "system" not in line


def test_an_answer_depends_on_its_row_and_number_alone(base, prompts, tmp_path):
    def answers(name, *more):
        assert generate(base, prompts, tmp_path / name, *more) == 0
        return [line["completion"] for line in lines_of(tmp_path / name)]

    whole = answers("whole.jsonl", "--batch_size", 18)
    assert answers("two.jsonl", "--batch_size", 2) == whole
    assert answers("some.jsonl", "--limit", 5) == whole[:5]
    several = answers("several.jsonl", "--n", 3, "--batch_size", 4)
    assert several[::3] == whole and several[1::3] != whole
    assert answers("other.jsonl", "--seed", 1) != whole


def test_a_prompt_that_comes_again_is_answered_anew(base, data, tmp_path):
    assert generate(base, data([{"prompt": "the cat"}] * 6), tmp_path / "out.jsonl") == 0
    assert len({line["completion"] for line in lines_of(tmp_path / "out.jsonl")}) > 1


def test_top_k_and_top_p_leave_unlikely_tokens_out(base, prompts, tmp_path):
    def answers(name, *more):
        assert generate(base, prompts, tmp_path / name, *more) == 0
        return [line["completion"] for line in lines_of(tmp_path / name)]

    greedy = answers("greedy.jsonl", "--temperature", 0)
    assert answers("k.jsonl", "--top_k", 1) == greedy == answers("p.jsonl", "--top_p", 1e-6)
    assert answers("all.jsonl") != greedy


def test_answers_are_printed_without_an_output_file(base, prompts, capsys):
    assert main(["generate", base, "--prompt", "the cat", "the dog", "--temperature", "0", *SHORT]) == 0
    texts = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert main(["generate", base, "--dataset_name", prompts, "--limit", "2", "--temperature", "0", *SHORT]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat 0", "hello there 1"] and len(texts) >= 2


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch):
    """No weight may be read."""
    monkeypatch.setattr(generating, "load_generator", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n", 2, "--temperature", 0], "--n is 2, and at --temperature 0 all answers"),
        (["--temperature", -1], "--temperature=-1.0 must not be negative"),
        (["--top_p", 0], "--top_p=0.0 must be above 0"),
        (["--prompt", "hello"], "exclude each other"),
        (["--limit", 0], "--limit=0 must be at least 1"),
        (["--max_completion_length", 117], "data.jsonl: 2 of 18 prompts are too long. The longest, prompt 11, has 12"),
    ],
)
def test_what_cannot_be_answered_is_refused(more, message, base, prompts, tmp_path, capsys):
    assert generate(base, prompts, tmp_path / "out.jsonl", *more) == 2
    refused(capsys, message)
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "out.jsonl.part").exists()


@pytest.mark.usefixtures("unloaded")
def test_all_faults_are_told_at_once(data, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    rows = data([{"prompt": ""}])
    assert generate(str(tmp_path), rows, tmp_path / "mine.jsonl", "--n", 2, "--temperature", 0) == 2
    refused(capsys, "--n is 2", "mine.jsonl in", "`prompt` is empty", "config.json")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.part", "out.jsonl.settings.json"])
def test_a_users_own_file_is_not_replaced(name, base, prompts, tmp_path, capsys):
    (tmp_path / name).write_text("{}\n")
    assert generate(base, prompts, tmp_path / "out.jsonl") == 2
    refused(capsys, f"{name} in", "is not recorded there as an unchanged output of ours (generate)")
    assert (tmp_path / name).read_text() == "{}\n"


def test_answers_of_other_settings_are_not_mixed(base, prompts, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jsonl"
    assert generate(base, prompts, out) == 0
    whole = out.read_bytes()
    monkeypatch.setattr(generating, "load_generator", lambda *_: pytest.fail("a model was loaded"))
    other = {"seed 0, now 1": ["--seed", 1], "n 1, now 2, top_k None, now 5": ["--n", 2, "--top_k", 5]}
    for change, more in other.items():
        assert generate(base, prompts, out, *more) == 2
        refused(capsys, f"holds answers made with other settings ({change})")
    assert generate(base, data([{"prompt": "the"}], "other.jsonl"), out) == 2
    refused(capsys, "other settings (data_hash ")
    assert generate(base, prompts, out, "--batch_size", 3) == 0  # which decides nothing
    assert "18 answers to 18 prompts, 18 of them were there" in capsys.readouterr().out
    os.rename(prompts, tmp_path / "moved.jsonl")
    assert generate(base, str(tmp_path / "moved.jsonl"), out) == 0 and out.read_bytes() == whole


def test_settings_without_an_answer_bind_nobody(base, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(generating, "sample", interrupt)
        assert generate(base, prompts, out) == 130
    assert generate(base, prompts, out, "--seed", 1) == 0 and lines_of(out)[0]["seed"] == 1


@pytest.mark.usefixtures("unloaded")
def test_a_dry_run_writes_nothing(base, prompts, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert generate(base, prompts, tmp_path / "new" / "out.jsonl", "--n", 2, "--dry_run") == 0
    assert "36 answers to 18 prompts" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("unloaded")
def test_two_processes_do_not_write_one_file(base, prompts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(generating, "load_generator", interrupt)
        assert generate(base, prompts, out) == 130
    with (tmp_path / "out.jsonl.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert generate(base, prompts, out) == 2
    refused(capsys, "is being written by another process")


# --- broken off -----------------------------------------------------------------------------------------------------


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_after_ctrl_c_the_same_command_goes_on(base, prompts, tmp_path, monkeypatch, capsys):
    assert generate(base, prompts, tmp_path / "whole.jsonl", "--batch_size", 2) == 0
    out, sample, calls = tmp_path / "out.jsonl", generating.sample, []

    def second(*arguments, **options):
        calls.append(options)
        return interrupt() if len(calls) == 2 else sample(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generating, "sample", second)
        assert generate(base, prompts, out, "--batch_size", 2) == 130
    refused(capsys, "Interrupted. The same command resumes from --output_file")
    assert not out.exists() and len(lines_of(tmp_path / "out.jsonl.part")) == 8
    with (tmp_path / "out.jsonl.part").open("ab") as file:
        file.write(b'{"prompt": "the ca')  # as a kill leaves it
    assert generate(base, prompts, out, "--batch_size", 2) == 0
    assert "18 answers to 18 prompts, 8 of them were there" in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "out.jsonl.part").exists()


def test_of_answers_made_in_one_go_all_are_kept_or_none(base, prompts, tmp_path, monkeypatch):
    """Half of them are made again, with the same others beside them: in bf16 these matter."""
    out, sizes = tmp_path / "out.jsonl", []
    assert generate(base, prompts, tmp_path / "whole.jsonl", "--batch_size", 2) == 0
    with monkeypatch.context() as patch:
        patch.setattr(generating, "load_generator", interrupt)
        assert generate(base, prompts, out, "--batch_size", 2) == 130
    lines = (tmp_path / "whole.jsonl").read_bytes().split(b"\n")
    (tmp_path / "out.jsonl.part").write_bytes(b"\n".join(lines[:13]) + b"\n")
    sample = generating.sample
    monkeypatch.setattr(generating, "sample", lambda *a, **b: sizes.append(len(a[1])) or sample(*a, **b))
    assert generate(base, prompts, out, "--batch_size", 2) == 0
    assert sizes == [8, 2] and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(base, prompts, tmp_path, capsys):
    assert generate(base, prompts, tmp_path / "whole.jsonl", "--batch_size", 2) == 0
    out, whole = tmp_path / "out.jsonl", (tmp_path / "whole.jsonl").read_bytes()
    capsys.readouterr()
    with files_of_at_most(len(whole) * 2 // 3):
        assert generate(base, prompts, out, "--batch_size", 2) == 1
    refused(capsys, "--output_file cannot be written: File too large", "Finished answers are kept: free some space")
    assert generate(base, prompts, out, "--batch_size", 2) == 0 and out.read_bytes() == whole


def test_killed_again_and_again_it_writes_the_unbroken_file(base, data, tmp_path, capfd):
    source = data([{"prompt": f"{word} {number}"} for number, word in enumerate(WORDS * 15)])
    argv = ["generate", base, "--dataset_name", source, "--batch_size", "2", *SHORT, "--output_file"]
    assert main([*argv, str(tmp_path / "whole.jsonl")]) == 0
    out, part, log, chance = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part", tmp_path / "log", random.Random(0)
    for lines in (1, 20, 60):
        child = forked(main, [*argv, str(out)], log)
        while whole_lines(part) < lines:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        part.write_bytes(part.read_bytes()[: -chance.randrange(1, 100)])  # its end was not on the disk yet
    child = forked(main, [*argv, str(out)], log)
    assert os.waitpid(child, 0)[1] == 0 and " of them were there." in capfd.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
