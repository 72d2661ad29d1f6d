"""Answers on disk, and what they say: the catch trials first, then how often reconstructions passed for the person.

    results/judge/<inversion>/answers.json      {"inversion": id, "answers": {rater: {question: answer}}}

Every answer is written at once, whole or not at all, by one process at a time, so that a judge can stop and go on
whenever he likes. The file names questions only; what they were about is drawn again from the seed.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mibench.human_study.questions import ANSWERS, Question
from mibench.runs import Run
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import write_json
from mibench.stats.intervals import proportion

__all__ = ["Answers", "lines", "summary"]


class Answers:
    """The answers about one inversion.

    Args:
        inversion: What is judged.
    """

    def __init__(self, inversion: Run) -> None:
        self.inversion = inversion
        self.folder = inversion.root / "judge" / f"{inversion.name}-{inversion.id}"
        self.path = self.folder / "answers.json"

    def read(self) -> dict[str, dict[str, str]]:
        """Rater -> question -> answer.

        Raises:
            UserError: If the file is damaged or about another inversion.
        """
        if not self.path.exists():
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            whole = stored["inversion"] == self.inversion.id and all(
                answer in ANSWERS for own in stored["answers"].values() for answer in own.values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"cannot read {self.path}: {error}; mend it, or move it away to begin anew") from None
        if not whole:
            raise UserError(f"{self.path} is not about {self.inversion.label}; move it away to begin anew")
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
            if answer not in ANSWERS:
                raise unknown("answer", answer, ANSWERS)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self.read()
                known[rater] = {**known.get(rater, {}), **given}
                write_json(self.path, {"answers": known, "inversion": self.inversion.id})
                return len(known[rater])
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot write {self.path}: {why}; make room or free the folder") from None


def _rate(hits: Sequence[bool], labels: Sequence[int]) -> dict[str, Any] | None:
    if not hits:
        return None
    return proportion(torch.tensor(hits), torch.tensor(labels))._asdict()


def summary(questions: Sequence[Question], given: Mapping[str, str]) -> dict[str, Any]:
    """What one rater's answers amount to; null where nothing was answered.

    Returns:
        answered; elsewhere (answers to none of these questions, of another seed); reconstructions, same, other: of each
        the share called the same person and the share of 'unsure', with 95% intervals, clustered by claimed person;
        catch_accuracy: catch trials answered rightly, where 'unsure' is wrong.
    """
    done = [question for question in questions if question.id in given]
    result: dict[str, Any] = {"answered": len(done), "elsewhere": len(given) - len(done)}
    for name, kind in (("reconstructions", "reconstruction"), ("same", "same"), ("other", "other")):
        own = [question for question in done if question.kind == kind]
        said = [given[question.id] for question in own]
        labels = [question.label for question in own]
        result[name] = {
            "called_same": _rate([answer == "same" for answer in said], labels),
            "unsure": _rate([answer == "unsure" for answer in said], labels),
        }
    catch = [question for question in done if question.kind != "reconstruction"]
    right = [given[question.id] == {"same": "same", "other": "different"}[question.kind] for question in catch]
    result["catch_accuracy"] = _rate(right, [question.label for question in catch])
    return result


def lines(rater: str, result: Mapping[str, Any]) -> list[str]:
    """A summary in words."""

    def rate(one: Mapping[str, Any] | None) -> str:
        if one is None:
            return "not asked yet"
        return f"{100 * one['value']:.1f}% [{100 * one['low']:.0f}, {100 * one['high']:.0f}] of {one['n']}"

    text = [
        f"{rater}: {result['answered']} answered"
        + (f", {result['elsewhere']} more with another --seed" if result["elsewhere"] else ""),
        f"  reconstructions taken for the person   {rate(result['reconstructions']['called_same'])}",
        f"  real images of the same person         {rate(result['same']['called_same'])}",
        f"  real images of another person          {rate(result['other']['called_same'])}",
        f"  catch trials answered rightly          {rate(result['catch_accuracy'])}",
    ]
    catch = result["catch_accuracy"]
    if catch is not None and catch["low"] <= 0.5:
        text.append("  ! not clearly better than guessing on the catch trials: do not trust the first number")
    return text
