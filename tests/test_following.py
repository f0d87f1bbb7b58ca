"""A run is followed while it is written: only what is new is read, half a line waits, another file is known."""

import json
import os
import time

import pytest
from test_doctor import logs

from rlhf_kit.errors import UserError
from rlhf_kit.pages.charts import HUGE, is_number
from rlhf_kit.report import following
from rlhf_kit.report.doctor import Run
from rlhf_kit.report.following import ENDED, RUNNING, STOPPED, Log, glance, rows_of, state_of
from rlhf_kit.report.page import curves
from rlhf_kit.storage import LOCK, RUN, Folder


@pytest.fixture
def log(tmp_path) -> Log:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    log = Log(tmp_path / "metrics.jsonl")
    log.read()
    return log


def write(log: Log, text: str, mode: str = "a") -> list[int]:
    """The steps that are known after this is written."""
    with log.path.open(mode) as file:
        file.write(text)
    log.read()
    return [row["step"] for row in log.rows]


def test_what_is_new_is_added_and_half_a_line_waits_for_its_rest(log):
    before = log.rows
    assert write(log, '{"step": 2, "lo') == [1]
    assert write(log, 'ss": 2.0}\n{"step"') == [1, 2]
    assert write(log, ": 3}\n") == [1, 2, 3]
    assert [row["step"] for row in before] == [1] and log.begun == 1


def test_only_what_is_new_is_read(log, monkeypatch):
    """The bytes that reach the parser are those of the new lines."""
    pieces = []
    monkeypatch.setattr(following, "rows_of", lambda lines: pieces.append(lines) or rows_of(lines))
    assert (
        write(log, '{"step": 2}\n') == [1, 2] and write(log, "") == [1, 2] and write(log, '{"step": 3}\n') == [1, 2, 3]
    )
    assert [piece for piece in pieces if piece] == [b'{"step": 2}', b'{"step": 3}']


def test_lines_longer_than_a_block_are_whole(log, monkeypatch):
    monkeypatch.setattr(following, "BLOCK", 7)
    assert write(log, "".join(f'{{"step": {step}, "loss": 1.25}}\n' for step in range(2, 40))) == [*range(1, 40)]
    assert write(log, '{"step": 40}\n') == [*range(1, 41)]


def test_a_file_that_was_replaced_is_begun_anew(log):
    """As a resumed run does: its rows up to the checkpoint stand in a new file, as long or longer."""
    write(log, '{"step": 2}\n{"step": 3}\n')
    other = log.path.with_name("other")
    other.write_text('{"step": 1, "loss": 3.0}\n{"step": 2}\n{"step": 3}\n{"step": 9}\n')
    os.replace(other, log.path)
    assert write(log, "") == [1, 2, 3, 9] and log.begun == 2


@pytest.mark.parametrize("text", ['{"step": 7}\n', '{"step": 7, "loss": 3.0}\n{"step": 8}\n'])
def test_a_file_that_was_cut_and_written_again_is_begun_anew(log, text):
    write(log, '{"step": 2}\n')
    assert write(log, text, "w") == [json.loads(line)["step"] for line in text.splitlines()] and log.begun == 2


def test_a_file_that_is_gone_has_no_rows_and_may_come_again(log):
    log.path.unlink()
    log.read()
    assert log.rows == []
    assert write(log, '{"step": 5}\n') == [5]


def test_a_link_is_not_followed(log, tmp_path):
    log.path.rename(tmp_path / "elsewhere")
    log.path.symlink_to(tmp_path / "elsewhere")
    log.read()
    assert log.rows == [] and glance(tmp_path).step is None


def test_a_file_that_is_too_large_is_refused(log, monkeypatch):
    monkeypatch.setattr(following, "MOST_JSON", 10)
    with pytest.raises(UserError, match="at most 10 of such a file are read"):
        log.read()


def test_what_is_no_log_is_left_out():
    lines = ['{"step": 1}', "oops", "", "[1]", '{"step": "2"}', '{"step": 1e999}', '{"step": 3, "loss": NaN}', "1],[2"]
    lines += [
        "[" * 100_000,
        '{"step": ' + "9" * 400 + "}",
        '{"step": true}',
        '{"step": 4, "kl": "<b>"}',
        '{"loss": 1}',
    ]
    assert [row["step"] for row in rows_of("\n".join(lines).encode())] == [1, 3, 4]
    assert [row["step"] for row in rows_of(b'{"step": 1}\n{"step": 2}')] == [1, 2]


# --- at a glance ----------------------------------------------------------------------------------------------------


def test_a_run_at_a_glance(tmp_path):
    rows = [{"step": step, "time": step / 2, "loss": 0.5, "reward": 0.25 * step, "kl": None} for step in (1, 2, 3)]
    rows[1]["kl"] = 1.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "rew')
    seen = glance(tmp_path)
    assert (seen.state, seen.stage, seen.step, seen.seconds) == (STOPPED, "ppo", 3, 1.5)
    assert seen.figures == {"reward": 0.75, "kl": 1.5}  # not the loss, which says nothing
    (tmp_path / "run.json").write_text(json.dumps({"stage": "ppo", "config": {}, "stopped": "--max_kl"}))
    assert (glance(tmp_path).state, glance(tmp_path).reason) == (ENDED, "--max_kl")


def test_the_last_figures_are_read_from_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "TAIL", 60)
    rows = [{"step": step, "loss": float(step)} for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert glance(tmp_path).figures == {"loss": 99.0}


def test_a_run_goes_on_while_a_process_holds_its_folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    files = Folder(tmp_path, RUN)
    files.lock()
    assert state_of(tmp_path) == RUNNING
    holder = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(holder | {"started": time.time() - 10**6}))  # it was killed
    assert state_of(tmp_path) == STOPPED
    (tmp_path / LOCK).write_text(json.dumps(holder | {"host": "another"}))
    assert state_of(tmp_path) == RUNNING
    files.unlock()
    assert state_of(tmp_path) == STOPPED
    (tmp_path / "run.json").write_text("{")
    assert state_of(tmp_path) == ENDED and glance(tmp_path).stage == ""


# --- long runs, and numbers beyond all bounds -----------------------------------------------------------------------


def test_the_logs_of_a_long_run_are_counted_in_one_pass(tmp_path):
    """Whether a run is PPO was asked of all rows for each row: 40,000 of another stage took minutes."""
    rows = [{"step": step, "loss": 1.0} for step in range(40_000)]
    start = time.process_time()
    assert len(Run(tmp_path, rows, None).logs) == 40_000
    assert time.process_time() - start < 5


def test_charts_take_any_number():
    huge = 10**400
    assert not any(map(is_number, (huge, -huge, HUGE, float("inf"), float("nan"), None, True, "1")))
    assert is_number(3.4e38) and is_number(-5) and is_number(0)
    rows = [{"step": step, "kl": value, "reward": -value} for step, value in enumerate((huge, 9e99, -9e99, 1.0))]
    assert "<svg" in curves({"ppo": rows}, {})


def test_the_charts_of_a_run_hold_no_style_that_a_strict_page_forbids():
    text = curves({"ppo": logs(), "<script>": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]}, {})
    assert "style=" not in text and "<script" not in text and "&lt;script&gt;" in text and 'class="blue"' in text
