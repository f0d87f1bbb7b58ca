"""Columns of prompts: all of them reach the reward functions, as they stood."""

LOADING, PROMPTS, COLUMNS = "rlhf_kit/data/loading.py", "rlhf_kit/data/prompts.py", "rlhf_kit/data/columns.py"
TEST = "tests/ppo/test_columns.py::"
ALL, EXACT = TEST + "test_whatever_a_row_looks_like_all_its_columns_are_handed_on", TEST + "test_values_stay_exactly"

MUTANTS = [
    (LOADING, 'if "prompts" in kinds:', 'if kinds == ("prompts",):', ALL),
    (PROMPTS, 'name not in ("prompt", *RESERVED)', 'name not in ("prompt", "completion", *RESERVED)', ALL),
    ("rlhf_kit/data/messages.py", "        end -= 1\n", "        end -= 2\n", ALL),
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
        "rows_of(dataset.select(range(start, start + size)))",
        "dataset.select(range(start, start + size)).to_list()",
        EXACT + "_what_they_were",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        'rows, *_ = canonical(given(dataset, name), ("prompts",))',
        "rows = given(dataset, name).rows",
        TEST + "test_rollouts_evaluations_and_best_of_n_hand_on_the_same",
    ),
    (
        "rlhf_kit/ppo/best_of_n.py",
        'if name in ("prompt", *RESERVED):',
        'if name in ("prompts", "completions"):',
        TEST + "test_best_of_n_refuses_reserved_names",
    ),
    (
        "recipes/ppo.py",
        "        check_functions(rewards, rows.column_names)\n",
        "        pass\n",
        TEST + "test_a_column_that_a_function_lacks_is_told_by_a_dry_run",
    ),
]
