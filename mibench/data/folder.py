"""Your own pictures, in a tree of folders:

    path/private/<person>/*.jpg     the people whose privacy is at stake: at least 2, with at least 2 pictures each
    path/public/<person>/*.jpg      other people, whom an attacker could have: about a third become distractors
    path/public/*.jpg               or all of them in one folder; then they are distractors too, as one person
    path/groups.csv                 optional: lines `identity,group` (the first line says so), for private people

Files: png, jpg, jpeg, bmp, webp, tif, tiff, of any size; cropped to the centre square and resized. Hidden files,
Thumbs.db and desktop.ini are passed over; any other file is refused, never skipped in silence. So is a link that leads
out of the tree, and a picture of more than 40 million pixels (JPEG: 89 million).
Nobody may be in both private/ and public/, and no picture may lie under two people (compared by pixels after
resizing; another compression of the same photograph is not found).
A person in no line of groups.csv is in no group. Groups change no picture and no split; a report compares them. They
are content all the same: a target trained before groups.csv was written or changed is trained again.
The split into train and held-out depends on the seed and the names alone, and copies of one picture stay together.
"""

import csv
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import PIL
import torch
from torch import Tensor

from mibench.core import Dataset, Shape, Source, Split
from mibench.data import decode
from mibench.data.cache import cached, hash_of
from mibench.data.fields import fraction, whole
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text
from mibench.runtime.progress import Reporter, Silent
from mibench.runtime.rng import seed_of

__all__ = ["CARD", "Folder", "inside", "people_of", "visible"]

CARD = {
    "summary": "Your own pictures: path/private/<person>/ and path/public/, any sizes",
    "images": "yours",
    "identities": "yours; at least 2 private",
    "licence": "yours",
    "link": "",
    "year": 0,
}

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_LITTER = ("thumbs.db", "desktop.ini")
_LAYOUT = "lay it out as private/<person>/*.jpg and public/<person>/*.jpg (or public/*.jpg)"


