"""An evaluation model as evaluation needs it: its network, what it answers to the private images, and its threshold."""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench import models
from mibench.core import Dataset
from mibench.evaluation.judgement import Answers, PrivateAnswers, Reference, reference
from mibench.evaluation.likeness import calibrate, strangers
from mibench.evaluation.records import EvaluatorFacts
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.knn import leave_one_out
from mibench.metrics.prdc import K, Manifold, manifold
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.stats.intervals import Interval, proportion
from mibench.training import predict

__all__ = ["EvaluationModel", "accuracy", "answers", "as_trained", "private_answers", "real_to_real"]

KEPT = 4
"""Sets of attacked people whose private features an evaluation model keeps ready."""


def answers(
    label: str, network: Classifier, images: UInt8[Tensor, "n c h w"], engine: Engine
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
    """Logits and features of stored images, refused where they are no numbers.

    Args:
        label: What to call the network.
        network: On the engine's device.
        images: As they are stored.
        engine: Where it runs, in which precision.

    Raises:
        UserError: If the network answers NaN or infinity.
    """
    logits, features = predict(network, images, engine)
    if not (logits.isfinite().all() and features.isfinite().all()):
        raise UserError(
            f"{label} answers {images.shape[0]} images with NaN or infinity in {engine.precision}, so that nothing "
            "can be scored; try --precision fp32, else train it again with --force and a lower training.lr"
        )
    return logits, features


def as_trained(network: Classifier, engine: Engine) -> Classifier:
    """A copy on the engine's device with its batch norms, as training measured it: the same bits, not just nearly."""
    placed: Classifier = engine.place(copy.deepcopy(network).eval())  # type: ignore[assignment]
    return placed


def private_answers(network: Classifier, data: Dataset, engine: Engine) -> PrivateAnswers:
    """A network's answers to all private images, on the engine's device."""
    train, heldout = (
        Answers(*predict(network, split.images, engine), split.labels) for split in (data.train, data.heldout)
    )
    return PrivateAnswers(train, heldout)


def stranger_answers(network: Classifier, data: Dataset, engine: Engine) -> Answers:
    """A placed network's answers to images of strangers, labelled -1, on the CPU."""
    images = strangers(data).images
    logits, features = predict(network, images, engine)
    return Answers(logits.cpu(), features.cpu(), torch.full((len(images),), -1))


def accuracy(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], classes: int) -> Interval:
    """Top-1 among the first `classes` logits, with its 95% interval clustered by identity."""
    labels = labels.to(logits.device)
    return proportion(top_k(closed_set(logits, classes), labels, 1), labels)


def real_to_real(features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> float | None:
    """Mean squared distance of a private image to the nearest other one of its person; null if nobody has two."""
    several = torch.bincount(labels)[labels] > 1
    if not several.any():
        return None
    labels = labels[several].to(features.device)
    return float(leave_one_out(features[several.to(features.device)], labels).mean())


@dataclass(frozen=True, eq=False)
class EvaluationModel:
    """A classifier that judges reconstructions; attack and target have never seen it.

    Args:
        name: What its columns are called: `open_top1@name`.
        network: Folded, on the engine's device; logits over the private people first, then over others.
        family: Of its architecture; not the target's.
        private: Its answers to the private images, on the CPU.
        strangers: Its answers to images of strangers, labelled -1, on the CPU.
        facts: Its accuracy, what else it knows, its threshold.
        label: What errors call it.
        run: Id of the run that trained it; '' where it is none of mibench's.
        seed: It was trained with; None where that is not known.
    """

    name: str
    network: Classifier = field(repr=False)
    family: str
    private: PrivateAnswers = field(repr=False)
    strangers: Answers = field(repr=False)
    facts: EvaluatorFacts
    label: str
    run: str = ""
    seed: int | None = None
    _references: dict[Any, Reference] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        network: Classifier,
        data: Dataset,
        engine: Engine,
        family: str | None = None,
        run: str = "",
        seed: int | None = None,
    ) -> "EvaluationModel":
        """An evaluation model from a trained classifier: whatever evaluation needs is measured on the data.

        Args:
            name: What its columns are called; an architecture of mibench, unless `family` is given.
            network: Trained on the private training images; its logits are the people of data.classes in their order,
                then, so that it can answer 'someone else', other people. Not changed.
            data: The target's data set.
            engine: Where it runs.
            family: Of its architecture.
            run: Id of the run that trained it, for the protocol card.
            seed: It was trained with, for the protocol card.

        Raises:
            UserError: If there are no held-out images, the network knows fewer classes than the data, or `name` is no
                architecture and no family is given.
        """
        if len(data.heldout) == 0:
            raise UserError(f"data set '{data.name}' has no held-out images; an evaluation model cannot be measured")
        train, heldout = private_answers(as_trained(network, engine), data, engine)
        known, classes = heldout.logits.shape[1], len(data.classes)
        if known < classes:
            raise UserError(
                f"evaluation model {name} knows {known} classes, '{data.name}' has {classes} private people; its "
                "logits must cover these first, in the order of data.classes, and may go on with other people"
            )
        placed: Classifier = engine.place(fold(network))  # type: ignore[assignment]
        stored = PrivateAnswers(Answers(*(part.cpu() for part in train)), Answers(*(part.cpu() for part in heldout)))
        others = stranger_answers(placed, data, engine)
        facts = EvaluatorFacts(
            heldout_accuracy=accuracy(heldout.logits, heldout.labels, classes),
            heldout_accuracy_open=accuracy(heldout.logits, heldout.labels, known),
            distractors=known - classes,
            distractors_are_public=data.distractors_are_public,
            knn_real_to_real=real_to_real(train.features, train.labels),
            calibration=calibrate(others.logits, data),
        )
        label = f"evaluation model {name}"
        return cls(name, placed, family or models.family(name), stored, others, facts, label, run, seed)

    @cached_property
    def balls(self) -> tuple[Manifold, Int64[Tensor, " m"]]:
        """The private training images with the radii of their balls, and who is in them."""
        train = self.private.train
        return manifold(train.features, min(K, len(train.features) - 1)), train.labels

    def reference(self, identities: tuple[int, ...], place: torch.device) -> Reference:
        """Its view of some people's private training images; kept, since attack after attack is compared with it."""
        key = identities, place
        if key not in self._references:
            while len(self._references) >= KEPT:
                self._references.pop(next(iter(self._references)))
            own = self.private.train.of(torch.tensor(identities))
            self._references[key] = reference(own.features.to(place))
        return self._references[key]

    @property
    def card(self) -> dict[str, Any]:
        """What the protocol card says of it."""
        return {"model": self.name, "run": self.run, "seed": self.seed}
