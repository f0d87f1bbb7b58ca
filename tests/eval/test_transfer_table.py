"""What the table says, from scores made by hand: means, intervals, guessing, the gate, the published order."""

import json

import numpy as np
import pytest

from rlhf_kit.eval.extractive.data import Question
from rlhf_kit.eval.items import Item, Run, Settings
from rlhf_kit.eval.scorers import Score
from rlhf_kit.eval.transfer import config, page, words
from rlhf_kit.eval.transfer.config import Cell, Data, Row, Table
from rlhf_kit.eval.transfer.data import guessing, scores
from rlhf_kit.eval.transfer.table import KEPT, OPEN, TURNED, Gate, Measured, _drawn, summed_up
from rlhf_kit.hashes import text_hash

ZH = config.Test("zh", "world:squad_zh", "zh", ("drcd", "cmrc"))
EN = config.Test("en", "world:squad_en", "en", ("squad",))
DATA = (Data("en", "world:squad_en", "en"), Data("zh", "world:squad_zh", "zh"))
GUESSES = {"zh": Score(30.0, 40.0), "en": Score(33.0, 33.0)}


def row(name, on=("en",), published=None, **more):
    return Row(name, "world:bilingual", on, "two languages", published={"zh": published} if published else {}, **more)


def made(folder, rows, right, seeds=(0,), tests=(ZH, EN), questions=20, passages=10):
    """A table whose finished cells have EM and F1 1 in the first `right[row, test]` questions, 0 elsewhere."""
    table = Table(DATA, tests, tuple(rows), seeds)
    cells = [Cell(one, seed) for seed in seeds for one in rows]
    for cell in cells:
        for test in tests:
            count = right[cell.row.name, test.name]
            count = count[cell.seed] if isinstance(count, tuple) else count
            place = cell.folder(folder) / test.name
            settings = Settings("transfer", " ".join(test.scorers), 1, "m", "h", test.source, "d", cell.seed)
            with Run(place, settings, [str(at) for at in range(questions)]) as run:
                for at in range(questions):
                    value = float(at < count)
                    found = {"em": value, "f1": value}
                    found |= {f"{scorer} {name}": value / 2 for scorer in test.scorers[1:] for name in ("em", "f1")}
                    run.add(Item(str(at), str(at % passages), text_hash("p"), "", "", found))
            run.finish(details=lambda items: {"references_a_question": 1.5, "human": None})
    return table, cells


def report(folder, rows, right, guesses=GUESSES, skipped=(), cells=None, reportable=True, **more):
    table, done = made(folder, rows, right, **more)
    return summed_up("t.yaml", table, done, cells or len(done), folder, guesses, skipped, reportable)


def told(found, language=0):
    return " ".join(pair[language] for pair in words.sentences(found))


# --- figures and intervals ------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_over_seeds_and_questions(tmp_path):
    found = report(tmp_path, [row("a")], {("a", "zh"): (10, 16), ("a", "en"): (20, 20)}, seeds=(0, 1))
    zh, cmrc, en = found.figures
    assert (zh.em.value, zh.f1.value) == (65.0, 65.0) and cmrc.em.value == 32.5  # (50 + 80) / 2; half of it
    assert zh.n == {"questions": 20, "passages": 10, "references": 30} and zh.seeds == (0, 1)
    assert en.em.value == 100.0 and en.em.interval == (100.0, 100.0)
    assert zh.em.interval[0] < 65.0 < zh.em.interval[1]


def test_an_interval_draws_passages_and_seeds():
    """All passages alike: only seeds vary. One seed: only passages vary, as an independent bootstrap has it."""
    clusters = np.repeat(np.arange(4), 3)
    of_seeds = _drawn(np.stack([np.full(12, 10.0), np.full(12, 30.0)]), clusters, "t", "r")
    values, counts = np.unique(of_seeds, return_counts=True)
    assert values.tolist() == [10.0, 20.0, 30.0] and counts / len(of_seeds) == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.04
    )
    of_passages = _drawn(np.repeat([0.0, 0.0, 100.0, 100.0], 3)[None], clusters, "t", "r")
    values, counts = np.unique(of_passages, return_counts=True)
    assert values.tolist() == [0, 25, 50, 75, 100]  # of four draws, how many are of the two right ones: binomial
    assert counts / len(of_passages) == pytest.approx(np.array([1, 4, 6, 4, 1]) / 16, abs=0.04)


def test_a_large_passage_weighs_as_its_questions_do():
    clusters = np.array([0, 0, 0, 1])
    drawn = np.unique(_drawn(np.array([[100.0, 100.0, 100.0, 0.0]]), clusters, "t", "r"))
    assert drawn.tolist() == [0.0, 75.0, 100.0]


