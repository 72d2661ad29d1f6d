"""The laws of an attack, on a world in which identity k is the direction e_k of the latent.

Six people for the laws, ten for success; images of 3 x 8 x 8. A law that takes many runs is tried with the short
settings of the card (`toy`), success with the quick preset.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.core import (
    Access,
    Attack,
    AttackContext,
    BudgetExhausted,
    Cost,
    Oracle,
    Prior,
    Reconstructions,
    Split,
    checked,
)
from mibench.defenses.re import RandomErasing
from mibench.plugins import contract, registry
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.testing.laws import Broken, DoesNotApply, Law, Trial, law
from mibench.testing.state import changed
from mibench.testing.worlds import World

__all__ = ["BAR", "LAWS", "ROUNDING", "AttackTrial", "Interruption", "same"]

LAWS: list[Law["AttackTrial"]] = []
"""Every law of an attack, in the order in which they build on one another."""

ROUNDING = 3e-4
"""How far rounding may move a result. Adam divides a gradient by its own size, so that where it is nearly 0 its
rounding grows: 2e-5 of 2 was seen, and 1.1e-4 at the end of a diffusion (`diff_mi`, a CPU with AMX)."""

BAR = 0.9
"""Attack accuracy that must be reached in the toy world."""

PUBLIC = 100
"""Public images, where success is not tried: students, maps and surrogates learn them in each of many runs."""

ERASED = RandomErasing(a_e=0.4, fill="zero").transform
"""What the toy target's defense does to its training images, for attacks that use it (`eot`)."""


class Interruption:
    """Ctrl-C at a chosen moment: called with what was done, it lets so much pass; what is no number counts as one."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, done: object = 1) -> None:
        self.left -= done if isinstance(done, int) else 1
        if self.left < 0:
            raise KeyboardInterrupt


def same(one: Reconstructions, other: Reconstructions) -> bool:
    """Whether two results are the same bits."""
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in asdict(one))


def far(one: Reconstructions, other: Reconstructions) -> float:
    """The largest difference of two results of one shape, in latents and images; infinite where shapes differ."""
    parts = [(getattr(one, part), getattr(other, part)) for part in ("latents", "images")]
    if any(mine.shape != theirs.shape for mine, theirs in parts):
        return torch.inf
    return max(float((mine - theirs).abs().max()) if mine.numel() else 0.0 for mine, theirs in parts)


def of(found: Reconstructions, label: int | Tensor) -> Reconstructions:
    """What is one identity's."""
    own = found.labels == label
    return Reconstructions(found.images[own], found.labels[own], found.latents[own])


