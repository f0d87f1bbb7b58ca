"""What TensorBoard, trackio and wandb really get of a run: `make test-reports`.

Their packages are installed into an environment of its own over this one. PPO trains for eight steps and evaluates;
what each service then holds on the disk, wandb offline, is read back and is `metrics.jsonl`, number for number, with
the tables of completions.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("tensorboard", "trackio", "wandb")
SUMMARY = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


def python_with_packages() -> str:
    home = ROOT / ".venv-reports"
    python = home / "bin" / "python"
    if not (home / "built").exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
        site = next(home.glob("lib/python*/site-packages"))
        (site / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *PACKAGES], check=True)
        (home / "built").touch()
    return str(python)


# -- in that environment ----------------------------------------------------------------------------------------------


def train(folder: Path) -> Path:
    """A PPO run of four rollouts, evaluated after each."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from kills import prepare
    from tiny_stages import PPO, run_command

    (folder / "brief.py").write_text(
        "def brief(completions, **_):\n    return [-len(text) / 9 for text in completions]\n"
    )
    argv = prepare(folder)["ppo"]
    data, base = argv[argv.index("--dataset_name") + 1], argv[1]
    given = [
        "--model",
        base,
        "--data",
        data,
        *PPO,
        "--total_episodes",
        16,
        "--reward_funcs",
        "brief:brief",
        "--logging_steps",
        1,
        "--disable_tqdm",
    ]
    given += ["--eval_dataset_name", data, "--max_eval_samples", 4, "--eval_strategy", "steps", "--eval_steps", 2]
    given += ["--use_cpu", "--report_to", *PACKAGES, "--output_dir", folder / "out"]
    assert run_command("ppo", given) == 0
    return folder / "out"


def logged(out: Path) -> dict[str, dict[int, float]]:
    """name -> step -> number of metrics.jsonl, by the names that services have, but for what is of the whole run."""
    found: dict[str, dict[int, float]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name in ("step", "time") or name in SUMMARY or value is None:
                continue
            place = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            found.setdefault(place, {})[row["step"]] = value
    return found


def of_tensorboard(out: Path) -> tuple[dict, set[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, tables = {}, set()
    for folder in sorted({path.parent for path in out.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
        tables |= {tag.partition("/")[0] for tag in events.Tags()["tensors"]}
    return scalars, tables


def of_trackio(out: Path) -> tuple[dict, set[str]]:
    import sqlite3

    scalars, tables, runs = {}, set(), set()
    for path in Path(os.environ["TRACKIO_DIR"]).rglob("*.db"):
        with sqlite3.connect(path) as store:
            for run, text in store.execute("select run_name, metrics from metrics"):
                runs.add(run)
                row = json.loads(text)
                step = row.pop("train/global_step", None)
                for name, value in row.items():
                    if isinstance(value, dict):
                        tables.add(name)
                    elif step is not None:
                        scalars.setdefault(name, {})[step] = value
    assert len(runs) == 1, f"trackio has the runs {runs}"
    return scalars, tables


def of_wandb(out: Path) -> tuple[dict, set[str]]:
    from wandb.proto import wandb_internal_pb2

    scalars, tables = {}, set()
    for path in Path(os.environ["WANDB_DIR"]).rglob("*.wandb"):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            step = row.get("train/global_step")
            tables |= {name.removesuffix("/_type") for name, value in row.items() if value == "table-file"}
            for name, value in row.items():
                if isinstance(value, int | float) and not name.startswith("_") and step is not None:
                    scalars.setdefault(name, {})[step] = value
    return scalars, tables


def records(log: bytes) -> Iterator[bytes]:
    """Of wandb's file: LevelDB's log, in blocks of 32 KiB, behind a head of 7 bytes that is part of the first."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def check() -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": temporary, "WANDB_SILENT": "true"}
        os.environ |= {"TRACKIO_DIR": f"{temporary}/trackio", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        os.chdir(folder)
        out = train(folder)
        numbers = logged(out)
        import trackio
        import wandb

        wandb.finish()
        trackio.finish()
        for name, read in {"tensorboard": of_tensorboard, "trackio": of_trackio, "wandb": of_wandb}.items():
            scalars, tables = read(out)
            faults = [
                f"{metric} at step {step}: {scalars.get(metric, {}).get(step)}, metrics.jsonl has {value}"
                for metric, values in numbers.items()
                for step, value in values.items()
                if not math.isclose(scalars.get(metric, {}).get(step, math.inf), value, rel_tol=1e-6, abs_tol=1e-9)
            ]
            faults += [f"no table {table}" for table in ("completions", "eval_completions") if table not in tables]
            count = sum(map(len, numbers.values()))
            print(f"{name} {version(name)}: {count} numbers, {len(faults)} wrong; tables {sorted(tables)}")
            print("".join(f"    {fault}\n" for fault in faults[:20]), end="")
            wrong += bool(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    if "--here" in sys.argv:
        sys.exit(check())
    sys.exit(subprocess.run([python_with_packages(), __file__, "--here"]).returncode)
