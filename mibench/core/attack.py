"""An attack, what it may use, what it costs and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mibench.core.data import Split
from mibench.core.oracle import Oracle
from mibench.core.prior import Prior
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["Attack", "AttackContext", "Cost", "Reconstructions", "Wrapper"]


@dataclass(frozen=True)
class Reconstructions:
    """What an attack returns: the same number of images for each attacked identity, grouped by identity.

    `failed` marks images for which the search found nothing better than its start; they are scored all the same, so a
    class the attack could not reach counts as 0 instead of vanishing. `latents` are where the search ended:
    decode(latents, labels) gives the images, unless the attack changed the prior or searched inside it.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    latents: Float[Tensor, "n d"]
    failed: Bool[Tensor, " n"]


class Cost(NamedTuple):
    """What an attack asks of the target, in closed form, when its budget does not stop it."""

    queries: int
    """Images per identity."""
    gradient_images: int
    """Of these, images that were differentiated, per identity."""
    shared_queries: int
    """Images that serve all identities at once."""


Kept = TypeVar("Kept", Tensor, dict[str, Tensor])


def _as_is(x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
    return x


@dataclass(frozen=True)
class AttackContext:
    """What a search may use of the machine: how many images at once, and where to keep finished parts.

    Latents never influence each other, so `batch` changes rounding and nothing else.
    """

    batch: int = 256
    folder: Path | None = None
    public: Split | None = None
    """The attacker's images."""
    transform: Callable[[Float[Tensor, "n c h w"], Noise], Float[Tensor, "n c h w"]] = _as_is
    """What the target's defenses do to training images: public knowledge, for attackers who use it (`eot`)."""

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

        What is computed is a tensor, or tensors by name (the weights of a network).
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"checkpoint-{name}.pt"
        if path.exists():
            state = read_checkpoint(path, oracle.device)
            oracle.add({name: count.cpu() for name, count in state["counts"].items()})
            return cast(Kept, state["value"])
        before = oracle.counts()
        value = compute()
        counts = {key: after - before[key] for key, after in oracle.counts().items()}
        write_checkpoint(path, {"value": value, "counts": counts})
        return value


@dataclass(frozen=True)
class Attack(ABC):
    """A model-inversion attack: a frozen dataclass whose fields are the paper's hyper-parameters."""

    def needs(self, prior: Prior) -> None:  # noqa: B027 (most attacks need nothing special)
        """Refuse a prior that lacks what the attack needs.

        Raises:
            UserError: Naming what is missing and a prior that has it.
        """

    @abstractmethod
    def cost(self, prior: Prior, public: int = 0) -> Cost:
        """How many images it asks the target for; `public` is the number of the attacker's images."""

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

    def needs(self, prior: Prior) -> None:
        """What the attack inside needs."""
        self.wrapped.needs(prior)
