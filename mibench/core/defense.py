"""A change to how a target is trained or served: hooks on the one training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mibench.core.data import Dataset, Split
from mibench.runtime.engine import Engine
from mibench.runtime.rng import Noise

__all__ = ["Batch", "Defense", "Schedule", "Step", "Transform", "shown_by"]

Transform = Callable[[Float[Tensor, "n c h w"], Noise], Float[Tensor, "n c h w"]]
"""One random view of each image, differentiable; the noise has one stream for each image."""


@dataclass(frozen=True)
class Batch:
    """Rows the loop trains on: its loss is sum_i w_i CE(p_i, t_i) / clean.

    The first `clean` rows are the batch's own images, in order; what defenses add stands behind them.
    """

    x: Float[Tensor, "b c h w"]
    t: Float[Tensor, "b k"]
    w: Float[Tensor, " b"]
    clean: int
    passes: tuple[int, ...] = ()
    """Where further forward passes begin, ascending: batch normalisation sees the rows of each pass apart. Empty: all
    rows go through the network at once."""


@dataclass(frozen=True)
class Step:
    """Where the training is, for the hooks of one defense."""

    model: nn.Module
    """The network in training, on the device; never wrapped."""
    memory: nn.Module
    """What `Defense.memory` made; an empty module if it made nothing."""
    optimizer: torch.optim.Optimizer
    noise: Noise
    """The defense's own, keyed by each image's place in the training split; anew for each epoch and hook."""
    epoch: int
    """From 0; equals `epochs` when the training is over."""
    epochs: int
    engine: Engine

    @property
    def time(self) -> float:
        """The share of the training that is over at the start of the epoch, in [0, 1]."""
        return self.epoch / self.epochs


@dataclass(frozen=True)
class Schedule:
    """How a training will go, for a defense that must know beforehand (differential privacy's accountant)."""

    images: int
    per_epoch: int
    """Batches that hold every image once."""
    epochs: int
    seed: int
    share: float = 1.0
    """Of these batches that are shown; the others of an epoch are left out."""
    before: int = 0
    """Epochs of the shorter trainings on the same images that this one replaces."""

    @property
    def rate(self) -> float:
        """How likely an image is in a batch."""
        return 1.0 / self.per_epoch

    @property
    def shown(self) -> int:
        """Steps an epoch: at least one."""
        return max(1, int(self.share * self.per_epoch))

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epochs * self.shown

    @property
    def looks(self) -> int:
        """Steps on these images in all: of this training and of those that it replaces."""
        return (self.before + self.epochs) * self.shown


@dataclass(frozen=True)
class Defense:
    """A change to how the target is trained or served: hooks on the one training loop, all optional.

    Hooks are called in the order in which defenses are stacked (`re+bido`). Each defense draws from a noise of its own,
    so adding one never shifts another's randomness, and a defense at zero strength leaves every bit unchanged.

    A defense is its settings and nothing else. What changes while it trains lies in the model (`surgery`), which the
    attacker gets, or in its `memory`, which he does not; both are kept in checkpoints and with the trained target.
    """

    sampling: ClassVar[Literal["shuffle", "poisson"]] = "shuffle"
    """How batches are drawn: every image once an epoch, or each with probability `Schedule.rate` (private training)."""
    start: ClassVar[Literal["any", "public"]] = "any"
    """'public': it needs a network that public images have trained (`--pretrained public`)."""

    def surgery(self, model: nn.Module) -> nn.Module:
        """The architecture, changed after weights load and before the optimiser is built.

        New layers draw from torch's global generator, which the caller seeds. Called on the meta device too, before
        anything is trained, to learn whether the defense can change this architecture at all.

        Raises:
            UserError: If it cannot; names what the architecture lacks and one that has it.
        """
        return model

    def rows(self, train: Split, public: Split, memory: nn.Module, noise: Noise) -> Split:
        """The training images and labels, changed once before the training: relabelled rows, rows of public people.

        Own images stay in front and in order. On the CPU, and again when a training is resumed: it depends on its
        arguments alone, and may note in the memory what it did. Evaluation models never see these rows.

        Args:
            train: What the target would be trained on; its labels count the classes.
            public: The attacker's images; none where the caller has none.
            memory: What `memory` made.
            noise: Keyed by each image's place in `train`, the same for the whole run.
        """
        return train

    def exposure(self) -> float:
        """Share of the shuffled batches of each epoch that the loop trains on, in (0, 1]; less makes fewer steps."""
        return 1.0

    def fp32(self) -> bool:
        """Whether bf16 would round away what it does, so that its targets are trained in float32 whatever is asked."""
        return False

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module | None:
        """Tensors of the defense's own (triggers, a discriminator), drawn from torch's seeded global generator."""
        return None

    def wrap(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What runs the forward pass and what takes the steps, wrapped; at most one defense of a stack may do so.

        Whatever wraps the model must leave its parameters in place: the model itself is what is kept.
        """
        return model, optimizer

    def epoch(self, step: Step) -> None:
        """The clock, called after `model.train()` at the start of each epoch; must not rely on earlier calls."""

    def before(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Training images before the base augmentation, which then crops, mirrors and recolours what this does.

        Pixels in [0, 1]; noise as for `transform`.
        """
        return x

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Training images after the base augmentation, in [0, 1].

        The noise is keyed by each image's place in the training split; `noise.fixed()` is the same in every epoch.
        """
        return x

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Rows, dense targets and weights: smoothing, mixing, triggers, adversarial rows.

        An inner optimisation uses torch.autograd.grad, so that it leaves no gradient in the model, and leaves buffers
        and train or eval flags as they were.
        """
        return batch

    def taps(self, model: nn.Module) -> Sequence[nn.Module]:
        """Modules whose outputs `penalty` wants to see."""
        return ()

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """A scalar added to the loss, or None; taps may be bf16."""
        return None

    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """Called once after training, with the rows it was trained on: undo what `wrap` did, fill the memory.

        Returns what to report (epsilon)."""
        return {}

    def report(
        self, memory: nn.Module, data: Dataset, answers: Callable[[UInt8[Tensor, "n c h w"]], Float[Tensor, "n k"]]
    ) -> dict[str, float]:
        """What else to report of the served target, beside what `finish` returns.

        Args:
            memory: As the training left it.
            data: Held-out and public images included.
            answers: Images to served logits.
        """
        return {}

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """What is served, and so what is attacked and whose natural accuracy counts."""
        return model


def shown_by(defenses: Sequence[Defense]) -> Transform:
    """What defenses do to the training images, without the base augmentation between `before` and `transform`."""

    def transform(x: Tensor, noise: Noise) -> Tensor:
        for hook in ("before", "transform"):
            for place, defense in enumerate(defenses):
                x = getattr(defense, hook)(x, noise.of(place))
        return x

    return transform
