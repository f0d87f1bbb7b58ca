"""What the next-token page says, and its first examples, in English and 繁體中文."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORDS: dict[str, tuple[str, str]] = {
    "next token": ("Next token", "文字接龍"),
    "next why": (
        "A language model does one thing: it gives each possible next token a probability. One is drawn, put behind "
        "the text, and the model is asked again.",
        "語言模型只做一件事：替每個可能的下一個 token 算機率。抽出一個接在後面，再問一次，就是文字接龍。",
    ),
    "begin with": ("Begin with an example", "從例子開始"),
    "text": ("Text", "文字"),
    "temperature": ("Temperature", "溫度"),
    "top-k": ("Top-k (0: all)", "Top-k（0 是全部）"),
    "top-p": ("Top-p", "Top-p"),
    "seed": ("Seed", "種子"),
    "model": ("Model", "模型"),
    "template": ("Chat template", "對話模板"),
    "add model": ("Add a model", "加一個模型"),
    "remove": ("Remove", "移除"),
    "write 1": ("Write 1", "寫 1 個"),
    "write 10": ("Write 10", "寫 10 個"),
    "write all": ("To the end", "寫到完"),
    "stop": ("Stop", "停"),
    "rest": ("all others", "其他全部"),
    "entropy": ("Entropy", "熵"),
    "bits": ("bits", "bits"),
    "chosen": ("chosen", "選的"),
    "rank of": ("rank", "排名"),
    "ended": ("The text ends here.", "文字到此結束。"),
    "end of text": ("end", "結束"),
    "prompt tokens": ("tokens read", "個 token 是讀進來的"),
    "to the start": ("Back to the prompt", "回到提示"),
    "no template": ("(this model has none)", "（這個模型沒有）"),
    "shade": (
        "Shade: the model's own probability (temperature 1); the small number is the rank. Click a piece to go back.",
        "底色深淺是模型自己的機率（溫度 1），小數字是排名。點一個字就回到那裡。",
    ),
}


@dataclass(frozen=True)
class Column:
    model: str
    template: bool


@dataclass(frozen=True)
class Card:
    """An example of one click: a title and what to look at, a text (each English, 繁體中文), and who reads it."""

    title: tuple[str, str]
    why: tuple[str, str]
    text: tuple[str, str]
    columns: Sequence[Column]


STAGES = ("base", "sft", "ppo", "ppo-no-kl")


def cards(models: Sequence[str]) -> list[Card]:
    """For a lecture, with the models there are: the demo's stages where their names are found, else the first."""
    stages = {stage: _named(stage, models) for stage in STAGES}
    there = {stage: model for stage, model in stages.items() if model is not None}
    first, tuned = there.get("base", models[0]), there.get("sft", models[-1])
    found = [
        Card(
            ("A story goes on", "接一個故事"),
            (
                "As GPT-2 went on about its unicorns: nothing of it happened, and it reads as if it had.",
                "就像 GPT-2 接獨角獸的故事：事情沒發生過，讀起來卻像真的。",
            ),
            (
                "Here is a story: A visitor named Bruno came to Lakeside. Bruno arrived on",
                "請讀這段話：今天我們在日港鎮遇見法蘭克。法蘭克是搭",
            ),
            [Column(first, False)],
        ),
        Card(
            ("A question, with and without the template", "同一個問題，有模板與沒模板"),
            (
                "Without its template a question is a text like any other, and is continued. With it, it is answered.",
                "沒有模板，問題只是一段文字，模型會接下去；有了模板才會回答。",
            ),
            ("Where does Sam live?", "山姆住在哪裡？"),
            [Column(tuned, False), Column(tuned, True)],
        ),
        Card(
            ("Is 27 a prime?", "27 是不是質數？"),
            (
                "Nobody taught it primes. It answers all the same: it only continues the text.",
                "沒有人教過它質數，它還是會答：它只是在接龍。",
            ),
            ("Is 27 a prime number?", "27 是不是質數？"),
            [Column(model, model != first) for model in dict.fromkeys((first, tuned))],
        ),
    ]
    if len(there) > 1:
        found.append(
            Card(
                ("The same prompt through the stages", "同一個提示，每個階段"),
                (
                    "What each stage of training made of the first token of the answer.",
                    "看每個訓練階段把回答的第一個 token 變成什麼。",
                ),
                ("What is Lakeside known for?", "河口鎮的市集日是哪一天？"),
                [Column(model, stage != "base") for stage, model in there.items()],
            )
        )
    return found


def _named(stage: str, models: Sequence[str]) -> str | None:
    return next((model for model in models if model.rpartition("/")[2] == stage), None)
