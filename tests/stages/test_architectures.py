"""Architectures that packing, caches or padding would make wrong: numbers are those of each text alone."""

import json

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_kit.models.forward import context_length
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.stages import ppo, pretrain, sft
from tests.tiny_stages import run_command

SIZES = {
    "llama": dict(intermediate_size=32, num_key_value_heads=2),
    "opt": dict(ffn_dim=32, word_embed_proj_dim=8),
    "falcon": dict(alibi=False),
    "bloom": dict(),
    "mpt": dict(d_model=16, n_heads=4, n_layers=2),
    "mamba": dict(hidden_size=16, num_hidden_layers=2, state_size=4),
    "rwkv": dict(hidden_size=16, num_hidden_layers=2),
    "openai-gpt": dict(),
    "gpt_oss": dict(num_key_value_heads=2, num_local_experts=4, head_dim=4, intermediate_size=16, sliding_window=8),
    "qwen3_5_text": dict(
        num_hidden_layers=4, num_key_value_heads=2, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=4, linear_value_head_dim=4, head_dim=4, intermediate_size=32,
    ),
    "lfm2": dict(num_key_value_heads=2, intermediate_size=32, layer_types=["conv", "full_attention"]),
}  # fmt: skip
KEEPS_DOCUMENTS_APART = {"llama"}  # when they share a row; the others read on
SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
SHAPES = {kind: sizes if kind in ("mpt", "mamba", "rwkv") else SIZE | sizes for kind, sizes in SIZES.items()}
TEXTS = ["the cat sat", "hello there", "so did the dog on the mat", "and the mat"]
QUIET = ["--disable_tqdm", "--max_steps", "1", "--learning_rate", "0", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, tokenizer_folder):
    """A tiny model's folder by its type, its weights large enough for its numbers to tell something."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
            ends = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ends, **SHAPES[kind])
            for name in config.to_dict():
                if "drop" in name:
                    setattr(config, name, 0.0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.data += 0.2 * torch.randn_like(parameter)
            model.save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return make


def nats_alone(folder, texts):
    """Mean negative log-likelihood of the tokens of each text with its end, read by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = count = 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            total += F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return total / count


