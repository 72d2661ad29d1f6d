"""A finished score with the runs it builds on.

Scores are comparable only within one *protocol*: the same images, the same evaluation models, the same attacked
identities. Each result says which protocol it belongs to; a table never mixes two.
"""

import csv
import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from mibench.core import Access
from mibench.evaluation.protocol import digest
from mibench.evaluation.score import Score
from mibench.report import rows
from mibench.report.naming import card
from mibench.runs import Run, canonical, unchanged
from mibench.runtime.files import open_file, read_bytes
from mibench.stats.pairing import Hits

__all__ = ["TRACKS", "Result"]

VERDICTS = ("likeness", "open_top1", "own_ball", "verified")
"""Columns of per_image.csv of yes or no, alone or before an @."""

TRACKS = {
    "realistic": "a prior learnt on public images",
    "best case": "a prior that drew the private people",
    "shifted": "a prior of another domain",
    "no prior": "no image prior",
}
"""What a prior knows of the data -> the same in words; attacks of two tracks are no rivals."""


@dataclass(frozen=True)
class Result:
    """A whole score run with the runs it builds on.

    Args:
        run: The run that made it.
        score: What it found, without the values of single images.
        known: Parts of rows that belong to a target, by its id: the results of a folder share them.
    """

    run: Run
    score: Score
    known: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def inversion(self) -> Run:
        """What was scored."""
        return self.run.inversion

    @cached_property
    def target(self) -> Run:
        """What was attacked."""
        return self.inversion.target

    @cached_property
    def prior(self) -> Run | None:
        """Where the images come from; None where another program made them."""
        return self.inversion.prior

    @property
    def evaluators(self) -> list[Run]:
        """The evaluation models' runs; the first gives the headline."""
        return self.run.evaluators

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all pixels of the target's data set."""
        return str(self.target.read("metrics.json")["dataset_fingerprint"])

    @property
    def attack(self) -> str:
        """The attack's name; of another program's images what they are called."""
        attack = self.inversion.spec["attack"]
        return str(attack["name"] if self.prior else attack["settings"]["name"])

    @cached_property
    def role(self) -> str:
        """`attack` or `floor`."""
        return str(card("attacks", self.inversion.spec["attack"]["name"]).get("role", "attack"))

    @property
    def access(self) -> Access:
        """What the attacker was allowed to ask of the target."""
        return Access.of(self.inversion.spec["access"])

    @property
    def made_by(self) -> list[Mapping[str, Any]]:
        """How the images were made, as specifications; of another program's images only what they are called."""
        return [{"name": self.attack}] if self.prior is None else [self.inversion.spec, self.prior.spec]

    @cached_property
    def track(self) -> str:
        """One of TRACKS, by what the prior draws and what the target's data set is; empty where another program made
        the images, so that nobody knows."""
        if self.prior is None:
            return ""
        learnt, data = self.prior.spec["prior"]["name"], self.target.spec["dataset"]
        domain = card("priors", learnt).get("domain", "public")
        if domain == "none":
            return "no prior"
        if domain == "public":
            return "realistic" if self.prior.spec.get("dataset", data) == data else "shifted"
        return "best case" if domain == data["name"] else "shifted"

    @property
    def verifiers(self) -> list[Run]:
        """The verifiers' runs, the headline's first; none where the data have too few people."""
        return self.run.verifiers

    @property
    def names(self) -> list[str]:
        """The evaluation models' names, headline first."""
        return [run.spec["model"] for run in self.evaluators]

    @cached_property
    def protocol(self) -> str:
        """6 hex digits: the images, the evaluation models and who was attacked; rows that share them are comparable.

        Verifiers count as evaluation models do. Of the card, resolution, crop and reference images follow from the
        fingerprint of all pixels. Selection and budget are the attack's own, which its row shows.
        """
        key = [self.fingerprint, [run.id for run in self.evaluators], self.score.identities]
        key += [[run.id for run in self.verifiers]] if self.verifiers else []
        # Attacks of mibench take the first so many identities; a folder of images may be of any.
        others = self.score.card.get("split", {}).get("attacked")
        key += [others] if others is not None else []
        return hashlib.sha256(canonical(key).encode()).hexdigest()[:6]

    @cached_property
    def recipe(self) -> str:
        """What an undefended twin shares: everything but the defense."""
        target = {key: value for key, value in self.target.spec.items() if key != "defenses"}
        return canonical([target, *self.made_by])

    @property
    def judges(self) -> list[str]:
        """Columns of what may differ about a likeness: the headline's evaluation model, own-ball, the verifiers."""
        first = self.names[0]
        known = [f"open_top1@{first}", f"own_ball@{first}", *(f"verified@{name}" for name in self.score.verifiers)]
        return [column for column in known if column in self.verdicts]

    @cached_property
    def verdicts(self) -> dict[str, Hits]:
        """Column -> yes or no on each image, in the order in which the images were made: the headline `likeness` and
        what else each judge says."""
        people = torch.from_numpy(self.columns["label"])
        seeds = torch.full_like(people, int(self.target.spec["seed"]))
        return {
            name: Hits(people, torch.from_numpy(values != 0), seeds)
            for name, values in self.columns.items()
            if name.partition("@")[0] in VERDICTS
        }

    @property
    def columns(self) -> dict[str, Any]:
        """Every column of per_image.csv but `identity`, and `order`, which counts within an identity; `label`, `order`
        and verdicts are whole numbers, all others floats."""
        return self._read[1]

    @property
    def identities(self) -> tuple[str, ...]:
        """The column `identity` of per_image.csv."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        # Not by way of `per_image`: pandas takes ten times as long for a small file, and a report reads them all.
        path = self.run.path / "per_image.csv"
        content = read_bytes(path)
        unchanged(path, content, self.run.path)
        head, *lines = csv.reader(io.StringIO(content.decode(), newline=""))
        texts = dict(zip(head, zip(*lines, strict=True) if lines else [()] * len(head), strict=True))
        whole = {name for name in texts if name.partition("@")[0] in ("label", *VERDICTS)}
        read: dict[str, Any] = {
            name: np.array([*map(int, cells)], np.int64)
            if name in whole
            else np.array([*map(float, cells)], np.float64)
            for name, cells in texts.items()
            if name != "identity"
        }
        place = np.argsort(read["label"], kind="stable")
        grouped = read["label"][place]
        read["order"] = np.empty_like(place)
        read["order"][place] = np.arange(len(place)) - np.searchsorted(grouped, grouped)
        return tuple(map(sys.intern, texts["identity"])), read

    @cached_property
    def hits(self) -> Hits:
        """The headline's verdicts (likeness), in the order in which the images were made."""
        return self.verdicts["likeness"]

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all rows of a protocol have in common, as the beginning of a flat row."""
        return {"protocol": self.protocol} | rows.shared(self.target, self.score, self.fingerprint, self.names)

    @cached_property
    def row(self) -> dict[str, Any]:
        """The score as one flat row."""
        target = self.target
        if target.id not in self.known:
            self.known[target.id] = rows.target(target), rows.fit(target)
        about, fit = self.known[target.id]
        flat = self.shared | about
        flat |= rows.bounds("natural_accuracy", self.score.natural_accuracy) | fit
        flat |= {"attack": self.attack, "role": self.role} | rows.origin(self.inversion, self.prior)
        flat |= {"n": self.score.n} | rows.measured(self.score, self.names)
        flat |= rows.cost(self.inversion, self.prior)
        prior = self.prior.id if self.prior else ""
        card = digest(self.score.card) if self.score.card else ""
        return flat | {"inversion": self.inversion.id, "prior_run": prior, "card": card, "score": self.run.id}

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per reconstruction, in the order they were made; `order` counts within an identity."""
        with open_file(self.run.path / "per_image.csv") as file:
            table = pd.read_csv(file, dtype={"identity": str}, keep_default_na=False)
        for column in table.columns.drop("identity"):
            if not pd.api.types.is_numeric_dtype(table[column]):  # 'nan': of this person no image came back
                table[column] = table[column].map(float)
        table["label"] = table["label"].astype("int64")
        table["order"] = table.groupby("label").cumcount()
        return table
