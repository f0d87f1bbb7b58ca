"""Bounds of numbers: the one table, and who asks it."""

TABLE, TEST = "rlhf_kit/bounds.py", "tests/test_numbers.py::"
UNSOUND = "tests/models/test_unsound.py::"

MUTANTS = [
    (TABLE, '    "lora_r": COUNT._replace(most=2**16),\n', "", TEST + "test_every_number_that_can_be_set_has_a_bound"),
    (
        TABLE,
        "if abs(value) > most else None",
        "if False else None",
        TEST + "test_no_bound_lets_through_what_no_machine_counts_with",
    ),
    (
        TABLE,
        "next(filter(None, named), BOUNDS.get(name))",
        "BOUNDS.get(name)",
        TEST + "test_an_owner_may_ask_for_more",
    ),
    (
        "recipes/arguments.py",
        "problems += _range_fault(values[key], declared[key], where)",
        "pass",
        TEST + "test_a_stage_tells_all_numbers_with_all_else_before_anything_is_read",
    ),
    (
        "recipes/arguments.py",
        "bound_of(option.name, *option.owners)",
        "bound_of(option.name)",
        TEST + "test_a_stage_takes_the_bound_of_its_own_record",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "range_faults(args) or schedule_faults(args)",
        "schedule_faults(args)",
        TEST + "test_a_trainer_in_python_asks_the_table",
    ),
    (
        "rlhf_kit/reward/config.py",
        "if faults := range_faults(self):",
        "if faults := []:",
        TEST + "test_a_reward_config_in_python_asks_the_table",
    ),
    (
        "rlhf_kit/models/adapter_checks.py",
        'number_faults("LoraConfig", r=config.r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout)',
        "[]",
        TEST + "test_lora_in_python_asks_the_table",
    ),
    # Models that are none.
    (
        "rlhf_kit/models/weights.py",
        "    _refuse_no_mapping(path)\n",
        "",
        UNSOUND + "test_a_model_that_is_none_is_one_message",
    ),
    (
        "rlhf_kit/models/weights.py",
        "    found = not_finite(model)\n",
        "    found = None\n",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "    _check_sizes(name_or_path, config)\n",
        "",
        UNSOUND + "test_a_model_that_is_none_is_one_message",
    ),
    (
        "rlhf_kit/ppo/rewards.py",
        "            refuse_not_finite(model, name)\n",
        "",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    (
        "rlhf_kit/models/value.py",
        'refuse_not_finite(reference, "ref_model")',
        "pass",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    ("rlhf_kit/errors.py", "faults.append(error)", "raise", UNSOUND + "test_two_bad_rewards_are_both_told"),
]
