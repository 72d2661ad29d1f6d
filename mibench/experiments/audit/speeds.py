"""How long an audit takes: steps and passes are timed on this machine, how many a prior takes is a guess."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.core import Cost
from mibench.data.folder import people_of
from mibench.experiments.audit.question import Prepared
from mibench.models.imported.network import assemble
from mibench.models.imported.server import Asked as Server
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.runtime.files import write_json

__all__ = ["Speeds", "prior_steps", "target_seconds", "training_seconds"]

PRIOR_STEPS = {"stylegan2": 1400, "wgan_gp": 500, "tacgan": 700}
"""Guesses, not measurements: so many training steps of an evaluation model are taken to last as long as learning a
prior with its quick preset, and 1000 for a prior that is not named here. Only the estimate of time hangs on them."""

LENGTHS = ("epochs", "steps", "warm_up")
"""Settings of priors that say how long they learn."""

BACKWARD = 3
"""Passes forward that a step of training takes, or a gradient with respect to the image."""


SHIPPED = frozenset({"dcgan", "public", "pixels"})
"""Priors that learn nothing."""

IMAGES = 50
"""Of a step that is timed."""


@dataclass(frozen=True)
class Speeds:
    """Measured here, in seconds.

    Args:
        forward: One image through the target; NaN of a server that has not been asked yet.
        step: One training step of the slower evaluation model on 50 images.
    """

    forward: float
    step: float

    @classmethod
    def of(cls, prepared: Prepared, engine: Engine, evaluators: Sequence[str], results: Path) -> "Speeds":
        """What an earlier call kept (so that a plan for so many minutes stays the plan while it is carried out), or
        timed now: a few passes on random images; of a server what it took to answer so far."""
        file = cls.file(prepared, results)
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            pass
        shape = prepared.data.shape.image_shape
        steps = []
        for name in evaluators:
            with torch.random.fork_rng():
                net = engine.place(models.build(name, prepared.data.shape.classes, shape)).train()
            x = torch.rand(IMAGES, *shape, device=engine.device)
            y = torch.zeros(IMAGES, dtype=torch.int64, device=engine.device)
            steps.append(_timed(partial(_learn, net, x, y)))
        return cls(_forward(prepared, shape, engine), max(steps))

    @staticmethod
    def file(prepared: Prepared, results: Path) -> Path:
        """Where they are kept: of one model on one data set."""
        return results / "audits" / f"{prepared.target.id}.json"

    def keep(self, prepared: Prepared, results: Path) -> None:
        """Write them down, unless they are."""
        file = self.file(prepared, results)
        if not file.exists() and math.isfinite(self.forward):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, asdict(self))


def _learn(net: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(net(x), y).backward()


def _forward(prepared: Prepared, shape: tuple[int, int, int], engine: Engine) -> float:
    module = prepared.opened.module
    if isinstance(module, Server):
        return module.meter.seconds / module.meter.paid if module.meter.paid else math.nan
    wanted = prepared.found.wanted
    if wanted.output == "embeddings":
        wanted = replace(wanted, output="logits", order=())
    model = engine.place(assemble(prepared.opened, wanted, shape))
    x = torch.rand(8, *shape, device=engine.device)
    with torch.no_grad():
        return _timed(lambda: model(x)) / len(x)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call, the better of two after one that warms up."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times[1:])


def target_seconds(cost: Cost, people: int, speeds: Speeds) -> float:
    """Of an attack: the passes of the target; those of the prior are taken for as many again."""
    images = cost.queries * people + cost.shared_queries
    slopes = cost.gradient_images * people * (BACKWARD - 1)
    return 2 * (images + slopes) * speeds.forward


def training_seconds(prepared: Prepared, recipe: Mapping[str, Any], speeds: Speeds) -> float:
    """Of a whole recipe on about the images there are: the private ones and half of the public ones."""
    private = sum(len(own) for own in people_of(prepared.asked.private, "private").values())
    images = private + prepared.data.shape.public / 2
    steps = max(recipe["least_steps"], recipe["epochs"] * images / recipe["batch"])
    return float(steps) * speeds.step * recipe["batch"] / IMAGES


def prior_steps(name: str, settings: Mapping[str, Any]) -> float:
    """Training steps that learning a prior lasts as long as: the guess for its quick preset, longer or shorter as its
    settings are."""
    if name in SHIPPED:
        return 0.0
    preset = next((one for one in ("quick", "default") if one in registry.presets("priors", name)), "default")
    usual = registry.configure("priors", name, preset).spec()["settings"]
    lengths = [key for key in LENGTHS if isinstance(usual.get(key), int) and usual[key] > 0]
    whole = sum(usual[key] for key in lengths)
    share = sum(settings.get(key, usual[key]) for key in lengths) / whole if whole else 1.0
    return float(PRIOR_STEPS.get(name, 1000) * share)
