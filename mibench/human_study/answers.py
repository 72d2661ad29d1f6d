"""Answers on disk, and what they say: the catch trials first, then how often reconstructions passed for the person.

    results/judge/<inversion>/answers.json          {"answers": {rater: {question: answer}}, "form", "inversion": id}
    results/judge/<inversion>/answers-panel.json    the same of the published form

Every answer is written at once, whole or not at all, by one process at a time, so that a judge can stop and go on
whenever he likes. The file names questions only; what they were about is drawn again from the seed.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mibench.human_study.forms import PAIR, Form
from mibench.human_study.questions import Question
from mibench.human_study.verdicts import false_positives
from mibench.runs import Run
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import open_lock, read_text, write_json
from mibench.stats.intervals import proportion

__all__ = ["Answers", "lines", "summary"]


class Answers:
    """The answers about one inversion in one form.

    Args:
        inversion: What is judged.
        form: How it is asked about.
    """

    def __init__(self, inversion: Run, form: Form = PAIR) -> None:
        self.inversion = inversion
        self.form = form
        self.folder = inversion.root / "judge" / f"{inversion.name}-{inversion.id}"
        self.path = self.folder / ("answers.json" if form is PAIR else f"answers-{form.name}.json")

    def read(self) -> dict[str, dict[str, str]]:
        """Rater -> question -> answer.

        Raises:
            UserError: If the file is damaged, of another form or about another inversion.
        """
        if not self.path.exists():
            return {}
        try:
            stored = json.loads(read_text(self.path))
            answers = [answer for own in stored["answers"].values() for answer in own.values()]
            whole = (
                stored["inversion"] == self.inversion.id
                and stored.get("form", PAIR.name) == self.form.name  # the first release knew no other
                and all(answer in self.form.answers for answer in answers)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"cannot read {self.path}: {error}; mend it, or move it away to begin anew") from None
        if not whole:
            raise UserError(
                f"{self.path} is not about {self.inversion.label} in the form {self.form.name}; "
                "move it away to begin anew"
            )
        return dict(stored["answers"])

    def of(self, rater: str) -> dict[str, str]:
        """One rater's answers."""
        return self.read().get(rater, {})

    def record(self, rater: str, given: Mapping[str, str]) -> int:
        """Add or change answers; returns how many the rater has given.

        Raises:
            UserError: For an answer that is none, or a folder that cannot be written.
        """
        for answer in given.values():
            if answer not in self.form.answers:
                raise unknown("answer", answer, self.form.answers)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open_lock(self.folder / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self.read()
                known[rater] = {**known.get(rater, {}), **given}
                stored = {"answers": known, "form": self.form.name, "inversion": self.inversion.id}
                write_json(self.path, stored)
                return len(known[rater])
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot write {self.path}: {why}; make room or free the folder") from None


def _rate(hits: Sequence[bool], labels: Sequence[int]) -> dict[str, Any] | None:
    if not hits:
        return None
    return proportion(torch.tensor(hits), torch.tensor(labels))._asdict()


def summary(
    questions: Sequence[Question], given: Mapping[str, str], verdicts: Mapping[str, Bool[Tensor, " n"]] | None = None
) -> dict[str, Any]:
    """What one rater's answers amount to; null where nothing was answered.

    Args:
        questions: All of one form.
        given: Question -> answer.
        verdicts: What networks said of the reconstructions, as `verdicts.verdicts` gives it.

    Returns:
        form; answered; elsewhere (answers to none of these questions, of another seed); reconstructions, same, other:
        of each the share called the same person and the share of 'unsure' (null if the form has no such answer), with
        95% intervals, clustered by claimed person; catch_accuracy: catch trials answered rightly, where 'unsure' is
        wrong; false_positives: of each verdict, see `verdicts.false_positives`.
    """
    form = questions[0].form
    done = [question for question in questions if question.id in given]
    result: dict[str, Any] = {"form": form.name, "answered": len(done), "elsewhere": len(given) - len(done)}
    for name, kind in (("reconstructions", "reconstruction"), ("same", "same"), ("other", "other")):
        own = [question for question in done if question.kind == kind]
        said = [given[question.id] for question in own]
        labels = [question.label for question in own]
        neither = [answer not in (form.yes, form.no) for answer in said]
        result[name] = {
            "called_same": _rate([answer == form.yes for answer in said], labels),
            "unsure": _rate(neither, labels) if len(form.answers) > 2 else None,
        }
    catch = [question for question in done if question.kind != "reconstruction"]
    right = [given[question.id] == (form.yes if question.kind == "same" else form.no) for question in catch]
    result["catch_accuracy"] = _rate(right, [question.label for question in catch])
    result["false_positives"] = {
        name: false_positives(questions, given, hits) for name, hits in (verdicts or {}).items()
    }
    return result


def _words(one: Mapping[str, Any] | None, otherwise: str) -> str:
    if one is None:
        return otherwise
    return f"{100 * one['value']:.1f}% [{100 * one['low']:.0f}, {100 * one['high']:.0f}] of {one['n']}"


def lines(rater: str, result: Mapping[str, Any]) -> list[str]:
    """A summary in words."""

    def rate(one: Mapping[str, Any] | None) -> str:
        return _words(one, "not asked yet")

    text = [
        f"{rater}{'' if result['form'] == PAIR.name else ', ' + result['form']}: {result['answered']} answered"
        + (f", {result['elsewhere']} more with another --seed" if result["elsewhere"] else ""),
        f"  reconstructions taken for the person   {rate(result['reconstructions']['called_same'])}",
        f"  real images of the same person         {rate(result['same']['called_same'])}",
        f"  real images of another person          {rate(result['other']['called_same'])}",
        f"  catch trials answered rightly          {rate(result['catch_accuracy'])}",
    ]
    catch = result["catch_accuracy"]
    if catch is not None and catch["low"] <= 0.5:
        text.append(
            "  ! not clearly better than guessing on the catch trials: do not trust what is said of reconstructions"
        )
    against = {name: one for name, one in result["false_positives"].items() if one is not None}
    if against:
        wide = max(map(len, against))
        text.append("  the networks' false positives (FP), if the judge is right")
        text.append(f"    {'':{wide}}  {'FP/(FP+TN), of what he rejects':32}FP/(TP+FP), of the hits")
        text += [
            f"    {name:{wide}}  {_words(one['false_positive_rate'], 'he rejects none'):32}"
            f"{_words(one['false_discovery_rate'], 'no hits')}"
            for name, one in against.items()
        ]
    return text
