"""Install a pre-trained BERT as one of the world's: half precision, and a card of what it can do.

    python benchmarks/bert_card.py runs/transfer/bilingual rlhf_kit/world/bilingual "one NVIDIA H200"
    python benchmarks/bert_card.py runs/transfer/chinese rlhf_kit/world/chinese "one NVIDIA H200"

The last word says on what it was trained.

A value stands in a passage; in the sentence that tells it again it is masked. Which of the values in the passage does
the model hold most likely there? Picking any is right once in as many as there are.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from rlhf_kit.world.names import LANGUAGES, VISITORS
from rlhf_kit.world.relations import STORY, fill
from rlhf_kit.world.stories import entries_of
from rlhf_kit.world.texts import SPACE

QUESTIONS = 200


def told_again(rng: random.Random, language: str, people: int, same_words: bool) -> tuple[str, str, str, list[str]]:
    """(passage, the sentence that comes again, its value, all values) of one relation."""
    relation = rng.choice(STORY)
    entries = entries_of(rng, [relation], rng.sample(VISITORS, people))
    same = rng.choice(relation.says[language])
    templates = [same if same_words else rng.choice(relation.says[language]) for _ in entries]
    said = [
        fill(template, person, language, value, color)
        for template, (_, person, value, color) in zip(templates, entries, strict=True)
    ]
    at = rng.randrange(people)
    _, person, value, color = entries[at]
    others = [template for template in relation.says[language] if same_words or template != templates[at]]
    again = fill(same if same_words else rng.choice(others), person, language, value, color)
    space = SPACE[language]
    return space.join(said) + space, again, value.say(language), [entry[2].say(language) for entry in entries]


@torch.no_grad()
def recall(model, tokenizer, language: str, people: int, same_words: bool) -> float:
    """Share of masked values for which the right one of the passage's values is the likeliest (mean log-prob)."""
    rng, right = random.Random(7), 0
    for _ in range(QUESTIONS):
        passage, again, answer, values = told_again(rng, language, people, same_words)
        scores = []
        for value in values:
            at = len(passage) + again.rindex(answer)
            text = passage + again
            filled = text[:at] + value + text[at + len(answer) :]
            encoded = tokenizer(filled, return_offsets_mapping=True)
            ids = torch.tensor([encoded["input_ids"]])
            hidden = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if at <= a < b <= at + len(value)]
            masked = ids.clone()
            masked[0, hidden] = tokenizer.mask_token_id
            logprobs = model(input_ids=masked).logits[0, hidden].float().log_softmax(-1)
            scores.append(float(logprobs.gather(1, ids[0, hidden][:, None]).mean()))
        right += values[scores.index(max(scores))] == answer
    return right / QUESTIONS


def main(source: Path, target: Path, machine: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32).eval()
    run = json.loads((source / "run.json").read_text())
    told = TOLD[run["config"]["dataset_name"]]
    lines = ["| language | of 2, same words | of 3, same words | of 3, other words |", "| --- | --- | --- | --- |"]
    for language in told["languages"]:
        shares = [recall(model, tokenizer, language, *how) for how in ((2, True), (3, True), (3, False))]
        lines.append(f"| {language} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    target.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    weights = target / "model.safetensors"
    (target / "README.md").write_text(
        CARD.format(
            parameters=f"{sum(p.numel() for p in model.parameters()):,}",
            vocabulary=f"{len(tokenizer):,}",
            size=f"{weights.stat().st_size / 1e6:.1f} MB",
            steps=run["steps"],
            seed=run["seed"],
            minutes=f"{run['seconds'] / 60:.1f}",
            machine=machine,
            loss=f"{run['metrics']['eval_loss']:.3f}",
            digest=hashlib.sha256(weights.read_bytes()).hexdigest(),
            versions=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
            questions=QUESTIONS,
            **told,
            table="\n".join(lines),
        ),
        encoding="utf-8",
    )


TOLD = {
    "world:cloze": {
        "title": "The bilingual BERT of the embedded world 小世界的雙語 BERT",
        "kind": "cloze",
        "documents": "120,000\ndocuments, each in English or in Traditional Chinese, nothing said in both",
        "chinese": "兩種語言各讀各的，沒有任何對譯。",
        "recipe": "mlm.yaml",
        "languages": LANGUAGES,
    },
    "world:cloze_zh": {
        "title": "The Chinese BERT of the embedded world 小世界的中文 BERT",
        "kind": "cloze_zh",
        "documents": "60,000\ndocuments in Traditional Chinese, as many as the bilingual one reads",
        "chinese": "只讀中文。",
        "recipe": "mlm-zh.yaml",
        "languages": ("zh",),
    },
}

CARD = """# {title}

A BERT of {parameters} parameters (4 layers x 128, 4 heads, 256 positions, cased WordPiece of {vocabulary} tokens),
pre-trained by masked-language modelling (填空題) on `world.rows("{kind}", "train")` and on nothing else: {documents}.
Half precision on disk ({size}). {chinese}

| | |
| --- | --- |
| recipe | `rlhf-kit mlm --config world/{recipe}`, then `python benchmarks/bert_card.py` |
| steps, seed | {steps}, {seed} |
| time | {minutes} minutes of {machine} |
| held-out loss | {loss} nats a masked token, 1,000 documents |
| sha256 of `model.safetensors` | `{digest}` |
| versions | {versions} |

## Does it look up? 會不會回頭找

People are told of in one respect; one sentence comes again with its value masked. The share of {questions} such
blanks in which the right one of the passage's values is the likeliest (by chance 0.50, 0.33, 0.33):

{table}

What that means for reading: `rlhf-kit eval transfer` ([docs/transfer.md](../../../docs/transfer.md)).
"""

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
