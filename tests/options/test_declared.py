"""The options that a class's source declares are those of the imported class."""

import enum
import importlib
import typing

import pytest

from rlhf_kit.options.declared import constant, declared_fields, declared_in_source
from rlhf_kit.ppo.config import RENAMED

SHARED = [f"rlhf_kit.stages.arguments:{name}" for name in ("RunArguments", "ModelArguments", "DataArguments")]
STAGES = {
    "pretrain": ["rlhf_kit.stages.pretrain:PretrainConfig"],
    "mlm": ["rlhf_kit.stages.mlm:MaskedConfig"],
    "sft": ["trl:SFTConfig"],
    "reward": ["rlhf_kit.stages.calibration:CalibrationArguments", "rlhf_kit.reward.config:RewardConfig"],
    "ppo": ["rlhf_kit.stages.ppo:PPOArguments", "rlhf_kit.ppo.config:PPOConfig"],
    "dpo": ["rlhf_kit.stages.preference:PreferenceArguments", "rlhf_kit.methods.config:DPOConfig"],
    "rloo": ["rlhf_kit.stages.ppo:RewardArguments", "rlhf_kit.methods.online_config:RLOOConfig"],
    "grpo": ["rlhf_kit.stages.ppo:RewardArguments", "rlhf_kit.methods.online_config:GRPOConfig"],
    "kto": ["rlhf_kit.stages.preference:PreferenceArguments", "rlhf_kit.methods.config:KTOConfig"],
}


def imported(names):
    pairs = [name.split(":") for name in names]
    return declared_fields([getattr(importlib.import_module(module), name) for module, name in pairs])


def words(hint):
    """A type, enumerations by their values: the source's are made from the library's text."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    arguments = typing.get_args(hint)
    return [typing.get_origin(hint), *map(words, arguments)] if arguments else hint


@pytest.mark.parametrize("stage", STAGES)
def test_source_and_class_declare_the_same_options(stage):
    names = [*SHARED, *STAGES[stage]]
    source, classes = declared_in_source(names), imported(names)
    assert source.whole and set(source.options) == set(classes)
    untyped = {name for name, option in source.options.items() if not option.is_typed}
    assert untyped <= {"parallelism_config"}
    for name, option in source.options.items():
        other = classes[name]
        assert (option.help, option.required, option.bare, option.owners) == (
            other.help,
            other.required,
            other.bare,
            other.owners,
        )
        assert name in untyped or words(option.type) == words(other.type)
        assert option.choices in ((), other.choices)


def test_a_class_with_a_base_that_is_not_in_the_source_is_not_whole(tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(
        "from nowhere import Base\nclass Half(Base):\n    size: int = 1\nclass Whole:\n    size: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "odd"
    package.mkdir()
    (package / "__init__.py").write_text((tmp_path / "strange.py").read_text())
    assert not declared_in_source(["odd:Half"]).whole
    assert not declared_in_source(["odd:Absent"]).whole
    assert declared_in_source(["odd:Whole"]).whole


def test_names_in_the_source_stand_for_their_values(tmp_path, monkeypatch):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("from house.kinds import KINDS\n")
    (package / "kinds.py").write_text("KINDS = ('a', 'b')\n")
    (package / "options.py").write_text(
        "from dataclasses import dataclass, field\n"
        "import unknown_library\n"
        "from house import KINDS\n"
        "from rlhf_kit.options import option\n"
        "@dataclass\n"
        "class Options:\n"
        "    kind: str = field(default=KINDS[1], metadata={'choices': KINDS, 'help': f'one of {len(KINDS)}'})\n"
        "    shots: list[int] = field(default_factory=lambda: [0, 1], metadata={'short': 'k', 'positional': 'K'})\n"
        "    thing: unknown_library.Thing | None = None\n"
        "    names: list[str] = option(['x', 'y'], 'Names of ' 'things.', required=True, whole=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = declared_in_source(["house.options:Options"]).options
    assert (options["kind"].choices, options["kind"].default, options["kind"].help) == (("a", "b"), "b", "one of 2")
    assert (options["shots"].type, options["shots"].default, options["shots"].short) == (list[int], "0 1", "k")
    assert not options["thing"].is_typed
    assert (options["names"].help, options["names"].default) == ("Names of things.", "x y")
    assert options["names"].required and options["names"].whole and not options["names"].repeats


def test_a_table_is_read_from_its_source():
    assert constant("rlhf_kit.ppo.config:RENAMED") == RENAMED
