"""An attack, what it may use and what it costs."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core.capabilities import CAPABILITIES, Capabilities, Lacks
from mibench.core.data import Split
from mibench.core.defense import Transform
from mibench.core.oracle import Oracle
from mibench.core.prior import Prior
from mibench.core.reconstructions import Reconstructions
from mibench.core.steps import Files, Part, Stateful, begun, beside, steps
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["NAME", "Attack", "AttackContext", "Cost", "Wrapper", "keep", "recall"]


class Cost(NamedTuple):
    """What an attack asks of the target, in closed form, when its budget does not stop it."""

    queries: int
    """Images per identity."""
    gradient_images: int
    """Of these, images that were differentiated, per identity."""
    shared_queries: int
    """Images that serve all identities at once."""


def keep(path: Path, value: Tensor | dict[str, Tensor], oracle: Oracle, before: dict[str, Tensor]) -> None:
    """Write what a part of an attack found, and what it asked since the counts `before`."""
    counts = {key: after - before[key] for key, after in oracle.counts().items()}
    write_checkpoint(path, {"value": value, "counts": counts})
    beside(path).unlink(missing_ok=True)


def recall(path: Path, oracle: Oracle) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
    """What `keep` wrote, counted again; and the counts."""
    state = read_checkpoint(path, oracle.device)
    counts = {name: count.cpu() for name, count in state["counts"].items()}
    oracle.add(counts)
    return state["value"], counts


NAME = r"[A-Za-z0-9_+][A-Za-z0-9_.+-]{0,99}"
"""What a part of an attack may be called: its name stands in a file's."""

Kept = TypeVar("Kept", Tensor, dict[str, Tensor])


