"""`rlhf-kit plan`: counts by hand and by autograd in a real forward, launches, and the command from end to end."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf_kit.cli import main
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import trainable
from rlhf_kit.models.checkpoints import new_model
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.planning import roles
from rlhf_kit.planning.kept import PLANNED, cached_values, kept_by_forward, trunk_of, without_content
from rlhf_kit.planning.machines import STATES, WHOLE, machine, read_launch
from rlhf_kit.planning.records import Part, Shape
from rlhf_kit.planning.roles import Base
from rlhf_kit.planning.work import forward_flops, training_flops

SMALL = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=300, n_positions=64)
GIB = 2**30


def made(config, lora=None, attention=PLANNED[False]):
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    fuse_activations(model)
    return trainable(model, lora)


# --- what a forward keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
@pytest.mark.parametrize(
    "config",
    [SMALL, LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=48, vocab_size=300)],
    ids=["gpt2", "llama"],
)  # fmt: skip
def test_without_content_as_much_is_kept_as_with_it(config, lora, half, packs):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = made(config, lora, PLANNED[packs])
    with without_content(model):
        planned = kept_by_forward(trunk_of(model), 3, 16, half)
    real = kept_by_forward(trunk_of(made(config, lora, PLANNED[packs])), 3, 16, half)
    assert planned == real and real.total > 0


def test_a_layer_of_gpt2_keeps_what_is_counted_by_hand():
    tokens, width = 3 * 16, 32

    def kept(layers):
        options = SMALL.to_diff_dict() | {"n_layer": layers, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(**options)
        with without_content():
            return kept_by_forward(trunk_of(made(config)), 3, 16, False)

    # Per token: the inputs of two norms and their outputs, query, key and value, attention's output, the inner layer
    # before and after its activation; each norm's mean and deviation, and attention's normaliser of each head.
    numbers = width * (2 + 2 + 3 + 1 + 4 + 4) + 2 * 2 + 4
    assert kept(3).total - kept(2).total == pytest.approx(4 * tokens * numbers, abs=4 * tokens * width)
    assert kept(2).stream == 4 * tokens * width


def test_two_forwards_tell_what_any_number_of_rows_keeps():
    with without_content(model := made(SMALL, LoraConfig(r=2))):
        two, three, many = (kept_by_forward(trunk_of(model), rows, 16, True) for rows in (2, 3, 24))
    assert two.extended(three, 24) == many and two.total < many.total < 12 * two.total


def test_lora_keeps_less_and_checkpointing_least():
    whole = kept_by_forward(trunk_of(made(SMALL)), 3, 16, False)
    adapted = kept_by_forward(trunk_of(made(SMALL, LoraConfig(r=2, target_modules=["c_attn"]))), 3, 16, False)
    assert adapted.total < whole.total
    assert whole.recomputed(2) == 2 * whole.stream + whole.total // 2


def test_the_cache_has_the_keys_and_values_that_the_heads_share():
    config = LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                         intermediate_size=48, vocab_size=300)  # fmt: skip
    with without_content():
        assert cached_values(trunk_of(made(config))) == 3 * 2 * 2 * 8  # layers, key and value, heads of 8
        assert cached_values(trunk_of(made(SMALL))) == 2 * 2 * 32


# --- how it is launched ---------------------------------------------------------------------------------------------


LAUNCHES = {
    "fsdp2": ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}}, WHOLE, set()),
    "kept": ({"distributed_type": "FSDP", "num_processes": 4,
              "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": False}}, STATES, set()),
    "offload": ({"distributed_type": "FSDP", "num_processes": 4,
                 "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}, WHOLE, {"weights", "optimizer"}),
    "zero2": ({"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"zero_stage": 2}}, STATES,
              set()),
    "zero3": ({"distributed_type": "DEEPSPEED", "num_processes": 4,
               "deepspeed_config": {
        "zero_stage": 3, "offload_optimizer_device": "cpu", "zero3_save_16bit_model": True}}, WHOLE, {"optimizer"}),
    "ddp": ({"distributed_type": "MULTI_GPU", "num_processes": 4}, set(), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_says_what_is_in_pieces_and_what_is_elsewhere(name, tmp_path):
    values, shards, offloads = LAUNCHES[name]
    path = tmp_path / f"{name}.yaml"
    path.write_text(json.dumps(values))
    launch = read_launch(str(path), None)
    assert (launch.devices, launch.shards, launch.offloads) == (4, shards, offloads)
    assert launch.is_ddp == (name == "ddp")
    assert launch.share("gradients") == (1 if name == "ddp" else 1 / 4)
    assert read_launch(str(path), 2).share("optimizer") == (0 if "optimizer" in offloads else 1 / 2 if shards else 1)


def test_a_launch_without_a_number_or_a_name_is_refused(tmp_path):
    path = tmp_path / "fsdp2.yaml"
    path.write_text("distributed_type: FSDP\n")
    with pytest.raises(UserError, match="does not say how many processes there are: give --devices"):
        read_launch(str(path), None)
    assert read_launch("cpu-2", None).devices == 2 and read_launch("fsdp2", 8).shards == WHOLE
    with pytest.raises(UserError, match="no launch of that name .*Did you mean 'zero3'"):
        read_launch("zer03", None)
    for text, told in (
        ("distributed_type: FSDP\nnum_processes: 0", "num_processes is 0; it must be a whole number from 1 on"),
        ("distributed_type: FSDP\nnum_processes: 2", "fsdp_version 1: only FSDP2 is supported"),
        ("distributed_type: 'NO'\nnum_processes: 2", "starts one process"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            read_launch(str(path), None)


def test_devices_go_by_their_names():
    assert machine("a100").memory == 80e9 and machine("rtx-4090").memory == 24e9
    assert not machine("T4").has_bf16 and machine("h100").half == 989e12
    with pytest.raises(UserError, match="'H1000' is not one of .* Did you mean 'H100'"):
        machine("H1000")


# --- how much is computed -------------------------------------------------------------------------------------------


def test_flops_are_two_a_weight_and_token_and_four_a_layer_for_each_token_before():
    shape = Shape(layers=2, hidden=8, vocabulary=50)
    part = Part("policy", parameters=1000, trained=1000, weight_bytes=0, trained_bytes=0, body=600, head=400)
    forward = 2 * 600 * 100 + 2 * 400 * 10 + 4 * 2 * 8 * (20 / 2) * 100
    assert forward_flops(part, shape, 100, 20, 10) == forward
    assert training_flops(part, shape, 100, 20, 10, recomputes=False) == 3 * forward
    assert training_flops(part, shape, 100, 20, 10, recomputes=True) == 4 * forward
    frozen = Part("policy", parameters=1000, trained=0, weight_bytes=0, trained_bytes=0, body=600, head=400)
    attention = 4 * 2 * 8 * (20 / 2) * 100  # whose gradients are of states alone, two products for each
    assert training_flops(frozen, shape, 100, 20, 10, recomputes=False) == 2 * forward + attention


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer_folder):
    """A folder with GPT-2 small's config.json and no weights, recipes of a chain, and a launch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    config = GPT2Config(architectures=["GPT2LMHeadModel"])
    config.save_pretrained("gpt2-small")
    common = "dataset_name: nobody/rows\n"
    Path("sft.yaml").write_text(f"model_name_or_path: gpt2-small\noutput_dir: runs/a/sft\n{common}")
    Path("reward.yaml").write_text(f"model_name_or_path: runs/a/sft\noutput_dir: runs/a/reward\n{common}")
    Path("ppo.yaml").write_text(
        f"model_name_or_path: runs/a/sft\nreward_funcs: [runs/a/reward]\noutput_dir: runs/a/ppo\n{common}"
        "rollout_batch_size: 64\nmini_batch_size: 32\nper_device_train_batch_size: 8\nmax_completion_length: 100\n"
    )
    Path("fsdp2.yaml").write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 2\n")
    return tmp_path


