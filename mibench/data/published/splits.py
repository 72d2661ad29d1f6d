"""The published splits of pictures into private, held-out and public ones.

The identity split of GMI and KEDMI is in the authors' list files and nowhere else; that of Plug & Play Attacks is a
rule. Both have 1,000 people of CelebA, of whom 429 are in both: numbers of the two are not about the same people.

References:
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., 2021)
    | https://github.com/SCccc21/Knowledge-Enriched-DMI
    | Plug & Play Attacks (Struppek et al., 2022), datasets/celeba.py
    | https://github.com/LukasStruppek/Plug-and-Play-Attacks
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text

__all__ = ["HELD_OUT", "everybody", "lines_of", "most_frequent", "ninety_ten", "read_list", "sizes"]

HELD_OUT = 2
"""Pictures of everybody that no network learns: natural accuracy needs one, a verifier compares two."""


def ninety_ten(count: int, seed: int = 42) -> tuple[list[int], list[int]]:
    """Row numbers of 90% for training and of the rest, after numpy's legacy shuffle with this seed; not stratified.

    The legacy generator's stream is frozen, so that every version of numpy gives the authors' split.
    """
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    cut, _ = sizes(count)
    return order[:cut].tolist(), order[cut:].tolist()


def everybody(labels: Sequence[int], seed: int = 42) -> tuple[list[int], list[int]]:
    """`ninety_ten`, but that of everybody at least `HELD_OUT` pictures are held out.

    The shuffle takes no heed of people: of 1,000 with 30 pictures it leaves about 40 without a held-out one, whom
    neither natural accuracy nor likeness could be measured on, and about 190 with fewer than two. Of those the last
    training pictures are held out too (less than 1% of all pictures), down to one that is trained on.

    Why not the authors' split to the picture: evaluation models can judge people without held-out pictures (distances
    to these are then means over the others), a verifier cannot. It compares a reconstruction with held-out pictures of
    the person, and tells how often it accepts a true one by comparing these with each other; with training pictures in
    their place, likeness would be measured against what the target has seen. So every fifth person would be without
    the headline, and means of likeness and of `closed_top1` would be about other people.

    Args:
        labels: Whose each picture is, in the order that the authors shuffle.
        seed: Of the shuffle.
    """
    train, heldout = ninety_ten(len(labels), seed)
    left, held = Counter(labels[row] for row in train), Counter(labels[row] for row in heldout)
    moved = []
    for row in reversed(train):
        label = labels[row]
        if held[label] < HELD_OUT and left[label] > 1:
            held[label] += 1
            left[label] -= 1
            moved.append(row)
    gone = set(moved)
    return [row for row in train if row not in gone], heldout + moved


def sizes(count: int) -> tuple[int, int]:
    """How many rows of `count` are for training, and how many are held out."""
    cut = int(0.9 * count)
    return cut, count - cut


def most_frequent(labels: Sequence[int], count: int) -> list[int]:
    """The `count` labels with the most members, most frequent first; ties in the order of first appearance."""
    return [label for label, _ in sorted(Counter(labels).items(), key=lambda item: item[1], reverse=True)[:count]]


def lines_of(file: Path) -> list[list[str]]:
    """A text file's lines, split at white space; empty lines are passed over.

    Raises:
        UserError: It is no text in UTF-8.
    """
    try:
        return [line.split() for line in read_text(file).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error}); fetch it again") from None


def read_list(file: Path, columns: int) -> list[tuple[str, int]]:
    """`name label` or `name` on each line: (the name without its suffix, the label or -1).

    The lists name .png or .jpg: the same pictures, from one archive of CelebA or the other.

    Raises:
        UserError: A line of another form.
    """
    rows = lines_of(file)
    odd = [row for row in rows if len(row) != columns or (columns == 2 and not row[1].isdecimal())]
    if odd or not rows:
        form = "`name label`" if columns == 2 else "one name"
        raise UserError(
            f"{file}: {len(odd) or 'all'} line(s) are not {form}, the first is "
            f"'{' '.join(odd[0])[:80] if odd else ''}'; it is another file, or damaged: fetch it again"
        )
    return [(row[0].rpartition(".")[0] or row[0], int(row[1]) if columns == 2 else -1) for row in rows]
