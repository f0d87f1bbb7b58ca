"""Rollouts by a vLLM server: what is asked of it, what is handed over, what proves that it has it."""

VLLM, TEST = "rlhf_kit/generation/vllm/", "tests/generation/test_vllm.py::"
PPO_TEST, STAGE_TEST = "tests/ppo/test_vllm_rollouts.py::", "tests/stages/test_ppo_vllm.py::"
FAULT = TEST + "test_log_probs_that_are_not_the_policys_end_the_run_by_name"
HANDED = TEST + "test_weights_are_handed_over_whole_and_the_last_two_are_kept"

MUTANTS = [
    (VLLM + "weights.py", "if head is not None and not is_there:", "if False:", HANDED),
    (VLLM + "weights.py", "for old in self.written[:-2]:", "for old in []:", HANDED),
    (VLLM + "weights.py", "self.home.chmod(0o755)", "self.home.chmod(0o700)", HANDED),
    (VLLM + "weights.py", '            ask("POST", "/resume")', "            pass", HANDED),
    (
        VLLM + "weights.py",
        "            self._forget_prefixes()",
        "            pass",
        TEST + "test_completions_and_log_probs_are_those_of_the_policy_after_every_step",
    ),
    (
        VLLM + "weights.py",
        "        if last != self.base:",
        "        if False:",
        TEST + "test_an_adapter_goes_over_alone_or_merged[True]",
    ),
    (VLLM + "probe.py", "        if gap > self.bound:", "        if False:", FAULT + "[old head]"),
    (VLLM + "probe.py", "        if written_gap > self.bound:", "        if False:", FAULT + "[stale cache]"),
    (VLLM + "probe.py", "        self.last = truth", "        pass", FAULT + "[old weights]"),
    (VLLM + "probe.py", "cache_salt=secrets.token_hex(8)", "cache_salt=None", FAULT + "[stale cache]"),
    (
        VLLM + "probe.py",
        '"top_p": 1.0, "top_k": 0,',
        '"top_k": 0,',
        TEST + "test_a_request_asks_for_the_whole_softmax_and_the_ends_of_the_policy",
    ),
    (
        VLLM + "backend.py",
        "if not is_whole or any(ends[:-1])",
        "if any(ends[:-1])",
        TEST
        + "test_a_server_that_fails_ends_the_run_by_name[cut off-a broken completion. It has 1 tokens of at most 12]",
    ),
    (
        VLLM + "backend.py",
        "error.status = UserError.status",
        "pass",
        TEST + "test_a_server_that_cannot_serve_the_run_is_refused_before_it_begins",
    ),
    (
        VLLM + "client.py",
        "async with room, asyncio.timeout(limit):",
        "async with room, asyncio.timeout(None):",
        TEST + "test_a_server_that_fails_ends_the_run_by_name[slow-slow server. .* raise vllm_timeout]",
    ),
    (
        VLLM + "client.py",
        "return type(self), self.parts",
        "return type(self), self.args",
        TEST + "test_an_error_reaches_other_processes_as_it_is",
    ),
    (VLLM + "client.py", "trust_env=False", "trust_env=True", TEST + "test_a_proxy_of_the_environment_is_not_asked"),
    (
        "rlhf_kit/ppo/trainer.py",
        "            gains = gains * ops.importance_weights(",
        "            ops.importance_weights(",
        PPO_TEST + "test_a_tokens_whole_policy_loss_is_weighted_and_no_other",
    ),
    (
        "rlhf_kit/ops.py",
        ".exp().clamp(max=cap)",
        ".exp()",
        PPO_TEST + "test_importance_weights_by_hand",
    ),
    (
        "rlhf_kit/stages/ppo.py",
        "        rollout_server(settings.training, config,",
        "        (settings.training, config,",
        STAGE_TEST + "test_a_server_that_is_not_there_is_refused_before_anything_is_written",
    ),
]
