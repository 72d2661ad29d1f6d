"""Reading a server's JSON: scores, or labels, one answer an image."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mibench.runtime.errors import UserError

__all__ = ["Form", "Garbled", "Reformed", "read_answers"]

FIELDS = ("scores", "probabilities", "probs", "logits", "predictions", "outputs", "labels")
"""Where the answers may be, unless the user says."""

ROUNDED, OFF = 0.02, 0.05
"""How far sums of probabilities are from 1 where they are rounded, and from where on they are none."""

NAMES, SCORES = ("label", "class", "name"), ("score", "probability", "confidence")


class Garbled(Exception):
    """The answer cannot be read; asking again may help."""


class Reformed(Garbled):
    """The answer can be read, but is of another form than those before: the server was changed."""


@dataclass(frozen=True)
class Form:
    """The form of one answer, found on the first one and then demanded of all.

    Args:
        kind: `list` of scores, `named` scores, or a `label`.
        names: Of the classes; empty where scores or labels are numbers.
        count: How many scores an answer has; of numbered labels 0.
        sums: Whether the scores of each image are probabilities: none below 0, and they sum to 1.
    """

    kind: str
    names: tuple[str, ...]
    count: int
    sums: bool = False

    def to_text(self) -> str:
        """For the journal."""
        return json.dumps([self.kind, list(self.names), self.count, self.sums])

    @classmethod
    def from_text(cls, text: str) -> "Form":
        """The inverse."""
        kind, names, count, *sums = json.loads(text)
        return cls(kind, tuple(names), count, *sums)


def read_answers(
    body: bytes, images: int, path: str, form: Form | None, people: Sequence[str]
) -> tuple[list[list[float]], Form]:
    """Scores of every image, and the form they came in.

    Args:
        body: What the server sent.
        images: How many it was asked about.
        path: Where in the JSON the answers are; empty where that is to be found.
        form: Of the answers before; None at first.
        people: Names of the folder's people: what labels by name are counted by.

    Raises:
        Garbled: No JSON, not one answer an image, or something else than numbers.
        Reformed: Another form than before; also scores that sum to 1 no more.
        UserError: It is JSON of a form that nobody can read.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Garbled(f"no JSON ({str(error)[:60]}): {body[:60]!r}") from None
    listed = _at(told, path)
    if len(listed) != images:
        raise Garbled(f"{len(listed)} answers to {images} images")
    first = form or _form(listed[0], people)
    rows = [_scores(one, first) for one in listed]
    if form is None and first.kind != "label":
        first = replace(first, sums=all(_sums(row, ROUNDED) for row in rows))
    if first.sums and not all(_sums(row, OFF) for row in rows):
        odd = next(row for row in rows if not _sums(row, OFF))
        raise Reformed(f"scores that sum to {sum(odd):.3g} where they summed to 1 before: {str(odd[:3])[:60]}")
    return rows, first


def _sums(row: Sequence[float], tolerance: float) -> bool:
    return min(row) >= -tolerance and abs(sum(row) - 1) <= tolerance


def _at(told: Any, path: str) -> list[Any]:
    """The list of answers."""
    if path:
        for key in path.split("."):
            if not isinstance(told, Mapping) or key not in told:
                raise Garbled(f"no field '{path}'; it has {_keys(told)}")
            told = told[key]
    elif isinstance(told, Mapping):
        field = next((name for name in FIELDS if isinstance(told.get(name), list)), None)
        if field is None:
            raise Garbled(f"none of the fields {', '.join(FIELDS)}; it has {_keys(told)} (--set endpoint.answer=FIELD)")
        told = told[field]
    if not isinstance(told, list):
        raise Garbled(f"{type(told).__name__} where a list of answers should be")
    return told


def _keys(told: Any) -> str:
    return ", ".join(map(str, list(told)[:6])) if isinstance(told, Mapping) else type(told).__name__


def _form(one: Any, people: Sequence[str]) -> Form:
    """What the first answer is.

    Raises:
        UserError: Nothing that is known.
    """
    if isinstance(one, str) or (isinstance(one, Mapping) and _label(one) is not None and _score(one) is None):
        return Form("label", (*people, "(somebody else)"), len(people) + 1)
    if isinstance(one, int) and not isinstance(one, bool):
        return Form("label", (), 0)
    if isinstance(one, list) and one and all(isinstance(part, Mapping) for part in one):
        names = tuple(sorted(str(_label(part)) for part in one))
        return Form("named", names, len(names))
    if isinstance(one, Mapping) and one and all(_number(value) for value in one.values()):
        return Form("named", tuple(sorted(map(str, one))), len(one))
    if isinstance(one, list) and one and all(_number(value) for value in one):
        return Form("list", (), len(one))
    raise UserError(
        f"the server answers {str(one)[:80]!r} for an image; it should be a list of scores, scores by name, a list of "
        "{label, score}, a label's name or a label's number: put a small adapter before it (docs/audit.md)"
    )


def _scores(one: Any, form: Form) -> list[float]:
    """One answer as scores; a label is 1 among 0.

    Raises:
        Garbled: It is no finite number.
        Reformed: It is of another form.
    """
    if form.kind == "label":
        name = _label(one) if isinstance(one, Mapping) else one
        if form.names:
            if not isinstance(name, str):
                raise Reformed(f"{str(one)[:60]!r} where a label's name was before")
            place = form.names.index(name) if name in form.names else len(form.names) - 1
            return [float(place == other) for other in range(len(form.names))]
        if not isinstance(name, int) or isinstance(name, bool) or not 0 <= name < 1_000_000:
            raise Reformed(f"{str(one)[:60]!r} where a label's number was before")
        return [float(name)]
    if form.kind == "named":
        if isinstance(one, list) and all(isinstance(part, Mapping) for part in one):
            one = {str(_label(part)): _score(part) for part in one}
        if not isinstance(one, Mapping) or set(map(str, one)) != set(form.names):
            raise Reformed(f"scores of other classes than before: {str(one)[:60]!r}")
        values = [one[name] for name in form.names]
    else:
        if not isinstance(one, list) or len(one) != form.count:
            raise Reformed(f"{str(one)[:60]!r} where {form.count} scores were before")
        values = one
    if not all(_number(value) for value in values):
        raise Garbled(f"scores that are no finite numbers: {str(one)[:60]!r}")
    return [float(value) for value in values]


def _label(one: Mapping[str, Any]) -> Any:
    return next((one[key] for key in NAMES if key in one), None)


def _score(one: Mapping[str, Any]) -> Any:
    return next((one[key] for key in SCORES if key in one), None)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
