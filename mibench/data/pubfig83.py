"""PubFig83: 83 public figures, of whom 50 are private and the others public, or all private.

    pubfig83/<person>/<number>.jpg        100 x 100 faces; any layout with one folder for each person

The label-only and knowledge-transfer papers take 50 people as private; which ones stands in their list files only,
which name pictures too. Without a list the first 50 in alphabetical order are private: not the papers' people. With
the list `private.txt` (a name on each line, LOKT's `pubfig_private_iden.txt`) they are; that list has 49 names, and so
many are private then. 90% of the private pictures are for training by numpy's shuffle with seed 42.

References:
    | Scaling up biologically-inspired computer vision: a case study in unconstrained face recognition on Facebook
      (Pinto et al., 2011), the data
    | https://www.briancbecker.com/bcbcms/site/proj/facerec/fbeval.html
    | Label-Only Model Inversion Attacks via Knowledge Transfer (Nguyen et al., 2023), the 50 people
    | https://github.com/ngoc-nguyen-0/LOKT_neurips2023
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from mibench.data.fields import whole
from mibench.data.published.needs import Need, facts_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Counts, Listing, Published
from mibench.data.published.splits import everybody, lines_of, sizes
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Picture
from mibench.runtime.errors import UserError

__all__ = ["CARD", "PUBLISHED", "PubFig83"]

CARD = {
    "summary": "PubFig83: 83 public figures; 50 private, 33 public",
    "images": "13,838; 100 x 100 colour",
    "identities": "83: 50 private, 33 public",
    "title": "Scaling Up Biologically-Inspired Computer Vision",
    "authors": "Pinto, Stone, Zickler and Cox",
    "venue": "CVPR workshops",
    "licence": "research; pictures are their owners'",
    "link": "http://www.briancbecker.com/bcbcms/site/proj/facerec/fbeval.html",
    "year": 2011,
}

PUBLISHED: Mapping[str, int] = {"people": 83}
"""How many people there are."""

PICTURES = 13_838


@dataclass(frozen=True)
class PubFig83(Published):
    """PubFig83; see the module.

    Args:
        people: How many are private, 2 to 83; those of `private.txt`, if it is there.
        source_size: Side of the pictures on disk: 100 is cut to its centre 67, 256 to its centre 176.
        public: The attacker's images: `own` are the other people.

    Differs: the split into training and held-out pictures is ours; the papers' lists name files of their own copies.
    """

    folder: ClassVar[str] = "pubfig83"
    card: ClassVar[Mapping[str, Any]] = CARD

    people: int = 50
    source_size: Literal["100", "256"] = "100"
    public: Literal["own", "ffhq"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("people", self.people, 2, 83)
        if self.people == 83 and self.public == "own":
            raise UserError("people = 83 leaves nobody to be public; give public=ffhq, or at most 82 people")

    @property
    def public_set(self) -> str:
        """FFHQ, if asked for."""
        return "" if self.public == "own" else self.public

    def crop(self) -> str:
        """By the size on disk."""
        return "pubfig-67" if self.source_size == "100" else "pubfig-176"

    def counts(self) -> Counts:
        """As if everybody had equally many pictures."""
        own = round(self.people * PICTURES / PUBLISHED["people"])
        return Counts(self.people, *sizes(own), PICTURES - own)

    def needs(self) -> list[Need]:
        """The pictures."""
        return [Need((".",), "a folder of pictures for each of 83 people", str(CARD["link"]), "research")]

    def listing(self, home: Path) -> Listing:
        """People by folder.

        Raises:
            UserError: Fewer people than published; a list that names somebody who is not there.
        """
        facts = facts_of(home, PUBLISHED)
        own: dict[str, list[str]] = defaultdict(list)
        for name in open_store(home).sizes():
            if "/" in name:
                own[PurePosixPath(name).parts[-2]].append(name)
        if len(own) != facts["people"]:
            raise UserError(
                f"{home} has pictures of {len(own)} people, the protocol has {facts['people']}: fetch the rest from "
                f"{CARD['link']}"
            )
        listed = [row[0] for row in lines_of(home / "private.txt")] if (home / "private.txt").exists() else []
        unknown = [person for person in listed if person not in own]
        if unknown:
            raise UserError(
                f"{home / 'private.txt'} names {len(unknown)} people who have no pictures, the first is {unknown[0]}; "
                "correct the names"
            )
        private = listed or sorted(own)[: min(self.people, len(own) - 1 if self.public == "own" else len(own))]
        pictures = [(Picture(name), label) for label, person in enumerate(private) for name in own[person]]
        others = [(Picture(name), n) for n, p in enumerate(sorted(set(own) - set(private))) for name in own[p]]
        train, heldout = everybody([label for _, label in pictures])
        rows = {"train": [pictures[row] for row in train], "heldout": [pictures[row] for row in heldout]}
        if not self.public_set:
            rows["public"] = others
        parts = {key: Part(home, self.cut(), [p for p, _ in part], [n for _, n in part]) for key, part in rows.items()}
        return Listing(private, parts, f"{len(private)} people, 90% of their pictures, numpy's shuffle with seed 42")
