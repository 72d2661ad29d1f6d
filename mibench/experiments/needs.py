"""Everything that a suite needs, looked for before hours are spent: data sets, files of weights, packages, judges.

Nothing is written, nothing is fetched, and one thing that is missing hides no other. What the machine must have is in
`mibench.experiments.room`, how long it takes in `mibench.experiments.seconds`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from mibench import models
from mibench.core import Attack
from mibench.data.published import packs, publics, worker
from mibench.data.published.needs import MARKER, Need, facts_of, require, top_of
from mibench.data.published.packs import Part
from mibench.data.published.source import Published
from mibench.data.published.stores import open_store
from mibench.evaluation import faces
from mibench.experiments import suites
from mibench.experiments.reading import FINISHED, named
from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance, weights
from mibench.models.imported.sources import digest_of
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.priors.imported.opening import read_generator
from mibench.priors.imported.published import PUBLISHED
from mibench.runs import Run, find
from mibench.runtime.absent import WEIGHTS, Absent, located
from mibench.runtime.errors import UserError
from mibench.stages.import_prior import is_reference

__all__ = ["State", "Thing", "of_data", "of_judges", "of_packages", "of_plan", "of_weights"]

State = Literal["have", "missing", "unclear", "absent"]
"""Here; not here, or not the right thing; that cannot be told; not here and not required (a column stays empty)."""

STANDIN = "STAND-INS: what is measured with them is no result"

PROBED = 48
"""Pictures of each store that are decoded to see whether they can be; all of them are when they are prepared."""


@dataclass(frozen=True)
class Thing:
    """One thing that is needed.

    Args:
        group: data, weights, packages, judges, machine or plan.
        what: Its name.
        state: Whether it is here.
        told: What was found, or what it is.
        remedy: What to do where it is not: a command, or an address and its licence.
    """

    group: str
    what: str
    state: State
    told: str = ""
    remedy: str = ""


# --- data sets


def of_data(data: Choice) -> list[Thing]:
    """A data set, its files and those of the attacker's image set."""
    if isinstance(data.plugin, Published):
        return _published(data, data.plugin)
    try:
        shape = data.plugin.shape()
        if data.plugin.refusable and not getattr(data.plugin, "root", ""):
            data.plugin.load()  # small: pictures of a package or of the user's own folder
    except (UserError, OSError) as error:
        root = getattr(data.plugin, "root", None)
        remedy = (
            f"mibench data prepare {data.name} --root DIR" if root is not None else f"mibench data show {data.name}"
        )
        return [Thing("data", data.name, "missing", str(error), remedy)]
    told = f"{shape.classes} people, {shape.public:,} public pictures of {shape.image_shape[1]} px"
    return [Thing("data", data.name, "have", told)]


def _published(data: Choice, plugin: Published) -> list[Thing]:
    try:
        top = top_of(plugin.root, plugin.folder)
    except Absent:
        folders = [_absent(folder, need) for folder, need in plugin.needed()]
        remedy = "export MIBENCH_DATA=DIR, or --set data.root=DIR"
        told = "no such folder" if plugin.root or os.environ.get("MIBENCH_DATA") else "not set"
        return [Thing("data", "MIBENCH_DATA", "missing", f"the folder of all data sets: {told}", remedy), *folders]
    except UserError as error:
        return [Thing("data", "MIBENCH_DATA", "missing", str(error), "give --set data.root=DIR")]
    command = f"mibench data prepare {data.name} --root {top}{_settings(plugin)}"
    things, whole = [], True
    own = _pack(lambda: plugin.own())
    if isinstance(own, UserError):
        things.append(Thing("data", f"{data.name}, prepared", "missing", str(own), command))
    elif own is not None:
        things.append(_prepared(data.name, own, plugin.size, plugin.own().about["notes"]["standin"]))
    else:
        found = [_file(top, folder, need) for folder, need in plugin.needed() if folder == plugin.folder]
        if all(one.state == "have" for one in found):
            found += _protocol(plugin, top)
        things += found
        whole = False
    if plugin.public_set:
        public = publics.PUBLICS[plugin.public_set]
        pack = _pack(lambda: public.pack(top, plugin.size))
        if isinstance(pack, packs.Pack):
            things.append(_prepared(public.name, pack, plugin.size, pack.about["notes"]["standin"]))
        else:
            things += _images(top, public, plugin.size)
            whole = False
    if not whole:
        things.append(Thing("data", f"{data.name}, prepared", "missing", f"at {plugin.size} px", command))
    return things


