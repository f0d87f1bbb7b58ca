"""Every stage, in full and with LoRA, by one process, DDP, FSDP2, ZeRO-2 and ZeRO-3 in two: `make test-scale`.

A cell trains 20 steps by the command, saves in the middle, goes on from there in another folder, and its model is
loaded by plain transformers; a row compares with one process. Trained again it gets SIGTERM, and goes on. FSDP2 is
real (`pieces_cpu.py`), on CPUs, by gloo.

DeepSpeed has an environment of its own, made here: its op is compiled beforehand, under a time limit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pieces_cpu

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "sft", "reward", "ppo")
ENGINES = ("one", "ddp", "fsdp2", "zero2", "zero3")
WHOLE_ONLY = ("ppo", "zero3")  # refused, with what to use
WRAPPERS = {"one": "", "ddp": "DistributedDataParallel", "fsdp2": "units", "zero2": "DeepSpeed", "zero3": "DeepSpeed"}
STEPS, STOP_AT, SECONDS = 20, 6, 600  # PPO logs every second step
DEEPSPEED = "deepspeed==0.19.8"
HOME = ROOT / ".venv-deepspeed"
OPS = HOME / "ops"  # where torch compiles DeepSpeed's


# -- in each process of a cell ----------------------------------------------------------------------------------------


def cell(engine: str, record: str, argv: list[str]) -> int:
    """Run the command under `engine`, and leave in `record` what this process held at the end."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if engine == "fsdp2":
        pieces_cpu.real_fsdp()
    if engine.startswith("zero"):
        pieces_cpu.real_deepspeed(int(engine[-1]))
    from rlhf_kit.cli import main
    from rlhf_kit.stages.output import MetricsFile
    from rlhf_kit.terminal import interrupts
    from rlhf_kit.training.trainer import TrainerMixin

    interrupts.become("rlhf-kit")
    train, hear = TrainerMixin.train, MetricsFile.on_log

    def and_ask(self, args, state, control, **options):
        hear(self, args, state, control, **options)
        if (state.global_step, args.process_index) == (STOP_AT, args.world_size - 1) and "STOPPED" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsFile.on_log = and_ask

    def and_measure(self, *given, **options):
        result = train(self, *given, **options)
        Path(f"{record}.{self.args.process_index}").write_text(json.dumps(held(self)))
        return result

    TrainerMixin.train = and_measure
    return main(argv)


def held(trainer) -> dict:
    """Bytes of weights and of the optimizer's state in this process, and what wraps the model."""
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    def size(tensor) -> int:
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        tensor = tensor if tensor.numel() else getattr(tensor, "ds_tensor", tensor)  # ZeRO-3's piece of a weight
        return tensor.numel() * tensor.element_size()

    wrapped = trainer.model_wrapped
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    masters = getattr(optimizer, "single_partition_of_fp32_groups", None) or getattr(
        optimizer, "fp32_partitioned_groups_flat", []
    )
    states = [*optimizer.state.values(), *getattr(getattr(optimizer, "optimizer", None), "state", {}).values()]
    pieces = [*masters, *(x for state in states for x in state.values() if isinstance(x, torch.Tensor))]
    pieces = {id(piece): piece for piece in pieces}.values()  # DeepSpeed's optimizer shows the state of the one in it
    units = sum(isinstance(module, FSDPModule) for module in wrapped.modules())
    return {
        "engine": f"{type(wrapped).__name__}{f' in {units} units' if units else ''}",
        "weights": sum(map(size, trainer.model.parameters())),
        "optimizer": sum(map(size, pieces)),
    }


# -- the table --------------------------------------------------------------------------------------------------------


