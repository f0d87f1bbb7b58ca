"""What `rlhf-kit plan` says of the recipes, in their heads: `python tests/planning/heads.py [--write] [FOLDER ...]`.

Of models on the hub the config.json lies in `tests/fixtures/configs`, under their names.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

from rlhf_kit.planning.command import options_of, plan_of
from rlhf_kit.planning.showing import gibibytes, hours

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "fixtures" / "configs"
HEAD = re.compile(r"^# Plan:     rlhf-kit plan (.*)\n#           (.*)\n", re.MULTILINE)
# Rows of the training data by their cards, pile-10k's without what is held out, and mean tokens by their bytes, about
# four a token: a document, a dialogue, a prompt with one answer, a prompt.
DATA = {"pretrain": (9500, 1340), "sft": (9500, 350), "reward": (62135, 500), "ppo": (37775, 100)}


def recipes() -> list[Path]:
    """All that are given by path."""
    return sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.stem in DATA)


def figures(words: str) -> str:
    """Of the plan that these words ask for, in the folder of the configurations."""
    with contextlib.chdir(CONFIGS):
        recipe = re.sub(r"recipes/", f"{ROOT}/recipes/", words).split()
        stage = Path(recipe[recipe.index("--config") + 1]).stem
        plan = plan_of(*options_of([stage, *recipe]))
    if not plan.memory.fits:
        return f"{gibibytes(plan.memory.peak)}: does not fit"
    memory = f"{gibibytes(plan.memory.peak)}, {plan.memory.peak / plan.memory.device:.0%} of its memory"
    return f"{memory}; {hours(plan.work.hours)} hours at a utilisation of 0.3"


def written(path: Path) -> str:
    """The recipe with the figures of now."""
    text = path.read_text(encoding="utf-8")
    gpu = re.search(r"^# Meant for one (\S+?)[.,] ", text, re.MULTILINE)[1]
    rows, tokens = DATA[path.stem]
    words = f"--config recipes/{path.parent.name}/{path.name} --gpu {gpu} --rows {rows} --row_tokens {tokens}"
    head = f"# Plan:     rlhf-kit plan {words}\n#           {figures(words)}\n"
    return re.sub(r"^(# Run: .*\n)", lambda run: run[1] + head, HEAD.sub("", text), count=1, flags=re.MULTILINE)


def main(folders: list[str], write: bool) -> int:
    wrong = 0
    for path in recipes():
        if folders and path.parent.name not in folders:
            continue
        text = written(path)
        wrong += text != path.read_text(encoding="utf-8")
        if write:
            path.write_text(text, encoding="utf-8")
        sys.stderr.write(f"{path.parent.name}/{path.name}: {HEAD.search(text)[2]}\n")
    return 0 if write else min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if word != "--write"], "--write" in sys.argv))
