"""Chains of adapters: what is trained, merged, saved and loaded is the tuned model, or it is refused."""

WEIGHTS, WEIGHTS_TEST = "rlhf_kit/models/weights.py", "tests/models/test_weights.py::"
CHECKS, CHECKS_TEST = "rlhf_kit/models/adapter_checks.py", "tests/models/test_adapter_checks.py::"
VALUE, CHAINS_TEST = "rlhf_kit/models/value.py", "tests/stages/test_lora_chains.py::"

MUTANTS = [
    (
        "rlhf_kit/models/adapter_checks.py",
        "    if start not in starts:",
        "    if False:",
        CHECKS_TEST + "test_a_start_that_loading_does_not_repeat_is_refused",
    ),
    (
        "rlhf_kit/models/adapter_checks.py",
        "        faults += _start(model, adapter,",
        "        _start(model, adapter,",
        CHECKS_TEST + "test_a_start_that_loading_does_not_repeat_is_refused",
    ),
    (
        "rlhf_kit/models/adapter_checks.py",
        """    if start == "olora" and""",
        "    if False and",
        CHECKS_TEST + "test_olora_is_refused_on_transposed_weights",
    ),
    (
        "rlhf_kit/eval/extractive/finetune.py",
        "        _check_padding(model, collator, examples)",
        "        pass",
        "tests/eval/test_extractive_finetune.py::test_a_model_that_reads_padding_is_refused_but_in_rows_of_one",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "if made and not may_replace:",
        "if False:",
        CHAINS_TEST + "test_merge_replaces_an_earlier_merge_only_where_it_is_told_to",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "    target.refuse_foreign(there)",
        "    pass",
        CHAINS_TEST + "test_merge_replaces_an_earlier_merge_only_where_it_is_told_to",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "        target.remove(SAVING)",
        "        pass",
        CHAINS_TEST + "test_a_merge_that_was_cut_off_is_begun_again_and_one_at_work_is_left_alone",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "made = [name for name in there if name != SAVING]",
        "made = there",
        CHAINS_TEST + "test_a_merge_that_was_cut_off_is_begun_again_and_one_at_work_is_left_alone",
    ),
    (
        "rlhf_kit/stages/merging.py",
        '    target.check("--output_dir")',
        "    pass",
        CHAINS_TEST + "test_merge_refuses_what_is_no_adapter_and_keeps_what_is_there",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "    _refuse_own_folders(adapter, output_dir)",
        "    pass",
        CHAINS_TEST + "test_merge_leaves_the_models_below_an_adapter_alone",
    ),
    (
        "rlhf_kit/stages/merging.py",
        "name = None if config is None else config.base_model_name_or_path",
        "name = None",
        CHAINS_TEST + "test_merge_leaves_the_models_below_an_adapter_alone",
    ),
    (
        WEIGHTS,
        "if not is_mergeable(adapter):",
        "if False:",
        CHAINS_TEST + "test_an_adapter_that_is_no_part_of_the_weights_is_refused_by_its_kind",
    ),
    (
        WEIGHTS,
        "parameter.requires_grad_(name not in fixed)",
        "parameter.requires_grad_(False)",
        CHAINS_TEST + "test_all_weights_are_trained_from_the_folder_of_an_adapter",
    ),
    (
        WEIGHTS,
        "return str(Path(name).resolve()) if name and Path(name).is_dir() else hub.split_revision(name)[0]",
        "return name",
        CHAINS_TEST + "test_what_a_stage_leaves_loads_in_plain_transformers",
    ),
    (WEIGHTS, "    if lost:", "    if False:", WEIGHTS_TEST + "test_layers_that_the_files_lack_are_told"),
    (
        WEIGHTS,
        "heads = {*head_modules(model)} if new_head else set()",
        "heads = {*head_modules(model)}",
        WEIGHTS_TEST + "test_a_reward_model_without_its_head_is_none",
    ),
    (
        "rlhf_kit/models/merging.py",
        "if users[id(part.weight)] > 1:",
        "if False:",
        CHECKS_TEST + "test_an_adapter_on_a_tied_embedding_made_elsewhere_is_untied_when_merged",
    ),
    (
        "rlhf_kit/models/precision.py",
        "if adapter is not None and adapter.merged:",
        "if False:",
        CHAINS_TEST + "test_a_merge_in_memory_under_bf16_is_the_tuned_model",
    ),
    (
        "rlhf_kit/models/roles.py",
        "        return copied(policy)\n",
        "        return __import__('copy').deepcopy(policy)\n",
        "tests/test_sft.py::test_a_copy_of_a_model_that_was_fine_tuned_computes_by_itself",
    ),
    (
        "rlhf_kit/models/roles.py",
        "if reference is None and (lora is None or not off_is_as_it_was(lora)):",
        "if reference is None and lora is None:",
        CHECKS_TEST + "test_adapters_that_change_their_base_need_a_reference_of_its_own",
    ),
    (
        VALUE,
        "source = merged(source) if isinstance(source, PeftModel) else source",
        "source = source.unload() if isinstance(source, PeftModel) else source",
        "tests/models/test_value.py::test_a_separate_trunk_under_lora_starts_from_the_policy_as_it_is",
    ),
    (
        CHECKS,
        "faults = faults or _tied(model, config)",
        "pass",
        CHECKS_TEST + "test_what_cannot_be_trained_or_saved_right_is_refused",
    ),
    (
        CHECKS,
        "if any(layer.merged for layer in layers):",
        "if False:",
        CHECKS_TEST + "test_what_cannot_be_trained_or_saved_right_is_refused",
    ),
]
