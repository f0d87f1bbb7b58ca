"""Bounds of numbers: the one table, and who asks it."""

TABLE, TEST = "rlhf_kit/options/bounds.py", "tests/test_numbers.py::"
UNSOUND, ROLES = "tests/models/test_unsound.py::", "tests/models/test_unsound_roles.py::"

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
        "rlhf_kit/options/reading.py",
        "problems += _range_faults(values[name], option, where)",
        "pass",
        TEST + "test_a_stage_tells_all_numbers_with_all_else_before_anything_is_read",
    ),
    (
        "rlhf_kit/options/reading.py",
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
        "        _refuse_no_mapping(folder)\n",
        "",
        UNSOUND + "test_a_model_that_is_none_is_one_message",
    ),
    (
        "rlhf_kit/models/weights.py",
        "    fault = not_finite(model)\n",
        "    fault = None\n",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "for name, size in sizes.items() if size < 1]",
        "for name, size in ()]",
        UNSOUND + "test_a_model_that_is_none_is_one_message",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        'sizes.get("num_hidden_layers", 0) > MOST_LAYERS',
        "False",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)",
        "True",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "if not isinstance(tokenizer.model_max_length, int | float):",
        "if False:",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "    _check_ends(name_or_path, model)\n",
        "",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/weights.py",
        'looks = {**options, "config": copy.deepcopy(config), "device_map": "meta"}',
        'looks = {**options, "config": copy.deepcopy(config)}',
        ROLES + "test_no_memory_is_taken_for_what_the_files_do_not_hold",
    ),
    (
        "rlhf_kit/models/weights.py",
        "for name, saved, wanted in sorted(mismatched)]",
        "for name, saved, wanted in ()]",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/weights.py",
        "        hub.check_shards(folder, weights)\n",
        "",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/models/weights.py",
        "    if located(base) in passed:",
        "    if False:",
        ROLES + "test_an_adapter_that_is_none_is_refused",
    ),
    (
        "rlhf_kit/models/weights.py",
        "if not isinstance(value := getattr(adapter, name), str | None):",
        "if False:",
        ROLES + "test_an_adapter_that_is_none_is_refused",
    ),
    (
        "rlhf_kit/data/hub.py",
        "if not names or any(Path(name).name != name for name in names):",
        "if False:",
        ROLES + "test_each_kind_of_model_is_refused_for_what_is_wrong",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "    return each(checked, names)\n",
        "    return\n",
        ROLES + "test_several_models_are_looked_at_before_the_first_is_measured",
    ),
    (
        "rlhf_kit/storage.py",
        "            tempfile.TemporaryFile(dir=home).close()\n",
        "            folder.mkdir(parents=True, exist_ok=True)\n",
        ROLES + "test_each_command_loads_models_by_the_one_gate",
    ),
    (
        "rlhf_kit/ppo/rewards.py",
        "            refuse_not_finite(model, name)\n",
        "",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    (
        "rlhf_kit/models/roles.py",
        'refuse_not_finite(reference, "ref_model")',
        "pass",
        UNSOUND + "test_ppo_in_python_reads_no_judge_of_nan",
    ),
    ("rlhf_kit/errors.py", "faults.append(error)", "raise", UNSOUND + "test_two_bad_rewards_are_both_told"),
]
