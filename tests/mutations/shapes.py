"""Rows of other projects are read whole."""

FILE, SHAPES = "rlhf_kit/data/shapes.py", "tests/data/test_shapes.py::"
MUTANTS = [
    (
        FILE,
        "parts = [text for text in (instruction, row.get(given))",
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
]
