"""A BERT of two layers that answers by a span, with a tokenizer of characters and words, saved as a folder."""

import json

import torch
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizer

from rlhf_kit import world
from rlhf_kit.eval.extractive.data import questions_of

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(texts, **options):
    """Chinese characters, whole words of ASCII and their characters; what is rarer is [UNK]."""
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    words = sorted({word for text in texts for word in text.split() if word.isascii() and word.isalnum()})
    pieces = [*SPECIAL, *dict.fromkeys([*letters, *words, *(f"##{letter}" for letter in letters)])]
    return BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=False, **options)


def world_questions(count=12, kind="squad_zh", split="test"):
    return questions_of("world", world.rows(kind, split, seed=0))[0][:count]


def reader(vocabulary, seed=0, layers=2, width=32, positions=64, **options):
    """Weights large enough for its logits not to be flat."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width)
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=positions, initializer_range=0.2, **sizes)
    return BertForQuestionAnswering(config, **options).eval()


def saved_reader(folder, model=None):
    texts = [question.context + question.question for question in world_questions(60)]
    tokenizer = tokenizer_of(texts)
    (model or reader(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def squad_file(path, *paragraphs):
    """Each (context, [(id, question, [(answer, start), ...]), ...]) a paragraph of one article."""
    rows = [
        {
            "context": context,
            "qas": [
                {
                    "id": name,
                    "question": asked,
                    "answers": [{"text": text, "answer_start": start} for text, start in answers],
                }
                for name, asked, answers in questions
            ],
        }
        for context, questions in paragraphs
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": rows}]}, ensure_ascii=False))
    return str(path)
