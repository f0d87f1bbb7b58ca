"""Weights packed for a rollout: the same numbers, where they apply, and nothing left behind."""

PREPACKED, TEST = "rlhf_kit/models/prepacked.py", "tests/models/test_prepacked.py::"
TRAINER, PPO_TEST = "rlhf_kit/ppo/trainer.py", "tests/ppo/test_prepacked_rollout.py::"
ATTENTION, ATTENTION_TEST = "rlhf_kit/generation/attention.py", "tests/generation/test_attention.py::"

MUTANTS = [
    (
        "rlhf_kit/ppo/trainer.py",
        "            check_backend(self.args.generation_backend, model)",
        "            pass",
        "tests/ppo/test_options.py::test_a_backend_that_cannot_sample_the_policy_is_refused_before_anything_runs",
    ),
    (
        "rlhf_kit/ppo/loop.py",
        "apart(self.rollout_is_peak):",
        "apart(False):",
        "tests/ppo/test_prepacked_rollout.py::test_memory_of_rollout_and_update_does_not_add_up_under_lora[lora]",
    ),
    (
        "rlhf_kit/memory.py",
        "    give_back(applies)\n    yield",
        "    yield",
        "tests/stages/test_memory.py::test_in_the_first_thread_of_a_process[what_is_free_goes_before_and_after_other_work]",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        "keep=keep_base or not has_base(module.policy)",
        "keep=keep_base",
        "tests/ppo/test_prepacked_rollout.py::test_what_is_no_base_of_an_adapter_stays_float32[False]",
    ),
    (
        PREPACKED,
        "        if torch.is_grad_enabled():\n            return False\n",
        "",
        TEST + "test_forwards_with_gradients_are_the_layers_own",
    ),
    (
        PREPACKED,
        "        if torch.is_autocast_enabled(",
        "        if True or torch.is_autocast_enabled(",
        TEST + "test_float32_is_untouched_bit_for_bit",
    ),
    (
        PREPACKED,
        "return x.dtype == self.linear.weight.dtype == torch.bfloat16",
        "return False",
        TEST + "test_a_model_in_bf16_needs_no_autocast",
    ),
    (
        PREPACKED,
        "        for pack in packs:\n            pack.restore()",
        "        pass",
        TEST + "test_nothing_stays_behind",
    ),
    (
        PREPACKED,
        "            self.module.forward = self.before",
        "            pass",
        TEST + "test_frozen_casts_are_packed_and_put_back",
    ),
    (
        PREPACKED,
        """with torch.autocast("cpu", enabled=False):""",
        "with torch.no_grad():",
        TEST + "test_an_update_too_small_for_bf16_is_added_before_rounding",
    ),
    (
        PREPACKED,
        "super().weight().float()",
        "super().weight().bfloat16().float()",
        TEST + "test_an_update_is_added_to_the_float32_weight",
    ),
    (
        PREPACKED,
        "b, a, alpha=layer.scaling[name])",
        "b, a)",
        TEST + "test_lora_is_one_product_as_near_to_float32_as_three",
    ),
    (
        PREPACKED,
        "not layer.disable_adapters and not",
        "not",
        TEST + "test_adapters_switched_off_are_the_base_alone",
    ),
    (
        PREPACKED,
        "module.lora_variant.get(name) or ",
        "",
        TEST + "test_other_kinds_of_lora_are_not_merged",
    ),
    (
        PREPACKED,
        " or module.lora_bias.get(name)",
        "",
        TEST + "test_other_kinds_of_lora_are_not_merged",
    ),
    (
        PREPACKED,
        """ or "forward" in vars(module) or module.training:""",
        """ or "forward" in vars(module):""",
        TEST + "test_dropout_of_adapters_that_train_is_drawn",
    ),
    (
        PREPACKED,
        " or base._forward_hooks or base._forward_pre_hooks:",
        ":",
        TEST + "test_a_base_that_is_watched_is_called",
    ),
    (
        PREPACKED,
        "if type(module) not in (nn.Linear, Conv1D):",
        "if not isinstance(module, nn.Linear | Conv1D):",
        TEST + "test_only_plain_layers_are_packed",
    ),
    (
        PREPACKED,
        """    if "forward" in vars(module) and not is_cast""",
        """    if False and not is_cast""",
        TEST + "test_only_plain_layers_are_packed",
    ),
    (
        PREPACKED,
        " and not is_cast(module)",
        "",
        TEST + "test_frozen_casts_are_packed_and_put_back",
    ),
    (
        PREPACKED,
        "if isinstance(self.linear, Conv1D) else weight",
        "if weight.shape[0] != weight.shape[1] and isinstance(self.linear, Conv1D) else weight",
        TEST + "test_autocast_gives_the_same_numbers_and_tokens[gpt2]",
    ),
    (
        TRAINER,
        "with prepacked(self.accelerator.unwrap_model(self.model).policy):",
        "with nullcontext():",
        PPO_TEST + "test_a_policy_is_packed_once_for_its_rollout_and_its_log_probs",
    ),
    (
        TRAINER,
        "with prepacked(self.accelerator.unwrap_model(self.model).policy):",
        "with prepacked(self.accelerator.unwrap_model(self.model).policy, merge=True):",
        PPO_TEST + "test_a_lora_policy_samples_merged_and_is_read_as_it_is_trained",
    ),
    (
        TRAINER,
        "prepacked(policy, merge=True)",
        "prepacked(policy)",
        PPO_TEST + "test_a_lora_policy_samples_merged_and_is_read_as_it_is_trained",
    ),
    (
        PREPACKED,
        "if _is_plain(module) and not _is_packed(module)]",
        "if _is_plain(module)]",
        PPO_TEST + "test_a_policy_is_packed_once_for_its_rollout_and_its_log_probs",
    ),
    (
        ATTENTION,
        """with torch.autocast("cpu", enabled=False):""",
        "with torch.no_grad():",
        ATTENTION_TEST + "test_the_attention_is_computed_in_float32",
    ),
    (
        ATTENTION,
        "        if applies:\n            config._attn_implementation = own",
        "        pass",
        ATTENTION_TEST + "test_an_error_within_ends_it",
    ),
    (
        ATTENTION,
        " or not inner.is_backend_compatible():",
        ":",
        ATTENTION_TEST + "test_no_further_from_float32_than_before[falcon-weights]",
    ),
    (
        ATTENTION,
        ".removeprefix(PREFIX) != BASE:",
        " != BASE:",
        ATTENTION_TEST + "test_other_forwards_keep_their_attention[packed_sdpa]",
    ),
    (
        ATTENTION,
        "return is_cast or inner.dtype == torch.bfloat16",
        "return True",
        ATTENTION_TEST + "test_no_further_from_float32_than_before[gpt2-weights]",
    ),
    (
        ATTENTION,
        "output.to(torch.bfloat16), weights",
        "output, weights",
        ATTENTION_TEST + "test_no_further_from_float32_than_before[gpt2-weights]",
    ),
    (
        "rlhf_kit/generation/reading.py",
        "growing_cache(self.model, wide=self.wide)\n            _read_on",
        "growing_cache(self.model)\n            _read_on",
        ATTENTION_TEST + "test_the_attention_is_computed_in_float32",
    ),
]
