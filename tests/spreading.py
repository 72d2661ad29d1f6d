"""What the processes of a training on several devices do in tests: they must be able to import it."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from interruptions import Stop
from torch import Tensor, nn
from worlds import colours, small_net

from mibench import models
from mibench.core import Defense, Step
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Reporter, Silent
from mibench.training import Training, fit
from mibench.training.parallel import Ranks

RECIPE = Training(epochs=2, batch=10, lr=0.02, optimizer="sgd")
SPLIT, LARGER = colours(37), colours(37, 32)
"""37 images in 4 batches: one of ten, three of nine, which two processes cannot halve."""

CASES = ("none", "re", "nls", "cutmix", "at_at", "re+bido")
"""No defense, images erased, another loss; then what couples a batch: mixtures, rows in a pass of their own, and a
penalty of hidden layers."""


@dataclass(frozen=True)
class Dies(Defense):
    """Kills the process at the second epoch, unless it is the one that somebody started the training in."""

    def epoch(self, step: Step) -> None:
        if step.epoch == 1 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)


def trained(name: str, engine: Engine, ranks: Ranks | None, **given: Any) -> tuple[dict[str, Tensor], list[Any]]:
    defenses = [registry.configure("defenses", one).plugin for one in name.split("+") if one != "none"]
    small = name != "re+bido"
    net: nn.Module = small_net() if small else models.build("cnn", 3, (3, 32, 32))
    for defense in defenses:
        net = defense.surgery(net)
    with torch.no_grad():
        for place, parameter in enumerate(net.parameters()):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
            parameter.copy_(1.0 + 0.1 * drawn if parameter.ndim == 1 else drawn / parameter[0].numel() ** 0.5)
    given = {"reporter": Silent(), "recipe": RECIPE} | given
    split = SPLIT if small else LARGER
    log = fit(net, split, 3, engine=engine, seed=3, label="toy", defenses=defenses, ranks=ranks, **given).log
    return net.state_dict(), log


def several(
    engine: Engine, reporter: Reporter, ranks: Ranks | None, folder: Path
) -> dict[str, tuple[dict[str, Tensor], list[Any]]]:
    """Each case, and one that is interrupted and gone on with."""
    own = Engine(engine.device, engine.precision)
    made = {name: trained(name, own, ranks) for name in CASES}
    kept = folder / ("alone.pt" if ranks is None else "spread.pt")
    try:
        trained("none", own, ranks, reporter=Stop(6), checkpoint=kept)
    except KeyboardInterrupt:
        made["resumed"] = trained("none", own, ranks, checkpoint=kept)
    return made
