"""What `test_processes.py` runs in each of two processes: python two_processes.py BASE REFERENCE FOLDER.

Every check compares with numbers computed here from the raw rollouts of both, row by row without padding, by plain
transformers and torch. What went wrong, by check, is left in FOLDER/RANK.json.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo import PPOConfig, PPOTrainer

BASE, REFERENCE, FOLDER = sys.argv[1:]
TOKENIZER = set_chat_template(load_tokenizer(BASE))
ROWS = Dataset.from_list([{"prompt": "hello " + "the cat " * (i % 5)} for i in range(12)])
TEXTS = Dataset.from_dict({"text": ["the cat sat on the mat", "hello dog", "so did the dog, and so on", "the mat"]})
T, KL_COEF, LAM, CLIP, VF, ENTROPY, PTX = 0.7, 0.1, 0.9, 0.1, 0.5, 0.02, 0.3


def brief(completion_ids, **_):
    return [-len(ids) / 20 - ids[0] / 1000 for ids in completion_ids]


def some(completion_ids, **_):
    return [len(ids) / 10 if ids[0] % 2 else None for ids in completion_ids]


def build(folder="run", max_kl=None, eval_rows=None, **options):
    policy = AutoModelForCausalLM.from_pretrained(BASE)
    policy.generation_config.eos_token_id = list(range(60))  # completions of different lengths
    fields = dict(
        rollout_batch_size=8, mini_batch_size=4, per_device_train_batch_size=1, num_ppo_epochs=2, total_episodes=16,
        max_completion_length=10, missing_eos_penalty=None, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, learning_rate=1e-2, temperature=T, kl_coef=KL_COEF, lam=LAM, cliprange=CLIP, vf_coef=VF,
        cliprange_value=0.05, reward_weights=[1.0, 0.5], max_kl=max_kl,
    )  # fmt: skip
    texts = TEXTS if options.get("ptx_coef") else None
    trainer = PPOTrainer(
        policy, [brief, some], PPOConfig(f"{FOLDER}/{folder}", **fields | options), ROWS, eval_dataset=eval_rows,
        processing_class=TOKENIZER, ref_model=AutoModelForCausalLM.from_pretrained(REFERENCE), ptx_dataset=texts,
    )  # fmt: skip
    torch.manual_seed(5)
    torch.nn.init.normal_(trainer.model.value_head.weight, std=0.1)
    return trainer


def gathered(items: list) -> list:
    """The items of both processes."""
    parts = [None, None]
    dist.all_gather_object(parts, items)
    return parts[0] + parts[1]


def raw(rollout) -> list[dict]:
    prompts, ids = rollout.prompt_ids.tolist(), rollout.completions()
    width = rollout.prompt_ids.shape[1]
    lengths = rollout.prompt_lengths.tolist()
    return [
        {"prompt": p[width - n :], "completion": c, "ended": bool(e)}
        for p, n, c, e in zip(prompts, lengths, ids, rollout.terminated, strict=True)
    ]


def spoken(model, row, head=None):
    """Log-probs and entropies of a completion's tokens, and values of the states before them. (R,) each."""
    ids, first = torch.tensor([row["prompt"] + row["completion"]]), len(row["prompt"]) - 1
    states = model.transformer(ids).last_hidden_state[0, first:-1]
    distribution = (model.lm_head(states) / T).log_softmax(-1)
    chosen = distribution[range(len(row["completion"])), row["completion"]]
    values = None if head is None else states @ head.weight[0] + head.bias[0]
    return chosen, -(distribution.exp() * distribution).sum(-1), values


def learnt(rows, head, scaled=False):
    """Adds what is learnt from the rows to them: the mathematics of PPO in a few loops. -> policy, scale of scores"""
    policy, reference = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (BASE, REFERENCE))
    with torch.no_grad():
        for row in rows:
            row["old"], row["entropy"], row["values"] = spoken(policy, row, head)
            row["reference"] = spoken(reference, row)[0]
            other = some([row["completion"]])[0]
            row["brief"], row["some"] = brief([row["completion"]])[0], other
            row["score"] = row["brief"] + 0.5 * (other or 0.0)
        scale = float(torch.tensor([row["score"] for row in rows]).std(correction=0)) if scaled else 1.0
        for row in rows:
            row["score"] /= scale
            rewards = [-KL_COEF * float(x) for x in row["old"] - row["reference"]]
            rewards[-1] += row["score"]
            gains, running = [], 0.0
            for t in reversed(range(len(rewards))):
                following = float(row["values"][t + 1]) if t + 1 < len(rewards) else 0.0
                running = rewards[t] + following - float(row["values"][t]) + LAM * running
                gains.insert(0, running)
            row["gains"] = torch.tensor(gains)
            row["returns"] = row["gains"] + row["values"]
        every = torch.cat([row["gains"] for row in rows])
        for row in rows:
            row["gains"] = (row["gains"] - every.mean()) / every.std(correction=0)
    return policy, scale


