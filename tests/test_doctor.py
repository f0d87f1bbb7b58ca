"""The doctor: a made-up run for each thing that can be wrong, and one beside it that is nearly so and is not."""

import json
import re
import subprocess
import sys

import pytest

from rlhf_kit import cli
from rlhf_kit.cli.commands import COMMANDS
from rlhf_kit.cli.help import panels
from rlhf_kit.report import doctor, symptoms
from rlhf_kit.report.doctor import REMEDIES, Run, judge, read_run

NOISE = (0.6, -1.0, 0.3, 0.9, -0.7, 0.1, -0.2)  # one rollout after another; sums to 0
HEALTHY = {  # of time, from 0 at the first rollout to 1 at the last, and of noise
    "loss": lambda t, n: 0.01 * n,
    "grad_norm": lambda t, n: 0.6 + 0.2 * n,
    "reward": lambda t, n: 0.2 + 0.4 * t + 0.05 * n,
    "reward_std": lambda t, n: 0.65 + 0.05 * n,
    "rewards/rm": lambda t, n: 0.2 + 0.4 * t + 0.05 * n,
    "rewards/truth": lambda t, n: 0.5 + 0.1 * n,
    "kl": lambda t, n: 1.5 * t + 0.02 * n,
    "kl_coef": lambda t, n: 0.05,
    "kl_per_token": lambda t, n: 0.15 * t,
    "entropy": lambda t, n: 0.3 - 0.1 * t + 0.02 * n,
    "completions/length": lambda t, n: 13 - 3 * t + n,
    "completions/terminated": lambda t, n: 0.98 + 0.01 * n,
    "value/explained_variance": lambda t, n: min(0.6, 2 * t - 0.2) + 0.1 * n,
    "policy/ratio": lambda t, n: 1 + 0.02 * n,
    "policy/clip_fraction": lambda t, n: 0.06 * (1 - t),
    "policy/approx_kl": lambda t, n: 0.06 * (1 - t),
}


def logs(count=28, **changed):
    """A healthy run's logs; `changed` replaces curves (`policy__ratio=` for policy/ratio), None leaves one out."""
    curves = HEALTHY | {name.replace("__", "/"): curve for name, curve in changed.items()}
    return [
        {"step": 4 * i + 4, "time": float(i)}
        | {k: curve(i / (count - 1), NOISE[i % len(NOISE)]) for k, curve in curves.items() if curve is not None}
        for i in range(count)
    ]


def at(rows, step, **values):
    """The rows, with other values at one step."""
    return [row | {k.replace("__", "/"): v for k, v in values.items()} if row["step"] == step else row for row in rows]


def names(rows, truths=("truth",)):
    found = judge(Run(doctor.Path("run"), rows, None), [name for name in truths if f"rewards/{name}" in rows[0]])
    return [finding.name for finding in found]


def rising(low, high):
    return lambda t, n: low + (high - low) * t


