"""LAMBADA and the perplexity of texts, through the command's own `run`: computed here from plain forwards."""

import json
import math

import pytest
import torch

from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.text import lambada
from rlhf_kit.eval.text.lambada import Lambada
from rlhf_kit.eval.text.perplexity import Perplexity
from rlhf_kit.generation.likelihood import Likelihood
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.options.reading import read_record

PASSAGES = [
    "the cat sat on the mat",
    "and so did the dog",
    "hello there the dog sat on the cat and so did the mat",
    "User: hello there",
    "a b",
]


@pytest.fixture
def model_folder(policy, tokenizer_folder, tmp_path):
    folder = tmp_path / "tiny"
    policy.save_pretrained(folder)
    load_tokenizer(tokenizer_folder).save_pretrained(folder)
    return folder


def written(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def run(command, *arguments):
    task = {"lambada": Lambada, "perplexity": Perplexity}[command]
    runner.run(task, read_record(command, task.Arguments, list(map(str, arguments))))


def results(folder):
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().split("\n")[:-1]]
    return json.loads((folder / "results.json").read_text()), items


def logprobs(model, ids):
    """(log-probability of each token after the first, whether it is the likeliest)."""
    with torch.no_grad():
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return [(found[at, ids[at + 1]].item(), found[at].argmax().item() == ids[at + 1]) for at in range(len(ids) - 1)]


def test_the_last_word_is_split_off():
    assert lambada.split_last_word(" It was Tom \n") == ("It was", " Tom")
    assert lambada.split_last_word("word") == ("", " word")


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 8192])
def test_lambada_equals_plain_forwards(policy, tokenizer, model_folder, tmp_path, max_batch_tokens):
    data = written(tmp_path / "lambada.jsonl", PASSAGES)
    run("lambada", "--model", model_folder, "--data", data, "--output", tmp_path / "out",
        "--max-batch-tokens", max_batch_tokens)  # fmt: skip
    found, items = results(tmp_path / "out")
    nll_word, nll_token, words, tokens = [], [], [], []
    for passage in PASSAGES:
        context, word = passage.rsplit(" ", 1)
        context = tokenizer(context)["input_ids"]
        target = tokenizer(f" {word}")["input_ids"]
        of_word = logprobs(policy, [*context, *target])[-len(target) :]
        nll_word.append(-sum(value for value, _ in of_word))
        nll_token.append(-of_word[-1][0])
        words.append(all(greedy for _, greedy in of_word))
        tokens.append(of_word[-1][1])
    assert any(len(tokenizer(f" {p.split()[-1]}")["input_ids"]) > 1 for p in PASSAGES)  # or word and token are one
    scores = found["scores"]
    assert scores["last_word"] == pytest.approx(100 * sum(words) / len(words))
    assert scores["last_token"] == pytest.approx(100 * sum(tokens) / len(tokens))
    assert scores["perplexity_word"] == pytest.approx(math.exp(sum(nll_word) / 5), rel=1e-4)
    assert scores["perplexity_token"] == pytest.approx(math.exp(sum(nll_token) / 5), rel=1e-4)
    assert [item["answer"] for item in items] == ["mat", "dog", "mat", "there", "b"]
    assert found["reportable"] and found["settings"]["task"] == "lambada"


def test_a_model_that_writes_the_word_is_right(policy, tokenizer, model_folder, tmp_path):
    """One that writes " the" after anything: right where that is the word, by both measures."""
    the = tokenizer(" the")["input_ids"]
    assert len(the) == 1
    policy.transformer.ln_f.weight.data.zero_()
    policy.transformer.ln_f.bias.data = 100 * policy.lm_head.weight.data[the[0]]
    policy.save_pretrained(model_folder)
    data = written(tmp_path / "lambada.jsonl", ["the cat sat on the", "and so did the mat"])
    run("lambada", "--model", model_folder, "--data", data, "--output", tmp_path / "out")
    _, items = results(tmp_path / "out")
    assert [item["scores"]["last_word"] for item in items] == [1.0, 0.0]
    assert [item["scores"]["last_token"] for item in items] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("greedy", "word", "token"), [([True, True], 1, 1), ([False, True], 0, 1), ([True, False], 0, 0)]
)
def test_a_word_of_two_tokens(greedy, word, token):
    item = lambada.item_of(0, "the cat", Likelihood([-1.0, -0.5], greedy))
    assert item.scores == {"last_word": word, "last_token": token, "nll_word": 1.5, "nll_token": 0.5}