class AttackTrial(Trial):
    """An attack on trial.

    Args:
        name: The plug-in's; of a wrapped attack `gmi+eot`.
        settings: Over the quick preset and the card's `toy` settings, for laws that take many runs.
        enough: Over the quick preset, where success is tried.
        attack: The attack itself, where it is not to be made by the registry.
    """

    kind = "attack"

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        enough: Mapping[str, Any] | None = None,
        attack: Attack | None = None,
    ) -> None:
        super().__init__(name, settings)
        self.role = self.card.get("role", "attack")
        self._enough = dict(self.toy.get("enough", {})) | dict(enough or {})
        self._given = attack
        self.others = [registry.card("attacks", part) for part in name.split("+")[1:]]

    def configured(self, settings: Mapping[str, Any]) -> Attack:
        """The attack in its quick preset, or its defaults where it has none, with settings over it."""
        preset = "quick" if "quick" in registry.presets("attacks", self.name) else "default"
        made: Attack = registry.configure("attacks", self.name, preset, dict(settings)).plugin
        return made

    @cached_property
    def attack(self) -> Attack:
        """With the short settings."""
        return self._given or self.configured(self.settings)

    @cached_property
    def world(self) -> World:
        """Six people; every law looks at it, none may change it."""
        return World(6, images=PUBLIC)

    @cached_property
    def _prior(self) -> Prior:
        """Made once: first weights are drawn from torch's global generator, which `global state` watches."""
        return self.world.prior_with(self.card.get("requires", ()))

    def prior(self, world: World) -> Prior:
        """What of the world the card requires."""
        return self._prior if world is self.world else world.prior_with(self.card.get("requires", ()))

    @property
    def access(self) -> Access:
        """What the card says that it asks for."""
        return Access.of(self.card["access"])

    @cached_property
    def cost(self) -> Cost:
        """What it says that it asks for."""
        return self.attack.cost(self.prior(self.world), PUBLIC)

    @cached_property
    def public(self) -> Split:
        """The attacker's images."""
        return self.world.public()

    def work(
        self, batch: int = 256, folder: Path | None = None, public: Split | None = None, seconds: float | None = None
    ) -> AttackContext:
        """A workspace with public images and the target's defense."""
        shown = self.public if public is None else public
        return AttackContext(batch, folder, shown, ERASED, registry.shown_under, seconds=seconds)

    def raw(
        self,
        labels: Tensor | None = None,
        seed: int = 0,
        work: AttackContext | None = None,
        oracle: Oracle | None = None,
        world: World | None = None,
        attack: Attack | None = None,
    ) -> Any:
        """What the attack returns, whatever that is."""
        world = world or self.world
        labels = torch.arange(world.classes) if labels is None else labels
        oracle = oracle or world.oracle(self.access)
        return (attack or self.attack)(oracle, self.prior(world), labels, seed, work or self.work())

    def run(self, labels: Tensor | None = None, **given: Any) -> Reconstructions:
        """What it returns, checked as a run would."""
        world: World = given.get("world") or self.world
        labels = torch.arange(world.classes) if labels is None else labels
        found, _ = checked(self.raw(labels, **given), self.name, labels, world.prior.image_shape)
        return found

    @cached_property
    def returned(self) -> tuple[Any, Oracle]:
        """What comes back when all six people are asked for, whatever that is."""
        oracle = self.world.oracle(self.access)
        torch.manual_seed(0)
        return self.raw(oracle=oracle), oracle

    @cached_property
    def whole(self) -> tuple[Reconstructions, Oracle]:
        """The same checked, for all laws that only look at what comes out."""
        made, oracle = self.returned
        found, _ = checked(made, self.name, torch.arange(self.world.classes), self.world.prior.image_shape)
        return found, oracle


def _apart(what: str, difference: float, do: str) -> None:
    if not difference <= ROUNDING:
        raise Broken(f"{what} differ by {difference:.3g}; rounding explains {ROUNDING}", do)


KEYED = "draw all randomness from Noise(seed, key) with a key for each (label, image): see attacks/parts/search.keys"


@law(LAWS)
def card(trial: AttackTrial) -> None:
    """The card says what it is, what it asks for and what it costs, and the presets build"""
    for part in trial.name.split("+"):
        contract.check_card("attacks", part)
    for preset in registry.presets("attacks", trial.name):
        registry.configure("attacks", trial.name, preset)
    shown = trial.card.get("cost")
    if shown is None:
        return
    public = 12_345
    preset = "paper" if "paper" in registry.presets("attacks", trial.name) else "default"
    cost = registry.configure("attacks", trial.name, preset).plugin.cost(trial.prior(trial.world), public)
    if tuple(public if part is None else part for part in shown) != tuple(cost):
        raise Broken(
            f"the card's cost is {shown}, cost() of the preset {preset} {list(cost)}",
            "write queries, gradient images and shared queries of that preset into the card, None for one of each "
            "public image",
        )


@law(LAWS)
def access(trial: AttackTrial) -> None:
    """The access that the card declares suffices"""
    try:
        _ = trial.returned
    except UserError as error:
        if "access; it was granted" in str(error):
            raise Broken(str(error), "declare that access in the card, or ask for less") from None
    except Exception:
        pass  # `result` says it


