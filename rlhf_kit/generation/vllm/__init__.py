"""A vLLM server samples instead of this process: `Server` speaks to it, `Weights` hand the policy over, `probe` proves
that it has it, `VLLMBackend` is the three behind the interface of `generation.backends`."""
