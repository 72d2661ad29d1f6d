"""A generator that somebody else trained, brought in as the run of a prior.

Its id hangs on the bytes of the file and on how it is used (crop, truncation, ...), and on no data set: one import
serves all. What it was trained on is not known.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibench.models.imported.sources import digest_of, regular
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.priors.imported.opening import FORMATS, read_generator
from mibench.priors.imported.published import PUBLISHED
from mibench.priors.imported.weights import Weights
from mibench.priors.stylegan2_ada import AdaPrior, StyleGan2Ada
from mibench.runs import Run, clock, find, provenance
from mibench.runtime.absent import STATED, WEIGHTS, Absent, located, taken_as_published
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise, seed_of
from mibench.stages import artifacts

__all__ = ["PLUGIN", "Origin", "choose", "is_imported", "is_reference", "plan", "work"]

PLUGIN = "stylegan2_ada"

SAMPLES = {"cpu": 4, "cuda": 16, "mps": 4}
"""Draws in samples.png; an image of 1024 pixels takes seconds of a CPU."""


class Origin(NamedTuple):
    """Where the weights of an imported prior are to be read.

    Args:
        file: The authors' file, or the weights of a run that was imported before.
        licence: What the user says of it; empty is what is known of the format.
    """

    file: Path
    licence: str = ""


_origins: dict[str, Origin] = {}
"""By the sha256 of the authors' file, of all that were named in this process."""


def is_imported(run: Run) -> bool:
    """Whether a run is a prior that somebody else trained."""
    return run.kind == "priors" and run.spec.get("origin") == "imported"


def is_reference(name: str) -> bool:
    """Whether `--prior` names the file of a generator, or the directory of a run, rather than a prior of mibench's."""
    path = Path(name)
    return path.suffix.lower() in FORMATS or (len(path.parts) > 1 and path.is_dir())


def choose(path: Path, settings: Mapping[str, Any], name: str = "", licence: str = "") -> Choice:
    """The prior in an authors' file, or of a run that was imported before, with settings laid over its own.

    Args:
        path: The file, also below MIBENCH_DATA/weights; or the directory of the run.
        settings: `crop`, `psi`, ...: how it is used.
        name: What to call it; the file's name if empty.
        licence: What the user knows of it.

    Raises:
        Absent: There is no such file.
        UserError: It is no generator that can be imported, or no such run.
    """
    if path.is_dir():
        run = find(path.resolve().parent.parent, str(path.resolve()))
        if not is_imported(run):
            raise UserError(f"{path} is not the run of an imported prior; import one: mibench prior import FILE.pkl")
        known = dict(run.spec["prior"]["settings"])
        _origins[known["weights"]] = Origin(run.path / "prior.safetensors", str(run.inputs.get("licence", "")))
        return registry.configure("priors", PLUGIN, settings={**known, **settings})
    place = located(path)
    if place is None:
        return _absent(path, settings, name)
    file = regular(place, "the generator")
    weights, digest = read_generator(file), digest_of(file)
    _origins[digest] = Origin(file.resolve(), licence)
    return registry.configure("priors", PLUGIN, settings={**told(weights, name or path.stem, digest), **settings})


def _absent(path: Path, settings: Mapping[str, Any], name: str) -> Choice:
    """A generator that is not here, as its publication says if that is enough."""
    known = PUBLISHED.get(path.name)
    if not taken_as_published():
        where = f"from {known.source} [{known.licence}], " if known else ""
        raise Absent(
            f"there is no generator {path}: fetch it, {where}and give its path, or put it into MIBENCH_DATA/{WEIGHTS}/"
        )
    stated = {"name": name or path.stem, "weights": STATED} | ({"resolution": known.resolution} if known else {})
    return registry.configure("priors", PLUGIN, settings={**stated, **settings})


def told(weights: Weights, name: str, digest: str) -> dict[str, Any]:
    """What a file says of itself, as settings."""
    known = asdict(weights.geometry)
    known["half_levels"] = known.pop("half")
    return {**known, "name": name, "weights": digest, "critic": weights.has_critic}