@law(LAWS, "access")
def result(trial: AttackTrial) -> None:
    """It returns as many finite images in [0, 1] of everybody who was asked for, and no gradients"""
    labels = torch.tensor([4, 0, 3])
    made = trial.raw(labels)
    found, missing = checked(made, trial.name, labels, trial.world.prior.image_shape)
    if len(missing):
        raise Broken(
            f"no image of {missing.tolist()} came back, and nothing stood in the way",
            "return images of everybody, also where the search found nothing better than its start: mark these in "
            "`failed`",
        )
    for name, part in asdict(found).items():
        if part.requires_grad:
            raise Broken(f"{name} require gradients", "detach what is returned")
    if not found.latents.isfinite().all():
        raise Broken("latents are NaN or infinite", "return where the search ended, finite")


@law(LAWS, "result")
def seed(trial: AttackTrial) -> None:
    """The same seed gives the same bits, another seed other images"""
    first, _ = trial.whole
    torch.manual_seed(99)
    again = trial.run(seed=0)
    if not same(first, again):
        raise Broken(f"two runs with seed 0 differ by {far(first, again):.3g}", KEYED)
    if trial.prior(trial.world).differentiable and torch.equal(first.images, trial.run(seed=2).images):
        raise Broken("runs with seeds 0 and 2 give the same images", KEYED)


@law(LAWS, "seed")
def streams(trial: AttackTrial) -> None:
    """Identities and restarts do not share their randomness"""
    if trial.others or (trial.role == "floor" and trial.name != "prior_sample"):
        raise DoesNotApply("a shared pool may hold one image for two identities")
    found, _ = trial.whole
    rows = found.latents if found.latents.shape[1] else found.images.flatten(1)
    if (distinct := len(rows.unique(dim=0))) < len(rows):
        raise Broken(f"of {len(rows)} reconstructions only {distinct} are distinct", KEYED)


@law(LAWS, "seed")
def batch(trial: AttackTrial) -> None:
    """How many images the workspace takes at once changes rounding and nothing else"""

    def counted(labels: Tensor, size: int) -> tuple[Reconstructions, Tensor]:
        oracle = trial.world.oracle(trial.access)
        return trial.run(labels, oracle=oracle, work=trial.work(size)), oracle.queries

    everybody, one = torch.arange(trial.world.classes), torch.tensor([4])  # one image at a time is slow
    whole, oracle = trial.whole
    for labels, (wide, asked), size in ((everybody, (whole, oracle.queries), 7), (one, counted(one, 256), 1)):
        narrow, again = counted(labels, size)
        _apart(f"results with batch 256 and {size}", far(wide, narrow), KEYED + ", not by the place in a batch")
        if not torch.equal(again, asked):
            raise Broken(
                f"with batch {size} it asks for {again.tolist()} images, with 256 for {asked.tolist()}",
                "ask for as many images, however many at once",
            )


@law(LAWS, "batch")
def company(trial: AttackTrial) -> None:
    """What an identity gets does not depend on which others are asked for"""
    together = trial.run(torch.tensor([5, 1, 0, 3]))
    for label in torch.tensor([0, 3]):
        mine = of(together, label)
        what = f"identity {int(label)} alone and together with 3 others"
        _apart(f"results of {what}", far(mine, trial.run(label[None])), KEYED + ", not by the place among the labels")


@law(LAWS, "result")
def latents(trial: AttackTrial) -> None:
    """decode(latents, labels) gives the images, unless the card says why not (`inside`)"""
    if any("inside" in one for one in (trial.card, *trial.others)):
        raise DoesNotApply(next(str(one["inside"]) for one in (trial.card, *trial.others) if "inside" in one))
    found, _ = trial.whole
    if not found.latents.shape[1]:
        raise DoesNotApply("it returns no latents")
    with torch.no_grad():
        drawn = trial.prior(trial.world).decode(found.latents, found.labels)
    if (worst := float((drawn - found.images).abs().max())) > 1e-4:
        raise Broken(
            f"decode(latents, labels) and images differ by {worst:.3g}",
            "return the latents of the images, or none, or say in the card's `inside` what else was changed",
        )


