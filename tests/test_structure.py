"""The shape of the project: layers that import one way, files that stay readable, no dead settings."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted((ROOT / "rlhf_kit").rglob("*.py"))
}
# From the top down; a module imports only what stands below it, and the ones on a line do not import one another.
LAYERS = [
    ["cli"],
    ["demo"],
    ["report"],
    ["stages"],
    ["sft", "reward", "ppo", "eval"],
    ["training"],
    ["generation"],
    ["models"],
    ["data"],
    ["pages"],
    ["storage"],
    ["progress", "processes", "options"],
    ["inputs", "parser"],
    ["terminal"],
    ["world", "ops", "errors", "escaping", "launched", "hashes"],
]
LEVEL = {name: number for number, layer in enumerate(LAYERS) for name in layer}
LONG_FILE, LONG_FUNCTION = 500, 60


def part(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in LEVEL else ""


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, at the top or inside a function."""
    package = next(name for name, file in FILES.items() if file == path).rpartition(".")[0]
    if path.name == "__init__.py":
        package = next(name for name, file in FILES.items() if file == path).removesuffix(".__init__")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("rlhf_kit")}


def test_the_project_was_found():
    assert len(FILES) > 30


@pytest.mark.parametrize("module", FILES, ids=str)
def test_a_module_imports_only_what_stands_below_it(module):
    here = part(module)
    for other in imported(FILES[module]):
        there = part(other)
        if here and there and here != there:
            assert LEVEL[there] > LEVEL[here], f"{module} imports {other}"


@pytest.mark.parametrize("name", ["world", "ops", "errors", "escaping", "launched", "hashes"])
def test_the_floor_imports_nothing_of_ours(name):
    for module, path in FILES.items():
        if part(module) == name:
            assert {part(other) for other in imported(path)} <= {name, ""}


def test_files_and_functions_stay_readable():
    too_long = []
    for path in [*FILES.values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        source = path.read_text()
        if len(source.splitlines()) > LONG_FILE:
            too_long.append(f"{path.relative_to(ROOT)}: {len(source.splitlines())} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                body = node.end_lineno - node.body[0].lineno + 1
                if body > LONG_FUNCTION:
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name} has {body} lines")
    assert not too_long, "\n".join(too_long)


def settings_of(path: Path) -> list[tuple[str, str]]:
    """(class, field) of each dataclass field in a file that a user can set."""
    return [
        (node.name, item.target.id)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Arguments"))
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def test_every_setting_is_read_somewhere():
    """A field that no line reads is a promise to the user that nothing keeps."""
    files = [path for path in FILES.values()]
    settings = {field for path in files for field in settings_of(path)}
    assert len(settings) > 40
    inherited = {"learning_rate", "adam_epsilon", "adam_beta2", "max_grad_norm", "logging_steps", "lr_scheduler_type"}
    inherited |= {
        "warmup_steps",
        "weight_decay",
        "num_train_epochs",
        "remove_unused_columns",
    }  # transformers reads them
    inherited |= {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_steps",
        "bf16",
        "report_to",
        "save_strategy",
        "train_sampling_strategy",
        "ddp_find_unused_parameters",
    }
    source = "\n".join(path.read_text() for path in files)
    attributes = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    unread = sorted(f"{owner}.{name}" for owner, name in settings if name not in attributes | inherited)
    assert not unread, f"no line reads {unread}"


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
    own = {f"rlhf_kit.{name}" for name in ("terminal.__init__", "terminal.console", "escaping")}
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
