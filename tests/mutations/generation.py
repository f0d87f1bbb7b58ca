"""Sampling: the draw, the pool of slots and its cache."""

SAMPLING, READING = "rlhf_kit/generation/sampling.py", "rlhf_kit/generation/reading.py"
DRAWING = "rlhf_kit/generation/drawing.py"
CACHE, BACKENDS = "rlhf_kit/generation/cache.py", "rlhf_kit/generation/backends.py"
DRAW_TEST, POOL_TEST = "tests/generation/test_draw.py::", "tests/generation/test_pool.py::"
BACKEND_TEST = "tests/generation/test_backends.py::"
ALONE = POOL_TEST + "test_any_number_of_slots_gives_what_each_row_has_alone"

MUTANTS = [
    (
        DRAWING,
        "ordered = ordered.masked_fill(ordered < least, -torch.inf)",
        "pass",
        DRAW_TEST + "test_what_is_left_out_is_what_transformers_leaves_out[60]",
    ),
    (
        DRAWING,
        "    if size < logits.shape[-1] and bool((reached[:, -1:] < wanted).any()) and whole is logits:",
        "    if False:",
        DRAW_TEST + "test_what_is_left_out_is_what_transformers_leaves_out[2100]",
    ),
    (
        DRAWING,
        "torch.where(is_greedy, logits.argmax(-1), draw(logprobs, uniforms))",
        "draw(logprobs, uniforms)",
        DRAW_TEST + "test_each_row_has_settings_of_its_own",
    ),
    (
        DRAWING,
        "place.minimum(last)",
        "place.clamp(max=BLOCK - 1)",
        DRAW_TEST + "test_what_rounding_takes_off_a_block_is_the_last_tokens",
    ),
    (
        DRAWING,
        "points - sums.gather(1, block), right=True)",
        "points, right=True)",
        DRAW_TEST + "test_the_tokens_are_those_of_one_sum[3.0-1500]",
    ),
    (
        DRAWING,
        "torch.searchsorted(sums[:, 1:].contiguous(), points, right=True)",
        "torch.searchsorted(sums[:, 1:].contiguous(), points)",
        DRAW_TEST + "test_a_token_of_no_probability_is_never_drawn[0.0]",
    ),
    (
        CACHE,
        "return all(type(layer) is GrowingLayer for layer in cache.layers)",
        "return True",
        ALONE + "[mistral]",
    ),
    (
        CACHE,
        "columns = slice(self.end - keys.shape[-2], self.end)",
        "columns = slice(self.start, self.start + keys.shape[-2])",
        ALONE + "[gpt2]",
    ),
    (
        CACHE,
        "        if missing > self.start:\n",
        "        if False:\n",
        ALONE + "[llama]",
    ),
    (
        CACHE,
        "        new[..., :before, :] = 0\n".removeprefix("    "),
        "    new[..., :before, :] = torch.nan\n",
        ALONE + "[llama]",
    ),
    (
        READING,
        "self.mask[places] = _left_mask(lengths, self.mask.shape[1])",
        "pass",
        ALONE + "[gpt2]",
    ),
    (
        READING,
        "self.positions = self.lengths[:, None] - 1",
        "pass",
        ALONE + "[gpt2]",
    ),
    (
        READING,
        "            self._fit()\n",
        "            pass\n",
        POOL_TEST + "test_the_batch_is_no_wider_than_its_longest_row",
    ),
    (
        READING,
        "        if int(self.lengths.max()) == self.ids.shape[1]:",
        "        if False:",
        ALONE + "[rwkv]",
    ),
    (
        READING,
        "if ended and reader.refills and len(number_of) == len(texts):",
        "if False:",
        POOL_TEST + "test_a_model_that_reads_what_was_in_its_slot_reads_whole_rows",
    ),
    (
        SAMPLING,
        "if self.left and len(ended) < ENDED_SHARE * len(tokens):",
        "if self.left and not len(ended):",
        POOL_TEST + "test_rows_begin_by_the_group",
    ),
    (
        SAMPLING,
        "self.left = self.longest - int(sampler.steps.max())",
        "self.left = self.longest",
        POOL_TEST + "test_rows_begin_by_the_group",
    ),
    (
        SAMPLING,
        "self.steps[places], self.going[places] = 0, True",
        "self.going[places] = True",
        ALONE + "[gpt2]",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        "self.args.generation_batch_size or self.args.rollout_batch_size // self.args.world_size",
        "self.args.generation_batch_size",
        "tests/ppo/test_trainer.py::test_no_more_is_sampled_at_once_than_a_rollout_has[None-4]",
    ),
    (
        SAMPLING,
        "own = (torch.Generator().manual_seed(seed) for seed in seeds)",
        "own = [torch.Generator().manual_seed(seeds[0])] * len(seeds)",
        POOL_TEST + "test_a_row_of_its_own_seed_is_the_same_wherever_it_stands[gpt2]",
    ),
    (
        BACKENDS,
        "with _no_settings_of(model):",
        "if True:",
        BACKEND_TEST + "test_what_the_model_itself_would_change_is_left_out_and_comes_back",
    ),
    (
        BACKENDS,
        "        model.generation_config = own",
        "        pass",
        BACKEND_TEST + "test_what_the_model_itself_would_change_is_left_out_and_comes_back",
    ),
    (
        BACKENDS,
        "_Drawn(uniforms[rows], temperature)",
        "_Drawn(uniforms[: len(rows)], temperature)",
        BACKEND_TEST + "test_the_tokens_are_those_of_the_pool[gpt2-1.0]",
    ),
    (
        BACKENDS,
        "attention_mask=mask.long()",
        "attention_mask=torch.ones_like(ids)",
        BACKEND_TEST + "test_the_tokens_are_those_of_the_pool[llama-0]",
    ),
    (
        BACKENDS,
        "    if fault:\n",
        "    if False:\n",
        BACKEND_TEST + "test_a_model_that_reads_padding_is_refused_by_name",
    ),
    (
        "rlhf_kit/ppo/trainer.py",
        "BACKENDS[self.args.generation_backend] if",
        "BACKENDS['pool'] if",
        "tests/ppo/test_rollout.py::test_a_rollout_of_another_backend_is_read_by_the_training_forward",
    ),
]