def planned(capsys, *words, status=0):
    assert main(["plan", *words, "--rows", "1000", "--json"]) == status
    plan = json.loads(capsys.readouterr().out)
    plan["lines"] = {line["name"]: line["bytes"] for line in plan["memory"]["lines"]}
    return plan


def test_gpt2_small_by_hand(here, capsys):
    plan = planned(
        capsys, "--config", "sft.yaml", "--gpu", "A100-40", "--row_tokens", "500", "--num_train_epochs", "2"
    )
    assert plan["parameters"] == plan["trained"] == 124_439_808
    assert plan["lines"]["policy"] == 4 * 124_439_808 and plan["lines"]["optimizer"] == 8 * 124_439_808
    assert plan["lines"]["gradients"] <= 4 * 124_439_808
    assert plan["tokens"] == 500_000 and plan["passes"] == 2 and plan["steps"] == 250
    body, head = 12 * 12 * 768**2, 50_257 * 768
    wanted = 6 * (body + head) * 1e6 + 3 * 2 * 12 * 768 * 500 * 1e6
    assert plan["flops"]["total"] == pytest.approx(wanted)
    assert plan["hours"] == pytest.approx(wanted / (312e12 * 0.3) / 3600)
    assert [*map(str, here.iterdir())].count(str(here / "runs")) == 0


