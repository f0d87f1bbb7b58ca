"""What a run will take: counts, launches, remedies."""

TEST = "tests/planning/test_planning.py::"
MUTANTS = [
    (
        "rlhf_kit/planning/kept.py",
        "if storage._cdata not in weights and storage._cdata not in saved:",
        "if storage._cdata not in saved:",
        TEST + "test_a_layer_of_gpt2_keeps_what_is_counted_by_hand",
    ),
    (
        "rlhf_kit/planning/machines.py",
        'shards = STATES if str(config.get("fsdp_reshard_after_forward", True)).lower() == "false" else WHOLE',
        "shards = WHOLE",
        TEST + "test_a_launch_says_what_is_in_pieces_and_what_is_elsewhere",
    ),
    (
        "rlhf_kit/planning/work.py",
        "return forward * (3 if recomputes else 2) + weights + attention",
        "return forward * 2 + weights + attention",
        TEST + "test_flops_are_two_a_weight_and_token_and_four_a_layer_for_each_token_before",
    ),
    (
        "rlhf_kit/planning/memory.py",
        'numbers * trained * launch.share("optimizer")',
        "numbers * trained",
        TEST + "test_sharding_divides_what_it_says",
    ),
    (
        "rlhf_kit/planning/command.py",
        "return 0 if plan.memory.fits else 1",
        "return 0",
        TEST + "test_what_does_not_fit_ends_with_1_and_every_change_makes_it_fit",
    ),
    (
        "rlhf_kit/planning/roles.py",
        "while not Path(name).exists() and",
        "while",
        TEST + "test_an_earlier_stage_is_found_by_what_it_makes",
    ),
]
