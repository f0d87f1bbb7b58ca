"""What DPO and KTO share: TRL's trainer with the kit's tokens, models, adapters and checks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rlhf_kit.methods.checks import check_logprobs
from rlhf_kit.methods.config import Refusals, refuse_options
from rlhf_kit.models import preflight
from rlhf_kit.models.adapters import refuse_adapted_head, trainable
from rlhf_kit.models.checkpoints import load_config, load_policy, load_tokenizer, set_special_tokens
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.merging import merged
from rlhf_kit.models.roles import check_readers, reference_of, refuse_shared_weights
from rlhf_kit.models.weights import short_name, with_origin
from rlhf_kit.training.launch import usable
from rlhf_kit.training.on_trl import OnTRL

logger = logging.getLogger(__name__)


class PreferenceMixin(OnTRL):
    """Stands before TRL's trainer among the bases."""

    config_class: ClassVar[type]
    refused: ClassVar[Refusals]
    conditional: ClassVar[dict[str, tuple[str, Sequence]]]
    encode: ClassVar[Callable[..., tuple[Dataset, dict[str, int]]]]
    columns: ClassVar[set[str]]  # of rows that are encoded

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TrainingArguments | None = None,
        train_dataset: Dataset | list[dict] | None = None,
        eval_dataset: Dataset | list[dict] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        **options: Any,
    ):
        args = usable(args or self.config_class(f"{short_name(model)}-{self._name}"))
        self.refuse(args, 0.0 if peft_config is None else peft_config.lora_dropout)
        model, name = with_origin("a causal language model", model)
        tokenizer = processing_class or load_tokenizer(name, args.trust_remote_code)
        set_seed(args.seed)  # before adapters draw their weights
        config = load_config(model, args.trust_remote_code) if isinstance(model, str) else model.config
        self.limit = min((n for n in (args.max_length, context_length(config)) if n), default=None)
        self.workers = args.dataset_num_proc
        self.data_counts: dict[str, dict[str, int]] = {}
        with args.main_process_first(desc="tokenizing the answers"):
            train_rows = self._encoded(train_dataset, tokenizer, "train")
            eval_rows = None if eval_dataset is None else self._encoded(eval_dataset, tokenizer, "eval")
        train_rows = self.prepared(train_rows, args)
        policy = load_policy(model, trust_remote_code=args.trust_remote_code) if isinstance(model, str) else model
        refuse_shared_weights(policy, ref_model, [])
        set_special_tokens(policy, tokenizer)
        reference = reference_of(policy, ref_model, peft_config)  # None: the policy with its adapters off
        reference = merged(copy.deepcopy(reference)) if isinstance(reference, PeftModel) else reference
        if ref_model is not None:
            check_readers(tokenizer, max(train_rows["length"]), reference, "shared", None, None)
        for part in filter(None, (policy, reference)):
            disable_dropout(part)
            fuse_activations(part)
        if reference is not None:
            reference.eval().requires_grad_(False)
        policy = trainable(policy, peft_config)
        refuse_adapted_head(policy, self._name)
        args.max_length = self.limit
        super().__init__(
            model=policy,
            ref_model=reference,
            args=args,
            data_collator=self.collator(tokenizer.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            **options,
        )
        if reference is None:
            self.model.delete_adapter("ref")  # TRL's copy of an adapter that is new, and so nothing
        self._preflight(train_rows)

    @classmethod
    def refuse(cls, args: TrainingArguments, lora_dropout: float = 0.0) -> None:
        """Raise UserError for options that contradict this trainer, all of them at once."""
        refuse_options(args, cls.refused, cls.conditional, lora_dropout)

    @staticmethod
    def check_rows(rows: Dataset) -> None:
        """Raise UserError for encoded rows that cannot be trained on."""

    def prepared(self, rows: Dataset, args: TrainingArguments) -> Dataset:
        """The rows to train on, with what follows from them set in `args`."""
        return rows

    @staticmethod
    def collator(pad_token_id: int) -> Callable[[list[dict]], dict[str, Tensor]]:
        """Makes a batch of rows."""
        raise NotImplementedError

    @staticmethod
    def texts(row: dict) -> list[list[int]]:
        """Of an encoded row: prompt and answer, of each answer."""
        raise NotImplementedError

    def _preflight(self, rows: Dataset) -> None:
        """Refuse a model that computes something else in the batches of this run than of each text alone."""
        texts = preflight.short_texts(self.model, [text for row in rows.select(range(1)) for text in self.texts(row)])
        preflight.check_texts(self.model, texts)
        for model in filter(None, (self.model, self.ref_model)):
            check_logprobs(model, texts)

    def _encoded(self, dataset: Dataset | list | None, tokenizer: PreTrainedTokenizerBase, split: str) -> Dataset:
        if isinstance(dataset, Dataset) and self.columns <= {*dataset.column_names}:
            return dataset
        rows, self.data_counts[split] = type(self).encode(
            dataset, tokenizer, self.limit, split, logger.warning, self.workers
        )
        return rows

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **options: Any) -> Dataset:
        """TRL's own tokens would not be the kit's; the rows have them already."""
        return dataset

    def rows_of(self, dataset: Dataset | list) -> Dataset:
        """Lists or thumbs as tokens."""
        return self._encoded(dataset, self.processing_class, "eval")
