"""The next-token page: what it tells of a token, and what it refuses."""

ACCESS = "rlhf_kit/serving/access.py"
BRANCHES, PAGE = "rlhf_kit/chat/branching.py", "rlhf_kit/serving/next_token.py"
BRANCHING, PAGED = "tests/chat/test_branching.py::", "tests/serving/test_next_page.py::"
TOLD = BRANCHING + "test_a_piece_is_told_of_as_a_plain_forward_does"

TOKENS = "rlhf_kit/chat/tokens.py"
ANY = "tests/chat/test_tokens.py::test_a_text_has_the_tokens_of_the_dialogue_that_sft_trains_on"
REPLAY, REPLAYED = "rlhf_kit/stages/replay.py", "tests/stages/test_replay.py::"
SHAPED = REPLAYED + "test_scores_are_scaled_clipped_and_penalised_as_the_run_does"
NAMED = REPLAYED + "test_what_is_not_there_is_told_by_name"
CHANGED = "tests/chat/test_tokens.py::test_the_numbers_are_those_of_a_plain_forward_and_of_ppo"

MUTANTS = [
    (
        BRANCHES,
        "before = [*ids, *(token for piece in path[:at] for",
        "before = [*ids, *(token for piece in path for",
        TOLD,
    ),
    (BRANCHES, "truncated(logits / temperature, top_k, top_p)", "truncated(logits, top_k, top_p)", TOLD),
    (BRANCHES, "ids, own, logprobs, ranks = [*ids, *own], [], [], []", "own, ranks = [], []", TOLD),
    (
        BRANCHES,
        "if before[len(ids) :] and before[-1] in speaker.ends:",
        "if False:",
        BRANCHING + "test_nothing_follows_an_end",
    ),
    (
        BRANCHES,
        "    speaker.engine.check(speaker.request(ids, settings))\n",
        "",
        PAGED + "test_what_cannot_be_asked_is_told",
    ),
    (PAGE, "return terminal(value)", "return value", PAGED + "test_controls_of_a_text_are_shown_by_their_numbers"),
    (ACCESS, 'check_token(request, request.headers.get("x-csrf-token"))', "pass", PAGED + "test_who_is_let_in"),
    (
        ACCESS,
        'if who is None and not request.app.state.alone:\n        raise HTTPException(403, "sign in',
        'if False:\n        raise HTTPException(403, "sign in',
        PAGED + "test_who_is_let_in",
    ),
    (
        "rlhf_kit/generation/text.py",
        "found.append((stream.finish() + BROKEN, own))",
        "found.append((stream.finish() or BROKEN, own))",
        "tests/generation/test_next_token.py::test_a_token_may_end_one_character_and_begin_another",
    ),
    (TOKENS, "ops.kl_k1(logprobs, ref_logprobs)", "ops.kl_k1(ref_logprobs, logprobs)", CHANGED + "[0.7]"),
    (
        TOKENS,
        "completion_logprobs(model, inputs, temperature)",
        "completion_logprobs(model, inputs)",
        CHANGED + "[0.7]",
    ),
    (
        TOKENS,
        "if tokenizer.get_vocab() != reference.tokenizer.get_vocab():",
        "if False:",
        "tests/chat/test_tokens.py::test_two_tokenizers_are_refused_by_name",
    ),
    (
        TOKENS,
        "return self.probability if self.correct is False else None",
        "return self.probability if not self.correct else None",
        "tests/chat/test_tokens.py::test_sure_and_wrong_is_the_probability_of_a_wrong_answer",
    ),
    (TOKENS, "ops.KL_ESTIMATORS[kl_estimator](", "ops.KL_ESTIMATORS['k1'](", CHANGED + "[0.7]"),
    (TOKENS, "for number in (0.0, score)", "for number in (0.0, 0.0)", CHANGED + "[0.7]"),
    (TOKENS, "whole(shown(tokenizer, [*ids, *own[:at]], [token]), [token])", "shown(tokenizer, [], [token])", ANY),
    (TOKENS, "own[-1:] != [] and own[-1] in policy.ends", "True", ANY),
    (
        PAGE,
        'sent.get("ended") is not False',
        "True",
        PAGED + "test_a_typed_answer_and_one_of_a_conversation_have_the_tokens_that_ppo_gives_them",
    ),
    (REPLAY, "for name, weight in pairs if weight]", "for name, weight in pairs]", SHAPED),
    (REPLAY, 'vars(scale).update(self.state["scores"])', "pass", SHAPED),
    ("rlhf_kit/ppo/experience.py", "scores = scores.clamp(-clip, clip)", "pass", SHAPED),
    (
        REPLAY,
        'return self.state.get("kl_coef", self.options["kl_coef"])',
        'return self.options["kl_coef"]',
        REPLAYED + "test_an_adaptive_coefficient_is_the_one_it_came_to",
    ),
    (REPLAY, "(models if ensemble else names)", "names", REPLAYED + "test_an_ensemble_is_one_reward"),
    (
        REPLAY,
        "*self._value_source(), self.lora)",
        "*self._value_source())",
        REPLAYED + "test_a_value_function_on_a_trunk_of_its_own_is_the_trainers[more1]",
    ),
    (REPLAY, "for base in begun if base / output == home] + [Path()]", "for base in ()] + [Path()]", NAMED),
    (REPLAY, "self._kept.pop(key) if key in self._kept else load()", "load()", NAMED),
    (
        REPLAY,
        'raise Missing("function", name)',
        "continue",
        REPLAYED + "test_a_reward_that_is_a_function_is_not_run",
    ),
    (
        REPLAY,
        'if keys.unexpected_keys or any(name.startswith("value_") for name in keys.missing_keys):',
        "if False:",
        REPLAYED + "test_a_value_function_of_another_shape_is_none",
    ),
]
