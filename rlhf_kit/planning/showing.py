"""A plan as tables for people, in English with Chinese beside it, and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from rlhf_kit.planning.batches import Amount, Batch
from rlhf_kit.planning.machines import GIB, Launch, Machine
from rlhf_kit.planning.memory import ALWAYS, ROLLOUT, ROOM, UPDATE, Memory
from rlhf_kit.planning.records import Roles
from rlhf_kit.planning.work import Work
from rlhf_kit.terminal.console import Console

LINES = {
    "process": ("the process before any model", "程式本身"),
    "policy": ("weights of the model", "模型的權重"),
    "value": ("weights of the value model", "價值模型的權重"),
    "optimizer": ("optimizer", "最佳化器的狀態"),
    "masters": ("DeepSpeed's float32 weights", "DeepSpeed 的 float32 權重"),
    "reference": ("reference", "參考模型"),
    "average": ("moving average", "權重的移動平均"),
    "gradients": ("gradients", "梯度"),
    "buckets": ("DDP's buckets", "DDP 的梯度緩衝"),
    "activations": ("activations", "激活值"),
    "logits": ("logits and the backward's first tensors", "logits 與反向傳播的暫存"),
    "gathered": ("the layers that are whole", "展開中的層"),
    "whole": ("whole weights to sample with", "取樣時展開的權重"),
    "cache": ("KV cache", "KV 快取"),
    "drawing": ("logits of what is sampled and scored", "取樣與計分的 logits"),
    "experience": ("the rollout itself", "取樣的資料"),
    "heap": ("freed blocks that are not filled", "釋放後沒有再用到的記憶體"),
}
WHEN = {ALWAYS: "", UPDATE: "update 更新時", ROLLOUT: "rollout 取樣時"}
WORK = {
    "training": ("training", "訓練"),
    "sampling": ("sampling", "取樣"),
    "reference": ("reference", "參考模型"),
    "values": ("log-probs and values", "重算機率與價值"),
    "rewards": ("reward models", "獎勵模型"),
}


@dataclass
class Plan:
    stage: str
    model: str
    starts_from: str  # `model`, or what the stages that make it start from
    data: str
    machine: Machine
    launch: Launch
    memory: Memory
    amount: Amount
    batch: Batch
    work: Work | None
    roles: Roles
    utilisation: float
    half: bool
    price: float | None
    remedies: list[tuple[list[str], Memory]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def cost(self) -> float | None:
        if self.price is None or self.work is None:
            return None
        return self.work.hours * self.launch.devices * self.price


def gibibytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def share_of(memory: Memory) -> str:
    return f"{gibibytes(memory.peak)}, {memory.peak / memory.device:.0%} of a device's {gibibytes(memory.device)}"


def show(plan: Plan) -> None:
    console = Console()
    console.print(_about(plan))
    console.print(_memory(plan))
    if plan.work is not None:
        console.print(_work(plan, plan.work))
    for line in verdict(plan):
        console.tell(line)


def _about(plan: Plan) -> Table:
    table = Table(title=f"Plan of {plan.stage}: nothing is loaded, trained or written 只是估算", show_header=False)
    trained = sum(part.trained for part in plan.roles.trained)
    made = "" if plan.starts_from == plan.model else f", not there yet: as {plan.starts_from}, which it starts from"
    table.add_row("model 模型", f"{plan.model}: {plan.roles.policy.parameters:,} parameters{made}")
    table.add_row("trained 訓練的參數", f"{trained:,}")
    precision = "16-bit autocast" if plan.half else "float32"
    table.add_row("device 裝置", f"{plan.machine.name}, {precision}; {plan.launch.name}")
    amount = plan.amount
    rows = "unknown: give --rows and --row_tokens" if amount.rows is None else f"{amount.rows:,} rows"
    table.add_row("data 資料", f"{plan.data}: {rows}")
    if amount.tokens is not None and plan.stage != "ppo":
        table.add_row("tokens a pass 每輪 token 數", f"{amount.tokens:,.0f}; {amount.epochs:g} passes")
    if amount.tokens is not None and plan.stage == "ppo":
        table.add_row("episodes 取樣總數", f"{amount.texts:,} of {amount.mean:,.0f} tokens each at most")
    if amount.steps is not None:
        table.add_row("optimizer steps 步數", f"{amount.steps:,}")
    for line in plan.unchecked:
        table.add_row("not checked 未檢查", line)
    return table


def _memory(plan: Plan) -> Table:
    table = Table(title="Memory of a device 每個裝置的記憶體")
    table.add_column("")
    table.add_column("GiB", justify="right")
    table.add_column("when 何時")
    table.add_column("")
    for line in plan.memory.lines:
        english, chinese = LINES.get(line.key, (line.key, ""))
        table.add_row(f"{english} {chinese}".strip(), f"{line.bytes / GIB:.2f}", WHEN[line.when], line.note)
    for when in (UPDATE, ROLLOUT) if plan.stage == "ppo" else (UPDATE,):
        table.add_row("in all 合計", f"{plan.memory.total(when) / GIB:.2f}", WHEN[when])
    return table


def _work(plan: Plan, work: Work) -> Table:
    table = Table(title=f"Work of the whole run 整個訓練的計算量 (utilisation 使用率 {plan.utilisation:g})")
    table.add_column("")
    table.add_column("PFLOP", justify="right")
    for key, flops in work.flops.items():
        table.add_row(" ".join(WORK[key]), f"{flops / 1e15:,.1f}")
    table.add_row("in all 合計", f"{work.total / 1e15:,.1f}")
    table.add_row("hours 小時", hours(work.hours))
    if plan.cost is not None:
        table.add_row("cost 費用", f"{plan.cost:,.2f}")
    return table


def hours(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:,.0f}"


def verdict(plan: Plan) -> list[str]:
    """Whether it fits, and what makes it fit."""
    memory = plan.memory
    if memory.fits:
        return [f"It fits: {share_of(memory)}. 放得下。"]
    lines = [f"It does not fit: {share_of(memory)}, of which {ROOM:.0%} may be used. 放不下。"]
    for options, changed in plan.remedies:
        lines.append(f"  {' '.join(options)}: {share_of(changed)}")
    if plan.remedies:
        lines.insert(1, "What makes it fit, one set of changes a line: 擇一即可：")
    else:
        lines.append(
            "No three changes make it fit: give a larger device, or a smaller model. 請換更大的裝置或更小的模型。"
        )
    return lines


def show_json(plan: Plan) -> str:
    memory, amount, work = plan.memory, plan.amount, plan.work
    content: dict[str, Any] = {
        "stage": plan.stage,
        "model": plan.model,
        "starts_from": plan.starts_from,
        "parameters": plan.roles.policy.parameters,
        "trained": sum(part.trained for part in plan.roles.trained),
        "device": plan.machine.name,
        "devices": plan.launch.devices,
        "launch": plan.launch.name,
        "half": plan.half,
        "micro_batch": {"rows": plan.batch.rows, "tokens": plan.batch.width},
        "memory": {
            "lines": [
                {"name": line.key, "bytes": round(line.bytes), "when": line.when, "note": line.note}
                for line in memory.lines
            ],
            "peak": round(memory.peak),
            "device": round(memory.device),
            "fits": memory.fits,
        },
        "rows": amount.rows,
        "tokens": None if amount.tokens is None else round(amount.tokens),
        "passes": amount.epochs,
        "steps": amount.steps,
        "flops": None if work is None else {**work.flops, "total": work.total},
        "utilisation": plan.utilisation,
        "hours": None if work is None else work.hours,
        "cost": plan.cost,
        "changes": [{"options": options, "peak": round(changed.peak)} for options, changed in plan.remedies],
        "not_checked": plan.unchecked,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)
