"""A published StyleGAN2 or StyleGAN2-ADA as prior: its weights are brought in with `mibench prior import`.

References:
    | Analyzing and Improving the Image Quality of StyleGAN (Karras et al., CVPR 2020)
    | https://arxiv.org/abs/1912.04958
    | Training Generative Adversarial Networks with Limited Data (Karras et al., NeurIPS 2020)
    | https://arxiv.org/abs/2006.06676
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Prior, PriorTrainer, Split
from mibench.priors.stylegan2 import StylePrior, StyleSpace
from mibench.priors.stylegan2_ada_critic import Critic
from mibench.priors.stylegan2_ada_network import Generator, Geometry
from mibench.priors.stylegan2_ada_view import View
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["AdaPrior", "AdaSpace", "StyleGan2Ada"]

CARD = {
    "summary": "a published StyleGAN2(-ADA) of 256 to 1024 pixels, imported from its authors' file",
    "title": "Training Generative Adversarial Networks with Limited Data",
    "authors": "Karras, Aittala, Hellsten, Laine, Lehtinen and Aila",
    "venue": "NeurIPS",
    "year": 2020,
    "link": "https://arxiv.org/abs/2006.06676",
    "critic": "wgan",
    "domain": "public",
    "spaces": ["z", "w", "w+"],
    "enterable": True,
    "toy": {
        "short": {"resolution": 32, "base": 256, "most": 16, "latent_dim": 8, "style_dim": 8, "layers": 2},
        "size": 32,
    },
}

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "quick": {}}

SAVED = 3.2
"""How many tensors of its features' size a layer keeps for the gradient, measured with autograd's own hooks."""


class AdaSpace(StyleSpace):
    """The imported generator seen through w or w+."""

    def __init__(self, prior: "AdaPrior", name: str) -> None:
        super().__init__(prior, name)
        self.critic_kind, self.footprint = prior.critic_kind, prior.footprint
        self.view, self.label = prior.view, prior.label

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """The same noise gives the same z, and class, in every space."""
        with torch.no_grad():
            w, centre = self.generator.mapping(_whole(_drawn(noise, self), self)), self.generator.centre
        truncated = centre + self.psi * (w - centre)
        if self.spaces == ("w",):
            return truncated
        return torch.cat([truncated if layer < self.cutoff else w for layer in range(self.generator.layers)], dim=1)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Synthesis from w."""
        return self.view(_of(self.generator).synthesise(self._styles(z)))

    def decode_from(
        self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int
    ) -> Float[Tensor, "n c h w"]:
        """The image of what flows into a block."""
        return self.view(self.generator.finish(self._styles(z), inside, block))

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """As the prior's."""
        return _judged(self, x)


