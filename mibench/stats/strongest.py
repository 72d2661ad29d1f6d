"""The strongest of several attacks, without the luck of the draw: chosen on half of the people, reported on the others.

The best of K noisy rates is better than any of them: of 5 equal attacks the highest exceeds the true rate by about 4
points (100 people x 2 images), and its interval covers it less often than it says. So the people are split into two
halves; on each half the attack with the highest rate there is chosen and counted on the *other* half. Every person is
counted once, under an attack that was chosen without that person: an unbiased estimate of what an attacker reaches who
chooses on half as many people.

Where the attacks are exactly equal both halves agree on a lucky attack or disagree on two unlucky ones: the estimate
varies 1.16 times as much as one attack's rate, and its 95% interval, made for one attack, covers 91% (of 5 attacks; the
maximum's covers 90%, always from above). Where one attack is clearly strongest nothing of this happens.

The halves hang on the people's numbers alone, so that two targets attacked on the same people are split alike and stay
paired.

References:
    | Double/debiased machine learning for treatment and structural parameters (Chernozhukov et al., 2018),
      cross-fitting
    | https://arxiv.org/abs/1608.00060
    | The Optimizer's Curse: Skepticism and Postdecision Surprise in Decision Analysis (Smith and Winkler, 2006)
    | https://doi.org/10.1287/mnsc.1050.0451
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mibench.runtime.rng import Noise
from mibench.stats.pairing import Hits, combined

__all__ = ["Choice", "first_half", "strongest"]


class Choice(NamedTuple):
    """Which attack counts for whom.

    Args:
        places: Places of the attacks that were chosen; one or two, the first half's people first.
        people: Whose verdicts count under each, in rising order.
        hits: These verdicts together.
    """

    places: tuple[int, ...]
    people: tuple[Int64[Tensor, " _"], ...]
    hits: Hits


def first_half(people: Int64[Tensor, " p"]) -> Bool[Tensor, " p"]:
    """Whether each of these people, every one named once, is of the first half: every other one by a fixed hash."""
    order = Noise(0, people).of("halves of people").normal(1)[:, 0].argsort(stable=True)
    half = torch.zeros(len(people), dtype=torch.bool)
    half[order[::2]] = True
    return half


def of(hits: Hits, people: Int64[Tensor, " p"]) -> Hits:
    """The verdicts on some people."""
    rows = torch.isin(hits.people, people)
    return Hits(hits.people[rows], hits.hits[rows], None if hits.seeds is None else hits.seeds[rows])


def strongest(attacks: Sequence[Hits]) -> Choice:
    """The attack with the highest rate, cross-fitted; of equal ones the first.

    A single person cannot be split: there the attack is chosen and counted on the same images.

    Args:
        attacks: The verdicts on each attack's images, at least one attack.

    Raises:
        ValueError: No attack.
    """
    if not attacks:
        raise ValueError("strongest: of no attack; give at least one")
    people = torch.cat([one.people for one in attacks]).unique()
    if len(attacks) == 1 or len(people) < 2:
        place = _best(attacks, people)
        return Choice((place,), (people,), attacks[place])
    half = first_half(people)
    chosen = [(_best(attacks, people[~own]), people[own]) for own in (half, ~half)]
    if chosen[0][0] == chosen[1][0]:
        return Choice((chosen[0][0],), (people,), attacks[chosen[0][0]])
    places, whose = zip(*chosen, strict=True)
    parts = [of(attacks[place], own) for place, own in chosen]
    return Choice(tuple(places), tuple(whose), combined([part for part in parts if len(part.hits)]))


def _best(attacks: Sequence[Hits], people: Int64[Tensor, " p"]) -> int:
    """The attack with the highest rate on some people; one that was not run on any of them is none."""
    cells = [one.cells for one in attacks]
    names = cells[0][0]
    if all(torch.equal(own, names) for own, _, _ in cells):  # the usual case, all attacks at once
        rows = torch.isin(names[:, 1], people)
        hits, images = (torch.stack(side)[:, rows].sum(dim=1) for side in list(zip(*cells, strict=True))[1:])
        rates = torch.where(images > 0, hits / images, -1.0).tolist()
    else:
        own = [of(one, people).hits for one in attacks]
        rates = [float(hits.double().mean()) if len(hits) else -1.0 for hits in own]
    return max(range(len(rates)), key=rates.__getitem__)
