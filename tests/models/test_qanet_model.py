"""QANet as a model of transformers: its size, its places, padding, loading, learning."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering

from rlhf_kit.errors import UserError
from rlhf_kit.models.qanet import QANetConfig, QANetForQuestionAnswering, train_word_tokenizer

SMALL = dict(hidden_size=32, num_attention_heads=4, model_blocks=2, word_dim=16, char_dim=8)
LOWEST = torch.finfo(torch.float32).min
FACTS = [("Ann", "Oslo", "a red kite"), ("Bob", "Rome", "two maps"), ("Eve", "Lima", "the old drum")]
QUESTIONS = ["Where does {} live?", "What does {} carry?"]


@pytest.fixture(scope="module")
def rows():
    """(question, context, answer): six questions, each context with two people."""
    rows = []
    for number, (name, place, thing) in enumerate(FACTS):
        other = FACTS[(number + 1) % 3]
        told = [f"{n} lives in {p} and carries {t}." for n, p, t in ((name, place, thing), other)]
        context = " ".join(told if number % 2 else told[::-1])
        rows += [(QUESTIONS[0].format(name), context, place), (QUESTIONS[1].format(name), context, thing)]
    return rows


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_word_tokenizer([text for question, context, _ in rows for text in (question, context)])


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    model = QANetForQuestionAnswering.from_tokenizer(tokenizer, **SMALL)
    for head in (model.start, model.end):
        torch.nn.init.normal_(head.weight)  # not near zero, so that a difference would be seen
    return model.eval()


def encode(tokenizer, rows, **options):
    return tokenizer([r[0] for r in rows], [r[1] for r in rows], padding=True, return_tensors="pt", **options)


def labelled(tokenizer, rows):
    batch = encode(tokenizer, rows)
    places = []
    for number, (_, context, answer) in enumerate(rows):
        first = context.index(answer)
        places.append([batch.char_to_token(number, at, 1) for at in (first, first + len(answer) - 1)])
    start, end = torch.tensor(places).T
    return {**batch, "start_positions": start, "end_positions": end}


def test_the_papers_sizes_make_the_parameters_that_the_formula_gives():
    d, k_embedding, k_model = 128, 7, 5
    norm, linear = 2 * d, d * d + d
    attention_and_ffn = norm + 4 * linear + norm + 2 * linear
    embedding_block = 4 * (norm + k_embedding * d + linear) + attention_and_ffn
    model_blocks = 7 * (2 * (norm + k_model * d + linear) + attention_and_ffn)
    characters, projection, highway = 5 * 200 * 200 + 200, 500 * d + d, 2 * 2 * linear
    attention, heads = 3 * d + 4 * d * d + d, 2 * 2 * d
    formula = embedding_block + model_blocks + characters + projection + highway + attention + heads
    model = QANetForQuestionAnswering(QANetConfig(vocab_size=10, char_vocab_size=10))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) - sizes["words.learned.weight"] - sizes["characters.characters.weight"] == formula
    assert round(formula / 1e6, 2) == 1.51


def test_only_the_context_and_cls_can_be_answers(model, tokenizer, rows):
    batch = encode(tokenizer, rows[:2])
    output = model(**batch)
    allowed = batch["token_type_ids"].bool()
    allowed[:, 0] = True
    for logits in (output.start_logits, output.end_logits):
        assert logits.shape == batch["input_ids"].shape
        assert (logits[~allowed] == LOWEST).all() and (logits[allowed].abs() < 1e4).all()


def test_logits_stand_at_the_places_of_the_words_that_have_them(model, tokenizer):
    """Alone in its context with [CLS] and [SEP], the one word's logits come out at its place, after any question."""
    short, long = encode(tokenizer, [("Ann", "Oslo")]), encode(tokenizer, [("Ann Ann Ann", "Oslo")])
    words = [batch["input_ids"][0].tolist().index(tokenizer.convert_tokens_to_ids("Oslo")) for batch in (short, long)]
    assert words == [3, 5]
    for batch, place in ((short, 3), (long, 5)):
        logits = model(**batch).start_logits[0]
        assert (logits > LOWEST).nonzero().flatten().tolist() == [0, place, place + 1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_company_change_nothing(model, tokenizer, rows, side):
    longer = ("Where where where does Ann live?", rows[0][1] + " " + rows[2][1], "Oslo")
    together = encode(tokenizer, [rows[0], longer], padding_side=side)
    assert not together["attention_mask"][0].all()
    alone = model(**encode(tokenizer, rows[:1]))
    real = together["attention_mask"][0].bool()
    output = model(**together)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(output[name][0][real], alone[name][0], atol=1e-4, rtol=1e-5)
        assert (output[name][0][~real] == LOWEST).all()
    together["input_ids"][0][~real] = 5  # what padding looks like
    together["token_type_ids"][0][~real] = 1
    again = model(**together)
    torch.testing.assert_close(again.start_logits[0][real], output.start_logits[0][real], atol=1e-4, rtol=1e-5)


def test_the_parts_are_put_together_as_in_the_papers_figure_1(model, tokenizer, rows):
    batch = encode(tokenizer, rows[:1])
    ids, end_of_question = batch["input_ids"][0], batch["token_type_ids"][0].argmax()
    parts = []
    for part in (torch.cat([ids[:1], ids[end_of_question:]]), ids[1:end_of_question]):
        mask = torch.ones(1, len(part), dtype=torch.bool)
        words = torch.cat([model.words.learned(part), model.characters(model.char_ids[part].long())], dim=-1)
        first, second = model.highway
        parts += [model.embedding_encoder(second(first(model.word_projection(words)))[None], mask), mask]
    passes = [model.attention_projection(model.attention(*parts))]
    for _ in range(3):
        passes.append(model.model_encoder(passes[-1], parts[1]))
    _, m0, m1, m2 = passes
    output = model(**batch)
    for logits, head, read in ((output.start_logits, model.start, (m0, m1)), (output.end_logits, model.end, (m0, m2))):
        expected = (torch.cat(read, dim=-1) @ head.weight[0])[0]
        torch.testing.assert_close(logits[0][logits[0] > LOWEST], expected)


def test_question_and_context_are_both_read(model, tokenizer, rows):
    logits = [model(**encode(tokenizer, [row])).start_logits for row in (rows[0], ("Who is in Rome?", *rows[0][1:]))]
    assert logits[0].shape == logits[1].shape and not torch.allclose(*logits)


def test_the_loss_is_the_mean_of_both_cross_entropies_and_cls_is_a_label(model, tokenizer, rows):
    batch = encode(tokenizer, rows[:2])
    start, end = torch.tensor([0, 8]), torch.tensor([0, 9])
    output = model(**batch, start_positions=start, end_positions=end)
    expected = 0.0
    for logits, labels in ((output.start_logits, start), (output.end_logits, end)):
        for row, label in zip(logits, labels, strict=True):
            expected -= (row[label].exp() / row.exp().sum()).log() / 4
    torch.testing.assert_close(output.loss, expected)
    assert model(**batch, return_dict=False)[0].equal(output.start_logits)


def test_a_gradient_reaches_every_parameter(model, tokenizer, rows):
    model.train()
    model(**labelled(tokenizer, rows)).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_auto_classes_bring_back_the_same_model(model, tokenizer, rows, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is QANetConfig
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is QANetForQuestionAnswering and loaded.char_ids.any()
    batch = encode(tokenizer, rows)
    assert loaded(**batch).end_logits.equal(model(**batch).end_logits)
    assert loaded.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_without_characters_there_is_no_such_channel(tokenizer, rows):
    model = QANetForQuestionAnswering.from_tokenizer(tokenizer, **SMALL | {"char_dim": 0})
    assert not any("char" in name for name in model.state_dict())
    assert model(**labelled(tokenizer, rows)).loss.isfinite()


def test_words_of_like_spelling_share_through_their_characters(model, tokenizer):
    """Nothing but the characters tells two words apart whose vectors are equal."""
    ann, bob = tokenizer.convert_tokens_to_ids(["Ann", "Bob"])
    model.words.learned.weight.data[:] = 0
    one = torch.ones(1, 1, dtype=torch.bool)
    first, second = (model._encoded(torch.tensor([[word]]), one) for word in (ann, bob))
    assert not torch.allclose(first, second)
    model.char_ids[bob] = model.char_ids[ann]
    assert model._encoded(torch.tensor([[bob]]), one).equal(first)


@pytest.mark.parametrize("without", ["types", "cls", "question"])
def test_a_row_that_is_no_pair_is_refused(model, tokenizer, rows, without):
    batch = encode(tokenizer, rows[:1])
    if without == "types":
        del batch["token_type_ids"]
    elif without == "cls":
        batch["input_ids"][0, 0] = 5
    else:
        batch["token_type_ids"][0, 1:] = 1
    with pytest.raises(UserError, match="token_type_ids" if without == "types" else "question and context as a pair"):
        model(**batch)


def test_half_precision_answers_too(model, tokenizer, rows):
    batch = encode(tokenizer, rows)
    full = model(**batch).start_logits
    half = model.to(torch.bfloat16)(**batch).start_logits
    assert half.dtype == torch.bfloat16 and half[0, 1] == torch.finfo(torch.bfloat16).min
    context = full > LOWEST
    assert torch.corrcoef(torch.stack([full[context], half[context].float()]))[0, 1] > 0.99


def test_a_tiny_one_learns_its_questions(tokenizer, rows):
    torch.manual_seed(0)
    sizes = SMALL | {"model_blocks": 1, "dropout": 0.0, "char_dropout": 0.0, "survival": 1.0}
    model = QANetForQuestionAnswering.from_tokenizer(tokenizer, **sizes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.8, 0.999))
    batch = labelled(tokenizer, rows)
    losses = []
    for _ in range(50):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 2.5 and losses[-1] < 0.1  # at first a guess among some 20 words
    output = model.eval()(**batch)
    assert output.start_logits.argmax(1).equal(batch["start_positions"])
    assert output.end_logits.argmax(1).equal(batch["end_positions"])
