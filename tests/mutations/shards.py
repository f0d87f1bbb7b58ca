"""Weights in pieces: PPO under FSDP2, and which pieces it refuses."""

TRAINER, SHARDS, LAUNCH = "rlhf_kit/training/trainer.py", "rlhf_kit/training/shards.py", "rlhf_kit/training/launch.py"
WHOLE = "tests/ppo/test_shards.py::test_ppo_in_pieces_is_ppo_whole[full]"
OF_LORA = "tests/ppo/test_shards.py::test_ppo_in_pieces_is_ppo_whole[lora-separate]"
REFUSED = "tests/ppo/test_launch.py::test_pieces_that_ppo_cannot_work_with_are_refused_with_what_works"
LAUNCHED = "tests/ppo/test_launch.py::test_an_accelerate_launch_with_such_pieces_is_refused"
ALLOWED = "tests/ppo/test_launch.py::test_pieces_that_ppo_works_with_are_not"

MUTANTS = [
    (TRAINER, "            if give_back:\n", "            if False:\n", WHOLE),
    (TRAINER, "        self.is_fsdp_enabled = False\n        try:", "        try:", WHOLE),
    (TRAINER, "            self.optimizer.gather()", "            pass", WHOLE),
    (SHARDS, "return _renamed(self.gathered, numbers)", "return self.gathered", WHOLE),
    (LAUNCH, "        if stage not in (0, 1, 2):", "        if False:", REFUSED),
    (LAUNCH, 'os.environ.get(f"FSDP_{name.upper()}", "")', '""', LAUNCHED),
    (LAUNCH, 'key.removeprefix("fsdp_"): value', "key: value", REFUSED),
    (LAUNCH, '"ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"', '"ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"', ALLOWED),
    ("rlhf_kit/models/value.py", "named & {type(module).__name__ for module in self.modules()}", "()", OF_LORA),
]