class AdaPrior(StylePrior):
    """An imported generator, with its discriminator as critic; z ~ N(0, I).

    Of a conditional generator z carries the class behind it, as a row of numbers of which one is 1 (so that the class
    may be searched too), unless one class is chosen for all. It draws the classes that it was trained on, not the
    target's identities, and counts as unconditional.

    The discriminator judges the whole image: where only the middle is drawn there is no critic. Images of another size
    are enlarged to the discriminator's.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: Generator,
        critic: Critic | None,
        view: View,
        label: int,
        psi: float,
        cutoff: int,
    ) -> None:
        geometry = generator.geometry
        width = geometry.latent_dim + (geometry.classes if label < 0 else 0)
        super().__init__(image_shape, generator, critic, width, psi, cutoff)
        whole = generator.windows[-1].outside == (0, geometry.resolution)
        kind: Literal["none", "wgan"] = "wgan" if critic is not None and whole else "none"
        self.critic_kind = kind
        self.view, self.label = view, label
        pixels = [sum((high - low) ** 2 for low, high in window[1:]) for window in generator.windows]
        kept = sum(geometry.channels(side) * own for side, own in zip(geometry.sides, pixels, strict=True))
        self.footprint = int(SAVED * 4 * kept)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """G(z): no truncation."""
        return self.view(self.generator(_whole(z, self)))

    def space(self, name: str) -> Prior:
        """z, w, or w+ (for PPA's published start)."""
        return AdaSpace(self, name) if name in ("w", "w+") else super().space(name)

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """z, with a class drawn at random behind it where it is conditional and none is chosen."""
        return _drawn(noise, self)

    def _mapped(self, z: Tensor) -> tuple[StyleSpace, Tensor]:
        return AdaSpace(self, "w"), self.generator.mapping(_whole(z, self))

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The discriminator's logit, higher is more real."""
        return _judged(self, x)


def _of(generator: Any) -> Generator:
    assert isinstance(generator, Generator)
    return generator


def _drawn(noise: Noise, prior: AdaPrior | AdaSpace) -> Float[Tensor, "n d"]:
    """Rows of the space z."""
    geometry = _of(prior.generator).geometry
    z = noise.normal(geometry.latent_dim)
    if not geometry.classes or prior.label >= 0:
        return z
    drawn = (noise.of("class").uniform(1)[:, 0] * geometry.classes).long().clamp(max=geometry.classes - 1)
    return torch.cat([z, F.one_hot(drawn, geometry.classes).to(z.dtype)], dim=1)


def _whole(z: Tensor, prior: AdaPrior | AdaSpace) -> Float[Tensor, "n d"]:
    """Rows as the mapping takes them: with the class that is chosen for all."""
    classes = _of(prior.generator).geometry.classes
    if not classes or prior.label < 0:
        return z
    chosen = torch.zeros(len(z), classes, device=z.device, dtype=z.dtype)
    chosen[:, prior.label] = 1.0
    return torch.cat([z, chosen], dim=1)


def _judged(prior: AdaPrior | AdaSpace, x: Tensor) -> Float[Tensor, " n"]:
    if prior.critic_kind == "none":
        raise prior._lacks("critic")
    assert prior.critic_network is not None
    side = _of(prior.generator).geometry.resolution
    x = 2.0 * x - 1.0
    return prior.critic_network(x if x.shape[2] == side else F.interpolate(x, (side, side), mode="bilinear"))


@dataclass(frozen=True)
class StyleGan2Ada(PriorTrainer):
    """G(w): a constant, grown by modulated convolutions, and of the image what the target sees.

    All but the last eight say which file it is and what is in it; `mibench prior import` fills them in.

    Args:
        name: What the imported prior is called.
        weights: sha256 of the file that the weights came in; empty is random weights, which no attack can use.
        resolution: Side of the generator's images.
        base: Channels at side s are min(base / s, most).
        most: Most channels of a layer.
        latent_dim: Of z.
        style_dim: Of w.
        layers: Of the mapping network.
        classes: Of a conditional generator; 0 is unconditional.
        colours: Channels of the images.
        clamp: Every layer's output is clamped to +- this; 0 is not at all.
        half_levels: How many of the highest resolutions were trained in float16.
        noisy: Layers have noise images.
        critic: The file has an unconditional discriminator.
        crop: Side of the square in the middle that the target sees, of which only the pixels that it hangs on are
            computed; 0 is the whole image. PPA takes 800 of 1024 (FFHQ, MetFaces) and all of 512 (AFHQ).
        antialias: When the crop is resized to the target's images, as PPA's authors do.
        noise: const adds the noise images that came with the weights, none adds nothing.
        half: Run in float16 what was trained in float16, on accelerators. PPA's authors do not.
        label: The class that is drawn, of a conditional generator; -1 draws one for each sample.
        psi: Truncation of w when latents are drawn: 1 is none.
        cutoff: In w+, how many layers are truncated.
        enlarge: Allow images larger than what the generator draws of them.
    """

    imported: ClassVar[bool] = True

    name: str = ""
    weights: str = ""
    resolution: int = 1024
    base: int = 32768
    most: int = 512
    latent_dim: int = 512
    style_dim: int = 512
    layers: int = 8
    classes: int = 0
    colours: int = 3
    clamp: float = 0.0
    half_levels: int = 0
    noisy: bool = True
    critic: bool = True
    crop: int = 0
    antialias: bool = True
    noise: Literal["const", "none"] = "const"
    half: bool = False
    label: int = field(default=-1, metadata={"signed": True})
    psi: float = 0.5
    cutoff: int = 8
    enlarge: bool = False

    def __post_init__(self) -> None:
        geometry = self.geometry
        if self.crop > geometry.resolution:
            share = round(geometry.resolution * 800 / 1024)
            raise UserError(
                f"stylegan2_ada: a crop of {self.crop} does not fit into the generator's {geometry.resolution} pixels; "
                f"the published share, 800 of 1024, is crop={share} here"
            )
        if not -1 <= self.label < max(self.classes, 1) or (self.label >= 0 and not self.classes):
            known = f"0 to {self.classes - 1}, or -1 for any" if self.classes else "-1: this generator has no classes"
            raise UserError(f"stylegan2_ada: label must be {known}; got {self.label}")

    @property
    def geometry(self) -> Geometry:
        """The sizes of its networks."""
        return Geometry(
            *(self.resolution, self.base, self.most, self.latent_dim, self.style_dim, self.layers, self.classes),
            *(self.colours, self.clamp, self.half_levels, self.noisy),
        )

    def blocks_of(self, image_shape: tuple[int, int, int]) -> int:
        """One less than the doublings and the constant: 8 at 1024 pixels."""
        return len(self.geometry.sides) - 1

    def require_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images that the generator does not draw.

        Raises:
            UserError: They are no squares, of other channels, or larger than what is drawn of them.
        """
        channels, height, width = image_shape
        drawn = self.crop or self.resolution
        if channels != self.colours or height != width:
            raise UserError(
                f"the generator {self.name} draws squares of {self.colours} channel(s); the data set's images are "
                f"{height} x {width} with {channels}: prepare the data so, or choose another prior with --prior"
            )
        if height > drawn and not self.enlarge:
            raise UserError(
                f"the generator {self.name} draws {drawn} pixels of what the target sees in {height}: images would be "
                f"blurred by enlarging. Take a generator of higher resolution, a larger --set prior.crop, data of at "
                f"most {drawn} pixels (--set data.image_size={drawn}), or allow it with --set prior.enlarge=true"
            )

    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> AdaPrior:
        """The networks with random weights, which an import replaces."""
        self.require_shape(image_shape)
        geometry = self.geometry
        generator = Generator(geometry, self.crop, self.noise, self.half)
        critic = Critic(geometry) if self.critic and not geometry.classes else None
        view = View(image_shape[1], self.antialias)
        return AdaPrior(image_shape, generator, critic, view, self.label, self.psi, self.cutoff)
