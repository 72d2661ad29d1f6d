"""Which output is whom: the orders of classes that a model may have, and the naming that fits best."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["matching", "named", "orders"]


def orders(
    names: Sequence[str], count: int, inside: Sequence[str] = (), given: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Which output each person may be, by why; no order twice.

    Args:
        names: Of the people: folders, in alphabetical order.
        count: How many outputs the model has.
        inside: The names of the outputs in the model's file.
        given: The same, as the user says.

    Raises:
        UserError: Fewer outputs than people, names that are not those of the folder, or nothing that can be guessed.
    """
    if given is not None:
        return {"as --classes says": named(given, names, count, "--classes")}
    told: dict[str, tuple[int, ...]] = {}
    if inside and len(inside) == count and set(names) <= set(inside):
        told["by the names in the model's file"] = named(inside, names, count, "the model")
    if count < len(names):
        raise UserError(
            f"the model answers {count} numbers and the folder has {len(names)} people; an embedder needs --output "
            "embeddings, a classifier one class for each of them: remove the people it does not know"
        )
    if all(re.fullmatch(r"\d+", name) for name in names):
        numbers = [int(name) for name in names]
        if max(numbers) < count and len(set(numbers)) == len(numbers):
            told["folders that are called by the output's number"] = tuple(numbers)
        if min(numbers) >= 1 and max(numbers) <= count and len(set(numbers)) == len(numbers):
            told["folders that are called by the output's number, from 1"] = tuple(one - 1 for one in numbers)
    if count == len(names):
        told["folders in alphabetical order"] = tuple(range(count))
        for words, key in (("natural order (2 before 10)", _natural), ("order without regard to case", str.casefold)):
            ranked = sorted(names, key=key)
            told[f"folders in {words}"] = tuple(ranked.index(name) for name in names)
    if count == len(names) + 1:
        told["alphabetical order behind a background class"] = tuple(range(1, count))
        told["alphabetical order before one more class"] = tuple(range(len(names)))
    if not told:
        raise UserError(
            f"the model answers {count} classes and the folder has {len(names)} people; say which is which with "
            "--classes FILE: one name a line, in the order of the outputs (the folder's people must be among them)"
        )
    return {
        words: order for place, (words, order) in enumerate(told.items()) if order not in list(told.values())[:place]
    }


def _natural(name: str) -> list[Any]:
    """`person10` after `person9`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def named(classes: Sequence[str], names: Sequence[str], count: int, who: str) -> tuple[int, ...]:
    """Where the folder's people are among the names of the outputs.

    Raises:
        UserError: Another number of names than outputs, or people who are not among them.
    """
    if len(classes) != count:
        raise UserError(f"{who} names {len(classes)} classes and the model answers {count}; name every output once")
    twice = [name for name in classes if list(classes).count(name) > 1]
    lost = [name for name in names if name not in classes]
    if twice or lost:
        what = (
            f"names '{twice[0]}' twice" if twice else f"does not name {len(lost)} of the folder's people ('{lost[0]}')"
        )
        raise UserError(f"{who} {what}; it begins with {', '.join(classes[:5])}: rename the folders or the classes")
    return tuple(list(classes).index(name) for name in names)


def matching(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], people: int, rows: Tensor | None = None
) -> tuple[int, ...]:
    """An output for each person, no output twice, that gives their pictures the most confidence in all (the linear
    assignment problem)."""
    scores = logits.exp()
    if rows is not None:
        scores, labels = scores[rows], labels[rows]
    sums = torch.zeros(people, scores.shape[1]).index_add(0, labels, scores)
    persons, outputs = linear_sum_assignment(-sums.numpy())
    order = [0] * people
    for person, output in zip(persons, outputs, strict=True):
        order[int(person)] = int(output)
    return tuple(order)
