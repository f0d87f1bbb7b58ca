"""While the value function warms up the policy does not move, whatever the optimizer adds to a gradient of zero."""

import pytest
import torch
from peft import LoraConfig


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_weight_decay_does_not_move_a_warming_up_policy(make_trainer, policy, tmp_path, value_model, lora):
    options = dict(
        value_warmup_rollouts=2, value_model=value_model, weight_decay=0.1, learning_rate=1e-2, total_episodes=24,
        save_strategy="steps", save_steps=4, ema_decay=0.9,
    )  # fmt: skip
    start = {name: weight.clone() for name, weight in policy.state_dict().items()}

    def fresh(**more):
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        torch.manual_seed(0)
        adapters = {"peft_config": LoraConfig(r=4, init_lora_weights=False)} if lora else {}
        return make_trainer(model=model, **options | more, **adapters)

    def moved(trainer, before):
        return {
            n for n, p in trainer.model.policy.named_parameters() if p.requires_grad and not torch.equal(p, before[n])
        }

    def weights(trainer):
        return {name: p.detach().clone() for name, p in trainer.model.policy.named_parameters()}

    warm = fresh(total_episodes=16)
    before = weights(warm)
    warm.train()
    assert warm.state.global_step == 8 and not moved(warm, before)
    assert warm.model.value_head.weight.abs().sum() > 0
    resumed = fresh(total_episodes=16)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 8 and not moved(resumed, before)

    # Adam begins with the policy when the policy begins: its moments are as old as its own steps.
    whole = fresh()
    whole.train()
    trained = [p for p in whole.model.policy.parameters() if p.requires_grad]
    assert moved(whole, before)
    states = [whole.optimizer.state[p] for p in trained]
    assert {int(state["step"]) for state in states} == {4}
    assert {int(whole.optimizer.state[p]["step"]) for p in whole.model.value_head.parameters()} == {12}
