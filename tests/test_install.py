"""What a release holds: built without a network, installed into an environment of its own, used elsewhere."""

import configparser
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import newest
import pytest

ROOT = Path(__file__).parents[1]
FRONT_DOORS = ("eval", "recipes")  # of a checkout


def ran(command, cwd, **environment) -> str:
    """What a command prints; it ends well, and knows neither the checkout nor a hub."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    known |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "COLUMNS": "200", **environment}
    ended = subprocess.run(list(map(str, command)), cwd=cwd, env=known, capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def tracked() -> list[str]:
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [name for name in told.split("\0") if name and (ROOT / name).is_file()]


def packaged(names) -> set[str]:
    """Where the files of the packages lie in a wheel."""
    return {name for name in names if name.startswith("rlhf_kit/")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The source distribution of what git has, unpacked."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    program = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    ran([sys.executable, "-c", program], checkout)
    (archive,) = (checkout / "dist").iterdir()
    with tarfile.open(archive) as packed:
        packed.extractall(checkout / "unpacked", filter="data")
    (folder,) = (checkout / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(sources) -> Path:
    """Built of the source distribution, as an installer does that finds no wheel."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
    ran([*pip, "--wheel-dir", "wheels", "."], sources)
    (file,) = (sources / "wheels").iterdir()
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel; what it depends on is this one's, the checkout left out."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--no-deps", "--quiet", "--force-reinstall"]
    ran([*pip, wheel], folder)
    return folder


def test_a_source_distribution_holds_what_is_built_and_read(sources):
    held = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    top = {name for name in tracked() if "/" not in name and not name.startswith(".")} - {"Makefile"}
    folders = {name for name in tracked() if name.partition("/")[0] in ("rlhf_kit", *FRONT_DOORS, "docs")}
    assert top | folders <= held
    assert not {name for name in held if name.startswith(("tests/", "benchmarks/"))}


def test_a_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        told = packed.read(metadata).decode()
        licences = [name for name in packed.namelist() if name.endswith("/LICENSE")]
    assert held == packaged(tracked())
    assert "rlhf_kit/py.typed" in held and licences
    assert "\nRequires-Python: >=3.11\n" in told and "\nThe recipe behind ChatGPT for GPT-2" in told


def test_an_installed_wheel_runs_outside_the_checkout(environment, tmp_path):
    command = environment / "bin" / "rlhf-kit"
    assert "ppo" in ran([command, "--help"], tmp_path)
    assert ran([environment / "bin" / "python", "-m", "rlhf_kit", "--version"], tmp_path).startswith("rlhf-kit ")
    plan = ran([command, "sft", "--config", "world/sft", "--dry-run", "--output_dir", "out"], tmp_path)
    assert "Plan of sft" in plan and list(tmp_path.iterdir()) == []


def test_an_installed_wheel_has_its_world(environment, tmp_path):
    program = (
        "import rlhf_kit.eval, rlhf_kit.stages\n"
        "from rlhf_kit import PPOTrainer\n"
        "from rlhf_kit.data.loading import load\n"
        "from rlhf_kit.eval.icl.page import TABLE\n"
        "from rlhf_kit.models.checkpoints import load_policy\n"
        "from rlhf_kit.world import BASE\n"
        "rows, kind = load('world', ['prompts'])\n"
        "print(rlhf_kit.__file__, rlhf_kit.eval.__file__, rlhf_kit.stages.__file__)\n"
        "print(PPOTrainer.__name__, kind, len(rows) > 100, load_policy(str(BASE)).config.model_type, TABLE.is_file())"
    )
    *_, files, ended = ran([environment / "bin" / "python", "-c", program], tmp_path).splitlines()
    assert all(file.startswith(str(environment)) for file in files.split())
    assert ended == "PPOTrainer prompts True gpt2 True"


def test_pythons_floor_is_one_number_everywhere():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    floor = setup["options"]["python_requires"].removeprefix(">=")
    versions = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert sorted(versions, key=lambda version: int(version[2:]))[0] == floor
    assert sys.version_info >= tuple(map(int, floor.split(".")))
    assert f'target-version = "py{floor.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    assert f"v < ({floor.replace('.', ', ')})" in (ROOT / "Makefile").read_text()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        named = re.findall(r"Python (3\.\d+) (?:or later|以上)", path.read_text(encoding="utf-8"))
        assert set(named) <= {floor} and (named or "README" not in path.name), path


def test_nothing_is_required_twice():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for wanted in (setup["options"]["install_requires"], *setup["options.extras_require"].values()):
        names = [re.split(r"[><=~!]", line)[0].strip() for line in wanted.splitlines() if line.strip()]
        assert len(names) == len(set(names))


def test_what_was_tried_is_written_between_the_marks(tmp_path):
    path = tmp_path / "install.md"
    path.write_text(f"before\n{newest.BEGIN}\nold\n{newest.END}\nafter\n", encoding="utf-8")
    newest.write(path, newest.table({"Python": "3.11.7", "torch": "2.13.0"}, ["tests/data"], "3 passed in 1.00s"))
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{newest.BEGIN}\n") and text.endswith(f"{newest.END}\nafter\n")
    assert "`python -m pytest tests/data`: 3 passed in 1.00s.\n" in text and "| torch | 2.13.0 |\n" in text
    assert "old" not in text
    document = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert document.count(newest.BEGIN) == document.count(newest.END) == 1
    assert {"torch", "transformers", "pytest"} < set(newest.requirements())
