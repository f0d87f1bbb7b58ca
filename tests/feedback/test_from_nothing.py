"""The way of docs/feedback.md from an empty folder: the embedded base answers, a pipe ranks, a reward model learns."""

import json
import os
import subprocess
import sys

from stores import new_name

from rlhf_kit.cli import main
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.data.loading import load
from rlhf_kit.world import BASE

LISTS = 4


def test_what_is_ranked_is_what_the_reward_model_learns_from(tmp_path):
    name = new_name(tmp_path)
    asked = ["--prompts", "world:prompts", "--limit", "6", "--max_completion_length", "8", "--overlap_share", "0"]
    assert main(["collect", "--models", str(BASE), *asked, "--output_file", name]) == 0
    typed = "7 b\no\n\n\n" * LISTS + "q\n"  # whatever its length, the second of a list is its best
    command = [sys.executable, "-m", "rlhf_kit", "label", name, "--labeler", "amy"]
    done = subprocess.run(command, input=typed, text=True, capture_output=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr

    store = open_store(name)
    decisions = [each for each in store.decisions() if each.turn == 0]
    assert len(store.decisions()) == LISTS and {each.interface for each in decisions} == {"terminal"}
    ranked = {}
    for each in decisions:
        texts = {answer.id: answer.text for answer in store.task(each.task).answers}
        first, second, *rest = each.presented
        order = {texts[number]: rank for rank, number in enumerate((second, first, *rest), start=1)}
        ranked[json.dumps(store.task(each.task).prompt)] = order
    rows, _ = load(name, ("ranked",), "train", 0)
    read = {json.dumps(row["prompt"]): dict(zip(row["completions"], row["ranks"], strict=True)) for row in rows}
    assert read == ranked

    model = ["--model", str(BASE), "--output", str(tmp_path / "reward"), "--num_train_epochs", "1"]
    quiet = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--report_to", "none"]
    assert main(["reward", *model, "--data", name, *quiet]) == 0
    record = json.loads((tmp_path / "reward" / "run.json").read_text())
    assert record["steps"] == len(ranked)  # one step a list