def _as_is(x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
    return x


def _none_known(defense: str) -> Transform:
    raise UserError(f"no defense is known here, so '{defense}' cannot be assumed")


@dataclass(frozen=True)
class AttackContext:
    """What a search may use of the machine: how many images at once, and where to keep finished parts.

    Latents never influence each other, so `batch` changes rounding and nothing else.
    """

    batch: int = 256
    folder: Path | None = None
    public: Split | None = None
    """The attacker's images."""
    transform: Transform = _as_is
    """What the target's defenses do to training images: public knowledge, for attackers who use it (`eot`)."""
    assumed: Callable[[str], Transform] = _none_known
    """What a defense by its name and settings (`re a_e=0.4`) does to them, for attackers who assume one."""
    names: set[str] = field(default_factory=set, compare=False, repr=False)
    """What has been kept by `once`; shared with the copies that `replace` makes."""
    seconds: float | None = None
    """Between two checkpoints of `steps`, at least; None is `core.steps.SECONDS`."""

    def images(self, attack: str) -> Split:
        """The attacker's images.

        Raises:
            UserError: If there are none.
        """
        if self.public is None or not len(self.public):
            raise UserError(f"{attack} learns from public images; this data set has none")
        return self.public

    def once(self, name: str, oracle: Oracle, compute: Callable[[], Kept]) -> Kept:
        """`compute()`, or what an interrupted process already computed; the oracle's counts follow either way.

        What is computed is a tensor, or tensors by name (the weights of a network). A name may be used once: a second
        use would be given what the first one kept.

        Raises:
            UserError: If the name is used a second time; and see `Oracle.check`.
        """
        self._claim(name)
        path = None if self.folder is None else self.folder / f"checkpoint-{name}.pt"
        if path is not None and path.exists():
            return cast(Kept, recall(path, oracle)[0])
        before = oracle.counts()
        with begun(Part(oracle, None if path is None else Files(path), self.seconds)):
            value = compute()
        oracle.check()
        if path is not None:
            keep(path, value, oracle, before)
        return value

    def steps(self, count: int, *states: Stateful) -> Iterator[int]:
        """The numbers of a loop within `once`: 0 to `count` - 1, or from where a killed process had come to.

        Where they do not begin at 0 the states have become what they were there. Every variable that one step leaves
        for the next, and whatever is read of them after the loop, belongs in a state:

            held = Held(z=start, value=value)
            for step in work.steps(self.steps, held):
                held.z, held.value = better(held.z, held.value, noise.of("step", step))

        Args:
            count: Of the loop.
            states: A `core.steps.Held`, optimisers, networks.
        """
        return steps(count, states, self.batch)

    def below(self, name: str) -> "AttackContext":
        """A workspace of its own for a part of the attack that uses the names of another part (a further round).

        Raises:
            UserError: If the name is used a second time.
        """
        self._claim(name)
        folder = None if self.folder is None else self.folder / f"checkpoint-{name}"
        if folder is not None:
            folder.mkdir(exist_ok=True)
        return replace(self, folder=folder, names=set())

    def _claim(self, name: str) -> None:
        if not re.fullmatch(NAME, name):
            raise UserError(f"work.once({name!r}): a name is 1 to 100 letters, digits, dots, plus and minus signs or _")
        if name in self.names:
            raise UserError(
                f"the attack kept two things as work.once({name!r}); an interrupted run would take the one for the "
                "other: give each a name of its own, or work.below(...) for a part that is run again"
            )
        self.names.add(name)


@dataclass(frozen=True)
class Attack(ABC):
    """A model-inversion attack: a frozen dataclass whose fields are the paper's hyper-parameters."""

    @classmethod
    def _card(cls) -> dict[str, Any]:
        """The CARD of the module that defines the attack; empty outside plug-ins."""
        return dict(getattr(sys.modules[cls.__module__], "CARD", {}))

    def require(self, prior: Capabilities) -> None:
        """Refuse a prior that lacks what the card requires, or the latent space that the settings name.

        Raises:
            Lacks: Says what is missing.
        """
        name = type(self).__module__.rpartition(".")[2]
        space = getattr(self, "space", "auto")
        for word in self._card().get("requires", ()):
            if word not in prior.offers():
                raise Lacks(f"{name} needs {CAPABILITIES[word]}", "priors", word)
        if space != "auto" and f"space {space}" not in prior.offers():
            offered = ", ".join(prior.spaces)
            why = f"{name} searches the {space} space; this prior has no {space} space, only {offered}"
            raise Lacks(why, "priors", f"space {space}")

    @abstractmethod
    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """How many images it asks the target for, in closed form.

        Args:
            prior: What the prior offers: a prior, or what its card declares of it before it is trained.
            public: The number of the attacker's images.
        """

    @abstractmethod
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Invert each identity in `labels`; what one identity gets does not depend on which others are asked for."""


@dataclass(frozen=True)
class Wrapper(Attack):
    """An attack around another: `--method ppa+eot` is `eot` around `ppa`. Its own fields are its settings.

    Args:
        attack: What is wrapped; given by the registry.
    """

    attack: Attack | None = field(default=None, metadata={"wrapped": True})

    @property
    def wrapped(self) -> Attack:
        """The attack inside."""
        assert self.attack is not None
        return self.attack

    def seen(self, prior: Capabilities) -> Capabilities:
        """What of the prior the attack inside sees; all of it by default."""
        return prior

    def require(self, prior: Capabilities) -> None:
        """What the wrapper requires and what the attack inside does, of the prior and of each other.

        Raises:
            Lacks: Also where the card says that it `wraps` an attack with gradients and the one inside asks for none.
        """
        super().require(prior)
        self.wrapped.require(self.seen(prior))
        if self._card().get("wraps") == "gradients" and self.wrapped.cost(prior).gradient_images == 0:
            name, inside = (type(one).__module__.rpartition(".")[2] for one in (self, self.wrapped))
            why = f"{name} needs the target's gradients and the attack inside, {inside}, asks for none"
            raise Lacks(why, "attacks", "gradients")
