"""PPO in two processes: the same gradients as one, a save, an evaluation, a resume."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo import PPOConfig, PPOTrainer

base, output = sys.argv[1:]
tokenizer = set_chat_template(load_tokenizer(base))


def brief(completions, **_):
    return [-len(text) / 20 for text in completions]


def build(**more):
    policy = AutoModelForCausalLM.from_pretrained(base)
    policy.generation_config.eos_token_id = list(range(60))  # completions of different lengths
    rows = Dataset.from_list([{"prompt": "hello " + "the cat " * (i % 5)} for i in range(12)])
    args = PPOConfig(
        output, rollout_batch_size=8, mini_batch_size=8, per_device_train_batch_size=2, num_ppo_epochs=1,
        total_episodes=16, max_completion_length=10, missing_eos_penalty=None, use_cpu=True, report_to="none",
        save_strategy="steps", save_steps=1, disable_tqdm=True, learning_rate=1e-3, **more,
    )
    return PPOTrainer(policy, brief, args, rows, eval_dataset=rows.select(range(3)), processing_class=tokenizer)


trainer = build()
rank, world = trainer.args.process_index, trainer.args.world_size
assert world == 2
rows = trainer.prompts[4 * rank : 4 * rank + 4]
experience, metrics = trainer.collect(rows, torch.Generator().manual_seed(rank))

# Advantages are whitened over both processes.
kept = experience.advantages[experience.rollout.completion_mask]
moments = torch.stack([kept.sum(), (kept * kept).sum(), torch.tensor(float(len(kept)))])
dist.all_reduce(moments)
assert abs(moments[0] / moments[2]) < 1e-5 and abs(moments[1] / moments[2] - 1) < 1e-4, moments

# The averaged gradients of the two equal those of the whole mini-batch in one.
batches = list(trainer.minibatches(experience, torch.Generator().manual_seed(0)))
assert len(batches) == 2
model = trainer.accelerator.prepare(trainer.model)
for number, batch in enumerate(batches):
    with model.no_sync() if number == 0 else torch.enable_grad():
        trainer.compute_loss(model, batch).backward()
averaged = [p.grad.clone() for p in trainer.model.parameters()]
everything = [None, None]
dist.all_gather_object(everything, batches)
trainer.model.zero_grad()
for batch in [b for part in everything for b in part]:
    (trainer.compute_loss(trainer.model, batch) / world).backward()
for a, parameter in zip(averaged, trainer.model.parameters(), strict=True):
    torch.testing.assert_close(a, parameter.grad, atol=1e-6, rtol=1e-4)

# A whole run, and one that is resumed.
trainer = build()
trainer.train()
assert trainer.state.global_step == 2
logs = trainer.evaluate()
assert logs["eval_length"] > 0
trainer.accelerator.wait_for_everyone()
resumed = build()
resumed.train(resume_from_checkpoint=output + "/checkpoint-1")
for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
    assert torch.equal(a, b)
both = [torch.zeros_like(next(trainer.model.parameters())) for _ in range(2)]
dist.all_gather(both, next(trainer.model.parameters()).data)
assert torch.equal(*both)
if rank == 0:
    AutoModelForCausalLM.from_pretrained(output + "/checkpoint-2")
    print("two processes agree")
dist.destroy_process_group()
"""


def test_two_processes(policy, tokenizer_folder, tmp_path):
    base = tmp_path / "base"
    policy.save_pretrained(base)
    for item in tokenizer_folder.iterdir():
        (base / item.name).write_bytes(item.read_bytes())
    script = Path(tmp_path / "script.py")
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += ["--master_port=0", "--rdzv-backend=c10d", str(script), str(base), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "two processes agree" in done.stdout
