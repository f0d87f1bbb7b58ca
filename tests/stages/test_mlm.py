"""Masked-language modelling: rows, what is guessed, a run from scratch, and what is refused."""

import copy
import json
import math
import random
import re
import shutil

import pytest
import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast, get_scheduler

from rlhf_kit.errors import UserError
from rlhf_kit.models.muon import Together
from rlhf_kit.models.qanet.tokenizer import train_word_tokenizer
from rlhf_kit.stages import mlm, pretrain
from tests.tiny_stages import run_command

BERT = [
    *("--model_name_or_path", "bert", "--train_tokenizer", "90", "--config_overrides"),
    "num_hidden_layers=1,hidden_size=16,num_attention_heads=2,intermediate_size=32,max_position_embeddings=32",
]
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9")
FEW = ["--max_steps", "4", "--per_device_train_batch_size", "4", "--logging_steps", "2", "--disable_tqdm"]


@pytest.fixture(scope="module")
def tokenizer():
    return mlm.train_tokenizer(["the cat sat on the mat", "貓坐在墊子上", "Élan"] * 3, 80)


@pytest.mark.parametrize(
    "train, size", [(mlm.train_tokenizer, 1500), (pretrain.train_tokenizer, 600), (train_word_tokenizer, 100)]
)
def test_a_tokenizer_is_the_same_each_time_it_is_trained(train, size, monkeypatch):
    """Each training draws the order in which its threads find words and characters anew, as a new process does."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 6))) for _ in range(200)]
    texts = [" ".join(chance.choices(words, k=30)) for _ in range(200)]
    texts += ["".join(map(chr, range(0x4E00 + at, 0x4E00 + at + 100))) for at in range(0, 1500, 100)]  # equally rare
    first, *others = [train(texts, size).backend_tokenizer.to_str() for _ in range(4)]
    assert len(first) > 1000 and others == [first] * 3


def test_a_new_wordpiece_knows_the_most_frequent_characters_as_they_stand():
    """a: 4 times, b: 3 (2 behind another), c: 2; and what is joined."""
    with pytest.MonkeyPatch.context() as few:
        few.setattr(mlm, "ALPHABET", 3)
        vocabulary = mlm.train_tokenizer(["ab ab", "a b", "ca cd"], 40).get_vocab()
    names = sorted(vocabulary, key=vocabulary.get)
    assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b", "ab"]


def test_from_scratch_with_a_vocabulary_of_its_own(texts, tmp_path):
    out = tmp_path / "out"
    argv = [*BERT, *FEW, "--dataset_name", str(texts), "--eval_dataset_name", str(texts), "--output_dir", str(out)]
    assert run_command(mlm, argv) == 0
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.model_type == "bert" and model.config.vocab_size == len(tokenizer) <= 90
    assert tokenizer.mask_token == "[MASK]" and model.config.pad_token_id == tokenizer.pad_token_id
    told = json.loads((out / "run.json").read_text())
    assert told["stage"] == "mlm" and told["steps"] == 4
    assert told["metrics"]["eval_perplexity"] == pytest.approx(2.718281828 ** told["metrics"]["eval_loss"])
    # It goes on from what it made.
    more = ["--model_name_or_path", str(out), *FEW, "--dataset_name", str(texts), "--output_dir", str(tmp_path / "on")]
    assert run_command(mlm, more) == 0


def encoded(documents, tokenizer, length):
    return mlm.encode(Dataset.from_list(documents), tokenizer, length)


def test_the_vocabulary_keeps_case_and_accents_and_cuts_chinese(tokenizer):
    assert tokenizer.tokenize("貓坐") == ["貓", "坐"]
    assert "É" in "".join(tokenizer.tokenize("Élan"))


def test_a_long_document_is_cut_and_an_empty_one_gives_nothing(tokenizer):
    words = tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    rows = encoded([{"text": text} for text in ("the cat sat on the mat", " ", "cat")], tokenizer, 6)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert [row["input_ids"] for row in rows][:2] == [[cls, *words[:4], sep], [cls, *words[4:8], sep]]
    assert sum(len(row["input_ids"]) - 2 for row in rows) == len(words) + len(
        tokenizer("cat", add_special_tokens=False)["input_ids"]
    )
    assert not encoded([{"text": "\u200b"}], tokenizer, 30)  # no blank, and no token
    (typed,) = encoded([{"text": "[SEP]"}], tokenizer, 30)
    assert typed["input_ids"].count(sep) == 1  # text is data: a mark typed inside ends nothing


def test_only_masked_tokens_count_in_the_loss(tokenizer):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        mlm.plan.new_config("bert", {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}, tokenizer)
    ).eval()
    rows = encoded([{"text": "the cat sat on the mat"}, {"text": "貓坐在墊子上"}], tokenizer, 30)
    batch = mlm.SpanMasking(tokenizer, mlm_probability=0.5, seed=1)(rows)
    labels, ids = batch["labels"], batch["input_ids"]
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.pad_token_id)
    assert (labels != -100).any() and (labels[special] == -100).all()
    with torch.no_grad():
        output = model(**batch)
    guessed = labels != -100
    by_hand = -output.logits.log_softmax(-1)[guessed].gather(1, labels[guessed][:, None]).mean()
    assert float(output.loss) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_spans_are_masked_whole_and_always(tokenizer, side):
    """Salient span masking: the row's spans, each token, and no token is shown in place of [MASK]."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    text = "the cat sat on the mat"
    rows = encoded([{"text": text, "spans": [[4, 7], [19, 22]]}, {"text": "cat", "spans": None}], tokenizer, 30)
    hidden = [
        [text[a:b] for (a, b), flag in zip(offsets, row["hidden"], strict=True) if flag]
        for row, offsets in [(rows[0], tokenizer(text, return_offsets_mapping=True)["offset_mapping"])]
    ]
    assert "".join(hidden[0]) == "catmat" and not any(rows[1]["hidden"])
    batch = mlm.SpanMasking(tokenizer, mlm_probability=0.0)(rows)
    flags = torch.tensor(rows[0]["hidden"])
    assert (batch["input_ids"][0][flags] == tokenizer.mask_token_id).all()
    assert batch["labels"][0][flags].tolist() == torch.tensor(rows[0]["input_ids"])[flags].tolist()
    assert (batch["labels"][0][~flags] == -100).all() and (batch["labels"][1] == -100).all()
    assert batch["input_ids"][1][0] == tokenizer.cls_token_id  # at position 0, whatever the tokenizer's side
    swapped = mlm.SpanMasking(tokenizer, mlm_probability=0.0)(
        [{**rows[1], "hidden": [True] * len(rows[1]["hidden"])}, rows[0]]
    )
    assert (swapped["input_ids"][0] == tokenizer.mask_token_id).sum() == len(rows[1]["hidden"])
    assert (swapped["labels"][0] != -100).nonzero()[0] == 0


