"""Results item by item: the same whatever the order, the processes and the interruptions; nothing mixed or half."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from rlhf_kit import intervals
from rlhf_kit.errors import UserError
from rlhf_kit.eval.items import Item, Run, Settings, measure, read_results
from rlhf_kit.hashes import text_hash
from rlhf_kit.intervals import numbered
from rlhf_kit.models.identity import model_hash
from rlhf_kit.versions import commit

SETTINGS = Settings("toy", "plain", 1, "some/model", "m0", "data.json", "d0", seed=3, options={"shots": 2})
IDS = [f"story{number // 3}/{number % 3}" for number in range(12)]

# As a user's process would run it: two of them, started as a launcher does.
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from rlhf_kit.eval.items import Item, Run, Settings

folder, ids = Path(sys.argv[1]), json.loads(sys.argv[2])
state = PartialState(cpu=True)
assert state.num_processes == 2
with Run(folder, Settings(**json.loads(sys.argv[3])), ids, state) as run:
    for item in json.loads(sys.argv[4]):
        if item["id"] in run.todo:
            run.add(Item(**item))
found = run.finish()
print("made", len(run.todo), "of", run.resumed, "told", found is not None)
state.destroy_process_group()
"""


def item(name: str) -> Item:
    at = IDS.index(name)
    return Item(
        name, name.split("/")[0], text_hash(name), f" 答案 {at}\n", f"答案 {at}", {"em": at % 2, "f1": at / 12},
        group="news" if at < 6 else "wikipedia", details={"dropped": at},
    )  # fmt: skip


def measured(folder, names=None, settings=SETTINGS, **more):
    with Run(folder, settings, IDS, **more) as run:
        for name in run.todo if names is None else names:
            run.add(item(name))
    return run


def test_figures_are_percentages_over_all_and_by_group(tmp_path):
    found = measured(tmp_path).finish()
    assert found.scores == pytest.approx({"em": 50.0, "f1": 100 * 66 / 144})
    assert found.measured.n == {"items": 12, "clusters": 4}
    assert found.groups["news"].scores == pytest.approx({"em": 50.0, "f1": 100 * 15 / 72})
    assert found.groups["wikipedia"].n == {"items": 6, "clusters": 2}


def test_an_interval_draws_whole_stories():
    """Two stories of equal items: half of the draws hold both, a quarter each one alone twice."""
    right, wrong = ({"em": value} for value in (1.0, 0.0))
    items = [Item(str(at), "ab"[at % 2], "", "", "", (right, wrong)[at % 2]) for at in range(20)]
    assert measure(items).intervals["em"] == (0.0, 100.0)
    alone = [replace(item, cluster=item.id) for item in items]
    low, high = measure(alone).intervals["em"]
    assert 20 < low < 40 and 60 < high < 80  # the standard error of 20 throws is 11
    assert measure([replace(item, cluster="one") for item in items]).intervals["em"] is None


def test_other_figures_than_means():
    items = [
        Item(str(at), str(at), "", "", "", {"nll": nll}, details={"tokens": tokens})
        for at, (nll, tokens) in enumerate([(1.0, 1), (2.0, 3)])
    ]

    def perplexity(items, clusters):
        tokens = [item.details["tokens"] for item in items]
        nll = intervals.mean([item.scores["nll"] for item in items], clusters, tokens)
        return {"perplexity": lambda draws: np.exp(nll(draws))}

    assert measure(items, perplexity).scores == pytest.approx({"perplexity": math.exp(7 / 4)})


def test_a_score_that_an_item_has_not_is_left_out(tmp_path):
    settings = replace(SETTINGS, data_hash="d1")
    with Run(tmp_path, settings, ["a", "b", "c"]) as run:
        run.add(Item("a", "a", "", "", "", {"em": 1.0, "f1": math.nan}))
        run.add(Item("b", "b", "", "", "", {"em": 0.0, "f1": 0.25}))
        run.add(Item("c", "c", "", "", "", {"f1": 0.75}))
    assert run.finish().scores == {"em": 50.0, "f1": 50.0}
    assert json.loads((tmp_path / "items.jsonl").read_text().splitlines()[0])["scores"] == {"em": 1.0, "f1": None}
    assert math.isnan(read_results(tmp_path)[1][0].scores["f1"])