@dataclass(frozen=True)
class Folder(Source):
    """A user's own pictures; see the module for the tree.

    Args:
        path: The folder that holds private/ and public/.
        image_size: Side in pixels, 8 to 1024.
        heldout: Share of each private person's pictures that no model sees, between 0 and 1; at least one picture is
            held out and at least one is not.
        seed: Which pictures are held out, and which public people become distractors.
        colour: RGB; if not, one grey channel.
        flip: A mirrored picture still shows the same class; say no for text and digits.
        faces: They are photographs of faces: published face recognisers verify the reconstructions. Changes no picture.
        private: Another place for the folder of private people than path/private.
        public: Another place for the public pictures than path/public.
    """

    path: str = ""
    image_size: int = 64
    heldout: float = 0.2
    seed: int = 0
    colour: bool = True
    flip: bool = True
    faces: bool = False
    private: str = ""
    public: str = ""

    def __post_init__(self) -> None:
        whole("image_size", self.image_size, 8, 1024)
        fraction("heldout", self.heldout)
        whole("seed", self.seed, 0)

    @property
    def shows_faces(self) -> bool:
        """As the user says."""
        return self.faces

    def shape(self) -> Shape:
        """Folders and files, counted."""
        private, public = self._tree()
        known = {person: own for person, own in public.items() if person not in self._set_aside(public)}
        size = (3 if self.colour else 1, self.image_size, self.image_size)
        return Shape(len(private), size, sum(len(own) for own in known.values()))

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read all pictures, or the cache if reading them was slow before.

        Raises:
            UserError: No or empty private/ or public/; fewer than 2 people; a person with fewer than 2 different
                pictures; a file that is no readable image; a person or picture in two places; a groups.csv that names
            somebody twice or somebody who is not private.
        """
        private, public = self._tree()
        groups = _groups(self._root(), private)
        files = [file for tree in (private, public) for own in tree.values() for file in own]
        pixels, converted = self._pixels(files, reporter or Silent())
        rows = {file: row for row, file in enumerate(files)}
        read = Split(pixels, torch.arange(len(files)))
        hashes = dict(zip(files, read.hashes(), strict=True))
        _check_copies(private, public, hashes)

        held = {person: self._held_out(person, own, hashes) for person, own in private.items()}
        learnt = {person: [f for f in own if f not in held[person]] for person, own in private.items()}
        flat = "" in public
        aside = self._set_aside(public)
        shared = not aside
        known = {person: own for person, own in public.items() if person not in aside}
        unknown = {person: own for person, own in public.items() if person in aside} or known

        def split(people: Iterable[list[Path]]) -> Split:
            pairs = [(rows[file], label) for label, own in enumerate(people) for file in own]
            chosen, labels = torch.tensor(pairs).T
            return Split(read.take(chosen).images, labels)

        seen = split(known.values())
        return Dataset(
            name="folder",
            classes=tuple(private),
            train=split(learnt.values()),
            heldout=split([f for f in own if f in held[person]] for person, own in private.items()),
            public=Split(seen.images, torch.full_like(seen.labels, -1)) if flat else seen,
            distractors=split(unknown.values()),
            distractors_are_public=shared,
            flip=self.flip,
            card={
                **CARD,
                "splits": f"{self.heldout:g} of each person's pictures held out, by names hashed with seed {self.seed}",
                "counts": {person: (len(learnt[person]), len(held[person])) for person in private},
                "heldout_files": {person: tuple(sorted(f.name for f in own)) for person, own in held.items()},
                "public_people": () if flat else tuple(known),
                "distractor_people": tuple(sorted(aside)),
                "converted": converted,
                **({"groups": groups} if groups else {}),
            },
        )

    def identity(self) -> dict[str, object]:
        """The fields, with the content (names and bytes of all files) in the place of the path."""
        private, public = self._tree()
        groups = _groups(self._root(), private)
        people = [*private.items(), *public.items()]
        named = [(person, [file.name for file in own]) for person, own in people]
        try:
            # Without groups the hash is what it was before there were any.
            told = [sorted(groups.items())] if groups else []
            content = hash_of(len(private), named, *told, files=[file for _, own in people for file in own])
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); replace or remove it") from error
        placed = ("path", "private", "public", "faces")
        return {name: value for name, value in asdict(self).items() if name not in placed} | {"content": content}

    def _tree(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Private and public image files by person, checked without reading them."""
        if not self.path and not (self.private and self.public):
            raise UserError(f"the data set 'folder' needs the folder of your pictures: give path=...; {_LAYOUT}")
        root, own = self._root(), {"private": self.private, "public": self.public}
        tops = {role: _home(place) if place else root / role for role, place in own.items()}
        inside(root, [tops[role] for role, place in own.items() if not place])
        private, public = (people_of(tops["private"], "private"), people_of(tops["public"], "public"))
        _check_people(tops["private"], private, public)
        return private, public

    def _set_aside(self, public: Mapping[str, list[Path]]) -> set[str]:
        """The public people who become distractors and are kept from the attacker: about a third.

        With one public person there is nobody to set aside: the attacker keeps all, as with a flat public/.
        """
        others = sorted(public, key=lambda person: seed_of("folder", "distractor", self.seed, person))
        return set() if "" in public or len(public) < 2 else set(others[: max(1, round(len(others) / 3))])

    def _root(self) -> Path:
        return _home(self.path) if self.path else _home(self.private).parent

    def _pixels(self, files: list[Path], reporter: Reporter) -> tuple[Tensor, dict[str, int]]:
        def make() -> tuple[dict[str, Tensor], dict[str, str]]:
            pixels, converted = decode.decode_all(files, self.image_size, self.colour, reporter)
            return {"pixels": pixels}, {"converted": json.dumps(converted)}

        try:
            key = hash_of(PIL.__version__, self.image_size, self.colour, files=[Path(decode.__file__), *files])
        except OSError:
            make()  # a file that cannot even be opened: this raises the error that names and counts such files
            raise
        tensors, notes = cached(key, make)
        return tensors["pixels"], json.loads(notes["converted"])

    def _held_out(self, person: str, own: list[Path], hashes: dict[Path, str]) -> set[Path]:
        """About `heldout` of one person's pictures, in an order hashed from seed and names; copies stay together."""
        copies: dict[str, list[Path]] = defaultdict(list)
        for file in own:
            copies[hashes[file]].append(file)
        groups = sorted(copies.values(), key=lambda group: seed_of("folder", self.seed, person, group[0].name))
        if len(groups) < 2:
            raise UserError(
                f"the private person '{person}' has {len(groups)} picture(s) that differ; each needs at least 2, one "
                "to train on and one held out: add pictures or remove the folder"
            )
        count = min(max(1, round(self.heldout * len(groups))), len(groups) - 1)
        return {file for group in groups[:count] for file in group}


def inside(root: Path, entries: Iterable[Path]) -> None:
    """Refuse links that lead out of a tree: what lies elsewhere may be nobody's to read here.

    Raises:
        UserError: How many of the entries do, and the first of them.
    """
    if "\0" in str(root):
        raise UserError(f"there is no folder {str(root)!r}: a path holds no null character; {_LAYOUT}")
    top = os.path.realpath(root)
    out = [entry for entry in entries if entry.is_symlink() and not _within(os.path.realpath(entry), top)]
    if out:
        raise UserError(
            f"{len(out)} link(s) lead out of {root}, the first is {out[0]} (to {os.path.realpath(out[0])}); put "
            "copies in their place, or name the folder where the pictures lie"
        )


def _within(path: str, top: str) -> bool:
    return os.path.commonpath([path, top]) == top


def visible(folder: Path, keep: Callable[[Path], bool] = lambda entry: True) -> list[Path]:
    """What lies in a folder and passes `keep`, sorted by name; hidden files and litter left out."""
    entries = (entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.lower() not in _LITTER)
    return sorted((entry for entry in entries if keep(entry)), key=lambda entry: entry.name)