def test_a_token_that_holds_part_of_a_span_is_masked():
    """Byte-level tokens begin with the blank before; a span may also begin inside a word."""
    text = "Nora came by bus. Kofi came by train."
    words = ByteLevelBPETokenizer()
    words.train_from_iterator([text] * 4, vocab_size=400, show_progress=False)
    byte_level = PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, mask_token="<mask>", pad_token="<pad>")
    (row,) = encoded([{"text": text, "spans": [[13, 16], [19, 22]]}], byte_level, 60)
    masked = [at for at, hidden in zip(row["input_ids"], row["hidden"], strict=True) if hidden]
    assert byte_level.decode(masked) == " bus Kofi"


def test_spans_stay_with_their_piece_of_a_long_document(tokenizer):
    text = "the cat sat on the mat"
    rows = encoded([{"text": text, "spans": [[19, 22]]}], tokenizer, 6)
    shown = [tokenizer.convert_ids_to_tokens(i) for row in rows for i, h in zip(*row.values(), strict=True) if h]
    assert shown == tokenizer.tokenize("mat") and len(rows) > 1


@needs_muon
def test_muon_goes_on_from_a_checkpoint(tokenizer, tmp_path):
    """Stopped and resumed: the weights of an unbroken run. Spans alone are masked, no dropout: nothing is drawn."""
    data = tmp_path / "data.jsonl"
    lines = [{"text": f"the cat sat {at}", "spans": [[4, 7]]} for at in range(24)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def trained(name, *more):
        out = tmp_path / name
        argv = [
            "--model_name_or_path",
            "bert",
            "--tokenizer_name_or_path",
            str(tmp_path / "words"),
            "--config_overrides",
        ]
        argv += [f"{BERT[-1]},hidden_dropout_prob=0,attention_probs_dropout_prob=0", *FEW, "--save_steps", "2", *more]
        argv += ["--mlm_probability", "0", "--muon_learning_rate", "1e-2"]
        assert run_command(mlm, [*argv, "--dataset_name", str(data), "--output_dir", str(out)]) == 0
        return AutoModelForMaskedLM.from_pretrained(out).state_dict()

    words = tmp_path / "words"
    tokenizer.save_pretrained(words)  # one trained anew has other ids: ties fall by chance
    whole = trained("whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "broken" / "checkpoint-2")
    again = trained("broken", "--resume_from_checkpoint")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    adamw, muon = torch.load(tmp_path / "whole" / "checkpoint-4" / "optimizer.pt", weights_only=True)["parts"]
    assert [sorted(state) for state in muon["state"].values()] == [
        ["momentum_buffer"]
    ] * 6  # q, k, v, out and two more
    assert {"exp_avg", "exp_avg_sq"} < set(adamw["state"][0])


@needs_muon
def test_a_checkpoint_of_another_optimizer_is_refused_by_name():
    both = Together([torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))])])
    with pytest.raises(UserError, match="made without --muon_learning_rate"):
        both.load_state_dict({"state": {}, "param_groups": []})


