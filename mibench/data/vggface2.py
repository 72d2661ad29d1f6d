"""VGGFace2, of which the people with the most pictures are private: raw photographs, cut around the face by MTCNN.

No paper has published which people and pictures of VGGFace2 its targets saw; this subset is ours, the same for
everybody who has the data: of train/, the `people` with the most pictures (ties by number), at most `pictures` of each
by name, 90% for training by numpy's shuffle with seed 42. Everybody else is public, a distractor or a bystander.

    vggface2/train/n000002/0001_01.jpg

References:
    | VGGFace2: a dataset for recognising faces across pose and age (Cao et al., 2018)
    | https://arxiv.org/abs/1710.08092
    | Joint face detection and alignment using multi-task cascaded convolutional networks (Zhang et al., 2016)
    | https://arxiv.org/abs/1604.02878
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from mibench.data.fields import whole
from mibench.data.published.needs import Need, facts_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Counts, Listing, Published
from mibench.data.published.splits import everybody, sizes
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Picture
from mibench.runtime.errors import UserError
from mibench.runtime.rng import seed_of

__all__ = ["CARD", "PUBLISHED", "VGGFace2"]

CARD = {
    "summary": "VGGFace2: the 1,000 people with the most photographs are private, cut around the face by MTCNN",
    "images": "3.1 million photographs; by default at most 100 of each of 1,000 private people",
    "identities": "8,631 in train/: 1,000 private",
    "title": "VGGFace2: A Dataset for Recognising Faces across Pose and Age",
    "authors": "Cao, Shen, Xie, Parkhi and Zisserman",
    "venue": "FG",
    "licence": "research; withdrawn by its authors, pictures are their owners'",
    "link": "https://arxiv.org/abs/1710.08092",
    "year": 2018,
}

PUBLISHED: Mapping[str, int] = {"people": 8631, "private": 8631, "others": 8631}
"""How many people train/ has; how many may be private, and how many may play each other part."""


@dataclass(frozen=True)
class VGGFace2(Published):
    """VGGFace2; see the module.

    Args:
        people: How many are private.
        pictures: At most so many of each person, private or not.
        aligned: The pictures are faces already: nothing is looked for, their centre square is taken.
        public_people: How many others the attacker has pictures of, with public=own.
        distractors: People who are neither private nor public.
        bystanders: Further ones, for a verifier.
        public: The attacker's images: `own` are other people.
    """

    folder: ClassVar[str] = "vggface2"
    card: ClassVar[Mapping[str, Any]] = CARD

    people: int = 1000
    pictures: int = 100
    aligned: bool = False
    public_people: int = 500
    distractors: int = 200
    bystanders: int = 300
    public: Literal["own", "ffhq"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("people", self.people, 2, 8631)
        whole("pictures", self.pictures, 2)
        for name in ("public_people", "distractors", "bystanders"):
            whole(name, getattr(self, name), 0, 8631)

    @property
    def public_set(self) -> str:
        """FFHQ, if asked for."""
        return "" if self.public == "own" else self.public

    def crop(self) -> str:
        """MTCNN's, or none."""
        return "vggface2-mtcnn"

    def counts(self) -> Counts:
        """As if everybody had as many pictures as are taken of them at most."""
        own = self.people * self.pictures
        return Counts(self.people, *sizes(own), self.public_people * self.pictures)

    def needs(self) -> list[Need]:
        """The training pictures."""
        return [Need(("train",), "a folder of photographs for each of 8,631 people", str(CARD["link"]), "research")]

    def listing(self, home: Path) -> Listing:
        """People by folder.

        Raises:
            UserError: Fewer people than published, or than are asked for.
        """
        facts = facts_of(home, PUBLISHED)
        own: dict[str, list[str]] = defaultdict(list)
        for name in open_store(home / "train").sizes():
            own[PurePosixPath(name).parts[0]].append(name)
        if len(own) != facts["people"]:
            raise UserError(
                f"{home / 'train'} has {len(own):,} people, VGGFace2's has {facts['people']:,}: it was not unpacked or "
                "fetched to the end"
            )
        ranked = sorted(own, key=lambda person: (-len(own[person]), person))
        people = min(self.people, facts["private"])
        private, rest = ranked[:people], sorted(ranked[people:], key=lambda p: seed_of("vggface2", p))
        counts = {"distractors": self.distractors, "bystanders": self.bystanders}
        if not self.public_set:
            counts["public"] = self.public_people
        counts = {part: min(count, facts["others"]) for part, count in counts.items()}
        if people + sum(counts.values()) > len(own) or ("public" in counts and not self.public_people):
            raise UserError(
                f"{people} private people and {counts} do not fit into {len(own):,} people, or leave nobody "
                "public; give smaller numbers, public_people of at least 1"
            )

        def rows(people: list[str]) -> list[tuple[Picture, int]]:
            return [(Picture(name), n) for n, person in enumerate(people) for name in own[person][: self.pictures]]

        all_private = rows(private)
        split = everybody([label for _, label in all_private])
        chosen = {
            part: [all_private[row] for row in own] for part, own in zip(("train", "heldout"), split, strict=True)
        }
        start = 0
        for part, count in counts.items():
            chosen[part] = rows(rest[start : start + count])
            start += count
        cut = replace(self.cut(), align="") if self.aligned else self.cut()
        parts = {
            key: Part(home / "train", cut, [p for p, _ in part], [n for _, n in part]) for key, part in chosen.items()
        }
        words = f"the {people} people with the most pictures, at most {self.pictures} each, 90% for training"
        return Listing(private, parts, words)
