"""How the weight of the KL penalty moves."""

from __future__ import annotations


class FixedKL:
    """A constant coefficient."""

    def __init__(self, coef: float):
        self.coef = coef

    def update(self, kl: float, completions: int) -> None:
        pass


class AdaptiveKL(FixedKL):
    """A proportional controller that holds the KL near a target (Ziegler et al. 2019, section 2.2).

        error = clip(kl / target - 1, -0.2, 0.2),    coef *= 1 + error * completions / horizon

    Args:
        target: nats a completion. horizon: completions over which the coefficient reacts.
    """

    def __init__(self, coef: float, target: float, horizon: int):
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Move the coefficient after a rollout of `completions` whose mean KL was `kl` nats."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * completions / self.horizon
