"""CelebA's faces with the field's two splits into 1,000 private people, from the authors' files.

    split=kedmi   the lists of GMI and KEDMI, which LOMMA, PLG-MI, LOKT, BiDO and others share: 27,018 training and
                  3,009 held-out pictures, 30,000 public ones of 6,453 other people; cut to the centre 108 x 108, 64 px
    split=ppa     the 1,000 people with the most pictures, 90% of the 30,038 for training by numpy's shuffle with seed
                  42; re-aligned in high resolution, 224 px; public images of another set

2,343 people have exactly 30 pictures, so that 'the most frequent' is decided by ties: only 429 people are in both
splits, and numbers of one say nothing about the other. Distractors and bystanders are further people with 20 pictures
or more, neither private nor public. Classes are named by CelebA's identity numbers.

Files below root: `celeba/`, as `mibench data prepare celeba --root DIR --dry-run` lists them.

References:
    | Deep Learning Face Attributes in the Wild (Liu et al., 2015), the data
    | https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
    | Knowledge-Enriched Distributional Model Inversion Attacks (Chen et al., 2021), the low-resolution split
    | https://arxiv.org/abs/2010.04092
    | Plug & Play Attacks (Struppek et al., 2022), the high-resolution split
    | https://arxiv.org/abs/2201.12179
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from mibench.data.fields import whole
from mibench.data.published import celeba_files
from mibench.data.published.crops import Crop
from mibench.data.published.needs import Facts, Need, facts_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Counts, Listing, Published
from mibench.data.published.splits import sizes
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Picture
from mibench.runtime.errors import UserError
from mibench.runtime.rng import seed_of

__all__ = ["CARD", "CelebA"]

CARD = {
    "summary": "CelebA: 1,000 private celebrities, split as GMI/KEDMI (64 px) or Plug & Play Attacks (224 px)",
    "images": "202,599 photographs; about 30,000 private, 30,000 public",
    "identities": "10,177; 1,000 private",
    "title": "Deep Learning Face Attributes in the Wild",
    "authors": "Liu, Luo, Wang and Tang",
    "venue": "ICCV",
    "licence": "non-commercial research; not to be passed on",
    "link": "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "year": 2015,
}


@dataclass(frozen=True)
class CelebA(Published):
    """CelebA; see the module.

    Args:
        split: Whose 1,000 people.
        cropped: `centre108` of the aligned pictures; `centre128` as VMI; `hd` by landmarks from the photographs;
            `published` is centre108 for kedmi and hd for ppa.
        public: The attacker's images: `own` is CelebA's other people (30,000 pictures; KEDMI's list with kedmi).
            `published` is own for kedmi and ffhq for ppa.
        distractors: People who are neither private nor public.
        bystanders: Further ones, for a verifier.

    Differs: the held-out part of ppa is a random tenth of all pictures, not of each person's, as in the authors' code,
    and of people with fewer than two in it further ones (about 230 of 30,038; `splits.everybody`); pictures lie in the
    data set at one size, from which evaluation models resize, where the authors cut them for each model anew.
    """

    folder: ClassVar[str] = "celeba"
    card: ClassVar[Mapping[str, Any]] = CARD

    split: Literal["kedmi", "ppa"] = "kedmi"
    cropped: Literal["published", "centre108", "centre128", "hd"] = "published"
    public: Literal["published", "own", "ffhq", "metfaces"] = "published"
    distractors: int = 200
    bystanders: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("distractors", self.distractors, 0, 1000)
        whole("bystanders", self.bystanders, 0, 1000)

    @property
    def public_set(self) -> str:
        """FFHQ in the place of `published` with ppa."""
        published = "own" if self.split == "kedmi" else "ffhq"
        public = published if self.public == "published" else self.public
        return "" if public == "own" else public

    def crop(self) -> str:
        """By `cropped`."""
        published = "centre108" if self.split == "kedmi" else "hd"
        kind = published if self.cropped == "published" else self.cropped
        return f"celeba-{kind.removeprefix('centre')}"

    def counts(self) -> Counts:
        """Of the split."""
        known = celeba_files.PUBLISHED
        if self.split == "kedmi":
            return Counts(known["classes"], known["kedmi_train"], known["kedmi_heldout"], known["kedmi_public"])
        return Counts(known["classes"], *sizes(known["ppa_private"]), known["kedmi_public"])

    def needs(self) -> list[Need]:
        """The list of identities, the pictures, and what the split and the alignment take."""
        lists = list(celeba_files.LISTS.values()) if self.split == "kedmi" else []
        if self.crop() != "celeba-hd":
            return [celeba_files.IDENTITIES, *lists, celeba_files.ALIGNED]
        return [celeba_files.IDENTITIES, *lists, celeba_files.CROPPED]

    def listing(self, home: Path) -> Listing:
        """The split of the authors' lists, or of the rule.

        Raises:
            UserError: Lists of another split or cut short, fewer people, pictures of another size of crop.
        """
        facts = facts_of(home, celeba_files.PUBLISHED)
        people = celeba_files.identities(home, facts)
        rows = celeba_files.kedmi(home, people, facts) if self.split == "kedmi" else celeba_files.ppa(people, facts)
        self._others(rows, people, facts)
        pictures, place = self._pictures(home, {name for part in rows.values() for name, _ in part if part})
        parts = {
            name: Part(place, self.cut_of(place), [pictures[key] for key, _ in part], [label for _, label in part])
            for name, part in rows.items()
            if part or name == "heldout"
        }
        of_label = {label: people[key] for key, label in rows["train"] + rows["heldout"]}
        words = {
            "kedmi": "1,000 people and their pictures by the lists of KEDMI",
            "ppa": "the 1,000 people with the most pictures; 90% of all their pictures, numpy's shuffle with seed 42",
        }
        shared = celeba_files.IN_COMMON
        note = f"{shared} of the 1,000 people are private in the other split too: never compare numbers of the two"
        names = [of_label.get(label, "") for label in range(facts["classes"])]
        return Listing(names, parts, f"{words[self.split]}; {note}")

    def cut_of(self, place: Path) -> Crop:
        """Pictures that the authors' program has aligned are only checked for their size."""
        crop = self.cut()
        if crop.align and place.name != "img_celeba":
            return replace(crop, align="", expects=(224, 224))
        return crop

    def _others(self, rows: dict[str, list[tuple[str, int]]], people: Mapping[str, str], facts: Facts) -> None:
        """Add distractors, bystanders and, where it has none yet, public pictures."""
        taken = {people[key] for part in rows.values() for key, _ in part}
        own: dict[str, list[str]] = defaultdict(list)
        for key, person in people.items():
            if person not in taken:
                own[person].append(key)
        order = sorted(own, key=lambda person: seed_of("celeba", self.split, person))
        many = [person for person in order if len(own[person]) >= facts["enough"]]
        start = 0
        for part, count in (("distractors", self.distractors), ("bystanders", self.bystanders)):
            count = min(count, facts["others"])
            chosen = many[start : start + count]
            if len(chosen) < count:
                raise UserError(
                    f"{part} = {count}, but {len(many)} people with {facts['enough']} pictures play no other part; "
                    "give fewer distractors and bystanders"
                )
            rows[part] = [(key, label) for label, person in enumerate(chosen) for key in own[person]]
            start += count
        if not self.public_set and "public" not in rows:
            kept = set(many[:start])
            others = [key for person in order if person not in kept for key in own[person]]
            rows["public"] = [(key, -1) for key in others[: celeba_files.PUBLISHED["kedmi_public"]]]
        if self.public_set:
            rows.pop("public", None)

    def _pictures(self, home: Path, keys: set[str]) -> tuple[dict[str, Picture], Path]:
        """The picture of each key, in the store that has it."""
        need = celeba_files.CROPPED if self.crop() == "celeba-hd" else celeba_files.ALIGNED
        place = need.place(home)
        if place is None:
            raise UserError(f"{home} has none of {', '.join(need.names)}")
        stored = {PurePosixPath(name).stem: name for name in open_store(place).sizes()}
        matrices: Mapping[str, tuple[float, ...]] = {}
        if place.name == "img_celeba":
            matrices = celeba_files.matrices(home, keys, self.size)
        # A key that the store lacks keeps the name it should have, and is counted with all others that are missing.
        return {key: Picture(stored.get(key, f"{key}.jpg"), None, matrices.get(key)) for key in keys}, place
