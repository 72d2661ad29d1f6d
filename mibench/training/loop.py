"""One training of a given length, with the defenses' hooks, and what is asked of the network afterwards."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Batch, Defense, Schedule, Split, Step, to_uint8
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.engine import Engine, at_once, out_of_memory
from mibench.runtime.errors import UserError
from mibench.runtime.memory import halved
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise, generator, kept_globals, seed_of
from mibench.training.parallel import Ranks, require_spreadable
from mibench.training.processes import spread
from mibench.training.recipe import Training

__all__ = ["Fitted", "as_trained", "empty_memories", "fit", "loss_of", "predict", "streams"]


def loss_of(batch: Batch, logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """sum_i w_i CE(softmax(l_i), t_i) / n_clean, with dense targets that may leave the simplex (negative smoothing)."""
    rows = -(batch.t * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    return (batch.w * rows).sum() / batch.clean


class _Taps:
    """Records the outputs of the modules that penalties want to see, over the forward passes of one step; last those of
    the network's auxiliary head, if it has one."""

    def __init__(self, model: nn.Module, defenses: Sequence[Defense], ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self.modules = [list(defense.taps(model)) for defense in defenses]
        second = getattr(model, "auxiliary", None)
        self.auxiliary = second is not None
        if second is not None:
            self.modules.append([model.trunk.get_submodule(second)])  # type: ignore[union-attr]
        self.seen: dict[int, list[Tensor]] = {}
        self.recording = False
        self.handles = [
            module.register_forward_hook(self._hook(id(module))) for taps in self.modules for module in taps
        ]

    def _hook(self, key: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.recording:
                self.seen[key].append(output if self.ranks is None else self.ranks.whole(output))

        return keep

    @contextmanager
    def during(self) -> Iterator[None]:
        """The step's own forward passes; what a defense's inner optimisation sends through the network is no output."""
        self.seen = {id(module): [] for modules in self.modules for module in modules}
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def of(self, position: int) -> list[Tensor]:
        outputs = [self.seen[id(module)] for module in self.modules[position]]
        return [one[0] if len(one) == 1 else torch.cat(one) for one in outputs]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class Fitted(NamedTuple):
    """What a training leaves besides the weights."""

    log: list[dict[str, float]]
    """One record per epoch: its mean loss."""
    memories: list[nn.Module]
    """Of each defense."""
    reports: list[dict[str, float]]
    """What each defense measured."""


def streams(seed: int, defenses: Sequence[Defense]) -> list[int]:
    """The seed of each defense's randomness.

    Keyed by its kind and how many of that kind come before it: what else is stacked shifts nobody's randomness.
    """
    kinds = [type(defense).__name__ for defense in defenses]
    return [seed_of(seed, kind, kinds[:place].count(kind)) for place, kind in enumerate(kinds)]


def empty_memories(
    defenses: Sequence[Defense], classes: int, image_shape: tuple[int, int, int], seed: int
) -> list[nn.Module]:
    """Each defense's memory as training starts with it."""
    memories = []
    for defense, stream in zip(defenses, streams(seed, defenses), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(stream, "memory"))
            memories.append(defense.memory(classes, image_shape) or nn.Module())
    return memories


def _step_loss(
    running: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Int64[Tensor, " b"],
    classes: int,
    defenses: Sequence[Defense],
    steps: Sequence[Step],
    taps: _Taps,
    engine: Engine,
) -> Tensor:
    for defense, step in zip(defenses, steps, strict=True):
        x = defense.transform(x, step.noise.of("transform"))
    # one_hot reads its labels back to check them.
    rows = torch.zeros(len(y), classes, device=x.device).scatter_(1, y[:, None], 1.0)
    batch = Batch(x, rows, torch.ones(len(y), device=x.device), len(y))
    for defense, step in zip(defenses, steps, strict=True):
        batch = defense.batch(batch, replace(step, noise=step.noise.of("batch")))
    with engine.autocast(), taps.during():
        parts = [running(part) for part in batch.x.tensor_split(batch.passes)]
    logits = parts[0] if len(parts) == 1 else torch.cat(parts)
    loss = loss_of(batch, logits)
    if taps.auxiliary:
        loss = loss + loss_of(batch, taps.of(len(defenses))[0])
    for position, (defense, step) in enumerate(zip(defenses, steps, strict=True)):
        penalty = defense.penalty(batch, logits, taps.of(position), replace(step, noise=step.noise.of("penalty")))
        loss = loss if penalty is None else loss + penalty
    return loss


def _batches(count: int, per_epoch: int, poisson: bool, seed: int, epoch: int) -> Sequence[Int64[Tensor, " b"]]:
    """Which images each step of an epoch sees."""
    drawn = generator(seed, "order", epoch)
    if poisson:
        chosen = torch.rand(per_epoch, count, generator=drawn) < 1.0 / per_epoch
        # Without an image there is nothing to differentiate; at the usual sizes that never happens.
        return [index for row in chosen if len(index := row.nonzero()[:, 0])]
    # Nearly equal chunks: a last batch of one image would break batch normalisation.
    return torch.randperm(count, generator=drawn).tensor_split(per_epoch)


@kept_globals()
def fit(
    model: nn.Module,
    split: Split,
    classes: int,
    recipe: Training,
    engine: Engine,
    seed: int,
    reporter: Reporter,
    label: str,
    defenses: Sequence[Defense] = (),
    mirror: bool = True,
    checkpoint: Path | None = None,
    public: Split | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    ranks: Ranks | None = None,
) -> Fitted:
    """Train `model` in place, and leave torch's global generators, which dropout and defenses draw from, as they were.

    All randomness is a function of (seed, epoch, image), so a run resumed from `checkpoint` ends with the same bits.

    Args:
        public: The attacker's images, for defenses that train on them; evaluation models get none.
        earlier: The trainings that this one replaces (see `converge`), with their `epochs`; kept in the checkpoint, and
            a checkpoint that has others is not this training's.
        ranks: Given by `processes.spread` alone: which of the processes this is, where the engine has further devices.

    Raises:
        UserError: If the loss stops being finite; names the step and the recipe. If a defense needs public images and
            there are none. If several devices cannot do what one does (`parallel`), or one of their processes is gone.
    """
    if engine.further and ranks is None:
        require_spreadable(defenses, label)
        given: dict[str, Any] = {"model": model, "split": split, "classes": classes, "recipe": recipe, "seed": seed}
        given |= {"label": label, "defenses": defenses, "mirror": mirror, "checkpoint": checkpoint, "public": public}
        given["earlier"] = earlier
        with spread(engine, label, fit, given) as ranks:
            return fit(**given, engine=engine, reporter=reporter, ranks=ranks)
    running = model = engine.place(model)
    optimizer = recipe.optimizer_for(model)
    channels, height, width = split.images.shape[1:]
    memories = empty_memories(defenses, classes, (channels, height, width), seed)
    seeds = streams(seed, defenses)
    strangers = Split(split.images[:0], split.labels[:0]) if public is None else public
    for defense, memory, stream in zip(defenses, memories, seeds, strict=True):
        split = defense.rows(split, strangers, memory, Noise(stream, torch.arange(len(split))).of("rows"))
    memories = [engine.place(memory) for memory in memories]
    data = split.on(engine)
    share = math.prod((defense.exposure() for defense in defenses), start=1.0)
    before = sum(one["epochs"] for one in earlier)
    schedule = Schedule(len(data), recipe.steps_per_epoch(len(data)), recipe.epochs, seed, share, before)
    per_epoch, steps = schedule.shown, schedule.steps
    for defense in defenses:
        running, optimizer = defense.wrap(running, optimizer, schedule)
    poisson = any(defense.sampling == "poisson" for defense in defenses)
    log: list[dict[str, float]] = []
    state = read_checkpoint(checkpoint, engine.device) if checkpoint is not None and checkpoint.exists() else None
    if state is not None and state["earlier"] == list(earlier):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for memory, kept in zip(memories, state["memories"], strict=True):
            memory.load_state_dict(kept)
        log = state["log"]
    forward: Callable[[Tensor], Tensor] = running if ranks is None else ranks.network(model)
    taps = _Taps(model, defenses, ranks)

    def at(epoch: int, index: Int64[Tensor, " b"]) -> list[Step]:
        return [
            Step(model, memory, optimizer, Noise(stream, index).of(epoch), epoch, recipe.epochs, engine)
            for memory, stream in zip(memories, seeds, strict=True)
        ]

    everything, begun = torch.arange(len(data), device=engine.device), len(log)
    with closing(taps), reporter.task(label, steps, "steps") as task:
        task.advance(len(log) * per_epoch)
        for epoch in range(begun, recipe.epochs):
            model.train()
            for defense, step in zip(defenses, at(epoch, everything), strict=True):
                defense.epoch(step)
            torch.manual_seed(seed_of(seed, "dropout", epoch))
            losses = torch.zeros(per_epoch, device=engine.device)
            batches = _batches(len(data), schedule.per_epoch, poisson, seed, epoch)[:per_epoch]
            for number, chosen in enumerate(batches):
                index = chosen.to(engine.device)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(epoch * per_epoch + number, steps)
                own = slice(None) if ranks is None else ranks.share(len(index))
                mine, now = index[own], at(epoch, index)
                x, y = engine.images(data.images[chosen[own].to(data.images.device)]), data.labels[index]
                for defense, step in zip(defenses, now if ranks is None else at(epoch, mine), strict=True):
                    x = defense.before(x, step.noise.of("before"))
                x = recipe.augmented(x, Noise(seed_of(seed, "augment"), mine).of(epoch), mirror)
                x = x if ranks is None else ranks.whole(x).contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad(set_to_none=True)
                lacking = None
                try:
                    if ranks is not None and epoch == begun and number == 0:
                        ranks.require_same(model, x, label)
                    loss = _step_loss(forward, x, y, classes, defenses, now, taps, engine)
                    loss.backward()
                    if ranks is not None:
                        ranks.average(one for group in optimizer.param_groups for one in group["params"])
                    optimizer.step()
                except (MemoryError, RuntimeError) as error:
                    lacking = out_of_memory(error)
                    if lacking is None:
                        raise
                if lacking is not None:  # not above, where the error holds all tensors of the step
                    devices = 1 if ranks is None else ranks.count
                    raise _too_large(label, running, x, y, engine, lacking, devices)
                losses[number] = loss.detach()
                task.advance()
            if not bool(losses.isfinite().all()):
                first = int((~losses.isfinite()).nonzero()[0]) + epoch * per_epoch
                raise UserError(
                    f"{label}: the loss became {losses[first - epoch * per_epoch].item()} at step {first} of {steps} "
                    f"(lr {recipe.lr}, batch {recipe.batch}, {recipe.optimizer}); lower it with --set training.lr=..."
                )
            log.append({"epoch": float(epoch), "loss": float(losses.mean())})
            if checkpoint is not None and epoch + 1 < recipe.epochs and (ranks is None or ranks.rank == 0):
                write_checkpoint(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "log": log,
                        "earlier": list(earlier),
                        "memories": [memory.state_dict() for memory in memories],
                    },
                )
    if ranks is not None and ranks.rank:
        return Fitted(log, memories, [])  # the first process has all of it
    model.eval()
    over = at(recipe.epochs, everything)
    reports = [defense.finish(step, data) for defense, step in zip(defenses, over, strict=True)]
    return Fitted(log, memories, reports)


def _too_large(
    label: str, running: nn.Module, x: Tensor, y: Int64[Tensor, " b"], engine: Engine, said: str, devices: int
) -> UserError:
    """A batch did not fit into memory: the error, with one that does. What is left of the network is thrown away."""

    def through(count: int) -> int:
        running.zero_grad(set_to_none=True)
        with engine.autocast():
            logits = running(x[:count])
        F.cross_entropy(logits.float(), y[:count]).backward()
        return count

    try:
        fits = f"{devices * halved(through, max(1, len(x) // devices // 2))} do"
    except (MemoryError, RuntimeError):
        fits = "not even one does"
    height, width = x.shape[2:]
    return UserError(
        f"{label}: {len(x)} images of {height} x {width} at once do not fit into the memory of {engine.device} "
        f"({said}), {fits}; --set training.batch=... asks for fewer (evaluator.batch, verifier.batch where those are "
        "trained). A batch is never cut into parts, which would be another training: batch norms see a whole batch"
    )


@torch.no_grad()
def as_trained(
    split: Split, recipe: Training, defenses: Sequence[Defense], engine: Engine, seed: int, mirror: bool = True
) -> UInt8[Tensor, "n c h w"]:
    """Training images as one more epoch would show them: augmented and changed by the defenses, as uint8.

    What defenses do to whole batches (mixtures, adversarial examples, poisons) is left out: mixtures have no one label.

    Args:
        split: Training images.
        recipe: Of the training.
        defenses: Of the target.
        engine: Where they are changed.
        seed: Of the target; the epoch that follows the last one is drawn from it.
        mirror: A mirrored image still shows the same class.
    """
    index = torch.arange(len(split), device=engine.device)
    noises = [Noise(stream, index).of(recipe.epochs) for stream in streams(seed, defenses)]
    x = engine.images(split.images)
    for defense, noise in zip(defenses, noises, strict=True):
        x = defense.before(x, noise.of("before"))
    x = recipe.augmented(x, Noise(seed_of(seed, "augment"), index).of(recipe.epochs), mirror)
    for defense, noise in zip(defenses, noises, strict=True):
        x = defense.transform(x, noise.of("transform"))
    return to_uint8(x)


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, engine: Engine, batch: int = 256
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
    """Served logits and penultimate features of uint8 images, float32, from one forward pass in eval mode.

    Where `batch` images at once are too many for the device's memory half as many are tried, and so on.
    """
    model.eval()

    def answers(size: int) -> tuple[Tensor, Tensor]:
        logits, features = [], []
        for chunk in images.split(size):
            with engine.autocast():
                x = engine.images(chunk)
                phi = model.features(x)  # type: ignore[operator]
                logits.append(model.serve(phi, x).float())  # type: ignore[operator]
            features.append(phi.float())
        return torch.cat(logits), torch.cat(features)

    return halved(answers, at_once(batch, images.shape, engine.device))