@law(LAWS, "seed")
def cost(trial: AttackTrial) -> None:
    """It asks for exactly as many images as cost() says, under each attacked identity and under no other"""
    labels = torch.tensor([4, 0, 3])
    told: list[int] = []
    oracle = Oracle(trial.world.target, trial.access, trial.world.classes, tick=told.append)
    with oracle.watched():  # counts at the network too: nothing is asked past the oracle
        trial.run(labels, oracle=oracle, work=trial.work(5))
    attacked = torch.zeros(trial.world.classes, dtype=torch.int64)
    attacked[labels] = 1
    said = trial.cost
    for name, seen, wanted in (
        ("queries", oracle.queries, attacked * said.queries),
        ("gradient images", oracle.gradient_images, attacked * said.gradient_images),
        ("shared queries", torch.tensor(oracle.shared_queries), torch.tensor(said.shared_queries)),
    ):
        if not torch.equal(seen, wanted):
            raise Broken(
                f"{name}: asked for {seen.tolist()}, cost() says {wanted.tolist()} (identities 4, 0 and 3 attacked)",
                "mend cost(), or ask under the identity that each image is for",
            )
    if sum(told) != said.queries * 3 + said.shared_queries:
        raise Broken(f"the progress bar saw {sum(told)} images of {said.queries * 3 + said.shared_queries}", "as above")
    if trial.card["access"] == "none" and said != Cost(0, 0, 0):
        raise Broken(f"the card says access none, cost() {list(said)}", "declare what it asks for")


@law(LAWS, "cost")
def least_access(trial: AttackTrial) -> None:
    """Less access than the card declares would not do"""
    for less in Access:
        if less < trial.access:
            try:
                trial.raw(oracle=trial.world.oracle(less))
            except UserError as error:
                if f"was granted {less.key}" in str(error):
                    continue
                raise
            raise Broken(f"it also runs with {less.words} access", f"declare {less.key} in the card")


