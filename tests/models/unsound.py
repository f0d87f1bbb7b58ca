"""Ways in which the files of a model may not hold what they should: `spoil(folder)`, whatever its architecture."""

import json
import os
import pickle
import re

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

FIRST_LAYER = re.compile(r"\.(h|layer)\.0\.")
SIZES = {
    "heads": ("n_head", "num_attention_heads"),
    "layers": ("n_layer", "num_hidden_layers"),
    "width": ("n_embd", "hidden_size"),
}


def file_of(name, content):
    """Bytes or text."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def without(*names):
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def with_values(file, **values):
    def spoil(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def config_with(**values):
    return with_values("config.json", **values)


def adapter_with(**values):
    return with_values("adapter_config.json", **values)


def size(name, value):
    def spoil(folder):
        had = json.loads((folder / "config.json").read_text())
        config_with(**{next(key for key in SIZES[name] if key in had): value})(folder)

    return spoil


def no_type(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "model_type"}))


def weights_with(change, file="model.safetensors"):
    def spoil(folder):
        weights = load_file(folder / file)
        save_file({name: x.contiguous() for name, x in change(weights).items()}, folder / file, {"format": "pt"})

    return spoil


def is_first(name):
    return FIRST_LAYER.search(name) is not None


def one_is(value, dtype=torch.float32):
    """One number of the first layer, in weights of a type."""

    def change(weights):
        name = next(name for name, x in weights.items() if is_first(name) and x.ndim == 1)
        weights[name][0] = value
        return {name: x.to(dtype) for name, x in weights.items()}

    return weights_with(change)


def cut_off(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def pipe(name):
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def more_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(9)])
    tokenizer.save_pretrained(folder)


def index_of(content):
    """An index in the place of the weights; None: one whose file is not there."""

    def spoil(folder):
        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index) if content is None else content)

    return spoil


class Running:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def code_in(name, instead_of, by_torch=True):
    """A pickle that writes a file `ran` where the command runs."""

    def spoil(folder):
        (folder / instead_of).unlink()
        if by_torch:
            torch.save({"weight": Running()}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps({"weight": Running()}))

    return spoil


def encoder_decoder(folder):
    for path in folder.glob("model*"):
        path.unlink()
    sizes = dict(vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)
