"""What is done in a process of its own: one run of a stage, or one policy measured. JSON in, JSON out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_kit.comparison.answers import Judge, Questions, scored_by, world_judge
from rlhf_kit.comparison.methods import STAGES
from rlhf_kit.comparison.records import WORLD
from rlhf_kit.data.loading import load
from rlhf_kit.data.prompts import handed_on
from rlhf_kit.eval import runner
from rlhf_kit.eval.icl.task import ICL, ICLArguments
from rlhf_kit.eval.items import read_results
from rlhf_kit.generation.generators import folders
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.work import Counts, counted
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.ppo.rewards import Rewards
from rlhf_kit.processes import processes, quiet
from rlhf_kit.stages.output import RECORD

SCORED = 16  # answers a forward of a reward model
SHOTS = 4  # of the tasks that tell the tax


def train(stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run a stage. -> what its record says of the work. Raises UserError."""
    STAGES[stage].start(options)
    record = json.loads((Path(options["output_dir"]) / RECORD).read_text(encoding="utf-8"))
    return {"work": record["work"], "steps": record["steps"], "stopped": record["stopped"]}


def measure(
    policy: str,
    sft: str,
    rewards: str,
    truth: str,
    prompts: str,
    split: str,
    most: int | None,
    n: int,
    seed: int,
    temperature: float,
    max_completion_length: int,
    tasks: Sequence[str],
) -> dict[str, Any]:
    """A policy's answers, as `Answers` has them; the FLOPs of making one: of the best of n all that are drawn, and
    their scores; and of each of the tasks what is right, 0 or 1 an item. Raises UserError.

    Args:
        policy, sft, rewards: folders or hub ids. truth: WORLD, a function or a reward model.
    """
    quiet()
    device = processes().device
    tokenizer = load_tokenizer(sft)
    start = load_policy(sft, tokenizer=tokenizer).eval().to(device)
    model = start if policy == sft else load_policy(policy, tokenizer=tokenizer).eval().to(device)
    judges = Rewards(rewards, None, None, tokenizer, SCORED).to(device)
    rows = list(load(prompts, ("prompts",), split=split)[0])[:most]
    encode_prompts(rows, tokenizer, max_completion_length, context_length(start.config))  # sets the chat template, too
    questions = Questions(
        [row["prompt"] for row in rows], tokenizer, start, judges, judge_of(truth, tokenizer, device), temperature,
        max_completion_length, {name: [row[name] for row in rows] for name in handed_on(rows[0])},
    )  # fmt: skip
    counts: Counts = {}
    models = {"policy": model} | ({f"reward {at}": one for at, one in enumerate(judges.models)} if n > 1 else {})
    with counted(models, counts):
        answers = questions.answers(model, seed, n)
    flops = sum(count["forward"] for count in counts.values())
    return {"answers": asdict(answers), "flops_an_answer": flops / len(rows), "tax": tax(policy, tasks)}


def judge_of(truth: str, tokenizer, device) -> Judge:
    """Raises UserError for a name that is none."""
    return world_judge if truth == WORLD else scored_by(Rewards(truth, None, None, tokenizer, SCORED).to(device))


def tax(policy: str, tasks: Sequence[str]) -> dict[str, list[float]]:
    """What is right of each task, as `eval icl` has it. Raises UserError."""
    if not tasks:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        runner.run(ICL, ICLArguments(models=[policy], tasks=list(tasks), shots=[SHOTS], output_dir=folder))
        _, items = read_results(folders([policy], Path(folder))[0])
    right: dict[str, list[float]] = {}
    for item in sorted(items, key=lambda item: item.id):
        right.setdefault(item.group.partition("/")[0], []).append(item.scores["acc"])
    return right
