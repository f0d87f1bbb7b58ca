"""What `test_shards.py` runs in each of two processes: python two_shards.py BASE FOLDER.

The same PPO run under DDP and under FSDP2. What went wrong, by kind of run, is left in FOLDER/shards-RANK.json.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig
from pieces_cpu import check_sharded, real_fsdp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo import PPOConfig, PPOTrainer

BASE, FOLDER = sys.argv[1:]
TOKENIZER = load_tokenizer(BASE)
ROWS = Dataset.from_list([{"prompt": "hello " + "the cat " * (i % 5)} for i in range(12)])
LORA = LoraConfig(r=4, init_lora_weights="gaussian")
KINDS = {"full": {}, "lora-separate": {"peft_config": LORA, "value_model": "separate"}}
LOGGED = ("loss", "grad_norm", "kl", "reward", "entropy", "loss/policy", "loss/value", "value/mean", "policy/ratio")


def brief(completion_ids, **_):
    return [-len(ids) / 20 - ids[0] / 1000 for ids in completion_ids]


def build(folder, kind, **options):
    fields = dict(
        rollout_batch_size=8, mini_batch_size=4, per_device_train_batch_size=1, num_ppo_epochs=2, total_episodes=16,
        max_completion_length=6, missing_eos_penalty=None, use_cpu=True, report_to="none", save_strategy="steps",
        save_steps=4, disable_tqdm=True, learning_rate=1e-3, logging_steps=1, bf16=False, weight_decay=0.1,
    )  # fmt: skip
    args = PPOConfig(f"{FOLDER}/{folder}", **fields | options)
    return PPOTrainer(BASE, [brief], args, ROWS, ROWS.select(range(5)), TOKENIZER, **KINDS[kind])


def run(folder, kind, resume=None, **options):
    """A run to its end, and its evaluation. -> trainer, logged numbers"""
    trainer = build(folder, kind, **options)
    trainer.train(resume_from_checkpoint=resume)
    logs = [{name: log[name] for name in LOGGED} for log in trainer.state.log_history if "loss/policy" in log]
    trainer.accelerator.wait_for_everyone()
    return trainer, [*logs, {k: v for k, v in trainer.evaluate().items() if k.startswith("eval_")}]


def weights(folder):
    return {path.name: load_file(path) for path in Path(FOLDER, folder).glob("*.safetensors")}


def optimizer_of(folder):
    state = torch.load(Path(FOLDER, folder, "optimizer.pt"), weights_only=True)
    for group in state["param_groups"]:
        group.pop("fused", None)
        group.pop("foreach", None)
    return state


def close(told, expected):
    torch.testing.assert_close(told, expected, atol=2e-6, rtol=2e-4)


def check(kind, whole):
    """`whole`: the logged numbers of the run under DDP, whose checkpoints stand in FOLDER/ddp-KIND."""
    trainer, logs = run(f"fsdp-{kind}", kind)
    check_sharded(trainer.model)
    close(logs, whole)
    ours, theirs = f"fsdp-{kind}/checkpoint-8", f"ddp-{kind}/checkpoint-8"
    names = [sorted(path.name for path in Path(FOLDER, folder).iterdir()) for folder in (ours, theirs)]
    assert names[0] == names[1], names  # nothing of FSDP's own, no weights twice
    close(weights(ours), weights(theirs))
    close(optimizer_of(ours), optimizer_of(theirs))
    trainer.save_model(f"{FOLDER}/saved-{kind}")
    dist.barrier()
    close(weights(f"saved-{kind}"), weights(theirs))
    if kind == "full":
        model = AutoModelForCausalLM.from_pretrained(f"{FOLDER}/{ours}")
        assert model.lm_head.weight is model.transformer.wte.weight
    for origin in (f"fsdp-{kind}", f"ddp-{kind}"):  # a run goes on from either's checkpoint
        resumed, again = run(f"resumed-{origin}", kind, resume=f"{FOLDER}/{origin}/checkpoint-4")
        close(again, logs)
        close(weights(f"resumed-{origin}/checkpoint-8"), weights(ours))
    check_sharded(resumed.model)


def main():
    faults = {}
    whole = {kind: run(f"ddp-{kind}", kind)[1] for kind in KINDS}
    real_fsdp()
    for kind in KINDS:
        try:
            check(kind, whole[kind])
            faults[kind] = ""
        except Exception:
            faults[kind] = traceback.format_exc()
        dist.barrier()
    Path(FOLDER, f"shards-{dist.get_rank()}.json").write_text(json.dumps(faults))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
