"""The stages and the options that make each of them short."""

from rlhf_kit.cli import main
from rlhf_kit.stages import dpo, grpo, kto, mlm, ppo, pretrain, reward, rloo, sft

STAGES = {"pretrain": pretrain, "mlm": mlm, "sft": sft, "reward": reward, "ppo": ppo}
METHODS = {
    "dpo": dpo,
    "kto": kto,
    "rloo": rloo,
    "grpo": grpo,
}  # further ways to a policy: what all stages share is tried on the others
QUIET = ["--disable_tqdm", "--logging_steps", "1", "--per_device_train_batch_size", "2"]
PPO = [
    *("--rollout_batch_size", "4", "--mini_batch_size", "2", "--num_ppo_epochs", "1", "--total_episodes", "8"),
    *("--max_completion_length", "4", "--reward_funcs", "tests.rewards:brief", "--log_completions"),
]


def run_command(stage, argv) -> int:
    """A stage by its name or its module, on the command line."""
    name = stage if isinstance(stage, str) else stage.__name__.rpartition(".")[2]
    return main([name, *map(str, argv)])


def kill_after_step_2(out) -> None:
    """Of a run of four steps that saved after two, leave what it would have left had it been killed then."""
    for path in [*out.glob("checkpoint-4/*"), *out.glob("*.*")]:
        if path.is_file() and path.name != "metrics.jsonl":
            path.unlink()
    (out / "checkpoint-4").rmdir()
