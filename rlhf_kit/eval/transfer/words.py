"""What the table says in words, English and Chinese: is the gate passed, what transfers, which order is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rlhf_kit.eval.transfer.table import GATE, KEPT, OPEN, TURNED, Estimate, Gate, Report, Transfer
from rlhf_kit.pages.shell import number

Sentence = tuple[str, str]
NOTE = (
    "95 % intervals: a bootstrap over passages and seeds. 信賴區間：對段落與亂數種子重抽。",
    "Published figures are of other data and sizes unless the tests are those of the paper. 論文數字僅供對照。",
)
TRIAL = "--limit was given: no result to report. 只評了一部分，不可當成結果。"
VERDICTS = {KEPT: "相符", TURNED: "相反", OPEN: "看不出來"}


def sentences(report: Report) -> list[Sentence]:
    """In the order in which they matter."""
    return [*_state(report), *_gate(report), *_transfers(report), *_orders(report)]


def percent(estimate: Estimate, form: str = ".1f") -> str:
    """ "63.3 (60.1 to 66.0)" """
    between = ""
    if estimate.interval is not None:
        between = f" ({' to '.join(number(bound, form) for bound in estimate.interval)})"
    return number(estimate.value, form) + between


def _state(report: Report) -> Iterator[Sentence]:
    done, cells = report.cells
    if done < cells:
        yield f"Not finished: {done} of {cells} cells. The same command resumes.", f"尚未完成：{done}/{cells}。"
    without: dict[str, list[str]] = {}
    for row in report.table.rows:
        if row.name in report.skipped:
            without.setdefault(row.model, []).append(row.name)
    for model, names in without.items():
        rows = ", ".join(names)
        yield f"Left out: {rows}. This copy of the kit has no checkpoint {model}.", f"略過 {rows}：沒有 {model}。"


def _gate(report: Report) -> Iterator[Sentence]:
    """Passed only if every row that is tested in a language it did not learn reads the language it did."""
    if not report.transfers:
        return
    known = [one for one in report.transfers if one.gates]
    if not known:
        if report.guesses:
            yield (
                "No gate: no row tested in a new language also has a test in a language it was trained on. Add one.",
                "沒有門檻：缺少學過的語言的測試。",
            )
            return
        yield (
            "No gate: the score of guessing is known for the embedded world's questions only.",
            "沒有門檻：只有內建世界的題目能算出亂猜的分數。",
        )
        return
    failed = _names(one for one in known if not one.passed)
    passed = _names(one for one in known if one.passed)
    rule = f"exact match in the learned language at least {GATE:.0f} points above guessing an answer of the right type"
    rule_zh = f"門檻：在學過的語言上，完全答對率至少要比「同類型亂猜」高 {GATE:.0f} 分"
    detail = "; ".join(dict.fromkeys(_gate_told(gate) for one in known for gate in one.gates))
    if failed:
        yield (
            f"The gate ({rule}) is NOT passed by {failed}: no transfer is claimed there. {detail}.",
            f"{rule_zh}。未通過：{failed}，不能說有遷移。",
        )
    if passed:
        also = "" if failed else f" {detail}."
        yield f"The gate ({rule}) is passed by {passed}.{also}", f"{rule_zh}。通過：{passed}。"


def _names(transfers: Iterable[Transfer]) -> str:
    return ", ".join(dict.fromkeys(one.row for one in transfers))


def _gate_told(gate: Gate) -> str:
    return f"{gate.row} on {gate.test}: {gate.em:.1f}, guessing {gate.guess:.1f}, {number(gate.above, '+.1f')}"


def _transfers(report: Report) -> Iterator[Sentence]:
    for one in report.transfers:
        sentence = f"{one.row} on {one.test}, a language it was not fine-tuned on: exact match {percent(one.em)}"
        told_zh = f"{one.row} 測 {one.test}（沒有微調過的語言）：完全答對率 {one.em.value:.1f}"
        if one.above is None:
            yield f"{sentence}.", f"{told_zh}。"
            continue
        sentence += f", {percent(one.above, '+.1f')} above guessing"
        low, high = one.above.interval or (-math.inf, math.inf)
        if one.passed is None:
            yield f"{sentence}; not claimed, no test in a language it learned.", f"{told_zh}；沒有可比的測試。"
        elif not one.passed:
            yield f"{sentence}; not claimed, the gate.", f"{told_zh}；未過門檻，不算遷移。"
        elif low > 0:
            yield f"{sentence}: reading transfers.", f"{told_zh}：閱讀能力遷移了。"
        elif high < 0:
            yield f"{sentence}: less than guessing, no transfer.", f"{told_zh}：不如亂猜，沒有遷移。"
        else:
            yield (
                f"{sentence}: cannot be told from guessing, no transfer is claimed.",
                f"{told_zh}：和亂猜分不出高下，不能說有遷移。",
            )


def _orders(report: Report) -> Iterator[Sentence]:
    """The published order, test by test, and how much of it comes out here."""
    for test in dict.fromkeys(order.test for order in report.orders):
        orders = [order for order in report.orders if order.test == test]
        parts, parts_zh = [], []
        for verdict, zh in VERDICTS.items():
            pairs = [f"{order.better} > {order.worse}" for order in orders if order.verdict == verdict]
            if pairs:
                parts.append(f"{verdict}: {len(pairs)} ({', '.join(pairs)})")
                parts_zh.append(f"{zh} {len(pairs)} 組")
        yield (
            f"The published order of F1, {len(orders)} pairs, on {test}: {'; '.join(parts)}.",
            f"論文的 F1 高低順序（{len(orders)} 組），在 {test}：{'、'.join(parts_zh)}。",
        )
