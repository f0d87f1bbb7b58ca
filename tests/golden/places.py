"""The working folder of the golden runs: small files of data and small models of fixed seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import rlhf_kit

FIXTURES = Path(__file__).parents[1] / "fixtures" / "golden"
OLD = FIXTURES / "old"  # folders that an earlier version left unfinished, and the tiny models they are of
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = ("good", "a bad one", "so so", "the longest of all the answers", "no", "why not", "yes, it is", "perhaps")
CAPITALS = {"Aru": "Belo", "Cema": "Dono", "Efi": "Gora", "Hino": "Iva"}


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**letters, "<eos>": 256}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<eos>", **options)


def save_language_model(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_embd=8, n_head=2, n_positions=192, vocab_size=257, bos_token_id=256, eos_token_id=256)
    GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def save_reward_model(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    sizes = dict(n_layer=1, n_embd=8, n_head=2, n_positions=192, vocab_size=257, num_labels=1)
    ids = dict(bos_token_id=256, eos_token_id=256, pad_token_id=256)
    GPT2ForSequenceClassification(GPT2Config(**sizes, **ids, initializer_range=0.3)).save_pretrained(folder)
    tokenizer = byte_tokenizer(pad_token="<eos>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


def save_reader(folder: Path) -> None:
    """A BERT that answers by a span; its tokens are the characters of the passages and their whole words."""
    texts = [text for row in squad()["data"][0]["paragraphs"] for text in (row["context"], row["qas"][0]["question"])]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    words = sorted({word for text in texts for word in text.split() if word.isalpha()} - {*letters})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = BertConfig(vocab_size=len(pieces), max_position_embeddings=64, initializer_range=0.3, **sizes)
    BertForQuestionAnswering(config).save_pretrained(folder)
    BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=False).save_pretrained(folder)


# --- data -----------------------------------------------------------------------------------------------------------


def squad() -> dict:
    rows = []
    for at, (country, city) in enumerate(CAPITALS.items()):
        context = f"The capital of {country} is {city} and people like it there. It has {at + 3} rivers."
        asked = [("What is the capital", city), ("How many rivers", str(at + 3))]
        rows.append(
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{country}-{number}",
                        "question": f"{question} of {country}?",
                        "answers": [{"text": answer, "answer_start": context.index(answer)}],
                    }
                    for number, (question, answer) in enumerate(asked)
                ],
            }
        )
    return {"version": "1.1", "data": [{"title": "Capitals", "paragraphs": rows}]}


def coqa() -> dict:
    def story(name, source, text, *turns):
        numbered = [{"turn_id": at, "input_text": question} for at, (question, _) in enumerate(turns, 1)]
        answers = [{"turn_id": at, "input_text": answer} for at, (_, answer) in enumerate(turns, 1)]
        return {"id": name, "source": source, "story": text, "questions": numbered, "answers": answers}

    stories = [
        story("cat", "mctest", "The cat sat on the mat.", ("Who sat?", "the cat"), ("Where?", "on the mat")),
        story("dog", "cnn", "And so did the dog.", ("Who?", "the dog"), ("Was it the cat?", "no"), ("Did it?", "yes")),
        story("bird", "race", "The bird says hello.", ("What does it say?", "hello"), ("Who?", "the bird")),
    ]
    return {"version": "1.0", "data": stories}


def ranked() -> list[dict]:
    rows = []
    for at in range(10):
        size = 2 + at % 3
        answers = [WORDS[(at + 3 * k) % len(WORDS)] for k in range(size)]
        prompt = [{"role": "user", "content": f"say {at // 2}"}]
        rows.append({"prompt": prompt, "completions": answers, "ranks": [1 + (at + k) % size for k in range(size)]})
    return rows


def told(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def files() -> dict[str, object]:
    """Data by file name."""
    return {
        "texts.jsonl": [{"text": f"The cat {at} sat on the mat {at * at}, and so did the dog."} for at in range(24)],
        "demonstrations.jsonl": [{"messages": told(f"hello {at}", "the cat sat")} for at in range(8)],
        "ranked.jsonl": ranked(),
        "thumbs.jsonl": [
            {"prompt": f"q{at // 2}", "completion": WORDS[at % 8], "label": at % 3 != 0} for at in range(8)
        ],
        "pairs.jsonl": [
            {"prompt": told(f"q{at}"), "chosen": told("", WORDS[at])[1:], "rejected": told("", WORDS[at + 1])[1:]}
            for at in range(4)
        ],
        "no-answers.jsonl": [*ranked()[:2], {"prompt": "a question", "completions": ["one"], "ranks": [1]}],
        "no-messages.jsonl": [{"messages": told("hello", "the cat")}, {"messages": told("hello", "")}],
        "articles.jsonl": [
            {
                "article": f"{country} is a country of rivers. Its capital is {city}. "
                "People go there by boat. It rains.",
                "highlights": f"{city} is the capital of {country}. People go there by boat.",
            }
            for country, city in CAPITALS.items()
        ],
        "passages.jsonl": [
            {"text": f"The capital of {country} is {city}. Many people live in {city}"}
            for country, city in CAPITALS.items()
        ],
        "coqa.json": coqa(),
        "coqa-said.json": [
            {"id": story, "turn_id": turn, "answer": answer}
            for story, turn, answer in (
                ("cat", 1, "cat"),
                ("cat", 2, "the mat"),
                ("dog", 1, "a dog"),
                ("dog", 2, "no"),
            )
        ],
        "choices.jsonl": [
            {"question": f"What is the capital of {country}?", "choices": [city, "Rome", "no"], "labels": [1, 0, 0]}
            for country, city in CAPITALS.items()
        ],
        "squad.json": squad(),
        "squad-said.json": {f"{country}-{at}": city for country, city in CAPITALS.items() for at in range(2)},
    }


COMPARISON = {
    "model_name_or_path": "lm", "reward_model": "judge", "prompts": "ranked.jsonl", "heldout_prompts": "ranked.jsonl",
    "truth": "rlhf_kit.world:truth_reward", "tuning_trials": 2, "seeds": [0],
}  # fmt: skip
PPO_METHOD = {"method": "ppo", "strengths": [0.1, 0.2], "options": {"total_episodes": 12}}


def declarations() -> dict[str, object]:
    """What a command reads its options, its table or its suite from, by file name."""
    table_data = {"source": "squad.json", "language": "en"}
    sizes = {"hidden_size": 8, "word_dim": 8, "char_dim": 0, "model_blocks": 1, "num_attention_heads": 2}
    return {
        "suite.yaml": [
            {"name": "sums", "command": "icl", "options": {"tasks": ["world-sums"], "shots": 0}, "items": 3}
            | {"figure": "acc", "higher_is_better": True},
            {"name": "text", "command": "perplexity", "options": {"data": "texts.jsonl"}, "items": 4}
            | {"figure": "bits_per_byte", "paired": "nll", "higher_is_better": False},
        ],
        "bad-suite.yaml": [{"name": "sums", "command": "icl", "options": {"shot": 0}, "figure": "acc"}],
        "table.yaml": {
            "seeds": [0],
            "training": {"max_length": 64, "step": 16, "max_query_length": 24, "max_steps": 2}
            | {"per_device_train_batch_size": 4},
            "data": [{"name": "en", **table_data, "size": 6}],
            "tests": [{"name": "en", **table_data, "scorers": ["squad"], "size": 5}],
            "rows": [
                {"name": "bert", "model": "reader", "fine_tuned_on": ["en"], "published": {"en": [81.2, 88.7]}},
                {"name": "qanet", "model": "qanet", "fine_tuned_on": ["en"], "sizes": sizes},
            ],
        },
        "bad-table.yaml": {"seeds": [0], "data": [], "tests": [], "rows": [{"name": "bert"}]},
        "sft.yaml": {"model_name_or_path": "lm", "dataset_name": "demonstrations.jsonl", "max_steps": 3}
        | {"learning_rate": 1e-3, "per_device_train_batch_size": 2},
        "pretrain.yaml": {"model_name_or_path": "gpt2", "config_overrides": "n_layer=1,n_embd=8,n_head=2"}
        | {"tokenizer_name_or_path": "lm", "dataset_name": "texts.jsonl", "block_size": 32},
        "mlm.yaml": {
            "model_name_or_path": "bert",
            "config_overrides": "num_hidden_layers=1,hidden_size=8,num_attention_heads=2",
        }
        | {"train_tokenizer": 80, "dataset_name": "texts.jsonl"},
        "reward.yaml": {"model_name_or_path": "lm", "dataset_name": "ranked.jsonl"},
        "ppo.yaml": {"model_name_or_path": "lm", "dataset_name": "ranked.jsonl", "reward_funcs": ["judge"]},
        "compare.yaml": COMPARISON | {"methods": [PPO_METHOD, {"method": "best_of_n", "strengths": [2, 4]}]},
        "bad-compare.yaml": COMPARISON | {"methods": [{**PPO_METHOD, "strenghts": [1]}], "seeds": [1, 1]},
        "bad.yaml": {"model_name_or_path": "lm", "dataset_name": "demonstrations.jsonl", "learning_rat": 1},
    }


def logs(ended: float) -> list[dict]:
    """Of a PPO run whose answers end at this share at its last step, in all else healthy."""
    noise = (0.6, -1.0, 0.3, 0.9, -0.7, 0.1, -0.2)
    rows = []
    for at in range(28):
        t, n = at / 27, noise[at % 7]
        row = {"step": 4 * at + 4, "time": float(at), "loss": 0.01 * n, "grad_norm": 0.6 + 0.2 * n}
        row |= {"reward": 0.2 + 0.4 * t + 0.05 * n, "reward_std": 0.65 + 0.05 * n, "rewards/rm": 0.2 + 0.4 * t}
        row |= {"kl": 1.5 * t + 0.02 * n, "kl_coef": 0.05, "kl_per_token": 0.15 * t, "entropy": 0.3 - 0.1 * t}
        row |= {"completions/length": 13 - 3 * t + n, "completions/terminated": 0.98 + (ended - 0.98) * t}
        row |= {"value/explained_variance": min(0.6, 2 * t - 0.2), "policy/ratio": 1 + 0.02 * n}
        rows.append(row | {"policy/clip_fraction": 0.06 * (1 - t), "policy/approx_kl": 0.06 * (1 - t)})
    return rows


def text_of(name: str, content: object) -> str:
    """YAML or JSON by the name's ending; JSON lines have a line a row."""
    if name.endswith(".yaml"):
        return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    return json.dumps(content, ensure_ascii=False)


def furnish(folder: Path) -> None:
    """Data, models and the folders of earlier versions into an empty folder, in which the runs are then made."""
    for name, content in (files() | declarations()).items():
        (folder / name).write_text(text_of(name, content), encoding="utf-8")
    for name, ended in (("healthy", 0.98), ("endless", 0.05)):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text(text_of("metrics.jsonl", logs(ended)))
    for name in ("base", "bilingual"):
        shutil.copytree(Path(rlhf_kit.__file__).parent / "world" / name, folder / name)
    if OLD.is_dir():
        shutil.copytree(OLD, folder, dirs_exist_ok=True)
    else:
        save_language_model(folder / "lm")
        save_reader(folder / "reader")
        save_reward_model(folder / "old-judge", seed=3)
    save_reward_model(folder / "judge", seed=1)
    save_reward_model(folder / "other-judge", seed=2)
