"""What stands in for what is large or not here: data sets, published generators, ImageNet weights."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mibench.core import Source
from mibench.data import standin
from mibench.data.published.source import Published
from mibench.experiments.experiment import Experiment
from mibench.experiments.rehearsal.smaller import IDENTITIES
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runtime.progress import Reporter

__all__ = ["EMBEDDED", "SIDE", "data_for", "smaller_data"]

SIDE = 64
"""Side in pixels of the pictures of data sets that are larger."""

EMBEDDED: Mapping[str, Mapping[str, int]] = {
    "digiface": {
        **{"identities": 20, "train_images": 2, "heldout_images": 2, "public_images": 40, "image_size": 32},
        **{"distractors": 4, "distractor_images": 2, "bystanders": 20},
    },
}
"""Settings of embedded data sets that are drawn, and the most that a rehearsal gives them: a verifier needs 20 people
to learn from and 20 to judge."""


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
                standin.write(folder, root)
        settings |= {"root": str(root), "image_size": min(source.size, SIDE)}
    for name, most in EMBEDDED.get(data.name, {}).items():
        settings[name] = min(settings[name], most)
    chosen = registry.configure("data", data.name, settings=settings)
    chosen.plugin.prepare(reporter)
    return chosen


def data_for(experiment: Experiment, data: Choice) -> Experiment:
    """The experiment on such data, against few people."""
    most = experiment.identities or IDENTITIES
    return replace(experiment, dataset=data, identities=min(most, IDENTITIES))
