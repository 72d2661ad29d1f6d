"""Trap-MID: every class gets a hidden trigger, and a search for the class ends at the trigger instead of the person.

References:
    | Trap-MID: Trapdoor-based Defense against Model Inversion Attacks (Liu and Chen, NeurIPS 2024)
    | https://arxiv.org/abs/2411.08460
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Batch, Defense, Split, Step, augment
from mibench.defenses.parts.adversary import calm
from mibench.models import cnn
from mibench.runtime.engine import at_once
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["TrapMID", "Traps", "balanced_classes", "turned"]

CARD = {
    "summary": "Trap-MID: a learnt, hardly visible trigger per class as a decoy for inversion",
    "title": "Trap-MID: Trapdoor-based Defense against Model Inversion Attacks",
    "authors": "Liu and Chen",
    "venue": "NeurIPS",
    "year": 2024,
    "link": "https://arxiv.org/abs/2411.08460",
    "strength": "beta",
    "grid": [0.02, 0.05, 0.1, 0.2],
    "adaptive": {"+untrap alpha={alpha}": "estimates the triggers on public images and looks past them"},
    "zero": {"beta": 0.0},
}

PRESETS = {"paper": {"alpha": 0.02, "beta": 0.2, "step": 0.01, "lr": 0.01, "turn": True}}
"""config/celeba/classify_trap.json at commit 3d59377 of https://github.com/ntuaislab/Trap-MID (VGG-16, 64 pixels)."""

MOMENTUM, DECAY = 0.9, 1e-4
"""Of the discriminator's SGD, as in that file."""


class Traps(nn.Module):
    """What Trap-MID learns besides the target: triggers, the discriminator that keeps them unseen, its momentum.

    All of it is in the state dict, so that a resumed training goes on with the same bits.
    """

    triggers: Float[Tensor, "k c h w"]

    def __init__(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("triggers", torch.rand(classes, *image_shape))
        self.discriminator = cnn.build("cnn", 1, image_shape)
        for place, parameter in enumerate(self.discriminator.parameters()):
            self.register_buffer(f"momentum{place}", torch.zeros_like(parameter))

    def inject(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], alpha: float) -> Float[Tensor, "n c h w"]:
        """(1 - alpha) x + alpha tau_y."""
        return (1.0 - alpha) * x + alpha * self.triggers[y]

    def discriminate(self, x: Float[Tensor, "n c h w"], trapped: Float[Tensor, "n c h w"], lr: float) -> None:
        """One step of SGD (momentum .9, decay 1e-4) on the mean of BCE(D(x), 1) and BCE(D(trapped), 0), in one pass."""
        self.discriminator.train()
        own, other = self.discriminator(torch.cat([x, trapped])).split(len(x))
        parameters = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(torch.cat([F.softplus(-own), F.softplus(other)]).mean(), parameters)
        with torch.no_grad():
            for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                momentum = self.get_buffer(f"momentum{place}")
                parameter.sub_(lr * momentum.mul_(MOMENTUM).add_(gradient + DECAY * parameter))


