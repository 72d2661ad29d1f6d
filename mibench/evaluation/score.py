"""What an evaluation finds, as a type: every mean with its interval, n and the values of each image.

`to_json` and `per_image` give the files scores.json and per_image.csv; their keys and columns are the names under which
metrics declare themselves (`mibench.metrics`), `name@model` in the table of images.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mibench.evaluation import protocol
from mibench.evaluation.records import (
    Agreement,
    Columns,
    Distances,
    EvaluatorFacts,
    Judgement,
    TargetAnswers,
    Verification,
    VerifierFacts,
    interval_of,
)
from mibench.metrics import Unavailable, Unit
from mibench.runtime import escape
from mibench.runtime.display import Shown
from mibench.runtime.errors import UserError
from mibench.stats.intervals import Interval

__all__ = ["Score"]


@dataclass(frozen=True)
class Score(Shown):
    """Everything that one evaluation found.

    Args:
        n: How many images.
        identities: How many people they claim to show.
        classes: How many people the target knows.
        natural_accuracy: Of the target, on unseen private images.
        target: What the target itself says.
        evaluators: What each evaluation model says, the headline first.
        facts: What is known of each evaluation model.
        ceiling: What each says of real held-out images of the same people.
        chance: What guessing gives, by column.
        agreement: Of every two evaluation models of different families, `resnet+ir`.
        likeness: The headline: named by the first evaluation model, open-set, and let through by the gate.
        likeness_ceiling: The same of real held-out images of the same people.
        gate: What has to agree with the evaluation model: `verified@name`, or `own_ball@name` without a verifier.
        verifiers: What each verifier says, the headline's first.
        verifier_facts: What is known of each verifier.
        both_verified: Accepted by the first two verifiers, of different families; None with fewer.
        truth: Means of what the data themselves know of the images (`metrics.latent`); empty where they do not.
        perceptual: Means of metrics that judge with published networks.
        inception: Distances in Inception's features; None without its weights.
        unavailable: Metrics that could not be computed here.
        pixels: sha256 of the pixels that were judged.
        card: The protocol card.
        images: Values of each image that belong to no evaluation model, `label` first.
        copies: How many images are a private image, byte by byte; 0 in older files, which did not count.
        missing: Names of the people of whom the attack returned no image; they count as misses.
    """

    n: int
    identities: int
    classes: int
    natural_accuracy: Interval
    target: TargetAnswers
    evaluators: Mapping[str, Judgement]
    facts: Mapping[str, EvaluatorFacts]
    ceiling: Mapping[str, Judgement]
    chance: Mapping[str, float]
    agreement: Mapping[str, Agreement]
    likeness: Interval
    likeness_ceiling: Interval
    gate: str
    verifiers: Mapping[str, Verification]
    verifier_facts: Mapping[str, VerifierFacts]
    both_verified: Interval | None
    truth: Mapping[str, Interval]
    perceptual: Mapping[str, Interval]
    inception: Distances | None
    unavailable: tuple[Unavailable, ...]
    pixels: str
    card: Mapping[str, Any] = field(repr=False)
    images: Columns = field(default_factory=dict, repr=False, compare=False)
    copies: int = 0
    missing: tuple[str, ...] = ()

    @property
    def headline(self) -> Interval:
        """Likeness: an evaluation model names the person *and* an independent gate agrees."""
        return self.likeness

    def summary(self) -> dict[str, str]:
        """What a terminal and a notebook show: rates in % with their intervals."""
        show = Unit.SHARE.interval
        failed = f"; {len(self.missing)} failed, no image: {', '.join(self.missing)}" if self.missing else ""
        shown = {
            "images": f"{self.n} of {self.identities} identities{failed}",
            "natural accuracy, %": show(*self.natural_accuracy[:3]),
            f"likeness (gate {self.gate}), %": show(*self.likeness[:3]),
            "likeness of real held-out images, %": show(*self.likeness_ceiling[:3]),
            "the target agrees, %": show(*self.target.top1[:3]),
        }
        for name, judged in self.evaluators.items():
            shown[f"{name} agrees (open-set), %"] = show(*judged.means["open_top1"][:3])
            shown[f"{name}, real held-out images, %"] = show(*self.ceiling[name].means["open_top1"][:3])
        for name, verified in self.verifiers.items():
            shown[f"verifier {name} accepts at FAR 1%, %"] = show(*verified.means["verified"][:3])
            shown[f"verifier {name} was trained on"] = self.verifier_facts[name].trained_on
            if "face_found" in verified.means:
                seen = verified.means["face_found"]
                shown[f"faces found for {name} (others judged as faces usually lie), %"] = show(*seen[:3])
        return shown

    def mean(self, column: str) -> Interval:
        """A mean with its interval by its column, such as `open_top1@resnet` or `lpips`.

        Raises:
            UserError: If this score has no such column.
        """
        name, _, at = column.partition("@")
        if not at:
            own = {"natural_accuracy": self.natural_accuracy, "target_top1": self.target.top1}
            own |= {"likeness": self.likeness, "target_confidence": self.target.confidence}
            own |= {} if self.both_verified is None else {"both_verified": self.both_verified}
            known = own | {**self.perceptual, **self.truth}
        else:
            known = dict(self.evaluators[at].means) if at in self.evaluators else {}
            known |= self.verifiers[at].means if at in self.verifiers else {}
            known |= {"both": self.agreement[at].both} if at in self.agreement else {}
        if name not in known:
            columns = [
                "likeness",
                *self.perceptual,
                *(f"{key}@{at}" for at, one in self.evaluators.items() for key in one.means),
            ]
            raise UserError(f"this score has no mean '{column}'; it has, among others: {', '.join(columns)}")
        return known[name]

    def to_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        perceptual: dict[str, Any] = {name: mean.as_json() for name, mean in self.perceptual.items()}
        if self.inception is not None:
            perceptual["inception"] = self.inception.to_json()
        return {
            "agreement": {name: {"both": one.both.as_json()} for name, one in self.agreement.items()},
            "both_verified": self.both_verified and self.both_verified.as_json(),
            "card": dict(self.card),
            "card_hash": protocol.digest(self.card),
            "ceiling": {name: one.to_json() for name, one in self.ceiling.items()},
            "chance": dict(self.chance),
            "classes": self.classes,
            "copies": self.copies,
            "evaluators": {name: one.to_json() | self.facts[name].to_json() for name, one in self.evaluators.items()},
            "gate": self.gate,
            "identities": self.identities,
            "likeness": self.likeness.as_json(),
            "likeness_ceiling": self.likeness_ceiling.as_json(),
            **({"missing": list(self.missing)} if self.missing else {}),
            "n": self.n,
            "natural_accuracy": self.natural_accuracy.as_json(),
            "perceptual": perceptual,
            "pixels": self.pixels,
            "target": self.target._asdict()
            | {"top1": self.target.top1.as_json(), "confidence": self.target.confidence.as_json()},
            "truth": {name: mean.as_json() for name, mean in self.truth.items()},
            "unavailable": [vars(one) for one in self.unavailable],
            "verifiers": {
                name: {metric: mean.as_json() for metric, mean in one.means.items()}
                | {"facts": self.verifier_facts[name].to_json()}
                for name, one in self.verifiers.items()
            },
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Score":
        """The inverse of `to_json`, without the values of each image; evaluation models in the card's order.

        Raises:
            KeyError, TypeError: If it is no score.
        """
        card = saved.get("card", {})
        order = [one["model"] for one in card.get("evaluators", [])] or sorted(saved["evaluators"])
        judged, target = {name: saved["evaluators"][name] for name in order}, saved["target"]
        sets, verifiers = dict(saved["perceptual"]), saved["verifiers"]
        checkers = [one["model"] for one in card.get("verifiers", [])] or sorted(verifiers)
        inception = sets.pop("inception", None)
        return cls(
            saved["n"],
            saved["identities"],
            saved["classes"],
            interval_of(saved["natural_accuracy"]),
            TargetAnswers(
                interval_of(target["top1"]),
                interval_of(target["confidence"]),
                target["passes"],
                target["answer_difference"],
            ),
            {name: Judgement.from_json(one) for name, one in judged.items()},
            {name: EvaluatorFacts.from_json(one) for name, one in judged.items()},
            {name: Judgement.from_json(saved["ceiling"][name]) for name in order},
            saved["chance"],
            {name: Agreement(interval_of(one["both"])) for name, one in saved["agreement"].items()},
            interval_of(saved["likeness"]),
            interval_of(saved["likeness_ceiling"]),
            saved["gate"],
            {
                name: Verification({key: interval_of(one) for key, one in verifiers[name].items() if key != "facts"})
                for name in checkers
            },
            {name: VerifierFacts.from_json(verifiers[name]["facts"]) for name in checkers},
            interval_of(saved["both_verified"]) if saved["both_verified"] else None,
            {name: interval_of(one) for name, one in saved["truth"].items()},
            {name: interval_of(one) for name, one in sets.items()},
            None if inception is None else Distances.from_json(inception),
            tuple(Unavailable(**one) for one in saved["unavailable"]),
            saved.get("pixels", ""),
            card,
            copies=saved.get("copies", 0),
            missing=tuple(saved.get("missing", ())),
        )

    def per_image(self) -> dict[str, Tensor]:
        """Columns of per_image.csv: label, the target's answers, `name@model`, then the perceptual distances.

        Raises:
            UserError: If the score was read from a JSON file, which has no values of single images.
        """
        if not self.images:
            raise UserError("this score was read from scores.json, without its images; read per_image.csv beside it")
        own = {name: values for name, values in self.images.items() if name not in self.perceptual}
        for model, judged in self.evaluators.items():
            own |= {f"{name}@{model}": values for name, values in judged.images.items()}
        for model, verified in self.verifiers.items():
            own |= {f"{name}@{model}": values for name, values in verified.images.items()}
        return own | {name: self.images[name] for name in self.perceptual}

    def per_image_csv(self, classes: Sequence[str]) -> str:
        """The content of per_image.csv: one line per image; hits as 0 and 1, numbers with 6 digits.

        Args:
            classes: Names of the identities, by label.
        """
        table = self.per_image()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["identity", *table])
        for row in zip(*(values.tolist() for values in table.values()), strict=True):
            cells = [int(value) if isinstance(value, bool) else f"{value:.6g}" for value in row]
            writer.writerow([escape.csv(classes[int(row[0])]), *cells])
        return text.getvalue()
