"""What the recipes name, for `tests.hub`: repositories with the files, columns and splits of the real ones.

Rows are a few of our own, weights tiny and random, of the architecture and the files that the real model has.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from datasets import Dataset, Features, Value
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from tests.families import tokenizer_of
from tests.hub import Files, Hub

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # these names are those of openai-community's
TINY = {
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1},
    "qwen2": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_window_layers": 1},
}  # fmt: skip
TINY["qwen3"] = TINY["qwen2"] | {"head_dim": 8}
SHARDED = ("Qwen/Qwen3-8B-Base",)

TEXT, NUMBER = Value("string"), Value("float64")
TURNS = [{"content": TEXT, "role": TEXT}]
NO_ROBOTS = Features({"prompt": TEXT, "prompt_id": TEXT, "messages": TURNS, "category": TEXT})
BINARIZED = Features({"chosen": TURNS, "rejected": TURNS, "score_chosen": NUMBER, "score_rejected": NUMBER})
PROMPTS = Features({"prompt": TURNS})
PILE = Features({"text": TEXT, "meta": {"pile_set_name": TEXT}})


def serve_recipes(hub: Hub, gpt2_tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Add all of them; `folder` is for the models on their way."""
    hub.moved |= {name: f"openai-community/{name}" for name in GPT2}
    qwen = tokenizer_of("qwen")
    for path in sorted(CONFIGS.rglob("config.json")):
        name = path.parent.relative_to(CONFIGS).as_posix()
        made = tiny(name, gpt2_tokenizer if name in GPT2 else qwen, folder / name)
        hub.add(hub.moved.get(name, name), made)
    for name, files in data().items():
        hub.add(name, files, kind="datasets")


def tiny(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A model with the configuration of `name` but for its size, as its repository has it."""
    values = json.loads((CONFIGS / name / "config.json").read_text())
    end = tokenizer.eos_token_id
    values |= TINY[values["model_type"]] | {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    model.save_pretrained(folder, max_shard_size="10KB" if name in SHARDED else "1GB")
    tokenizer.save_pretrained(folder)
    return folder


def data() -> dict[str, Files]:
    """The data sets by name."""
    return {
        "HuggingFaceH4/no_robots": _split(NO_ROBOTS, [_dialogue(at) for at in range(16)], CARD),
        "trl-lib/ultrafeedback_binarized": _split(BINARIZED, [_pair(at) for at in range(16)], CARD),
        "trl-lib/ultrafeedback-prompt": _split(PROMPTS, [_prompt(at) for at in range(16)], "---\ntags:\n- trl\n---\n"),
        "NeelNanda/pile-10k": _pile(9510),
    }


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
"""


def _split(features: Features, rows: list[dict], card: str) -> Files:
    """The last four rows are the test split."""
    files = {"README.md": card.encode(), ".gitattributes": b""}
    for split, part in (("train", rows[:-4]), ("test", rows[-4:])):
        files[f"data/{split}-00000-of-00001.parquet"] = _parquet(features, part)
    return files


def _pile(count: int) -> Files:
    """A repository of before there were cards: its splits are told in a file of their own."""
    told = {"train": {"name": "train", "num_bytes": 0, "num_examples": count, "dataset_name": "pile-10k"}}
    infos = {"NeelNanda--pile-10k": {"features": PILE.to_dict(), "splits": told}}
    rows = [{"text": f"the cat {at} sat", "meta": {"pile_set_name": "Pile-CC"}} for at in range(count)]
    return {
        "README.md": b"---\nlicense: bigscience-bloom-rail-1.0\n---\n",
        "data/train-00000-of-00001-4746b8785c874cc7.parquet": _parquet(PILE, rows),
        "dataset_infos.json": json.dumps(infos).encode(),
    }


def _parquet(features: Features, rows: list[dict]) -> bytes:
    content = io.BytesIO()
    Dataset.from_list(rows, features=features).to_parquet(content)
    return content.getvalue()


def _turn(role: str, text: str) -> dict:
    return {"content": text, "role": role}


def _dialogue(at: int) -> dict:
    """Every fourth has a system message and a second turn."""
    turns = [_turn("user", f"Question {at}?"), _turn("assistant", f"Answer {at}.")]
    if at % 4 == 0:
        turns = [_turn("system", "Be brief."), *turns, _turn("user", "And then?"), _turn("assistant", "Nothing.")]
    return {"prompt": f"Question {at}?", "prompt_id": f"{at:064x}", "messages": turns, "category": "Chat"}


def _pair(at: int) -> dict:
    """The answer that lost is empty in one row of the training data, as in some of the real ones."""
    asked = _turn("user", f"Question {at}?")
    lost = "" if at == 3 else f"Bad answer {at}."
    chosen, rejected = ([asked, _turn("assistant", text)] for text in (f"Good answer {at}.", lost))
    return {"chosen": chosen, "rejected": rejected, "score_chosen": 8.5, "score_rejected": 6.0}


def _prompt(at: int) -> dict:
    return {"prompt": [_turn("user", f"Question {at}?")]}
