"""The documents against the code: commands run, Python runs, links resolve, the tree is the tree.

Commands run with `--dry_run` in a folder that holds the tour's own example data and tiny models where it says.
"""

import ast
import configparser
import fnmatch
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig
from readme_processes import check_labelling, check_started
from transformers import BertConfig, BertForMaskedLM, GPT2Config

from rlhf_kit import cli, world
from rlhf_kit.cli.commands import COMMANDS, GROUPS, STAGES
from rlhf_kit.data.formats import KINDS
from rlhf_kit.data.labels.importing import add_rankings
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.options.declared import declared_in_source
from rlhf_kit.stages.mlm import train_tokenizer

ROOT = Path(__file__).parents[1]
README, CHINESE = (ROOT / name for name in ("README.md", "README.zh-TW.md"))
TOUR, TREE, GUARANTEES, SCALE = (ROOT / "docs" / f"{name}.md" for name in ("tour", "files", "guarantees", "scale"))
FEEDBACK, CHAT = ROOT / "docs" / "feedback.md", ROOT / "docs" / "chat.md"
PAGES = {page: page.parent / "zh-TW" / page.name for page in (TOUR, TREE, GUARANTEES, SCALE)} | {README: CHINESE}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")]
SQUAD = [  # a file in SQuAD's format, as the tour's my/squad.json
    {
        "title": "mat",
        "paragraphs": [
            {
                "context": "the cat sat on the mat",
                "qas": [
                    {"id": "1", "question": "who sat?", "answers": [{"text": "the cat", "answer_start": 0}]},
                    {"id": "2", "question": "where?", "answers": [{"text": "the mat", "answer_start": 15}]},
                ],
            }
        ],
    }
]
ARTICLE = {"article": "the cat sat on the mat. it slept.", "highlights": "a cat slept."}  # as my/articles.jsonl
LAUNCHER = Path(sys.executable).with_name("accelerate")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(*paths: Path) -> list[str]:
    """Each command of the bash blocks, those that `&&` joins apart, then of the tables: each once."""
    lines = [line.partition("  #")[0].strip() for path in paths for line in "".join(blocks(path, "bash")).splitlines()]
    typed = [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]
    tables = [command for path in paths for _, command, _ in wishes(path) if command.split()[0] in RULES]
    return list(dict.fromkeys(typed + tables))


def wishes(path: Path) -> list[tuple[str, str, str]]:
    """(wish, command or import, pages) of each row of the front page's table that has code."""
    return re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| (\[[^|]+\)) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)


def snippets(*paths: Path) -> tuple[dict[str, str], list[str]]:
    """(files: name -> source, programs), each once. A block that begins with `# NAME.py` is a file."""
    files, programs = {}, []
    for block in dict.fromkeys(block for path in paths for block in blocks(path, "python")):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            assert name[1] not in files, f"{name[1]} is told in two ways"
            files[name[1]] = block
        else:
            programs.append(block)
    return files, programs


@pytest.fixture
def tiny_config(tokenizer) -> GPT2Config:
    """conftest's, with room for the tour's examples at three bytes a Chinese character."""
    eos = tokenizer.eos_token_id
    size = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 512}
    return GPT2Config(**size, vocab_size=len(tokenizer), bos_token_id=eos, eos_token_id=eos)