def test_the_folder_says_what_was_measured(tmp_path):
    run = measured(tmp_path)
    assert not (tmp_path / "results.json").exists()  # before it is finished there is none
    run.finish(details=lambda items: {"dropped": sum(item.details["dropped"] for item in items)})
    written = [".rlhf_kit", "items.jsonl", "results.json", "settings.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    told, items = read_results(tmp_path)
    assert told["settings"] == asdict(SETTINGS) and told["reportable"] and told["details"] == {"dropped": 66}
    assert told["n"] == {"items": 12, "clusters": 4} and set(told["intervals"]) == {"em", "f1"}
    assert {"python", "rlhf_kit", "torch", "transformers"} <= set(told["versions"]) and told["seconds"] >= 0
    assert items == [item(name) for name in IDS]
    limited = measured(tmp_path / "limited", settings=replace(SETTINGS, limit=12)).finish()
    assert not limited.reportable


def test_the_prompts_have_one_hash_together(tmp_path):
    first = measured(None).finish().prompt_hash
    assert first == measured(tmp_path).finish().prompt_hash
    with Run(None, SETTINGS, IDS) as run:
        for name in IDS:
            run.add(replace(item(name), prompt_hash=text_hash(name + "!" * (name == IDS[5]))))
    assert run.finish().prompt_hash != first


def test_any_order_gives_the_same_files(tmp_path):
    measured(tmp_path / "a").finish()
    measured(tmp_path / "b", IDS[::-1]).finish()
    assert (tmp_path / "a/items.jsonl").read_bytes() == (tmp_path / "b/items.jsonl").read_bytes()


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    whole = measured(tmp_path / "whole").finish()
    measured(tmp_path / "cut", IDS[:5])
    own = tmp_path / "cut/items-0.jsonl"
    own.write_bytes(own.read_bytes() + b'{"id": "story1/2", "clus')  # the kill came while it wrote
    run = measured(tmp_path / "cut")
    assert run.todo == IDS[5:] and run.resumed == 5
    found = run.finish()
    assert (tmp_path / "cut/items.jsonl").read_bytes() == (tmp_path / "whole/items.jsonl").read_bytes()
    assert replace(found, resumed=0, seconds=0) == replace(whole, resumed=0, seconds=0)
    assert measured(tmp_path / "cut").todo == []  # and once more: nothing is left to do


def test_a_folder_that_is_measured_anew_holds_no_results_meanwhile(tmp_path):
    measured(tmp_path).finish()
    with Run(tmp_path, SETTINGS, IDS):
        assert not (tmp_path / "results.json").exists()


def test_two_processes_go_on_with_what_one_began(tmp_path):
    measured(tmp_path / "one").finish()
    measured(tmp_path / "two", [IDS[0], IDS[7]])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [IDS, asdict(SETTINGS), [asdict(item(name)) for name in IDS]]
    command = [sys.executable, str(script), str(tmp_path / "two"), *map(json.dumps, arguments)]
    world = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"}
    started = [
        subprocess.Popen(command, env=world | {"RANK": rank, "LOCAL_RANK": rank}, stdout=-1, stderr=-1, text=True)
        for rank in "01"
    ]
    ended = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert [out.strip() for out, _ in ended] == ["made 5 of 2 told True", "made 5 of 2 told False"]
    for name in ("items.jsonl", "settings.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, two = (read_results(tmp_path / name)[0] for name in ("one", "two"))
    assert {**one, "seconds": 0, "resumed": 0} == {**two, "seconds": 0, "resumed": 0}


def test_a_story_is_made_whole_by_one_process(tmp_path):
    class Second:  # of two processes, as far as the sharing goes
        process_index, num_processes = 1, 2

    stories = [name.split("/")[0] for name in IDS]
    measured(tmp_path, IDS[:4])  # story0 is whole, story1 is not
    assert Run(tmp_path, SETTINGS, IDS, shares=stories).todo == IDS[3:]
    assert Run(tmp_path, SETTINGS, IDS, Second(), shares=stories).todo == IDS[3:6] + IDS[9:]
    assert Run(tmp_path, SETTINGS, IDS, Second()).todo == IDS[5::2]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model_hash": "m1"}, "model_hash 'm0', now 'm1'"),
        ({"data_hash": "d1"}, "data_hash 'd0', now 'd1'"),
        ({"seed": 4}, "seed 3, now 4"),
        ({"limit": 5}, "limit None, now 5"),
        ({"version": 2}, "version 1, now 2"),
        ({"options": {"shots": 3}}, "option shots 2, now 3"),
        ({"options": {"shots": 2, "beams": 4}}, "option beams None, now 4"),
    ],
)
def test_items_of_other_settings_are_not_mixed(tmp_path, change, told):
    measured(tmp_path, IDS[:2])
    with pytest.raises(UserError, match=told):
        Run(tmp_path, replace(SETTINGS, **change), IDS)