def test_rows_share_the_draws_of_passages_and_not_those_of_seeds(tmp_path):
    rows = [row("a"), row("b")]
    table, cells = made(tmp_path, rows, {(name, test): 8 for name in "ab" for test in ("zh", "en")})
    difference = Measured(table, cells, tmp_path).estimate("zh", "a", "em", "b")
    assert difference.value == 0 and difference.interval == (0.0, 0.0)  # equal answers: no difference in any draw
    scores = np.array([[0.0] * 4, [100.0] * 4])
    first, second = (_drawn(scores, np.arange(4), "t", name) for name in "ab")
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_one_passage_has_no_interval(tmp_path):
    found = report(tmp_path, [row("a")], {("a", "zh"): 3, ("a", "en"): 3}, passages=1)
    assert found.figures[0].em.interval is None and words.percent(found.figures[0].em) == "15.0"


# --- guessing -------------------------------------------------------------------------------------------------------


def question(context, asked, answer):
    return Question("q", context, asked, ((answer, context.index(answer)),), "g")


def test_guessing_is_the_mean_over_all_values_of_the_asked_type():
    passage = "Nora came by bus. Rita traveled by taxi. Rita has a red hat. Vera came by train."
    two = [question(passage, "How did Rita come?", "taxi"), question(passage, "How did Nora come?", "bus")]
    assert guessing(EN, two) == pytest.approx((100 / 3, 100 / 3))
    alone = question("Nora came by bus. Rita has a red hat.", "How did Nora come?", "bus")
    assert guessing(EN, [*two, alone]) == pytest.approx((500 / 9, 500 / 9))  # (1/3 + 1/3 + 1) / 3


def test_nobody_knows_what_guessing_is_worth_elsewhere():
    asked = [question("Nora came by bus.", "How did Nora come?", "bus")]
    assert guessing(config.Test("x", "dev.json", "en", ("squad",)), asked) is None
    assert guessing(EN, [question("Nora came by bus.", "Is this a question?", "bus")]) is None


def test_a_scorer_against_the_first_reference_alone():
    assert scores("drcd", "ab", ["xy", "ab"]) == (1.0, 1.0) and scores("drcd:first", "ab", ["xy", "ab"]) == (0.0, 0.0)
    assert scores("drcd:first", "ax", ["xy", "ab"]) == (0.0, 0.5)


# --- the gate -------------------------------------------------------------------------------------------------------


def test_the_gate_is_25_points_of_exact_match():
    assert Gate("a", "en", 58.0, 33.0).passed and not Gate("a", "en", 57.9, 33.0).passed


def test_a_row_that_reads_its_language_may_transfer(tmp_path):
    found = report(tmp_path, [row("a")], {("a", "zh"): 16, ("a", "en"): 19})  # 80 and 95
    (one,) = found.transfers
    assert (one.row, one.test, one.em.value, one.above.value) == ("a", "zh", 80.0, 50.0) and one.passed
    assert [(gate.test, gate.em, gate.guess) for gate in one.gates] == [("en", 95.0, 33.0)]
    said = told(found)
    assert "is passed by a. a on en: 95.0, guessing 33.0, +62.0." in said and "reading transfers" in said
    assert "NOT" not in said and "閱讀能力遷移了" in told(found, 1)


def test_below_the_gate_no_transfer_is_claimed(tmp_path):
    found = report(tmp_path, [row("a")], {("a", "zh"): 19, ("a", "en"): 11})  # English 55: 22 above
    said = told(found)
    assert "is NOT passed by a: no transfer is claimed there. a on en: 55.0, guessing 33.0, +22.0." in said
    assert "above guessing; not claimed, the gate." in said and "transfers" not in said
    assert "未通過：a" in told(found, 1) and "遷移了" not in told(found, 1)


def test_one_row_may_pass_and_another_fail(tmp_path):
    right = {("a", "zh"): 16, ("a", "en"): 19, ("b", "zh"): 16, ("b", "en"): 5}
    said = told(report(tmp_path, [row("a"), row("b")], right))
    assert "is NOT passed by b" in said and "is passed by a." in said


def test_no_more_than_guessing_is_no_transfer(tmp_path):
    said = told(report(tmp_path, [row("a")], {("a", "zh"): 6, ("a", "en"): 19}))  # 30, as guessing
    assert "is passed by a" in said and "cannot be told from guessing, no transfer is claimed" in said
    worse = told(report(tmp_path, [row("a")], {("a", "zh"): 0, ("a", "en"): 19}))
    assert "less than guessing, no transfer" in worse


def test_rows_that_learned_the_language_or_nothing_before_transfer_nothing(tmp_path):
    rows = [row("both", ("en", "zh")), row("new", from_scratch=True), Row("q", "qanet", ("en",))]
    right = {(one.name, test): 19 for one in rows for test in ("zh", "en")}
    found = report(tmp_path, rows, right)
    assert found.transfers == () and "gate" not in told(found)


def test_without_a_baseline_there_is_no_gate_and_no_claim(tmp_path):
    said = told(report(tmp_path, [row("a")], {("a", "zh"): 16, ("a", "en"): 19}, guesses={}))
    assert "No gate: the score of guessing is known" in said and "transfers" not in said and "passed" not in said