@needs_muon
@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine_with_min_lr"])
def test_every_schedule_moves_both(name):
    norm, matrix = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, 2))
    both = Together([torch.optim.AdamW([norm], lr=0.1), torch.optim.Muon([matrix], lr=0.2)])
    more = {"min_lr": 0.01} if "min_lr" in name else None
    schedule = get_scheduler(name, both, 0, 10, scheduler_specific_kwargs=more)
    for _ in range(5):
        both.step()
        schedule.step()
    low, high = (group["lr"] for group in both.param_groups)
    assert 0.01 < low < 0.1 and high == pytest.approx(2 * low)


@needs_muon
def test_muon_and_adamw_take_the_steps_they_take_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.LayerNorm(4))
    alone = copy.deepcopy(model)
    matrix, norm = model[0].weight, list(model[1].parameters())
    both = Together([torch.optim.AdamW(norm, lr=0.1), torch.optim.Muon([matrix], lr=0.2)])
    parts = torch.optim.AdamW(alone[1].parameters(), lr=0.1), torch.optim.Muon([alone[0].weight], lr=0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 1 / (1 + step))
    for step in range(3):
        batch = torch.randn(5, 4)
        for net in (model, alone):
            net(batch).square().mul(torch.arange(4.0)).sum().backward()
        for part, rate in zip(parts, (0.1, 0.2), strict=True):
            part.param_groups[0]["lr"] = rate / (1 + step)
            part.step()
            part.zero_grad()
        both.step()
        both.zero_grad()
        schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--use_peft"], "adapts a trained model|nothing to adapt"),
        (["--max_length", "40"], "more than the 32 positions"),
        (["--mlm_probability", "1.5"], "at least 0 and below 1"),
        (["--max_length", "2"], "at least 3"),
        (["--muon_learning_rate", "-1"], "above 0"),
        (["--muon_learning_rate", "1e-3", "--optim", "adafactor"], "selects its own optimizers"),
        (["--mlm_probability", "0"], "some rows have none"),
    ],
)
def test_what_is_refused(more, said, texts, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_command(mlm, [*BERT, *more, "--dataset_name", str(texts), "--output_dir", str(out)]) == 2
    assert re.search(said, capsys.readouterr().err) and not out.exists()


def test_a_model_that_reads_padding_gets_none_or_is_refused(texts, tmp_path, capsys):
    """ConvBERT's convolutions take in what stands beside a token, padding too."""
    sizes = f"{BERT[-1]},embedding_size=16,initializer_range=0.5"
    argv = ["--model_name_or_path", "convbert", *BERT[2:-1], sizes, *FEW, "--dataset_name", str(texts)]
    assert run_command(mlm, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "ConvBertForMaskedLM cannot be trained on texts of different lengths" in said
    assert "give --per_device_train_batch_size 1" in said and not (tmp_path / "out" / "config.json").exists()
    assert run_command(mlm, [*argv, "--per_device_train_batch_size", "1", "--output_dir", str(tmp_path / "one")]) == 0


def test_evaluation_rows_without_a_span_are_refused_too(write_jsonl, tmp_path, capsys):
    spans = write_jsonl("spans.jsonl", [{"text": "the cat sat", "spans": [[4, 7]]}] * 8)
    plain = write_jsonl("plain.jsonl", [{"text": "the cat sat", "spans": [[4, 7]]}, {"text": "the cat sat"}])
    argv = [*BERT, *FEW, "--mlm_probability", "0", "--dataset_name", str(spans), "--output_dir", str(tmp_path / "out")]
    assert run_command(mlm, [*argv, "--eval_dataset_name", str(plain)]) == 2
    assert "some rows have none" in capsys.readouterr().err
    assert run_command(mlm, argv) == 0


def test_new_positions_start_as_sinusoids(tokenizer):
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "initializer_range": 0.05}
    model = AutoModelForMaskedLM.from_config(mlm.plan.new_config("bert", sizes, tokenizer))
    mlm.start_from_sinusoids(model)
    positions = model.bert.embeddings.position_embeddings.weight
    slow = 3 / 1000**0.5
    by_hand = [math.sin(3), math.cos(3), math.sin(slow), math.cos(slow)]
    torch.testing.assert_close(positions[3], 0.1 * torch.tensor(by_hand))
    rotary = AutoModelForMaskedLM.from_config(mlm.plan.new_config("roformer", sizes, tokenizer))
    with pytest.raises(UserError, match="a roformer has no learned positions"):
        mlm.start_from_sinusoids(rotary)


def test_trained_positions_are_not_overwritten(tmp_path, capsys):
    argv = [
        "--model_name_or_path",
        "some/bert",
        "--dataset_name",
        "world:cloze",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert run_command(mlm, [*argv, "--sinusoidal_positions"]) == 2
    assert "a trained one has its own" in capsys.readouterr().err


def test_a_gpt_has_nothing_to_put_in_a_blank(base, texts, tmp_path, capsys):
    argv = ["--model_name_or_path", str(base), "--dataset_name", str(texts), "--output_dir", str(tmp_path / "out")]
    assert run_command(mlm, argv) == 2
    assert "no mask token" in capsys.readouterr().err


def test_accumulated_batches_weigh_as_one(texts, tmp_path):
    """BERT's loss is a mean already: the logged loss does not grow with the number of batches a step."""

    def first_loss(batch, accumulated):
        out = tmp_path / f"{batch}"
        argv = [*BERT, "--dataset_name", str(texts), "--output_dir", str(out), "--max_steps", "1", "--disable_tqdm"]
        argv += ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulated)]
        assert run_command(mlm, [*argv, "--logging_steps", "1"]) == 0
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return next(row["loss"] for row in rows if "loss" in row)

    assert first_loss(4, 4) == pytest.approx(first_loss(16, 1), rel=0.2)


