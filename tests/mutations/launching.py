"""`--accelerate`: what would silently be something else, how processes end, and the job that goes on."""

ACCELERATE = "tests/stages/test_accelerate.py::"
SILENT = ACCELERATE + "test_what_would_silently_be_something_else_is_refused"
LAUNCHING, ENGINES = "rlhf_kit/stages/launching.py", "rlhf_kit/training/engines.py"
REAL = ACCELERATE + "test_two_processes_train_and_one_speaks_fsdp2_takes_the_steps_of_ddp"
MUTANTS = [
    (LAUNCHING, "    if config.use_cpu and kind in ENGINES:", "    if config.use_cpu and kind is None:", SILENT),
    (LAUNCHING, "elif not config.use_cpu and here > devices:", "elif here > 99:", SILENT),
    (LAUNCHING, "if kind == DistributedType.NO and processes > 1:", "if kind == DistributedType.NO and 0:", SILENT),
    (LAUNCHING, "    if kind == DistributedType.MULTI_CPU:", "    if kind is None:", SILENT),
    (LAUNCHING, "        if _whole(name) not in known:", "        if not known:", SILENT),
    (LAUNCHING, "    elif not config.use_cpu and not devices:", "    elif kind is None:",
     ACCELERATE + "test_without_a_gpu_no_configuration_of_gpus_starts"),
    (LAUNCHING, "                return failure.exitcode\n", "                return 1\n",
     ACCELERATE + "test_the_status_of_a_process_is_the_commands"),
    (LAUNCHING, "            return 128 + error.sigval", "            return 1",
     ACCELERATE + "test_sigterm_reaches_every_process"),
    (LAUNCHING, "    if is_started():", "    if not name:",
     ACCELERATE + "test_a_process_of_a_launcher_starts_no_others"),
    (ENGINES, '        if values["fsdp_version"] != "2":', "        if not values:", SILENT),
    (ENGINES, '        if kind not in ("", "FULL_STATE_DICT"):', "        if not values:", SILENT),
    (ENGINES, "(DistributedType.NO, DistributedType.MULTI_CPU):", "(DistributedType.NO,) and not engine:",
     ACCELERATE + "test_an_engine_that_a_launcher_cannot_start_is_refused_in_its_processes"),
    (ENGINES, '    if launched not in ("no", own):', '    if launched == "fp8":',
     ACCELERATE + "test_an_engine_that_a_launcher_cannot_start_is_refused_in_its_processes"),
    (ENGINES, "    if any(isinstance(module, FSDPModule) for", "    if all(isinstance(module, FSDPModule) for", REAL),
    ("rlhf_kit/processes.py", "    if configuration not in (None, accelerated()):", "    if configuration == 0:",
     ACCELERATE + "test_python_is_told_that_it_starts_none"),
    ("rlhf_kit/stages/accelerate/slurm/train.sh", '  scontrol requeue "$SLURM_JOB_ID"', "  :",
     "tests/stages/test_slurm.py::test_a_job_that_is_asked_to_end_goes_on_to_the_end_of_an_unbroken_run"),
]  # fmt: skip
