"""Everything that a suite needs, looked for before hours are spent: files of weights, packages, judges.

Nothing is written, nothing is fetched, and one thing that is missing hides no other. Data sets are in
`mibench.experiments.data_needs`, what the machine must have in `mibench.experiments.room`, how long it takes in
`mibench.experiments.seconds`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch

from mibench import models
from mibench.core import Attack
from mibench.evaluation import faces
from mibench.experiments import suites
from mibench.experiments.reading import FINISHED
from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance, weights
from mibench.models.imported.sources import digest_of
from mibench.plugins import registry
from mibench.plugins.settings import named
from mibench.priors.imported.opening import read_generator
from mibench.priors.imported.published import PUBLISHED
from mibench.runs import Run, find
from mibench.runtime.absent import WEIGHTS, located
from mibench.runtime.errors import UserError
from mibench.stages.import_prior import is_reference

__all__ = ["State", "Thing", "distinct", "of_judges", "of_packages", "of_plan", "of_weights"]

State = Literal["have", "missing", "unclear", "absent"]
"""Here; not here, or not the right thing; that cannot be told; not here and not required (a column stays empty)."""


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
        return _timm(what, architecture.removeprefix("timm:"))
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


def _timm(what: str, name: str) -> Thing:
    """The same of a network of timm, whose weights are a repository in Hugging Face's cache, or a file in torch's."""
    try:
        from huggingface_hub import constants, try_to_load_from_cache
        from timm.models import get_pretrained_cfg
    except ImportError:
        return Thing(
            "weights", what, "unclear", "timm, which is not installed, says which", "pip install mibench[timm]"
        )
    known: Any = get_pretrained_cfg(name)
    licence = f"[{known.license or 'its licence: see the page'}]" if known else ""
    if known is None or not (known.hf_hub_id or known.url):
        return Thing("weights", what, "missing", f"nobody has published any of {name}", "build it without")
    if known.hf_hub_id:
        repository, _, revision = str(known.hf_hub_id).partition("@")
        files = (known.hf_hub_filename,) if known.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        for file in files:
            found = try_to_load_from_cache(repository, file, constants.HF_HUB_CACHE, revision or None)
            if isinstance(found, str):
                return Thing("weights", what, "have", found)
        told = f"no {' or '.join(files)} of {repository} in {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
        return Thing("weights", what, "missing", told, f"hf download {repository} {files[0]} {licence}")
    place = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(str(known.url)).path)
    if place.is_file():
        return Thing("weights", what, "have", str(place))
    return Thing("weights", what, "missing", "", f"curl --create-dirs -o {place} {known.url} {licence}")


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
    digest = digest_of(place) if sha256 else ""
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