class Table:
    def __init__(self, folder: Path, layers: int, width: int):
        self.folder, self.python = folder, {"zero2": None, "zero3": None}
        self.inputs(layers, width)

    def inputs(self, layers: int, width: int) -> None:
        """A model of the world's vocabulary, and data for each stage."""
        import torch
        from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

        from rlhf_kit.models.checkpoints import load_tokenizer
        from rlhf_kit.world import BASE

        torch.manual_seed(0)
        tokenizer = load_tokenizer(BASE)
        end = tokenizer.eos_token_id
        config = GPT2Config(
            n_layer=layers, n_embd=width, n_head=4, n_positions=256, vocab_size=len(tokenizer), bos_token_id=end,
            eos_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(self.folder / "base")
        config.num_labels, config.pad_token_id = 1, end
        GPT2ForSequenceClassification(config).save_pretrained(self.folder / "scorer")
        for name in ("base", "scorer"):
            tokenizer.save_pretrained(self.folder / name)
        people = ["Anna", "Ben", "Carol", "David"]
        rows = {
            "texts": [
                {"text": f"{people[i % 4]} went to the market and saw {i} cats. " * (1 + i % 3)} for i in range(200)
            ],
            "demonstrations": [
                {
                    "prompt": f"What did {people[i % 4]} see {i} times?",
                    "completion": f"A cat, {i % 7} dogs." * (1 + i % 2),
                }
                for i in range(64)
            ],
            "ranked": [
                {"prompt": f"Say {i}.", "completions": ["A cat.", f"{i} dogs and a cat.", "No."], "ranks": [1, 2, 2]}
                for i in range(64)
            ],
            "prompts": [{"prompt": f"Tell {people[i % 4]} about {i} cats" + " and dogs" * (i % 3)} for i in range(64)],
        }
        for name, lines in rows.items():
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def argv(self, stage: str, lora: bool, processes: int) -> list[str]:
        given = ["--model_name_or_path", self.folder / "base", "--disable_tqdm", "--logging_steps", 1, "--seed", 1]
        given += [
            "--max_steps",
            STEPS,
            "--save_steps",
            STEPS // 2,
            "--save_strategy",
            "steps",
            "--learning_rate",
            1e-3,
        ]
        given += ["--bf16", "false", "--max_grad_norm", 1.0]
        given += ["--use_peft", "--lora_r", 4, "--lora_dropout", 0.0] if lora else []
        data = dict(pretrain="texts", sft="demonstrations", reward="ranked", ppo="prompts")[stage]
        given += ["--dataset_name", self.folder / f"{data}.jsonl"]
        if stage == "ppo":
            given += ["--reward_funcs", self.folder / "scorer", "--rollout_batch_size", 8, "--mini_batch_size", 8]
            given += ["--num_ppo_epochs", 2, "--max_completion_length", 8, "--per_device_train_batch_size", 4]
        else:
            given += ["--per_device_train_batch_size", 4 // processes, "--gradient_accumulation_steps", 1]
        given += ["--block_size", 32] if stage == "pretrain" else []
        return list(map(str, given))

    def run(self, engine: str, name: str, argv: list[str], **more: str) -> tuple[int, str]:
        """more: of the environment -> exit status, what was said"""
        record = self.folder / "records" / name
        record.parent.mkdir(exist_ok=True)
        processes = 1 if engine == "one" else 2
        python = deepspeed_python() if engine.startswith("zero") else sys.executable
        launch = [python]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
            launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths} | more
        if engine.startswith("zero"):
            environment |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(OPS)}
            environment["PATH"] = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        output = ["--output_dir", str(self.folder / name)]
        command = [*launch, __file__, "cell", engine, str(record), *argv, *output]
        with tempfile.TemporaryFile("w+") as log:
            try:
                done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=SECONDS, cwd=ROOT)
                status = done.returncode
            except subprocess.TimeoutExpired:
                status = 124
            log.seek(0)
            return status, log.read()

    def cell(self, stage: str, lora: bool, engine: str) -> dict:
        name = f"{stage}-{'lora' if lora else 'full'}-{engine}"
        argv = [stage, *self.argv(stage, lora, 1 if engine == "one" else 2)]
        status, said = self.run(engine, name, argv)
        row = {"cell": name, "status": status}
        if (stage, engine) == WHOLE_ONLY:
            row["refused"] = status == 2 or "PPO does not run under DeepSpeed's ZeRO stage 3" in said
            return row
        if status:
            return row | {"said": said[-3000:]}
        folder = self.folder / name
        row |= json.loads((self.folder / "records" / f"{name}.0").read_text())
        row["losses"] = losses(folder)
        again = f"{name}-again"
        shutil.copytree(folder, self.folder / again)
        shutil.rmtree(self.folder / again / f"checkpoint-{STEPS}")
        resume = ["--resume_from_checkpoint", str(self.folder / again / f"checkpoint-{STEPS // 2}")]
        status, said = self.run(engine, again, [*argv, *resume])
        row["resumed"] = status or difference(losses(self.folder / again)[-STEPS // 2 :], row["losses"][-STEPS // 2 :])
        if status:
            row["said"] = said[-3000:]
        row["loads"] = loads(folder, lora, stage)
        row["stopped"] = self.stopped(engine, f"{name}-stopped", argv, row)
        return row

    def stopped(self, engine: str, name: str, argv: list[str], row: dict) -> float:
        """Trained with SIGTERM on the way, and on: the largest difference of its losses from those of `row`."""
        folder = self.folder / name
        status, said = self.run(engine, name, argv, STOPPED="1")
        if status == 0 or (folder / "run.json").exists() or "is saved" not in said:
            row.setdefault("said", f"It did not stop: status {status}\n{said[-3000:]}")
            return math.inf
        status, said = self.run(engine, name, [*argv, "--resume_from_checkpoint"])
        if status:
            row.setdefault("said", said[-3000:])
        return status or difference(losses(folder), row["losses"])


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def difference(some: list[float], others: list[float]) -> float:
    if len(some) != len(others):
        return math.inf
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def loads(folder: Path, lora: bool, stage: str) -> bool:
    """Whether plain transformers and peft load it, its head tied to its embedding."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = {
        (False, False): AutoModelForCausalLM, (True, False): AutoModelForSequenceClassification,
        (False, True): AutoPeftModelForCausalLM, (True, True): AutoPeftModelForSequenceClassification,
    }[stage == "reward", lora]  # fmt: skip
    model = auto.from_pretrained(folder, **({"num_labels": 1} if stage == "reward" else {}))
    return stage == "reward" or model.get_output_embeddings().weight is model.get_input_embeddings().weight


def deepspeed_python() -> str:
    """The Python of an environment with DeepSpeed, over this one; it is made the first time, its op compiled."""
    home, python = HOME, HOME / "bin" / "python"
    if not (home / "built").exists():
        print("Installing DeepSpeed and compiling its op: some minutes.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
        site = next(home.glob("lib/python*/site-packages"))
        (site / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-build-isolation"]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "TORCH_EXTENSIONS_DIR": str(OPS)}
        subprocess.run([*install, DEEPSPEED, "ninja"], env=environment, check=True, timeout=600)
        environment["PATH"] = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        build = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()"
        try:
            subprocess.run([str(python), "-c", build], env=environment, check=True, timeout=1200)
        except subprocess.TimeoutExpired:
            raise SystemExit("DeepSpeed's op was not compiled in 20 minutes; g++ and ninja are needed.") from None
        (home / "built").touch()
    return str(python)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--kinds", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for lock in OPS.rglob("lock"):  # of a run that was killed: torch would wait for it for ever
        lock.unlink()
    with tempfile.TemporaryDirectory() as top:
        table = Table(Path(top), options.layers, options.width)
        for stage in options.stages:
            for kind in options.kinds:
                whole = table.cell(stage, kind == "lora", "one")
                rows.append(judged(whole, whole))
                print(line(rows[-1]), flush=True)
                for engine in (engine for engine in options.engines if engine != "one"):
                    rows.append(judged(table.cell(stage, kind == "lora", engine), whole))
                    print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(f"\n{row['cell']}: {'; '.join(row['wrong'])}\n{row.get('said', '')}")
    print(f"{len(rows) - len(wrong)} of {len(rows)} cells hold")
    return 1 if wrong else 0


def judged(row: dict, whole: dict) -> dict:
    """With its distance from one process, and what is wrong with it."""
    if "refused" in row:
        return row | {"wrong": [] if row["refused"] else ["it was not refused"]}
    if row["status"]:
        return row | {"wrong": [f"it ended with {row['status']}"]}
    row["gap"] = difference(row["losses"], whole.get("losses", []))
    checks = {
        "its losses are not those of one process": row["gap"] <= 1e-4,
        "it does not go on as it went": row["resumed"] <= 1e-4 and "said" not in row,
        "plain transformers does not load it as it is": row["loads"],
        "after SIGTERM it does not go on as it went": row["stopped"] <= 1e-4,
        f"it ran under {row['engine']}": WRAPPERS[row["cell"].rpartition("-")[2]] in row["engine"],
    }
    return row | {"wrong": [fault for fault, holds in checks.items() if not holds]}


def line(row: dict) -> str:
    """A row of the table in docs/scale.md."""
    if "refused" in row:
        return f"| {row['cell']} | refused | | | | | |"
    if row["status"]:
        return f"| {row['cell']} | ended with {row['status']} | | | | | |"
    held = f"{row['weights'] / 1e6:.2f} + {row['optimizer'] / 1e6:.2f} MB"
    found = [row["cell"], row["engine"], f"{row['gap']:.1e}", held, f"{row['resumed']:.1e}", f"{row['stopped']:.1e}"]
    return f"| {' | '.join(found)} | {'; '.join(row['wrong']) or 'holds'} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["cell"]:
        sys.exit(cell(sys.argv[2], sys.argv[3], sys.argv[4:]))
    sys.exit(main())