def test_a_rows_masks_are_those_of_its_number_and_pass(tokenizer):
    """Whatever batch, padding or worker it comes in; another pass draws anew, an evaluation never does."""
    texts = [{"text": text} for text in ("the cat sat on the mat", "the mat", "the cat sat on the mat the cat")]
    rows = mlm.numbered(encoded(texts, tokenizer, 30)).to_list()
    collator = mlm.SpanMasking(tokenizer, mlm_probability=0.5, seed=3)

    def seen(batch, at):
        count = int(batch["attention_mask"][at].sum())
        return batch["input_ids"][at, :count].tolist(), batch["labels"][at, :count].tolist()

    together, alone = collator(rows), [collator([row]) for row in rows]
    assert [seen(together, at) for at in range(3)] == [seen(batch, 0) for batch in alone]
    first = seen(together, 2)
    collator.passes.fill_(1)
    assert seen(collator(rows), 2) != first
    asked = mlm.numbered(encoded(texts, tokenizer, 30), training=False).to_list()
    then = seen(collator(asked), 2)
    collator.passes.fill_(2)
    assert seen(collator(asked), 2) == then != seen(collator(rows), 2)
    other = mlm.SpanMasking(tokenizer, mlm_probability=0.5, seed=4)
    assert seen(other(rows), 2) != first