def test_the_same_model_and_data_under_another_name_go_on(tmp_path):
    measured(tmp_path, IDS[:2])
    assert Run(tmp_path, replace(SETTINGS, model="moved/model", data="moved.json"), IDS).resumed == 2


def test_what_a_user_does_wrong(tmp_path):
    with pytest.raises(UserError, match="Two items of data.json have the id 'story0/0'"):
        Run(None, SETTINGS, [*IDS, IDS[0]])
    with pytest.raises(UserError, match="has no results.json. Give"):
        read_results(tmp_path)
    measured(tmp_path / "cut", IDS[:2])
    with pytest.raises(UserError, match="not finished: run the same command again"):
        read_results(tmp_path / "cut")
    (tmp_path / "cut/items-0.jsonl").write_text('not an item\n{"id": "x"}\n')
    with pytest.raises(UserError, match="line 1 of .*items-0.jsonl"):
        Run(tmp_path / "cut", SETTINGS, IDS)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/items.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds the results of another task"):
        Run(tmp_path / "else", SETTINGS, IDS)
    (tmp_path / "else/results.json").write_text('{"protocol": 1}')
    with pytest.raises(UserError, match="has no scores item by item"):
        read_results(tmp_path / "else")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        Run(tmp_path / "file", SETTINGS, IDS)


def test_what_a_caller_does_wrong(tmp_path):
    run = measured(tmp_path, IDS[:11])
    with pytest.raises(ValueError, match="1 of 12 items are missing, for example 'story3/2'"):
        run.finish()
    assert not (tmp_path / "results.json").exists()
    with Run(None, SETTINGS, IDS) as run, pytest.raises(ValueError, match="f1 is infinite"):
        run.add(replace(item(IDS[0]), scores={"f1": -math.inf}))
    with pytest.raises(ValueError):
        measure([])


def test_names_are_numbered_as_they_come():
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_model_is_known_by_its_files(tmp_path):
    def folder(name, weights=b"weights", **more):
        path = tmp_path / name
        path.mkdir()
        files = {"model.safetensors": weights, "config.json": b"{}", "tokenizer.json": b"[]"} | more
        for file, content in files.items():
            (path / file).write_bytes(content)
        return str(path)

    plain = model_hash(folder("plain"))
    assert plain == model_hash(folder("copy", **{"run.json": b"{}", "optimizer.bin": b"1", "README.md": b"#"}))
    changed = [folder("weights", b"weight5"), folder("tokenizer", **{"tokenizer.json": b"[1]"})]
    changed += [folder("template", **{"chat_template.jinja": b"x"})]
    assert len({plain, *map(model_hash, changed)}) == 4
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "plain")}).encode()
    adapter = folder("adapter", **{"adapter_model.safetensors": b"a", "adapter_config.json": config})
    before = model_hash(adapter)
    (tmp_path / "plain/model.safetensors").write_bytes(b"trained")
    assert model_hash(adapter) != before
    with pytest.raises(UserError, match="There is no folder"):
        model_hash(str(tmp_path / "nothing"))


def test_the_commit_and_versions_are_of_this_kit():
    assert commit() is None or len(commit().removesuffix("-dirty")) == 40
