"""Files, folders and names as sources, and what a dry run checks of them."""

DRY = "tests/recipes/test_dry_run.py::"

MUTANTS = [
    (
        "rlhf_kit/data/hub.py",
        "        or is_file_name(Path(name))\n",
        "",
        DRY + "test_an_answer_of_the_hub_is_no_silence",
    ),
    (
        "rlhf_kit/data/hub.py",
        "(parent != Path() and parent.is_dir())",
        "False",
        DRY + "test_only_what_the_hub_was_to_be_asked_for_is_not_checked",
    ),
    (
        "rlhf_kit/data/hub.py",
        "if any(isinstance(link, DatasetNotFoundError | RepositoryNotFoundError) for link in chain):",
        "if False:",
        DRY + "test_an_answer_of_the_hub_is_no_silence",
    ),
    (
        "rlhf_kit/data/sources.py",
        "if _is_misspelt_world(source):",
        "if False:",
        DRY + "test_a_misspelt_world_is_never_looked_for_on_the_hub",
    ),
    (
        "recipes/plan.py",
        "and isinstance(error, HubUnreachableError)",
        "and True",
        DRY + "test_a_faulty_source_is_a_fault_of_the_dry_run",
    ),
    (
        "recipes/plan.py",
        "and not did_you_mean(path.name, there)",
        "",
        DRY + "test_what_an_earlier_stage_makes_is_not_there_yet_and_no_misspelt_one",
    ),
    (
        "recipes/plan.py",
        "        self.told.append(notice)\n",
        "",
        DRY + "test_what_a_run_says_of_its_data_stands_in_the_plan",
    ),
    (
        "recipes/sft.py",
        "policy = check_model(settings, tokenizer)",
        "policy = None",
        DRY + "test_what_stops_a_run_stops_its_dry_run",
    ),
    (
        "recipes/reward.py",
        '{"eval": eval_data, "train": train_data}.items():\n        if None not in',
        '{"train": train_data}.items():\n        if None not in',
        DRY + "test_what_stops_a_run_stops_its_dry_run",
    ),
    (
        "recipes/roles.py",
        "judges.check(rows, args.max_completion_length, trainer_state=None)",
        "pass",
        DRY + "test_what_stops_a_run_stops_its_dry_run",
    ),
]
