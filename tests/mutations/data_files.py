"""Files, folders and names as sources, what a dry run checks of them, and where metrics are reported to."""

DRY = "tests/stages/test_dry_run.py::"
FILES = "tests/data/test_files.py::"
BAD = "tests/test_bad_files.py::"
MEMORY = "tests/test_bad_memory.py::test_what_is_small_or_endless_takes_little_memory"
PAGE = "tests/data/test_files.py::test_what_comes_in_a_files_place_is_told_as_such"
REPORTS = "tests/stages/test_report_to.py::"

MUTANTS = [
    (
        "rlhf_kit/data/hub.py",
        "        or is_file_name(Path(text))\n",
        "",
        DRY + "test_an_answer_of_the_hub_is_no_silence",
    ),
    (
        "rlhf_kit/data/hub.py",
        "(parent != Path() and parent.is_dir())",
        "False",
        DRY + "test_only_what_the_hub_was_to_be_asked_for_is_not_checked[sft]",
    ),
    (
        "rlhf_kit/data/hub.py",
        "    if any(isinstance(link, DatasetNotFoundError | ",
        "    if any(False and isinstance(link, DatasetNotFoundError | ",
        DRY + "test_an_answer_of_the_hub_is_no_silence",
    ),
    (
        "rlhf_kit/data/sources.py",
        "if _is_misspelt_world(source):",
        "if False:",
        DRY + "test_a_misspelt_world_is_never_looked_for_on_the_hub[dataset_name-wrold]",
    ),
    (
        "rlhf_kit/stages/plan.py",
        "and isinstance(error, HubUnreachableError)",
        "and True",
        DRY + "test_a_faulty_source_is_a_fault_of_the_dry_run[sft-bad.parquet]",
    ),
    (
        "rlhf_kit/stages/plan.py",
        "and not did_you_mean(path.name, there)",
        "",
        DRY + "test_what_an_earlier_stage_makes_is_not_there_yet_and_no_misspelt_one",
    ),
    (
        "rlhf_kit/stages/plan.py",
        "        self.told.append(notice)\n",
        "",
        DRY + "test_what_a_run_says_of_its_data_stands_in_the_plan",
    ),
    (
        "rlhf_kit/stages/sft.py",
        "policy = check_model(settings, tokenizer)",
        "policy = None",
        DRY + "test_what_stops_a_run_stops_its_dry_run[sft-a model without weights]",
    ),
    (
        "rlhf_kit/stages/reward.py",
        '{"train": train_data, "eval": eval_data}, tokenizer, notes)',
        '{"train": train_data}, tokenizer, notes)',
        DRY + "test_what_stops_a_run_stops_its_dry_run[reward-evaluation of answers too long]",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        "        rewards.check(rows, args.max_completion_length, trainer_state=None)",
        "        pass",
        DRY + "test_what_stops_a_run_stops_its_dry_run[ppo-a reward that reads too little]",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        "for rows in prompts if len(rows)), default=0) + max_completion_length",
        "for rows in prompts if len(rows))) + max_completion_length",
        DRY + "test_models_are_looked_at_without_prompts",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        'reference = load_policy(ref_model, device_map="meta")',
        "pass",
        "tests/ppo/test_readers.py::test_a_reference_is_looked_at_without_its_weights",
    ),
    (
        "rlhf_kit/data/formats.py",
        "    yield from half_characters(row)\n",
        "",
        FILES + "test_half_a_character_is_told_with_its_line",
    ),
    (
        "rlhf_kit/data/faults.py",
        '            yield from half_characters(key, f"the name {key!r}")\n',
        "",
        FILES + "test_half_a_character_is_told_with_its_line",
    ),
    (
        "rlhf_kit/data/files.py",
        "    _refuse_delimiter(path, file)\n",
        "",
        FILES + "test_a_csv_of_another_delimiter_is_told_as_such",
    ),
    (
        "rlhf_kit/data/files.py",
        "    if line == number + 1:\n",
        "    if True:\n",
        FILES + "test_rows_of_several_lines_are_told_with_their_line",
    ),
    (
        "rlhf_kit/inputs.py",
        "    if len(object_) == len(members):\n",
        "    if True:\n",
        FILES + "test_a_name_that_stands_twice_loses_nothing_in_silence",
    ),
    (
        "rlhf_kit/data/files.py",
        "    if twice:\n",
        "    if False:\n",
        FILES + "test_a_name_that_stands_twice_loses_nothing_in_silence",
    ),
    (
        "rlhf_kit/inputs.py",
        "        raise\n    except RecursionError:\n",
        "        raise\n    except MemoryError:\n",
        FILES + "test_json_that_no_reader_takes_is_told_with_its_line",
    ),
    (
        "rlhf_kit/data/unpacking.py",
        "            _measure(path, is_packed, extent)\n",
        "            pass\n",
        FILES + "test_a_gz_is_unpacked_within_bounds",
    ),
    (
        "rlhf_kit/inputs.py",
        "if self.has_rows and self.line > LONGEST_LINE:",
        "if False:",
        FILES + "test_a_gz_is_unpacked_within_bounds",
    ),
    (
        "rlhf_kit/inputs.py",
        "if self.has_rows and self.line",
        "if self.line",
        FILES + "test_a_json_packed_or_not_may_be_one_long_line",
    ),
    (
        "rlhf_kit/stages/loading.py",
        "    refuse_reports(args)\n",
        "",
        REPORTS + "test_a_missing_package_is_told_before_anything_is_read[run-sft]",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "    refuse_reports(args)\n",
        "",
        REPORTS + "test_trainers_in_python_refuse_it_too",
    ),
    (
        "rlhf_kit/training/reports.py",
        'if name in ("all", "none"):',
        "if False:",
        REPORTS + "test_what_works_is_taken_and_all_stands_alone",
    ),
    (
        "rlhf_kit/data/files.py",
        "        measure_parquet(path, content)\n",
        "",
        "tests/data/test_files.py::test_a_parquet_file_that_would_fill_the_memory_is_refused",
    ),
    (
        "rlhf_kit/data/unpacking.py",
        "texts = [name for name in texts if name not in delta]",
        "pass",
        "tests/data/test_files.py::test_a_parquet_file_is_read_however_its_texts_are_stored",
    ),
    (
        "rlhf_kit/data/unpacking.py",
        '    refuse_crowd(path, "rows", rows, path.stat().st_size)\n',
        "",
        FILES + "test_a_parquet_file_of_few_bytes_and_many_rows_or_numbers_is_refused",
    ),
    (
        "rlhf_kit/inputs.py",
        "    if kind is not None:\n",
        "    if False:\n",
        BAD + "test_a_device_is_named_before_it_is_read",
    ),
    (
        "rlhf_kit/inputs.py",
        "> DEEPEST and _is_deep(value)",
        "> DEEPEST and False",
        BAD + "test_the_bound_that_was_met_is_named",
    ),
    (
        "rlhf_kit/inputs.py",
        "        _measure(node, {}, 0)\n",
        "",
        BAD + "test_the_bound_that_was_met_is_named",
    ),
    (
        "rlhf_kit/inputs.py",
        "    fault = next(doubled(value), None)\n",
        "    fault = None\n",
        BAD + "test_the_bound_that_was_met_is_named",
    ),
    (
        "rlhf_kit/storage.py",
        "            tempfile.TemporaryFile(dir=home).close()\n",
        "            pass\n",
        BAD + "test_a_place_where_nothing_can_be_written_is_one_message[demo --output_dir {}-/proc/out]",
    ),
    (
        "rlhf_kit/storage.py",
        "        if named > LONGEST_NAME or",
        "        if",
        BAD + "test_a_place_where_nothing_can_be_written_is_one_message",
    ),
    (
        "rlhf_kit/data/references.py",
        "    if not answers:\n",
        "    if False:\n",
        BAD + "test_a_bad_json_file_is_one_message[predictions-an empty list]",
    ),
    (
        "rlhf_kit/inputs.py",
        '            refuse_crowd(self.path, "lines", self.lines, self.path.stat().st_size)\n',
        "            pass\n",
        MEMORY + "[short rows, CSV]",
    ),
    (
        "rlhf_kit/inputs.py",
        '            refuse_crowd(self.path, "values", self.values, self.size)\n',
        "            pass\n",
        MEMORY + "[short cells]",
    ),
    (
        "rlhf_kit/inputs.py",
        "        refuse_nul(self.path, piece, self.size, self.lines + 1)\n",
        "",
        MEMORY + "[a GiB of nothing, text]",
    ),
    (
        "rlhf_kit/inputs.py",
        '    refuse_crowd(path, "values", sum(map(text.count, ",[{")), len(text))\n',
        "",
        MEMORY + "[references of lists]",
    ),
    ("rlhf_kit/data/files.py", '    refuse_crowd(path, "texts", len(values), len(text))\n', "", MEMORY + "[headings]"),
    ("rlhf_kit/data/files.py", "    _refuse_page(path, text[:PAGE])\n", "", PAGE),
    (
        "rlhf_kit/data/sources.py",
        "            measure_arrow(path)\n",
        "            pass\n",
        MEMORY + "[short rows, saved]",
    ),
    (
        "rlhf_kit/data/unpacking.py",
        "    return len(batch) > 3 and batch[3] > 0\n",
        "    return False\n",
        MEMORY + "[texts, packed and saved]",
    ),
    (
        "rlhf_kit/data/unpacking.py",
        '    refuse_crowd(path, "values", sum(chunk.num_values for chunk in chunks), len(content))\n',
        "",
        MEMORY + "[a number said again, Parquet]",
    ),
]
