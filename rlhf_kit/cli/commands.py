"""The commands of `rlhf-kit`: what each is for, the dataclasses that declare its options, and what runs it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval.commands import TASKS
from rlhf_kit.references import search_here

ARGUMENTS = "rlhf_kit.stages.arguments"
RUNNER = "rlhf_kit.eval.runner:run"
KEPT = (
    "The same command resumes from --output_dir; without that option nothing was saved. "
    "已中斷；有 --output_dir 時，同一個指令會接續。"
)
# What an example of a task gives, where that is not rows.jsonl, or more than a model and data.
DATA = {
    "lambada": "lambada.jsonl",
    "perplexity": "wiki.txt",
    "coqa": "coqa-dev-v1.0.json",
    "squad": "dev-v2.0.json",
    "mc": "questions.jsonl",
}
EXAMPLES = {
    "icl": "icl --models runs/sft --tasks arithmetic --shots 0 1 8 --output_dir runs/icl",
    "tldr": "tldr --models lede-3 runs/sft --dataset_name articles.jsonl --output_dir runs/tldr",
    "extractive": "extractive --model_name_or_path runs/mlm --train_dataset_name train.json --dataset_name dev.json "
    "--scorer squad --output_dir runs/squad",
    "reward": "reward --model_name_or_path runs/reward --dataset_name world:ranked --output_dir runs/reward-eval",
    "transfer": "transfer --model_set world --seeds 0",
    "suite": "suite --models base=runs/pretrain sft=runs/sft ppo=runs/ppo --output_dir runs/suite",
}
# Tables of measurements, as TASKS; a suite, which reads TASKS, cannot hold them.
TABLES = {
    "transfer": (
        "Cross-lingual transfer of reading comprehension: every model, training language and test language in one "
        "table",
        "跨語言遷移：哪種預訓練、用哪種語言微調、能讀懂什麼",
        "rlhf_kit.eval.transfer.task:Transfer",
    ),
    "suite": (
        "Run a list of evaluations on every model: what each stage gained and lost",
        "各階段的得與失：一份評測清單",
        "rlhf_kit.eval.suite.task:Suite",
    ),
}
# What a task says otherwise than the others do.
OWN = {
    "transfer": {
        "kept": "The same command resumes. 已中斷；同一個指令會接續。",
        "renamed": "rlhf_kit.eval.transfer.task:OF_A_TABLE",
    }
}


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
    interrupted: str = "The same command starts over."
    unwritten: str = ""
    output: str = "--output_dir"  # the option that names what could not be written
    examples: tuple[str, ...] = ()
    extra: str = ""  # of the package, which the command needs
    task: str = ""  # of `eval`: `module:Class`; the runner runs it


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
            f"{name} --config recipes/gpt2/{name}.yaml --dry_run",
            f"{name} --config recipes/gpt2/{name}.yaml --learning_rate 1e-5 --output_dir runs/{name}",
        ),
    )


PREFERENCE = "rlhf_kit.stages.preference:PreferenceArguments"
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
    "dpo": _stage(
        "dpo",
        "Direct preference optimisation on ranked answers, without a reward model",
        "直接偏好最佳化：從排序直接學，不必訓練獎勵模型",
        reference=PREFERENCE,
        own="rlhf_kit.methods.config:DPOConfig",
    ),
    "kto": _stage(
        "kto",
        "Kahneman-Tversky optimisation on thumbs: answers that are good or bad",
        "KTO：從按讚與噓學，每個回答各自評好壞",
        reference=PREFERENCE,
        own="rlhf_kit.methods.config:KTOConfig",
    ),
    "rloo": _stage(
        "rloo",
        "REINFORCE with a leave-one-out baseline against the reward model, without a value model",
        "RLOO：不用價值模型的強化學習，同一提示的其他回答當基線",
        rewards="rlhf_kit.stages.ppo:RewardArguments",
        own="rlhf_kit.methods.online_config:RLOOConfig",
    ),
    "grpo": _stage(
        "grpo",
        "Group relative policy optimisation against the reward model, without a value model",
        "GRPO：不用價值模型的強化學習，每個回答和同一組比",
        rewards="rlhf_kit.stages.ppo:RewardArguments",
        own="rlhf_kit.methods.online_config:GRPOConfig",
    ),
}
PLANNED = {name: STAGES[name] for name in ("pretrain", "mlm", "sft", "reward", "ppo")}
PLAN = "rlhf_kit.planning.command"
OTHERS = {
    "plan": Command(
        "What a run would take: memory, tokens, FLOPs, hours; and what to change where it does not fit",
        "估算一次訓練要多少記憶體、計算量與時間，放不下時該改什麼",
        f"{PLAN}:start",
        {"Plan": f"{PLAN}:PlanOptions"},
        examples=(
            "plan --config recipes/gpt2/ppo.yaml --gpu A100-80",
            "plan sft --config recipes/gpt2/sft.yaml --gpu RTX3090 --rows 9500 --row_tokens 350 --price 0.4",
            "plan --config recipes/gpt2/sft.yaml --gpu H100 --accelerate fsdp2 --devices 8",
        ),
    ),
    "compare-methods": Command(
        "PPO, DPO, KTO, RLOO, GRPO and best-of-n side by side: trained and measured alike",
        "把幾種偏好微調方法放在一起比：真相、KL 與計算量",
        "rlhf_kit.comparison.command:run",
        {"Options": "rlhf_kit.comparison.config:CompareOptions"},
        interrupted="The same command resumes, cell by cell. 已中斷；同一個指令會接續。",
        unwritten="Finished cells are kept: free some space, and the same command resumes.",
        examples=(
            "compare-methods --config world/compare-methods --output_dir runs/compare",
            "compare-methods --config my.yaml --dry_run",
        ),
    ),
    "demo": Command(
        "The whole story on the embedded world, in minutes, on a CPU",
        "用內建的小世界走完全程",
        "rlhf_kit.demo:run",
        {"Options": "rlhf_kit.demo:DemoOptions"},
        examples=("demo", "demo --seed 1 --output_dir runs/demo-1"),
    ),
    "collect": Command(
        "Several answers to each prompt, for people to rank or to give thumbs",
        "每個提示收集幾個回答，讓人來排序",
        "rlhf_kit.feedback.collecting:run",
        {"Options": "rlhf_kit.feedback.collecting:CollectOptions"},
        interrupted="The same command resumes. 已中斷；同一個指令會接續。",
        extra="feedback",
        examples=("collect --models runs/sft runs/ppo --dataset_name world:prompts --k 4 --output_file labels.db",),
    ),
    "generate": Command(
        "A model's answers to prompts, for scripts: printed, or kept in a file",
        "用腳本取得模型的回答",
        "rlhf_kit.chat.generating:run",
        {"Options": "rlhf_kit.chat.generating:GenerateOptions"},
        interrupted="The same command resumes from --output_file; without that option nothing was saved. "
        "已中斷；有 --output_file 時，同一個指令會接續。",
        unwritten="Finished answers are kept: free some space, and the same command resumes.",
        output="--output_file",
        examples=(
            'generate runs/sft --prompt "Why is the sky blue?"',
            "generate runs/ppo --dataset_name world:prompts --split test --output_file answers.jsonl",
        ),
    ),
    "chat": Command(
        "Talk to one model or several side by side, and see what each may say next",
        "在終端機和一個或幾個模型說話",
        "rlhf_kit.chat.terminal:run",
        {"Options": "rlhf_kit.chat.terminal:ChatOptions"},
        interrupted="What was said is in --output_file, where that was given. 已停止；有 --output_file 時都在那裡。",
        unwritten="What was written before is kept: free some space.",
        output="--output_file",
        examples=("chat runs/sft", "chat base=runs/pretrain sft=runs/sft ppo=runs/ppo --temperature 0.7"),
    ),
    "ui": Command(
        "See next tokens, chat, follow runs, rank answers and give thumbs in the browser",
        "在瀏覽器裡看文字接龍、對話、看訓練、排序、按讚或噓",
        "rlhf_kit.serving.ui:run",
        {"Options": "rlhf_kit.serving.ui:UIOptions"},
        interrupted="Stopped; what was submitted is kept. 已停止；送出的都已保留。",
        extra="ui",
        examples=("ui runs/demo", "ui labels.db --host 0.0.0.0 --public_url https://lab.example --labelers amy bob"),
    ),
    "serve": Command(
        "Models behind OpenAI's API, for other programs",
        "用 OpenAI 的介面提供模型",
        "rlhf_kit.serving.endpoint.serve:run",
        {"Options": "rlhf_kit.serving.endpoint.serve:ServeOptions"},
        interrupted="Stopped. 已停止。",
        extra="ui",
        examples=("serve runs/demo/sft ppo=runs/demo/ppo", "serve runs/ppo --port 8001 --dtype bfloat16"),
    ),
    "label": Command(
        "Rank answers and give thumbs in the terminal",
        "在終端機裡排序、按讚或噓",
        "rlhf_kit.feedback.labelling:run",
        {"Options": "rlhf_kit.feedback.labelling:LabelOptions"},
        interrupted="Stopped; what was submitted is kept. 已停止；送出的都已保留。",
        extra="feedback",
        examples=("label labels.db", "label labels.db --kind thumbs"),
    ),
    "score": Command(
        "Score any file of prompts and answers with a reward model",
        "用獎勵模型替任何回答打分數",
        "rlhf_kit.eval.reward.rows:run",
        {"Options": "rlhf_kit.eval.reward.rows:ScoreOptions"},
        interrupted="Nothing was written. 已中斷，沒有寫入任何結果。",
        examples=("score --model_name_or_path runs/reward --dataset_name answers.jsonl --output_file scored.jsonl",),
    ),
    "convert": Command(
        "Convert rankings and pairs from and to other formats",
        "轉換其他專案的排序資料",
        "rlhf_kit.data.convert:run",
        {"Options": "rlhf_kit.data.convert:ConvertOptions"},
        examples=("convert export.json rankings.jsonl --from label-studio",),
    ),
    "merge": Command(
        "Merge a LoRA adapter into its base model",
        "把 LoRA 併回原模型",
        "rlhf_kit.stages.merging:run",
        {"Options": "rlhf_kit.stages.merging:MergeOptions"},
        unwritten="Free some space, and merge again.",
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
        "Shell completion for bash or zsh",
        "讓 Tab 鍵補完命令與選項",
        "rlhf_kit.cli.completion:run",
        {"Options": "rlhf_kit.cli.completion:CompletionOptions"},
        examples=("completion bash >> ~/.bashrc",),
    ),
}


def _measurement(
    english: str, chinese: str, run: str, options: str, example: str, kept: str = KEPT, **others: Any
) -> Command:
    return Command(
        english,
        chinese,
        run,
        {"Options": options},
        interrupted=kept,
        unwritten="Finished items are kept: free some space, and the same command resumes.",
        examples=(f"eval {example}",),
        **others,
    )


def _example(task: str) -> str:
    data = DATA.get(task, "rows.jsonl")
    usual = f"{task} --model_name_or_path runs/sft --dataset_name {data} --output_dir runs/{task}"
    return EXAMPLES.get(task, usual)


def _task(name: str, english: str, chinese: str, task: str) -> Command:
    """`task`: its class, as `module:Class`."""
    example, own = _example(name), OWN.get(name, {})
    return _measurement(english, chinese, RUNNER, f"{task}Arguments", example, task=task, **own)


EVALS = {
    **{f"eval {name}": _task(name, *row) for name, row in TASKS.items()},
    **{f"eval {name}": _task(name, *row) for name, row in TABLES.items()},
    "eval score": Command(
        "Score a file of predictions by the dataset's official scorer",
        "以官方算法評分",
        "rlhf_kit.eval.predictions:run",
        {"Options": "rlhf_kit.eval.predictions:PredictionsOptions"},
        examples=("eval score coqa --references coqa-dev-v1.0.json --predictions predictions.json",),
    ),
    "eval compare": Command(
        "Compare two results on the same items: the difference, and whether it is significant",
        "比較兩個結果：差距是真的還是運氣",
        "rlhf_kit.eval.compare:run",
        {"Options": "rlhf_kit.eval.compare:CompareOptions"},
        examples=("eval compare runs/coqa/sft runs/coqa/ppo",),
    ),
}
# Commands of two words, by the first.
GROUPS = {"eval": Command("Measure a model", "評測模型", "")}
COMMANDS: dict[str, Command] = {**STAGES, **OTHERS, **EVALS}


def planned(argv: list[str]) -> tuple[list[str], dict[str, str], str]:
    """Of `plan`: its words with the stage in front, that they name or else their --config is named after; the classes
    of its options, those of the stage among them; and the stage's table of names that are gone. Raises UserError."""
    first = argv[0] if argv and not argv[0].startswith("-") else None
    if first is None:
        given = [word for words in itertools.pairwise(argv) for word in words[1:] if words[0] == "--config"]
        given += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
        stem = re.split(r"\W|_", given[-1].rpartition("/")[2])[0] if given else ""
        if given and stem not in PLANNED:
            raise UserError(
                f"{given[-1]!r} is not named after a stage to plan: say which, as in rlhf-kit plan sft --config ..."
            )
        argv = [stem, *argv] if stem in PLANNED else argv
    elif first not in PLANNED:
        raise UserError(
            f"{first!r} is no stage that can be planned; those are {', '.join(PLANNED)}.{did_you_mean(first, PLANNED)}"
        )
    stage = PLANNED.get(argv[0] if argv else "")
    options = COMMANDS["plan"].options | (stage.options if stage else {})
    return argv, options, stage.renamed if stage else ""


def command_of(words: str) -> Command | None:
    """The command; `eval module:Class` is a task of the user's own. None where there is no such command."""
    group, _, name = words.partition(" ")
    if group != "eval" or ":" not in name:
        return COMMANDS.get(words)
    search_here()  # for the help
    return _measurement("A task of your own", "自訂的評測", RUNNER, f"{name}Arguments", f"{name} --help", task=name)
