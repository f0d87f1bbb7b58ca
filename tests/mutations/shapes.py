"""Rows of other projects are read whole."""

FILE, SHAPES = "rlhf_kit/data/shapes.py", "tests/data/test_shapes.py::"
SIDES, TOLD = "rlhf_kit/data/interchange/sides.py", "tests/data/test_told_orders.py::"
TO_NAME = TOLD + "test_left_and_right_are_those_of_to_name_whatever_the_order_of_keys"
MUTANTS = [
    (
        FILE,
        "parts = [text for text in (instruction, row.get(context))",
        "parts = [text for text in (instruction,)",
        SHAPES + "test_alpaca_is_read_with_its_input",
    ),
    (
        FILE,
        '_first(row, "input", "context")',
        '"input"',
        SHAPES + "test_dolly_is_read_with_its_context_and_the_rest_is_named",
    ),
    (
        FILE,
        '{"chosen": answer[0], "rejected": answer[1]}',
        '{"chosen": answer[1], "rejected": answer[0]}',
        SHAPES + "test_alpaca_preferences_are_pairs_with_their_input",
    ),
    (
        FILE,
        'if "prompts" not in kinds:',
        "if True:",
        SHAPES + "test_alpaca_as_prompts_keeps_every_column_for_the_reward_functions",
    ),
    (
        FILE,
        'return {"role": role, "content": text, **further}',
        'return {"role": role, "content": text}',
        SHAPES + "test_sharegpts_calls_weights_and_results_are_kept",
    ),
    (
        FILE,
        "[[1, 2], [2, 1], [1, 1]][marks.index(1)]",
        "[[2, 1], [1, 2], [1, 1]][marks.index(1)]",
        SHAPES + "test_arena_battles_of_two_texts_are_ranked_by_the_marks",
    ),
    (FILE, '"model_a": [1, 2]', '"model_a": [2, 1]', SHAPES + "test_arena_battles_are_ranked_by_the_winner"),
    (
        FILE,
        "int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks",
        "len(ranks) - at for at in range(len(ranks))",
        SHAPES + "test_nectars_answers_are_ranked",
    ),
    (
        FILE,
        'and prompt.startswith("\\n\\n") else None',
        "else None",
        SHAPES + "test_a_prompt_that_only_speaks_of_humans_stays_text",
    ),
    (
        "rlhf_kit/data/formats.py",
        "    if renames and lost:\n",
        "    if False:\n",
        SHAPES + "test_the_advice_loses_no_column",
    ),
    # Orders that foreign records only seem to tell.
    (
        SIDES,
        "return tags[0], tags[1]",
        "return tags[1], tags[0]",
        TO_NAME,
    ),
    (
        SIDES,
        "set(tags) <= set(fields)",
        "False",
        TO_NAME,
    ),
    (SIDES, "if (one, other) in _SIDES:", "if False:", TOLD + "test_names_tell_left_from_right"),
    (
        SIDES,
        "and (at == 0 or words[0][at - 1] in _COUNTED)",
        "",
        TOLD + "test_sides_that_nothing_tells_are_asked_for",
    ),
    (
        SIDES,
        "if len(pairs) != 1 or (len(tags) == 2 and _in_order(tags[1], tags[0])):",
        "if len(pairs) != 1:",
        TOLD + "test_sides_that_nothing_tells_are_asked_for",
    ),
    (
        "rlhf_kit/data/interchange/tools.py",
        'name = fits[0] if len(fits) == 1 else result.get("to_name")',
        "name = fits[0]",
        TOLD + "test_a_ranker_of_one_of_two_lists_is_read_only_where_it_is_told",
    ),
    (
        "rlhf_kit/data/interchange/tools.py",
        "if len(judged) != 1:",
        "if not judged:",
        TOLD + "test_several_judgements_of_one_annotation_are_not_mixed",
    ),
    (
        "rlhf_kit/data/interchange/records.py",
        "row |= {name: value for name, value in others.items() if name in OPENING}",
        "pass",
        TOLD + "test_what_stands_beside_a_prompt_is_kept_named_or_refused",
    ),
    (
        "rlhf_kit/data/interchange/records.py",
        "if lost := lost_from_prompt([{**others, **row}], unread):",
        "if lost := []:",
        TOLD + "test_what_stands_beside_a_prompt_is_kept_named_or_refused",
    ),
    (
        "rlhf_kit/data/interchange/published.py",
        'and not (doubtful and name == "overall_score")',
        "",
        TOLD + "test_ultrafeedbacks_tens_are_believed_only_with_good_ratings",
    ),
    (
        "rlhf_kit/data/interchange/published.py",
        "mean <= (4 if repaired is None else 2)",
        "mean <= 2",
        TOLD + "test_ultrafeedbacks_tens_are_believed_only_with_good_ratings",
    ),
    # What is installed.
    (
        "setup.cfg",
        "python_requires = >=3.11",
        "python_requires = >=3.10",
        "tests/test_install.py::test_pythons_floor_is_one_number_everywhere",
    ),
    (
        "rlhf_kit/options/reading.py",
        "return name if recipe not in _recipes() or Path(name).exists()",
        "return name if True",
        "tests/stages/test_arguments.py::test_a_recipe_is_found_by_name_from_any_folder",
    ),
]