# --- the published order --------------------------------------------------------------------------------------------


def test_the_published_order_kept_turned_round_or_open(tmp_path):
    rows = [row("a", published=(60, 70)), row("b", published=(70, 80)), row("c", published=(50, 60)), row("d")]
    right = {(one.name, "en"): 0 for one in rows} | {("a", "zh"): 5, ("b", "zh"): 20, ("c", "zh"): 15, ("d", "zh"): 0}
    found = report(tmp_path, rows, right)
    verdicts = {(one.better, one.worse): one.verdict for one in found.orders}
    assert verdicts == {("b", "a"): KEPT, ("a", "c"): TURNED, ("b", "c"): KEPT}
    assert [one.difference.value for one in found.orders if one.better == "a"] == [-50.0]
    assert "order of F1, 3 pairs, on zh: kept: 2 (b > a, b > c); turned round: 1 (a > c)." in told(found)
    assert "相符 2 組、相反 1 組" in told(found, 1)


def test_a_difference_by_chance_has_no_order_nor_have_equal_figures(tmp_path):
    rows = [row("a", published=(60, 70)), row("b", published=(70, 80)), row("c", published=(1, 70))]
    right = {(one.name, "en"): 0 for one in rows} | {("a", "zh"): 10, ("b", "zh"): 11, ("c", "zh"): 0}
    found = report(tmp_path, rows, right)
    assert {(one.better, one.worse): one.verdict for one in found.orders} == {("b", "a"): OPEN, ("b", "c"): KEPT}
    assert "cannot be told: 1 (b > a)" in told(found)


# --- the three forms ------------------------------------------------------------------------------------------------


def test_what_is_not_made_is_said(tmp_path):
    rows = [row("a", published=(60, 70))]
    table, done = made(tmp_path, rows, {("a", "zh"): 16, ("a", "en"): 19})
    table = Table(DATA, table.tests, (*rows, Row("b", "world:nothing", ("zh",))), table.seeds)
    found = summed_up("t.yaml", table, done, 3, tmp_path, GUESSES, ["b"], False)
    assert "Not finished: 1 of 3 cells." in told(found) and "Left out: b. This copy of the kit" in told(found)
    shown = page.markdown(found)
    assert "no result to report" in shown and "| b |" not in shown


def test_the_table_as_markdown(tmp_path):
    found = report(tmp_path, [row("a", published=(60.0, 70.5)), row("n", from_scratch=True)],
                   {("a", "zh"): 20, ("a", "en"): 20, ("n", "zh"): 0, ("n", "en"): 0})  # fmt: skip
    lines = page.markdown(found).splitlines()
    assert lines[0].split(" | ")[3:] == [
        "zh EM / F1 (drcd)", "published 論文", "zh EM / F1 (cmrc)", "en EM / F1 (squad) |"
    ]  # fmt: skip
    assert lines[2] == (
        "| a | two languages | en | 100.0 / 100.0 (100.0 to 100.0) | 60.0 / 70.5 | 50.0 / 50.0 (50.0 to 50.0) "
        "| 100.0 / 100.0 (100.0 to 100.0) |"
    )
    assert lines[3].startswith("| n | nothing 無 | en | 0.0 / 0.0 (0.0 to 0.0) |  |")
    assert lines[4] == "| guessing an answer of the right type 同類型亂猜 |  |  | 30.0 / 40.0 |  |  | 33.0 / 33.0 |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "zh: world:squad_zh (test), scorer drcd, 20 questions, 10 passages, 30 references" in "\n".join(lines)


def test_the_page_colours_by_f1_and_links_every_cell(tmp_path):
    rows = [row("a&b", published=(60.0, 70.5))]
    found = report(tmp_path, rows, {("a&b", "zh"): 15, ("a&b", "en"): 20}, seeds=(0, 1))
    shown = page.page(found, ["commit x", "torch <1>"])
    assert shown.count("<footer>") == 1 and "<footer>commit x · torch &lt;1&gt;</footer>" in shown
    assert 'style="--f1:75.0"><b>75.0' in shown and "published 60.0 / 70.5" in shown and "seeds 0, 1" in shown
    assert shown.count('href="a%26b/seed-1/') == 2 and "a&b" not in shown
    assert 'style="--f1:40.0">40.0<small>EM 30.0' in shown  # guessing


def test_people_stand_below_where_they_are_known(tmp_path):
    table, done = made(tmp_path, [row("a")], {("a", "zh"): 1, ("a", "en"): 1})
    place = done[0].folder(tmp_path) / "zh" / "results.json"
    value = json.loads(place.read_text())
    value["details"]["human"] = {"em": 78.123, "f1": 92.26}
    place.write_text(json.dumps(value))
    shown = page.markdown(summed_up("t", table, done, 1, tmp_path, {}, [], True))
    assert "| human 人 |  |  | 78.1 / 92.3 |" in shown and "guessing an answer" not in shown
