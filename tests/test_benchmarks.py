"""The benchmarks' shared harness, and that two of the systems they compare do the same work."""

import argparse
import importlib
import itertools
import json
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    """As the scripts import it, from their own folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness  # noqa: PLC0415

    return harness


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_can_be_imported(harness, name):
    importlib.import_module(name)


def options(**more) -> argparse.Namespace:
    return argparse.Namespace(**{"repeats": 2, "threads": 1, "patience": 0, "json": None, **more})


def test_systems_take_turns_within_each_kind(harness):
    asked = []

    def run(kind, system):
        asked.append((*kind, system))
        return {"at": len(asked)}

    found = harness.in_turns([("tiny", 2), ("tiny", 4)], ["ours", "theirs"], options(), run)
    assert asked == [("tiny", k, system) for k in (2, 4) for _ in range(2) for system in ("ours", "theirs")]
    assert found["tiny", 4] == {"ours": [{"at": 5}, {"at": 7}], "theirs": [{"at": 6}, {"at": 8}]}


def test_summary_is_the_median_over_all_repeats_and_the_worst_disturbance(harness):
    runs = [
        {"seconds": [1.0, 9.0], "peak_gib": 2.0, "foreign_cores": [0.0, 0.5]},
        {"seconds": [2.0], "peak_gib": 3.0, "foreign_cores": [0.1]},
    ]
    row = harness.summary(runs)
    assert row == {"seconds": 2.0, "range": [1.0, 9.0], "peak_gib": 2.5, "foreign_cores": 0.5}
    assert harness.with_range(row) == "2.00 (1.00-9.00)"


def test_a_clock_tells_the_spans_between_its_marks(harness, monkeypatch):
    seconds, foreign = itertools.count(10, 2), iter([5.0, 6.0, 9.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(harness, "foreign_cpu", lambda: next(foreign))
    clock = harness.Clock()
    for _ in range(3):
        clock.mark()
    report = clock.report()
    assert report["seconds"] == [2, 2] and report["foreign_cores"] == [0.5, 1.5]
    assert 0.005 < report["peak_gib"] < 100


def test_foreign_cpu_is_what_was_busy_less_ones_own(harness, monkeypatch):
    """Idle (900) and waiting for disks (30) are not busy, and guests (99) are in `user` already."""
    monkeypatch.setattr(harness.Path, "read_text", lambda path: "cpu 100 0 50 900 30 5 5 10 99 0\ncpu0 ...")
    monkeypatch.setattr(harness.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(harness.os, "times", lambda: argparse.Namespace(user=0.5, system=0.2))
    assert harness.foreign_cpu() == pytest.approx(1.7 - 0.7)


def test_markdown(harness):
    assert harness.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def script(tmp_path, monkeypatch, body: str) -> None:
    """A benchmark whose worker is `body`."""
    path = tmp_path / "toy.py"
    path.write_text(
        f"import json, os, sys\nfrom pathlib import Path\nargs = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        f"{textwrap.dedent(body)}"
    )
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])


def test_a_worker_gets_its_arguments_and_environment_and_hands_back_its_report(harness, tmp_path, monkeypatch):
    script(
        tmp_path, monkeypatch,
        """
        print("not the parent's table")
        found = {"args": args, "peer": os.environ["PEER"], "threads": os.environ["OMP_NUM_THREADS"]}
        Path(args["--json"]).write_text(json.dumps(found))
        """,
    )  # fmt: skip
    found = harness.run_worker(options(threads=3), "ours", {"shape": "tiny", "new-tokens": 8}, {"PEER": "here"})
    assert (found["peer"], found["threads"]) == ("here", "3")
    del found["args"]["--json"]
    assert found["args"] == {"--worker": "ours", "--shape": "tiny", "--new-tokens": "8"}


def test_a_worker_that_fails_ends_the_benchmark_with_what_it_said(harness, tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "sys.exit('no room')")
    with pytest.raises(SystemExit, match=r"theirs \(shape tiny\) failed:\nno room"):
        harness.run_worker(options(), "theirs", {"shape": "tiny"}, {})


def test_the_last_line_and_the_file_name_what_a_figure_needs(harness, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/toy.py", "--quick"])
    run = {"seconds": [1.0], "peak_gib": 1.0, "foreign_cores": [0.25]}
    found = {("tiny", 2): {"ours": [run], "floor": [{"rates": []}]}}
    target = tmp_path / "new" / "toy.json"
    harness.conclude(options(json=target), found, ["torch", "peer==1.2"], "one step", summary={"ours": 1})
    told = capsys.readouterr().out
    written = json.loads(target.read_text())
    for name in ("command", "machine", "versions", "date", "commit"):
        assert written[name] and written[name] in told
    assert written["command"] == "python benchmarks/toy.py --quick" and "peer 1.2" in written["versions"]
    assert "2 repeats of one step; others used at most 0.25 cores" in told
    assert written["reports"]["tiny 2"]["ours"] == [run] and written["summary"] == {"ours": 1}
    assert [path.name for path in target.parent.iterdir()] == ["toy.json"]


def test_pictures_of_screens_give_chinese_its_room(harness):
    import screens  # noqa: PLC0415

    drawn = '<text class="a" x="12.2" y="20" textLength="61" clip-path="url(#b)">a&#160;玉山&lt;</text>'
    assert screens.in_cells(drawn) == (
        '<text class="a" x="12.2" y="20" textLength="24.4" clip-path="url(#b)">a&#160;</text>'
        '<text class="a" x="36.6" y="20" textLength="48.8" clip-path="url(#b)">玉山</text>'
        '<text class="a" x="85.4" y="20" textLength="12.2" clip-path="url(#b)">&lt;</text>'
    )


def test_choices_get_the_same_likelihood_whether_or_not_their_context_is_shared(harness, monkeypatch):
    import icl_vs_lm_eval as icl  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from text_work import model_of, tokenizer_of  # noqa: PLC0415

    monkeypatch.setattr(icl, "CONTEXT", 12)
    model = model_of("tiny", "float32")
    tokenizer = tokenizer_of(model.config.vocab_size)
    items = icl.items_of(2, 3, model.config.vocab_size, 0)
    with torch.inference_mode():
        ours, plain = (icl.totals(system, model, tokenizer, items) for system in (icl.OURS, icl.FORWARD))
    assert len(ours) == 2 * icl.CHOICES
    assert ours == pytest.approx(plain, abs=1e-4)
    assert len(set(ours)) == len(ours)
    assert icl.chosen([1.0, 3.0, 2.0, 0.0, 5.0, 1.0, 1.0, 1.0]) == [1, 0]


def test_a_cell_of_the_scaling_is_a_rollout_of_its_size(harness, monkeypatch):
    import scaling  # noqa: PLC0415

    monkeypatch.setattr(scaling, "MODELS", {"1x16": (1, 16, 2, 50)})
    report = scaling.worker(options(cells=["1x16/16/48"]))
    assert report["completion_tokens"] == 48 and report["steps"] == [2]  # mini-batches of 8
    costs = scaling.milliseconds(("1x16", 16, 48), [report])
    assert costs["sampling"] == pytest.approx(1000 * report["phases"]["seconds/rollout"][0] / (16 * 48))
    assert all(costs.values())


def test_the_scaling_goes_there_and_back_and_leaves_out_what_takes_too_long(harness, monkeypatch):
    import scaling  # noqa: PLC0415

    cells = scaling.chosen(["4x256/16/*", "24x1024/256/512"])
    monkeypatch.setattr(scaling, "table", lambda reports: "")
    assert cells == [("4x256", 16, 48), ("4x256", 16, 128), ("4x256", 16, 512), ("24x1024", 256, 512)]
    clock, asked = [0.0], []
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: clock[0])

    def run(cell):
        asked.append(cell)
        clock[0] += scaling.cost(cell) / scaling.cost(cells[0])
        return {"phases": {}}

    reports = scaling.in_rounds(cells, 2, 60.0, run)
    assert asked == [*cells[:3], *cells[2::-1]]  # the dearest would take 12,000
    assert [len(of_cell["ours"]) for of_cell in reports.values()] == [2, 2, 2]

    def fails(cell):
        return sys.exit("no room") if cell == cells[1] else run(cell)

    assert list(scaling.in_rounds(cells[:3], 2, 60.0, fails)) == [cells[0], cells[2]]
    with pytest.raises(SystemExit, match="no cell is named 5x5"):
        scaling.chosen(["5x5"])


def test_the_scaling_s_milliseconds_by_hand(harness):
    import scaling  # noqa: PLC0415

    def run(*seconds):
        names = ("rollout", "reference", "policy", "update")
        return {"phases": {f"seconds/{name}": [x] for name, x in zip(names, seconds, strict=False)}}

    cell = ("4x256", 16, 48)
    assert scaling.milliseconds(cell, [run(0.768, 1.0, 0.152, 2.304)]) == pytest.approx(
        {"sampling": 1.0, "passes": 1.0, "update": 2.0}  # 16 x 48 tokens, 16 x (24 + 48)
    )
    assert scaling.milliseconds(cell, [run(1.536, 1.152), run(0.768, 2.304), run(7.68, 0)])["sampling"] == 2.0
    seconds = {cell: 0.768, ("4x256", 16, 512): 16.384, ("4x256", 64, 48): 3.072}
    reports = {each: {"ours": [run(x, 1, 1, 1)]} for each, x in seconds.items()}
    rows = scaling.table(reports).splitlines()[2:]
    assert rows[:2] == ["| 4x256 | sampling | 16 | 1 | - | 2 | 2.00 |", "| 4x256 | sampling | 64 | 1 | - | - | 1.00 |"]
    assert len(rows) == 6


def test_a_rollout_in_mini_batches_makes_as_many_steps(harness, tmp_path):
    import ppo_work  # noqa: PLC0415

    _, system, more = ppo_work.SYSTEMS["ours-shared-minis"]
    shape = ppo_work.Shape(1, 16, 2, 60, rollout=8, micro=2)
    assert system(shape, 2, tmp_path, max_completion_length=4, **more)["steps"] == [4 * ppo_work.EPOCHS]


@pytest.mark.parametrize("data", ["short", "long"])
def test_sft_s_systems_train_on_the_same_tokens(harness, data):
    import sft_vs_trl as sft  # noqa: PLC0415
    from ppo_work import Shape  # noqa: PLC0415

    shape, kind = Shape(1, 16, 2, 4_000, rollout=1, micro=1), sft.KINDS[data]
    lengths = [len(row["input_ids"]) for row in sft.rows_of(data, 2)]
    assert len(lengths) == 2 * kind.rows and sum(lengths) / len(lengths) == pytest.approx(kind.mean, rel=0.2)
    ours, packed, theirs = (sft.work(name, shape, data, 1) for name in ("ours", "ours-packed", "trl"))
    assert len(ours["seconds"]) == 1 and sum(lengths) / 4 < ours["tokens"] == theirs["tokens"] < sum(lengths)
    assert sum(lengths) - kind.tokens <= packed["tokens"] < sum(lengths)  # all but the row that warms up


def test_sft_s_table_by_hand(harness):
    import sft_vs_trl as sft  # noqa: PLC0415

    def run(seconds, gib):
        return [{"seconds": [seconds], "peak_gib": gib, "foreign_cores": [0.0], "tokens": 100}]

    reports = {"ours": run(1.0, 1.0), "trl": run(2.0, 4.0), "floor": [{"tokens_per_second": 400.0}]}
    ours, theirs = sft.table({"short": reports}).splitlines()[2:]
    assert ours == "| short | rlhf_kit | 1.00 (1.00-1.00) | 100 | 2.00 | 25% | 1.00 | 0.25 |"
    assert theirs.endswith("| 50 | 1.00 | 12% | 4.00 | 1.00 |")


@pytest.mark.parametrize("system", ["ours-shared", "rloo"])
def test_the_gpu_s_systems_run_on_a_cpu_too(harness, monkeypatch, system):
    import gpu  # noqa: PLC0415
    from ppo_work import Shape  # noqa: PLC0415

    monkeypatch.setattr(gpu, "SHAPES", {"tiny": (Shape(1, 16, 2, 60, rollout=4, micro=4), 4)})
    monkeypatch.setattr(gpu, "bandwidth", lambda device: 1e9)
    report = gpu.worker(options(worker=system, shape="tiny", device="cpu", seconds=0))
    assert len(report["seconds"]) == 1 and report["steps"] == [4]  # no time: one to warm up, one timed
    if system == "ours-shared":
        assert report["sampled_per_second"] > 0 and report["sampling_floor"] == pytest.approx(4e9 / 14_720)


def test_the_bytes_that_a_sampled_token_needs(harness):
    import gpu  # noqa: PLC0415
    from ppo_work import Shape  # noqa: PLC0415

    shape = Shape(1, 16, 2, 60, rollout=4, micro=4)
    weights, cache = 12 * 16 * 16 + 60 * 16, 4 * (24 + 2) * 2 * 16  # two bytes each; key and value of 26 tokens
    assert gpu.bytes_a_step(shape, 4) == 2 * (weights + cache) == 14_720


def test_a_machine_without_a_gpu_is_told_so(harness, monkeypatch, capsys):
    import gpu  # noqa: PLC0415

    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py"])
    monkeypatch.setattr(gpu.torch.accelerator, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out.startswith("There is no GPU here, so nothing was measured.")


def test_the_gpu_s_table_by_hand(harness):
    import gpu  # noqa: PLC0415

    def run(seconds, **more):
        return [{"seconds": [seconds], "peak_gib": 1, "foreign_cores": [0.0], "device_gib": 2.5, **more}]

    ours = run(2.0, sampled_per_second=1000.0, sampling_floor=2000.0)
    shape, _ = gpu.SHAPES["small"]
    rows = gpu.table({"ours-shared": ours, "rloo": run(8.0), "trl112": []}, shape).splitlines()[2:]
    assert rows[0].endswith("| 2.00 (2.00-2.00) | 128.0 |  | 4.00 | 1,000 | 50% | 2.50 |")
    assert rows[1].endswith("| 32.0 |  | 1.00 |  |  | 2.50 |") and "| no figure |" in rows[2]
