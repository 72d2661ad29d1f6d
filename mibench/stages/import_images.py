"""Images that another program made, brought in as an inversion, so that they are judged by the same protocol.

    folder/<person>/*.png       the target's class names; PNG or JPEG, as many as there are of each person

Names that the target does not know, empty folders, other files and files that cannot be read are refused; people
without a folder are not attacked. Images of another size are cropped to the centre square and resized; what was
converted is said and written down. Of how they were made nothing is known: access is 'none', queries are blank, and
there is no prior.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mibench.core import Dataset
from mibench.data.cache import hash_of
from mibench.data.decode import decode_all
from mibench.data.folder import inside, visible
from mibench.plugins import registry
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, write_json
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts

__all__ = ["IMPORTED", "imported", "plan", "work"]

IMPORTED = "imported"
"""What stands for the attack in a specification."""

SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "lay them out as FOLDER/<person>/*.png, named as the target's classes"
LETTERS = "letters, digits and . _ - +"


def imported(run: Run) -> bool:
    """Whether a run is an inversion that another program made."""
    return run.kind == "inversions" and run.spec["attack"]["name"] == IMPORTED


def plan(root: Path, target: Run, folder: Path, name: str | None = None) -> Run:
    """The inversion that a folder of images stands for; the same folder gives the same run wherever it lies.

    Args:
        root: The results folder.
        target: What the images are reconstructions from; finished.
        folder: One sub-folder per identity.
        name: What the report calls them; the folder's name if absent.

    Raises:
        UserError: For a name that an attack of mibench has or that cannot be a folder's; a folder that is missing,
            empty, or holds something else than images of the target's identities.
    """
    root_of_images = _root(folder)
    called = name if name is not None else root_of_images.name
    _check_name(called)
    classes = tuple(artifacts.read_header(target.path / "model.safetensors").get("classes", ()))
    people = _people(folder, classes, target)
    return Run(
        root,
        "inversions",
        called,
        {
            "access": "none",
            "attack": {"name": IMPORTED, "settings": {"content": _content(people), "name": called}},
            "budget": None,
            "identities": None,
            "precision": "fp32",
            "seed": None,
        },
        {"target": target},
        inputs={"images": str(root_of_images)},
    )


def _root(folder: Path) -> Path:
    """The folder of images, absolute.

    Raises:
        UserError: If there is none of this name.
    """
    try:
        absolute = folder.expanduser().resolve()
        if absolute.is_dir():
            return absolute
    except (OSError, RuntimeError):  # a loop of links, a name too long, nobody's ~home
        pass
    raise UserError(f"--images {folder}: there is no such folder; {LAYOUT}")


def _check_name(name: str) -> None:
    plain = all(letter.isascii() and (letter.isalnum() or letter in "._-+") for letter in name)
    if not name or len(name) > 40 or name[0] in ".-" or not plain:
        raise UserError(
            f"--name '{name}': the images need a name of at most 40 {LETTERS}, not beginning with . or -; "
            "give one with --name"
        )
    if name.split("+")[0] in registry.names("attacks"):
        raise UserError(f"--name {name} is an attack of mibench; give another, for example --name {name}-theirs")


def _people(folder: Path, classes: Sequence[str], target: Run) -> dict[int, list[Path]]:
    """Image files by label, in the order of labels and file names; nothing is read.

    Raises:
        UserError: See `plan`.
    """
    _root(folder)
    root = folder.expanduser()
    try:
        inside(root, visible(root))
        folders = {one: visible(one) for one in visible(root) if one.is_dir()}
        inside(root, [file for own in folders.values() for file in own])
        loose = [one for one in visible(root) if not one.is_dir()]
    except OSError as error:
        raise UserError(f"--images {folder}: {error.filename} cannot be read ({error.strerror}); mend it") from None
    if loose:
        raise UserError(f"--images {folder}: {len(loose)} loose file(s), the first is {loose[0].name}; {LAYOUT}")
    if not folders:
        raise UserError(f"--images {folder} is empty; {LAYOUT}")
    unknown = [one.name for one in folders if one.name not in classes]
    if unknown:
        near = get_close_matches(unknown[0], classes, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"--images {folder}: {len(unknown)} folder(s) are no identity of {target.label}, the first is "
            f"'{unknown[0]}'; {hint}it knows {len(classes)}: "
            f"{', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        )
    empty = [one.name for one, own in folders.items() if not own]
    if empty:
        raise UserError(
            f"--images {folder}: {len(empty)} folder(s) have no images, the first is '{empty[0]}'; fill or remove it"
        )
    odd = [one for own in folders.values() for one in own if one.is_dir() or one.suffix.lower() not in SUFFIXES]
    if odd:
        raise UserError(
            f"--images {folder}: {len(odd)} thing(s) are no PNG or JPEG file, the first is {odd[0]}; remove or convert "
            "it"
        )
    by_label = {classes.index(one.name): own for one, own in folders.items()}
    return dict(sorted(by_label.items()))


def _content(people: Mapping[int, list[Path]]) -> str:
    """sha256 over who, file names and bytes."""
    named = [(label, [file.name for file in own]) for label, own in people.items()]
    try:
        return hash_of(named, files=[file for own in people.values() for file in own])
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); replace or remove it") from None


def _conversions(files: Sequence[Path], data: Dataset) -> dict[str, int]:
    """What `decode` does in silence: other sizes, and pixels that JPEG has already changed."""
    _, height, width = data.image_shape
    counts: dict[str, int] = {}
    for file in files:
        with open_file(file) as content, Image.open(content) as opened:
            said = {
                f"resized to {width} x {height}": opened.size != (width, height),
                "JPEG, whose pixels are not the program's": opened.format == "JPEG",
            }
        for what, so in said.items():
            if so:
                counts[what] = counts.get(what, 0) + 1
    return counts


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Read, convert, write what an inversion writes.

    Raises:
        UserError: For files that cannot be read, or that have changed since the run was planned.
    """
    started = clock()
    target = run.target
    data = artifacts.dataset(target)
    channels, height, width = data.image_shape
    if height != width:
        raise UserError(f"'{data.name}' has images of {width} x {height}; only square ones can be imported")
    folder = Path(run.inputs["images"])
    people = _people(folder, data.classes, target)
    if _content(people) != run.spec["attack"]["settings"]["content"]:
        raise UserError(f"the images in {folder} have changed since they were asked for; run the same command again")
    files = [file for own in people.values() for file in own]
    images, converted = decode_all(files, height, channels == 3, reporter)
    converted = _conversions(files, data) | converted
    labels = torch.tensor([label for label, own in people.items() for _ in own])
    counts = [len(own) for own in people.values()]
    each = (
        f"{counts[0]} each"
        if len(set(counts)) == 1
        else (f"{min(counts)} to {max(counts)} each; rates are means over images, so that people with more count more")
    )
    left = f" of {len(data.classes)}" if len(people) < len(data.classes) else ""
    reporter.say(f"images {run.name}: {len(files)} images of {len(people)}{left} identities, {each}")
    for what, count in converted.items():
        reporter.say(f"images {run.name}: {count} image(s) converted: {what}")
    with run.writing(describe(engine), reporter.say) as place:
        artifacts.write_tensors(
            place / "images.safetensors",
            {"failed": torch.zeros(len(files), dtype=torch.bool), "images": images, "labels": labels},
            {"role": "reconstructions", "attack": run.name, "dataset": data.name, "classes_count": len(people)},
        )
        metrics: dict[str, Any] = {
            "converted": converted,
            "gradient_images_per_identity": None,
            "identities": len(people),
            "images": len(files),
            "images_least": min(counts),
            "images_most": max(counts),
            "queries_per_identity": None,
            "shared_gradients": None,
            "shared_queries": None,
            "unoptimised_images": None,
        }
        write_json(place / "metrics.json", metrics)
        write_json(place / "files.json", {"files": [f"{file.parent.name}/{file.name}" for file in files]})
        tile(images[: 8 * 8], place / "grid.png", columns=8)
        run.finish(provenance(started, describe(engine)))