def _settings(plugin: Published) -> str:
    own = [one for one in fields(plugin) if one.name != "root" and getattr(plugin, one.name) != one.default]
    return "".join(f" --set data.{one.name}={getattr(plugin, one.name)}" for one in own)


def _pack(find_it: Any) -> packs.Pack | UserError | None:
    """What is prepared; the error if it is damaged, None if nothing is."""
    try:
        pack: packs.Pack = find_it()
        for part in pack.about["parts"]:
            pack.part(part)
    except Absent:
        return None
    except UserError as error:
        return error
    return pack


def _prepared(name: str, pack: packs.Pack, size: int, standin: bool) -> Thing:
    count = sum(shape[0] for shape in pack.about["parts"].values())
    told = f"{count:,} pictures of {size} px"
    if standin:
        told += f"; {STANDIN}"
    return Thing("data", f"{name}, prepared", "have", told)


def _absent(folder: str, need: Need) -> Thing:
    others = "".join(f" or {name}" for name in need.names[1:])
    return Thing("data", f"{folder}/{need.names[0]}{others}", "missing", need.what, f"{need.source} [{need.licence}]")


def _file(top: Path, folder: str, need: Need) -> Thing:
    """One file or folder: there, the published one, and whole as far as its directory tells."""
    place = need.place(top / folder)
    if place is None:
        return _absent(folder, need)
    what, again = f"{folder}/{place.relative_to(top / folder)}", f"{need.source} [{need.licence}]"
    try:
        require([(top / folder, need)])
        if place.is_dir() or place.suffix in (".zip", ".tar"):
            told = _looked_at(place)
            if told:
                return Thing("data", what, "missing", told, f"replace or remove them; {again}")
    except (UserError, OSError) as error:
        return Thing("data", what, "missing", str(error), again)
    return Thing("data", what, "have", need.what)


