"""What can be seen to be wrong in a run's logs: pure functions `rows -> Finding | None`, no words of advice.

They compare windows of rollouts, not single ones, so that one noisy rollout raises no alarm. Every bound is a constant
here; numbers called healthy are of 14 PPO runs of the demo with a KL penalty (25 or 28 rollouts of 64 completions).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rlhf_kit.pages.charts import is_number
from rlhf_kit.report.page import series

LEAST = 4  # logs from which a trend is judged
LEAST_SLOW = 8  # logs for what begins late in a good run too: the value function's learning, the reward's rise
WIDEST = 16  # rollouts of a window at most: a quarter of a long run would swallow its whole rise
NOISE = 3.5  # standard errors that a difference must pass: the best of several windows is good by chance already

RISE = 0.1  # of reward_std, a change worth the name: healthy runs gain 0.17 of it and more
FLAT = 0.05  # of reward_std, no change: two windows of seven rollouts of 64 differ by as much by chance
KL_NEGATIVE = -0.2  # nats per completion: an unbiased estimate is nearer to 0 where the KL is
KL_FAR = 20.0  # nats per completion: three times the 6 that Ziegler et al. 2019 held
KL_FAR_TOKEN = 0.1  # and a token: a long answer may be far in all and near in each token; healthy short ones have 0.2
KL_GROWTH = 2.0  # the last window over the first: what stands still does not explode
RATIO_AWAY = 0.1  # half of `cliprange`
CLIPPED = 0.3  # share of tokens; healthy runs stay below 0.1
STEP_KL = 0.1  # nats per token in one update: shared/reference/rlhf.md, B.2, 20 stops an update there
STEPS_BAD = 0.25  # share of the rollouts beyond one of these: the first updates of a good run may be rough
SPIKE = 10.0  # times the median of grad_norm; healthy runs reach 8 as the learning rate ends
SPIKES = 2  # one is what clipping is for
ENDED_FEW = 0.75  # share of completions: some truncation is common, a quarter of all is not
ENDED_NEVER = 0.05
LENGTH_RISE = 1.25  # the last window over the first
LENGTH_CORRELATION = 0.7  # then half of the reward's variance over rollouts goes with the length
ENTROPY_LEFT = 1 / 3  # of the first window: healthy runs keep 0.7 and more
ENTROPY_FLOOR = 0.01  # nats per token: hardly a token is drawn by chance any more
VARIANCE_NONE = 0.05  # explained variance; a constant explains 0
STD_LEFT = 0.1  # of the first window's reward_std
STD_NONE = 1e-4
LOSS_RISE = 1.1  # the last window over the best: outside PPO a training loss falls, give or take its noise

NUMBERS = "loss loss/policy loss/value policy/ratio policy/approx_kl kl reward entropy".split()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its name in `doctor.REMEDIES`, and what was seen."""

    name: str
    seen: str


@dataclass(frozen=True)
class Window:
    """The mean of a metric over neighbouring rollouts, and their steps."""

    mean: float
    first: int
    last: int

    @property
    def span(self) -> str:
        return f"steps {self.first}-{self.last}"

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.span})"