def budgets(cost: Cost) -> list[int]:
    """From one query below the full cost down to what is left after the shared images."""
    full = cost.queries + cost.shared_queries
    return sorted({max(full - 1, 0), cost.shared_queries + cost.gradient_images // 2, cost.shared_queries // 2, 1})


@law(LAWS, "cost")
def budget(trial: AttackTrial) -> None:
    """A budget is never exceeded, is planned for, and what suffices changes nothing"""
    said = trial.cost
    for allowed in budgets(said):
        oracle = trial.world.oracle(trial.access, allowed)
        try:
            trial.run(oracle=oracle)
        except BudgetExhausted:
            if allowed >= said.shared_queries:
                raise Broken(
                    f"with a budget of {allowed} of {said.queries + said.shared_queries} queries it returned nothing",
                    "plan with oracle.affordable(steps, images) before the search, and return what was found",
                ) from None
        if (asked := int(oracle.queries.max()) + oracle.shared_queries) > allowed:
            raise Broken(f"with a budget of {allowed} it asked for {asked}", "never call the target past the oracle")
    exact = trial.world.oracle(trial.access, said.queries + said.shared_queries)
    if not same(trial.run(oracle=exact), trial.whole[0]):
        raise Broken("a budget of exactly its cost changes the result", "search the same way while the budget lasts")


@law(LAWS, "budget", "company")
def fair_budget(trial: AttackTrial) -> None:
    """Under a budget too identities and batches do not matter"""
    if trial.role != "attack":
        raise DoesNotApply("a floor")
    said, world = trial.cost, trial.world
    do = "plan with oracle.affordable before the work is split, so that all get the same share"
    plans = ((said.shared_queries + said.gradient_images // 2, 3), (said.shared_queries + said.queries - 2, 1))
    for allowed, size in plans:
        if allowed < 1:
            continue

        def limited(labels: list[int], batch: int, allowed: int = allowed) -> Reconstructions:
            oracle = world.oracle(trial.access, allowed)
            return trial.run(torch.tensor(labels), oracle=oracle, work=trial.work(batch))

        wide = limited([0, 3], 1000)
        what = f"with a budget of {allowed} results of"
        _apart(f"{what} batches 1000 and {size}", far(wide, limited([0, 3], size)), do)
        _apart(f"{what} identity 3 alone and in company", far(of(wide, 3), limited([3], 1000)), do)


def _interrupted(trial: AttackTrial, allowed: int | None, *moments: float) -> None:
    """Killed at these shares of its queries and run again, it ends with the same bits and counts.

    Two images of each of two identities are searched in parts of three and one.
    """
    world, labels = trial.world, torch.arange(2)

    def oracle(tick: Any) -> Oracle:
        return Oracle(world.target, trial.access, world.classes, allowed, tick)

    once = oracle(lambda count: None)
    whole = trial.run(labels, oracle=once, work=trial.work(3))
    total = int(once.queries.sum()) + once.shared_queries
    for share in moments if total else (0.0,):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            told: list[int] = []
            if total:
                try:
                    killed = oracle(Interruption(int(share * total)))
                    # At one of the moments every step of a loop has been kept.
                    seconds = 0.0 if share == moments[len(moments) // 2] else None
                    trial.run(labels, oracle=killed, work=trial.work(3, folder, seconds=seconds))
                except KeyboardInterrupt:
                    pass
                else:
                    raise Broken("it swallowed a KeyboardInterrupt", "catch no BaseException: let Ctrl-C end the run")
            again = oracle(told.append)
            resumed = trial.run(labels, oracle=again, work=trial.work(3, folder))
            moment = f"killed after {share:.0%} of its queries and run again"
            if not same(resumed, whole):
                raise Broken(
                    f"{moment}, it ends {far(resumed, whole):.3g} away",
                    "keep every part by work.once(name, oracle, compute), let a part depend on nothing but its "
                    "arguments and kept parts, and give work.steps all that one step leaves for the next",
                )
            for key, count in once.counts().items():
                if not torch.equal(again.counts()[key], count):
                    raise Broken(
                        f"{moment}, {key} are {again.counts()[key].tolist()}, not {count.tolist()}",
                        "ask the target only inside work.once, or only outside",
                    )
            if sum(told) != total:
                raise Broken(f"{moment}, the progress bar saw {sum(told)} of {total} images", "as above")


@law(LAWS, "cost", "batch")
def resume(trial: AttackTrial) -> None:
    """Killed anywhere and run again, it ends with the same bits and counts"""
    _interrupted(trial, None, 0.1, 0.8, 0.99)


@law(LAWS, "resume", "budget")
def resume_under_a_budget(trial: AttackTrial) -> None:
    """Killed under a budget and run again, too"""
    _interrupted(trial, trial.cost.shared_queries + trial.cost.queries // 2, 0.5, 0.8)


@law(LAWS, "resume")
def kept_parts(trial: AttackTrial) -> None:
    """A part of the search that is done is not searched again"""
    if trial.role != "attack" or trial.others or not trial.cost.gradient_images:
        raise DoesNotApply("it makes no gradient steps on the target" if not trial.others else "the attack inside is")
    with tempfile.TemporaryDirectory() as name:
        labels = torch.tensor([4, 0, 3])
        first = trial.run(labels, work=trial.work(3, Path(name)))
        world, differentiated = World(6, images=PUBLIC), []
        features = world.target.features

        def watched(x: Tensor) -> Tensor:
            differentiated.append(len(x) if x.requires_grad and torch.is_grad_enabled() else 0)
            return features(x)

        world.target.features = watched  # type: ignore[method-assign]
        again = trial.run(labels, world=world, work=trial.work(3, Path(name)))
    if sum(differentiated) or not same(first, again):
        raise Broken(
            f"a finished search was run again: {sum(differentiated)} images were differentiated",
            "keep every part by work.once(name, oracle, compute); piecewise does",
        )


@law(LAWS, "result")
def files(trial: AttackTrial) -> None:
    """It leaves nothing in the run's folder but the checkpoints of work.once"""
    with tempfile.TemporaryDirectory() as name:
        trial.run(torch.tensor([4, 0]), work=trial.work(3, Path(name)))
        left = sorted(path.name for path in Path(name).iterdir() if not path.name.startswith("checkpoint-"))
    if left:
        raise Broken(f"it left {', '.join(left)}", "keep tensors by work.once; a run throws everything else away")


@law(LAWS, "result")
def untouched(trial: AttackTrial) -> None:
    """Target and prior are what they were: weights, gradients, modes"""
    world = World(4, images=PUBLIC)
    models = {"the target": world.target, "the prior": world.prior}
    before = {name: {key: value.clone() for key, value in one.state_dict().items()} for name, one in models.items()}
    trial.run(world=world)
    for name, one in models.items():
        now = one.state_dict()
        if now.keys() != before[name].keys() or any(not torch.equal(now[key], before[name][key]) for key in now):
            raise Broken(f"{name} has other weights", "work on a copy (copy.deepcopy)")
        if any(parameter.grad is not None for parameter in one.parameters()):
            raise Broken(f"{name} has gradients", "use torch.autograd.grad on what is searched, not backward()")
        if one.training or not all(parameter.requires_grad for parameter in one.parameters()):
            raise Broken(f"{name} has another mode", "leave train, eval and requires_grad as they are")


@law(LAWS, "seed")
def global_state(trial: AttackTrial) -> None:
    """It leaves the process as it was: generators, modes, folder, environment"""
    if others := changed(trial.run):
        raise Broken(f"it changed {', '.join(others)}", "draw from Noise, and undo what you must set")


def accuracy(world: World, found: Reconstructions) -> float:
    """The share of images that show whom they claim to, by the world itself."""
    return int((world.truth(found.images) == found.labels).sum()) / len(found.labels)


def _succeeds(trial: AttackTrial, precision: str) -> None:
    if trial._given is not None or trial.others:
        raise DoesNotApply("the attack inside is tried alone")
    if trial.name == "prior_sample":
        raise DoesNotApply("it looks for nobody")
    world = World(10)
    attack = trial.configured(trial._enough)
    oracle = Oracle(world.target, trial.access, world.classes)
    with Engine(torch.device("cpu"), precision).autocast():
        work = trial.work(public=world.public())
        reached = accuracy(world, trial.run(world=world, attack=attack, oracle=oracle, work=work))
    if reached < BAR:
        floor = registry.configure("attacks", "prior_sample", settings={"images": 2}).plugin
        drawn = floor(world.oracle(), world.prior, torch.arange(10), 0, trial.work())
        raise Broken(
            f"{reached:.0%} of its images show the person, {accuracy(world, drawn):.0%} of images that the prior draws "
            f"without asking (the floor); an attack that works reaches {BAR:.0%} where the target is linear in the "
            "latent",
            "look for a sign, a label or a learning rate that is wrong; or give settings that suffice in the card's "
            "toy: enough",
        )


@law(LAWS, "result")
def success(trial: AttackTrial) -> None:
    """It is far above its floor in a world in which it must succeed"""
    _succeeds(trial, "fp32")


@law(LAWS, "success")
def half_precision(trial: AttackTrial) -> None:
    """In bfloat16 it succeeds too"""
    if trial.access != Access.WHITE_BOX:
        raise DoesNotApply("it makes no gradient steps on the target")
    _succeeds(trial, "bf16")
