"""The laws of a defense, on forty images of 16 px whose three classes are told apart by their brightest channel."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.core import Defense, Split
from mibench.models.base import Classifier
from mibench.plugins import contract, registry
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.runtime.rng import seed_of
from mibench.stages.artifacts import fill_memories, write_memories
from mibench.testing.attacks import Interruption
from mibench.testing.laws import Broken, DoesNotApply, Law, Trial, law
from mibench.testing.state import changed
from mibench.testing.worlds import colours
from mibench.training import Fitted, Training, empty_memories, fit, predict

__all__ = ["LAWS", "SIDE", "DefenseTrial", "Stop", "Trained", "train"]

LAWS: list[Law["DefenseTrial"]] = []
"""Every law of a defense, in the order in which they build on one another."""

SIDE = 16
RECIPE = Training(epochs=3, batch=10, lr=0.01)


class Stop(Silent):
    """Ctrl-C after so many steps of a training; what a resumed one skips comes at once and does not count."""

    def __init__(self, steps: int) -> None:
        self.interrupt = Interruption(steps)
        self.seen = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator["Stop"]:
        """A bar that ends the training."""
        self.total = total
        yield self

    def advance(self, count: int = 1) -> None:
        """So many steps are done."""
        self.seen += count
        if count == 1:
            self.interrupt()


@dataclass
class Trained:
    """A trained toy target and what its training left."""

    model: Classifier
    fitted: Fitted
    defenses: list[Defense]

    def served(self) -> Classifier:
        """What is attacked; `deploy` may change what it is given, so it gets a copy."""
        model: nn.Module = copy.deepcopy(self.model)
        for defense, memory in zip(self.defenses, self.fitted.memories, strict=True):
            model = defense.deploy(model, memory)
        assert isinstance(model, Classifier)
        return model.eval()


def images() -> Split:
    """What the toy target learns."""
    return colours(40, SIDE)


def strangers() -> Split:
    """Public images without identities."""
    return Split(colours(30, SIDE, seed=3).images, torch.full((30,), -1))


def network(architecture: str, defenses: list[Defense], seed: int = 0) -> Classifier:
    """An untrained network after surgery."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "init"))
        model: nn.Module = models.build(architecture, 3, (3, SIDE, SIDE))
        for defense in defenses:
            model = defense.surgery(model)
    if not isinstance(model, Classifier):
        raise Broken(f"surgery returned {type(model).__name__}", "return the classifier that it was given, changed")
    return model


def train(
    architecture: str, *defenses: Defense, precision: str = "fp32", checkpoint: Path | None = None, reporter: Any = None
) -> Trained:
    """Three epochs of the toy target under these defenses."""
    stack = list(defenses)
    model = network(architecture, stack)
    engine = resolve("cpu", precision)
    fitted = fit(
        model, images(), 3, RECIPE, engine, 5, reporter or Silent(), "toy", stack, True, checkpoint, strangers()
    )
    return Trained(model, fitted, stack)


def scores(model: Classifier, precision: str = "fp32") -> Tensor:
    """What a served target says of its training images."""
    logits, _ = predict(model, images().images, resolve("cpu", precision))
    return F.softmax(logits, dim=1)


@cache
def undefended(architecture: str) -> Tensor:
    """What the target says without a defense."""
    return scores(train(architecture).served())


def differ(one: Trained, other: Trained) -> list[str]:
    """Which tensors of two trainings are not the same bits."""
    names = []
    for mine, theirs in zip([one.model, *one.fitted.memories], [other.model, *other.fitted.memories], strict=True):
        a, b = mine.state_dict(), theirs.state_dict()
        names += sorted(a.keys() ^ b.keys())
        names += [
            key for key in a.keys() & b.keys() if not torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))
        ]
    return names


class DefenseTrial(Trial):
    """A defense on trial.

    Args:
        name: The plug-in's.
        settings: Over its defaults and the card's `toy` settings.
    """

    kind = "defense"

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, settings)
        self._trained: dict[str, Trained] = {}

    @property
    def architecture(self) -> str:
        """The network that it is tried on."""
        return str(self.toy.get("model", "cnn"))

    def plugin(self, **settings: Any) -> Defense:
        """The defense, with settings over the short ones."""
        made: Defense = registry.configure("defenses", self.name, settings=self.settings | settings).plugin
        return made

    def whole(self, precision: str = "fp32") -> Trained:
        """A training under it, for all laws that only look at what comes out."""
        if precision not in self._trained:
            self._trained[precision] = train(self.architecture, self.plugin(), precision=precision)
        return self._trained[precision]

    @cached_property
    def zero(self) -> dict[str, Any] | None:
        """The settings at which it does nothing; None where the card says why there are none."""
        given = self.card.get("zero")
        return given if isinstance(given, dict) else None


