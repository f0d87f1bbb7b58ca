"""The shape of the project: layers that import one way, files that stay readable, no dead settings."""

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imports import circles, files, graph, longest_chain, statements

ROOT = Path(__file__).parents[1]
FILES = files()
# From the top down; a module imports only what stands below it, and the ones on a line do not import one another.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["demo"],
    ["serving"],
    ["report", "planning", "comparison"],
    ["stages"],
    ["methods"],
    ["sft", "reward", "ppo", "eval", "feedback", "chat"],
    ["training"],
    ["generation"],
    ["models"],
    ["data"],
    ["pages"],
    ["storage"],
    ["progress", "processes", "options", "versions"],
    ["inputs", "references"],
    ["terminal"],
    ["world", "ops", "errors", "escaping", "launched", "hashes", "intervals", "memory"],
]
LEVEL = {name: number for number, layer in enumerate(LAYERS) for name in layer}
LONG_FILE, LONG_FUNCTION, LONG_CHAIN = 500, 60, 14
WORDS = {"found", "told", "given", "said", "asked", "mine"}  # which say nothing of what a variable holds


def part(module: str) -> str:
    """The folder or module of the library's top that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported(module: str) -> frozenset[str]:
    return graph()[module]


@pytest.mark.parametrize("module", FILES, ids=str)
def test_a_module_imports_only_what_stands_below_it(module):
    here = part(module)
    assert here in LEVEL or module == "rlhf_kit", f"{module} stands in no layer"
    for other in imported(module) - {"rlhf_kit"} if here else ():  # which names the trainers, and has the version
        if here != part(other):
            assert LEVEL[part(other)] > LEVEL[here], f"{module} imports {other}"


@pytest.mark.parametrize("name", ["world", "ops", "errors", "escaping", "launched", "hashes", "intervals", "memory"])
def test_the_floor_imports_nothing_of_ours(name):
    for module in FILES:
        if part(module) == name:
            assert {part(other) for other in imported(module)} <= {name}


def test_no_modules_import_one_another():
    """Over any number of others; an import inside a function, for types alone or by a string is one too."""
    assert not circles(graph())


def test_the_longest_way_down_is_short():
    """Of the import statements that can run, in functions too; strings and imports for types are left out."""
    chain = longest_chain(statements())
    assert len(chain) <= LONG_CHAIN, " → ".join(chain)


def test_files_and_functions_stay_readable():
    too_long = []
    for path in [*FILES.values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        source = path.read_text()
        if len(source.splitlines()) > LONG_FILE:
            too_long.append(f"{path.relative_to(ROOT)}: {len(source.splitlines())} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.end_lineno - node.body[0].lineno + 1
                if body > LONG_FUNCTION:
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name} has {body} lines")
    assert not too_long, "\n".join(too_long)


# What a record of settings is called where it is read; others of its kind are called by the end of their names.
HANDLES = {
    "ModelArguments": {"model", "model_args"},
    "DataArguments": {"data"},
    "RunArguments": {"run"},
    "Arguments": {"options", "extra"},
    "Config": {"args", "training", "config", "self"},
    "Options": {"options", "self"},
}
# Fields of transformers' TrainingArguments and TRL's configs, which they read themselves, with defaults of ours.
INHERITED = {
    *("learning_rate", "adam_epsilon", "adam_beta2", "max_grad_norm", "logging_steps", "lr_scheduler_type"),
    *("warmup_steps", "weight_decay", "num_train_epochs", "remove_unused_columns", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "max_steps", "bf16", "report_to", "save_strategy", "train_sampling_strategy"),
    *("ddp_find_unused_parameters", "beta"),
}


def settings_of(tree: ast.Module) -> list[tuple[str, str]]:
    """(class, field) of each dataclass field in a file that a user can set."""
    return [
        (node.name, item.target.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Arguments", "Options"))
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def handles(owner: str) -> set[str]:
    return next(names for ending, names in HANDLES.items() if owner.endswith(ending))


def test_every_setting_is_read_somewhere():
    """A field that no line reads is a promise that nothing keeps; another record's does not count."""
    trees = [ast.parse(path.read_text()) for path in FILES.values()]
    settings = {(owner, field, number) for number, tree in enumerate(trees) for owner, field in settings_of(tree)}
    assert len(settings) > 40
    reads = {
        (getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr, number)
        for number, tree in enumerate(trees)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    anywhere = {(handle, name) for handle, name, _ in reads if handle != "self"}
    unread = [
        f"{owner}.{name}"
        for owner, name, home in sorted(settings)
        if name not in INHERITED
        and not any((handle, name) in anywhere for handle in handles(owner))
        and ("self", name, home) not in reads  # in the record's own file
    ]
    assert not unread, f"no line reads {unread}"


def test_variables_are_nouns_of_their_content():
    names = [
        node.id
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    empty = [name for name in names if name in WORDS]
    assert len(names) > 5000 and len(empty) <= 0.005 * len(names), f"{len(empty)} of {len(names)}"


def test_a_type_checker_finds_every_import():
    """As an editor's "go to definition" does; what mypy says of types is not looked at."""
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", os.devnull, "rlhf_kit"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "source files)" in output.splitlines()[-1], output[-500:]
    lost = [line for line in output.splitlines() if "[import-not-found]" in line or 'Module "rlhf_kit' in line]
    assert not lost, "\n".join(lost)


def test_private_modules_of_trl_are_not_imported():
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl"):
                assert node.module == "trl", f"{path}: {node.module}"


def test_constraints_name_an_exact_version_of_every_requirement():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    names = {line.split(">")[0].split("=")[0].strip().lower() for line in wanted.split("\n") if line.strip()}
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names <= pinned, names - pinned


def test_the_version_is_stated_once_in_effect():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    namespace: dict = {}
    line = next(x for x in (ROOT / "rlhf_kit/__init__.py").read_text().splitlines() if x.startswith("__version__"))
    exec(line, namespace)
    assert namespace["__version__"] == setup["metadata"]["version"]


def test_text_is_said_shown_and_escaped_in_one_place():
    """`terminal.say`, `console.Console` and `escaping`: elsewhere a name or an answer could become markup."""
    own = {f"rlhf_kit.{name}" for name in ("terminal", "terminal.console", "escaping")}
    found = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())) if module not in own else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{module}, line {node.lineno}: print; use rlhf_kit.terminal.say or complain")
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            wrong = {"html", "rich.console", "rich.markup", "tqdm"} & {*names}
            found += [f"{module}, line {node.lineno}: {name}; see console.py and escaping.py" for name in wrong]
    assert not found, "\n".join(found)
