"""Ranked rewards: the losses, what is measured of them, and scores that depend on the tokens alone."""

OPS, OPS_TEST = "rlhf_kit/ops.py", "tests/test_ops.py::"
TRAINER, TRAINER_TEST = "rlhf_kit/reward/trainer.py", "tests/reward/test_reward_trainer.py::"
ZERO, ZERO_TEST = "rlhf_kit/reward/calibration.py", "tests/reward/test_calibration.py::"
HEADS, HEADS_TEST = "rlhf_kit/models/heads.py", "tests/models/test_heads.py::"

MUTANTS = [
    (
        "rlhf_kit/models/room.py",
        "max(0, tokens - self.tokens)",
        "max(0, tokens - self.tokens + 1)",
        "tests/models/test_room.py::test_a_context_of_ten_with_four_to_follow_leaves_six",
    ),
    (
        "rlhf_kit/models/room.py",
        "key=lambda name: -sizes[name]",
        "key=lambda name: sizes[name]",
        "tests/models/test_room.py::test_all_that_are_too_long_are_counted_and_the_longest_named_first",
    ),
    (
        "rlhf_kit/reward/calibration.py",
        "if tokens and room.holds(len(tokens))]",
        "if tokens]",
        "tests/reward/test_calibration.py::test_a_prompt_leaves_room_for_its_answer",
    ),
    (
        ZERO,
        "    with eval_mode(policy):\n",
        "    if True:\n",
        ZERO_TEST + "test_what_a_policy_answers_gets_mean_zero",
    ),
    (
        ZERO,
        'list({prompt_key(prompt): prompt for prompt in rows.shuffle(seed=seed)["prompt"]}.values())',
        'list(rows.shuffle(seed=seed)["prompt"])',
        ZERO_TEST + "test_prompts_are_different_and_come_again_where_they_are_few",
    ),
    (
        OPS,
        "(ranks[:, None] < ranks[None, :])  # (N, N)\n    return better.nonzero(as_tuple=True)",
        "(ranks[:, None] <= ranks[None, :])  # (N, N)\n    return better.nonzero(as_tuple=True)",
        OPS_TEST + "test_pairwise_losses_by_hand",
    ),
    (
        OPS,
        "    means, valid = mean_per_group(losses, groups[better])\n    return means[valid]",
        "    return losses",
        "tests/test_ops_properties.py::test_pairwise_losses_are_the_pairs_written_out",
    ),
    (
        OPS,
        "difference = difference - margins.float()[better]",
        "difference = difference + margins.float()[better]",
        OPS_TEST + "test_a_margin_and_a_smoothed_label_by_hand",
    ),
    (
        OPS,
        "torch.full((len(first),), 0.5, device=smooth.device)",
        "torch.full((len(first),), 0.0, device=smooth.device)",
        OPS_TEST + "test_a_tied_pair_is_dropped_or_pulled_together",
    ),
    (
        OPS,
        "torch.where(tied, 1 - drawn[:, None],",
        "torch.where(tied, 1 - 0 * drawn[:, None],",
        OPS_TEST + "test_plackett_luce_by_hand",
    ),
    (OPS, "means * size / (size - 1).clamp(min=1)", "means", OPS_TEST + "test_plackett_luce_by_hand"),
    (
        OPS,
        "best = ~(same & (ranks[None, :] < ranks[:, None])).any(1)",
        "best = ~(same & (ranks[None, :] > ranks[:, None])).any(1)",
        OPS_TEST + "test_the_best_of_a_list_by_hand",
    ),
    (
        OPS,
        "(torch.sign(difference) + 1) / 2, groups[better]",
        "(difference >= 0).float(), groups[better]",
        OPS_TEST + "test_pair_accuracy_counts_an_equal_score_half",
    ),
    (
        OPS,
        "labels.float() * (1 - 2 * label_smoothing) + label_smoothing",
        "labels.float() * (1 - label_smoothing)",
        OPS_TEST + "test_thumbs_losses_are_binary_cross_entropies",
    ),
    (
        "rlhf_kit/training/lists.py",
        "return loss / num_items_in_batch * self.accelerator.num_processes",
        "return loss / weights.sum()",
        TRAINER_TEST + "test_gradients_do_not_depend_on_the_micro_batches",
    ),
    (
        TRAINER,
        "gain, bias = 1 / std, -mean / std",
        "gain, bias = 1 / std, -mean",
        TRAINER_TEST + "test_training_leaves_calibrated_scores_in_a_plain_saved_model",
    ),
    (
        TRAINER,
        "            disable_dropout(model)\n",
        "            pass\n",
        TRAINER_TEST + "test_dropout_is_off_unless_asked_for",
    ),
    (
        HEADS,
        "with scores_at(inner, lengths[:, None] - 1):",
        "with nullcontext():",
        HEADS_TEST + "test_scores_depend_on_the_tokens_alone",
    ),
    (
        HEADS,
        "[*before, *prompt_ids[room.excess(len(prompt_ids)) :], *kept]",
        "[*before, *prompt_ids[: len(prompt_ids) - room.excess(len(prompt_ids))], *kept]",
        HEADS_TEST + "test_the_prompt_gives_way_never_the_completion",
    ),
    (
        HEADS,
        "with torch.autocast(states.device.type, enabled=False):",
        "if True:",
        HEADS_TEST + "test_the_head_stays_float32_under_autocast",
    ),
    (
        HEADS,
        "bias * w[0] / w.square().sum()",
        "bias * w[0]",
        HEADS_TEST + "test_an_exported_model_gives_calibrated_scores_in_plain_transformers",
    ),
]
