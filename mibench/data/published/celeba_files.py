"""CelebA's files: who is in which picture, the authors' split into private and public people, and landmarks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mibench.data.published import align
from mibench.data.published.needs import Facts, Need
from mibench.data.published.splits import everybody, lines_of, most_frequent, read_list
from mibench.runtime.errors import UserError

__all__ = [
    "ALIGNED",
    "CROPPED",
    "IDENTITIES",
    "IN_COMMON",
    "LANDMARKS",
    "LISTS",
    "PUBLISHED",
    "identities",
    "kedmi",
    "matrices",
    "ppa",
]

PUBLISHED: Mapping[str, int] = {
    "images": 202_599,
    "identities": 10_177,
    "classes": 1000,
    "kedmi_train": 27_018,
    "kedmi_heldout": 3009,
    "kedmi_public": 30_000,
    "ppa_private": 30_038,
    "enough": 20,
    "others": 1000,
}
"""What the authors' files hold; how many pictures a distractor or bystander has at least, and how many there may be."""

IN_COMMON = 429
"""People who are private in both splits."""

_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_TERMS = "non-commercial research"
_LISTS = "https://github.com/LetheSec/PLG-MI-Attack/tree/main/data_files"
_CROPPER = "https://github.com/LynnHo/HD-CelebA-Cropper"
IDENTITIES = Need(
    ("identity_CelebA.txt",), "who is in which picture", _PAGE, _TERMS, "32bd1bd63d3c78cd57e08160ec5ed1e2"
)
ALIGNED = Need(
    ("img_align_celeba", "img_align_celeba.zip", "img_align_celeba_png"),
    "202,599 aligned faces, 178 x 218",
    _PAGE,
    _TERMS,
)
LISTS = {
    part: Need(names, what, _LISTS, "published without a licence")
    for part, names, what in (
        ("train", ("celeba_trainset.txt", "trainset.txt", "private_train.txt"), "KEDMI's training pictures"),
        ("heldout", ("celeba_testset.txt", "testset.txt", "private_test.txt"), "KEDMI's test pictures"),
        ("public", ("celeba_ganset.txt", "ganset.txt", "public.txt"), "KEDMI's public pictures"),
    )
}
CROPPED = Need(
    ("img_align_celeba_hd", "align_size(224,224)_move(0.250,0.000)_face_factor(0.650)_png/data", "img_celeba"),
    "faces aligned by HD-CelebA-Cropper (face factor .65, order 3), or the photographs of img_celeba.7z, unpacked",
    _PAGE,
    _TERMS,
)
LANDMARKS = (
    Need(("landmark.txt",), "68 landmarks of each photograph (annotations.zip)", _CROPPER, "MIT"),
    Need(("standard_landmark_68pts.txt",), "the standard face (annotations.zip)", _CROPPER, "MIT"),
)


def identities(home: Path, facts: Facts) -> dict[str, str]:
    """Picture, without suffix -> the number of the person in it, in the file's order."""
    file = home / "identity_CelebA.txt"
    people = {name: str(number) for name, number in read_list(file, 2)}
    counts = {"images": len(people), "identities": len(set(people.values()))}
    for what, count in counts.items():
        if count != facts[what]:
            raise UserError(f"{file} has {count:,} {what}, published are {facts[what]:,}: fetch it again from {_PAGE}")
    return people


def kedmi(home: Path, people: Mapping[str, str], facts: Facts) -> dict[str, list[tuple[str, int]]]:
    """The authors' three lists, checked against the identities."""
    rows: dict[str, list[tuple[str, int]]] = {}
    for part, need in LISTS.items():
        file = need.place(home)
        if file is None:
            raise UserError(f"{home} has none of {', '.join(need.names)}")
        rows[part] = read_list(file, 1 if part == "public" else 2)
        published = facts[f"kedmi_{part}"]
        if len(rows[part]) != published:
            raise UserError(f"{file} lists {len(rows[part]):,} pictures, KEDMI's has {published:,}: fetch it again")
        unknown = [key for key, _ in rows[part] if key not in people]
        if unknown:
            raise UserError(f"{file} lists {len(unknown)} pictures that identity_CelebA.txt lacks, first {unknown[0]}")
    by_label: dict[int, set[str]] = defaultdict(set)
    for key, label in rows["train"] + rows["heldout"]:
        by_label[label].add(people[key])
    if sorted(by_label) != list(range(facts["classes"])):
        raise UserError(
            f"KEDMI's lists in {home} have {len(by_label)} classes, the protocol has {facts['classes']:,}: fetch them "
            f"again from {_LISTS}"
        )
    mixed = [label for label, own in by_label.items() if len(own) > 1]
    private = {person for own in by_label.values() for person in own}
    shared = private & {people[key] for key, _ in rows["public"]}
    if mixed or shared:
        raise UserError(
            f"the lists in {home} are of different splits: {len(mixed)} classes hold several people, {len(shared)} "
            f"private people are public too (KEDMI's and PPA's splits share {IN_COMMON} people and are never mixed); "
            f"take all three from {_LISTS}"
        )
    return rows


def ppa(people: Mapping[str, str], facts: Facts) -> dict[str, list[tuple[str, int]]]:
    """The most frequent people; the rank is the label."""
    chosen = most_frequent([int(person) for person in people.values()], facts["classes"])
    label_of = {str(person): label for label, person in enumerate(chosen)}
    private = [(key, label_of[person]) for key, person in people.items() if person in label_of]
    if len(private) != facts["ppa_private"] or len(chosen) != facts["classes"]:
        raise UserError(
            f"identity_CelebA.txt gives {len(private):,} pictures of {len(chosen):,} people, the protocol has "
            f"{facts['ppa_private']:,} of {facts['classes']:,}: fetch it again from {_PAGE}"
        )
    train, heldout = everybody([label for _, label in private])
    return {"train": [private[row] for row in train], "heldout": [private[row] for row in heldout]}


def matrices(home: Path, keys: set[str], size: int) -> dict[str, tuple[float, ...]]:
    """How each photograph is turned, from its landmarks."""
    missing = [need.names[0] for need in LANDMARKS if need.place(home) is None]
    if missing:
        raise UserError(
            f"{home} lacks {' and '.join(missing)} (annotations.zip of {_CROPPER}), without which the photographs "
            "cannot be aligned"
        )
    standard = _numbers(lines_of(home / "standard_landmark_68pts.txt"), 0, home / "standard_landmark_68pts.txt")
    standard = standard.reshape(-1, 2)
    file = home / "landmark.txt"
    rows = {Path(row[0]).stem: row for row in lines_of(file)}
    without = sorted(keys - set(rows))
    if without:
        raise UserError(f"{file} lacks {len(without)} pictures, the first is {without[0]}: fetch it again")
    turned = {}
    for key in keys:
        points = _numbers([rows[key]], 1, file).reshape(-1, 2)
        if len(points) != len(standard):
            raise UserError(f"{file}: {key} has {len(points)} points, the standard face {len(standard)}: fetch both")
        turned[key] = tuple(align.hd_matrix(points, standard, size).reshape(-1).tolist())
    return turned


def _numbers(rows: Sequence[Sequence[str]], skip: int, file: Path) -> np.ndarray:
    try:
        return np.array([float(cell) for row in rows for cell in row[skip:]])
    except ValueError as error:
        raise UserError(f"{file} holds something that is no number ({error}); fetch it again") from None
