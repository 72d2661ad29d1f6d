"""What stands in for what is large or not here: data sets, published generators, ImageNet weights."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mibench import models
from mibench.core import Source
from mibench.data import standin
from mibench.data.published.source import Published
from mibench.experiments.experiment import Attacker, Experiment
from mibench.experiments.reading import FINISHED
from mibench.experiments.rehearsal import smaller
from mibench.experiments.rehearsal.smaller import IDENTITIES
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.priors.imported.standin import Sizes, nvidia
from mibench.priors.stylegan2_ada import StyleGan2Ada
from mibench.runs import Run, find
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter
from mibench.stages import import_prior

__all__ = ["EMBEDDED", "SIDE", "imagenet", "replaced", "smaller_data", "standing_in"]

SIDE = 64
"""Side in pixels of the pictures of data sets that are larger."""

EMBEDDED: Mapping[str, Mapping[str, int]] = {
    "digiface": {
        **{"identities": 20, "train_images": 2, "heldout_images": 2, "public_images": 60, "image_size": 32},
        **{"distractors": 4, "distractor_images": 2, "bystanders": 20},
    }
}
"""Settings of embedded data sets that are drawn, and the most that a rehearsal gives them: a verifier needs 20 people
to learn from and 20 to judge."""

FEWER: Mapping[str, int] = {"distractors": 4, "public_people": 6}
"""Settings of published data sets that are counts of people, and the most that a rehearsal gives them."""

USE = ("crop", "antialias", "noise", "half", "label", "psi", "cutoff", "enlarge")
"""How an imported generator is used, whichever file it comes from."""

THIN = Sizes(base=1024, most=2)
"""One channel at 1024 pixels, two below."""


def smaller_data(data: Choice, root: Path, reporter: Reporter) -> Choice:
    """A data set as it is rehearsed: drawn smaller, or prepared from a tree of stand-in files as its own would be.

    Args:
        data: As the suite has it.
        root: The folder of all stand-in data sets.
        reporter: Is told how far it is.
    """
    source: Source = data.plugin
    settings = asdict(source)
    if isinstance(source, Published):
        for folder in dict.fromkeys([source.folder, source.public_set]):
            if folder and not (root / folder).exists():
                standin.write(folder, root, crowd=True)
        settings |= {"root": str(root), "image_size": min(source.size, SIDE)}
        settings |= {name: min(settings[name], most) for name, most in FEWER.items() if name in settings}
    for name, most in EMBEDDED.get(data.name, {}).items():
        settings[name] = min(settings[name], most)
    chosen = registry.configure("data", data.name, settings=settings)
    chosen.plugin.prepare(reporter)
    return chosen


def standing_in(experiment: Experiment, data: Choice, weights: Path, results: Path | None = None) -> Experiment:
    """The experiment on such data, against few people, with thin generators in the place of published ones.

    Args:
        experiment: As the suite has it.
        data: Of `smaller_data`.
        weights: The folder that files of generators are written to.
        results: The user's own results, which tell what finished evaluation models are.

    Raises:
        UserError: Nothing tells which architecture a finished evaluation model is.
    """
    most = min(experiment.identities or IDENTITIES, IDENTITIES)
    attackers = tuple(_searching(attacker, weights) for attacker in experiment.attackers)
    names = experiment.evaluators.names
    trained = names and tuple(
        _architecture(one, data.name, results) if one.startswith(FINISHED) else one for one in names
    )
    judges = replace(experiment.evaluators, names=trained)
    return replace(experiment, dataset=data, identities=most, attackers=attackers, evaluators=judges)


def _architecture(name: str, data: str, results: Path | None) -> str:
    """Of a finished evaluation model, which is trained here like the others: as its run says, else by its name
    (`evaluators/DATA-ARCHITECTURE-ID`)."""
    if results is not None:
        with suppress(UserError):
            return str(find(results, name).spec["model"])
    architecture = re.sub(r"-[0-9a-f]{12}$", "", name.removeprefix(FINISHED)).removeprefix(f"{data}-")
    try:
        models.family(architecture)
    except UserError:
        raise UserError(
            f"nothing can stand in for {name}: it is not in {results or 'a results folder'}, and its name does not say "
            f"which architecture it is ({FINISHED}{data}-ARCHITECTURE-ID does)"
        ) from None
    return architecture


def _searching(attacker: Attacker, weights: Path) -> Attacker:
    """The attacker with a thin generator of the published resolution, if it searches an imported one."""
    plugin = attacker.prior.plugin
    if not isinstance(plugin, StyleGan2Ada):
        return attacker
    file = weights / f"{plugin.name}.pkl"
    if not file.exists():
        nvidia(file, plugin.resolution, plugin.classes, sizes=THIN)
    return replace(attacker, prior=import_prior.choose(file, {name: getattr(plugin, name) for name in USE}))


def imagenet(runs: Iterable[Run], checkpoints: Path) -> list[str]:
    """Write random weights for what starts from ImageNet's and has none here, under their published names.

    Args:
        runs: As they are rehearsed.
        checkpoints: Torch's cache.

    Returns:
        The architectures that got some.
    """
    from torchvision import models as networks
    from torchvision.models.vgg import cfgs, make_layers

    wanted = {run.spec["model"] for run in runs if run.spec.get("pretrained") is True}
    for run in runs:
        settings: Mapping[str, Any] = run.spec.get("attack", {}).get("settings", {})
        if settings.get("pretrained"):
            wanted |= {name for value in settings.values() if isinstance(value, list | tuple) for name in value}
    made = []
    for name in sorted(wanted & set(networks.list_models(module=networks)) | wanted & {"vgg16_bn64"}):
        theirs = name.removesuffix("64") if name == "vgg16_bn64" else name
        file = checkpoints / str(networks.get_model_weights(theirs).DEFAULT.url).rpartition("/")[2]
        if not file.exists():
            options = {"init_weights": False} if theirs in ("googlenet", "inception_v3") else {}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                if name == theirs:
                    state = networks.get_model(theirs, weights=None, **options).state_dict()
                else:  # of 138 million weights it reads the 15 million of the convolutions
                    own = make_layers(cfgs["D"], batch_norm=True).state_dict()
                    state = {f"features.{key}": value for key, value in own.items()}
                torch.save(state, file)
            made.append(name)
    return made


def replaced(runs: Iterable[Run], random: Iterable[str]) -> list[str]:
    """What stands in for what, a line each.

    Args:
        runs: As they are rehearsed.
        random: Of `imagenet`.
    """
    lines: list[str] = []
    runs = list(runs)
    for inputs in [run.inputs["dataset"] for run in runs if "dataset" in run.inputs]:
        if inputs["settings"].get("root"):
            told = f"stand-in files in their own formats and layout, {inputs['settings']['image_size']} px"
        elif inputs["name"] in EMBEDDED:
            told = ", ".join(f"{key} {inputs['settings'][key]}" for key in EMBEDDED[inputs["name"]])
        else:
            continue
        lines.append(f"data set {inputs['name']}: {told}")
    for run in runs:
        if run.kind == "priors" and import_prior.is_imported(run):
            side = run.spec["prior"]["settings"]["resolution"]
            lines.append(f"generator {run.name}: random, of {side} px with 1 or 2 channels")
    if random := list(random):
        lines.append(f"ImageNet weights of {', '.join(random)}, which are not here: random")
    if any(run.spec.get("model", "").startswith("timm:") for run in runs):
        lines.append("ImageNet weights of timm's networks: random")
    counts = ", ".join(f"{name} {most}" for name, most in smaller.COUNTS.items())
    return [
        *dict.fromkeys(lines),
        f"networks: their own, on images of {smaller.SIDE} px where they take any; trained for one pass, or two",
        f"people that are attacked: {IDENTITIES}; of attacks and priors at most: {counts}",
        "the zoo: what it has ready is trained like the rest",
    ]