@pytest.fixture
def place(policy, reward_model, tokenizer, tmp_path, monkeypatch):
    """place(names) puts tiny models there; the current folder has the tour's data, reward function and recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    rows = re.findall(r"^\| `(my/\S+)` \| `(\{.*?\})` \|", TOUR.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == [f"my/{n}.jsonl" for n in ("text", "demonstrations", "ranked", "prompts")]
    (tmp_path / "my").mkdir()
    for name, row in rows:
        (tmp_path / name).write_text(row + "\n", encoding="utf-8")
    for name, source in snippets(README, TOUR)[0].items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "rlhf_kit").mkdir()
    for folder in ("stages", "world"):
        (tmp_path / "rlhf_kit" / folder).symlink_to(ROOT / "rlhf_kit" / folder)

    for name in ("my", "world"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        store = open_store(tmp_path / "runs" / name / "labels.db", create=True)
        add_rankings(store, [{"prompt": f"Why {at}?", "completions": ["a", "b"], "ranks": [1, 2]} for at in range(4)])
        store.engine.dispose()
    (tmp_path / "my" / "squad.json").write_text(json.dumps({"data": SQUAD}), encoding="utf-8")
    known = {"prompt": "Sure?", "completions": ["yes", "no"], "ranks": [1, 2]}  # a gold task of the feedback page
    (tmp_path / "my" / "known.jsonl").write_text(json.dumps(known) + "\n", encoding="utf-8")
    (tmp_path / "my" / "articles.jsonl").write_text(json.dumps(ARTICLE) + "\n", encoding="utf-8")
    bert = BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32)

    def put(names):
        for name in names:
            if name.endswith("bert"):
                words = train_tokenizer(["who sat on the mat? the cat", "誰來了？"] * 2, 100)
                bert.vocab_size = len(words)
                BertForMaskedLM(bert).save_pretrained(tmp_path / name)
                words.save_pretrained(tmp_path / name)
                continue
            if name == "runs/my-lora/sft":
                policy.save_pretrained(tmp_path / "base")
                save(wrap(load_policy(tmp_path / "base"), LoraConfig(r=2)), tmp_path / name)
                tokenizer.save_pretrained(tmp_path / name)
                continue
            is_reward = name.rpartition("/")[2].startswith("reward")
            (reward_model if is_reward else policy).save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny: on a busy machine two threads wait for each other
    yield put
    torch.set_num_threads(threads)
    sys.modules.pop("my_rewards", None)


def models_of(words: list[str]) -> set[str]:
    """Model folders that a command or a program reads: below runs/, the hub's gpt2; not what it writes."""
    written = {words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--output_dir", "--output")}
    places = {re.sub(r"^\w+=", "", word) for word in words}
    return {word for word in places if re.fullmatch(r"gpt2|runs/(my|my-lora|demo|quick|world)/[\w-]+", word)} - written


# -- one rule a kind of command ------------------------------------------------------------------------------------


def check_make(words, place, capsys):
    """The target is there. Nothing is built: `make -n` only says what it would do."""
    for target in (word for word in words[1:] if "=" not in word):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        ended = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


def check_pip(words, place, capsys):
    """What it names is there: the project, its extras, the constraints."""
    assert words[1] == "install"
    for option, value in zip(words[2::2], words[3::2], strict=True):
        folder, _, extras = value.partition("[")
        assert option in ("-e", "-c") and (ROOT / folder).exists()
        if option == "-e":
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            wanted = {extra for extra in extras.rstrip("]").split(",") if extra}
            assert (ROOT / "pyproject.toml").is_file() and wanted <= set(setup["options.extras_require"])


def check_kit(words, place, capsys):
    """A stage as it stands, with --dry_run; the demo runs elsewhere, here its options are known."""
    stage, rest = words[1], words[2:]
    assert stage in {*COMMANDS, *GROUPS}
    if stage == "demo":
        assert cli.main(["demo", "--help"]) == 0
        known = capsys.readouterr().out
        assert all(word in known for word in rest if word.startswith("--"))
        return
    if stage == "doctor":
        metrics = Path(rest[0])
        metrics.mkdir(parents=True)
        (metrics / "metrics.jsonl").write_text('{"step": 1, "kl": 0.1, "reward": 0.2, "loss": 0.3}\n')
        assert cli.main([stage, *rest]) == 0
        return
    place(models_of(rest))
    if "--accelerate" in rest:
        check_started(words, capsys)
        return
    if stage in ("ui", "serve", "label", "chat"):
        if stage == "ui" and not Path(rest[0]).suffix:
            place([f"{rest[0]}/sft"])  # a folder of models and runs
        check_labelling(words)
        return
    if stage in ("collect", "generate", "eval", "score", "convert", "merge", "completion"):
        assert cli.main([stage, *rest]) == 0, capsys.readouterr().err
        return
    if stage == "plan":
        assert cli.main([stage, *rest]) == 0, capsys.readouterr().err
        return
    status = cli.main([stage, *rest] if "--dry_run" in rest else [stage, *rest, "--dry_run"])
    told = capsys.readouterr()
    assert status == 0, told.err
    if "--help" in rest:
        return
    assert f"Plan of {stage}" in told.out
    if any(word.startswith("my/") for word in rest):
        assert "not checked" not in told.out


def check_accelerate(words, place, capsys):
    """Without a GPU's configuration as processes of their own; with one the file loads, and the recipe runs here."""
    script = next(word for word in words if word.endswith(".py"))
    assert words[1] == "launch" and (ROOT / script).is_file()
    stage, rest = Path(script).stem, words[words.index(script) + 1 :]
    config = words[words.index("--config_file") + 1] if "--config_file" in words else "cpu"
    if not Path(config).stem.startswith("cpu"):
        load_config_from_file(config)
        check_kit(["rlhf-kit", stage, *rest], place, capsys)
        return
    place(models_of(rest))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [str(LAUNCHER), *words[1:], "--dry_run"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"Plan of {stage}") == 1


def check_source(words, place, capsys):
    """The script is the one of the environment that `make` makes."""
    made = re.search(r"^BIN := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert words == ["source", f"{made}/activate"]


def check_python(words, place, capsys):
    """It runs, and the model that it puts here can be loaded."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words[1:]], check=True, env=environment)
    assert load_policy(Path("runs/world/base")).config.model_type == "gpt2"


RULES = {
    "make": check_make,
    "python": check_python,
    "source": check_source,
    "pip": check_pip,
    "rlhf-kit": check_kit,
    "accelerate": check_accelerate,
}


@pytest.mark.parametrize("command", commands(*PAGES, FEEDBACK, CHAT, ROOT / "CONTRIBUTING.md"))
def test_a_command_does_what_it_says(command, place, capsys):
    words = shlex.split(command)
    assert words[0] in RULES, f"no rule checks {command!r}: write one"
    RULES[words[0]](words, place, capsys)


def test_the_two_commands_come_first_and_every_stage_is_shown():
    shown = commands(README, TOUR)
    made = ["make demo", "make test", "source .venv/bin/activate"]
    assert shown[:5] == [*made, "pip install -e . -c constraints.txt", "rlhf-kit demo"]
    assert {words[1] for words in map(shlex.split, shown) if words[0] == "rlhf-kit"} == {
        *(command for command in COMMANDS if " " not in command),
        *GROUPS,
    }
    assert any(command.startswith("accelerate launch --config_file recipes/accelerate/") for command in shown)


def logged(trainer) -> set[str]:
    """Names of the training's logs, each reward as NAME."""
    names = {name for row in trainer.state.log_history if "loss" in row for name in row} - {"step"}
    return {re.sub(r"^rewards/.*", "rewards/NAME", name) for name in names}


def documented(section: str) -> set[str]:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    return {
        name
        for title in ("Every stage", section)
        for name in re.findall(r"^\| `([\w/]+)` \|", parts[title], re.MULTILINE)
    }


def test_the_function_for_rewards_takes_texts_and_messages(place):
    place([])
    brief = importlib.import_module("my_rewards").brief
    assert brief(prompts=["a"] * 2, completions=["x" * 50, ""]) == [-0.5, 0]
    assert brief(prompts=[[]], completions=[[{"role": "assistant", "content": "x" * 50}]]) == [-0.5]


@pytest.mark.parametrize("path", [README, CHINESE], ids=lambda path: path.name)
def test_a_front_page_is_short_and_has_three_pictures(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    pictures = [ROOT / picture for picture in re.findall(r"^!\[[^]]+\]\((.+)\)$", text, re.MULTILINE)]
    assert len(pictures) == 3 and all(picture.read_bytes()[:4] == b"\x89PNG" for picture in pictures)


@pytest.mark.parametrize("path", [README, CHINESE], ids=lambda path: path.name)
def test_every_wish_has_a_command_or_an_import_that_works(path):
    rows = wishes(path)
    assert len(rows) >= 20
    for _, command, _ in rows:
        if command not in commands(path):
            exec(command, {})


@pytest.mark.parametrize("path", [TOUR, PAGES[TOUR]], ids=["English", "Chinese"])
def test_questions_worth_asking_are_of_the_demos_world(path):
    text = path.read_text(encoding="utf-8")
    table = re.search(r"\n\n\| (?:worth asking|值得問的) \|.*?\n\n", text, re.DOTALL)[0]
    questions = re.findall(r"`(.+?)`", table)
    assert len(questions) >= 10
    for question in [*questions, re.search(r'"role": "user", "content": "(Where .*?)"', text)[1]]:
        world.judge(question, "")  # raises for what the world does not know
    with pytest.raises(ValueError, match="embedded world"):
        world.judge("台灣最高的山是哪一座？", "")
    row = json.loads(re.search(r"`(\{\"messages.*?\})` \|", text)[1])["messages"]
    assert world.judge(row[0]["content"], row[1]["content"]).label == "right"


SECTIONS = ["Supervised fine-tuning", "Reward model", "PPO", None]


@pytest.mark.parametrize("number, section", enumerate(SECTIONS), ids=str)
def test_python_runs_and_logs_what_the_document_says(number, section, place):
    programs = snippets(TOUR, README)[1]
    assert len(programs) == len(SECTIONS)
    place(models_of(re.findall(r'"(.*?)"', programs[number])))
    namespace: dict = {}
    exec(compile(programs[number], f"tour.md, program {number + 1}", "exec"), namespace)
    if section is None:
        return
    assert logged(namespace["trainer"]) == documented(section)
    written = Path(namespace["args"].output_dir)
    assert (written / "model.safetensors").is_file() and (written / "tokenizer.json").is_file()


def test_the_loop_of_your_own_runs_in_thirty_lines(place, capsys):
    (program,) = snippets(ROOT / "docs" / "custom-loop.md")[1]
    place(["runs/my/sft"])
    exec(compile(program, "docs/custom-loop.md", "exec"), {})
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2"]
    loop = program[program.index("for step") :].strip().splitlines()
    assert len(loop) <= 30


# -- what stands still ---------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What a link may name behind `#`: the headings as GitHub makes them addresses."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shown(path: Path) -> list[tuple[str, str]]:
    """(command, name of an option) as a page shows them: in blocks and in lines, and where a line goes on below."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?:rlhf-kit|recipes/|eval/)[^`\n]* --[^`\n]*", text)
    pairs = []
    for line in lines:
        words = re.sub(r"\b(recipes|eval)/(\w+)\.py", lambda at: "eval " * (at[1] == "eval") + at[2], line).split()
        words = words[words[0] == "rlhf-kit" :]
        name = " ".join(words[: 1 + (words[0] in GROUPS)])
        pairs += [(name, word.partition("=")[0][2:]) for word in words if word.startswith("--") and name in COMMANDS]
    return pairs


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_options_as_the_help_does(path):
    history, spoken = path.name in ("CHANGELOG.md", "LOG.md"), {"from", "to"}  # convert's, shorter than source_format
    for command, option in [] if history else shown(path):
        of_stages = STAGES.values() if command == "plan" else ()  # it takes all of the stage's
        records = [[*each.options.values()] for each in (COMMANDS[command], *of_stages)]
        declared = {name for record in records for name in declared_in_source(record).options}
        assert option in {*declared, "config", "help", "help-all"} | spoken, f"{command} --{option}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    links = re.findall(r"(?<!\\)\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8"))
    targets = [(path.parent / link if link else path, anchor) for link, anchor in links]
    assert not [target for target, _ in targets if not target.exists()]
    assert not [(target.name, anchor) for target, anchor in targets if anchor and anchor not in anchors(target)]


def test_the_tests_that_are_named_are_there():
    rows = re.findall(r"`(tests/[\w/]+\.py)` \| `(test_\w+)`", GUARANTEES.read_text(encoding="utf-8"))
    assert len(rows) > 10
    assert not [(file, test) for file, test in rows if f"def {test}(" not in (ROOT / file).read_text()]


def tree(path: Path) -> dict[str, set[str]]:
    """The page's tree: folder -> the names shown in it; a folder with none shown is not in it."""
    (block,) = blocks(path, "tree")
    found: dict[str, set[str]] = {}
    folder = ""
    for line in block.splitlines():
        inner = line.startswith("  ")
        names = re.split(r"\s{2,}", line.strip())[0].split(" ")
        if not inner:
            folder = names[0].rstrip("/")
        found.setdefault(folder if inner else "", set()).update(names)
    return found


def test_the_tree_is_the_tree():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]

    def real(folder: Path) -> set[str]:
        names = set()
        for item in folder.iterdir():
            if item.name.startswith(".") or any(fnmatch.fnmatch(item.name, pattern) for pattern in ignored):
                continue
            if item.is_file() or real(item):  # git keeps no empty folder
                names.add(item.name + "/" * item.is_dir())
        return names

    shown = tree(TREE)
    assert {"", "rlhf_kit", "recipes"} == shown.keys()
    for folder, names in shown.items():
        assert names == real(ROOT / folder) - {"__init__.py"}, folder or "the top"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_languages_hold_the_same(page):
    assert commands(page) == commands(PAGES[page])
    for english, chinese in zip(blocks(page, "python"), blocks(PAGES[page], "python"), strict=True):
        assert ast.dump(ast.parse(english)) == ast.dump(ast.parse(chinese))  # comments may be translated
    texts = [path.read_text(encoding="utf-8") for path in (page, PAGES[page])]
    for pattern in (r"`(\{.*?\})`", r"`(test_\w+)`"):
        assert re.findall(pattern, texts[0]) == re.findall(pattern, texts[1])
    if page == TREE:
        assert tree(page) == tree(PAGES[page])


@pytest.mark.parametrize("kind", KINDS)
def test_data_formats_are_read_as_they_stand(kind, tmp_path):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.search(rf"^## {kind}\n.*?^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows, encoding="utf-8")
    assert load(str(path), [kind])[1] == kind


FAULTS = re.findall(
    r"\((\w+)\):\n\n```json\n(.*?)^```\n\n```text\n(.*?)\n```",
    (ROOT / "docs" / "data.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize("kind, rows, message", FAULTS, ids=[kind for kind, *_ in FAULTS])
def test_bad_data_gives_the_message_that_stands_there(kind, rows, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "bad.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load("my/bad.jsonl", [kind])
    assert str(caught.value) == message


def test_messages_of_every_kind_with_a_contract_are_shown():
    assert {kind for kind, *_ in FAULTS} == {"prompts", "demonstrations", "ranked", "pairs", "thumbs"}
