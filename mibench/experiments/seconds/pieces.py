"""Steps of trainings, of attacks and of priors, each distinct one timed once."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mibench.core import Attack, Oracle, PriorTrainer, TrainingContext
from mibench.experiments.audit.speeds import LENGTHS
from mibench.experiments.bench.machine import memory
from mibench.experiments.bench.rows import epoch_of, step_of
from mibench.experiments.seconds.smallest import shown_through, smallest
from mibench.experiments.seconds.timer import MOST, PIECE, Known, Rate, Timer, least, network, pictures
from mibench.experiments.sizes import Sizes
from mibench.models.fold import fold
from mibench.plugins.registry import Choice
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.training import Training

__all__ = ["Pieces"]


class Pieces(Timer):
    """Times each distinct piece of work once."""

    def training(
        self,
        architecture: str,
        classes: int,
        shape: tuple[int, int, int],
        recipe: Training,
        defenses: Sequence[Any] = (),
    ) -> Rate:
        """One picture of a step of training, forward and backward, with its defenses."""
        short = replace(recipe, epochs=1, least_steps=0, doublings=0)
        operations = 3 * self._passes(architecture, classes, shape)

        def measure() -> Rate:
            batch = min(self._affordable(operations, 12), recipe.batch)
            works = [
                epoch_of(architecture, classes, pictures(count * batch, classes, shape), part, defenses, self.engine)
                for count in (1, 3)
                for part in [replace(short, batch=batch)]
            ]
            one, three = self._timed(works)
            held = memory(works[0], self.engine.device) or 0
            return Rate(max(three - one, 0.0) / (2 * batch), "measured", held / batch)

        kinds = tuple(type(one).__name__ for one in defenses)  # one of another strength takes as long
        key = ("training", architecture, classes, shape, recipe.batch, recipe.optimizer, recipe.augmentation, kinds)
        return self._rate(key, operations, 12, measure)

    def forward(self, architecture: str, classes: int, shape: tuple[int, int, int]) -> Rate:
        """One picture through a network, which keeps nothing for a gradient."""
        operations = self._passes(architecture, classes, shape)

        def measure() -> Rate:
            batch = self._affordable(operations, 4)
            placed: Any = self.engine.place(fold(network(architecture, classes, shape)))
            x = self.engine.images(pictures(batch, classes, shape).images)

            def work() -> object:
                with torch.no_grad(), self.engine.autocast():
                    return placed(x)

            return Rate(self._timed([work])[0] / batch, "measured")

        return self._rate(("forward", architecture, classes, shape), operations, 4, measure)

    def attack(self, attack: Attack, prior: Choice, architecture: str, size: Sizes) -> tuple[Rate, Rate, Rate]:
        """One picture that the target is asked for: of those not differentiated, the differentiated, the shared.

        The attack itself is run at its smallest; then again with more of each kind, by the setting that adds to that
        kind alone. Where there is no such setting, the passes of target and prior stand in.
        """
        model = self._prior_of(prior, size)
        operations = self._passes(architecture, size.classes, size.shape) + self._drawing(prior, size)
        key = ("attack", repr(attack), prior.name, repr(prior.spec()), architecture, size)
        if key not in self._known:
            self._known[key] = None
            if model is not None and self._may(operations, 40):
                with suppress(UserError, RuntimeError, NotImplementedError, AssertionError, ValueError):
                    self._known[key] = self._attacked(attack, model, architecture, size, operations)
        timed: dict[str, Rate] = self._known[key] or {}
        passes, through = self.passes(prior, architecture, size), shown_through(attack)
        asked = self.forward(architecture, size.classes, size.shape)
        drawn = (passes.seconds - asked.seconds) / through
        own = Rate(asked.seconds + drawn, least(passes, Rate(0.0, "scaled")))
        slope = replace(own, seconds=3 * own.seconds)
        return (
            timed.get("own", own),
            timed.get("slopes", slope),
            timed.get("shared", replace(own, seconds=passes.seconds)),
        )

    def passes(self, prior: Choice, architecture: str, size: Sizes) -> Rate:
        """One picture drawn and asked about, without a gradient."""
        target = self.forward(architecture, size.classes, size.shape)
        operations = self._drawing(prior, size)

        def measure() -> Rate:
            batch, built = self._affordable(operations, 4), self._prior_of(prior, size)
            assert built is not None
            placed: Any = self.engine.place(built)
            z = torch.randn(batch, placed.latent_dim, device=self.engine.device)
            y = torch.zeros(batch, dtype=torch.int64, device=self.engine.device)

            def work() -> object:
                with torch.no_grad(), self.engine.autocast():
                    return placed.decode(z, y)

            return Rate(self._timed([work])[0] / batch, "measured")

        drawn = self._rate(("drawing", prior.name, repr(prior.spec()), size.shape), operations, 4, measure)
        return Rate(target.seconds + drawn.seconds, least(target, drawn))

    def _attacked(
        self, attack: Attack, prior: nn.Module, architecture: str, size: Sizes, operations: float
    ) -> dict[str, Rate]:
        people = min(self._affordable(3 * operations, 40), size.classes)
        little, more = smallest(attack, prior, size.public)
        public = pictures(64, size.classes, size.shape)
        target = network(architecture, size.classes, size.shape)

        def asked(one: Attack) -> Callable[[], object]:
            return step_of(one, target, prior, people, self.engine, size.classes, public)

        kinds = list(more)
        base, *longer = self._timed([asked(little), *(asked(more[kind][0]) for kind in kinds)])
        rates = {}
        for kind, seconds in zip(kinds, longer, strict=True):
            added = more[kind][1] * (1 if kind == "shared" else people)
            rates[kind] = Rate(max(seconds - base, 0.0) / added, "measured")
        if "slopes" in rates:
            held = memory(asked(more["slopes"][0]), self.engine.device) or 0
            rates["slopes"] = replace(rates["slopes"], memory=held / people)
        return rates

    def prior(self, plugin: PriorTrainer, size: Sizes, architecture: str) -> tuple[float, Known]:
        """Seconds of a whole training, its phases timed one by one; large batches in small."""
        key = ("prior", repr(plugin), size, architecture)
        if key not in self._known:
            self._known[key] = 0.0, "unknown"
            if self.left > 0:
                with suppress(UserError, RuntimeError, NotImplementedError, AssertionError):
                    self._known[key] = self._learnt(plugin, size, architecture), "measured"
        seconds, known = self._known[key]
        return seconds, known

    def _learnt(self, plugin: Any, size: Sizes, architecture: str) -> float:
        names = [name for name in (*LENGTHS, "tune_steps") if isinstance(getattr(plugin, name, None), int)]
        lengths = {name: getattr(plugin, name) for name in names if getattr(plugin, name) > 0}
        whole = getattr(plugin, "batch", 0)
        batch = min(whole, MOST[self.engine.device.type] // (4 if size.shape[1] > 32 else 1)) or whole
        little = replace(plugin, **dict.fromkeys(lengths, 1), **({"batch": batch} if whole else {}))
        public = pictures(max(64, batch), size.classes, size.shape)
        helper: Any = None
        if architecture:
            asked: Any = self.engine.place(fold(network(architecture, size.classes, size.shape)))
            helper = Oracle(asked, plugin.target_access, size.classes)

        def work(one: Any) -> Callable[[], object]:
            def learn() -> object:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    placed: Any = self.engine.place(one.build(size.shape, size.classes, public))
                    return one.train(placed, public, helper, TrainingContext(self.engine, 0, Silent(), ""))

            return learn

        first = self._spent(work(little))
        further = max(2, min(8, int(PIECE / max(first, 1e-3))))
        works = [work(little), *(work(replace(little, **{name: 1 + further})) for name in lengths)]
        base, *longer = [self._spent(one) for one in works]
        steps = {name: max(one - base, 0.0) / further for name, one in zip(lengths, longer, strict=True)}
        scale = whole / batch if whole else 1.0
        return base + scale * math.fsum(lengths[name] * one for name, one in steps.items())
