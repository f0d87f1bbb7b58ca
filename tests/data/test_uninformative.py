"""Rows that teach nothing: left out and counted, where wrong ones are errors."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", "/train.jsonl"])
def test_texts_without_text_are_left_out_and_counted(tmp_path, ending):
    """WikiText's rows are lines, a third of them empty."""
    rows = [{"text": text} for text in ("", " = Title = \n", " \n", "It rains.", "")]
    path = tmp_path / f"wiki{ending}"
    path.parent.mkdir(exist_ok=True)
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".csv":
        path.write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows))
    else:
        path.write_text(json.dumps(rows) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    told = []
    found, _ = load(str(path if ending != "/train.jsonl" else path.parent), ["text"], tell=told.append)
    assert list(found["text"]) == [" = Title = \n", "It rains."]
    assert len(told) == 1 and told[0].endswith("3 of 5 rows hold no text and are left out")


def test_a_source_of_empty_texts_is_an_error_and_a_wrong_row_too(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(UserError, match="there is no text to train on, 2 of 2 rows are empty"):
        load(str(path), ["text"])
    path.write_text('{"text": ""}\n{"text": 3}\n')
    with pytest.raises(UserError, match="line 2: `text` is the number 3"):
        load(str(path), ["text"])
