"""Models and tokenizers from folders, hub ids and nothing: what comes out, and one clear sentence when nothing can."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BloomConfig,
    GlmConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MptConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RwkvConfig,
)

from rlhf_kit.data.chat import encode_prompt, set_chat_template
from rlhf_kit.errors import UserError
from rlhf_kit.models import checkpoints
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.models.checkpoints import (
    load_config,
    load_policy,
    load_reward_model,
    load_tokenizer,
    new_config,
    set_special_tokens,
    training_precision,
)
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import context_length, context_of
from rlhf_kit.models.heads import calibration, sequence_scores, set_calibration

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SMALL = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


@pytest.fixture
def folder(policy, tmp_path):
    """A saved causal language model, without a tokenizer."""
    policy.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def random_lora():
    return LoraConfig(r=2, init_lora_weights=False)


# ------------------------------------------------------------------------------------------
# Tokenizers


def test_padding_borrows_eos_on_the_right_and_the_vocabulary_stays(tokenizer_folder):
    size = len(AutoTokenizer.from_pretrained(tokenizer_folder))
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0 and len(tokenizer) == size
    batch = tokenizer(["the cat", "a"], padding=True)
    assert batch["input_ids"][1][0] != 0 and batch["input_ids"][1][-1] == 0
    assert batch["attention_mask"][1][-1] == 0


def test_a_pad_token_of_its_own_is_kept(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, pad_token="a", padding_side="left")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "a" and loaded.pad_token_id != loaded.eos_token_id
    assert loaded.padding_side == "right"


@pytest.mark.parametrize("with_config", [False, True])
def test_vocabulary_and_merges_are_enough(tmp_path, with_config):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    if with_config:
        GPT2Config(**SMALL, vocab_size=4).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("abab").input_ids == [2, 2] and len(tokenizer) == 4
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 3


def test_the_real_gpt2_tokenizer(shared):
    if not (shared / "gpt2-tokenizer").is_dir():
        pytest.skip("GPT-2's vocabulary is not here")
    tokenizer = load_tokenizer(shared / "gpt2-tokenizer")
    assert len(tokenizer) == 50257 and tokenizer.pad_token_id == tokenizer.eos_token_id == 50256
    assert tokenizer("Hello world").input_ids == [15496, 995]


def test_a_tokenizer_that_cannot_end_an_answer_is_refused(tokenizer_folder, tmp_path):
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


def test_what_is_saved_is_named_as_other_programs_know_it(policy, tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    policy.config.n_ctx = 1  # of a model with other positions
    set_special_tokens(policy, tokenizer)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert kept["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    assert json.loads((tmp_path / "config.json").read_text())["n_ctx"] == policy.config.n_positions
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat") == tokenizer("the cat")


def test_an_encoders_tokenizer_serves_where_nothing_is_generated(tokenizer_folder, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "user", ":", "assistant"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path / "bert")
    tokenizer = set_chat_template(load_tokenizer(tmp_path / "bert", needs_eos=False))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("[SEP]", "[PAD]") and len(tokenizer) == len(words)
    assert encode_prompt(tokenizer, "a") == [6, 7, 5, 3, 8, 7]  # user : a [SEP] assistant :
    assert load_tokenizer(tokenizer_folder, needs_eos=False).eos_token == "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-text token"):  # nor a separator
        load_tokenizer(tmp_path, needs_eos=False)


def test_a_model_without_its_tokenizer_gives_no_empty_one(folder):
    with pytest.raises(UserError, match="'.*base' holds no tokenizer"):
        load_tokenizer(folder)


# ------------------------------------------------------------------------------------------
# New models


def test_a_new_model_takes_vocabulary_and_eos_from_the_tokenizer(tokenizer):
    model = load_policy("gpt2", config_overrides={**SMALL, "attn_pdrop": 0.0}, tokenizer=tokenizer)
    assert isinstance(model, GPT2LMHeadModel)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id
    assert (model.config.n_layer, model.config.n_positions, model.config.attn_pdrop) == (1, 32, 0.0)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32


def test_a_new_model_after_a_saved_one_has_its_shape_and_new_weights(folder, tokenizer):
    model = load_policy(folder, config_overrides={"n_layer": 1, "hidden_size": 8}, tokenizer=tokenizer)
    saved = load_config(folder)
    assert (model.config.n_layer, model.config.n_embd) == (1, 8)
    assert model.config.n_positions == saved.n_positions == 128
    assert load_config(folder).n_layer == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_layr": 1}, r"a gpt2 configuration has no 'n_layr'. Did you mean 'n_layer'\?"),
        ({"hidden_sise": 1}, r"Did you mean 'hidden_size'\?"),
        ({"to_dict": 1}, "has no 'to_dict'"),
        ({"model_type": "llama"}, "has no 'model_type'"),
        ({"n_embd": 10, "n_head": 3}, r"width \(10\) must be a multiple of the number of heads \(3\)"),
        ({"n_layer": "4"}, "'n_layer' expected int, got str"),
        ({"n_layer": 2.5}, "'n_layer' expected int, got float"),
        ({"n_embd": 0}, "make no gpt2 model"),
        ({"activation_function": "swush"}, "make no gpt2 model: 'swush'"),
    ],
)
def test_overrides_that_make_no_model(overrides, message, tokenizer):
    with pytest.raises(UserError, match=message):
        load_policy("gpt2", config_overrides=SMALL | overrides, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("config", "override"),
    [
        (GPT2Config(), {"max_position_embeddings": 32}),
        (OPTConfig(), {"max_position_embeddings": 32}),
        (MptConfig(), {"max_seq_len": 32}),
        (RwkvConfig(), {"max_position_embeddings": 32}),
        (RobertaConfig(pad_token_id=1), {"max_position_embeddings": 34}),
        (BloomConfig(), {}),
        (MambaConfig(), {}),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_a_new_model_gets_its_context_under_its_own_name(config, override):
    found = context_of(config, {}, 32)
    assert found == override
    if found:
        assert context_length(type(config)(**{**config.to_diff_dict(), **found})) == 32


def test_a_context_that_is_given_stays(tokenizer):
    assert context_of(GPT2Config(), {"n_positions": 48}, 32) == {}
    assert context_of(OPTConfig(), {"max_position_embeddings": 48}, 32) == {}


def test_a_new_models_padding_id_is_of_its_own_vocabulary(tokenizer):
    """The default of another vocabulary may lie outside: XGLM's is 1, Qwen's 151,643."""
    config = new_config("glm", {}, tokenizer)
    assert GlmConfig().pad_token_id > len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert new_config("gpt2", {}, tokenizer).pad_token_id is None
    assert new_config("glm", {"pad_token_id": 7}, tokenizer).pad_token_id == 7


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_the_end_of_text_learns_though_padding_borrows_it(load, tmp_path, tokenizer):
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=60)
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=5, pad_token_id=5)).save_pretrained(tmp_path)
    model = load(tmp_path)
    model(input_ids=IDS).logits.sum().backward()
    assert (model.get_input_embeddings().weight.grad[5:10].abs().sum(1) > 0).all()


# ------------------------------------------------------------------------------------------
# Saved models


@pytest.mark.parametrize("saved", [torch.float16, torch.bfloat16])
def test_weights_are_float32_unless_asked_for(policy, tmp_path, saved):
    policy.to(saved).save_pretrained(tmp_path)
    assert load_policy(tmp_path).dtype == torch.float32
    assert load_reward_model(tmp_path).dtype == torch.float32
    assert load_policy(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"dtype 'float3' is not one of .* Did you mean 'float32'\?"):
        load_policy(tmp_path, dtype="float3")


@pytest.mark.parametrize("config_beside", [True, False])
def test_an_adapter_comes_merged_on_its_base(folder, tmp_path, config_beside):
    model = wrap(load_policy(folder, attn_implementation="eager"), random_lora())
    save(model, tmp_path / "adapter")
    if config_beside:  # as others leave it there
        model.config.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter", attn_implementation="eager")
    assert type(loaded) is GPT2LMHeadModel and not any("lora" in name for name, _ in loaded.named_parameters())
    assert loaded.config._attn_implementation == loaded.transformer.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(loaded) - logits(load_policy(folder))).abs().max() > 0.01


def test_an_adapter_trained_on_a_merged_adapter_keeps_both(folder, tmp_path):
    save(wrap(load_policy(folder), random_lora()), tmp_path / "sft")
    model = wrap(load_policy(tmp_path / "sft"), random_lora())
    save(model, tmp_path / "ppo")
    torch.testing.assert_close(logits(load_policy(tmp_path / "ppo")), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(load_policy(tmp_path / "sft"))).abs().max() > 0.01


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_tokenizer])
class TestWhatIsNotThere:
    def refused(self, load, name, caught) -> str:
        with pytest.raises(UserError) as caught_error:
            load(name)
        message = str(caught_error.value)
        assert "\n" not in message and caught in message
        return message

    def test_folder_without_a_model(self, load, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        self.refused(load, tmp_path, "holds no model: it has notes.txt, and ")
        (tmp_path / "empty").mkdir()
        self.refused(load, tmp_path / "empty", "it has nothing")

    def test_file(self, load, tmp_path):
        (tmp_path / "model.safetensors").write_text("x")
        self.refused(load, tmp_path / "model.safetensors", "model.safetensors' is a file; ")

    def test_missing_folder(self, load, tmp_path, monkeypatch):
        (tmp_path / "runs" / "sft").mkdir(parents=True)
        self.refused(load, tmp_path / "runs" / "sftt", "Did you mean 'sft'?")
        monkeypatch.chdir(tmp_path)
        self.refused(load, "./runs/ppoo", "There is no folder")
        self.refused(load, "runs/sftt", "Did you mean 'sft'?")  # could be a hub id, but is a slip

    @pytest.mark.parametrize("name", ["nobody/has-this", "gpt2", "not a/name$"])
    def test_hub_out_of_reach(self, load, name):
        message = self.refused(load, name, f"could not be loaded from the hub '{name}'")
        assert message.endswith("Give the folder of a saved model, or a hub id this machine can reach.")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "model_type"),
        ("model.safetensors", "123", "header too small"),
        ("model.safetensors", None, "no file named model.safetensors"),
    ],
)
def test_a_damaged_model(folder, file, content, message):
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(UserError, match=f"could not be loaded from the folder '{folder}': .*{message}"):
        load_policy(folder)


def test_a_damaged_adapter(folder, tmp_path):
    adapter = tmp_path / "adapter"
    save(wrap(load_policy(folder), random_lora()), adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"The adapter '.*adapter' was trained on the model in '.*base', and there is no such folder"
    ):
        load_policy(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        load_policy(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        load_policy(adapter)


# ------------------------------------------------------------------------------------------
# Reward models


def test_a_language_model_gets_one_new_head_and_a_pad_id(folder, tokenizer):
    model = load_reward_model(folder, tokenizer=tokenizer)
    assert type(model) is GPT2ForSequenceClassification
    assert model.score.weight.shape == (1, 32) and model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    trunk = load_policy(folder).transformer
    assert torch.equal(model.transformer.wte.weight, trunk.wte.weight)


def test_an_encoder_gets_one_new_head(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    encoder = BertForMaskedLM(BertConfig(**sizes))
    encoder.save_pretrained(tmp_path)
    model = load_reward_model(tmp_path)
    assert model.classifier.weight.shape == (1, 16) and model.config.pad_token_id == 0
    weights = model.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(weights, encoder.bert.encoder.layer[0].output.dense.weight)


def test_without_a_tokenizer_the_pad_id_is_the_first_eos(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=[3, 4])).save_pretrained(tmp_path)
    assert load_reward_model(tmp_path).config.pad_token_id == 3


def test_a_saved_reward_model_keeps_head_and_calibration(reward_model, tmp_path):
    set_calibration(reward_model.config, 2.0, -0.5)
    reward_model.save_pretrained(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert torch.equal(loaded.score.weight, reward_model.score.weight)
    assert calibration(loaded.config) == (2.0, -0.5)


def test_a_classifier_of_two_labels_is_refused(tiny_config, tmp_path):
    tiny_config.num_labels = 2
    GPT2ForSequenceClassification(tiny_config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 labels; a reward model has one output"):
        load_reward_model(tmp_path)


def test_a_reward_models_adapter_comes_with_head_and_calibration(folder, tmp_path):
    model = wrap(load_reward_model(folder), random_lora())
    model.base_model.model.score.modules_to_save["default"].weight.data.normal_()
    set_calibration(model.config, 3.0, 1.0)
    save(model, tmp_path / "adapter")
    loaded = load_reward_model(tmp_path / "adapter")
    assert calibration(loaded.config) == (1.0, 1.0)  # the gain stands in the head
    lengths = torch.tensor([5])
    expected = 3 * sequence_scores(model.eval(), IDS, lengths)
    torch.testing.assert_close(sequence_scores(loaded.eval(), IDS, lengths), expected, atol=1e-5, rtol=1e-5)


def test_a_reward_model_on_an_adapter_of_a_policy(folder, tmp_path):
    policy = wrap(load_policy(folder), random_lora())
    save(policy, tmp_path / "sft")
    model = load_reward_model(tmp_path / "sft").eval()
    hidden = policy.eval().get_base_model().transformer(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(model.transformer(input_ids=IDS).last_hidden_state, hidden, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "reward")
    assert AutoConfig.from_pretrained(tmp_path / "reward").num_labels == 1
    assert torch.equal(load_reward_model(tmp_path / "reward").score.weight, model.score.weight)


@pytest.mark.parametrize("as_adapter", [False, True])
def test_a_reward_model_is_no_policy(folder, tmp_path, as_adapter):
    model = load_reward_model(folder)
    save(wrap(model, random_lora()) if as_adapter else model, tmp_path / "reward")
    with pytest.raises(UserError, match="is a reward model or classifier"):
        load_policy(tmp_path / "reward")


# ------------------------------------------------------------------------------------------
# What models and machines have


def test_context_length():
    assert context_length(GPT2Config(n_positions=48)) == 48
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(BloomConfig()) is None
    assert context_length(MptConfig(max_seq_len=66)) == 66
    assert context_length(RwkvConfig(context_length=55)) == 55
    assert context_length(MambaConfig()) is None
    assert context_length(BertConfig()) == 512
    assert context_length(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_precision_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    none = {"bf16": False, "fp16": False}
    assert training_precision("auto") == training_precision("float32") == none
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        training_precision("fp16")
    monkeypatch.setattr(checkpoints, "_cpu_has_bf16", lambda: True)
    assert training_precision("bf16") == {"bf16": True, "fp16": False}
    assert training_precision("auto") == none  # slow there, though possible
    monkeypatch.setattr(checkpoints, "_cpu_has_bf16", lambda: False)
    with pytest.raises(UserError, match="cannot compute in bf16"):
        training_precision("bf16")


def test_this_machine_says_whether_it_has_bf16():
    assert checkpoints._cpu_has_bf16() in (True, False)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_on_a_gpu(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert training_precision("auto") == {"bf16": has_bf16, "fp16": False}
    assert training_precision("fp16") == {"bf16": False, "fp16": True}


def gpt2_with_adapters():
    return wrap(GPT2LMHeadModel(GPT2Config(**SMALL, vocab_size=20)), LoraConfig(r=2, lora_dropout=0.5))


def llama():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    return LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=0.5))


def opt():
    sizes = dict(hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    return OPTForCausalLM(
        OPTConfig(**sizes, word_embed_proj_dim=16, dropout=0.3, attention_dropout=0.3, layerdrop=0.5)
    )


@pytest.mark.parametrize("make", [gpt2_with_adapters, llama, opt])
def test_without_dropout_training_mode_changes_nothing(make):
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.train()
    assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)  # there was some
    disable_dropout(model)
    outputs = [model(input_ids=IDS).logits for _ in range(3)]
    assert model.training and all(torch.equal(output, outputs[0]) for output in outputs)
    torch.testing.assert_close(outputs[0], logits(model))
    assert not [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
