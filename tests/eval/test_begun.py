"""What is measured begins as its tokenizer begins it, and goes on doing so where it is cut."""

import json

import pytest
import torch
from families import model_of, tokenizer_of
from transformers import LlamaForSequenceClassification

from rlhf_kit.cli import main
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.coqa import Story
from rlhf_kit.data.packs import pack
from rlhf_kit.eval.coqa.turns import Prompts
from rlhf_kit.eval.text import lambada
from rlhf_kit.eval.text.tldr import prompt_ids
from rlhf_kit.models.heads import fit_context, row_format, score_texts


@pytest.fixture
def begun():
    tokenizer = tokenizer_of("llama3")
    torch.manual_seed(0)
    model = model_of("llama3", tokenizer)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(10)  # what is read matters
    return model.eval(), tokenizer, tokenizer.bos_token_id


def saved(begun, folder, kind=None):
    model, tokenizer, _ = begun
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind is not None:
        kind.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return str(folder)


def test_each_piece_of_a_document_that_was_cut_begins():
    rows = pack([[1, 5, 6, 7, 8, 9]], length=4, eos_token_id=0, start=[1])
    assert [row["input_ids"] for row in rows] == [[1, 5, 6, 7], [1, 8, 9, 0]]
    # What begins a later piece is not what begins a document: it is read, and not trained.
    assert [row["labels"] for row in rows] == [[-100, 5, 6, 7], [-100, -100, 9, 0]]
    assert pack([[1, 5, 6, 7]], length=4, eos_token_id=0, start=[1])[0]["input_ids"] == [1, 5, 6, 7]


def test_a_reward_models_row_begins_once_and_never_loses_it(begun):
    model, tokenizer, bos = begun
    form = row_format(model.config, tokenizer)
    assert fit_context([bos, 5, 6, 7], [8], 4, form) == [bos, 6, 7, 8]
    assert fit_context([5, 6, 7], [8], 4, form) == [bos, 6, 7, 8]
    assert fit_context([bos, 5], [8], None, form) == [bos, 5, 8]
    assert (
        fit_context([bos, 5], [7, 8, 9], 4, form) == [bos, 7, 8, 9]
        and fit_context([bos], [6, 7, 8, 9], 4, form) is None
    )


def test_scores_are_of_the_row_that_begins(begun):
    _, tokenizer, bos = begun
    torch.manual_seed(0)
    config = begun[0].config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config).eval()
    prompt, answer = "the cat sat on the mat, " * 30, "Yes."
    found = score_texts(model, tokenizer, [prompt], [answer])
    whole = encode_prompt(tokenizer, prompt) + tokenizer(answer, add_special_tokens=False)["input_ids"]
    row = [bos, *whole[-127:]]  # of 128 positions
    with torch.no_grad():
        by_hand = model(torch.tensor([row]), attention_mask=torch.ones(1, 128, dtype=torch.long)).logits[0, 0]
    torch.testing.assert_close(found[0], by_hand, atol=1e-5, rtol=1e-5)


def test_questions_begin_once(begun):
    _, tokenizer, bos = begun
    story = Story("id", "", "The cat sat.", ("Who?",), (("cat",),))
    for chat in (False, True):
        assert Prompts(tokenizer, None, 8, chat=chat).prompt(story, 0, []).ids.count(bos) == 1
    assert prompt_ids(tokenizer, "The cat sat. " * 99, "\nTL;DR:", 128)[0] == bos
    request = lambada.request_of(tokenizer, "the cat sat on the mat, and so did the dog", 12)
    assert request.context[0] == bos and len(request.context) + len(request.continuations[0]) - 1 == 12
    whole = lambada.request_of(tokenizer, "the cat sat", None).context
    assert whole == tokenizer("the cat")["input_ids"]


def test_every_window_of_a_text_begins(begun, tmp_path):
    """Perplexity by hand: each window behind BOS, with as many tokens before as the model reads."""
    model, tokenizer, bos = begun
    folder = saved(begun, tmp_path / "model")
    text = "the cat sat on the mat, and so did the dog. " * 12
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    argv = ["perplexity", "--model", folder, "--data", str(tmp_path / "text.jsonl"), "--stride", "32"]
    assert main(["eval", *argv, "--output", str(tmp_path / "out")]) == 0
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == bos and len(ids) > 200
    nll, start, end = 0.0, 1, 129
    while start < len(ids):
        end = min(end, len(ids))
        read = ids[max(0, end - 1 - 128) : end]
        read[0] = bos
        with torch.no_grad():
            logprobs = model(torch.tensor([read[:-1]])).logits[0].log_softmax(-1)
        nll -= sum(float(logprobs[at - 1, read[at]]) for at in range(len(read) - (end - start), len(read)))
        start, end = end, end + 32
    found = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["perplexity_token"]
    assert found == pytest.approx(float(torch.tensor(nll / (len(ids) - 1)).exp()), rel=1e-4)


def test_a_refused_prompt_is_told_before_a_reward_model_is_loaded(tmp_path, capsys):
    tokenizer = tokenizer_of("gemma")
    folder = saved((model_of("gemma", tokenizer), tokenizer, None), tmp_path / "model", LlamaForSequenceClassification)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    rows = [{"prompt": prompt, "completions": ["Yes.", "No."]}, {"prompt": prompt[1:], "completions": ["Yes.", "No."]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["eval", "reward", "--model", folder, "--data", str(tmp_path / "rows.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "refuses 1 of 2 rows: System role not supported (row 1). It does not support a system turn" in said
