"""Long runs: what SIGTERM leaves, what other processes read, which checkpoints stay, what services get."""

STOPPING = "rlhf_kit/training/stopping.py"
TEST = "tests/stages/test_sigterm.py::"
RESUMED = TEST + "test_a_stopped_run_goes_on_to_the_end_of_an_unbroken_one"
KEPT = "tests/stages/test_kept_checkpoints.py::"

MUTANTS = [
    (
        STOPPING,
        "torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)",
        "torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MIN)",
        RESUMED + "[sft-2-asked3-4]",
    ),
    (
        STOPPING,
        "control.should_log = control.should_evaluate = False",
        "pass",
        TEST + "test_what_an_epoch_ends_with_is_done_once[2-evaluated0]",
    ),
    (
        STOPPING,
        "if state.epoch != int(state.epoch) and",
        "if",
        TEST + "test_what_an_epoch_ends_with_is_done_once[5-evaluated1]",
    ),
    (
        STOPPING,
        " or args.save_only_model",
        "",
        TEST + "test_without_checkpoints_to_go_on_from_it_ends_at_once[['--save_only_model']]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "            if self.state.global_step > self.sigterm.saved:",
        "            if False:",
        TEST + "test_where_the_best_alone_are_saved_the_last_is_too",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "if self.sigterm is not None and self.sigterm.is_stopping:",
        "if False:",
        RESUMED + "[sft-2-asked3-4]",
    ),
    (
        "rlhf_kit/ppo/loop.py",
        "            self.reward_std, draw_again = before\n",
        "            _, draw_again = before\n",
        RESUMED + "[ppo-1-asked4-2]",
    ),
    (
        "rlhf_kit/terminal/interrupts.py",
        "        if os.getpid() != self._process:",
        "        if False:",
        TEST + "test_a_data_loaders_worker_works_on",
    ),
    (
        "rlhf_kit/terminal/interrupts.py",
        "if not self._left.wait(self.seconds):",
        "if False:",
        TEST + "test_before_it_begins_and_when_its_time_is_over_it_ends_at_once",
    ),
    (
        "rlhf_kit/stages/launching.py",
        "str(math.ceil(seconds) + MARGIN)",
        '"30"',
        TEST + "test_a_launcher_waits_longer_than_its_processes",
    ),
    (
        "rlhf_kit/training/checkpoints.py",
        "kept = {path.name for path in whole[-1:]}",
        "kept = set()",
        KEPT + "test_the_oldest_go_but_neither_the_best_nor_the_last[steps3-1-2-left3]",
    ),
    (
        "rlhf_kit/training/checkpoints.py",
        "        if not is_cut_off(checkpoint):\n            whole",
        "        if True:\n            whole",
        KEPT + "test_the_oldest_go_but_neither_the_best_nor_the_last[steps9-2-None-left9]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        "with self._removing_none():  # it would remove the last",
        "if True:  # it would remove the last",
        KEPT + "test_a_run_keeps_its_best_and_its_last_to_the_end[1-left0]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        'counted["_tr_loss"] = torch.stack([part["_tr_loss"] for part in parts]).mean(0)',
        "pass",
        "tests/stages/test_resume.py::test_another_number_of_processes_goes_on_with_the_rows_that_are_left[sft-2-1]",
    ),
    (
        "rlhf_kit/training/trainer.py",
        'counted["_measures"] = rows if self.args.process_index == 0 else []',
        "pass",
        "tests/stages/test_resume.py::test_another_number_of_processes_goes_on_with_the_rows_that_are_left[reward-2-1]",
    ),
]