def _looked_at(place: Path) -> str:
    """What is wrong with the pictures of a store: empty ones, and those of a sample that cannot be decoded."""
    store = open_store(place)
    sizes = store.sizes()
    if not sizes:
        return "it holds no picture"
    empty = [name for name, (size, _) in sizes.items() if not size]
    names = [name for name in sizes if name not in empty]
    sample = names[:: max(1, len(names) // PROBED)]
    bad = [name for name in sample if not worker.opens(store, name)]
    lines = []
    if empty:
        lines.append(f"{len(empty):,} of {len(sizes):,} pictures are empty, the first is {empty[0]}")
    if bad:
        lines.append(f"{len(bad)} of {len(sample)} that were looked at cannot be decoded, the first is {bad[0]}")
    return "; ".join(lines)


def _protocol(plugin: Published, top: Path) -> Iterator[Thing]:
    """Lists and counts against those of the protocol; nothing is decoded."""
    try:
        listing = plugin.listing(top / plugin.folder)
        parts: Mapping[str, Part] = {name: part for name, part in listing.parts.items() if part.pictures}
        packs.check(parts)
    except (UserError, OSError) as error:
        yield Thing("data", f"{plugin.folder}, as its protocol", "missing", str(error), "see the files above")
        return
    count = sum(len(part.pictures) for part in parts.values())
    told = f"{len(listing.classes):,} people, {count:,} pictures"
    if (top / plugin.folder / MARKER).exists():
        told += f"; {STANDIN}"
    yield Thing("data", f"{plugin.folder}, as its protocol", "have", told)


def _images(top: Path, public: publics.PublicSet, size: int) -> list[Thing]:
    """The attacker's image set, not prepared yet."""
    thing = _file(top, public.name, public.need(size))
    place = public.need(size).place(top / public.name)
    if thing.state == "have" and place is not None:
        with suppress(UserError, OSError):
            count, wanted = len(open_store(place).sizes()), facts_of(top / public.name, {"pictures": public.count})
            if count != wanted["pictures"]:
                told = f"{count:,} pictures, the protocol has {wanted['pictures']:,}: not fetched to the end"
                thing = Thing("data", thing.what, "missing", told, _absent(public.name, public.need(size)).remedy)
    return [thing]


# --- files of weights


def of_weights(tables: Sequence[Mapping[str, Any]], source: str, runs: Sequence[Run], results: Path) -> list[Thing]:
    """Generators, weights that a suite states, finished evaluation models, ImageNet weights."""
    things = [_generator(str(one["prior"]), one) for one in tables if is_reference(str(one.get("prior") or ""))]
    for name, stated in suites.needs(source).items():
        place = located(Path(name))
        told = f"{stated['size']}" if place is None else str(place)
        remedy = f"{stated['source']} [{stated['licence']}], to MIBENCH_DATA/{WEIGHTS}/{name}"
        things.append(Thing("weights", name, "missing" if place is None else "have", told, "" if place else remedy))
    for name in _judging(tables):
        if name.startswith(FINISHED):
            things.append(_finished(name, results))
    wanted = dict.fromkeys(one.spec["model"] for one in runs if one.spec.get("pretrained") is True)
    wanted |= dict.fromkeys(name for one in runs if one.kind == "inversions" for name in _surrogates(one))
    return [*things, *map(_imagenet, wanted)]


def _judging(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name.strip() for one in tables for name in str(one.get("evaluators") or "").split(",")]
    return list(dict.fromkeys(filter(None, names)))


def _generator(name: str, table: Mapping[str, Any]) -> Thing:
    path = Path(name)
    if path.is_dir():
        return Thing("weights", name, "have", "an imported prior")
    known, place = PUBLISHED.get(path.name), located(path)
    again = f"{known.source} [{known.licence}]" if known else "fetch it from its authors"
    if place is None:
        told = f"a generator of {known.resolution} px, {known.size}" if known else "a generator"
        return Thing("weights", name, "missing", told, f"{again}, to MIBENCH_DATA/{WEIGHTS}/{path.name}")
    try:
        geometry = read_generator(place).geometry
    except (UserError, OSError) as error:
        return Thing("weights", name, "missing", str(error), again)
    told = f"{geometry.resolution} px, {place.stat().st_size / 1e9:.1f} GB"
    if known and geometry.resolution != known.resolution:
        return Thing("weights", name, "missing", f"draws {told}; the published one {known.resolution} px", again)
    crop = int(table["settings"].get("prior", {}).get("crop", 0))
    if crop > geometry.resolution:
        return Thing("weights", name, "missing", f"draws {told}; the suite crops {crop} px of it", again)
    return Thing("weights", name, "have", told)


def _finished(name: str, results: Path) -> Thing:
    try:
        run = find(results, name)
    except UserError as error:
        how = "mibench train-target --weights FILE --evaluator --dataset NAME, then name the run that it prints"
        return Thing("weights", name, "missing", str(error), how)
    return Thing("weights", name, "have", run.label)


def _surrogates(inversion: Run) -> list[str]:
    """Architectures that an attack starts from ImageNet weights."""
    chosen = inversion.spec["attack"]
    attack: Any = registry.configure("attacks", chosen["name"], settings=chosen["settings"]).plugin
    names: list[str] = []
    while isinstance(attack, Attack):
        if getattr(attack, "pretrained", False):
            names += [*getattr(attack, "surrogates", ()), *getattr(attack, "students", ())]
        attack = getattr(attack, "attack", None)
    return [name for name in names if name not in models.own()]


def _imagenet(architecture: str) -> Thing:
    """ImageNet weights, in torch's cache or not; a network fetches them itself where there is internet."""
    what = f"ImageNet weights of {architecture}"
    if architecture.startswith("timm:"):
        how = "needs mibench[timm]; fetched from huggingface.co when it is first built"
        return Thing("weights", what, "unclear", "timm keeps them in Hugging Face's cache", how)
    import torch
    from torchvision import models as networks

    url = str(networks.get_model_weights("vgg16_bn" if architecture == "vgg16_bn64" else architecture).DEFAULT.url)
    file = os.path.basename(urlparse(url).path)
    place = Path(torch.hub.get_dir()) / "checkpoints" / file
    remedy = f"curl --create-dirs -o {place} {url} [BSD-3-Clause]"
    if not place.is_file():
        told = "not in torch's cache; where there is internet torch fetches it when it is needed"
        return Thing("weights", what, "missing", told, remedy)
    begin = re.search(r"-([0-9a-f]{8,})\.", file)
    return _checked("weights", what, place, begin[1] if begin else "", f"rm {place}; {remedy}")


# --- packages and judges


def of_packages(tables: Sequence[Mapping[str, Any]], on: str | None = None) -> list[Thing]:
    """Optional packages that something in the suite needs; those that are installed too."""
    wanted: dict[str, tuple[str, str]] = {}
    for table in tables:
        for name in [str(table.get("model", "")), *_judging([table])]:
            if name.startswith("timm:"):
                wanted["timm"] = ("timm", name)
        for text in table.get("defenses", ()):
            with suppress(UserError):
                for defense in named(text)[0].split("+"):
                    if defense in registry.names("defenses"):
                        packages = registry.card("defenses", defense).get("packages", {})
                        wanted |= {package: (extra, defense) for package, extra in packages.items()}
    if on is not None:
        wanted["ray"] = ("ray", f"--on {on}")
    return [
        Thing("packages", package, "have", f"for {why}")
        if find_spec(package) is not None
        else Thing("packages", package, "missing", f"for {why}", f"pip install 'mibench[{extra}]'")
        for package, (extra, why) in wanted.items()
    ]


def of_judges(runs: Sequence[Run]) -> list[Thing]:
    """Published recognisers where photographs of faces are judged, and the networks of distances; what is not here of
    these leaves a column empty."""
    things = []
    scores = [one for one in runs if one.kind == "scores"]
    if any(one.inputs.get("photographs") and "verifiers" not in one.parents for one in scores):
        here, missing = faces.present()
        if here:
            things.append(Thing("judges", "a face recogniser", "have", ", ".join(here)))
        else:
            told = f"none of {', '.join(faces.RECOGNISERS)} is here: without one no verifier judges likeness"
            how = "; or ".join(one.how for one in reversed(missing))
            things.append(Thing("judges", "a face recogniser", "missing", told, how))
    return [*things, *(_measure(name, file) for name, file in MEASURES.items() if scores)]


MEASURES = {
    "FID": inception.WEIGHTS,
    "distance in FaceNet": facenet_distance.WEIGHTS,
    "LPIPS": lpips_distance.WEIGHTS["alex"],
}
"""Distances that are measured where their networks are here."""


def _measure(name: str, file: weights.WeightFile) -> Thing:
    place = weights.locate(name, file)
    if isinstance(place, Unavailable):
        return Thing("judges", name, "absent", f"not measured: {place.why}", place.how)
    return _checked("judges", name, place, file.sha256, f"fetch {file.url} again")


def _checked(group: str, what: str, place: Path, sha256: str, again: str) -> Thing:
    """A file of weights, against the first digits of its published hash."""
    digest = digest_of(place)
    if not digest.startswith(sha256):
        told = f"{place} is not the published file (sha256 {digest[:8]}, not {sha256[:8]}): a partial download?"
        return Thing(group, what, "missing", told, again)
    return Thing(group, what, "have", str(place))


def of_plan(error: UserError) -> Thing:
    """What planning refuses, which may be what is missing above."""
    return Thing("plan", "planning", "missing", str(error), "mend that and check again")


def distinct(things: Iterable[Thing]) -> list[Thing]:
    """Each thing once, in order."""
    return list(dict.fromkeys(things))