def test_lora_trains_its_adapters(here, capsys):
    plan = planned(capsys, "sft", "--config", "sft.yaml", "--gpu", "L4", "--use_peft", "--lora_r", "16")
    layer = 16 * ((768 + 2304) + (768 + 768) + (768 + 3072) + (3072 + 768))
    assert plan["trained"] == 12 * layer
    assert plan["lines"]["optimizer"] == 8 * 12 * layer
    assert plan["lines"]["policy"] == 4 * (124_439_808 + 12 * layer)


def test_a_chain_that_was_not_run_yet_is_planned_from_its_recipes(here, capsys):
    plan = planned(capsys, "--config", "ppo.yaml", "--gpu", "A100-80", "--price", "2")
    assert (plan["model"], plan["starts_from"]) == ("runs/a/sft", "gpt2-small")
    weights, linear, tied = 4 * 124_439_808, 4 * 84_934_656, 4 * 50_257 * 768
    assert plan["lines"]["reference"] == weights - linear // 2 + tied // 2  # bf16, and a head of its own
    judge = plan["lines"]["reward model runs/a/reward"]
    assert judge == weights - linear // 2 + 768 * 2  # its head of one output, in 16 bit
    assert plan["lines"]["cache"] == 64 * 1024 * 2 * 12 * 768 * 2
    assert plan["cost"] == pytest.approx(2 * plan["hours"]) and {"sampling", "rewards"} < {*plan["flops"]}
    separate = planned(capsys, "--config", "ppo.yaml", "--gpu", "A100-80", "--value_model", "separate")
    assert separate["lines"]["value"] == weights and separate["lines"]["optimizer"] == 4 * weights


def test_sharding_divides_what_it_says(here, capsys):
    one = planned(capsys, "--config", "sft.yaml", "--gpu", "L4")["lines"]
    two = planned(capsys, "--config", "sft.yaml", "--gpu", "L4", "--accelerate", "fsdp2.yaml")["lines"]
    ddp = planned(capsys, "--config", "sft.yaml", "--gpu", "L4", "--devices", "2")["lines"]
    assert two["optimizer"] == one["optimizer"] // 2 and two["policy"] == one["policy"] // 2 and two["gathered"] > 0
    assert ddp["optimizer"] == one["optimizer"] and ddp["buckets"] == 4 * 124_439_808


def test_what_does_not_fit_ends_with_1_and_every_change_makes_it_fit(here, capsys):
    words = ["--config", "sft.yaml", "--gpu", "T4", "--per_device_train_batch_size", "64"]
    plan = planned(capsys, *words, status=1)
    assert not plan["memory"]["fits"] and plan["changes"]
    assert all(change["peak"] <= 0.95 * plan["memory"]["device"] for change in plan["changes"])
    (first,) = plan["changes"][0]["options"]
    assert first.startswith("--per_device_train_batch_size 16 (and 4 times --gradient_accumulation_steps")
    fewer = ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "4"]
    assert planned(capsys, *words, *fewer)["memory"]["peak"] == plan["changes"][0]["peak"]
    assert main(["plan", *words, "--rows", "10"]) == 1
    assert "It does not fit" in (out := capsys.readouterr().out) and "放不下" in out and first in out


