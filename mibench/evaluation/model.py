"""An evaluation model as evaluation needs it: its network, what it answers to the private images, and its threshold."""

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
from mibench.evaluation.score import EvaluatorFacts
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.knn import leave_one_out
from mibench.metrics.prdc import K, Manifold, manifold
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.stats.intervals import Interval, proportion
from mibench.training import predict

__all__ = ["EvaluationModel", "accuracy", "answers", "private_answers", "real_to_real"]


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


def private_answers(network: Classifier, data: Dataset, engine: Engine) -> PrivateAnswers:
    """A network's answers to all private images, on the engine's device."""
    train, heldout = (
        Answers(*predict(network, split.images, engine), split.labels) for split in (data.train, data.heldout)
    )
    return PrivateAnswers(train, heldout)


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
            network: Of len(data.classes) + data.distractor_count classes, trained on the private training images and
                the distractors; not changed.
            data: The target's data set.
            engine: Where it runs.
            family: Of its architecture.
            run: Id of the run that trained it, for the protocol card.
            seed: It was trained with, for the protocol card.

        Raises:
            UserError: If there are no held-out images, or `name` is no architecture and no family is given.
        """
        if len(data.heldout) == 0:
            raise UserError(f"data set '{data.name}' has no held-out images; an evaluation model cannot be measured")
        placed = engine.place(network)
        private = private_answers(placed, data, engine)  # type: ignore[arg-type]
        return cls.from_answers(
            name, network, private, data, engine, family or models.family(name), f"evaluation model {name}", run, seed
        )

    @classmethod
    def from_answers(
        cls,
        name: str,
        network: Classifier,
        private: PrivateAnswers,
        data: Dataset,
        engine: Engine,
        family: str,
        label: str,
        run: str = "",
        seed: int | None = None,
    ) -> "EvaluationModel":
        """The same where its answers to the private images are known already."""
        train, heldout = private
        stored = PrivateAnswers(Answers(*(part.cpu() for part in train)), Answers(*(part.cpu() for part in heldout)))
        placed: Classifier = engine.place(fold(network))  # type: ignore[assignment]
        unknown = strangers(data)
        shown = predict(placed, unknown.images, engine) if len(unknown) else (heldout.logits[:0], heldout.features[:0])
        others = Answers(shown[0].cpu(), shown[1].cpu(), torch.full((len(unknown),), -1))
        classes = len(data.classes)
        facts = EvaluatorFacts(
            accuracy(heldout.logits, heldout.labels, classes),
            accuracy(heldout.logits, heldout.labels, heldout.logits.shape[1]),
            data.distractor_count,
            data.distractors_are_public,
            real_to_real(train.features, train.labels),
            calibrate(others.logits, data),
        )
        return cls(name, placed, family, stored, others, facts, label, run, seed)

    @cached_property
    def balls(self) -> tuple[Manifold, Int64[Tensor, " m"]]:
        """The private training images with the radii of their balls, and who is in them."""
        train = self.private.train
        return manifold(train.features, min(K, len(train.features) - 1)), train.labels

    def reference(self, identities: tuple[int, ...], place: torch.device) -> Reference:
        """Its view of some people's private training images; kept, since attack after attack is compared with it."""
        key = identities, place
        if key not in self._references:
            own = self.private.train.of(torch.tensor(identities))
            self._references[key] = reference(own.features.to(place))
        return self._references[key]

    @property
    def card(self) -> dict[str, Any]:
        """What the protocol card says of it."""
        return {"model": self.name, "run": self.run, "seed": self.seed}