def plan(root: Path, prior: Choice) -> Run:
    """The run that brings a prior in.

    Raises:
        UserError: No file is named.
    """
    plugin = prior.plugin
    if not plugin.weights:
        raise UserError(
            f"the prior {prior.name} is not learnt but imported: mibench prior import FILE.pkl, then --prior with the "
            "run that it prints (or --prior FILE.pkl at once)"
        )
    if not plugin.name or plugin.name.startswith(".") or {"/", "\0"} & set(plugin.name):
        raise UserError(f"the prior's name '{plugin.name}' cannot name a folder; give another with --name")
    known = _origins.get(plugin.weights)
    inputs = {} if known is None else {"file": str(known.file), "licence": known.licence}
    spec = {"origin": "imported", "precision": "fp32", "prior": prior.spec(), "seed": 0}
    return Run(root, "priors", plugin.name, spec, inputs=inputs)


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Read the file, keep its weights as safetensors, and draw some samples.

    Raises:
        UserError: The file is gone, has changed, or its tensors do not fit together.
    """
    started = clock()
    plugin: StyleGan2Ada = registry.configure("priors", PLUGIN, settings=run.spec["prior"]["settings"]).plugin
    if "file" not in run.inputs:
        raise UserError(f"{run.label}: where is the file? import it again: mibench prior import FILE.pkl")
    with run.writing(describe(engine), reporter.say) as folder, reporter.task(f"import {run.name}", 3, "steps") as task:
        weights = _weights(run, Path(run.inputs["file"]), plugin)
        task.advance()
        drawn = plugin.crop or plugin.resolution
        shape = (plugin.colours, drawn, drawn)
        with torch.random.fork_rng():
            prior = plugin.build(shape, 1, artifacts.nothing(shape))
        try:
            missing, extra = prior.load_state_dict(weights.tensors, strict=False)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise UserError(f"{run.inputs['file']}: its layers do not fit together: {first}") from None
        if left := [*(one for one in missing if one != "generator.centre"), *extra]:
            raise UserError(f"{run.inputs['file']} has {len(left)} tensors too few or too many, the first is {left[0]}")
        if wrong := [name for name, value in prior.state_dict().items() if not bool(value.isfinite().all())]:
            raise UserError(f"{run.inputs['file']}: {wrong[0]} is NaN or infinite; fetch it again")
        placed = engine.place(prior.requires_grad_(False).eval())
        assert isinstance(placed, AdaPrior)
        if missing:
            placed.find_centre(seed_of(0, "centre"))
        for note in weights.notes:
            reporter.say(f"{run.label}: {note}")
        task.advance()
        tile(samples(placed, engine), folder / "samples.png", columns=4)
        header = {"role": "prior", "prior": PLUGIN, "name": run.name}
        artifacts.write_tensors(folder / "prior.safetensors", placed.state_dict(), header)
        task.advance()
        write_json(folder / "metrics.json", _told(run, placed, plugin, weights))
        artifacts.write_log(folder / "log.jsonl", [])
        run.finish(provenance(started, describe(engine)))


@torch.no_grad()
def samples(prior: AdaPrior, engine: Engine) -> Tensor:
    """What samples.png shows: draws in w, truncated as an attack's pool, one after the other."""
    space = prior.space("w")
    keys = torch.arange(SAMPLES[engine.device.type], device=engine.device)
    w = space.sample(Noise(0, keys).of("samples"))
    return torch.cat([space.decode(one[None]) for one in w])


def _weights(run: Run, file: Path, plugin: StyleGan2Ada) -> Weights:
    """What the file holds, checked to be what the run was planned for."""
    if file.suffix == ".safetensors":
        tensors, _ = artifacts.read_tensors(file, "prior")
        known = find(file.parents[2], str(file.parent)).read("metrics.json")["imported"]
        return Weights(plugin.geometry, tensors, known["format"], known["licence"], tuple(known["notes"]))
    if digest_of(regular(file, "the generator")) != plugin.weights:
        raise UserError(f"{file} has changed since it was asked for; run the same command again")
    return read_generator(file)


def _told(run: Run, prior: AdaPrior, plugin: StyleGan2Ada, weights: Weights) -> dict[str, Any]:
    return {
        "critic": prior.critic_kind,
        "domain": f"what {run.name} was trained on (imported)",
        "imported": {
            "format": weights.format,
            "licence": run.inputs.get("licence") or weights.licence,
            "notes": list(weights.notes),
            "resolution": plugin.resolution,
            "sha256": plugin.weights,
        },
        "latent_dim": prior.latent_dim,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "public_images": 0,
        "target_queries": 0,
        "target_gradients": 0,
    }