def _home(place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise UserError(f"path {place}: there is no such user; give the folder itself") from None


def people_of(top: Path, role: Literal["private", "public"]) -> dict[str, list[Path]]:
    """Image files by person; a flat public folder is one person without a name.

    Args:
        top: The folder of these people.
        role: Loose pictures may lie among the public ones only.

    Raises:
        UserError: The folder is missing, empty, mixes pictures and people, or holds something else.
    """
    if not top.is_dir():
        raise UserError(f"there is no folder {top}; {_LAYOUT}")
    folders, loose = visible(top, Path.is_dir), visible(top, lambda entry: not entry.is_dir())
    if loose and (folders or role == "private"):
        raise UserError(f"{len(loose)} loose file(s) in {top}, the first is {loose[0].name}; {_LAYOUT}")
    inside(top, folders)
    people = {folder.name: visible(folder) for folder in folders} or {"": loose}
    inside(top, [file for own in people.values() for file in own])
    nested = [entry for own in people.values() for entry in own if entry.is_dir()]
    if nested:
        raise UserError(f"{len(nested)} folder(s) lie too deep, the first is {nested[0]}; {_LAYOUT}")
    odd = [file for own in people.values() for file in own if file.suffix.lower() not in _SUFFIXES]
    if odd:
        kinds = ", ".join(suffix[1:] for suffix in _SUFFIXES)
        raise UserError(f"{len(odd)} file(s) under {top} are no images, the first is {odd[0]}; keep only {kinds}")
    if not any(people.values()):
        raise UserError(f"the folder {top} has no pictures; {_LAYOUT}")
    empty = [name for name, own in people.items() if not own]
    if empty:
        raise UserError(
            f"{len(empty)} folder(s) under {top} have no pictures, the first is '{empty[0]}'; fill it or remove it"
        )
    return people


def _groups(root: Path, private: Collection[str]) -> dict[str, str]:
    """Private person -> group, as groups.csv says; empty without that file.

    Raises:
        UserError: Another first line; a line without both; an unknown person, or one in two lines.
    """
    file = root / "groups.csv"
    if not os.path.lexists(file):
        return {}
    inside(root, [file])
    try:
        text = io.StringIO(read_text(file, "utf-8-sig"), newline="")  # spreadsheets begin a file with a mark
        lines = [[cell.strip() for cell in line] for line in csv.reader(text) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); save it as text in UTF-8, or remove it") from None
    layout = "give one line identity,group for each private person, below a first line that reads identity,group"
    if not lines or lines[0] != ["identity", "group"]:
        raise UserError(f"{file} begins with {','.join(lines[0]) if lines else 'nothing'!r}; {layout}")
    odd = [line for line in lines[1:] if len(line) != 2 or not all(line)]
    if odd:
        raise UserError(
            f"{file} has {len(odd)} line(s) without one identity and one group, the first is "
            f"{','.join(odd[0])!r}; {layout}"
        )
    if len(lines) == 1:
        raise UserError(f"{file} names nobody; {layout}, or remove it")
    names = [name for name, _ in lines[1:]]
    unknown = [name for name in names if name not in private]
    if unknown:
        raise UserError(
            f"{file} names {len(unknown)} identity(ies) without a folder in private/, the first is "
            f"'{unknown[0]}'; correct the name or remove the line"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{file} names {len(twice)} identity(ies) twice, the first is '{twice[0]}'; keep one line each")
    return {name: group for name, group in lines[1:]}


def _check_people(root: Path, private: dict[str, list[Path]], public: dict[str, list[Path]]) -> None:
    """At least two private people, none with too few pictures, nobody on both sides."""
    if len(private) < 2:
        raise UserError(f"{root} has {len(private)} person; a classifier needs at least 2: add folders")
    few = [person for person, own in private.items() if len(own) < 2]
    if few:
        raise UserError(
            f"{len(few)} private person(s) have fewer than 2 pictures, the first is '{few[0]}'; each needs one to "
            "train on and one held out: add pictures or remove the folder"
        )
    both = sorted(set(private) & set(public))
    if both:
        raise UserError(
            f"{len(both)} person(s) are in both private/ and public/, the first is '{both[0]}'; the attacker must not "
            "own private people: remove them from public/, or rename them if they are different people"
        )


def _check_copies(private: dict[str, list[Path]], public: dict[str, list[Path]], hashes: dict[Path, str]) -> None:
    """No picture under two people, whichever side they are on."""
    seen: dict[str, tuple[bool, str, Path]] = {}
    clashes = []
    for side, tree in ((True, private), (False, public)):
        for person, own in tree.items():
            for file in own:
                first = seen.setdefault(hashes[file], (side, person, file))
                if first[:2] != (side, person):
                    clashes.append((first[0] != side, file, first[2]))
    leaks = [(file, other) for across, file, other in clashes if across]
    if leaks:
        raise UserError(
            f"{len(leaks)} private image(s) also lie in public/, the first is {leaks[0][0]} (= {leaks[0][1]}); the "
            "attacker must not own private data: remove them from public/"
        )
    if clashes:
        raise UserError(
            f"{len(clashes)} picture(s) lie under two people, the first is {clashes[0][1]} (= {clashes[0][2]}); "
            "keep each under one"
        )
