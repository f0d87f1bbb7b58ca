"""Going on: what is saved is whole, a resumed run is the unbroken one, a number that is none stops it."""

MUTANTS = [
    (
        "rlhf_kit/training/trainer.py",
        'self.watch.look("The loss", loss)',
        "pass",
        "tests/recipes/test_not_finite.py::test_a_loss_that_is_none_stops_the_stage[sft]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "    def _clip_grad_norm(self, model: nn.Module) -> Tensor:\n        self._look_at_gradients(model)",
        "    def _clip_grad_norm(self, model: nn.Module) -> Tensor:",
        "tests/recipes/test_not_finite.py::test_a_gradient_that_is_none_names_its_parameter[1.0]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "scaler.get_scale() > 1",
        "True",
        "tests/recipes/test_not_finite.py::test_a_gradient_that_overflowed_by_the_loss_scale_is_a_skipped_step[1.0]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "scaler is not None and scaler.is_enabled() and",
        "False and",
        "tests/recipes/test_not_finite.py::test_a_gradient_that_overflowed_by_the_loss_scale_is_a_skipped_step[65536.0]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:\n        self.check_weights()",
        "    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:",
        "tests/recipes/test_not_finite.py::test_weights_that_an_optimizer_step_broke_are_never_saved",
    ),
    (
        "rlhf_kit/errors.py",
        "status = 1",
        "status = 2",
        "tests/recipes/test_not_finite.py::test_a_loss_that_is_none_stops_the_stage[sft]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "        if self.state.global_step >= self.state.max_steps:\n            return",
        "        if self.state.global_step >= self.state.max_steps:\n            pass",
        "tests/recipes/test_resume_rules.py::test_at_its_last_step_a_run_trains_nothing_more_and_ends_as_an_unbroken_one[4]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "scheduler.base_lrs = rates",
        "pass",
        "tests/recipes/test_resume_rules.py::test_another_learning_rate_holds_from_the_checkpoint_on",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "torch.set_rng_state(self._epoch_rng)",
        "pass",
        "tests/recipes/test_mlm.py::test_a_resumed_run_draws_the_masks_of_an_unbroken_one[0]",
    ),
    (
        "rlhf_kit/training/checkpoints.py",
        "if fingerprint(path) != digest:",
        "if False:",
        "tests/recipes/test_output.py::test_a_named_checkpoint_must_be_there_and_whole",
    ),
    (
        "recipes/resume.py",
        'if then is not None and then != self.now["content"][name]:',
        "if False:",
        "tests/recipes/test_resume_rules.py::test_changed_content_under_the_same_name_is_refused",
    ),
    (
        "recipes/mlm.py",
        "int(self.passes) if draw >= 0 else 0",
        "int(self.passes)",
        "tests/recipes/test_mlm.py::test_a_rows_masks_are_those_of_its_number_and_pass",
    ),
    (
        "recipes/advice.py",
        'record(path).get("saved", 0.0) >= began',
        "True",
        "tests/recipes/test_interrupts.py::test_a_run_that_was_to_be_replaced_is_not_gone_on_with",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "            if continued:",
        "            if False:",
        "tests/recipes/test_resume_rules.py::test_a_run_resumed_twice_about_the_end_of_a_pass_reads_the_same_rows[6]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "for name in load_result.missing_keys if name not in tied",
        "for name in load_result.missing_keys",
        "tests/recipes/test_mlm.py::test_a_resumed_run_draws_the_masks_of_an_unbroken_one[0]",
    ),
    (
        "recipes/mlm.py",
        "tokenizer.backend_tokenizer.no_truncation()",
        "pass",
        "tests/recipes/test_mlm.py::test_a_resumed_run_draws_the_masks_of_an_unbroken_one[0]",
    ),
    (
        "recipes/models.py",
        '            make(train_data["text"], size).save_pretrained(folder)',
        '            return make(train_data["text"], size)',
        "tests/recipes/test_mlm.py::test_a_resumed_run_draws_the_masks_of_an_unbroken_one[0]",
    ),
]
