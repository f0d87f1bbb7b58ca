"""A tokenizer of bytes, a GPT-2 of two layers, four rankings, and a trainer for them."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers import PreTrainedTokenizerFast as FastTokenizer

from rlhf_kit.data.chat import GPT2_CHAT_TEMPLATE
from rlhf_kit.reward import RewardConfig, RewardTrainer

EOS = 256
RANKED = [
    {"prompt": "one", "completions": ["good", "bad"], "ranks": [1, 2]},
    {"prompt": "two, longer", "completions": ["a", "bb", "ccc", "dddd"], "ranks": [2, 1, 2, 3]},
    {"prompt": "three", "completions": ["best", "worst", "middle"], "ranks": [1, 3, 2]},
    {"prompt": "four", "completions": ["no", "yes it is"], "ranks": [2, 1]},
]
PAIRS = [
    {"prompt": "one", "completions": ["good", "bad one"], "ranks": [1, 2], "margin": 0.5},
    {"prompt": "two", "completions": ["longer than", "that"], "ranks": [1, 2], "margin": 0.0},
    {"prompt": "three", "completions": ["x", "y"], "ranks": [1, 2], "margin": 1.0},
]


def byte_tokenizer():
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**letters, "<eos>": EOS}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = FastTokenizer(tokenizer_object=core, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    return tokenizer


def tiny(**overrides):
    torch.manual_seed(0)
    options = dict(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2, num_labels=1, pad_token_id=None)
    ends = dict(bos_token_id=EOS, eos_token_id=EOS)
    return GPT2ForSequenceClassification(GPT2Config(**{**options, **ends, "initializer_range": 0.2, **overrides}))


def make(folder, rows=RANKED, model=None, eval_rows=None, peft_config=None, **options):
    defaults = dict(report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1)
    defaults |= dict(per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, seed=1)
    return RewardTrainer(
        tiny() if model is None else model,
        RewardConfig(str(folder), **{**defaults, **options}),
        Dataset.from_list(rows),
        None if eval_rows is None else Dataset.from_list(eval_rows),
        processing_class=byte_tokenizer(),
        peft_config=peft_config,
    )


def batch_of(trainer, rows=slice(None)):
    data = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))][rows]
    return trainer.data_collator(data)


def gradients(trainer):
    """Gradients of one accumulated step, by the trainer's own loop."""
    trainer.create_optimizer()
    kept = {}

    def keep(optimizer, *_):
        kept.update({name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return kept