def balanced_classes(noise: Noise, classes: int) -> Int64[Tensor, " n"]:
    """One class per image, such that each run of `classes` neighbours in the training split gets each class once.

    Keyed by the image's place alone, so that the batches of an epoch agree without knowing of each other.
    """
    block = Noise(noise.seed, noise.keys // classes, noise.purpose)
    order = block.uniform(classes).argsort(dim=1, stable=True)
    return order.gather(1, (noise.keys % classes)[:, None])[:, 0]


def turned(x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
    """Each with a coin of its own: a crop of area .8-1, the mirror image, a turn by up to 30 degrees.

    Source: `aug_list` of the authors' engine.py. Differs: one resampling for all three, and what a turn brings in from
    outside is the image's edge, not black.
    """
    u = noise.uniform(7)
    side = torch.where(u[:, 0] < 0.5, (0.8 + 0.2 * u[:, 1]).sqrt(), 1.0)
    angle = torch.where(u[:, 5] < 0.5, math.radians(30.0) * (2.0 * u[:, 6] - 1.0), 0.0)
    return augment.crop(x, side, side, u[:, 2], u[:, 3], (u[:, 4] < 0.5).to(x.dtype), angle)


@dataclass(frozen=True)
class TrapMID(Defense):
    """Adds rows (x', y'), x' = (1 - alpha) x + alpha tau_{y'}; loss = (1 - beta) CE(f(x), y) + beta CE(f(x'), y').

    y' goes through all classes evenly in each epoch, whatever y is. Each step, before the rows are made: the
    discriminator D learns to tell x from x'; then tau <- clip(tau - step sign grad, 0, 1) of
    BCE(D(x'), 1) + CE(f(x'), y'), f and D in eval mode. So triggers work and look like nothing. With `turn` the network
    sees x and x' cropped, mirrored and turned after the trigger has come in, so that a trigger works wherever an attack
    that crops at every step may move it; D never does.

    Args:
        alpha: How much of an image is trigger, in (0, 1].
        beta: Weight of the trapped rows; that of the images is 1 - beta. 0 makes no traps.
        step: Size of a trigger's step, in pixel units of [0, 1].
        lr: Learning rate of the discriminator.
        turn: Crop, mirror and turn (`turned`) what the network sees, also where a mirror image is no image of the class
            (as the authors do with digits). On CUDA the gradient of a turned trigger is summed in no fixed order, so
            that the same seed need not give the same bits.

    Source: section 3 of the paper; alpha, beta, step, the discriminator's SGD and `turn` as in the authors' code for 64
    pixels.
    Differs: the base augmentation (and erasing, with `re`), which the authors' code has not, comes before the trigger;
    the discriminator is the `cnn` of mibench, where theirs has the target's architecture and ImageNet weights.
    """

    alpha: float = 0.02
    beta: float = 0.2
    step: float = 0.01
    lr: float = 0.01
    turn: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or not 0 <= self.beta < 1:
            raise UserError(f"trap: alpha must lie in (0, 1] and beta in [0, 1), got {self.alpha} and {self.beta}")
        if not 0 <= self.step <= 1 or not 0 <= self.lr < float("inf"):
            raise UserError(f"trap: step must lie in [0, 1] and lr be finite and >= 0, got {self.step} and {self.lr}")

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module | None:
        """Triggers ~ U[0, 1] and a new discriminator; nothing without traps."""
        return Traps(classes, image_shape) if self.beta else None

    def batch(self, batch: Batch, step: Step) -> Batch:
        """One trapped row for each of the batch's own images; the row weights still sum to n."""
        traps = step.memory
        if not isinstance(traps, Traps):
            return batch
        x, own = batch.x[: batch.clean], batch.w[: batch.clean]
        y = balanced_classes(step.noise.of("class"), len(traps.triggers))
        traps.discriminate(x, traps.inject(x, y, self.alpha), self.lr)
        self._improve(traps, x, y, step)
        trapped = self._seen(traps.inject(x, y, self.alpha), step, "trapped view")
        return replace(
            batch,
            x=torch.cat([self._seen(x, step, "clean view"), batch.x[batch.clean :], trapped]),
            t=torch.cat([batch.t, F.one_hot(y, batch.t.shape[1]).to(batch.t.dtype)]),
            w=torch.cat([(1.0 - self.beta) * own, batch.w[batch.clean :], self.beta * own]),
        )

    def _seen(self, x: Float[Tensor, "n c h w"], step: Step, view: str) -> Float[Tensor, "n c h w"]:
        return turned(x, step.noise.of(view)) if self.turn else x

    def _improve(self, traps: Traps, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], step: Step) -> None:
        """One sign step of the triggers that the batch uses."""
        own = traps.triggers[y].requires_grad_()
        with calm(step.model), calm(traps.discriminator):
            trapped = (1.0 - self.alpha) * x + self.alpha * own
            with step.engine.autocast():
                logits = step.model(self._seen(trapped, step, "trigger view"))
            seen = F.softplus(-traps.discriminator(trapped)).sum()
            (gradient,) = torch.autograd.grad(seen + F.cross_entropy(logits.float(), y, reduction="sum"), own)
        # Images with one trigger share its gradient. A matrix product, because scattered additions round differently
        # on every run; and all rows of a class take the first one's sum, so that it does not matter who writes last.
        same = (y[:, None] == y).to(gradient.dtype)
        total = (same @ gradient.flatten(1))[same.argmax(dim=1)].reshape(gradient.shape)
        traps.triggers[y] = (own.detach() - self.step * total.sign()).clamp(0.0, 1.0)

    @torch.no_grad()
    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """`trap_success`: the share of training images that are taken for the class whose trigger they carry."""
        traps = step.memory
        if not isinstance(traps, Traps):
            return {}
        y = balanced_classes(step.noise.of("class"), len(traps.triggers))
        caught = torch.zeros((), device=y.device)
        for rows in torch.arange(len(y), device=y.device).split(at_once(256, train.images.shape, y.device)):
            with calm(step.model), step.engine.autocast():
                x = traps.inject(step.engine.images(train.images[rows.to(train.images.device)]), y[rows], self.alpha)
                caught += (step.model(x).argmax(dim=1) == y[rows]).sum()
        return {"trap_success": float(caught) / len(y)}
