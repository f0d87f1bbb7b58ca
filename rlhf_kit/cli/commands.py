"""The commands of `rlhf-kit`: what each is for, the dataclasses that declare its options, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass, field

ARGUMENTS = "rlhf_kit.stages.arguments"


@dataclass(frozen=True)
class Command:
    """`options`: help's title -> `module:Class`; `run`: `module:function`, which gets the record of the options.

    A stage's gets the command line, and makes several records of it. `renamed`: `module:TABLE` of names that are gone.
    `interrupted` and `unwritten`: what to do after Ctrl-C and a full disk, where the command does not say so itself.
    """

    english: str
    chinese: str
    run: str
    options: dict[str, str] = field(default_factory=dict)
    renamed: str = ""
    interrupted: str = "The same command begins again."
    unwritten: str = ""
    examples: tuple[str, ...] = ()


def _stage(name: str, english: str, chinese: str, **classes: str) -> Command:
    """`classes`: of the stage's own options, by title."""
    return Command(
        english,
        chinese,
        f"rlhf_kit.stages.{name}:start",
        {
            "Run": f"{ARGUMENTS}:RunArguments",
            "Model": f"{ARGUMENTS}:ModelArguments",
            "Data": f"{ARGUMENTS}:DataArguments",
            **{f"Stage: {name}" if title == "own" else title.capitalize(): one for title, one in classes.items()},
        },
        renamed="rlhf_kit.ppo.config:RENAMED" if name == "ppo" else "",
        examples=(
            f"{name} --config recipes/gpt2/{name}.yaml --dry-run",
            f"{name} --config recipes/gpt2/{name}.yaml --learning_rate 1e-5 --output_dir runs/{name}",
        ),
    )


STAGES = {
    "pretrain": _stage(
        "pretrain",
        "Next-token prediction on plain text, from scratch or continued",
        "文字接龍：從頭或接續預訓練",
        own="rlhf_kit.stages.pretrain:PretrainConfig",
    ),
    "mlm": _stage(
        "mlm",
        "Masked-language modelling on plain text: a BERT",
        "填空題：從頭或接續預訓練 BERT",
        own="rlhf_kit.stages.mlm:MaskedConfig",
    ),
    "sft": _stage(
        "sft", "Supervised fine-tuning on demonstrations", "監督式微調：學習人類示範的回答", own="trl:SFTConfig"
    ),
    "reward": _stage(
        "reward",
        "A reward model from ranked answers",
        "獎勵模型：從人類的排序學習打分數",
        own="rlhf_kit.reward.config:RewardConfig",
        calibration="rlhf_kit.stages.calibration:CalibrationArguments",
    ),
    "ppo": _stage(
        "ppo",
        "Reinforcement learning against the reward model",
        "強化學習：用 PPO 追求獎勵",
        rewards="rlhf_kit.stages.ppo:PPOArguments",
        own="rlhf_kit.ppo.config:PPOConfig",
    ),
}
OTHERS = {
    "demo": Command(
        "The whole story on the embedded world, in minutes, on a CPU",
        "用內建的小世界走完全程",
        "rlhf_kit.demo:run",
        {"Options": "rlhf_kit.demo:DemoOptions"},
        examples=("demo", "demo --seed 1 --output_dir runs/demo-1"),
    ),
    "score": Command(
        "Score any file of prompts and answers with a reward model",
        "用獎勵模型替任何回答打分數",
        "rlhf_kit.eval.reward.rows:run",
        {"Options": "rlhf_kit.eval.reward.rows:ScoreOptions"},
        interrupted="Nothing was written. 已中斷，沒有寫入任何結果。",
        examples=("score --model runs/reward --data answers.jsonl --output scored.jsonl",),
    ),
    "convert": Command(
        "Rankings and pairs from and to other projects' formats",
        "轉換其他專案的排序資料",
        "rlhf_kit.data.convert:run",
        {"Options": "rlhf_kit.data.convert:ConvertOptions"},
        examples=("convert export.json rankings.jsonl --from label-studio",),
    ),
    "merge": Command(
        "A LoRA adapter merged into its base: a plain model",
        "把 LoRA 併回原模型",
        "rlhf_kit.stages.merging:run",
        {"Options": "rlhf_kit.stages.merging:MergeOptions"},
        unwritten="Make room, and merge again.",
        examples=("merge runs/lora --output_dir runs/merged",),
    ),
    "doctor": Command(
        "What is wrong with a PPO run, and what to change",
        "檢查 PPO 訓練哪裡出了問題",
        "rlhf_kit.report.doctor:run",
        {"Options": "rlhf_kit.report.doctor:DoctorOptions"},
        examples=("doctor runs/ppo",),
    ),
    "completion": Command(
        "What Tab offers in bash or zsh",
        "讓 Tab 鍵補完命令與選項",
        "rlhf_kit.cli.completion:run",
        {"Options": "rlhf_kit.cli.completion:CompletionOptions"},
        examples=("completion bash >> ~/.bashrc",),
    ),
}
# Commands of two words, by the first.
GROUPS = {
    "eval": Command(
        "Measure a model: a reward model against people's rankings", "評測模型：獎勵模型的排序與人一致嗎", ""
    ),
}
COMMANDS: dict[str, Command] = {**STAGES, **OTHERS}
