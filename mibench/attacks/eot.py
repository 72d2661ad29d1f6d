"""The adaptive attacker: whatever the target's defense did to training images is part of the attack.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye, Carlini and Wagner, ICML 2018)
    | https://arxiv.org/abs/1802.00420
    | Synthesizing Robust Adversarial Examples (Athalye, Engstrom, Ilyas and Kwok, ICML 2018)
    | https://arxiv.org/abs/1707.07397
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Int64
from torch import Tensor

from mibench.attacks.parts.views import Either, Viewed, viewed_cost
from mibench.core import AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, Wrapper
from mibench.runtime.errors import UserError
from mibench.runtime.rng import seed_of

__all__ = ["EOT"]

CARD = {
    "summary": "adaptive attacker: the target's own training transform inside the attack's loss and selection",
    "title": "Obfuscated Gradients Give a False Sense of Security",
    "authors": "Athalye, Carlini and Wagner",
    "venue": "ICML",
    "year": 2018,
    "link": "https://arxiv.org/abs/1802.00420",
    "access": "white_box",
    "prior": None,
    "role": "wrapper",
    "cost": None,
    "wraps": "gradients",
}

# randomization/robustml_attack.py of anishathalye/obfuscated-gradients at commit 9ef8b37: sample_size 30
PRESETS = {"paper": {"copies": 30}, "quick": {"copies": 4}}


@dataclass(frozen=True)
class EOT(Wrapper):
    """min_z E_t loss(T(t(G(z)))), t the training transform of the target's defenses; selection by E_t p_y(t(x)).

    A target that was trained on erased images is asked about erased images, so the attack's loss is the one that the
    training minimised. Where no defense transforms images the views are equal, and only a head that is random in
    training (`mid`) answers them differently: then this is the average over several draws of its noise.

    Args:
        copies: Draws of the transform for each image and step, all in one pass; each is a query of its own, so that
            everything costs `copies` times as much.
        select: Average scores (a pool's, a final selection's) over the transform too, see `Viewed`. False asks for
            scores of whole images as the attack alone does.
        combine: mean, the expectation; or larger: the target is asked about each image as it is *and* about its copies,
            and the smaller loss (the larger score) counts, so that images may be sure either way, see `Either`. It
            costs `copies` + 1 times as much.
        assumed: The defense that the attacker takes the target's to be, `re a_e=0.4`, whatever it is: a wrong guess or,
            on an undefended target, the control that says what averaging is worth by itself. Empty: the target's own.
        head: In losses a head that was random in training (`mid`) draws its noise anew for each copy. False asks the
            head as it is served; nothing else has such a head.

    Source: the second paper's objective, E over t ~ T inside the loss; the first paper's use of it against randomness,
    with 30 draws a step in its authors' code, https://github.com/anishathalye/obfuscated-gradients.
    """

    copies: int = 30
    select: bool = True
    combine: Literal["mean", "larger"] = "mean"
    head: bool = True
    assumed: str = ""

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise UserError(f"eot: copies must be at least 1, got {self.copies}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """The attack's, times the images shown for one."""
        return viewed_cost(self.wrapped.cost(prior, public), self._shown, self.select)

    @property
    def _shown(self) -> int:
        return self.copies + (self.combine == "larger")

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Run the attack against the target seen through the transform."""
        layer = Either if self.combine == "larger" else Viewed
        view = work.assumed(self.assumed) if self.assumed else work.transform
        viewed = layer(oracle, seed_of(seed, "eot"), view, self.copies, self.select, self.head)
        return self.wrapped(viewed, prior, labels, seed, replace(work, batch=max(1, work.batch // self._shown)))
