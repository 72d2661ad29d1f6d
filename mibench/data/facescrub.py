"""FaceScrub's 530 actors and actresses, as Plug & Play Attacks splits them.

The people are 265 actors, then 265 actresses, each in alphabetical order; 90% of all pictures are for training by
numpy's shuffle with seed 42. FaceScrub is a list of addresses, many of which are dead, so that nobody's copy has the
same pictures: the 530 people must all be there, the number of pictures is in the card. The attacker's images are of
another set.

    facescrub/actors/faces/<person>/*.jpg          cut-out faces (cropped=faces)
    facescrub/actresses/faces/<person>/*.jpg
    facescrub/actors/images/<person>/*.jpg         or whole pictures, named as the face in the list (cropped=box), with
    facescrub/facescrub_actors.txt, facescrub_actresses.txt        the authors' lists: name, image_id, face_id, url,
                                                   bbox and sha256, separated by tabs

With the lists, whoever is missing is named.

References:
    | A data-driven approach to cleaning large face datasets (Ng and Winkler, 2014), the data
    | https://github.com/faceteam/facescrub
    | Plug & Play Attacks (Struppek et al., 2022), datasets/facescrub.py
    | https://github.com/LukasStruppek/Plug-and-Play-Attacks
"""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from mibench.data.published.needs import Need, facts_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Counts, Listing, Published
from mibench.data.published.splits import everybody, sizes
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Picture
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text

__all__ = ["CARD", "PUBLISHED", "FaceScrub"]

CARD = {
    "summary": "FaceScrub: 530 actors and actresses, split as Plug & Play Attacks does",
    "images": "106,863 addresses, of which as many as still answer; all private",
    "identities": "530, all private",
    "title": "A Data-Driven Approach to Cleaning Large Face Datasets",
    "authors": "Ng and Winkler",
    "venue": "ICIP",
    "licence": "list CC BY-NC-ND 4.0; pictures are their owners'",
    "link": "http://vintage.winklerbros.net/facescrub.html",
    "year": 2014,
}

PUBLISHED: Mapping[str, int] = {"actors": 265, "actresses": 265}
"""How many people of each group."""

ADDRESSES = 106_863

_SOURCE = (
    "http://vintage.winklerbros.net/facescrub.html (https://github.com/faceteam/facescrub fetches it)",
    "research",
)


@dataclass(frozen=True)
class FaceScrub(Published):
    """FaceScrub; see the module.

    Args:
        cropped: `faces`: the cut-out faces as they are; `box`: whole pictures, cut by the authors' boxes; `mtcnn`:
            whole pictures, cut around the largest face that MTCNN finds.
        low: The crop of the 64-pixel papers, the centre 54 x 54 of 64 x 64; if not, that of the 224-pixel ones.
        public: The attacker's images.

    Differs: of people of whom the shuffle holds fewer than two pictures out, two are (`splits.everybody`); whole
    pictures are cut by our own code, not by the scraper. A picture that is not square is cut to its centre after its
    shorter side was resized, for training too, where the authors cut a random square.
    """

    folder: ClassVar[str] = "facescrub"
    card: ClassVar[Mapping[str, Any]] = CARD

    cropped: Literal["faces", "box", "mtcnn"] = "faces"
    low: bool = False
    public: Literal["ffhq", "metfaces"] = "ffhq"

    def crop(self) -> str:
        """By resolution."""
        return "facescrub-54" if self.low else "facescrub-224"

    def counts(self) -> Counts:
        """As if every address still answered."""
        return Counts(sum(PUBLISHED.values()), *sizes(ADDRESSES), 0)

    def needs(self) -> list[Need]:
        """The two trees of pictures, and the lists where boxes are wanted."""
        kind = "faces" if self.cropped == "faces" else "images"
        trees = [Need((f"{group}/{kind}",), f"{kind} of 265 {group}", *_SOURCE) for group in PUBLISHED]
        lists = [Need((f"facescrub_{group}.txt",), f"the authors' list of {group}", *_SOURCE) for group in PUBLISHED]
        return trees + (lists if self.cropped == "box" else [])

    def listing(self, home: Path) -> Listing:
        """Actors, then actresses.

        Raises:
            UserError: Fewer people than published: which ones, if the authors' lists are there.
        """
        facts = facts_of(home, PUBLISHED)
        kind = "faces" if self.cropped == "faces" else "images"
        classes: list[str] = []
        pictures: list[tuple[Picture, int]] = []
        for group in PUBLISHED:
            lines = _list(home / f"facescrub_{group}.txt")
            own: dict[str, list[str]] = defaultdict(list)
            for name in open_store(home / group / kind).sizes():
                own[PurePosixPath(name).parts[0]].append(name)
            if len(own) != facts[group]:
                listed = {name.replace(" ", "_") for name in lines}
                gone = sorted(listed - {person.replace(" ", "_") for person in own})
                told = f" (without a picture: {', '.join(gone[:5])}{', ...' if len(gone) > 5 else ''})" if gone else ""
                raise UserError(
                    f"{home / group / kind} has {len(own)} people, the protocol has {facts[group]}{told}: fetch the "
                    "rest, or a copy that is whole; numbers of fewer classes are not those of the papers"
                )
            for person in sorted(own):
                boxes = lines.get(person.replace("_", " "), {}) if self.cropped == "box" else {}
                for name in own[person]:
                    box = _box(boxes, name, home / f"facescrub_{group}.txt") if self.cropped == "box" else None
                    pictures.append((Picture(f"{group}/{kind}/{name}", box), len(classes)))
                classes.append(person)
        train, heldout = everybody([label for _, label in pictures])
        cut = self.cut()
        if self.cropped == "mtcnn":
            cut = replace(cut, align="mtcnn")
        parts = {
            name: Part(home, cut, [pictures[row][0] for row in rows], [pictures[row][1] for row in rows])
            for name, rows in (("train", train), ("heldout", heldout))
        }
        return Listing(classes, parts, f"90% of all {len(pictures):,} pictures, numpy's shuffle with seed 42")


def _list(file: Path) -> dict[str, dict[str, tuple[int, int, int, int]]]:
    """Person -> face and image number -> box, of the authors' list; empty without it."""
    if not file.exists():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file)), delimiter="\t"))
        people: dict[str, dict[str, tuple[int, int, int, int]]] = defaultdict(dict)
        for row in rows:
            left, upper, right, lower = (int(value) for value in row["bbox"].split(","))
            for key in (f"{row['image_id']}_{row['face_id']}", row["sha256"], row["face_id"]):
                people[row["name"]][key] = (left, upper, right, lower)
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{file} is not FaceScrub's list ({error!r}): its lines hold name, image_id, face_id, url, bbox and sha256 "
            "between tabs; fetch it again"
        ) from None
    return people


def _box(boxes: Mapping[str, tuple[int, int, int, int]], name: str, file: Path) -> tuple[int, int, int, int]:
    """The box of a picture `<person>_<image_id>_<face_id>.jpg`, `<image_id>_<face_id>.jpg`, `<face_id>.jpg` or
    `<sha256>.jpg`."""
    stem = PurePosixPath(name).stem
    for key in (stem, "_".join(stem.split("_")[-2:]), stem.split("_")[-1]):
        if key in boxes:
            return boxes[key]
    raise UserError(f"{file} has no box of {name}: name pictures <image_id>_<face_id>.jpg, or take cropped=mtcnn")
