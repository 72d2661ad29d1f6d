"""Students that an attacker teaches to answer like the target: extra models to invert, at no further queries.

S minimises CE(softmax T(x), S(x)) = KL(softmax T(x) | softmax S(x)) + H(softmax T(x)) on images the target answered
once; one-hot answers make it the cross-entropy of hard labels.

References:
    | Distilling the Knowledge in a Neural Network (Hinton, Vinyals and Dean, 2015)
    | https://arxiv.org/abs/1503.02531
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., CVPR 2023), model augmentation
    | https://arxiv.org/abs/2304.01669
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.core import AttackContext, Oracle, to_float
from mibench.core.steps import Generators, Held
from mibench.models.base import Classifier, Prepare
from mibench.models.fold import fold
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, generator, seed_of

__all__ = [
    "Augment",
    "Distillation",
    "build_surrogates",
    "distil",
    "restore",
    "soft_cross_entropy",
    "train_surrogates",
    "weights",
]

Augment = Callable[[Tensor, Noise], Tensor]
"""A batch of images and a noise with one stream per image to their augmented copies."""

SMALLEST = 16
"""Pixels a side that every architecture takes."""


@dataclass(frozen=True)
class Distillation:
    """How a student is taught: SGD on soft answers.

    Args:
        lr: The first learning rate.
        momentum: Of SGD, not Nesterov.
        weight_decay: L2.
        batch: Images a step.
        epochs: Passes over the images.
        schedule: step (x gamma every `step_epochs` epochs) or cosine (to 0 at the end), changed once an epoch.
        step_epochs: See `schedule`.
        gamma: See `schedule`.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 64
    epochs: int = 20
    schedule: Literal["step", "cosine"] = "step"
    step_epochs: int = 20
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if self.batch < 2 or self.step_epochs < 1:
            raise UserError(
                f"teaching needs a batch of at least 2 and step_epochs of at least 1, got {self.batch} and "
                f"{self.step_epochs}"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: torch's StepLR and CosineAnnealingLR in closed form."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))
        return self.lr * self.gamma ** (epoch // self.step_epochs)


def build_surrogates(
    architectures: tuple[str, ...],
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    pretrained: bool = False,
) -> list[Classifier]:
    """Untaught students on the CPU; their weights depend on the seed, the place and the name only.

    Images of less than 16 pixels a side are enlarged first, because no architecture takes them.

    Raises:
        UserError: For an architecture that does not exist, or ImageNet weights that cannot be had.
    """
    channels, height, width = image_shape
    side = max(SMALLEST, height, width)
    small = min(height, width) < SMALLEST
    students = []
    for place, name in enumerate(architectures):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, "pupil", place, name))
            model = models.build(name, num_classes, (channels, side, side) if small else image_shape, pretrained)
        if small:
            enlarge = Prepare(image_shape, [0.0], [1.0], side)
            model = Classifier(enlarge, nn.Sequential(model.prepare, model.trunk), model.head, model.feature_dim)
        students.append(model)
    return students


def soft_cross_entropy(logits: Float[Tensor, "n k"], answers: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """-sum_k a_k log softmax(l)_k: KL(a | softmax(l)) plus the entropy of a, one value per row."""
    return -(answers * F.log_softmax(logits.float(), dim=1)).sum(dim=1)


def distil(
    student: Classifier,
    images: UInt8[Tensor, "n c h w"],
    answers: Float[Tensor, "n k"],
    lesson: Distillation,
    seed: int,
    augment: Augment | None = None,
    work: AttackContext | None = None,
) -> None:
    """Train the student in place, on the answers' device; it comes back frozen and in eval mode.

    With `augment` the loss is CE(x) / 2 + CE(augment(x)) / 2, each with batch statistics of its own, as in LOKT's code
    (commit b751417 of https://github.com/ngoc-nguyen-0/LOKT_neurips2023).

    Args:
        student: What learns.
        images: As stored.
        answers: The target's softmax, or one-hot labels.
        lesson: The recipe.
        seed: Decides the order of the images, dropout and augmentation.
        augment: See above; None is the plain loss.
        work: Where a killed training goes on; None is nowhere.

    Raises:
        UserError: If there are fewer than two images, or the loss stops being finite.
    """
    if len(images) < 2:
        raise UserError(f"a student learns from at least 2 images, got {len(images)}")
    device = answers.device
    student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    student.train().requires_grad_(True)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=lesson.lr, momentum=lesson.momentum, weight_decay=lesson.weight_decay
    )
    # Nearly equal batches of at least two images: batch normalisation has nothing to say about one.
    per_epoch = max(1, min(math.ceil(len(images) / lesson.batch), len(images) // 2))
    held, total = Held(fine=torch.ones((), dtype=torch.bool, device=device)), lesson.epochs * per_epoch
    batches: Sequence[Tensor] = ()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed_of(seed, "dropout"))
        states = (held, student, optimizer, Generators())
        for step in range(total) if work is None else work.steps(total, *states):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not batches:
                order = torch.randperm(len(images), generator=generator(seed, "order", epoch)).to(device)
                batches = order.tensor_split(per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lesson.rate(epoch)
            index = batches[place]
            x = to_float(images[index.to(images.device)].to(device)).contiguous(memory_format=torch.channels_last)
            wanted = answers[index]
            loss = soft_cross_entropy(student(x), wanted).mean()
            if augment is not None:
                seen = augment(x, Noise(seed_of(seed, "augment"), index).of(epoch))
                loss = (loss + soft_cross_entropy(student(seen), wanted).mean()) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            held.fine = held.fine & loss.detach().isfinite()
    student.zero_grad(set_to_none=True)
    student.eval().requires_grad_(False)
    if not bool(held.fine):
        raise UserError(f"a student's loss stopped being finite (lr {lesson.lr}); lower the students' learning rate")


def weights(student: Classifier) -> dict[str, Tensor]:
    """A copy of the student's weights and statistics by name: what `AttackContext.once` keeps."""
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def restore(student: Classifier, kept: Mapping[str, Tensor], device: torch.device) -> Classifier:
    """A frozen copy of the student with kept weights, batch norms folded away: what an inversion differentiates."""
    student.load_state_dict(dict(kept))
    return fold(student.to(device))


def train_surrogates(
    name: str,
    architectures: tuple[str, ...],
    images: UInt8[Tensor, "n c h w"],
    answers: Float[Tensor, "n k"],
    lesson: Distillation,
    seed: int,
    oracle: Oracle,
    work: AttackContext,
    augment: Augment | None = None,
    pretrained: bool = False,
) -> list[Classifier]:
    """Students of these architectures, each taught and kept under `name`, ready to invert; asks the target nothing.

    Raises:
        UserError: See `build_surrogates` and `distil`.
    """
    _, channels, height, width = images.shape
    students = build_surrogates(architectures, answers.shape[1], (channels, height, width), seed, pretrained)

    def taught(place: int) -> dict[str, Tensor]:
        distil(students[place], images, answers, lesson, seed_of(seed, "student", place), augment, work)
        return weights(students[place])

    return [
        restore(student, work.once(f"{name}-student-{place}", oracle, partial(taught, place)), answers.device)
        for place, student in enumerate(students)
    ]
