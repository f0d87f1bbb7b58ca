"""The vLLM server that samples for PPO, from its options."""

from __future__ import annotations

from transformers import PretrainedConfig

from rlhf_kit.generation.vllm.backend import VLLMBackend, check_server
from rlhf_kit.ppo.config import PPOConfig


def rollout_server(args: PPOConfig, config: PretrainedConfig, longest: int) -> VLLMBackend | None:
    """None: rollouts are sampled here. Asked before a model is loaded; nothing is handed over or written yet.

    Args:
        config: of the policy. longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: for a server that cannot sample for this run.
    """
    if args.generation_backend != "vllm":
        return None
    vocabulary = config.get_text_config().vocab_size
    server = check_server(args.vllm_url, args.vllm_timeout, vocabulary, longest, args.temperature)
    return VLLMBackend(
        server,
        args.vllm_sync_dir,
        vocabulary=vocabulary,
        longest=longest,
        temperature=args.temperature,
        bound=args.vllm_probe_bound,
    )
