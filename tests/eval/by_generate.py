"""What plain `generate` writes: what shared prefixes and batches must not change."""

import torch
from transformers import GenerationConfig, StoppingCriteria


class Stop(StoppingCriteria):
    def __init__(self, tokenizer, start, stop):
        self.tokenizer, self.start, self.stop = tokenizer, start, stop

    def __call__(self, input_ids, scores, **kwargs):
        texts = [self.tokenizer.decode(row[self.start :]).lstrip() for row in input_ids]
        return torch.tensor([any(stop in text for stop in self.stop) for text in texts])


def alone(model, tokenizer, prompt, how):
    """Tokens after one prompt (ids), which is read anew."""
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens, do_sample=False, num_beams=how.num_beams, length_penalty=how.length_penalty,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    ids = torch.tensor([prompt])
    stop = [Stop(tokenizer, len(prompt), how.stop)] if how.stop else []
    out = model.generate(ids, config, attention_mask=torch.ones_like(ids), stopping_criteria=stop)
    return out[0, len(prompt) :].tolist()
