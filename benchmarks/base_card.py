"""Install a pre-trained model as the world's base: half precision, its training curve, and a card of what it can do.

    python benchmarks/base_card.py runs/world/base rlhf_kit/world/base

The base has never seen a question answered in a chat. So it is asked in the form that its text has, `Q: ... A:`, takes
the likeliest token each time, and is judged by the same truth as every later stage; beside it stands the form of the
chat, which it does not know yet.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from rlhf_kit import world
from rlhf_kit.data.chat import encode_prompt, set_chat_template
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.pages.charts import STYLE, Line, svg_lines
from rlhf_kit.report.page import read_metrics

BOOK = {"en": "Q: {}\nA:", "zh": "問：{}\n答："}  # how the world's text writes a question and its answer


def as_book(messages: list[dict], language: str) -> str:
    """A dialogue in the form of the pre-training text; without the answer to come."""
    turns = []
    for message in messages:
        if message["role"] == "user":
            turns.append(BOOK[language].format(message["content"]))
        else:
            turns.append(f"{' ' if language == 'en' else ''}{message['content']}\n")
    return "".join(turns)


def answers(model, tokenizer, prompts: list[list[int]]) -> list[str]:
    rollout = sample(
        model, prompts, eos_ids=[tokenizer.eos_token_id], pad_id=tokenizer.pad_token_id, max_completion_length=40,
        temperature=0, batch_size=64,
    )  # fmt: skip
    return rollout.texts(tokenizer)


def correct_by_kind(rows: list[dict], texts: list[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """(category, language) -> right answers, questions."""
    found = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        found[row["category"], row["language"]].append(world.judge(row["prompt"], text).correct)
    return {key: (sum(values), len(values)) for key, values in sorted(found.items())}


def table(book: dict, chat: dict) -> str:
    lines = ["| asked | language | as a book, `Q: … A:` | as a chat |", "| --- | --- | --- | --- |"]
    for key in book:
        cells = [f"{right}/{asked} = {right / asked:.2f}" for right, asked in (book[key], chat[key])]
        lines.append(f"| {key[0]} | {key[1]} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main(source: Path, target: Path) -> None:
    tokenizer, model = load_tokenizer(source), load_policy(source).eval()
    rows = world.rows("prompts", "test", size=600)
    book = [tokenizer(as_book(row["prompt"], row["language"]))["input_ids"] for row in rows]
    said = [re.split(r"\n", text)[0] for text in answers(model, tokenizer, book)]
    in_book = correct_by_kind(rows, said)
    set_chat_template(tokenizer)
    in_chat = correct_by_kind(rows, answers(model, tokenizer, [encode_prompt(tokenizer, r["prompt"]) for r in rows]))

    target.mkdir(parents=True, exist_ok=True)
    model.config.activation_function = "gelu_pytorch_tanh"  # gelu_new in one kernel
    model.half().save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    metrics = read_metrics(source)
    curve = [(row["step"], row["loss"]) for row in metrics if "loss" in row]
    drawn = svg_lines("Pre-training loss 預訓練損失", [Line("loss", "blue", curve)], "step 訓練步數", "nats per token")
    # A file of its own needs the name space and the styles that a page would give it.
    alone = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    alone = alone.replace(">", f"><style>{STYLE}</style>", 1)
    (target / "training-curve.svg").write_text(alone, encoding="utf-8")
    run = json.loads((source / "run.json").read_text())
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    parameters = sum(p.numel() for p in model.parameters())
    numbers = run["metrics"]
    (target / "README.md").write_text(
        CARD.format(
            parameters=f"{parameters:,}",
            size=f"{(target / 'model.safetensors').stat().st_size / 1e6:.1f} MB",
            steps=run["steps"],
            seed=run["seed"],
            minutes=f"{run['seconds'] / 60:.0f}",
            loss=f"{numbers['eval_loss']:.3f}",
            perplexity=f"{numbers['eval_perplexity']:.2f}",
            digest=digest,
            versions=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
            table=table(in_book, in_chat),
            questions=len(rows),
        ),
        encoding="utf-8",
    )
    print((target / "README.md").read_text())


CARD = """# The base model of the embedded world 小世界的預訓練模型

A GPT-2 of {parameters} parameters (4 layers x 192, 4 heads, 256 positions, byte-level BPE of 2,048 tokens),
pre-trained on the text of `rlhf_kit.world` and on nothing else: `world.rows("text", "train")`, 60,000 documents,
English and Traditional Chinese. Half precision on disk ({size}); load it as any model:
`AutoModelForCausalLM.from_pretrained`.
只用小世界的文字做過文字接龍，還沒學過怎麼回答問題。

| | |
| --- | --- |
| recipe | `rlhf-kit pretrain --config world/pretrain`, then `python benchmarks/base_card.py` |
| steps, seed | {steps}, {seed} |
| time | {minutes} minutes of two shared CPU cores |
| held-out loss | {loss} nats per token (perplexity {perplexity}), 1,000 documents |
| sha256 of `model.safetensors` | `{digest}` |
| versions | {versions} |

It was trained with `gelu_new`; the config names `gelu_pytorch_tanh`, the same function in one kernel.

![training curve](training-curve.svg)

## What it can and cannot do 會什麼、不會什麼

Measured by `benchmarks/base_card.py` on {questions} held-out prompts, the likeliest token each time, judged by
`rlhf_kit.world.judge`. "unknown" wants an honest "I don't know", "harmful" a refusal: nothing in the text teaches
either, and a base model has no reason to give them. "fact" and "followup" ask for facts that the text states;
"reading" for a made-up fact of the passage; "sum" adds numbers up to 20.

{table}
"""

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