def test_a_limit_is_no_result_and_the_folder_goes_on(model_folder, tmp_path, capsys):
    data = written(tmp_path / "lambada.jsonl", PASSAGES)
    arguments = ["--model", model_folder, "--data", data, "--output", tmp_path / "out", "--limit", 2]
    run("lambada", *arguments)
    assert "no result to report" in capsys.readouterr().out
    found, items = results(tmp_path / "out")
    assert not found["reportable"] and len(items) == 2
    run("lambada", *arguments)
    again, _ = results(tmp_path / "out")
    assert again["resumed"] == 2 and again["scores"] == found["scores"]


def test_a_passage_of_one_word_is_named(model_folder, tmp_path):
    """All of them, before the model is loaded."""
    (model_folder / "model.safetensors").write_bytes(b"no weights")
    data = written(tmp_path / "lambada.jsonl", ["two words", "one", "the cat", "two"])
    with pytest.raises(
        UserError, match="passage 1: it is a single word, .* passage 3: it is a single word, .* Remove these passages"
    ):
        run("lambada", "--model", model_folder, "--data", data)


def test_a_long_passage_loses_its_beginning(policy, tokenizer, model_folder, tmp_path):
    passage = "the cat sat on the mat and so did the dog " * 20 + "hello"
    data = written(tmp_path / "lambada.jsonl", [passage])
    run("lambada", "--model", model_folder, "--data", data, "--output", tmp_path / "out")
    _, (item,) = results(tmp_path / "out")
    ids = tokenizer(passage)["input_ids"]
    assert len(ids) > 129
    target = tokenizer(" hello")["input_ids"]
    expected = logprobs(policy, ids[-129:-1])  # 128 positions; the last token is not read
    with torch.no_grad():
        last = torch.log_softmax(policy(torch.tensor([ids[-129:-1]])).logits[0, -1].double(), -1)[ids[-1]].item()
    mine = -last - sum(value for value, _ in expected[len(expected) - len(target) + 1 :])
    assert item["scores"]["nll_word"] == pytest.approx(mine, abs=1e-3)


# --- perplexity -----------------------------------------------------------------------------------------------------


def test_perplexity_of_short_documents(policy, tokenizer, model_folder, tmp_path):
    """Each begins after the end-of-text token; a token, a word and a byte are counted over all documents."""
    data = written(tmp_path / "texts.jsonl", PASSAGES)
    run("perplexity", "--model", model_folder, "--data", data, "--output", tmp_path / "out")
    found, _ = results(tmp_path / "out")
    rows = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in PASSAGES]
    nll = -sum(value for row in rows for value, _ in logprobs(policy, row))
    tokens = sum(len(row) - 1 for row in rows)
    words = sum(len(text.split()) for text in PASSAGES)
    size = sum(len(text) for text in PASSAGES)
    assert found["scores"]["perplexity_token"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert found["scores"]["perplexity_word"] == pytest.approx(math.exp(nll / words), rel=1e-3)
    assert found["scores"]["bits_per_byte"] == pytest.approx(nll / size / math.log(2), rel=1e-4)
    assert found["n"] == {"items": 5, "clusters": 5}


@pytest.mark.parametrize("stride", [16, 128])
def test_a_long_text_in_windows(policy, tokenizer, model_folder, tmp_path, stride):
    text = "the cat sat on the mat, and so did the dog. hello there " * 24
    (tmp_path / "text.txt").write_text(text)
    run("perplexity", "--model", model_folder, "--data", tmp_path / "text.txt", "--output", tmp_path / "out",
        "--stride", stride)  # fmt: skip
    found, items = results(tmp_path / "out")
    ids, nll = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]], 0.0
    assert len(ids) > 300
    done = 1
    while done < len(ids):
        end = min(len(ids), 129 if done == 1 else done + stride)
        window = ids[max(0, end - 129) : end - 1]
        with torch.no_grad():
            found_here = torch.log_softmax(policy(torch.tensor([window])).logits[0].double(), -1)
        nll -= sum(found_here[at - end, ids[at]].item() for at in range(done, end))
        done = end
    assert found["scores"]["perplexity_token"] == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)
    assert found["scores"]["perplexity_word"] == pytest.approx(math.exp(nll / len(text.split())), rel=1e-3)
    assert found["settings"]["options"] == {"stride": stride, "window": 128, "dtype": "float32"}
    assert sum(item["details"]["tokens"] for item in items) == len(ids) - 1


def test_a_stride_beyond_the_window_is_refused(model_folder, tmp_path):
    data = written(tmp_path / "texts.jsonl", PASSAGES)
    with pytest.raises(UserError, match="--stride 129 is more than the 128 tokens"):
        run("perplexity", "--model", model_folder, "--data", data, "--stride", 129)
