"""Tokenizers as other makers have them, each of 300 tokens and made on the spot, and their templates in short.

family   texts begin with   a turn ends with   tokenizer's end of text
gemma    <bos>              <end_of_turn>      <eos>
qwen                        <|im_end|>         <|endoftext|>
phi3                        <|end|>            <|endoftext|>
llama3   <|begin_of_text|>  <|eot_id|>         <|end_of_text|>
mistral  <s>                </s>               </s>
thought                     <|im_end|>         <|im_end|>         with an empty thought before the last answer
plain                       EOS, by us         <|endoftext|>      its template ends no turn with a token
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = ["Hi? Yes. No. Ok? User: hello there Assistant: the cat sat on the mat, and so did the dog. 巴黎 Be brief."]
TURNS = "{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{asked}{{% endif %}}"
CHATML = TURNS.format(
    turn="<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n", asked="<|im_start|>assistant\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = "{{ bos_token }}" + TURNS.format(
    turn="<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
    asked="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
PHI3 = TURNS.format(turn="<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", asked="<|assistant|>\n")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
THOUGHT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set said, thought = m['content'], '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].strip() %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = TURNS.format(
    turn="{{ 'Human: ' if m['role'] == 'user' else 'Bot: ' }}{{ m['content'] }}{{ '\n\n' }}", asked="Bot: "
)


@dataclass(frozen=True)
class Family:
    template: str
    specials: tuple[str, ...]  # the first ends a text
    bos: str | None = None
    ends: tuple[str, ...] = ()  # the model's own list
    named: tuple[str, ...] = ()  # those the tokenizer's configuration names; the others are only added
    pieces: bool = False  # words begin with "▁", as SentencePiece has it


LLAMA3_TOKENS = "<|end_of_text|> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|>"
QWEN, PHI3_ENDS = ("<|im_end|>", "<|endoftext|>"), ("<|endoftext|>", "<|assistant|>", "<|end|>")
FAMILIES = {
    "gemma": Family(
        GEMMA, ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", ("<eos>", "<end_of_turn>"), pieces=True
    ),
    "qwen": Family(CHATML, (*QWEN[::-1], "<|im_start|>"), None, QWEN, (*QWEN, "<|im_start|>")),
    "phi3": Family(PHI3, (*PHI3_ENDS, "<|user|>"), None, PHI3_ENDS),
    "llama3": Family(
        LLAMA3, tuple(LLAMA3_TOKENS.split()), "<|begin_of_text|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    ),
    "mistral": Family(MISTRAL, ("</s>", "<s>"), "<s>", ("</s>",), pieces=True),
    "thought": Family(THOUGHT, ("<|im_end|>", "<|im_start|>"), None, ("<|im_end|>",)),
    "plain": Family(PLAIN, ("<|endoftext|>",), None, ("<|endoftext|>",)),
}


def tokenizer_of(name: str, template: bool = True) -> PreTrainedTokenizerFast:
    """A family's tokenizer; pad is its end of text."""
    family = FAMILIES[name]
    made = Tokenizer(models.BPE())
    if family.pieces:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = sorted({*"▁\n", *map(chr, range(33, 127)), *"".join(TEXTS)} - {" "})
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    specials = [AddedToken(text, special=True, normalized=False) for text in family.specials]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(specials)
    if family.bos is not None:
        begin = (family.bos, made.token_to_id(family.bos))
        made.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A {family.bos} $B", special_tokens=[begin]
        )
    end = family.specials[0]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=end, pad_token=end, bos_token=family.bos,
        additional_special_tokens=list(family.named),
    )  # fmt: skip
    if template:
        tokenizer.chat_template = family.template
    return tokenizer


def model_of(name: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny model with its family's own list of ends."""
    ends = tokenizer.convert_tokens_to_ids(list(FAMILIES[name].ends))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
            eos_token_id=ends[0], bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return model
