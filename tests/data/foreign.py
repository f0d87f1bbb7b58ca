"""Rankings of other projects: where the files are, and rows as they are written and read."""

import json
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures" / "interchange"


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def row(prompt, completions, ranks, **extras):
    return {"prompt": prompt, "completions": completions, "ranks": ranks, **extras}


def file(tmp_path, records, name="x.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