SFT = dict.fromkeys(name.replace("/", "__") for name in HEALTHY if name not in ("loss", "grad_norm"))
CASES = {  # what is found in the first and not in the second
    "not_a_number": (at(logs(), 44, loss=None), logs(loss=lambda t, n: 1e30)),
    "loss_rising": (
        logs(loss=lambda t, n: 2 - t + 3 * max(0, t - 0.6) + 0.05 * n, **SFT),
        logs(loss=lambda t, n: 2 - t + 0.3 * max(0, t - 0.6) + 0.05 * n, **SFT),
    ),
    "reward_hacking": (
        logs(rewards__truth=lambda t, n: 0.5 - 0.4 * max(0, t - 0.3) + 0.05 * n),
        logs(rewards__truth=lambda t, n: 0.5 - 0.4 * max(0, t - 0.3) + 0.2 * n),  # within its noise
    ),
    "kl_negative": (logs(kl=rising(-0.4, 1)), logs(kl=rising(-0.2, 1))),
    "kl_exploding": (logs(kl=rising(0, 26), kl_per_token=rising(0, 2)), logs(kl=rising(0, 19), kl_per_token=None)),
    "steps_too_large": (
        logs(policy__approx_kl=lambda t, n: 0.2 if t < 0.3 else 0.01),
        logs(policy__approx_kl=lambda t, n: 0.2 if t < 0.2 else 0.01),
    ),
    "never_ends": (logs(completions__terminated=rising(0.1, 0)), logs(completions__terminated=rising(0.1, 0.07))),
    "not_ending_pays": (
        logs(completions__ended_score_gap=rising(0.1, -0.3)),
        logs(completions__ended_score_gap=rising(-0.3, 0.1)),
    ),
    "few_ends": (logs(completions__terminated=rising(1, 0.6)), logs(completions__terminated=rising(0.5, 0.9))),
    "reward_falls": (logs(reward=rising(0.5, 0.35)), logs(reward=rising(0.5, 0.46))),
    "reward_flat": (logs(reward=rising(0.5, 0.5)), logs(reward=rising(0.5, 0.6))),
    "length_rewarded": (
        logs(completions__length=lambda t, n: 10 + 8 * t + 0.5 * n),
        logs(completions__length=lambda t, n: 10 + 2 * t + 0.5 * n),
    ),
    "entropy_collapse": (logs(entropy=rising(0.3, 0.03)), logs(entropy=rising(0.3, 0.1))),
    "value_not_learning": (
        logs(value__explained_variance=lambda t, n: 0.03 * n),
        logs(value__explained_variance=lambda t, n: 0.4 * (t > 0.5) + 0.1 * n),
    ),
    "nothing_left": (logs(reward_std=lambda t, n: 0.6 * (t < 0.7) + 0.03), logs(reward_std=rising(0.6, 0))),
    "gradient_spikes": (at(at(logs(), 40, grad_norm=9), 60, grad_norm=8), at(logs(), 40, grad_norm=9)),
}
NEARLY = {  # further runs that have none of it
    "kl_exploding": [logs(kl=lambda t, n: 30), logs(kl=rising(0, 26), kl_per_token=rising(0, 0.05))],  # stands; long
    "steps_too_large": [at(logs(), 4, policy__ratio=2.4, policy__approx_kl=1.4)],  # one rough update
    "reward_hacking": [
        logs(rewards__truth=rising(0.5, -0.5), reward=rising(0.5, 0.5)),  # both worse: not paid for it either
        logs(rewards__truth=rising(-0.5, 0.5)),
    ],
    "length_rewarded": [
        logs(completions__length=rising(10, 18), reward=rising(0.5, 0.5)),
        logs(completions__length=lambda t, n: 10 + 4 * t + 6 * n),  # without a connection
        logs(completions__length=lambda t, n: 10),
    ],
    "reward_flat": [logs(reward=rising(0.5, 0.5), reward_std=lambda t, n: 0)],  # that is nothing_left
    "gradient_spikes": [logs(grad_norm=lambda t, n: 40 + 10 * n)],  # large, and even
    "loss_rising": [
        logs(loss=lambda t, n: 0.5 + 0.1 * (t > 0.7) + 0.4 * n, **SFT),  # noise
        logs(loss=lambda t, n: 2 + 0.1 * (t > 0.7), **SFT),  # a little
    ],
    "not_a_number": [at(logs(), 44, grad_norm=None), at(at(logs(), 4, grad_norm=None), 8, grad_norm=None)],  # fp16
}


def test_a_healthy_run_gives_no_alarm_at_any_length():
    for count in (*range(2, 40), 400):
        assert names(logs(count)) == [], count
    rows = logs(40)
    assert not [(n, names(rows[:n])) for n in range(1, 41) if names(rows[:n])]  # as it is asked while it goes on


@pytest.mark.parametrize("name", CASES)
def test_each_finding_is_found_and_its_near_miss_is_not(name):
    bad, near = CASES[name]
    assert name in names(bad)
    for rows in [near, *NEARLY.get(name, [])]:
        assert name not in names(rows)


