"""The laws of a prior: how it is built, learnt on the attacker's images, and drawn from."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.plugins import capabilities, contract, registry
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise, seed_of
from mibench.testing.attacks import Interruption
from mibench.testing.laws import Broken, DoesNotApply, Law, Trial, law
from mibench.testing.state import changed
from mibench.testing.worlds import public, small_net

__all__ = ["LAWS", "PriorTrial"]

LAWS: list[Law["PriorTrial"]] = []
"""Every law of a prior, in the order in which they build on one another."""

CLASSES = 3
ROUNDING = 1e-4


class Ended(Silent):
    """Ctrl-C after so many steps of a training."""

    def __init__(self, steps: int) -> None:
        self.advance = Interruption(steps)  # type: ignore[method-assign, assignment]

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator["Ended"]:
        """A bar that ends the training."""
        yield self


class PriorTrial(Trial):
    """A prior on trial.

    Args:
        name: The plug-in's.
        settings: Over its defaults and the card's `toy` settings.
        size: Side of the images in pixels; the card's, or 32.
    """

    kind = "prior"

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None, size: int | None = None) -> None:
        super().__init__(name, settings)
        self.size = size or int(self.toy.get("size", 32))

    @cached_property
    def trainer(self) -> PriorTrainer:
        """With the short settings."""
        made: PriorTrainer = registry.configure("priors", self.name, settings=self.settings).plugin
        return made

    @cached_property
    def public(self) -> Split:
        """The attacker's images: noise, of nobody."""
        return public(self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the images."""
        return 3, self.size, self.size

    def built(self) -> Prior:
        """Untrained, from the run's seed, as the stage does."""
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(7, "init"))
            prior = self.trainer.build(self.shape, CLASSES, self.public)
        if not isinstance(prior, Prior):
            raise Broken(f"build returned {type(prior).__name__}", "return a mibench.core.Prior")
        return prior

    def trained(
        self, checkpoint: Path | None = None, reporter: Any = None, split: Split | None = None
    ) -> tuple[Prior, list[dict[str, float]]]:
        """Built and learnt, as the stage does."""
        prior, access = self.built(), self.trainer.target_access
        target = small_net(CLASSES).eval().requires_grad_(False)
        oracle = Oracle(target, access, CLASSES) if access is not None else None
        session = TrainingContext(
            resolve("cpu", "fp32"), 7, reporter or Silent(), "train prior toy", checkpoint, lambda prior: None
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(7, "train"))
            log = self.trainer.train(prior, split or self.public, oracle, session)
        return prior.requires_grad_(False).eval(), log

    @cached_property
    def whole(self) -> tuple[Prior, list[dict[str, float]]]:
        """A training, for all laws that only look at what comes out."""
        return self.trained()

    @property
    def prior(self) -> Prior:
        """What came out of it."""
        return self.whole[0]

    def latents(self, count: int = 5) -> Tensor:
        """Drawn from the prior."""
        return self.prior.sample(Noise(1, torch.arange(count)))

    def labels(self, count: int = 5) -> Tensor:
        """Whom a conditional prior draws."""
        return torch.arange(count) % CLASSES

    def images(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Decoded, without gradients."""
        with torch.no_grad():
            return self.prior.decode(z, self.labels(len(z)) if y is None else y)


def differ(one: Prior, other: Prior) -> list[str]:
    """Which tensors of two priors are not the same bits."""
    mine, theirs = one.state_dict(), other.state_dict()
    missing = sorted(mine.keys() ^ theirs.keys())
    return missing + [key for key in mine.keys() & theirs.keys() if not torch.equal(mine[key], theirs[key])]


@law(LAWS)
def card(trial: PriorTrial) -> None:
    """The card says what it is, what it draws and what it offers, and that is what is built"""
    contract.check_card("priors", trial.name)
    for preset in registry.presets("priors", trial.name):
        registry.configure("priors", trial.name, preset)
    said = capabilities.declared(trial.name, trial.trainer.blocks_of(trial.shape)).offers()
    built = trial.built().offers()
    if said != built:
        raise Broken(
            f"the card offers {', '.join(sorted(said))}; what is built offers {', '.join(sorted(built))}",
            "say in the card what the prior's class says: critic, conditional, differentiable, spaces, enterable, ...",
        )
    other = trial.card.get("elsewhere")
    if other is not None and other not in registry.names("priors"):
        raise Broken(f"elsewhere names '{other}', which is no prior", "name one of: mibench list priors")


@law(LAWS)
def learns(trial: PriorTrial) -> None:
    """It is built and learnt on the public images, with the access it declares, to finite weights"""
    prior, log = trial.whole
    if prior.latent_dim < 1 or tuple(prior.image_shape) != trial.shape:
        raise Broken(
            f"latent_dim is {prior.latent_dim}, image_shape {tuple(prior.image_shape)} for images of {trial.shape}",
            "set both in the prior's __init__",
        )
    kept = prior.state_dict().items()
    if wrong := [key for key, value in kept if value.is_floating_point() and not value.isfinite().all()]:
        raise Broken(f"{wrong[0]} is NaN or infinite after training", "refuse with a UserError that names the step")
    if not all(isinstance(value, int | float) for line in log for value in line.values()):
        raise Broken("its log holds what is no number", "log floats by name: one dict a line")


@law(LAWS, "learns")
def images(trial: PriorTrial) -> None:
    """decode gives finite float32 images in [0, 1], also far from where it samples"""
    z = trial.latents()
    if z.shape != (5, trial.prior.latent_dim):
        raise Broken(
            f"5 samples are of shape {tuple(z.shape)}, latent_dim is {trial.prior.latent_dim}", "make them agree"
        )
    near = [z] if trial.prior.spaces[0] in ("images", "pixels") else [z, 3 * z]
    for one in near:
        x = trial.images(one)
        if x.shape != (5, *trial.shape) or x.dtype != torch.float32:
            raise Broken(f"images are {tuple(x.shape)} of {x.dtype}", f"return float32 of shape (n, {trial.shape})")
        low, high = (float(end) for end in x.aminmax())
        if not (low >= 0 and high <= 1):
            raise Broken(f"pixels lie in [{low:.3g}, {high:.3g}]", "end in a sigmoid or (tanh + 1) / 2, or clamp")


@law(LAWS, "images")
def deterministic(trial: PriorTrial) -> None:
    """The same noise and latents give the same bits"""
    torch.manual_seed(0)
    z = trial.latents()
    x = trial.images(z)
    torch.manual_seed(99)
    if not torch.equal(z, trial.latents()) or not torch.equal(x, trial.images(z)):
        raise Broken(
            "two calls with the same arguments differ", "draw from the noise that sample is given, never in decode"
        )


@law(LAWS, "deterministic")
def company(trial: PriorTrial) -> None:
    """Every row is sampled and decoded alike, whatever else is in the batch"""
    together = trial.latents(6)
    apart = torch.cat([trial.prior.sample(Noise(1, torch.tensor([row]))) for row in range(6)])
    if (worst := float((together - apart).abs().max())) > ROUNDING:
        raise Broken(
            f"samples alone and in a batch differ by {worst:.3g}", "draw one row for each key: noise.normal(...)"
        )
    y = trial.labels(6)
    drawn = torch.cat([trial.images(together[row : row + 1], y[row : row + 1]) for row in range(6)])
    if (worst := float((trial.images(together, y) - drawn).abs().max())) > ROUNDING:
        raise Broken(
            f"images alone and in a batch differ by {worst:.3g}", "use no statistics of the batch in eval mode"
        )


@law(LAWS, "images")
def gradients(trial: PriorTrial) -> None:
    """Gradients flow from the images to every latent, if the card says so"""
    if not trial.prior.differentiable:
        raise DoesNotApply("the card says that none flow")
    z = trial.latents().requires_grad_()
    x = trial.prior.decode(z, trial.labels())
    if not x.requires_grad:
        raise Broken("images have no gradient", "decode without no_grad and detach; or say differentiable: False")
    (slope,) = torch.autograd.grad(x.square().sum(), z)
    if not slope.isfinite().all() or not bool((slope.abs().sum(dim=1) > 0).all()):
        raise Broken("gradients are 0 or not finite", "do not round or clamp everything; or say differentiable: False")


@law(LAWS, "images")
def critic(trial: PriorTrial) -> None:
    """Its critic gives every image a finite value of its own, if the card says that it has one"""
    if trial.prior.critic_kind == "none":
        raise DoesNotApply("it has no critic")
    x = trial.images(trial.latents())
    with torch.no_grad():
        said = trial.prior.critic(x)
        alone = torch.cat([trial.prior.critic(one[None]) for one in x])
    if said.shape != (5,) or not said.isfinite().all() or float((said - alone).abs().max()) > 1e-3:
        raise Broken(
            f"the critic says {said.tolist()}, of each image alone {alone.tolist()}", "judge each image by itself"
        )


@law(LAWS, "learns")
def public_images(trial: PriorTrial) -> None:
    """The attacker's images are what they were"""
    split = public(trial.size)
    before = split.fingerprint()
    trial.trained(split=split)
    if split.fingerprint() != before:
        raise Broken("the public images have changed", "work on a copy: to_float makes one")


@law(LAWS, "public images")
def seed(trial: PriorTrial) -> None:
    """The same seed gives the same bits"""
    torch.rand(3)
    again, log = trial.trained()
    if wrong := differ(trial.prior, again):
        raise Broken(
            f"two trainings with one seed differ in {len(wrong)} tensors, the first is {wrong[0]}",
            "draw from Noise or generator(session.seed, ...)",
        )
    if log != trial.whole[1]:
        raise Broken("two trainings with one seed have different logs", "log nothing of the clock or the machine")


@law(LAWS, "seed")
def resume(trial: PriorTrial) -> None:
    """Killed in the middle of its training and run again, it ends with the same bits"""
    if type(trial.trainer).train is PriorTrainer.train:
        raise DoesNotApply("it learns nothing")
    for steps in (0, 1, 3):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "checkpoint.pt"
            with suppress(KeyboardInterrupt):
                trial.trained(path, Ended(steps))
            torch.rand(3)
            again, log = trial.trained(path)
        if (wrong := differ(trial.prior, again)) or log != trial.whole[1]:
            raise Broken(
                f"killed after {steps} steps and run again, {wrong[0] if wrong else 'its log'} differs",
                "keep all of the training's state in session.checkpoint, or nothing",
            )


@law(LAWS, "deterministic")
def file(trial: PriorTrial) -> None:
    """Its weights hold all of it: read from their file it draws the same bits"""
    again = trial.built()
    again.load_state_dict(copy.deepcopy(trial.prior.state_dict()))
    again.requires_grad_(False).eval()
    z = trial.latents()
    with torch.no_grad():
        drawn = again.decode(z, trial.labels())
    if not torch.equal(drawn, trial.images(z)) or not torch.equal(again.sample(Noise(1, torch.arange(5))), z):
        raise Broken(
            "built anew and filled with its own weights it draws something else",
            "register what is learnt as parameters or buffers",
        )


@law(LAWS, "learns")
def global_state(trial: PriorTrial) -> None:
    """It leaves the process as it was: generators, modes, folder, environment"""

    def drawn() -> Tensor:
        prior, _ = trial.trained()
        with torch.no_grad():
            return prior.decode(prior.sample(Noise(1, torch.arange(2))), trial.labels(2))

    if others := changed(drawn):
        raise Broken(f"it changed {', '.join(others)}", "draw from Noise, and undo what you must set")
