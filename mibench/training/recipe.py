"""The recipe a network is trained with."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.core import augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise
from mibench.training.muon import Muon, hidden_weights

__all__ = ["Training"]


WARM = 0.1
"""Share of the training in which `linear` rises."""


LATER = ("augmentation",)
"""Settings that came after the first networks were shelved."""


@dataclass(frozen=True)
class Training:
    """The recipe a target or evaluation model is trained with; every defense inherits it unchanged.

    Args:
        epochs: Passes over the private images, of the first training.
        batch: Images a step.
        lr: Highest learning rate.
        weight_decay: Decoupled for muon and adamw, L2 otherwise.
        optimizer: muon (matrices; adamw for the rest), adamw, adam, sgd (Nesterov momentum .9) or momentum (SGD with
            plain momentum .9).
        schedule: onecycle (rise, then cosine), linear (rise, then linear fall), steps (x .1 at the milestones) or
            constant.
        milestones: Fractions of the epochs at which `steps` divides the rate by ten.
        augment: Whether images are augmented at all.
        augmentation: base (see `augment.base`), ppa (the same with hue jitter, as Plug & Play's) or flip (mirror images
            alone, as KEDMI's).
        doublings: How often a target that has not converged is trained again for twice as long (see `converge`); it is
            then trained for at most epochs x 2^doublings.
        least_steps: More passes are made where the images are so few that `epochs` gives fewer steps than this.
    """

    epochs: int = 20
    batch: int = 48
    lr: float = 3e-3
    weight_decay: float = 0.05
    optimizer: Literal["muon", "adamw", "adam", "sgd", "momentum"] = "adamw"
    schedule: Literal["onecycle", "linear", "steps", "constant"] = "onecycle"
    milestones: tuple[float, ...] = (0.75, 0.9)
    augment: bool = True
    least_steps: int = 0
    doublings: int = 0
    augmentation: Literal["base", "ppa", "flip"] = "base"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise UserError(
                f"training needs epochs >= 1 and batch >= 2 (batch normalisation), got {self.epochs} and {self.batch}"
            )
        if self.lr == 0:
            raise UserError("training: lr must be above 0")
        if self.doublings < 0:
            raise UserError(f"training: doublings must be at least 0, got {self.doublings}")

    def spec(self) -> dict[str, Any]:
        """The settings as a specification has them. Those that came after the first networks were shelved stand there
        only where they are not the defaults, so that what an older run is called does not change."""
        whole, usual = asdict(self), Training()
        return {key: value for key, value in whole.items() if key not in LATER or value != getattr(usual, key)}

    def for_images(self, count: int) -> "Training":
        """The recipe with the epochs that so many images need."""
        return replace(self, epochs=max(self.epochs, math.ceil(self.least_steps / self.steps_per_epoch(count))))

    def steps_per_epoch(self, count: int) -> int:
        """Batches a pass: of at least two images, because batch normalisation has nothing to say about one."""
        return max(1, min(math.ceil(count / self.batch), count // 2))

    def optimizer_for(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over the parameters that learn."""
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer == "muon":
            matrices = hidden_weights(model)
            taken = set(matrices)
            return Muon(matrices, [one for one in learning if one not in taken], self.lr, self.weight_decay)
        if self.optimizer in ("sgd", "momentum"):
            nesterov = self.optimizer == "sgd"
            return torch.optim.SGD(
                learning, lr=self.lr, momentum=0.9, nesterov=nesterov, weight_decay=self.weight_decay
            )
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(learning, lr=self.lr, weight_decay=self.weight_decay)

    def augmented(self, x: Float[Tensor, "n c h w"], noise: Noise, mirror: bool) -> Float[Tensor, "n c h w"]:
        """Images as the network sees them in an epoch, before its defenses change them.

        Args:
            x: Images in [0, 1].
            noise: Of this epoch, a row an image.
            mirror: A mirrored image still shows the same class.
        """
        if not self.augment:
            return x
        if self.augmentation == "flip":
            return augment.flip(x, noise.of("flip")) if mirror else x
        x = augment.base(x, noise, mirror)
        return augment.hue(x, noise.of("hue"), 0.1) if self.augmentation == "ppa" else x

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step: a function of time alone, so that nothing needs saving.

        onecycle: linear rise over the first quarter, then cosine fall to 0. linear: linear rise over the first tenth,
        then linear fall to 0. Differs: torch's OneCycleLR also cycles
        the momentum.
        """
        done = step / steps
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "linear":
            return self.lr * min((step + 1) / (WARM * steps), (1.0 - done) / (1.0 - WARM), 1.0)
        if self.schedule == "steps":
            return self.lr * 0.1 ** sum(done >= mark for mark in self.milestones)
        rise = 0.25
        if done < rise:
            return self.lr * (0.04 + 0.96 * done / rise)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (done - rise) / (1.0 - rise)))
