"""Can this number be trusted? What looks like privacy but may be a weak attack, and what is no measurement at all.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye, Carlini and Wagner, ICML 2018), section 3.1
    | https://arxiv.org/abs/1802.00420
    | On Evaluating Adversarial Robustness (Carlini et al., 2019)
    | https://arxiv.org/abs/1902.06705
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mibench.metrics.statistics import Interval

__all__ = ["CHECKS", "Evidence", "Finding", "check"]

VANISHED = 0.1
"""The share of images without a gradient from which an attack by gradients is crippled."""

TOLERANCE = 1e-3
"""How far the sum of served scores may be from 1."""

RANK = {"label_only": 1, "black_box": 2, "white_box": 3}
WORDS = {"label_only": "label-only", "black_box": "black-box", "white_box": "white-box"}


@dataclass(frozen=True)
class Evidence:
    """What is known of one defended configuration.

    Args:
        label: What to call it.
        best: Access -> the strongest attack of that access and its attack accuracy.
        gaps: (weaker, stronger access) -> the weaker one's best minus the stronger one's best, paired over identities.
        side_effects: Of its targets, as their metrics.json has them; one for each seed.
    """

    label: str
    best: Mapping[str, tuple[str, Interval]]
    gaps: Mapping[tuple[str, str], Interval]
    side_effects: tuple[Mapping[str, Any], ...] = ()


class Finding(NamedTuple):
    """What a check found."""

    check: str
    label: str
    text: str


def weaker_access_wins(one: Evidence) -> str | None:
    """An attacker who may ask for less reconstructs more than one who may ask for everything.

    Whoever holds the weights can do all that others can. Where the stronger access looks safer, its attacks failed for
    a reason of their own: masked gradients, a saturated softmax, too few steps. Believe the weaker access's number.
    """
    for (weak, strong), gap in one.gaps.items():
        if RANK[weak] < RANK[strong] and gap.low > 0:
            better, worse = one.best[weak], one.best[strong]
            return (
                f"{WORDS[weak]} {better[0]} reaches {100 * better[1].value:.1f}%, {WORDS[strong]} {worse[0]} only "
                f"{100 * worse[1].value:.1f}% (paired difference {100 * gap.value:+.1f} [{100 * gap.low:+.0f},"
                f"{100 * gap.high:+.0f}]): its gradients may be masked"
            )
    return None


def gradients_vanish(one: Evidence) -> str | None:
    """For too many images the loss of another identity has no gradient at all.

    An attack by gradients then never starts, which says nothing about what the target knows. Attack the logits
    (objective=max_margin), or with scores or labels only.
    """
    shares = [
        found["vanishing"]
        for effects in one.side_effects
        for found in [effects.get("gradient_norm", {}).get("cross_entropy", {})] if "vanishing" in found
    ]  # fmt: skip
    if shares and max(shares) > VANISHED:
        return f"cross-entropy has no gradient at {100 * max(shares):.0f}% of held-out images"
    return None


def not_probabilities(one: Evidence) -> str | None:
    """The scores that the target serves are negative, not finite, or do not sum to 1.

    Black-box attacks take them for probabilities, and fail on anything else for no good reason.
    """
    errors = [effects["served_sum_error"] for effects in one.side_effects if "served_sum_error" in effects]
    wrong = [error for error in errors if not error <= TOLERANCE]  # NaN too
    return f"the served scores are off 1 by up to {max(wrong):.3g}" if wrong else None


CHECKS = {check.__name__: check for check in (weaker_access_wins, gradients_vanish, not_probabilities)}


def check(evidence: list[Evidence]) -> list[Finding]:
    """Everything that any check has to say."""
    return [
        Finding(name, one.label, text)
        for one in evidence
        for name, found in CHECKS.items()
        if (text := found(one)) is not None
    ]
