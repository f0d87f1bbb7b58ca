"""What is read from the hub and what goes there: commits, messages, pushes."""

HUB = "tests/test_hub.py::"

MUTANTS = [
    (
        "rlhf_kit/data/hub.py",
        'return f"{repo}@{commit.resolved}"',
        "return str(name)",
        HUB + "test_a_branch_that_moved_is_another_model",
    ),
    (
        "rlhf_kit/data/hub.py",
        "    if not at or is_local(name):\n",
        "    if not at:\n",
        HUB + "test_a_folder_with_an_at_sign_is_a_folder",
    ),
    (
        "rlhf_kit/data/hub.py",
        'Path(str(name).partition("@")[0]).parts',
        "Path(str(name)).parts",
        HUB + "test_names_with_revisions",
    ),
    (
        "rlhf_kit/data/hub.py",
        "        GatedRepoError: (\n",
        "        ZeroDivisionError: (\n",
        HUB + "test_a_gate_says_how_to_get_in",
    ),
    (
        "rlhf_kit/data/hub.py",
        "    if broken is not None:\n",
        "    if False:\n",
        HUB + "test_a_download_that_is_cut",
    ),
    (
        "rlhf_kit/data/hub.py",
        '        logger.warning("Downloading ',
        '        logger.info("Downloading ',
        HUB + "test_every_stage_from_the_hub_and_to_the_hub",
    ),
    (
        "rlhf_kit/data/hub.py",
        '"disable": None if is_wanted',
        '"disable": False if is_wanted',
        HUB + "test_a_bar_is_for_a_terminal",
    ),
    (
        "rlhf_kit/data/sources.py",
        "        if any(commit not in Path(file",
        "        if False and any(commit not in Path(file",
        HUB + "test_offline",
    ),
    (
        "rlhf_kit/models/adapters.py",
        "get_peft_model(model, config, revision=split_revision(origin(model))[1])",
        "get_peft_model(model, config)",
        HUB + "test_an_adapter_names_its_base_by_the_commit",
    ),
    (
        "rlhf_kit/models/weights.py",
        "        return hub.at_revision(base, revision)\n",
        "        return base\n",
        HUB + "test_an_adapter_names_its_base_by_the_commit",
    ),
    (
        "rlhf_kit/models/weights.py",
        '    if "trust_remote_code" not in str(error):\n',
        "    if True:\n",
        HUB + "test_code_of_its_own_is_not_run_unasked",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "if commit and names.count(name) > 1 else name",
        "if False else name",
        HUB + "test_results_of_two_revisions_lie_apart",
    ),
    (
        "rlhf_kit/stages/publishing.py",
        "args.push_to_hub = args.push_to_hub and not settings.run.dry_run, False",
        "args.push_to_hub = args.push_to_hub and not settings.run.dry_run, args.push_to_hub",
        HUB + "test_every_stage_from_the_hub_and_to_the_hub",
    ),
    (
        "rlhf_kit/stages/publishing.py",
        "        hub.whoami()\n        return hub.create_repo(",
        "        return name or hub.create_repo(",
        HUB + "test_a_push_that_is_refused_is_known_before_training",
    ),
    (
        "rlhf_kit/stages/run.py",
        "        if name not in SECRET\n",
        "        if name\n",
        HUB + "test_a_push_that_fails_keeps_the_model_and_the_secret",
    ),
    (
        "rlhf_kit/stages/loading.py",
        '("evaluation data", data.eval_dataset_name, data.dataset_test_split, data.max_eval_samples, load)',
        '("evaluation data", data.eval_dataset_name, data.dataset_test_split, data.max_eval_samples, learning)',
        HUB + "test_rows_are_left_out_of_the_training_data_alone",
    ),
    (
        "rlhf_kit/reward/trainer.py",
        '    if name != "train" and args.on_bad_row == "drop":\n        checked(dataset',
        "    if False:\n        checked(dataset",
        HUB + "test_rows_are_left_out_of_the_training_data_alone",
    ),
    (
        "rlhf_kit/data/hub.py",
        '        logger.warning("Downloaded %s in',
        '        logger.debug("Downloaded %s in',
        HUB + "test_every_stage_from_the_hub_and_to_the_hub",
    ),
    (
        "rlhf_kit/data/sources.py",
        "            with downloading(f\"the data {(f'{name}:{config}' if config else name)!r}\"):",
        "            if True:",
        HUB + "test_every_stage_from_the_hub_and_to_the_hub",
    ),
    (
        "rlhf_kit/eval/transfer/data.py",
        "            source = pinned(source)",
        "            pass",
        HUB + "test_a_cell_is_of_its_models_and_datas_commits",
    ),
    (
        "rlhf_kit/eval/transfer/task.py",
        "rows=tuple(map(readers.pinned, table.rows))",
        "rows=table.rows",
        HUB + "test_a_cell_is_of_its_models_and_datas_commits",
    ),
    (
        "rlhf_kit/feedback/collecting.py",
        "    pin(options)\n",
        "",
        "tests/test_hub.py::test_code_of_its_own_is_not_run_unasked",
    ),
    (
        "rlhf_kit/chat/generating.py",
        "    pin(options)\n",
        "",
        "tests/test_hub.py::test_answers_say_which_commit_gave_them",
    ),
    (
        "rlhf_kit/models/revisions.py",
        "    pin(own)\n",
        "",
        "tests/test_hub.py::test_a_server_says_which_commit_answers",
    ),
]
