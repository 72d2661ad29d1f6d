"""What an attacker knows about how images of this kind look, and how he learns it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core.access import Access
from mibench.core.capabilities import CAPABILITIES, Capabilities, Lacks
from mibench.core.data import Split
from mibench.core.oracle import Oracle
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise

__all__ = ["Prior", "PriorTrainer", "TrainingContext"]


class Prior(nn.Module, Capabilities, ABC):
    """What the attacker knows about how images of this kind look: a generator, perhaps with its critic."""

    latent_dim: int
    image_shape: tuple[int, int, int]
    slope: float = 1.0
    """Negative slope of the activation that latents went through (StyleGAN's w: .2); 1 is none. MIRROR undoes it."""
    footprint: int = 0
    """Bytes that one image keeps for the gradient, of a prior so large that fewer are searched at once; else 0."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Latents to images in [0, 1], differentiable; a conditional prior draws identity y, others ignore it."""

    def space(self, name: str) -> "Prior":
        """This prior seen through another of its latent spaces: a prior whose `sample` and `decode` work there.

        Raises:
            Lacks: If it has no such space.
        """
        if name != self.spaces[0]:
            raise Lacks(
                f"the prior {type(self).__name__} has no {name} space, only {', '.join(self.spaces)}",
                "priors",
                f"space {name}",
            )
        return self

    def _lacks(self, capability: str) -> Lacks:
        wanted = CAPABILITIES[capability]
        return Lacks(f"the prior {type(self).__name__} is not what is wanted of it: {wanted}", "priors", capability)

    def features_at(self, z: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n f"]:
        """What flows into block `block` (1 ... blocks) when z is decoded, flattened."""
        raise self._lacks("blocks")

    def decode_from(
        self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The image of features that `features_at` gave, differentiable in both.

        decode_from(z, features_at(z, k), k) = decode(z).
        """
        raise self._lacks("blocks")

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """Latents from the prior's own distribution: N(0, I), one row per stream of the noise."""
        return noise.normal(self.latent_dim)

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """How real an image looks; see `critic_kind`."""
        raise self._lacks("critic")


@dataclass(frozen=True)
class TrainingContext:
    """What a trainer may use: the machine, a seed, someone to tell, a place for its checkpoint and its pictures."""

    engine: Engine
    seed: int
    reporter: Reporter
    label: str
    checkpoint: Path | None = None
    picture: Callable[[Prior], None] = lambda prior: None


@dataclass(frozen=True)
class PriorTrainer(ABC):
    """How a prior is learnt on public images: a frozen dataclass of the trainer's hyper-parameters."""

    target_access: ClassVar[Access | None] = None
    """What it asks the target while it learns; None is nothing. A prior that asks is trained anew for each target, and
    an attack that is granted less cannot use it."""
    imported: ClassVar[bool] = False
    """Whether its weights are somebody else's, read from a file (`mibench prior import`), and not learnt."""

    def require_shape(self, image_shape: tuple[int, int, int]) -> None:  # noqa: B027 (most draw whatever is asked)
        """Refuse images that it cannot draw, before anything is built; what `build` finds need not be found here."""

    def blocks_of(self, image_shape: tuple[int, int, int]) -> int:
        """`Prior.blocks` of what `build` would build for such images, without building it."""
        return 0

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> Prior:
        """The untrained (or shipped) prior."""

    def train(
        self, prior: Prior, public: Split, oracle: Oracle | None, session: TrainingContext
    ) -> list[dict[str, float]]:
        """Learn on the public images, in place; returns the log. A shipped prior learns nothing."""
        return []