def logged(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def pretrained(folder, write_jsonl, out, *options):
    data = write_jsonl("texts.jsonl", [{"text": text} for text in TEXTS])
    argv = ["--model_name_or_path", str(folder), "--dataset_name", str(data), "--output_dir", str(out), *QUIET]
    return run_command(pretrain, [*argv, "--block_size", "48", "--per_device_train_batch_size", "8", *options])


@pytest.mark.parametrize("kind", SIZES)
def test_pretraining_reads_each_document_alone(kind, folder_of, write_jsonl, tmp_path, caplog):
    assert pretrained(folder_of(kind), write_jsonl, tmp_path / "out") == 0
    assert logged(tmp_path / "out")["loss"] == pytest.approx(nats_alone(folder_of(kind), TEXTS), abs=1e-4)
    assert ("each document has a row of its own" in caplog.text) == (kind not in KEEPS_DOCUMENTS_APART)


def answers_alone(folder, rows):
    """Mean negative log-likelihood of the answers and their ends, each dialogue read by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = count = 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        total += F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
        count += len(logits)
    return total / count


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", SIZES)
def test_sft_reads_each_dialogue_alone_or_is_refused(kind, packing, folder_of, write_jsonl, tmp_path, capsys):
    rows = [{"prompt": text, "completion": f" the dog{'s' * at}"} for at, text in enumerate(TEXTS)]
    data, out = write_jsonl("rows.jsonl", rows), tmp_path / "out"
    argv = ["--model_name_or_path", str(folder_of(kind)), "--dataset_name", str(data), "--output_dir", str(out)]
    argv += ["--max_length", "48", "--per_device_train_batch_size", "8", *QUIET, *["--packing"] * packing]
    argv += ["--router_aux_loss_coef", "0"]  # TRL adds a router's part, which is no text's likelihood
    refused = packing and kind not in KEEPS_DOCUMENTS_APART
    assert run_command(sft, argv) == (2 if refused else 0)
    if refused:
        assert "packing: its" in capsys.readouterr().err and not (out / "metrics.jsonl").exists()
    else:
        assert logged(out)["loss"] == pytest.approx(answers_alone(folder_of(kind), rows), abs=1e-4)


@pytest.mark.parametrize("kind", SIZES)
def test_pretraining_from_scratch_takes_a_block_size(kind, tokenizer_folder, write_jsonl, tmp_path):
    sizes = ",".join(f"{name}={size}" for name, size in SHAPES[kind].items() if isinstance(size, int))
    options = ("--config_overrides", sizes, "--tokenizer_name_or_path", str(tokenizer_folder), "--block_size", "40")
    assert pretrained(kind, write_jsonl, tmp_path / "out", *options) == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert context_length(config) == (None if kind in ("bloom", "mamba") else 40)


def test_a_model_that_reads_what_comes_is_refused(folder_of, tokenizer_folder, write_jsonl, tmp_path, capsys):
    sizes = "hidden_size=16,num_hidden_layers=2,num_attention_heads=4,intermediate_size=32"
    options = ("--config_overrides", sizes, "--tokenizer_name_or_path", str(tokenizer_folder))
    assert pretrained("bert", write_jsonl, tmp_path / "out", *options) == 2
    assert "BertLMHeadModel is not a causal language model" in capsys.readouterr().err
    options = ("--config_overrides", sizes + ",is_decoder=true", *options[2:])
    assert pretrained("bert", write_jsonl, tmp_path / "decoder", *options) == 0


def test_a_model_of_another_loss_is_refused(tokenizer_folder, write_jsonl, tmp_path, capsys):
    """BART's decoder does not shift its labels: at each token it would learn to say that token."""
    sizes = "d_model=16,decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=32"
    options = ("--config_overrides", sizes, "--tokenizer_name_or_path", str(tokenizer_folder))
    assert pretrained("bart", write_jsonl, tmp_path / "out", *options) == 2
    assert "BartForCausalLM computes another loss than that of predicting" in capsys.readouterr().err


def brief(prompts, completions, **columns) -> list[float]:
    return [-len(completion) / 20 for completion in completions]


@pytest.fixture
def prompts(write_jsonl):
    return write_jsonl("prompts.jsonl", [{"prompt": text} for text in TEXTS])


PPO = ["--total_episodes", "4", "--rollout_batch_size", "4", "--mini_batch_size", "4", "--num_ppo_epochs", "1"]
PPO += ["--max_completion_length", "6", "--reward_funcs", "tests.stages.test_architectures:brief"]
READS_ANEW = {"mamba", "rwkv", "openai-gpt"}  # no cache under the usual name; padding on the left


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("kind", SIZES)
def test_ppo_trains_what_it_samples(kind, value_model, folder_of, prompts, tmp_path, caplog):
    """At learning rate 0 the new policy is the old one and the reference."""
    out = tmp_path / "out"
    argv = ["--model_name_or_path", str(folder_of(kind)), "--dataset_name", str(prompts), "--output_dir", str(out)]
    options = ["--disable_tqdm", "--learning_rate", "0", "--logging_steps", "1", "--value_model", value_model]
    assert run_command(ppo, [*argv, *PPO, *options]) == 0
    logs = logged(out)
    assert logs["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert logs["kl"] == pytest.approx(0, abs=1e-4) and logs["policy/clip_fraction"] == 0
    assert ("reads its whole row again" in caplog.text) == (kind in READS_ANEW)


@pytest.mark.parametrize("kind", SIZES)
def test_ppos_numbers_are_those_of_each_row_alone(kind, folder_of, tokenizer, tmp_path):
    args = PPOConfig(
        str(tmp_path), rollout_batch_size=4, mini_batch_size=4, per_device_train_batch_size=2, total_episodes=4,
        max_completion_length=6, use_cpu=True, report_to="none", temperature=0.7,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": text} for text in TEXTS])
    trainer = PPOTrainer(str(folder_of(kind)), brief, args, data, processing_class=tokenizer, value_model="separate")
    trainer.model.value_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    experience, _ = trainer.collect(trainer.prompts, torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(folder_of(kind)).eval()
    trunk, head = getattr(plain, plain.base_model_prefix), trainer.model.value_head
    for row, (prompt, ids) in enumerate(zip(trainer.prompts, experience.rollout.completions(), strict=True)):
        whole = torch.tensor([prompt["prompt_ids"] + ids])
        start = len(prompt["prompt_ids"]) - 1
        with torch.no_grad():
            logprobs = (plain(whole).logits[0, start:-1] / 0.7).log_softmax(-1).gather(1, whole[0, start + 1 :, None])
            values = head(trunk(whole).last_hidden_state[0, start:-1])
        torch.testing.assert_close(experience.logprobs[row, : len(ids)], logprobs[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(experience.values[row, : len(ids)], values, atol=1e-4, rtol=1e-4)
