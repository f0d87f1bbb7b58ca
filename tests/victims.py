"""A project folder full of a user's own files, under names that ours have too, and every byte of it."""

from pathlib import Path

NAMES = (
    *("README.md", "config.json", "model.safetensors", "tokenizer.json", "report.html", "summary.json", "samples.md"),
    *("results.json", "items.jsonl", "settings.json", "curve.csv", "suite.md", "table.md", "notes.txt", "run.json"),
    *("runs/my/base/model.safetensors", "ema/model.safetensors", "completions/completions_00001.parquet"),
    *("suite/report.html", "base/config.json", "sft/mine.txt", "checkpoint-7/trainer_state.json", "data/a.jsonl"),
)


def project(folder: Path) -> Path:
    """Made anew; `away` in it is a link to a folder beside it."""
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}\n")
    beside = folder.with_name(f"{folder.name}-beside")
    beside.mkdir()
    (beside / "model.safetensors").write_text("mine too\n")
    (folder / "away").symlink_to(beside)
    return folder


def every_byte(folder: Path) -> dict[str, bytes | str]:
    """By path what each file holds, and where each link points."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found