@pytest.mark.parametrize("words, told", [
    (["--config", "sft.yaml", "--learning_rat", "1e-5"], "--learning_rat: no such option. Did you mean"),
    (["--config", "other.yaml"], "'other.yaml' is not named after a stage"),
    (["pppo", "--config", "sft.yaml"], "Did you mean 'ppo'"),
    (["ppo", "--config", "ppo.yaml", "--response_length", "3"], "write max_completion_length"),
    (["--config", "sft.yaml", "--utilisation", "2"], "--utilisation=2.0 must lie above 0"),
    (["--config", "ppo.yaml", "--rows", "9", "--mini_batch_size", "5"], "must be a multiple of mini_batch_size"),
    (["--config", "sft.yaml", "--rows", "9", "--model", "nowhere"], "nowhere"),
    (["--config", "ppo.yaml", "--rows", "9", "--accelerate", "zero3", "--devices", "2"], "use zero2 or fsdp2"),
    (["--config", "ppo.yaml", "--rows", "9", "--devices", "3"], "must be a multiple of the 3 processes"),
    (["--config", "sft.yaml", "--row_tokens", "5"], "--row_tokens is read with --rows alone"),
])  # fmt: skip
def test_mistakes_are_those_of_the_stage(words, told, here, capsys):
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err


def test_an_earlier_stage_is_found_by_what_it_makes(here):
    base = Base("ppo.yaml")
    assert base.name("runs/a/reward") == "gpt2-small" and base.name("elsewhere/model") == "elsewhere/model"
    Path("runs/a/sft").mkdir(parents=True)
    assert base.name("runs/a/reward") == "runs/a/sft"


# --- what a run leaves to others, and what it makes of long rows -----------------------------------------------------


VLLM = ["--generation_backend", "vllm", "--vllm_url", "http://127.0.0.1:9", "--vllm_sync_dir", "sync"]


def test_no_change_is_one_that_the_stage_refuses(here, capsys):
    sizes = "--rollout_batch_size 45 --mini_batch_size 45 --per_device_train_batch_size 45".split()
    plan = planned(capsys, "--config", "ppo.yaml", "--gpu", "T4", *sizes, status=1)
    told = [option for change in plan["changes"] for option in change["options"]]
    assert "--per_device_train_batch_size 5" in told  # 45 is no multiple of 22 or 11
    assert not [option for option in told if "--devices" in option]


def test_no_model_has_content(here, capsys, monkeypatch):
    devices = []

    def noted(*args, **options):
        model = new_model(*args, **options)
        devices.append({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr(roles, "new_model", noted)
    for option in ("--value_model", "--ref_model_name_or_path"):
        planned(capsys, "--config", "ppo.yaml", "--gpu", "A100-80", option, "gpt2-small")
    assert devices == [{"meta"}] * 6


def test_what_a_server_samples_is_not_in_this_memory(here, capsys):
    words = ["--config", "ppo.yaml", "--gpu", "A100-80", "--fp16", "false", "--bf16", "false"]
    own, server = planned(capsys, *words), planned(capsys, *words, *VLLM)
    assert own["lines"]["cache"] == 64 * 1024 * 2 * 12 * 768 * 4 and "cache" not in server["lines"]
    assert "values" not in own["flops"] and server["flops"]["values"] > 0  # the server's log-probs are not learnt from
    held_out = planned(capsys, *words, *VLLM, "--eval_dataset_name", "nobody/rows", "--max_eval_samples", "16")
    assert held_out["lines"]["cache"] == own["lines"]["cache"] // 4  # the reference's answers are sampled here


def test_no_server_is_asked(here, capsys, policy, tokenizer):
    policy.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    Path("rows.jsonl").write_text('{"prompt": "the cat"}\n' * 80)
    run = ["--config", "ppo.yaml", "--model", "tiny", "--data", "rows.jsonl", "--reward_funcs", "tests.rewards:brief"]
    assert main(["plan", *run, *VLLM, "--gpu", "A100-80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 80
    assert main(["ppo", *run, *VLLM, "--dry_run"]) == 2
    assert "dead server" in " ".join(capsys.readouterr().err.split())


def test_long_rows_are_cut_or_packed_as_the_stage_does(here, capsys):
    words = ["--config", "sft.yaml", "--gpu", "L4", "--max_length", "256"]
    cut = planned(capsys, *words, "--row_tokens", "1024")
    assert (cut["tokens"], cut["rows"], cut["steps"]) == (256_000, 1000, 375)  # three epochs, eight rows a step
    packed = planned(capsys, *words, "--row_tokens", "64", "--packing")
    assert (packed["tokens"], packed["rows"], packed["steps"]) == (64_000, 250, 96)
    documents = planned(capsys, "pretrain", "--config", "sft.yaml", "--gpu", "L4", "--row_tokens", "1536")
    assert (documents["tokens"], documents["rows"], documents["steps"]) == (1_536_000, 1500, 188)
