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
        "rlhf_kit/models/work.py",
        "(2 if recomputes else 1) + weights",
        "1 + weights",
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
    (
        "rlhf_kit/planning/memory.py",
        "if settings.data.eval_dataset_name else 0",
        "if False else 0",
        TEST + "test_what_a_server_samples_is_not_in_this_memory",
    ),
    (
        "rlhf_kit/planning/work.py",
        "reads = elsewhere or half_of(settings)",
        "reads = half_of(settings)",
        TEST + "test_what_a_server_samples_is_not_in_this_memory",
    ),
    (
        "rlhf_kit/planning/command.py",
        'reader.training.generation_backend = "pool"',
        "pass",
        TEST + "test_no_server_is_asked",
    ),
    (
        "rlhf_kit/planning/batches.py",
        "min(mean or bound, float(bound))",
        "mean or float(bound)",
        TEST + "test_long_rows_are_cut_or_packed_as_the_stage_does",
    ),
    (
        "rlhf_kit/planning/batches.py",
        'if settings.stage == "pretrain" or getattr(args, "packing", False):',
        'if settings.stage == "pretrain":',
        TEST + "test_long_rows_are_cut_or_packed_as_the_stage_does",
    ),
    (
        "rlhf_kit/planning/command.py",
        "            except UserError:\n                return False",
        "            except UserError:\n                pass",
        TEST + "test_no_change_is_one_that_the_stage_refuses",
    ),
    (
        "rlhf_kit/planning/roles.py",
        'AutoModelForCausalLM), config, it_makes, "meta", **options)',
        "AutoModelForCausalLM), config, it_makes, **options)",
        TEST + "test_no_model_has_content",
    ),
    (
        "rlhf_kit/planning/machines.py",
        "        _refuse(path, FSDP, config)\n",
        "",
        TEST + "test_a_launch_without_a_number_or_a_name_is_refused",
    ),
]