def test_every_finding_has_words_a_case_and_options_that_exist():
    checks = (*symptoms.PPO_CHECKS, *symptoms.OTHER_CHECKS, symptoms.reward_hacking)
    assert CASES.keys() == REMEDIES.keys() and len(set(checks)) == 14
    options = {option.name for _, options in panels(COMMANDS["ppo"], everything=True) for option in options}
    for remedy in REMEDIES.values():
        named = re.findall(r"--(\w+)", " ".join(vars(remedy).values()))
        assert set(named) <= options and all(vars(remedy).values())
        assert re.search(r"[\u4e00-\u9fff]", remedy.chinese)


@pytest.mark.parametrize(
    "curve, bad, near",
    [("policy__ratio", 1.15, 1.08), ("policy__ratio", 0.85, 0.92), ("policy__clip_fraction", 0.35, 0.25)],
)
def test_each_sign_of_a_large_step_counts(curve, bad, near):
    assert "steps_too_large" in names(logs(**{curve: lambda t, n: bad}))
    assert "steps_too_large" not in names(logs(**{curve: lambda t, n: near}))


def test_a_gradient_that_stays_without_a_number_and_an_infinity_count():
    rows = logs()
    assert "not_a_number" in names(at(at(rows, 108, grad_norm=None), 112, grad_norm=None))
    assert "not_a_number" in names(at(rows, 44, kl=float("inf")))
    assert "not_a_number" in names([rows[0] | {"loss": None}])  # however short the run


def test_the_entropy_of_a_policy_that_was_never_various():
    assert "entropy_collapse" in names(logs(entropy=lambda t, n: 0.005))


def test_windows_by_hand():
    rows = [{"step": step, "kl": value} for step, value in zip(range(1, 10), (1, 3, 5, 5, 7, 9, 0, 2, 4), strict=True)]
    found = [(window.mean, window.first, window.last) for window in symptoms.windows(rows, "kl")]
    assert found == [(2, 1, 2), (5, 3, 4), (8, 5, 6), (3, 8, 9)]
    assert symptoms.windows(rows[:3], "kl") == []
    assert symptoms.window_size(400) == symptoms.WIDEST


def test_what_was_seen_tells_figures_and_steps():
    (finding,) = judge(Run(doctor.Path("run"), CASES["kl_exploding"][0], None), [])
    assert finding.seen == "kl 2.89 (steps 4-28) → 23.1 (steps 88-112), nats per completion; kl_coef is 0.05"


def test_the_worst_comes_first():
    def std(t, n):
        return 0.6 * (t < 0.7) + 0.03

    rows = logs(kl=rising(0, 40), kl_per_token=rising(0, 2), entropy=rising(0.3, 0), reward_std=std)
    assert names(rows) == ["kl_exploding", "entropy_collapse", "nothing_left"]


