"""The figures in the heads of the recipes are those of `plan`; `python tests/planning/heads.py` looks at all."""

import pytest

from rlhf_kit.models.checkpoints import load_config
from rlhf_kit.stages.plan import count_parameters
from tests.planning import heads

# One of a kind: whole weights and adapters, rollouts here and by a server.
LOOKED_AT = ["gpt2/ppo.yaml", "gpt2-medium-lora/sft.yaml", "qwen2.5-1.5b-lora/ppo.yaml"]


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_head_says_what_plan_says(name):
    path = heads.ROOT / "recipes" / name
    assert heads.written(path) == path.read_text(encoding="utf-8"), "run python tests/planning/heads.py --write"


def test_every_recipe_says_what_it_takes():
    for path in heads.recipes():
        words, told = heads.HEAD.search(path.read_text(encoding="utf-8")).groups()
        assert "of its memory" in told and f"--config recipes/{path.parent.name}/{path.name} " in words


def test_the_configurations_are_those_of_the_named_models():
    """As the models' cards count their parameters."""
    sizes = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "Qwen/Qwen2.5-1.5B": 1544}
    sizes["Qwen/Qwen3-8B-Base"] = 8191
    counted = {name: count_parameters(load_config(heads.CONFIGS / name)) for name in sizes}
    assert {name: round(count / 1e6) for name, count in counted.items()} == sizes
