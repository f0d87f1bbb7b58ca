"""The rules that PPO keeps whatever the options: the table of docs/guarantees.md, a broken line for each."""

TRAINER, ROLLOUT = "rlhf_kit/ppo/trainer.py", "rlhf_kit/generation/sampling.py"
TRAINER_TEST, ROLLOUT_TEST = "tests/ppo/test_trainer.py::", "tests/ppo/test_rollout.py::"

MUTANTS = [
    (
        "rlhf_kit/ops.py",
        "return (mask.cumsum(-1) - 1) * mask",
        "return torch.arange(mask.shape[-1], device=mask.device).expand_as(mask)",
        TRAINER_TEST + "test_padding_moves_neither_logprobs_nor_values",
    ),
    (TRAINER, "disable_dropout(part)", "pass", TRAINER_TEST + "test_dropout_is_off_everywhere"),
    (
        "rlhf_kit/generation/drawing.py",
        "truncated(logits / (temperature or 1.0), top_k, top_p)",
        "truncated(logits, top_k, top_p)",
        ROLLOUT_TEST + "test_sampling_and_scoring_use_the_same_distribution",
    ),
    (
        "rlhf_kit/generation/reading.py",
        "self.ids, self.positions = step.tokens[:, None], self.lengths[:, None]",
        "self.ids, self.positions = step.tokens[:, None], self.lengths[:, None] + 1",
        "tests/stages/test_architectures.py::test_ppo_trains_what_it_samples[llama-shared]",
    ),
    (
        "rlhf_kit/ops.py",
        "    return logprobs - ref_logprobs",
        "    return (logprobs - ref_logprobs) / 0.6931",
        TRAINER_TEST + "test_kl_in_float32_and_named_right_in_the_logs",
    ),
    (
        ROLLOUT,
        "torch.where(terminated, ended.int().argmax(1) + 1, tokens.shape[1])",
        "torch.where(terminated, ended.int().argmax(1), tokens.shape[1])",
        TRAINER_TEST + "test_the_end_token_is_trained",
    ),
    (
        "rlhf_kit/ops.py",
        "last = completion_mask.sum(1, keepdim=True) - 1  # (B, 1)",
        "last = completion_mask.sum(1, keepdim=True) * 0 + completion_mask.shape[1] - 1  # (B, 1)",
        "tests/test_ops.py::test_score_lands_on_the_last_chosen_token",
    ),
    (
        TRAINER,
        'total * args.world_size / inputs["num_tokens"]',
        "total * args.world_size / mask.sum() / args.gradient_accumulation_steps",
        TRAINER_TEST + "test_gradients_do_not_depend_on_the_micro_batch",
    ),
    (
        "rlhf_kit/ops.py",
        "total = reduce or (lambda t: t)",
        "total = lambda t: t  # noqa: E731",
        "tests/test_ops.py::test_whiten_over_processes_equals_whiten_of_all",
    ),
    (
        TRAINER,
        "total * args.world_size / inputs",
        "total / inputs",
        "tests/ppo/test_processes.py::test_two_processes_give_the_gradients_of_one",
    ),
    (
        TRAINER,
        "            reduce=self._total,\n        )",
        "            reduce=None,\n        )",
        "tests/ppo/test_processes.py::test_two_processes_give_the_gradients_of_one",
    ),
    (
        "rlhf_kit/ppo/experience.py",
        "bootstrap = torch.where(rollout.terminated, 0.0, last)",
        "bootstrap = last",
        TRAINER_TEST + "test_truncated_and_terminated_bootstrap_differently",
    ),
    (
        "rlhf_kit/models/roles.py",
        "return copied(policy)",
        "return policy",
        TRAINER_TEST + "test_the_reference_is_the_policy_as_handed_over",
    ),
    (
        "rlhf_kit/models/room.py",
        "self.context - self.following",
        "self.context",
        TRAINER_TEST + "test_a_prompt_may_leave_just_the_room_of_a_completion",
    ),
    (
        ROLLOUT,
        "written.values[rows, steps] = ",
        "written.values[rows, steps - 1] = ",
        ROLLOUT_TEST + "test_logprobs_entropy_and_values_are_those_of_the_training_forward",
    ),
    (
        "rlhf_kit/generation/reading.py",
        "self.ids, self.mask, self.positions, self.cache)",
        "self.ids, torch.ones_like(self.mask), self.positions, self.cache)",
        ROLLOUT_TEST + "test_any_causal_lm_samples_as_generate_does",
    ),
    (
        "rlhf_kit/training/trainer.py",
        'self.watch.check(f"in optimizer step {self.state.global_step + 1}", self._plain_model())',
        "pass",
        "tests/ppo/test_options.py::test_a_nan_of_the_update_is_named_before_the_weights_are_touched",
    ),
    (
        "rlhf_kit/ppo/loop.py",
        "for index in range(done, self.rollouts):",
        "for index in range(self.rollouts - done):",
        TRAINER_TEST + "test_resume_is_exact",
    ),
    # The one command line.
    (
        "rlhf_kit/options/reading.py",
        "            if source.whole:",
        "            if False:",
        "tests/options/test_reading.py::test_all_problems_are_reported_together",
    ),
    (
        "rlhf_kit/cli/run.py",
        "        values = reading.read(words, argv, declared.declared_in_source(list(options.values())), renamed)\n",
        "        values = {}\n",
        "tests/test_command_line.py::test_a_typo_in_any_command_is_told_before_torch_is_imported",
    ),
    (
        "rlhf_kit/cli/help.py",
        "            if option.name not in seen and option.name not in HIDDEN\n",
        "            if option.name not in seen\n",
        "tests/test_cli.py::test_no_help_calls_an_option_deprecated_or_unused",
    ),
    (
        "rlhf_kit/cli/completion.py",
        " if name not in HIDDEN}",
        "}",
        "tests/test_command_line.py::test_completion_leaves_out_what_help_hides",
    ),
    (
        "rlhf_kit/options/declared.py",
        '    "data": ("dataset_name",),\n',
        "",
        "tests/options/test_reading.py::test_short_forms_dashes_and_words_by_place",
    ),
    (
        "rlhf_kit/cli/run.py",
        'return _told(f"rlhf-kit {words}: {error}", error.status)',
        'return _told(f"rlhf-kit {words}: {error}", 1)',
        "tests/test_command_line.py::test_how_a_command_ends",
    ),
    (
        "rlhf_kit/cli/run.py",
        'return _told(f"\\n{interrupts.told(interrupt)} {advice}", interrupts.status(interrupt))',
        'return _told(f"\\n{interrupts.told(interrupt)} {advice}", 1)',
        "tests/test_command_line.py::test_how_a_command_ends",
    ),
    (
        "rlhf_kit/cli/run.py",
        "    gc.disable()\n",
        "",
        "tests/test_cli.py::test_no_garbage_is_looked_for_while_a_command_is_imported",
    ),
    (
        "rlhf_kit/cli/run.py",
        "        gc.freeze()\n",
        "",
        "tests/test_cli.py::test_no_garbage_is_looked_for_while_a_command_is_imported",
    ),
    (
        "rlhf_kit/cli/run.py",
        "    if not interrupts.is_own_process():\n",
        "    if False:\n",
        "tests/test_cli.py::test_a_notebook_keeps_its_garbage_collector_as_it_is",
    ),
    (
        "rlhf_kit/options/reading.py",
        '    raw |= _canonical(typed, "--", source.options, problems)',
        '    raw = _canonical(typed, "--", source.options, problems) | raw',
        "tests/options/test_reading.py::test_the_command_line_stands_above_the_yaml",
    ),
]
