"""Any architecture: a stage computes what the model computes of each text alone, or falls back, or refuses."""

PREFLIGHT, READING = "rlhf_kit/models/preflight.py", "rlhf_kit/generation/reading.py"
MLM, MLM_TEST = "rlhf_kit/stages/mlm.py", "tests/stages/test_mlm.py::"
TEST = "tests/stages/test_architectures.py::"

MUTANTS = [
    (
        PREFLIGHT,
        'return None if outcome <= tolerance(model) else f"{what} off by {outcome:.2g} of their spread"',
        "return None",
        TEST + "test_pretraining_reads_each_document_alone[opt]",
    ),
    (
        PREFLIGHT,
        'return "its forward takes no position_ids"',
        "return None",
        TEST + "test_pretraining_reads_each_document_alone[bloom]",
    ),
    (
        PREFLIGHT,
        "alone(model, text + other)[: len(text)]",
        "alone(model, text)[: len(text)]",
        TEST + "test_a_model_that_reads_what_comes_is_refused",
    ),
    (
        "rlhf_kit/models/value.py",
        "return model.config.get_text_config().hidden_size if head is None else head.in_features",
        "return model.config.get_text_config().hidden_size",
        "tests/models/test_value.py::test_the_value_head_is_as_wide_as_what_reaches_the_lm_head[shared]",
    ),
    (
        "rlhf_kit/models/checkpoints.py",
        "model.get_input_embeddings().padding_idx = None",
        "pass",
        "tests/models/test_checkpoints.py::test_the_end_of_text_learns_though_padding_borrows_it[load_policy]",
    ),
    (
        READING,
        "return padded is not None",
        "return False",
        TEST + "test_ppos_numbers_are_those_of_each_row_alone[rwkv]",
    ),
    (
        READING,
        "return padded is not None",
        "return False",
        TEST + "test_ppo_trains_what_it_samples[mamba-shared]",
    ),
    (
        READING,
        "(begins + prompt_lengths - 1)[:, None]",
        "(begins + prompt_lengths)[:, None]",
        TEST + "test_ppos_numbers_are_those_of_each_row_alone[rwkv]",
    ),
    (
        "rlhf_kit/generation/cache.py",
        "self.all_keys, self.all_values = self.all_keys[beam_idx], self.all_values[beam_idx]",
        "pass",
        "tests/ppo/test_rollout.py::test_the_cache_takes_its_room_once",
    ),
    (
        "rlhf_kit/eval/reward/task.py",
        "        self.held_out.check_padding(model)",
        "        pass",
        "tests/eval/test_reward.py::test_a_model_that_reads_padding_is_refused",
    ),
    (
        "rlhf_kit/eval/reward/rows.py",
        "reader.check_padding(loaded[name][0], lists)",
        "pass",
        "tests/eval/test_score.py::test_a_model_that_reads_padding_is_refused",
    ),
    (
        "rlhf_kit/generation/contexts.py",
        "if how not in known:",
        "if True:",
        "tests/eval/test_likelihood.py::test_choices_share_one_forward_of_their_context",
    ),
    (
        MLM,
        "_check_padding(settings, model, tokenizer, rows, held)",
        "pass",
        MLM_TEST + "test_a_model_that_reads_padding_gets_none_or_is_refused",
    ),
    (MLM, "if max(sizes) == 1:", "if False:", MLM_TEST + "test_a_model_that_reads_padding_gets_none_or_is_refused"),
    (MLM, ', padding_side="right")', ")", MLM_TEST + "test_spans_are_masked_whole_and_always"),
    (MLM, "guessed[chance.argmin()] = True", "pass", MLM_TEST + "test_each_row_has_something_to_guess"),
    (
        MLM,
        "[*rows, *held]",
        "rows",
        MLM_TEST + "test_evaluation_rows_without_a_span_are_refused_too",
    ),
    (
        MLM,
        'if len(row["input_ids"]) > empty]',
        "]",
        MLM_TEST + "test_a_long_document_is_cut_and_an_empty_one_gives_nothing",
    ),
    (
        "rlhf_kit/stages/pretrain.py",
        "settings.model.config_overrides +=",
        "_ =",
        TEST + "test_pretraining_from_scratch_takes_a_block_size[opt]",
    ),
]
