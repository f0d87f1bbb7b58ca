"""Columns of prompts: all of them reach the reward functions, as they stood."""

LOADING, PROMPTS, COLUMNS = "rlhf_kit/data/loading.py", "rlhf_kit/data/prompts.py", "rlhf_kit/data/columns.py"
MESSAGES = "rlhf_kit/data/messages.py"
TEST, ROWS = "tests/ppo/test_columns.py::", "tests/data/test_python_rows.py::"
ONE = "tests/stages/test_one_check.py::"
ALL, EXACT = TEST + "test_whatever_a_row_looks_like_all_its_columns_are_handed_on", TEST + "test_values_stay_exactly"

MUTANTS = [
    (LOADING, 'if "prompts" in kinds:', 'if kinds == ("prompts",):', ALL),
    (PROMPTS, 'name not in ("prompt", *RESERVED)', 'name not in ("prompt", "completion", *RESERVED)', ALL),
    (MESSAGES, "        end -= 1\n", "        end -= 2\n", ALL),
    (
        PROMPTS,
        "if isinstance(row, Mapping) and row.get(name) is not None",
        "if False",
        TEST + "test_reserved_names_are_refused_by_name",
    ),
    (
        "rlhf_kit/data/unread.py",
        "        return left_out(rows)\n",
        "        return Counter()\n",
        TEST + "test_answers_of_a_ranking_are_left_out_and_that_is_said",
    ),
    (COLUMNS, "if repr(column[name][:]) == repr(values):", "if column[name][:] == values:", EXACT + "_what_they_were"),
    (
        COLUMNS,
        "for features in (None, datasets.Features({name: Exact()})):",
        "for features in (datasets.Features({name: Exact()}),):",
        TEST + "test_what_json_has_not_stays_or_is_refused_by_name",
    ),
    (
        "rlhf_kit/data/sources.py",
        "parts_of(dataset, lambda part: rows_of(part, kinds))",
        "parts_of(dataset, lambda part: part.to_list())",
        EXACT + "_what_they_were",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        'rows, *_ = checked(dataset, ("prompts",), name)',
        "rows = list(dataset)",
        TEST + "test_rollouts_evaluations_and_best_of_n_hand_on_the_same",
    ),
    (
        "rlhf_kit/ppo/best_of_n.py",
        'if name in ("prompt", *RESERVED):',
        'if name in ("prompts", "completions"):',
        TEST + "test_best_of_n_refuses_reserved_names",
    ),
    (
        "rlhf_kit/stages/ppo.py",
        "        check_functions(rewards, rows.column_names)\n",
        "        pass\n",
        TEST + "test_a_column_that_a_function_lacks_is_told",
    ),
    # Rows handed to the trainers in Python.
    (
        "rlhf_kit/ppo/prompts.py",
        'rows, *_ = checked(dataset, ("prompts",), name)',
        "rows = dataset if isinstance(dataset, list) else dataset.to_list()",
        ROWS + "test_what_is_wrong_is_told_of_a_dataset_and_of_a_list",
    ),
    (
        "rlhf_kit/reward/data.py",
        "rows, kind, dropped = checked(dataset, KINDS, name, on_bad_row)",
        "rows, kind, dropped = list(dataset), 'ranked', {}",
        ROWS + "test_what_is_wrong_is_told_of_a_dataset_and_of_a_list",
    ),
    (
        "rlhf_kit/sft.py",
        'demonstrations, *_ = checked(dataset, ("demonstrations",), name)',
        "demonstrations = list(dataset)",
        ROWS + "test_what_is_wrong_is_told_of_a_dataset_and_of_a_list",
    ),
    (
        "rlhf_kit/reward/data.py",
        '        "lists": len(rows) + sum(dropped.values()),\n',
        '        "lists": len(rows),\n',
        ROWS + "test_wrong_rows_that_are_dropped_are_counted",
    ),
    (
        "rlhf_kit/reward/data.py",
        '        **{f"lists dropped: {fault}": count for fault, count in dropped.items()},\n',
        "",
        ROWS + "test_wrong_rows_that_are_dropped_are_counted",
    ),
    (
        MESSAGES,
        'own_turns if "prompts" in kinds else without_nulls',
        "without_nulls",
        TEST + "test_rollouts_evaluations_and_best_of_n_hand_on_the_same",
    ),
    (
        MESSAGES,
        'own_turns if "prompts" in kinds else without_nulls',
        "own_turns",
        "tests/data/test_exact_columns.py::test_nulls_that_arrow_adds_are_taken_away",
    ),
    # What the loader has checked is not checked again.
    (
        LOADING,
        "kind in ((",
        "kind is not None or kind in ((",
        ONE + "test_checked_rows_of_one_kind_are_checked_as_another",
    ),
    (LOADING, "kind in ((", "None in ((", ONE + "test_a_stage_checks_each_row_once"),
    (
        LOADING,
        "        kind = _checked_kinds.get(dataset)\n",
        "        kind = next(iter(_checked_kinds.values()), None)\n",
        ONE + "test_what_is_made_of_checked_rows_is_checked",
    ),
    (
        "rlhf_kit/stages/loading.py",
        "select(rows, range(min(limit, len(rows))))",
        "rows.select(range(min(limit, len(rows))))",
        ONE + "test_a_stage_checks_each_row_once",
    ),
    (
        LOADING,
        "return select(dataset, train), select(dataset, test)",
        "return dataset.select(train), dataset.select(test)",
        ONE + "test_what_is_made_of_checked_rows_is_checked",
    ),
    # A prompt is encoded once, and its template asked once.
    (
        "rlhf_kit/ppo/prompts.py",
        "    if isinstance(dataset, Prompts):\n",
        "    if False:\n",
        ONE + "test_a_stage_encodes_each_prompt_once",
    ),
    (
        "rlhf_kit/stages/reward.py",
        'train_dataset=lists["train"],',
        "train_dataset=train_data,",
        ONE + "test_a_stage_encodes_each_prompt_once",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        'f"row {at + 1}": tokens for at, tokens in zip(map(int, kept), lengths.tolist(), strict=True)',
        'f"row {at + 1}": tokens for at, tokens in enumerate(lengths.tolist())',
        ONE + "test_the_row_of_a_long_prompt_is_that_of_the_data",
    ),
    (
        "rlhf_kit/data/templates.py",
        "        counts.update(fields)\n",
        "        counts.update(unread(tokenizer, messages, tools))\n",
        "tests/data/test_fields.py::test_a_dialogue_with_calls_is_asked_once_for_what_its_template_writes",
    ),
    (
        "rlhf_kit/sft.py",
        "unread if whole else None",
        "unread",
        "tests/data/test_fields.py::test_a_field_of_a_dialogue_that_is_cut_counts_once",
    ),
    (
        MESSAGES,
        ' or value.keys() >= {"from", "value"}:',
        ":",
        TEST + "test_turns_of_a_table_reach_template_and_function_with_their_own_keys",
    ),
    (
        MESSAGES,
        'if name in ("prompt", "tools") else',
        'if name == "prompt" else',
        TEST + "test_turns_of_a_table_reach_template_and_function_with_their_own_keys",
    ),
]