def test_masks_are_berts(tokenizer):
    """15 % of the tokens, of these 80 % [MASK], 10 % another, 10 % as they were (Devlin et al. 2019, 3.1)."""
    ids = tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    words = [tokenizer.cls_token_id, *ids * 30, tokenizer.sep_token_id]
    rows = mlm.numbered(Dataset.from_list([{"input_ids": words}] * 200)).to_list()
    batch = mlm.SpanMasking(tokenizer, mlm_probability=0.15, seed=0)(rows)
    truth = torch.tensor(words).expand(200, -1)
    guessed = batch["labels"] != -100
    assert not guessed[:, 0].any() and not guessed[:, -1].any() and (batch["labels"] == truth)[guessed].all()
    assert float(guessed[:, 1:-1].float().mean()) == pytest.approx(0.15, abs=0.01)
    shown = batch["input_ids"][guessed]
    assert float((shown == tokenizer.mask_token_id).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((shown == truth[guessed]).float().mean()) == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.02)
    assert (batch["input_ids"] == truth)[~guessed].all()


def test_each_row_has_something_to_guess(tokenizer):
    """The loss of a batch without is NaN: that of a row alone, often."""
    rows = encoded([{"text": "the cat"}, {"text": "cat"}], tokenizer, 30)
    collator = mlm.SpanMasking(tokenizer, mlm_probability=0.01, seed=0)
    for draw in range(20):
        for row in rows:
            batch = collator([{**row, "draw": draw}])
            assert (batch["labels"] != -100).sum() >= 1
            assert (batch["labels"][0, [0, -1]] == -100).all()  # no special token


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_run_draws_the_masks_of_an_unbroken_one(workers, texts, tmp_path, caplog):
    """Dropout, rows grouped by length, a vocabulary of its own, two passes: equal weights, metrics and files."""

    def trained(name, *more):
        out = tmp_path / name
        argv = [*BERT, "--dataset_name", str(texts), "--output_dir", str(out), "--disable_tqdm", "--save_steps", "5"]
        argv += ["--num_train_epochs", "2", "--per_device_train_batch_size", "8", "--logging_steps", "3", *more]
        assert run_command(mlm, [*argv, "--dataloader_num_workers", workers, "--save_total_limit", "9"]) == 0
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        timed = ("time", "runtime", "per_second")
        return AutoModelForMaskedLM.from_pretrained(out).state_dict(), [
            {key: value for key, value in row.items() if not key.endswith(timed)} for row in rows
        ]

    def described():
        return {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json") if path.name != "run.json"}

    weights, rows = trained("out")
    files = described()
    for path in (tmp_path / "out").iterdir():  # as it was when a kill came after step 10
        if path.name not in ("checkpoint-5", "checkpoint-10", "metrics.jsonl", ".rlhf_kit"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again, same_rows = trained("out", "--resume_from_checkpoint")
    assert same_rows == rows and len(rows) > 4 and "missing keys" not in caplog.text
    assert described() == files and json.loads(files["tokenizer.json"])["truncation"] is None
    assert all(torch.equal(weights[name], again[name]) for name in weights)
