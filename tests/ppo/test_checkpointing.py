"""Gradient (activation) checkpointing: computed twice, the same numbers."""

import pytest
import torch
from peft import LoraConfig

from rlhf_kit.errors import UserError


def trained(make_trainer, policy, **options):
    """Gradients of the first optimizer step, and the weights after all of them."""
    model = type(policy)(policy.config)
    model.load_state_dict(policy.state_dict())
    torch.manual_seed(0)
    trainer = make_trainer(model=model, max_grad_norm=0.0, **options)
    gradients = {}
    before_step = trainer.before_step

    def kept():
        if trainer.state.global_step == 0:
            gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        before_step()

    trainer.before_step = kept
    trainer.train()
    return gradients, trainer


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("value_model", ["shared", "separate", "reward"])
def test_gradient_checkpointing_changes_no_gradient(make_trainer, policy, reward_model, value_model, lora):
    options = {"value_model": value_model, "reward_funcs": reward_model, "learning_rate": 1e-4}
    options |= {"peft_config": LoraConfig(r=4, init_lora_weights=False)} if lora else {}
    plain, _ = trained(make_trainer, policy, **options)
    saved, trainer = trained(make_trainer, policy, gradient_checkpointing=True, **options)
    trunks = [trainer.model.policy] + [trainer.model.value_trunk] * (value_model != "shared")
    for trunk in trunks:
        assert any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules())
    assert saved.keys() == plain.keys() and any(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_its_new_name_and_its_options(make_trainer, policy, use_reentrant):
    _, trainer = trained(
        make_trainer, policy, activation_checkpointing=True, peft_config=LoraConfig(r=4),
        activation_checkpointing_kwargs={"use_reentrant": use_reentrant, "every_n_layers": 2},
    )  # fmt: skip
    blocks = trainer.model.policy.get_base_model().transformer.h
    assert [block.gradient_checkpointing for block in blocks] == [True, False]
    assert trainer.state.global_step == 8
    assert abs(trainer.state.log_history[0]["policy/ratio"] - 1) < 0.2


def test_an_architecture_that_cannot_is_refused(make_trainer, policy):
    type(policy).supports_gradient_checkpointing, kept = False, type(policy).supports_gradient_checkpointing
    try:
        with pytest.raises(UserError, match="activation_checkpointing: GPT2LMHeadModel does not support"):
            make_trainer(activation_checkpointing=True).train()
    finally:
        type(policy).supports_gradient_checkpointing = kept
