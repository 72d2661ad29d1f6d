"""No step of a gradient attack or of a training waits for the device: with more steps nothing more is read from it.

Between steps a host that reads a value waits until everything before it is computed, and the device then waits for the
host. Operations are watched on a CPU, where reading costs nothing; which of them would wait on a device is known.
"""

import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacking import COMPOSED, PLANNED, erased
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from worlds import World, colours, quick

from mibench import models
from mibench.core import Access, Defense, ledger, oracle
from mibench.defenses.bido import BilateralDependency
from mibench.defenses.mid import MutualInformation
from mibench.defenses.nls import NegativeLabelSmoothing
from mibench.defenses.re import RandomErasing
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Silent
from mibench.training import Training, fit

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount"}
"""Answers, or shapes of answers, that the host must know before it goes on."""

HOST = ("torch/optim/", "torch/utils/_foreach", "mibench/core/ledger.py")
"""Files that keep numbers on the host whatever the device: an optimiser's count of steps, the oracle's counts."""


class Watch(TorchDispatchMode):
    """Counts the places in mibench whose operations would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(one is not None and one.dtype == torch.bool for one in args[1])
        if name in WAITS or masked:
            stack = traceback.extract_stack()[:-1]
            if not any(part in frame.filename for frame in stack[-12:] for part in HOST):
                own = [f"{frame.filename.partition('/mibench/')[2]}:{frame.lineno}" for frame in stack]
                last = next((one for one in reversed(own) if one[0] != ":"), "")
                if not last.startswith("testing/"):  # the toy world's own prior
                    self.seen[f"{name} in {last}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle refuses to be watched, and compares labels on a CPU where on a device it raises a flag."""
    monkeypatch.setattr(oracle, "require_images", lambda x: None)
    read = ledger.Ledger.per_class

    def unwatched(self: ledger.Ledger, labels: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            return read(self, labels)

    monkeypatch.setattr(ledger.Ledger, "per_class", unwatched)


def waits(run: Any, few: int, many: int) -> Counter[str]:
    """What more steps read besides."""
    seen = []
    for steps in (few, many):
        with Watch() as watch:
            run(steps)
        seen.append(watch.seen)
    return seen[1] - seen[0]


def lengthened(attack: Any, steps: int) -> Any:
    """With so many steps of each kind that it has."""
    if hasattr(attack, "attack"):
        attack = replace(attack, attack=lengthened(attack.attack, steps))
    kinds = [name for name in ("steps", "pgd_steps", "pivot_steps") if getattr(attack, name, 0)]
    given = {name: getattr(attack, name) for name in kinds}
    longer = {name: (steps,) * len(one) if isinstance(one, tuple) else steps for name, one in given.items()}
    assert kinds or hasattr(attack, "attack")
    return replace(attack, **longer)


GRADIENT = [
    name
    for name, card in registry.cards("attacks").items()
    if card["access"] == "white_box" and card["role"] != "wrapper"
]


@pytest.mark.parametrize("name", [*GRADIENT, *PLANNED])
def test_no_step_of_an_attack_waits_for_the_device(name: str) -> None:
    world = World(3)
    card = registry.card("attacks", name.partition("+")[0])
    attack = COMPOSED.get(name) or quick(name, **card["toy"]["short"])
    prior = world.prior if name in COMPOSED else world.prior_for(name)
    labels = torch.arange(3)

    def run(steps: int) -> None:
        lengthened(attack, steps)(world.oracle(Access.WHITE_BOX), prior, labels, 0, erased(world))

    assert waits(run, 2, 4) == Counter()


DEFENSES: dict[str, tuple[Defense, ...]] = {
    "none": (),
    "re": (RandomErasing(a_e=0.4),),
    "nls": (NegativeLabelSmoothing(-0.1),),
    "bido": (BilateralDependency(0.1),),
    "mid": (MutualInformation(0.01),),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_no_step_of_a_training_waits_for_the_device(name: str) -> None:
    """An epoch of more batches reads no more than one of fewer: its losses are looked at when it ends."""
    split, cpu = colours(size=16), Engine(torch.device("cpu"), "fp32")

    def run(steps: int) -> None:
        recipe, network = Training(epochs=1, batch=len(split) // steps), models.build("cnn", 3, (3, 16, 16))
        for defense in DEFENSES[name]:
            network = defense.surgery(network)  # type: ignore[assignment]
        fit(network, split, 3, recipe, cpu, 0, Silent(), "small", DEFENSES[name])

    assert waits(run, 2, 4) == Counter()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
    ],
)
def test_the_watch_sees_what_waits(read: Any) -> None:
    assert sum(waits(lambda steps: [read(torch.ones(2)) for _ in range(steps)], 1, 3).values()) == 2
