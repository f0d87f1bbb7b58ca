"""DPO and KTO: what reaches TRL's losses, what weighs how much, and the reference."""

ANSWERS, ANSWERS_TEST = "rlhf_kit/methods/answers.py", "tests/methods/test_answers.py::"
DPO, DPO_TEST = "rlhf_kit/methods/dpo.py", "tests/methods/test_dpo.py::"
KTO, KTO_TEST = "rlhf_kit/methods/kto.py", "tests/methods/test_kto.py::"
SHARED, CONFIG = "rlhf_kit/methods/preference.py", "rlhf_kit/methods/config.py"
LISTS = "rlhf_kit/training/lists.py"
STAGE, STAGE_TEST = "rlhf_kit/stages/preference.py", "tests/stages/test_preferences.py::"

MUTANTS = [
    (
        ANSWERS,
        "        if rank < other\n",
        "        if rank <= other\n",
        ANSWERS_TEST + "test_a_ranking_is_all_its_strictly_ordered_pairs",
    ),
    (
        ANSWERS,
        "answer, eos=True)",
        "answer, eos=False)",
        ANSWERS_TEST + "test_a_ranking_is_all_its_strictly_ordered_pairs",
    ),
    (
        ANSWERS,
        "len(prompt) + len(ids) <= limit for",
        "len(ids) <= limit for",
        ANSWERS_TEST + "test_what_does_not_fit_is_left_out_whole_and_counted",
    ),
    (
        ANSWERS,
        "None if rank == middle else rank < middle",
        "rank <= middle",
        ANSWERS_TEST + "test_a_ranking_is_cut_at_its_middle",
    ),
    (
        ANSWERS,
        'if kind == "thumbs" and "label" not in types:',
        "if False:",
        ANSWERS_TEST + "test_thumbs_are_not_for_dpo",
    ),
    (
        ANSWERS,
        '"completion_mask": (mask & ~before)',
        '"completion_mask": (mask & (input_ids != pad_token_id) & ~before)',
        ANSWERS_TEST + "test_masks_come_from_lengths_though_padding_is_the_end",
    ),
    (
        DPO,
        'torch.stack(losses), inputs["weights"], num',
        'torch.stack(losses), inputs["sizes"], num',
        DPO_TEST + "test_each_list_weighs_once_by_log_probs_computed_apart",
    ),
    (
        LISTS,
        '        return batches, self.accelerator.reduce(weight, "sum")',
        "        return batches, None",
        DPO_TEST + "test_a_steps_loss_is_the_mean_over_its_lists_however_it_is_divided",
    ),
    (
        DPO,
        '"ref_chosen_logps": reference[better]',
        '"ref_chosen_logps": reference[worse]',
        DPO_TEST + "test_what_reaches_trls_loss_is_what_the_kit_computes",
    ),
    (
        DPO,
        'torch.tensor([one["better"], one["worse"]]).T + first',
        'torch.tensor([one["better"], one["worse"]]).T',
        DPO_TEST + "test_each_list_weighs_once_by_log_probs_computed_apart",
    ),
    (
        SHARED,
        "            disable_dropout(part)\n",
        "            part.train()\n",
        DPO_TEST + "test_rates_that_no_dropout_module_holds_are_0_too",
    ),
    (
        SHARED,
        "            ref_model=reference,\n",
        "",
        DPO_TEST + "test_the_reference_is_the_policy_as_it_was_handed_over",
    ),
    (
        SHARED,
        '            self.model.delete_adapter("ref")',
        "            pass",
        DPO_TEST + "test_lora_compares_with_its_base_and_saves_one_adapter",
    ),
    (
        SHARED,
        "        refuse_adapted_head(policy, self._name)\n",
        "",
        DPO_TEST + "test_an_adapter_on_the_output_layer_would_learn_nothing",
    ),
    (
        SHARED,
        "        self.refuse(args, 0.0 if",
        "        (args, 0.0 if",
        DPO_TEST + "test_options_that_contradict_it_are_refused",
    ),
    (
        CONFIG,
        "if getattr(args, name) != defaults[name].default and not read:",
        "if False:",
        DPO_TEST + "test_options_that_contradict_it_are_refused",
    ),
    (
        CONFIG,
        "    if lora_dropout:\n",
        "    if False:\n",
        STAGE_TEST + "test_options_are_refused_before_anything_is_read",
    ),
    (
        KTO,
        "return rows.shuffle(seed=args.seed, keep_in_memory=True) if len(rows) > 1 else rows",
        "return rows",
        KTO_TEST + "test_the_answers_of_a_ranking_are_not_one_anothers_kl",
    ),
    (
        KTO,
        "[answers[-1], *answers[:-1]]",
        "answers",
        KTO_TEST + "test_the_loss_is_the_papers_by_log_probs_computed_apart",
    ),
    (KTO, "max(1.0, 1 / ratio)", "1.0", KTO_TEST + "test_weights_follow_eq_8"),
    (KTO, "max(1.0, ratio / MOST)", "max(1.0, ratio)", KTO_TEST + "test_weights_follow_eq_8"),
    (
        KTO,
        "if args.desirable_weight is None and args.undesirable_weight is None:",
        "if True:",
        KTO_TEST + "test_weights_that_are_given_stay",
    ),
    (KTO, "    if not good or not bad:", "    if False:", KTO_TEST + "test_one_kind_alone_teaches_nothing"),
    (
        STAGE,
        '        trainer_class.check_rows(rows["train"])',
        "        pass",
        STAGE_TEST + "test_data_that_teach_nothing_are_refused",
    ),
    (
        STAGE,
        "        ref_model=reference,\n",
        "",
        STAGE_TEST + "test_adapters_and_a_reference_of_its_own",
    ),
    (
        "rlhf_kit/models/forward.py",
        '    if getattr(vars(inner).get("forward"), "__wrapped__", None) is type(inner).forward:',
        "    if False:",
        "tests/test_sft.py::test_a_copy_of_a_model_that_was_fine_tuned_computes_by_itself",
    ),
    (
        DPO,
        "return self.accelerator.gather(values.mean())",
        "return self.accelerator.gather(values)",
        "tests/methods/test_methods_processes.py::test_two_processes_take_the_step_of_one",
    ),
]
