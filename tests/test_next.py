"""Where a model goes next: what this machine can run of the page, on models that the kit's own stages save."""

import re
from pathlib import Path

import pytest
import torch
from jinja2 import Environment
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_kit.cli import main
from rlhf_kit.inputs import parse_json
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.stages.pretrain import train_tokenizer
from tests.stages.conftest import base, demonstrations, ranked, scratch, stage, texts, write_jsonl  # noqa: F401

PAGE = (Path(__file__).parents[1] / "docs" / "next.md").read_text(encoding="utf-8")
ASKED = [{"role": "user", "content": "Where does Anna live?"}]
SAID = [{"role": "system", "content": "S"}, *ASKED, {"role": "assistant", "content": "安娜 b"}, *ASKED]


def programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_a_folder_answers_in_a_pipeline_as_in_the_kit(stage, tmp_path, monkeypatch, capsys):  # noqa: F811
    assert stage("sft", tmp_path / "runs" / "my" / "sft") == 0
    monkeypatch.chdir(tmp_path)
    folder = "runs/my/sft"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, load_policy(folder).eval()(**inputs).logits)
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    capsys.readouterr()
    exec(programs()[0], {})
    assert capsys.readouterr().out == tokenizer.decode(output, skip_special_tokens=True) + "\n"


def test_a_reward_model_scores_as_rlhf_kit_score(stage, write_jsonl, tmp_path, monkeypatch):  # noqa: F811
    assert stage("reward", tmp_path / "runs" / "my" / "reward") == 0
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(programs()[1], namespace)
    question, answer = (turn["content"] for turn in namespace["messages"])
    rows = write_jsonl("rows.jsonl", [{"prompt": question, "completion": answer}])
    words = ["--dataset_name", str(rows), "--output_file", "scored.jsonl"]
    assert main(["score", "--model_name_or_path", "runs/my/reward", *words]) == 0
    assert parse_json(Path("scored.jsonl").read_text())["score"] == pytest.approx(namespace["score"], abs=1e-5)


def test_an_adapter_and_its_merge_are_one_model(stage, tmp_path, monkeypatch):  # noqa: F811
    options = ["--use_peft", "--lora_r", "4", "--learning_rate", "1e-1"]
    assert stage("sft", tmp_path / "runs" / "my-lora" / "sft", *options) == 0
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^rlhf-kit (merge .*)$", PAGE, re.MULTILINE)
    assert main(command.split()) == 0
    models = [
        AutoPeftModelForCausalLM.from_pretrained("runs/my-lora/sft"),
        AutoModelForCausalLM.from_pretrained("runs/my-lora/merged"),
        AutoModelForCausalLM.from_pretrained("base"),
    ]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        adapted, merged, before = (model.eval()(input_ids=ids).logits for model in models)
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-2)


def test_the_modelfiles_template_is_the_chat_template(tokenizer):
    """Go's template language has the same pieces by other names."""
    (template,) = re.findall(r'^TEMPLATE """(.*)"""$', PAGE, re.MULTILINE)
    names = {
        "range .Messages": "{% for turn in messages %}",
        "else": "{% else %}",
        ".Content": "{{ turn.content }}",
    }
    names |= {f'{word} eq .Role "{role}"': f"{{% {other} turn.role == '{role}' %}}" for word, other, role in
              [("if", "if", "assistant"), ("else if", "elif", "system")]}  # fmt: skip
    ends = iter(["{% endif %}", "{% endfor %}"])
    jinja = re.sub(r"\{\{ (.+?) \}\}", lambda at: next(ends) if at[1] == "end" else names[at[1]], template)
    text = Environment().from_string(jinja).render(messages=SAID)
    assert text == tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    (stop,) = re.findall(r'^PARAMETER stop "(.*)"$', PAGE, re.MULTILINE)
    assert stop == tokenizer.eos_token


def test_the_converters_pre_tokenizer_is_how_a_trained_tokenizer_cuts(tmp_path):
    """llama.cpp's "gpt-2" is the byte-level cut of GPT-2, without a space put in front."""
    trained = train_tokenizer(["the cat sat on the mat"] * 3, 270)
    trained.save_pretrained(tmp_path)
    cut = parse_json((tmp_path / "tokenizer.json").read_text())
    assert cut["normalizer"] is None and cut["pre_tokenizer"]["type"] == "ByteLevel"
    assert cut["pre_tokenizer"]["use_regex"] and not cut["pre_tokenizer"]["add_prefix_space"]
    assert 'lambda self, tokenizer: "gpt-2"' in programs()[2]