def check_gradients():
    """DDP's gradients of a mini-batch are those of its loss, a mean over the tokens of both processes."""
    trainer = build(mini_batch_size=8, per_device_train_batch_size=2, num_ppo_epochs=1)
    rank = trainer.args.process_index
    experience, _ = trainer.collect(trainer.prompts[4 * rank : 4 * rank + 4], torch.Generator().manual_seed(rank))
    batches = list(trainer.minibatches(experience, torch.Generator().manual_seed(0)))
    assert len(batches) == 2
    model = trainer.accelerator.prepare(trainer.model)
    for number, batch in enumerate(batches):
        with model.no_sync() if number == 0 else torch.enable_grad():
            trainer.compute_loss(model, batch).backward()

    rows, head = gathered(raw(experience.rollout)), trainer.model.value_head
    policy, _ = learnt(rows, head)
    head = [x.detach().clone().requires_grad_() for x in (head.weight, head.bias)]
    total, tokens = 0.0, sum(len(row["completion"]) for row in rows)
    for row in rows:
        new, _, values = spoken(policy, row, _Head(*head))
        ratio = (new - row["old"]).exp()
        gains = row["gains"]
        total += torch.maximum(-gains * ratio, -gains * ratio.clamp(1 - CLIP, 1 + CLIP)).sum()
        total += VF * 0.5 * ((values - row["returns"]) ** 2).sum()  # nothing is clipped where nothing has moved
    (total / tokens).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(trainer.model.policy.get_parameter(name).grad, parameter.grad, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(trainer.model.value_head.weight.grad, head[0].grad, atol=2e-6, rtol=1e-4)


class _Head:
    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


def close(told, expected, name, tolerance=2e-4):
    assert abs(told - expected) <= tolerance * max(1.0, abs(expected)), f"{name}: {told} is not {expected}"


def check_logs():
    """Every logged name, from the raw rollouts and the raw outputs of both processes."""
    trainer = build(entropy_coef=ENTROPY, ptx_coef=PTX, ptx_batch_size=4, reward_scaling=True)
    head = _Head(*(x.detach().clone() for x in (trainer.model.value_head.weight, trainer.model.value_head.bias)))
    rollouts, steps = [], []
    collect, compute_loss = trainer.collect, trainer.compute_loss

    def collect_and_keep(*given, **options):
        experience, metrics = collect(*given, **options)
        rollouts.append(raw(experience.rollout))
        return experience, metrics

    def loss_and_keep(model, inputs, *given, **options):
        loss, output = compute_loss(model, inputs, return_outputs=True)
        kept = {name: x.detach() for name, x in output.items()} | {f"old_{name}": x for name, x in inputs.items()}
        steps.append((trainer.state.global_step, {k: v for k, v in kept.items() if isinstance(v, torch.Tensor)}))
        return loss

    trainer.collect, trainer.compute_loss = collect_and_keep, loss_and_keep
    trainer.train()
    log = next(log for log in trainer.state.log_history if "policy/ratio" in log)
    rows, batches = gathered(rollouts[0]), gathered([item for item in steps if item[0] < 4])
    _, scale = learnt(rows, head, scaled=True)

    def tokens(name):
        return torch.cat([row[name] for row in rows]).double()

    scores = torch.tensor([row["score"] for row in rows]).double()
    ended = torch.tensor([row["ended"] for row in rows])
    ratios = [(row["old"] - row["reference"]).double() for row in rows]
    opinions = [row["some"] for row in rows if row["some"] is not None]
    assert 0 < len(opinions) < len(rows) and 0 < sum(row["ended"] for row in rows) < len(rows)
    expected = {
        "reward": scores.mean(),
        "reward_std": scores.std(correction=0),
        "rewards/brief": sum(row["brief"] for row in rows) / len(rows),
        "rewards/some": sum(opinions) / len(opinions),
        "kl": sum(x.sum() for x in ratios) / len(rows),
        "kl_per_token": torch.cat(ratios).mean(),
        "kl_k3_per_token": ((-torch.cat(ratios)).exp() - 1 + torch.cat(ratios)).mean(),
        "kl_coef": KL_COEF,
        "reward/scale": scale,
        "entropy": tokens("entropy").mean(),
        "completions/length": sum(len(row["completion"]) for row in rows) / len(rows),
        "completions/terminated": sum(row["ended"] for row in rows) / len(rows),
        "completions/ended_score_gap": scores[ended].mean() - scores[~ended].mean(),
        "value/mean": tokens("values").mean(),
        "value/return": tokens("returns").mean(),
        "value/explained_variance": 1
        - ((tokens("returns") - tokens("values")) ** 2).mean() / tokens("returns").var(correction=0),
    }
    expected |= of_update(batches)
    names = set(log) - {"step", "epoch", "grad_norm", "learning_rate"}
    timed = {name for name in names if name.startswith("seconds/") or name == "rollout/tokens_per_second"}
    assert names - timed == set(expected), names - timed ^ set(expected)
    for name, value in expected.items():
        close(log[name], float(value), name)
    assert log["policy/ratio"] != 1 and log["policy/clip_fraction"] > 0 and log["value/clip_fraction"] > 0
    everyone = [None, None]
    dist.all_gather_object(everyone, {name: log[name] for name in names if name != "loss"})
    assert everyone[0] == everyone[1]  # times too: a mean is one number


def of_update(batches) -> dict:
    """Means over the optimizer steps, each over all tokens of its micro-batches on both processes."""
    found: dict[str, list] = {}
    for step in range(4):
        parts = [batch for number, batch in batches if number == step]
        assert len(parts) == 4  # two micro-batches on each of two processes

        def over_tokens(of, parts=parts):
            masks = [part["old_completion_mask"] for part in parts]
            return torch.cat([of(part)[mask].double() for part, mask in zip(parts, masks, strict=True)]).mean()

        def ratio(part):
            return (part["logprobs"] - part["old_logprobs"]).exp()

        def policy_losses(part):
            gains = part["old_advantages"]
            return torch.maximum(-gains * ratio(part), -gains * ratio(part).clamp(1 - CLIP, 1 + CLIP))

        def squares(part, clipped=True):
            new, old = part["values"][:, :-1], part["old_values"]
            plain = (new - part["old_returns"]) ** 2
            near = (old + (new - old).clamp(-0.05, 0.05) - part["old_returns"]) ** 2
            return torch.maximum(plain, near) if clipped else (near > plain).double()

        def clipped(part):
            r, gains = ratio(part), part["old_advantages"]
            return (-gains * r.clamp(1 - CLIP, 1 + CLIP) > -gains * r).double()

        texts = [
            -logprobs[: int(length) - 1].double()
            for part in parts
            for logprobs, length in zip(part["ptx_logprobs"], part["old_ptx_lengths"], strict=True)
        ]
        means = {
            "policy/ratio": over_tokens(ratio),
            "policy/clip_fraction": over_tokens(clipped),
            "policy/approx_kl": over_tokens(lambda part: ratio(part) - 1 - ratio(part).log()),
            "value/clip_fraction": over_tokens(lambda part: squares(part, clipped=False)),
            "loss/policy": over_tokens(policy_losses),
            "loss/value": 0.5 * over_tokens(squares),
            "loss/entropy": over_tokens(lambda part: part["entropy"]),
            "loss/ptx": torch.cat(texts).mean(),
        }
        loss = means["loss/policy"] + VF * means["loss/value"] - ENTROPY * means["loss/entropy"]
        means["loss"] = loss + PTX * means["loss/ptx"]
        for name, value in means.items():
            found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


def check_evaluation():
    """Five prompts, three on one process and two on the other: each counts once, and draws as in one process."""
    logs = build(eval_rows=ROWS.select(range(5))).evaluate()
    expected = json.loads(Path(FOLDER, "alone.json").read_text())
    assert set(expected) == {name for name in logs if name.startswith("eval_")}
    for name, value in expected.items():
        close(logs[name], value, name, 1e-5)


def check_max_kl():
    """Both stop, sampling no more."""
    trainer = build(max_kl=1e-3, total_episodes=64, save_strategy="steps", save_steps=4)
    sampled, sample = [], trainer.sample
    trainer.sample = lambda *given, **options: sampled.append(1) or sample(*given, **options)
    trainer.train()
    assert trainer.state.global_step == 0 and len(sampled) == 1 and "passed max_kl=0.001" in trainer.stop_reason


def check_resume():
    """A run, and one that goes on from the middle of it: equal weights on both processes."""
    trainer = build("whole", save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.accelerator.wait_for_everyone()
    resumed = build("whole", save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=f"{FOLDER}/whole/checkpoint-4")
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    both = [torch.zeros_like(next(trainer.model.parameters())) for _ in range(2)]
    dist.all_gather(both, next(trainer.model.parameters()).data)
    assert torch.equal(*both)
    AutoModelForCausalLM.from_pretrained(f"{FOLDER}/whole/checkpoint-8")


def main():
    faults = {}
    for check in (check_gradients, check_logs, check_evaluation, check_max_kl, check_resume):
        try:
            check()
            faults[check.__name__] = ""
        except Exception:
            faults[check.__name__] = traceback.format_exc()
        dist.barrier()
    Path(FOLDER, f"{dist.get_rank()}.json").write_text(json.dumps(faults))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
