"""TL;DR as GPT-2 was measured: sentences, baselines, sampling from the two likeliest, and what the command writes."""

import json

import pytest
import torch
from transformers import GPT2LMHeadModel

from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.rouge import rouge
from rlhf_kit.eval.text import tldr as summarize
from rlhf_kit.eval.text.tldr import TLDR, Article, baseline, prompt_ids, read_articles, sample, sentences
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.options.reading import read_record

TEXT = "The cat sat. The dog did too! Did the mat? So it was. And there the story ends."
ROWS = [
    {"article": TEXT, "highlights": "The cat sat.\nThe dog sat."},
    {"article": "Hello there. " + TEXT, "highlights": "Hello there."},
    {"article": "One sentence only", "highlights": "The mat."},
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('He said "no." Then he left! Why?', ['He said "no."', "Then he left!", "Why?"]),
        ("A line\nAnother one. \n\n", ["A line", "Another one."]),
        ("他走了。她也是！「真的嗎？」他問。", ["他走了。", "她也是！", "「真的嗎？」", "他問。"]),
        ("Version 1.5 is out.", ["Version 1.5 is out."]),
        ("", []),
    ],
)
def test_sentences(text, found):
    assert sentences(text) == found


def test_baselines():
    article = Article("0", TEXT, "")
    assert baseline("lede-3", article, 0) == "The cat sat.\nThe dog did too!\nDid the mat?"
    drawn = {baseline("random-3", article, seed) for seed in range(20)}
    assert len(drawn) > 4  # of ten
    for summary in drawn:
        lines = summary.split("\n")
        places = [TEXT.index(line) for line in lines]
        assert len(set(lines)) == 3 and places == sorted(places)
    assert baseline("random-3", article, 3) == baseline("random-3", Article("0", TEXT, "other"), 3)
    assert baseline("random-3", Article("0", "Short.", ""), 0) == "Short."


def test_the_prompt_keeps_the_beginning_and_the_hint(tokenizer):
    ids, hint = tokenizer(TEXT)["input_ids"], tokenizer("\nTL;DR:")["input_ids"]
    assert prompt_ids(tokenizer, TEXT, "\nTL;DR:", None) == ids + hint
    room = 10
    assert prompt_ids(tokenizer, TEXT, "\nTL;DR:", 100 + len(hint) + room) == ids[:room] + hint
    assert prompt_ids(tokenizer, TEXT, "", 100 + room) == ids[:room]
    told = f"has {len(hint) + 1} tokens; the context of .* less 100 for the summary leaves {len(hint)}."
    with pytest.raises(UserError, match=told):
        prompt_ids(tokenizer, TEXT, "\nTL;DR:", 100 + len(hint))


def by_hand(model, tokenizer, prompt, numbers):
    """The text that is drawn, a forward of the whole row a token."""
    row, written = list(prompt), []
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, -1]
        (first, second), tokens = logits.topk(2)
        share = 1 / (1 + torch.exp(second - first).item())
        token = tokens[0 if number < share else 1].item()
        if token == tokenizer.eos_token_id:
            break
        row.append(token)
        written.append(token)
    return tokenizer.decode(written)


@pytest.fixture
def flat_policy(policy):
    """The second likeliest token is often drawn, or this shows nothing of sampling."""
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach() / 8)
    return policy.eval()


@pytest.mark.parametrize("max_batch_tokens", [1, 8192])
def test_two_likeliest_tokens_are_drawn_by_the_numbers_given(flat_policy, tokenizer, max_batch_tokens, monkeypatch):
    monkeypatch.setattr(summarize, "MAX_NEW_TOKENS", 12)
    prompts = [tokenizer(text)["input_ids"] for text in ("the cat sat on the mat", "so", "hello there the dog")]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(3, 12, generator=generator).tolist()
    found = dict(sample(flat_policy, tokenizer, prompts, numbers, max_batch_tokens))
    expected = [by_hand(flat_policy, tokenizer, *pair) for pair in zip(prompts, numbers, strict=True)]
    assert [found[at] for at in range(3)] == expected
    greedy = dict(sample(flat_policy, tokenizer, prompts, [[0.0] * 12] * 3, max_batch_tokens))
    assert [greedy[at] for at in range(3)] != expected
    assert greedy[0] == by_hand(flat_policy, tokenizer, prompts[0], [0.0] * 12)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def model_folder(tiny_config, tokenizer_folder, tmp_path):
    tiny_config.n_positions = 160
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config).save_pretrained(tmp_path / "tiny")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def run(*arguments):
    runner.run(TLDR, read_record("eval tldr", TLDR.Arguments, list(map(str, arguments))))


