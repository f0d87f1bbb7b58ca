"""Lines of the comparison of methods, and of the work that is counted."""

WORK = "tests/models/test_products.py::"
FIGURES = "tests/comparison/test_comparison_figures.py::"
CONFIG = "tests/comparison/test_comparison_config.py::"
RUN = "tests/comparison/test_comparison_run.py::"
ANSWERS = "tests/comparison/test_measured_answers.py::"
MUTANTS = [
    (
        "rlhf_kit/models/work.py",
        "weights = 2 * self.trained * (",
        "weights = 2 * (",
        WORK + "test_under_lora_the_gradients_of_frozen_weights_are_no_work",
    ),
    (
        "rlhf_kit/models/work.py",
        "if id(x) not in looked_up and x is not head_weight",
        "if x is not head_weight",
        WORK + "test_what_a_token_is_multiplied_by_is_no_embedding_bias_or_norm",
    ),
    (
        "rlhf_kit/models/work.py",
        "seen = max(width, mask.shape[-1]) if isinstance(mask, Tensor) else width",
        "seen = width",
        WORK + "test_tokens_attend_to_themselves_and_those_before",
    ),
    (
        "rlhf_kit/models/work.py",
        "add(0, 0, args[0].shape[:-1].numel(), output.requires_grad, False)",
        "pass",
        WORK + "test_hooks_count_what_passes_and_go",
    ),
    (
        "rlhf_kit/models/work.py",
        "            handle.remove()",
        "            pass",
        WORK + "test_hooks_count_what_passes_and_go",
    ),
    (
        "rlhf_kit/training/trainer.py",
        '*("_measures", "_tracked", "_work"),',
        '*("_measures", "_tracked"),',
        "tests/stages/test_counted.py::test_a_resumed_run_tells_the_work_of_all_its_steps",
    ),
    (
        "rlhf_kit/stages/work.py",
        'models["reference"] = getattr(reference, "policy", reference)',
        'models["reference"] = None',
        "tests/ppo/test_counted_ppo.py::test_a_ppo_run_counts_what_torch_counts[shared]",
    ),
    (
        "rlhf_kit/comparison/answers.py",
        "best = scores.argmax(1)",
        "best = scores.argmin(1)",
        ANSWERS + "test_of_n_that_are_drawn_the_best_scored_is_the_answer",
    ),
    (
        "rlhf_kit/comparison/answers.py",
        "(a > b) + 0.5 * (a == b) for a, b in zip(policy.truth",
        "(a > b) for a, b in zip(policy.truth",
        ANSWERS + "test_a_tie_is_half_a_win_and_means_are_of_prompts",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        "return side(self.interval)",
        "return (self.value > 0) - (self.value < 0)",
        FIGURES + "test_a_claim_is_made_where_its_interval_leaves_out_0_and_nowhere_else",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        "values.figure(key, name, BEFORE, COMPARING)",
        "values.figure(key, name, BEFORE, CHOOSING)",
        FIGURES + "test_the_strength_is_chosen_on_prompts_that_do_not_compare",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        "seeds = [seed for seed in columns if seed in others]",
        "seeds = [*columns]",
        FIGURES + "test_only_seeds_that_both_have_are_compared",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        'columns | (measured["tax"] or before["tax"])',
        'columns | measured["tax"]',
        FIGURES + "test_best_of_n_trains_nothing_and_has_the_starts_weights",
    ),
    (
        "rlhf_kit/intervals.py",
        "picked = np.random.default_rng(run_seed).integers(size, size=(DRAWS, size))",
        "picked = np.broadcast_to(np.arange(size), (DRAWS, size))",
        FIGURES + "test_intervals_draw_prompts_and_runs",
    ),
    (
        "rlhf_kit/comparison/config.py",
        'if row.get("tuning_trials", options.tuning_trials) != options.tuning_trials:',
        "if False:",
        CONFIG + "test_a_fault_of_a_method_is_told",
    ),
    (
        "rlhf_kit/comparison/config.py",
        "    if taken:",
        "    if False:",
        CONFIG + "test_a_fault_of_a_method_is_told",
    ),
    (
        "rlhf_kit/comparison/cells.py",
        'record.get("settings") == settings else None',
        "True else None",
        RUN + "test_a_comparison_is_made_resumed_and_made_anew_where_an_option_changes",
    ),
    (
        "rlhf_kit/comparison/cells.py",
        "return file_hash(Path(value))",
        "return value",
        RUN + "test_what_a_yaml_says_decides_a_cell_and_where_it_lies_does_not",
    ),
    (
        "rlhf_kit/comparison/cells.py",
        'model_hash(str(model)) == record["model"]:',
        "True:",
        RUN + "test_a_comparison_is_made_resumed_and_made_anew_where_an_option_changes",
    ),
    (
        "rlhf_kit/comparison/command.py",
        "return 1 if maker.failed else 0",
        "return 0",
        RUN + "test_a_cell_that_fails_is_told_and_the_table_is_without_it",
    ),
    (
        "rlhf_kit/comparison/command.py",
        'link_back(files.path.parent / REPORT, "demo", files.path / REPORT, f"→ {TITLE}")',
        "pass",
        RUN + "test_it_begins_from_nothing_with_peoples_rankings_for_the_truth",
    ),
    (
        "rlhf_kit/comparison/apart.py",
        "here = sys.path.pop(0); import rlhf_kit; sys.path.append(here); ",
        "",
        RUN + "test_a_folder_called_as_the_package_is_not_taken_for_it",
    ),
    (
        "rlhf_kit/comparison/apart.py",
        "usage.ru_maxrss * RSS_UNIT",
        "0",
        RUN + "test_work_is_done_apart_and_its_memory_is_its_own",
    ),
    (
        "rlhf_kit/pages/charts.py",
        "at = math.log10 if logarithmic else float",
        "at = float",
        "tests/comparison/test_comparison_page.py::test_a_logarithmic_axis_has_round_ticks_and_bars",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        "(-self.interval[1], -self.interval[0])",
        "(-self.interval[0], -self.interval[1])",
        FIGURES + "test_methods_that_part_and_those_that_do_not_are_told",
    ),
    (
        "rlhf_kit/comparison/figures.py",
        "if one == name and gap.side == where]",
        "if other == name and gap.side == where]",
        FIGURES + "test_methods_that_part_and_those_that_do_not_are_told",
    ),
    (
        "rlhf_kit/report/page.py",
        '_interval(summary, "ppo", "sft", "correct")',
        '_interval(summary, "ppo", "sft", "truth")',
        "tests/test_report.py::test_the_result_follows_the_intervals",
    ),
]
