"""The official scorers to the digit, intervals that draw whole prompts, likelihoods and spans that are exact."""

SCORERS, SCORERS_TEST = "rlhf_kit/eval/scorers.py", "tests/eval/test_scorers.py::"
ROUGE_TEST, METRICS_TEST = "tests/eval/test_rouge.py::", "tests/eval/test_metrics.py::"
BEHIND_TEST = "tests/eval/test_behind.py::"
SPANS, SPANS_TEST = "rlhf_kit/eval/extractive/spans.py", "tests/eval/test_extractive_spans.py::"
SCORED, REFERENCES = "tests/eval/test_score_predictions.py::", "rlhf_kit/data/references.py"
WINDOWS_TEST, PREDICT_TEST = "tests/eval/test_extractive_windows.py::", "tests/eval/test_extractive_predict.py::"

YAMLS = "tests/eval/test_benchmarks_yaml.py::"
MUTANTS = [
    (
        "rlhf_kit/cli/commands.py",
        "return EXAMPLES.get(task, usual)",
        "return EXAMPLES[task]",
        "tests/eval/test_own_task.py::test_a_name_in_the_table_is_all_that_a_task_of_the_kit_needs",
    ),
    (
        "rlhf_kit/eval/task.py",
        "        if not self.options.dry_run:  # it",
        "        if True:  # it",
        YAMLS + "test_a_benchmark_dry_runs_and_fetches_no_weights[icl]",
    ),
    (
        "rlhf_kit/eval/task.py",
        "        if not dry_run:\n            raise",
        "        raise",
        YAMLS + "test_an_unreachable_hub_is_named_and_no_fault[coqa]",
    ),
    (
        "rlhf_kit/references.py",
        "    search_here()\n    try",
        "    try",
        "tests/stages/test_stages.py::test_a_reward_function_of_the_current_folder",
    ),
    (
        SCORERS,
        "_best(pairs[:left_out] + pairs[left_out + 1 :])",
        "_best(pairs)",
        SCORERS_TEST + "test_coqa_leaves_one_reference_out_in_turn",
    ),
    (
        SCORERS,
        "if all(words) else float(words[0] == words[1])",
        "",
        SCORERS_TEST + "test_coqa_of_nothing",
    ),
    (
        SCORERS,
        "    return Score(*map(max, _columns(scores)))",
        "    return scores[0]",
        SCORERS_TEST + "test_squad_is_the_best_over_references_for_each_figure",
    ),
    (
        SCORERS,
        "Score(float(predicted == text), _overlap(predicted, text))",
        "Score(float(predicted == text), _overlap(predicted.split(), text.split()))",
        SCORERS_TEST + "test_drcd_counts_characters",
    ),
    (
        SCORERS,
        "shared = _longest_shared_run(*units)",
        "shared = sum((Counter(units[0]) & Counter(units[1])).values())",
        SCORERS_TEST + "test_cmrc_wants_a_run_not_a_subsequence",
    ),
    (
        SCORERS,
        "scorer(answers[1], [*answers[:1], *answers[2:]])",
        "scorer(answers[0], answers[1:])",
        SCORERS_TEST + "test_a_person_is_the_second_answer",
    ),
    (
        "rlhf_kit/eval/intervals.py",
        "generator.integers(count, size=(rows, count))",
        "generator.integers(count // 2 + 1, size=(rows, count))",
        "tests/eval/test_ranking.py::test_intervals_cover_as_often_as_they_say",
    ),
    (
        "rlhf_kit/eval/intervals.py",
        "(ups * (below + downs / 2)).sum(1)",
        "(ups * below).sum(1)",
        "tests/eval/test_ranking.py::test_auc_is_its_definition_weighted_by_the_draw",
    ),
    (
        "rlhf_kit/generation/likelihood.py",
        "yield max(0, end - 1 - window), start, end",
        "yield max(0, start - 1), start, end",
        "tests/eval/test_likelihood.py::test_windows_score_every_token_once_within_what_is_read",
    ),
    (
        "rlhf_kit/generation/likelihood.py",
        "at if at < shared else end - (len(row) - 1 - at)",
        "at",
        "tests/eval/test_likelihood.py::test_equals_a_forward_a_row",
    ),
    (
        SPANS,
        "place = allowed + (number[allowed] - low) * longest",
        "place = allowed",
        SPANS_TEST + "test_they_are_the_best_of_all_allowed_spans",
    ),
    (
        SPANS,
        "np.partition(values[begin : begin + size], size - n_best)[size - n_best]",
        "values[begin : begin + size].max()",
        SPANS_TEST + "test_they_are_the_best_of_all_allowed_spans",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "border = shared_prefix([own, *wholes])",
        "border = len(own)",
        BEHIND_TEST + "test_choices_of_one_context_are_all_cut_where_any_is_joined[prepended]",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "behind = [list(whole[border:]) for whole in wholes]",
        "behind = [encode(tokenizer, text) for text in continuations]",
        BEHIND_TEST + "test_lambada_of_a_model_that_knows_the_passages[prepended]",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "if text and not ids), None)",
        "if False), None)",
        BEHIND_TEST + "test_what_a_tokenizer_drops_is_named",
    ),
    (
        "rlhf_kit/generation/generators.py",
        "tokenizer.eos_token_id if bos is None else bos",
        "tokenizer.eos_token_id",
        BEHIND_TEST + "test_a_begin_that_the_tokenizer_has_and_does_not_put_is_the_begin_of_nothing",
    ),
    (
        "rlhf_kit/eval/text/lambada.py",
        "limit and max(1, limit + 1 - len(target))",
        "limit and limit + 1 - len(target)",
        BEHIND_TEST + "test_a_word_longer_than_the_model_reads_is_refused",
    ),
    (
        "rlhf_kit/eval/icl/prompts.py",
        "max(map(len, choices)) - 1 if choices",
        "max(map(len, choices)) if choices",
        BEHIND_TEST + "test_choices_are_measured_with_the_shots_that_fit",
    ),
    (
        "rlhf_kit/eval/text/tldr.py",
        "return ids[: len(ids) - joined] + after",
        "return ids + after",
        BEHIND_TEST + "test_the_hint_stands_behind_the_article_and_behind_what_is_left_of_it[byte_joined]",
    ),
    (
        "rlhf_kit/eval/text/tldr.py",
        "prompt = _hinted(tokenizer, ids, hint)",
        "prompt = ids + after",
        BEHIND_TEST + "test_the_hint_stands_behind_the_article_and_behind_what_is_left_of_it[byte_joined]",
    ),
    (
        "rlhf_kit/eval/rouge.py",
        "(?:{LETTER}|{MARK})*",
        "{LETTER}*",
        ROUGE_TEST + "test_units_of_every_script",
    ),
    (
        "rlhf_kit/eval/rouge.py",
        'WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)',
        "text",
        ROUGE_TEST + "test_units_of_every_script",
    ),
    (
        "rlhf_kit/eval/rouge.py",
        "-[{CJK}\\p{{Variation_Selector}}]]",
        "-[{CJK}]]",
        ROUGE_TEST + "test_units_of_every_script",
    ),
    (
        "rlhf_kit/eval/rouge.py",
        " and unit.isascii()",
        "",
        ROUGE_TEST + "test_units_of_every_script",
    ),
    (
        "rlhf_kit/eval/rouge.py",
        "    if not theirs:",
        "    if not mine:",
        ROUGE_TEST + "test_a_reference_without_a_unit_is_told",
    ),
    (
        "rlhf_kit/eval/text/tldr.py",
        "not bad and not units(values[1])",
        "False",
        "tests/eval/test_summarize.py::test_faults_are_told_together",
    ),
    (
        "rlhf_kit/eval/metrics.py",
        "None if units(references) else",
        "None if True else",
        METRICS_TEST + "test_rouge_names_references_without_a_unit",
    ),
    (
        "rlhf_kit/eval/metrics.py",
        "        if not scores:",
        "        if False:",
        METRICS_TEST + "test_nothing_to_score_is_told_and_the_metric_goes_on[drcd]",
    ),
    (
        "rlhf_kit/eval/metrics.py",
        "references is None and self.writer is None",
        "False",
        METRICS_TEST + "test_nothing_to_score_is_told_and_the_metric_goes_on[rouge]",
    ),
    (
        SCORERS,
        "else _words().tokenize(part))]",
        "else part.split())]",
        SCORERS_TEST + "test_cmrcs_words_are_nltks",
    ),
    (
        SCORERS,
        'if _normalised(reference)] or [""]',
        'if reference] or [""]',
        SCORERS_TEST + "test_squad2_wants_nothing_where_there_is_no_answer",
    ),
    (
        SCORERS,
        "if one.has_answer else -bool(one.prediction)",
        "if one.has_answer else 0",
        SCORERS_TEST + "test_of_equal_probabilities_the_earlier_is_said_first",
    ),
    (
        SCORERS,
        "one.na_prob <= na_prob_thresh:",
        "one.na_prob < na_prob_thresh:",
        SCORED + "test_squad2_by_hand",
    ),
    (
        REFERENCES,
        "if subset and found and len(unknown) == len(found):",
        "if False:",
        SCORED + "test_a_file_that_holds_more_ids_is_scored_as_a_subset",
    ),
    (
        REFERENCES,
        "if unknown and not subset:",
        "if False:",
        SCORED + "test_a_file_that_holds_more_ids_is_scored_as_a_subset",
    ),
    (
        REFERENCES,
        "and bool(is_impossible) == bool(answers)",
        "and False",
        SCORED + "test_squad2_counts_what_is_missing_and_names_what_is_wrong",
    ),
    (
        REFERENCES,
        "            article = _from_raw_cmrc(article)",
        "            pass",
        SCORED + "test_cmrcs_raw_layout_is_read",
    ),
    (
        "rlhf_kit/eval/extractive/data.py",
        "    if any(map(is_raw_cmrc, rows)):",
        "    if False:",
        "tests/eval/test_extractive_data.py::test_cmrcs_own_layout_is_named",
    ),
    (
        "rlhf_kit/eval/extractive/windows.py",
        "inside = answer is not None and low <= answer[0]",
        "inside = answer is not None and low < answer[0]",
        WINDOWS_TEST + "test_a_question_without_an_answer_points_at_cls_in_all_its_windows",
    ),
    (
        "rlhf_kit/eval/extractive/windows.py",
        "return cls if cls >= 0 else cls + length",
        "return max(cls, 0)",
        WINDOWS_TEST + "test_cls_behind_the_passage_and_no_cls_at_all",
    ),
    (
        "rlhf_kit/eval/extractive/predict.py",
        "nulls = np.minimum.reduceat(",
        "nulls = np.maximum.reduceat(",
        PREDICT_TEST + "test_no_answer_is_where_cls_beats_the_best_span_by_more_than_the_threshold",
    ),
    (
        "rlhf_kit/eval/extractive/predict.py",
        "difference > null_threshold:",
        "difference >= null_threshold:",
        PREDICT_TEST + "test_no_answer_is_where_cls_beats_the_best_span_by_more_than_the_threshold",
    ),
    (
        "rlhf_kit/eval/mc.py",
        "np.exp(values - values.max())",
        "np.exp(values)",
        "tests/eval/test_mc.py::test_mass_of_sums_that_no_exponential_holds",
    ),
    (
        "rlhf_kit/eval/mc.py",
        "totals[choice] / len(choice)",
        "totals[choice]",
        "tests/eval/test_mc.py::test_scores_by_hand",
    ),
    (
        "rlhf_kit/data/choices.py",
        "0 < sum(labels) < len(labels)",
        "0 < sum(labels)",
        "tests/eval/test_mc.py::test_faulty_rows_are_refused_together",
    ),
    (
        "rlhf_kit/eval/squad.py",
        "(ENGLISH[1], MANDARIN[1]) else answer",
        "(ENGLISH[1],) else answer",
        "tests/eval/test_squad.py::test_an_answer_by_hand",
    ),
    (
        "rlhf_kit/eval/prompts.py",
        "encode([*shots[dropped:], row])",
        "encode([*shots, row])",
        "tests/eval/test_squad.py::test_shots_that_have_no_room_are_left_out",
    ),
    (
        "rlhf_kit/eval/runner.py",
        "if not options.dry_run:",
        "if True:",
        "tests/eval/test_mc.py::test_a_dry_run_loads_no_weights_and_writes_nothing",
    ),
]