@law(LAWS)
def card(trial: DefenseTrial) -> None:
    """The card says what it is, what its strength is and what an attacker does who knows it"""
    contract.check_card("defenses", trial.name)
    settings, shown = registry.defaults("defenses", trial.name), trial.card
    if shown.get("strength") is None:
        return
    if shown["strength"] not in settings:
        raise Broken(f"strength is '{shown['strength']}'", f"name one of its settings: {', '.join(settings)}")
    grid = shown["grid"]
    if len(grid) < 2 or len(set(map(str, grid))) < len(grid):
        raise Broken(f"grid is {list(grid)}", "give two or more values, each once")
    for strength in grid:
        registry.configure("defenses", trial.name, settings={shown["strength"]: strength})
    for change, why in shown["adaptive"].items():
        if not (change.startswith("+") or "=" in change.format(**settings)) or not why:
            raise Broken(f"adaptive has '{change}': '{why}'", "write '+wrapper' or 'setting=value', and why")
    for other in shown.get("conflicts", {}):
        if other not in registry.names("defenses"):
            raise Broken(f"conflicts names '{other}', which is no defense", "name one of: mibench list defenses")
    if isinstance(shown.get("zero"), dict):
        registry.configure("defenses", trial.name, settings=shown["zero"])


@law(LAWS)
def trains(trial: DefenseTrial) -> None:
    """Under it a target trains to finite weights and serves probabilities that have gradients"""
    trained = trial.whole()
    kept = {
        key: value for part in (trained.model, *trained.fitted.memories) for key, value in part.state_dict().items()
    }
    if broken := [key for key, value in kept.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise Broken(
            f"{broken[0]} is NaN or infinite after {RECIPE.epochs} epochs", "keep what is added to the loss finite"
        )
    said = scores(trained.served())
    if said.shape != (len(images()), 3) or not said.isfinite().all() or float((said.sum(1) - 1).abs().max()) > 1e-5:
        raise Broken(f"it serves scores of shape {tuple(said.shape)} that are no probabilities", "serve finite logits")
    x = (images().images[:4] / 255.0).requires_grad_()
    served = trained.served()
    (gradient,) = torch.autograd.grad(served.head(served.features(x)).square().sum(), x)
    if not gradient.isfinite().all():
        raise Broken("the served network's gradients are NaN or infinite", "keep head(features(x)) differentiable")


@law(LAWS, "trains")
def seed(trial: DefenseTrial) -> None:
    """The same seed gives the same bits, whatever the process drew before"""
    torch.rand(3)
    if wrong := differ(trial.whole(), train(trial.architecture, trial.plugin())):
        raise Broken(
            f"two trainings with one seed differ in {len(wrong)} tensors, the first is {wrong[0]}",
            "draw from the noise that each hook is given",
        )


@law(LAWS, "trains")
def half_precision(trial: DefenseTrial) -> None:
    """In bfloat16 it trains and serves probabilities too"""
    said = scores(trial.whole("bf16").served(), "bf16")
    if not said.isfinite().all() or float((said.sum(1) - 1).abs().max()) > 1e-5:
        raise Broken("in bfloat16 it serves no probabilities", "take logs and sums in float32: logits.float()")


@law(LAWS, "seed")
def zero(trial: DefenseTrial) -> None:
    """At zero strength it is no defense, bit for bit"""
    if trial.zero is None:
        raise DoesNotApply(str(trial.card.get("zero")))
    nothing = scores(train(trial.architecture, trial.plugin(**trial.zero)).served())
    plain = undefended(trial.architecture)
    if not torch.equal(plain, nothing):
        raise Broken(
            f"at {trial.zero} the target's scores are up to {float((plain - nothing).abs().max()):.3g} from an "
            "undefended one's",
            "return what a hook is given at strength 0, and draw nothing from torch's global generator",
        )


@law(LAWS, "zero")
def strength(trial: DefenseTrial) -> None:
    """At its defaults it does something"""
    if trial.zero is None or trial.card.get("strength") is None:
        raise DoesNotApply("it has no zero strength")
    if torch.equal(undefended(trial.architecture), scores(trial.whole().served())):
        raise Broken("at its defaults the target is an undefended one, bit for bit", "look at which hooks are called")


@law(LAWS, "trains")
def batch(trial: DefenseTrial) -> None:
    """Every image is answered alike, whatever else is in the batch"""
    served, shown = trial.whole().served(), images().images
    together, _ = predict(served, shown, resolve("cpu", "fp32"))
    apart, _ = predict(served, shown, resolve("cpu", "fp32"), batch=3)
    if (worst := float((together.softmax(1) - apart.softmax(1)).abs().max())) > 1e-4:
        raise Broken(
            f"in batches of 40 and of 3 its scores differ by {worst:.3g}",
            "serve each image by itself: no statistics of the batch in deploy",
        )


@law(LAWS, "seed")
def resume(trial: DefenseTrial) -> None:
    """Killed in the middle of a training and run again, it ends with the same bits"""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "checkpoint.pt"
        try:
            train(trial.architecture, trial.plugin(), checkpoint=path, reporter=Stop(10))
        except KeyboardInterrupt:
            pass
        else:
            raise Broken("it swallowed a KeyboardInterrupt", "catch no BaseException")
        again, once = train(trial.architecture, trial.plugin(), checkpoint=path), trial.whole()
    do = "keep what changes while it trains in the model or in its memory, not in Python attributes"
    if wrong := differ(once, again):
        raise Broken(f"killed and run again, {len(wrong)} tensors differ, the first is {wrong[0]}", do)
    if once.fitted.log != again.fitted.log or once.fitted.reports != again.fitted.reports:
        raise Broken("killed and run again, its log or report differs", do)


@law(LAWS, "resume", "batch")
def file(trial: DefenseTrial) -> None:
    """Weights and memory hold all of it: read from their files it serves the same bits"""
    trained, stack = trial.whole(), [trial.plugin()]
    again = network(trial.architecture, stack, seed=9)
    again.load_state_dict(trained.model.state_dict())
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "memories.safetensors"
        write_memories(path, trained.fitted.memories)
        memories = empty_memories(stack, 3, (3, SIDE, SIDE), seed=9)
        fill_memories(path, memories)
    served = Trained(again, trained.fitted._replace(memories=memories), stack).served()
    if not torch.equal(scores(served), scores(trained.served())):
        raise Broken(
            "read from its files the target answers otherwise",
            "register what was learnt as parameters or buffers of the model or the memory",
        )
    if any(module._forward_hooks or module._backward_hooks for module in trained.model.modules()):
        raise Broken("it left hooks on the network", "remove in finish what wrap put on")


@law(LAWS, "seed")
def stacks(trial: DefenseTrial) -> None:
    """It stacks with random erasing in both orders, and one that erases nothing changes nothing"""
    if trial.name in ("none", "re") or "re" in trial.card.get("conflicts", {}):
        raise DoesNotApply("it is one of the two, or conflicts with it")
    erasing: Defense = registry.configure("defenses", "re").plugin
    nothing = replace(erasing, p=0.0)  # type: ignore[call-arg]
    alone = scores(trial.whole().served())
    for order in (1, -1):
        stack = [erasing, trial.plugin()][::order]
        words = "re+" + trial.name if order == 1 else trial.name + "+re"
        if not scores(train(trial.architecture, *stack).served()).isfinite().all():
            raise Broken(f"{words} serves NaN", "take the rows that others add: batch.clean is how many are images")
        idle = [nothing, trial.plugin()][::order]
        if not torch.equal(scores(train(trial.architecture, *idle).served()), alone):
            raise Broken(
                f"{words} with an idle re is not {trial.name} alone",
                "draw from the noise of the hook, keyed by image, never by how often a hook was called",
            )


@law(LAWS, "trains")
def global_state(trial: DefenseTrial) -> None:
    """It leaves the process as it was: generators, modes, folder, environment"""

    if others := changed(lambda: train(trial.architecture, trial.plugin()).served()):
        raise Broken(f"it changed {', '.join(others)}", "draw from the noise of the hook, and undo what you must set")