def results(folder):
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().split("\n")[:-1]]
    return json.loads((folder / "results.json").read_text()), items


def test_baselines_need_no_model(data, tmp_path, capsys):
    run("--data", data, "--output", tmp_path / "out")
    found, items = results(tmp_path / "out" / "lede-3")
    summaries = [item["answer"] for item in items]
    assert summaries[1] == "Hello there.\nThe cat sat.\nThe dog did too!"
    expected = [rouge(summary, row["highlights"]) for summary, row in zip(summaries, ROWS, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert found["scores"][name] == pytest.approx(100 * sum(each[name] for each in expected) / 3)
    assert found["scores"]["rouge1"] > found["scores"]["rouge2"] > 0 and found["reportable"]
    assert (tmp_path / "out" / "random-3" / "results.json").is_file()
    assert "40.38" in capsys.readouterr().out  # Lede-3 as published, to compare with


def test_a_model_is_the_same_in_any_batch_and_the_hint_matters(model_folder, data, tmp_path):
    for name, *more in (("a",), ("b", "--max-batch-tokens", 1), ("c", "--no-hint"), ("d", "--seed", 1)):
        run("--models", model_folder, "--data", data, "--output", tmp_path / name, *more)
    outputs = {name: [item["output"] for item in results(tmp_path / name / "tiny")[1]] for name in "abcd"}
    assert outputs["a"] == outputs["b"]
    assert outputs["a"] != outputs["c"] and outputs["a"] != outputs["d"]
    for item in results(tmp_path / "a" / "tiny")[1]:
        assert item["answer"] == "\n".join(sentences(item["output"])[:3])


def test_three_sentences_are_kept(model_folder, tokenizer, data, tmp_path):
    """Of a model that writes "a" or a new line, each as likely as the other."""
    model = GPT2LMHeadModel.from_pretrained(model_folder)
    model.transformer.ln_f.weight.data.zero_()
    model.transformer.ln_f.bias.data.fill_(1.0)
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[[tokenizer(text)["input_ids"][0] for text in ("a", "\n")]] = 1.0
    model.save_pretrained(model_folder)
    run("--models", model_folder, "--data", data, "--output", tmp_path / "out")
    for item in results(tmp_path / "out" / "tiny")[1]:
        lines = item["output"].split()
        assert set(item["output"]) == {"a", "\n"} and len(lines) > 3
        assert item["answer"].split("\n") == lines[:3]


def test_faults_are_told_together(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"article": "a", "highlights": "b"}\n{"article": "", "highlights": 3}\nnot json\n')
    with pytest.raises(UserError) as caught:
        read_articles(str(path), "test")
    for part in ("3 faults", "line 2: `article` must be text", "line 2: `highlights`", "line 3: is not valid JSON"):
        assert part in str(caught.value)
    path.write_text('{"article": "a", "highlights": "Да."}\n{"article": "a", "highlights": "😀 …"}\n')
    with pytest.raises(UserError, match="line 2: `highlights` has no letter or digit that ROUGE counts: '😀 …'"):
        read_articles(str(path), "test")
    path.write_text('{"story": "a"}\n')
    with pytest.raises(UserError, match="the columns are `story`; summaries need article and highlights"):
        read_articles(str(path), "test")
    with pytest.raises(UserError, match="The embedded world has no summaries"):
        read_articles("world", "test")
