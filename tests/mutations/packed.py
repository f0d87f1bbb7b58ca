"""Rows read as one long row, and what stands in the way of it."""

PACKED, IN_PACKED = "rlhf_kit/models/packed.py", "tests/models/test_packed.py::"
SAME = IN_PACKED + "test_packed_rows_are_padded_rows"

DROPOUT = "test_dropout_of_short_attention_by_its_own_draws"

ACTIVATIONS, FITS = "rlhf_kit/models/activations.py", "tests/models/test_activations.py::"

FORWARD, LABELLED = "rlhf_kit/models/forward.py", "tests/models/test_labelled.py::"
LOSS = LABELLED + "test_the_loss_and_its_gradients_are_the_models_own"
SFT, IN_SFT = "rlhf_kit/sft.py", "tests/test_sft.py::"
ALL_LOGITS = "test_what_needs_all_logits_has_them"

HEADS, SCORED = "rlhf_kit/models/heads.py", "tests/models/test_packed_scores.py::"

MUTANTS = [
    (
        SFT,
        "whole = self.args.torch_compile or self.args.neftune_noise_alpha",
        "whole = self.args.torch_compile",
        IN_SFT + ALL_LOGITS + "[options3]",
    ),
    (
        "rlhf_kit/models/adapters.py",
        "return not has_adapted_head(model)",
        "return True",
        "tests/ppo/test_prepacked_rollout.py::test_an_adapted_head_is_saved_with_what_is_under_it_and_so_kept",
    ),
    (
        "rlhf_kit/models/preflight.py",
        "(take_packed if outcome == SAME else take_padded)(model)",
        "take_packed(model)",
        SCORED + "test_a_model_that_would_score_otherwise_keeps_its_padding",
    ),
    (
        HEADS,
        "ends = lengths.cumsum(0) - 1",
        "ends = lengths.cumsum(0) - 2",
        SCORED + "test_packed_scores_are_padded_scores[llama]",
    ),
    (ACTIVATIONS, "5 * heads * tokens**2", "5 * heads * tokens", FITS + "test_bytes_of_a_row_by_hand"),
    (ACTIVATIONS, "if parts % n == 0 and", "if", FITS + "test_the_fewest_equal_parts_that_fit"),
    (
        ACTIVATIONS,
        "_all_memory() / processes / each",
        "_all_memory() / each",
        FITS + "test_processes_share_a_machine_and_the_unknown_is_small",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        "if args.per_device_train_batch_size is None:",
        "if args.per_device_train_batch_size:",
        "tests/ppo/test_trainer.py::test_a_mini_batch_is_one_forward_unless_told",
    ),
    (PACKED, 'options |= {"attention_mask": rows,', 'options |= {"attention_mask": None,', SAME + "[separate-gpt2]"),
    (PACKED, "alpha=scaling), -1)", "alpha=1.0), -1)", IN_PACKED + "test_short_attention_is_pytorchs[4]"),
    (PACKED, "-1, shares.dtype).mul_(ctx.scaling)", "-1, shares.dtype)", SAME + "[shared-llama]"),
    (PACKED, "x.repeat_interleave(groups, 1)", "x.repeat(1, groups, 1, 1)", SAME + "[shared-llama]"),
    (
        PACKED,
        "plain = not more and",
        "plain =",
        IN_PACKED + "test_what_short_attention_does_not_know_it_leaves[softcap]",
    ),
    (PACKED, "gradient = gradient if kept is None else gradient * ctx.rescaling", "pass", IN_PACKED + DROPOUT),
    (
        PACKED,
        "_dropped(torch.bmm(gradient, value.transpose(1, 2)), kept)",
        "torch.bmm(gradient, value.transpose(1, 2))",
        IN_PACKED + DROPOUT,
    ),
    (
        PACKED,
        "_dropped(shares, kept).transpose(1, 2)",
        "shares.transpose(1, 2)",
        IN_PACKED + DROPOUT,
    ),
    (PACKED, "random_(-(2**63), None)", "random_()", IN_PACKED + "test_dropout_drops_as_many_as_it_says[0.1]"),
    (PACKED, "_reading.reset(before)", "pass", IN_PACKED + "test_rows_are_packed_within_the_context_alone"),
    (
        PACKED,
        "packing = mask.packing = cls(",
        "return None\n            packing = cls(",
        IN_PACKED + "test_activations_computed_anew_are_packed_too[True]",
    ),
    (
        "rlhf_kit/generation/reading.py",
        "begins = lengths.cumsum(0) - lengths if pack",
        "begins = lengths.cumsum(0) if pack",
        "tests/ppo/test_rollout.py::test_packed_inputs_by_hand",
    ),
    (
        "rlhf_kit/models/preflight.py",
        "for model in models:\n        (take_packed if",
        "for model in models[1:]:\n        (take_packed if",
        IN_PACKED + "test_policy_and_value_are_packed_both_or_neither",
    ),
    (
        FORWARD,
        ' and "_orig_mod" not in vars(model):',
        ":",
        "tests/models/test_unwrapped.py::test_it_is_found[compiled by regions]",
    ),
    (
        FORWARD,
        'getattr(weight, "ds_shape", weight.shape)[0]',
        "weight.shape[0]",
        "tests/models/test_unwrapped.py::test_a_vocabulary_whose_embedding_is_in_pieces_is_known_whole",
    ),
    (
        FORWARD,
        "    if isinstance(model, PreTrainedModel) and",
        "    if False and",
        "tests/models/test_unwrapped.py::test_one_that_nothing_wraps_is_given_back_at_once",
    ),
    (
        "rlhf_kit/models/forward.py",
        "positions = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)",
        "positions = torch.zeros_like(rows)",
        SAME + "[shared-gpt2]",
    ),
    (
        "rlhf_kit/models/forward.py",
        "predicts = F.pad(mask, (0, 1))[states_of(mask)]",
        "predicts = F.pad(mask, (1, 0))[states_of(mask)]",
        "tests/models/test_value.py::test_any_causal_model_gives_its_plain_forwards_numbers[gpt2]",
    ),
    (
        FORWARD,
        'labels.masked_fill(rows["position_ids"] == 0, IGNORED)',
        "labels",
        LABELLED + "test_texts_side_by_side_by_hand",
    ),
    (FORWARD, "[:, 1:].flatten()  # each", "[:, :-1].flatten()  # each", LOSS + "[bloom]"),
    (FORWARD, "nats.sum() / num_items_in_batch", "nats.mean()", LOSS + "[gpt2]"),
    (
        "rlhf_kit/models/preflight.py",
        "    return outcome == SAME\n",
        "    return True\n",
        LABELLED + "test_a_model_whose_head_reads_more_is_left_as_it_is",
    ),
    (
        SFT,
        "if self._labelled_alone and not return_outputs:",
        "if self._labelled_alone:",
        IN_SFT + ALL_LOGITS + "[options0]",
    ),
    (
        "rlhf_kit/stages/ppo.py",
        "keep_base=settings.model.merge_adapter",
        "keep_base=False",
        "tests/stages/test_lora_chains.py::test_ppo_in_bf16_merges_into_the_float32_base",
    ),
    (SFT, " and preflight.is_likelihood(self)", "", IN_SFT + ALL_LOGITS + "[options1]"),
    (SFT, "self.args.torch_compile or ", "", IN_SFT + ALL_LOGITS + "[options2]"),
    (
        "rlhf_kit/generation/reading.py",
        'logger.warning("%s reads rows with padding',
        'logger.info("%s reads rows with padding',
        "tests/models/test_packed.py::test_an_architecture_that_cannot_keeps_its_own_attention",
    ),
    (
        "rlhf_kit/stages/ppo.py",
        " and args.per_device_train_batch_size is None:",
        ":",
        "tests/stages/test_dry_run.py::test_the_plan_tells_the_rows_of_a_forward_where_the_kit_chooses_them",
    ),
    (
        "rlhf_kit/stages/ppo.py",
        "        rows_a_forward=fit,\n",
        "",
        "tests/stages/test_dry_run.py::test_the_plan_tells_the_rows_of_a_forward_where_the_kit_chooses_them",
    ),
]
