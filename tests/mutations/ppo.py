"""PPO under its own options: what it obeys, and what it refuses."""

TRAINER, LOOP, REWARDS = "rlhf_kit/ppo/trainer.py", "rlhf_kit/ppo/loop.py", "rlhf_kit/ppo/rewards.py"
OPS, ROLLOUT = "rlhf_kit/ops.py", "rlhf_kit/generation/sampling.py"
AT_REST = "tests/ppo/test_trainer.py::test_learning_rate_0_means_ratio_1_clip_0_kl_0"
STOPPING, PROCESSES = "tests/ppo/test_stopping.py::", "tests/ppo/test_processes.py::"
MODELS, CALLS = "tests/ppo/test_reward_models.py::", "tests/ppo/test_functions.py::"
READERS, READERS_TEST = "rlhf_kit/models/roles.py", "tests/ppo/test_readers.py::"
LAUNCH, BOUNDS = "tests/ppo/test_launch.py::", "tests/ppo/test_bounds.py::"
PYTHON = "tests/ppo/test_python_options.py::"

SHARP = "tests/stages/test_replay.py::test_the_numbers_are_those_that_the_run_logged[sharp]"

MUTANTS = [
    (TRAINER, "sharpening_coef=args.sharpening_coef,", "sharpening_coef=0.0,", SHARP),
    ("rlhf_kit/ppo/experience.py", "sharpening_coef * ref_logprobs", "sharpening_coef * logprobs", SHARP),
    ("rlhf_kit/chat/tokens.py", "sharpening_coef * ref_logprobs", "0.0 * ref_logprobs", SHARP),
    ("rlhf_kit/stages/replay.py", '("kl_estimator", "sharpening_coef")', '("kl_estimator",)', SHARP),
    (OPS, "bonus - kl_coef * kl", "-kl_coef * kl", "tests/test_ops.py::test_score_lands_on_the_last_chosen_token"),
    (
        "rlhf_kit/training/schedule.py",
        "    if unread:",
        "    if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "    if args.optim_target_modules:",
        "    if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "    if not args.activation_checkpointing:",
        "    if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "    if fault:",
        "    if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/schedule.py",
        "if args.use_liger_kernel and not is_liger_kernel_available():",
        "if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "                refuse_unusable(argument)",
        "                pass",
        "tests/stages/test_schedule.py::test_a_trainer_in_python_refuses_what_its_optimizer_does_not_read",
    ),
    (
        "rlhf_kit/stages/mappings.py",
        "        if key not in known",
        "        if False",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/stages/mappings.py",
        'if fsdp is not None and not values.get("fsdp"):',
        "if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/options/coercion.py",
        "    if not isinstance(content, dict):",
        "    if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/options/reading.py",
        "        result = read_mapping(result)",
        "        pass",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    # One temperature, in the update, the reference, the policy's own log-probs and the draw.
    (
        TRAINER,
        "temperature=args.temperature,\n            with_entropy=args.entropy_coef > 0",
        "temperature=1.0,\n            with_entropy=args.entropy_coef > 0",
        f"{AT_REST}[0.7-shared-full]",
    ),
    (
        TRAINER,
        "completion_logprobs(reference, part.model_inputs(), self.args.temperature)",
        "completion_logprobs(reference, part.model_inputs(), 1.0)",
        f"{AT_REST}[0.7-shared-full]",
    ),
    (
        TRAINER,
        "temperature=self.args.temperature, with_entropy=True",
        "temperature=1.0, with_entropy=True",
        f"{AT_REST}[0.7-separate-full]",
    ),
    (
        TRAINER,
        "temperature=self.args.temperature,\n                generator=generator",
        "temperature=1.0,\n                generator=generator",
        f"{AT_REST}[0.7-shared-full]",
    ),
    # Several processes.
    (
        "rlhf_kit/ppo/metrics.py",
        "{name: total / self.processes",
        "{name: total",
        PROCESSES + "test_logged_numbers_are_means_over_all_processes",
    ),
    (
        "rlhf_kit/ppo/metrics.py",
        "totals = self.reduce(means.to(device)).tolist()",
        "totals = (means * self.processes).tolist()",
        PROCESSES + "test_logged_numbers_are_means_over_all_processes",
    ),
    (
        "rlhf_kit/ppo/metrics.py",
        "torch.rand(first, args.max_completion_length, generator=generator)",
        "pass",
        PROCESSES + "test_an_evaluation_is_that_of_one_process",
    ),
    (
        "rlhf_kit/ppo/experience.py",
        'ops.kl_k3(batch["logprobs"], output["logprobs"])',
        'ops.kl_k3(output["logprobs"], batch["logprobs"])',
        PROCESSES + "test_logged_numbers_are_means_over_all_processes",
    ),
    # The mathematics.
    (
        OPS,
        "x = rows[part].float() / temperature",
        "x = (rows[part] / temperature).float()",
        "tests/test_ops.py::test_token_logprobs_of_half_precision_logits_are_float32",
    ),
    (
        OPS,
        "logprobs = F.log_softmax(rows[part].float() / temperature, dim=-1)",
        "logprobs = F.log_softmax(rows[part] / temperature, dim=-1)",
        "tests/test_ops.py::test_token_logprobs_of_half_precision_logits_are_float32",
    ),
    (
        OPS,
        "torch.where(here, delta + gamma * lam * running, running)",
        "torch.where(here, delta + lam * running, running)",
        "tests/test_ops.py::test_gae_with_lambda_1_is_the_discounted_return_minus_the_value",
    ),
    (
        OPS,
        "return torch.maximum(plain, clipped), ratio, clipped > plain",
        "return clipped, ratio, clipped > plain",
        "tests/test_ops.py::test_policy_loss_clips_by_hand",
    ),
    (
        OPS,
        "near = old_values + (values - old_values)",
        "near = old_values + 0.5 * (values - old_values)",
        "tests/test_ops.py::test_value_loss_clips_by_hand",
    ),
    (
        "rlhf_kit/models/value.py",
        "with torch.autocast(hidden.device.type, enabled=False):",
        "if True:",
        "tests/models/test_value.py::test_values_and_logprobs_are_float32_under_autocast",
    ),
    (
        ROLLOUT,
        "choose(logits, self.uniforms[rows, steps],",
        "choose(logits, self.uniforms[: len(rows)].gather(1, steps[:, None]).squeeze(1),",
        "tests/ppo/test_rollout.py::test_draws_do_not_depend_on_the_batch_size",
    ),
    # Checkpointing, warm-up, fp16.
    (
        "rlhf_kit/models/value.py",
        "for trunk in filter(None, (self.policy, self.value_trunk)):",
        "for trunk in (self.policy,):",
        "tests/ppo/test_checkpointing.py::test_gradient_checkpointing_changes_no_gradient[separate-full]",
    ),
    (
        LOOP,
        "                    parameter.grad = None",
        "                    pass",
        "tests/ppo/test_warmup.py::test_weight_decay_does_not_move_a_warming_up_policy[shared-full]",
    ),
    (
        LOOP,
        " or self._loss_scale() < self._scaled_by",
        "",
        "tests/ppo/test_skipped_steps.py::test_steps_that_overflow_in_fp16_are_skipped[adamw_torch_fused]",
    ),
    (
        LOOP,
        "if self.ema is not None and not self.step_was_skipped:",
        "if self.ema is not None:",
        "tests/ppo/test_skipped_steps.py::test_steps_that_overflow_in_fp16_are_skipped[adamw_torch]",
    ),
    # Where a run ends and pauses.
    (
        LOOP,
        "if trainer.control.should_training_stop:\n                return",
        "if trainer.control.should_training_stop:\n                pass",
        STOPPING + "test_max_kl_stops_the_sampling_too",
    ),
    (
        LOOP,
        "control.should_save = by_time and state.global_step > self.saved",
        "control.should_save = False",
        STOPPING + "test_a_run_that_max_kl_stopped_goes_on_with_a_larger_one",
    ),
    (
        LOOP,
        "control.should_training_stop = control.should_log = True",
        "control.should_training_stop = True",
        STOPPING + "test_max_kl_stops_the_sampling_too",
    ),
    (
        LOOP,
        "if not self.can_pause:",
        "if False:",
        STOPPING + "test_checkpoints_are_of_rollout_ends_and_resume_to_the_unbroken_run",
    ),
    (LOOP, "        if inside:", "        if False:", STOPPING + "test_a_checkpoint_inside_a_rollout_is_refused"),
    (
        LOOP,
        "if any(getattr(args, name) != value for name, value in saved.items()):",
        "if False:",
        STOPPING + "test_other_rollouts_than_the_checkpoint_s_are_refused",
    ),
    (
        LOOP,
        "if self._passes(args, state.global_step) > self._passes(args, state.global_step - 1):",
        "if False:",
        STOPPING + "test_an_epoch_is_a_pass_over_the_prompts",
    ),
    # Rewards.
    (
        REWARDS,
        'check_scorer(name, load_config(name, what="a reward model"))',
        "None",
        MODELS + "test_a_language_model_as_a_reward_is_refused_by_name",
    ),
    (
        "rlhf_kit/models/heads.py",
        "    if not _head(inner):",
        "    if False:",
        MODELS + "test_a_language_model_in_memory_too",
    ),
    (
        REWARDS,
        "_own_tokenizer(self.funcs[i], policy_tokenizer)",
        "policy_tokenizer",
        MODELS + "test_a_model_from_a_folder_is_read_with_its_own_tokenizer",
    ),
    (
        REWARDS,
        "if not room.holds(longest):",
        "if False:",
        MODELS + "test_a_context_too_short_for_a_completion_is_refused_first",
    ),
    (
        TRAINER,
        "for prompts in prompt_sets:\n            self.rewards",
        "for prompts in (self.prompts,):\n            self.rewards",
        MODELS + "test_prompts_that_the_reward_s_template_refuses_are_found_first",
    ),
    (
        TRAINER,
        "self.rewards.check(prompts, args.max_completion_length, trainer_state=None)",
        "pass",
        MODELS + "test_prompts_that_the_reward_s_template_refuses_are_found_first",
    ),
    (
        REWARDS,
        "arguments = copy.deepcopy(dict(",
        "arguments = (dict(",
        CALLS + "test_a_function_cannot_change_the_run_s_prompts",
    ),
    (
        REWARDS,
        "        asyncio.get_running_loop()",
        "        raise RuntimeError",
        CALLS + "test_coroutines_are_waited_for_in_a_running_loop_too",
    ),
    (
        REWARDS,
        "    if array.ndim == 2 and array.shape[1] == 1:",
        "    if array.ndim == 2:",
        CALLS + "test_what_else_is_returned_is_told",
    ),
    (
        REWARDS,
        "if not isinstance(value, numbers.Real | Decimal | numpy.bool_):",
        "if isinstance(value, list | dict):",
        CALLS + "test_what_else_is_returned_is_told",
    ),
    (
        REWARDS,
        "not abs(number) <= torch.finfo(torch.float32).max",
        "not math.isfinite(number)",
        CALLS + "test_what_else_is_returned_is_told",
    ),
    (REWARDS, "numpy.asanyarray(returned)", "numpy.asarray(returned)", CALLS + "test_none_is_no_opinion"),
    (
        REWARDS,
        "    if not callable(func):",
        "    if False:",
        CALLS + "test_a_signature_that_does_not_fit_is_told_before_anything_is_sampled",
    ),
    (
        REWARDS,
        "func.forward if isinstance(func, nn.Module) else func",
        "func",
        CALLS + "test_a_signature_that_does_not_fit_is_told_before_anything_is_sampled",
    ),
    (
        REWARDS,
        "if not scores.isfinite().all():",
        "if False:",
        CALLS + "test_rewards_that_float32_cannot_hold_together_are_told",
    ),
    (REWARDS, "isinstance(func, os.PathLike)", "False", MODELS + "test_folders_may_be_paths"),
    (
        "rlhf_kit/ppo/config.py",
        "if self.kl_target is not None and self.kl_coef == 0:",
        "if False:",
        BOUNDS + "test_what_would_be_read_otherwise_than_it_is_meant_is_refused",
    ),
    (
        "rlhf_kit/options/bounds.py",
        "if bound.whole and not isinstance(value, Integral):",
        "if bound.whole and value != int(value):",
        BOUNDS + "test_what_would_be_read_otherwise_than_it_is_meant_is_refused",
    ),
    (
        "rlhf_kit/options/bounds.py",
        'if kind in ("bool", str(bool)) and isinstance(value, str):',
        "if False:",
        BOUNDS + "test_what_would_be_read_otherwise_than_it_is_meant_is_refused",
    ),
    # What reads the policy's tokens beside it.
    (
        READERS,
        "if limit is not None and longest > limit:",
        "if False:",
        READERS_TEST + "test_a_context_shorter_than_prompt_and_completion_is_refused",
    ),
    (
        READERS,
        "if len(tokenizer) > known:",
        "if False:",
        READERS_TEST + "test_fewer_tokens_than_the_policy_s_are_refused",
    ),
    (
        READERS,
        "if len(others) > OTHER_TOKENS * len(shared):",
        "if False:",
        READERS_TEST + "test_another_tokenizer_is_refused",
    ),
    (
        READERS,
        "len(others) > OTHER_TOKENS * len(shared)",
        "tokenizer.get_vocab() != (own or tokenizer).get_vocab()",
        READERS_TEST + "test_a_mark_that_got_another_name_is_the_same_tokenizer",
    ),
    (
        TRAINER,
        "        longest = longest_row(prompt_sets, args",
        "        longest = longest_row(prompt_sets[:1], args",
        READERS_TEST + "test_an_evaluation_s_prompts_count_too",
    ),
    # What is refused before anything is loaded.
    (
        "rlhf_kit/stages/loading.py",
        "for fault in schedule_faults(args)]",
        "for fault in schedule_faults(args) if False]",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/stages/run.py",
        'if values.get("bf16") and values.get("fp16"):',
        "if False:",
        "tests/stages/test_schedule.py::test_what_cannot_be_made_is_told_first",
    ),
    (
        "rlhf_kit/training/launch.py",
        "if args.n_gpu > 1:",
        "if False:",
        LAUNCH + "test_data_parallel_is_refused_by_every_trainer",
    ),
    (
        "rlhf_kit/training/launch.py",
        "    refuse_data_parallel(args)\n    refuse_other_engine(args)\n",
        "    refuse_other_engine(args)\n",
        LAUNCH + "test_data_parallel_is_refused_by_every_trainer",
    ),
    (
        "rlhf_kit/reward/trainer.py",
        "args = usable(args or",
        "args = (args or",
        LAUNCH + "test_data_parallel_is_refused_by_every_trainer",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "refuse_data_parallel(self.args)",
        "pass",
        LAUNCH + "test_data_parallel_is_refused_by_every_trainer",
    ),
    (
        "rlhf_kit/stages/loading.py",
        "    refuse_launch(args)",
        "    pass",
        LAUNCH + "test_data_parallel_is_refused_by_the_command",
    ),
    (
        "rlhf_kit/options/bounds.py",
        "if not isinstance(value, Integral) and not math.isfinite(value):",
        "if False:",
        BOUNDS + "test_what_is_no_number_is_refused",
    ),
    (
        "rlhf_kit/options/bounds.py",
        '"gamma": A_SHARE',
        '"gamma": NOT_NEGATIVE',
        BOUNDS + "test_numbers_out_of_range_are_refused",
    ),
    (
        "rlhf_kit/options/bounds.py",
        "lambda x: 0 <= x <= 1)",
        "lambda x: 0 <= x < 1)",
        BOUNDS + "test_the_ends_of_a_range_are_taken",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        "min(LONGEST, context or LONGEST)",
        "LONGEST",
        "tests/ppo/test_ptx.py::test_texts_longer_than_the_context_are_cut_to_it",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        "if asked is not None and context is not None and asked > context:",
        "if False:",
        "tests/ppo/test_ptx.py::test_more_than_the_context_is_refused_by_name",
    ),
    # What the command line takes, the trainer takes.
    (
        REWARDS,
        "self.funcs = [judge if func == names[0] else func for func in self.funcs if func not in names[1:]]",
        "self.funcs = [judge, *(func for func in self.funcs if func not in names)][::-1]",
        PYTHON + "test_an_ensemble_by_argument_stands_where_its_first_model_stood",
    ),
    (
        REWARDS,
        "    if not isinstance(func, str) or not FUNCTION.fullmatch(func):",
        "    if True:",
        PYTHON + "test_a_function_by_its_name",
    ),
    (
        TRAINER,
        '{"max_prompt_length": most, "workers": args.dataset_num_proc}',
        '{"workers": args.dataset_num_proc}',
        PYTHON + "test_long_prompts_are_left_out",
    ),
    (
        "rlhf_kit/ppo/prompts.py",
        'f"row {at + 1}": tokens for at',
        'f"row {at}": tokens for at',
        PYTHON + "test_a_long_prompt_has_one_number[best of n]",
    ),
    (
        "rlhf_kit/generation/loop.py",
        "        reader.write(step)\n        step = choose(*reader.read())",
        "        step = choose(*reader.read())\n        reader.write(step)",
        "tests/ppo/test_rollout.py::test_draws_do_not_depend_on_the_batch_size",
    ),
]
