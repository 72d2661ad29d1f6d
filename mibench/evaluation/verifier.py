"""A verifier: an independent matcher, with the templates of the private people and the thresholds it accepts at.

Its network was trained on people who play no other part (`mibench.stages.train_verifier`), or is a published face
recogniser (`mibench.evaluation.faces`), of whose people that cannot be known.

Thresholds come from two kinds of impostor claims, in which no reconstruction takes part: images of strangers
(`likeness.strangers`), each claiming to be every private person; and the private people's held-out images, each
claiming to be every other private person. The higher of the two thresholds counts, so that neither kind passes more
often than stated. Genuine images are the held-out ones, each compared with the person's *other* held-out images.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from mibench.core import Dataset
from mibench.evaluation.absent import means, without
from mibench.evaluation.faces import Framing, Recogniser
from mibench.evaluation.likeness import strangers
from mibench.evaluation.model import answers
from mibench.evaluation.records import ImpostorClaims, Verification, VerifierFacts
from mibench.metrics.false_positives import threshold
from mibench.metrics.verification import RATES, accepted, area_under_roc, claims, similarity, templates, without_own
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.stats.intervals import clustered_interval

__all__ = ["FEWEST", "ROC_RATES", "Verifier", "lacking"]

FEWEST = 20
"""People from whom a verifier may be learnt, and whom it may verify: with fewer, .1% of the claims is less than one."""

ROC_RATES = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def lacking(people: int, data: Dataset) -> str | None:
    """Why data cannot be judged by a verifier that so many people taught; None where they can.

    Args:
        people: How many it was trained on.
        data: The target's data set.
    """
    classes = len(data.classes)
    if people < FEWEST or classes < FEWEST:
        few, what = (people, "people to learn from") if people < FEWEST else (classes, "private people to verify")
        return f"a verifier needs at least {FEWEST} {what}; '{data.name}' has {few}"
    counts = torch.bincount(data.heldout.labels, minlength=classes)
    if int(counts.min()) < 2:
        alone = data.classes[int(counts.argmin())]
        return (
            f"a verifier compares a person's held-out images with one another; {alone} of '{data.name}' has "
            f"{int(counts.min())}: give every person at least 2"
        )
    if not len(strangers(data)):
        return f"a verifier's threshold needs images of strangers; '{data.name}' has no public images"
    return None


@dataclass(frozen=True, eq=False)
class Verifier:
    """A matcher that judges whether an image shows the person it claims to show.

    Args:
        name: What its columns are called: `verified@name`.
        network: Folded, on the engine's device; only its features count.
        family: Of its architecture; not the target's.
        template: Mean direction of each private person's held-out images, on the CPU.
        facts: Its thresholds and how well it tells real people apart.
        heldout: Values of the real held-out images by metric, as if they were reconstructions: the ceiling.
        owners: Who is in these.
        run: Id of the run that trained it; '' where it is none of mibench's.
        seed: It was trained with.
        framing: How faces are aligned for it; None: it takes the images as they are.
    """

    name: str
    network: Classifier = field(repr=False)
    family: str
    template: Float64[Tensor, "k d"] = field(repr=False)
    facts: VerifierFacts
    heldout: dict[str, Tensor] = field(repr=False)
    owners: Int64[Tensor, " h"] = field(repr=False)
    run: str = ""
    seed: int | None = None
    framing: Framing | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        network: Classifier,
        people: int,
        data: Dataset,
        engine: Engine,
        family: str,
        run: str = "",
        seed: int | None = None,
        trained_on: str = "",
        framing: Framing | None = None,
    ) -> "Verifier":
        """A verifier from a network that was trained on other people.

        Args:
            name: What its columns are called.
            network: Any classifier of theirs; not changed.
            people: How many people it was trained on.
            data: The target's data set.
            engine: Where it runs.
            family: Of its architecture.
            run: Id of the run that trained it, for the protocol card.
            seed: It was trained with, for the protocol card.
            trained_on: Who the people are whom it learnt, in words.
            framing: How it wants faces aligned, where it is a face recogniser; the usual place of faces is taken from
                the real held-out images here.

        Raises:
            UserError: Fewer than 20 people on either side, people without two held-out images, no strangers, or no
                faces in the real images of a face recogniser.
        """
        if (reason := lacking(people, data)) is not None:
            raise UserError(reason)
        classes, others = len(data.classes), strangers(data)
        label = f"verifier {name}"
        placed: Classifier = engine.place(fold(network))  # type: ignore[assignment]
        framing = framing and framing.fitted(data.heldout.images)
        owners = data.heldout.labels
        real, seen = _features(label, placed, framing, data.heldout.images, engine)
        unknown, _ = _features(label, placed, framing, others.images, engine)
        template = templates(real, owners, classes)
        between = claims(real, template)[owners[:, None] != torch.arange(classes)]
        impostors = {"strangers": claims(unknown, template).flatten(), "others": between}
        thresholds = {metric: max(threshold(own, rate) for own in impostors.values()) for metric, rate in RATES.items()}
        genuine = without_own(real, owners)
        every = torch.cat(list(impostors.values()))
        best = {metric: accepted(genuine, limit) for metric, limit in thresholds.items()} | {"similarity": genuine}
        best |= {} if seen is None else {"face_found": seen}
        facts = VerifierFacts(
            people,
            trained_on,
            thresholds,
            {
                kind: ImpostorClaims(
                    len(unknown) if kind == "strangers" else len(real),
                    len(own),
                    {metric: float((own > limit).double().mean()) for metric, limit in thresholds.items()},
                )
                for kind, own in impostors.items()
            },
            {metric: clustered_interval(values, owners) for metric, values in best.items()},
            area_under_roc(genuine, every),
            tuple((rate, float((genuine > threshold(every, rate)).double().mean())) for rate in ROC_RATES),
        )
        return cls(name, placed, family, template, facts, best, owners, run, seed, framing)

    @classmethod
    def published(cls, one: Recogniser, data: Dataset, engine: Engine) -> "Verifier":
        """A verifier from a published face recogniser.

        Args:
            one: Of `mibench.evaluation.faces.RECOGNISERS`.
            data: The target's data set, photographs of faces.
            engine: Where it runs.

        Raises:
            UserError: As `of`; or if its file is missing, damaged or not the published one.
        """
        network, framing = one.network(data.image_shape[0]), one.framing_on(engine)
        return cls.of(one.name, network, one.people, data, engine, one.name, trained_on=one.trained_on, framing=framing)

    def judge(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        engine: Engine,
        absent: Bool[Tensor, " n"] | None = None,
    ) -> Verification:
        """Whether each image is accepted as the person it claims to show.

        Args:
            images: As stored.
            labels: Whom they claim to show.
            engine: Where the verifier runs.
            absent: Rows without an image (`evaluation.absent`).

        Raises:
            UserError: If the network answers NaN or infinity.
        """
        features, seen = _features(f"verifier {self.name}", self.network, self.framing, images, engine)
        near = similarity(features, labels, self.template)
        columns = {metric: accepted(near, limit) for metric, limit in self.facts.thresholds.items()}
        columns["similarity"] = near
        columns |= {} if seen is None else {"face_found": seen}
        columns = without(columns, absent)
        return Verification(means(columns, labels), columns)

    @property
    def card(self) -> dict[str, Any]:
        """What the protocol card says of it."""
        return {
            "model": self.name,
            "run": self.run,
            "seed": self.seed,
            "people": self.facts.people,
            "trained_on": self.facts.trained_on,
        }


def _features(
    label: str, network: Classifier, framing: Framing | None, images: UInt8[Tensor, "n c h w"], engine: Engine
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"] | None]:
    """Features on the CPU, and in which images a face was found; None where faces are not aligned."""
    if framing is None:
        return answers(label, network, images, engine)[1].cpu(), None
    features, seen = [], []
    for part in images.split(256):  # aligned faces are large: never all of them at once
        faces, found = framing(part)
        features.append(answers(label, network, faces, engine)[1].cpu())
        seen.append(found)
    return torch.cat(features), torch.cat(seen)