# -- folders and the command line ------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """save(rows, weights) -> a run's folder; without weights it has no run.json."""

    def put(rows, weights=None, name="ppo", tail=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        if weights is not None:
            record = {"stage": "ppo", "config": {"reward_weights": weights} if weights else {}}
            (folder / "run.json").write_text(json.dumps(record))
        return folder

    return put


def doctor_says(capsys, *argv):
    status = cli.main(["doctor", *map(str, argv)])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_a_healthy_run_ends_with_0(save, capsys):
    summary = {"step": 112, "time": 9.0, "train_runtime": 9.0, "train_loss": 0.1, "eval_reward": None}
    status, said = doctor_says(capsys, save([*logs(), summary], [1.0, 0.0]))
    assert status == 0 and "PPO, 28 rollouts, steps 4-112, ended" in said
    assert "the truth to compare with: truth." in said and "Nothing found. 沒有發現問題。" in said


def test_a_hacked_run_ends_with_1_and_says_what_to_do(save, capsys):
    status, said = doctor_says(capsys, save(CASES["reward_hacking"][0], [1.0, 0.0]))
    assert status == 1
    said = " ".join(said.split())
    for words in (
        "1. Reward hacking",
        "serious 嚴重",
        "truth 0.5",
        "(steps 4-28) → ",
        "--kl_coef",
        "獎勵作弊",
        "1 found.",
    ):
        assert words in said


@pytest.mark.parametrize(
    "weights, reason", [(None, "there is no run.json yet"), ([], "no reward function has weight 0")]
)
def test_a_truth_that_is_not_known_is_asked_for(weights, reason, save, capsys):
    folder = save(CASES["reward_hacking"][0], weights)
    status, said = doctor_says(capsys, folder)
    said = " ".join(said.split())
    assert status == 0 and reason in said and "--truth NAME (logged: rm, truth)" in said
    for name in ("truth", "rewards/truth"):
        assert doctor_says(capsys, folder, "--truth", name)[0] == 1


@pytest.mark.parametrize("weights, expected", [([0, 1.0], ["rm"]), ([1, 1], []), ([0, 0, 1], []), ([], [])])
def test_weights_are_matched_to_scorers_by_their_order(weights, expected, save):
    assert read_run(save(logs(), weights)).held_out == expected


def test_json(save, capsys):
    status, said = doctor_says(capsys, save(CASES["kl_negative"][0], [1.0, 0.0]), "--json")
    told = json.loads(said)
    assert status == 1 and told["ppo"] and told["ended"] and told["logs"] == 28
    (finding,) = told["findings"]
    assert finding["name"] == "kl_negative" and finding["serious"] is True
    assert all(finding[key] for key in ("title", "seen", "why", "change", "chinese"))


@pytest.mark.parametrize("count", [2, 3, 28])
def test_that_nothing_ends_or_that_not_ending_pays_needs_no_trend(count):
    assert names(logs(count)) == []
    assert names(logs(count, completions__terminated=lambda t, n: 0.0)) == ["never_ends"]
    gap = {"completions__terminated": lambda t, n: 0.8, "completions__ended_score_gap": lambda t, n: -0.5}
    assert names(logs(count, **gap)) == ["not_ending_pays"]


def test_a_run_that_goes_on(save, capsys):
    folder = save(logs(3), tail='{"step": 16, "time": 3.0, "kl"')
    status, said = doctor_says(capsys, folder)
    said = " ".join(said.split())
    assert status == 0 and "3 rollouts, steps 4-12, no run.json: it is still running" in said
    assert "Only 3 logged: too few to look for" in said


def test_another_stage_gets_the_checks_that_apply(save, capsys):
    folder = save([*CASES["loss_rising"][0], {"step": 112, "eval_loss": 3.0}])
    status, said = doctor_says(capsys, folder)
    assert status == 1 and "This is not a PPO run" in said and "The training loss rises" in said
    assert "Reward hacking" not in said


def test_mistakes_end_with_2_and_one_sentence(save, tmp_path, capsys):
    good = save(logs())
    (good / "checkpoint-4").mkdir()
    empty, broken, cut = save([], name="new"), save(logs(), name="broken", tail="{oops\n"), save(logs(), name="cut")
    (cut / "run.json").write_text("[")
    for argv, message in [
        ([tmp_path / "pppo"], "there is no folder .*pppo'. Did you mean 'ppo'"),
        ([good / "metrics.jsonl"], "is a file; give the run's folder, '.*/ppo'"),
        ([good / "checkpoint-4"], "has no metrics.jsonl. Perhaps you mean .*/ppo\\."),
        ([tmp_path], "has no metrics.jsonl. Perhaps you mean .*/broken, .*/ppo\\."),
        ([empty], "has no entries yet"),
        ([broken], "line 29 of .* is not a log entry: '{oops'. Remove the line"),
        ([cut], "run.json' is not the record of a run"),
        ([good, "--truth", "trut"], "--truth 'trut' .* its scorers are rm, truth. Did you mean 'truth'"),
    ]:
        status, said = doctor_says(capsys, *argv)
        assert status == 2 and said.count("\n") == 1
        assert re.match(f"rlhf-kit doctor: .*{message}", said), said


def test_it_starts_without_torch(save):
    script = "import sys; from rlhf_kit.cli import main; print(main(['doctor', sys.argv[1]]), 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script, save(logs())], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False"