def window_size(points: int) -> int:
    return min(max(2, points // 4), WIDEST)


def windows(rows: list[dict], key: str, least: int = LEAST) -> list[Window]:
    """The run in windows of a quarter, of two to WIDEST rollouts; the last ends with the run. [] when too short."""
    points = series(rows, key)
    if len(points) < least:
        return []
    size = window_size(len(points))
    starts = [*range(0, len(points) - 2 * size + 1, size), len(points) - size]
    parts = [points[start : start + size] for start in starts]
    return [Window(statistics.fmean(value for _, value in part), part[0][0], part[-1][0]) for part in parts]


def levels(rows: list[dict], key: str) -> list[Window]:
    """As `windows`; of a run too short for a trend one, with its highest value: to stay below a bound is none."""
    points = series(rows, key)
    short = [Window(max(value for _, value in points), points[0][0], points[-1][0])] if points else []
    return windows(rows, key) or short


def _told(found: list[Window]) -> str:
    return f"{found[0]} → {found[-1]}" if len(found) > 1 else f"{found[0].mean:.3g} at most ({found[0].span})"


def noise(rows: list[dict], key: str) -> float:
    """By how much two windows differ by chance, NOISE times its standard error."""
    values = [value for _, value in series(rows, key)]
    # A jump between neighbours has twice a rollout's variance, as a difference of windows has twice a window's.
    jumps = [(after - before) ** 2 for before, after in zip(values, values[1:], strict=False)]
    return NOISE * (statistics.fmean(jumps) / window_size(len(values))) ** 0.5


def reward_gain(rows: list[dict], start: int = 0) -> float:
    """How far the reward rose from window `start` to the last, in its standard deviations; 0 when unknown."""
    rewards, stds = windows(rows, "reward"), windows(rows, "reward_std")
    std = statistics.fmean(window.mean for window in stds) if stds else 0.0
    return (rewards[-1].mean - rewards[start].mean) / std if rewards and std > STD_NONE else 0.0


def with_numbers(rows: list[dict], *keys: str) -> list[dict]:
    return [row for row in rows if all(is_number(row.get(key)) for key in keys)]


# -- any training ----------------------------------------------------------------------------------------------------


def not_a_number(rows: list[dict]) -> Finding | None:
    bad = [(row["step"], key) for row in rows for key in NUMBERS if key in row and not is_number(row[key])]
    norms = [(row["step"], "grad_norm") for row in rows if "grad_norm" in row and not is_number(row["grad_norm"])]
    if len(norms) > 1 and norms[-1][0] == rows[-1]["step"]:  # fp16 skips a step that overflows: that one passes
        bad += norms
    if not bad:
        return None
    step, key = min(bad, key=lambda item: item[0])
    return Finding("not_a_number", f"{key} at step {step}; in {len({at for at, _ in bad})} of {len(rows)} logs")


def gradient_spikes(rows: list[dict]) -> Finding | None:
    points = series(rows, "grad_norm")
    middle = statistics.median(norm for _, norm in points) if points else 0.0
    spikes = [(step, norm) for step, norm in points if norm > SPIKE * middle > 0]
    if len(points) < LEAST or len(spikes) < SPIKES:
        return None
    listing = ", ".join(f"{norm:.3g} at step {step}" for step, norm in spikes[:4])
    more = f" and {len(spikes) - 4} more" if len(spikes) > 4 else ""
    return Finding("gradient_spikes", f"grad_norm {listing}{more}; its median is {middle:.3g}")


def loss_rising(rows: list[dict]) -> Finding | None:
    """Not for PPO, whose loss says nothing."""
    losses = windows(rows, "loss")
    best = min(losses, key=lambda window: window.mean) if losses else None
    if best is None or losses[-1].mean <= LOSS_RISE * best.mean or losses[-1].mean - best.mean <= noise(rows, "loss"):
        return None
    return Finding("loss_rising", f"loss {best} → {losses[-1]}")


# -- PPO -------------------------------------------------------------------------------------------------------------


def kl_negative(rows: list[dict]) -> Finding | None:
    kls = windows(rows, "kl")
    lowest = min(kls, key=lambda window: window.mean) if kls else None
    if lowest is None or lowest.mean >= KL_NEGATIVE:
        return None
    return Finding("kl_negative", f"kl {lowest}, nats per completion")


def kl_exploding(rows: list[dict]) -> Finding | None:
    kls, tokens = windows(rows, "kl"), windows(rows, "kl_per_token")
    if not kls or kls[-1].mean < max(KL_FAR, KL_GROWTH * kls[0].mean):
        return None
    if tokens and tokens[-1].mean < KL_FAR_TOKEN:
        return None
    coef = rows[-1].get("kl_coef")
    weight = f"; kl_coef is {coef:.3g}" if is_number(coef) else ""
    return Finding("kl_exploding", f"kl {kls[0]} → {kls[-1]}, nats per completion{weight}")


def steps_too_large(rows: list[dict]) -> Finding | None:
    seen = []
    for key, normal, bound, words in (
        ("policy/ratio", 1.0, RATIO_AWAY, f"off 1 by more than {RATIO_AWAY}"),
        ("policy/clip_fraction", 0.0, CLIPPED, f"above {CLIPPED}"),
        ("policy/approx_kl", 0.0, STEP_KL, f"above {STEP_KL} nats per token"),
    ):
        points = series(rows, key)
        bad = [(abs(value - normal), value, step) for step, value in points if abs(value - normal) > bound]
        if len(points) >= LEAST and len(bad) > STEPS_BAD * len(points):
            _, value, step = max(bad)
            seen.append(f"{key} {words} in {len(bad)} of {len(points)} rollouts (worst {value:.3g} at step {step})")
    return Finding("steps_too_large", "; ".join(seen)) if seen else None


def few_ends(rows: list[dict]) -> Finding | None:
    rates = levels(rows, "completions/terminated")
    if not rates or rates[-1].mean >= (ENDED_FEW if len(rates) > 1 else ENDED_NEVER):
        return None
    name = "never_ends" if rates[-1].mean < ENDED_NEVER else "few_ends"
    return Finding(name, f"completions/terminated {_told(rates)}")


def not_ending_pays(rows: list[dict]) -> Finding | None:
    """What was cut off scores above what ended, `missing_eos_penalty` taken off."""
    rows = with_numbers(rows, "completions/ended_score_gap", "reward_std")
    gaps, stds = levels(rows, "completions/ended_score_gap"), levels(rows, "reward_std")
    if not gaps or gaps[-1].mean >= -max(RISE * stds[-1].mean, STD_NONE):
        return None
    return Finding("not_ending_pays", f"completions/ended_score_gap {_told(gaps)}; reward_std {stds[-1]}")


def length_rewarded(rows: list[dict]) -> Finding | None:
    rows = with_numbers(rows, "reward", "completions/length")
    rewards, lengths = windows(rows, "reward"), windows(rows, "completions/length")
    if not lengths or lengths[-1].mean < LENGTH_RISE * lengths[0].mean or reward_gain(rows) < RISE:
        return None  # past here both have risen, so that neither is a constant without a correlation
    columns = ([value for _, value in series(rows, key)] for key in ("reward", "completions/length"))
    together = statistics.correlation(*columns)
    if together < LENGTH_CORRELATION:
        return None
    return Finding(
        "length_rewarded",
        f"completions/length {lengths[0]} → {lengths[-1]}, reward {rewards[0]} → {rewards[-1]}; "
        f"correlation {together:.2f}",
    )


def entropy_collapse(rows: list[dict]) -> Finding | None:
    entropies = windows(rows, "entropy")
    if not entropies or entropies[-1].mean >= max(ENTROPY_LEFT * entropies[0].mean, ENTROPY_FLOOR):
        return None
    return Finding("entropy_collapse", f"entropy {entropies[0]} → {entropies[-1]}, nats per token")


def value_not_learning(rows: list[dict]) -> Finding | None:
    points = series(rows, "value/explained_variance")
    late = points[len(points) // 2 :]
    if len(points) < LEAST_SLOW or (middle := statistics.median(value for _, value in late)) > VARIANCE_NONE:
        return None
    steps = f"steps {late[0][0]}-{late[-1][0]}"
    return Finding("value_not_learning", f"value/explained_variance has a median of {middle:.3g} ({steps})")


def nothing_left(rows: list[dict]) -> Finding | None:
    stds = windows(rows, "reward_std")
    if not stds or stds[-1].mean >= max(STD_LEFT * stds[0].mean, STD_NONE):
        return None
    return Finding("nothing_left", f"reward_std {stds[0]} → {stds[-1]}")


def reward_flat(rows: list[dict]) -> Finding | None:
    rewards, std = windows(rows, "reward", LEAST_SLOW), windows(rows, "reward_std")
    if not rewards or not std or max(window.mean for window in std) <= STD_NONE or reward_gain(rows) >= FLAT:
        return None  # without any spread it is `nothing_left`
    name = "reward_falls" if reward_gain(rows) <= -RISE else "reward_flat"
    return Finding(name, f"reward {rewards[0]} → {rewards[-1]}: {reward_gain(rows):+.2f} of its standard deviation")


def reward_hacking(rows: list[dict], truth: str) -> Finding | None:
    """The held-out scorer `truth` fell from its best window, by more than noise, and the reward rose meanwhile."""
    rows = with_numbers(rows, "reward", f"rewards/{truth}")
    truths, rewards = windows(rows, f"rewards/{truth}"), windows(rows, "reward")
    if not truths:
        return None
    best = max(range(len(truths)), key=lambda at: truths[at].mean)
    drop = truths[best].mean - truths[-1].mean
    if drop <= noise(rows, f"rewards/{truth}") or reward_gain(rows, best) < RISE:
        return None
    course = f"{truth} {truths[best]} → {truths[-1]}, reward {rewards[best]} → {rewards[-1]}"
    return Finding("reward_hacking", course)


OTHER_CHECKS = (not_a_number, loss_rising, gradient_spikes)
PPO_CHECKS = (
    *(not_a_number, kl_negative, kl_exploding, steps_too_large, few_ends, not_ending_pays, reward_flat),
    *(length_rewarded, entropy_collapse, value_not_learning, nothing_left, gradient_spikes),
)
