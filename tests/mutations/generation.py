"""Sampling: the draw, the pool of slots and its cache."""

SAMPLING, DRAW_TEST = "rlhf_kit/generation/sampling.py", "tests/generation/test_draw.py::"

MUTANTS = [
    (
        SAMPLING,
        "place.minimum(last)",
        "place.clamp(max=BLOCK - 1)",
        DRAW_TEST + "test_what_rounding_takes_off_a_block_is_the_last_tokens",
    ),
    (
        SAMPLING,
        "points - sums.gather(1, block), right=True)",
        "points, right=True)",
        DRAW_TEST + "test_the_tokens_are_those_of_one_sum[3.0-1500]",
    ),
    (
        SAMPLING,
        "torch.searchsorted(sums[:, 1:].contiguous(), points, right=True)",
        "torch.searchsorted(sums[:, 1:].contiguous(), points)",
        DRAW_TEST + "test_a_token_of_no_probability_is_never_drawn[0.0]",
    ),
]
