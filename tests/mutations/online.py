"""RLOO and GRPO: positions, the reference, what scores read, the order of the prompts, and where checkpoints stand."""

ONLINE, POSITIONS = "rlhf_kit/methods/online.py", "rlhf_kit/methods/positions.py"
CONFIG, CHECKS, STAGE = "rlhf_kit/methods/online_config.py", "rlhf_kit/methods/checks.py", "rlhf_kit/stages/online.py"
TEST, STAGE_TEST = "tests/methods/test_online.py::", "tests/stages/test_online_stages.py::"

MUTANTS = [
    (
        ONLINE,
        "        follow_mask(self.model)\n        self._preflight()",
        "",
        TEST + "test_plain_trl_is_wrong_on_gpt2_and_this_is_not",
    ),
    (
        ONLINE,
        "        follow_mask(self.model)\n",
        "",
        TEST + "test_evaluation_samples_whole_groups",
    ),  # by the preflight
    (
        ONLINE,
        "rows |= taken(self.policy, position_ids=positions_of(attention_mask))",
        "pass",
        TEST + "test_plain_trl_is_wrong_on_gpt2_and_this_is_not",
    ),
    (
        POSITIONS,
        "inputs | taken(model, position_ids=",
        "inputs | dict(position_ids=",
        TEST + "test_a_model_that_takes_no_positions_gets_none",
    ),
    (
        ONLINE,
        "        disable_dropout(policy)\n",
        "        policy.train()\n",
        TEST + "test_positions_are_right_for_other_families",
    ),
    (
        ONLINE,
        'policy.delete_adapter("ref")',
        "pass",
        TEST + "test_without_learning_the_policy_stays_on_its_reference",
    ),
    (
        ONLINE,
        "beta, args.beta = args.beta, 0.0",
        "beta = args.beta",
        TEST + "test_the_reference_is_the_policy_as_it_was_handed_over",
    ),
    (
        ONLINE,
        "            args.beta = beta\n",
        "            pass\n",
        TEST + "test_the_reference_is_the_policy_as_it_was_handed_over",
    ),
    (
        ONLINE,
        "return Reference(model, args.temperature)",
        "return Reference(model, 2 * args.temperature)",
        TEST + "test_without_learning_the_policy_stays_on_its_reference",
    ),
    (
        ONLINE,
        "return [ids[repr(prompt)] for prompt in prompts], None, {}",
        "return super()._tokenize_prompts([[{**m, 'content': m['content'] + '?'} for m in p] for p in prompts])",
        TEST + "test_tokens_ends_and_scores_are_those_of_ppo",
    ),
    (
        ONLINE,
        "columns, trainer_state=self.state)",
        "{}, trainer_state=self.state)",
        TEST + "test_tokens_ends_and_scores_are_those_of_ppo",
    ),
    (
        ONLINE,
        "first = self.epoch * self.generations",
        "first = 0",
        TEST + "test_a_pass_takes_up_the_prompts_where_the_last_ended",
    ),
    (
        ONLINE,
        "        if self.can_pause:  # no run",
        "        if True:  # no run",
        TEST + "test_checkpoints_are_written_between_generations_alone",
    ),
    (
        ONLINE,
        "        self.epoch = epoch\n",
        "        pass\n",
        TEST + "test_a_run_takes_the_prompts_in_the_order_of_ppos",
    ),
    (
        CONFIG,
        "        if sharded := sharding_faults(self):",
        "        if sharded := []:",
        TEST + "test_options_that_contradict_it_are_refused",
    ),
    (
        CONFIG,
        "        if self.generation_batch_size is not None:",
        "        if False:",
        TEST + "test_options_that_contradict_it_are_refused",
    ),
    (CONFIG, "        if faults:\n", "        if False:\n", TEST + "test_grpos_own_options_are_looked_at"),
    (
        CONFIG,
        "if rows * max(1, self.world_size) % group:",
        "if False:",
        TEST + "test_evaluation_samples_whole_groups",
    ),
    (
        CONFIG,
        "generations * self.steps_per_generation * self.num_iterations",
        "generations * self.steps_per_generation",
        "tests/methods/test_online.py::test_a_plan_counts_the_steps_of_a_run",
    ),
    (
        STAGE,
        "        args.check_eval_batches()\n",
        "        pass\n",
        STAGE_TEST + "test_options_are_refused_before_anything_is_written",
    ),
    (
        STAGE,
        "            judges.check(rows, args.max_completion_length, trainer_state=None)",
        "            pass",
        STAGE_TEST + "test_a_dry_run_looks_at_what_the_rewards_read",
    ),
]
