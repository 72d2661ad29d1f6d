"""What networks said of the images that a judge is asked about, and how often the judge rejects their hits.

The judge's answer is taken as the truth. Of the reconstructions he accepts or rejects, a network's verdict is a true or
false positive (TP, FP: the network takes the image for its person) or negative (TN, FN). Two rates are called
that of false positives, and differ:

- FP / (FP + TN), the *false positive rate*, which Ho et al. report: of the images that the judge rejects, the share
  that are hits.
- FP / (TP + FP), the *false discovery rate*: of the hits, the share that the judge rejects.

Differs:
    from Ho et al.: answers that do neither ('unsure') are left out and counted, where they count them as no.

References:
    | Revisiting Model Inversion Evaluation: From Misleading Standards to Reliable Privacy Assessment (Ho et al., 2025)
    | https://arxiv.org/abs/2505.03519
    | https://github.com/hosytuyen/MI-Eval-MLLM/blob/89010bc/analysis.ipynb
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mibench.human_study.questions import Question
from mibench.runs import Library, Run, unchanged
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text
from mibench.stats.intervals import proportion

__all__ = ["RULES", "false_positives", "verdicts"]

RULES = ("open_top1", "closed_top1")
"""Verdicts of an evaluation model: on open sets, and as papers have it, which Ho et al. re-examine."""


def _scores(inversion: Run) -> list[Run]:
    """The finished scores of an inversion; a run that cannot be read is another command's to name."""
    library = Library(inversion.root)
    scores = []
    for path in sorted(library.paths.values()):
        if path.parent.name == "scores":
            try:
                run = library.load(path)
            except UserError:
                continue
            if run.inversion.id == inversion.id:
                scores.append(run)
    return scores


def verdicts(inversion: Run) -> dict[str, Bool[Tensor, " n"]]:
    """`likeness` (the headline), `open_top1@resnet`, ... -> whether each reconstruction was taken for its person.

    In the order of the reconstructions; empty where they were not scored. Of two verdicts with one name, the second is
    called by the id of its score or evaluation model too.

    Raises:
        UserError: If the file of a score that says so was changed.
    """
    hits: dict[str, Bool[Tensor, " n"]] = {}
    names: dict[str, str] = {}
    for score in _scores(inversion):
        path = score.path / "per_image.csv"
        unchanged(path)
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        headline = f"likeness-{score.id}" if "likeness" in hits else "likeness"
        hits[headline] = torch.tensor([row["likeness"] == "1" for row in rows])
        for evaluator in score.evaluators:
            model = str(evaluator.spec["model"])
            if evaluator.id in names:
                continue
            names[evaluator.id] = f"{model}-{evaluator.id}" if model in names.values() else model
            for rule in RULES:
                hits[f"{rule}@{names[evaluator.id]}"] = torch.tensor([row[f"{rule}@{model}"] == "1" for row in rows])
    return hits


def false_positives(
    questions: Sequence[Question], given: Mapping[str, str], hits: Bool[Tensor, " n"]
) -> dict[str, Any] | None:
    """How a network's verdicts stand against a judge's answers; null where none says yes or no.

    Args:
        questions: Those about reconstructions count, the catch trials do not.
        given: Question -> answer.
        hits: The verdicts, one of those that `verdicts` gives.

    Returns:
        tp, fp, tn, fn: counts of images; undecided: images of which the judge said neither; false_positive_rate,
        FP / (FP + TN), and false_discovery_rate, FP / (TP + FP), with 95% intervals over identities, null where the
        denominator is zero. An interval's identities are those with an image in the denominator.
    """
    own = [one for one in questions if one.kind == "reconstruction" and one.id in given]
    decided = [one for one in own if given[one.id] in (one.form.yes, one.form.no)]
    if not decided:
        return None
    labels = torch.tensor([one.label for one in decided])
    accepted = torch.tensor([given[one.id] == one.form.yes for one in decided])
    hit = hits[torch.tensor([one.place for one in decided])]

    def share(of: Bool[Tensor, " k"], event: Bool[Tensor, " k"]) -> dict[str, Any] | None:
        return proportion(event[of], labels[of])._asdict() if bool(of.any()) else None

    return {
        "tp": int((hit & accepted).sum()),
        "fp": int((hit & ~accepted).sum()),
        "tn": int((~hit & ~accepted).sum()),
        "fn": int((~hit & accepted).sum()),
        "undecided": len(own) - len(decided),
        "false_positive_rate": share(~accepted, hit),
        "false_discovery_rate": share(hit, ~accepted),
    }
