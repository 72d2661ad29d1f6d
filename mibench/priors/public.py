"""The public images themselves as a prior: nothing is generated, nothing can be optimised."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench.core import Prior, PriorTrainer, Split, to_float
from mibench.runtime.rng import Noise

__all__ = ["Public", "PublicImages"]

CARD = {
    "summary": "the public images themselves, for the floor public_search",
    "title": "Public images",
    "authors": "",
    "venue": "",
    "year": None,
    "link": "",
    "critic": "none",
    "domain": "public",
    "differentiable": False,
    "spaces": ["images"],
}


class PublicImages(Prior):
    """A latent is the place of an image in the public split. The pixels stay where they are; what is drawn is sent."""

    differentiable = False
    spaces = ("images",)
    latent_dim = 1

    def __init__(self, public: UInt8[Tensor, "n c h w"]) -> None:
        super().__init__()
        self.image_shape = (public.shape[1], public.shape[2], public.shape[3])
        self.register_buffer("public", public)

    def sample(self, noise: Noise) -> Float[Tensor, "n 1"]:
        """Places, uniform with replacement."""
        count = len(self.get_buffer("public"))
        return (noise.uniform(1) * count).floor().clamp(max=count - 1)

    def decode(self, z: Float[Tensor, "n 1"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Look the images up."""
        public = self.get_buffer("public")
        return to_float(public[z[:, 0].long().to(public.device)].to(z.device))

    def _apply(self, fn: Any, recurse: bool = True) -> "PublicImages":
        return self  # placed on no device and in no memory format: either would copy all images

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        # What is loaded takes the images' place; by default torch writes into them, and they are the data set's.
        super()._load_from_state_dict(state, prefix, {**metadata, "assign_to_params_buffers": True}, *rest)


@dataclass(frozen=True)
class Public(PriorTrainer):
    """Keeps the public split; learns nothing."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> PublicImages:
        """The public images."""
        return PublicImages(public.images)
