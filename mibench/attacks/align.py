"""AlignMI: the attack follows gradients averaged over the neighbourhood of each image.

A single gradient of the target is mostly noise that no face could follow; its average over noisy (PAA) or transformed
(TAA) copies of the image lies closer to the generator's tangent space.

References:
    | Generative Model Inversion Through the Lens of the Manifold Hypothesis (Peng et al., NeurIPS 2025)
    | https://arxiv.org/abs/2509.20177
    | SmoothGrad: removing noise by adding noise (Smilkov et al., 2017), the average over noisy copies
    | https://arxiv.org/abs/1706.03825
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.views import Viewed, viewed_cost
from mibench.core import AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, Wrapper, augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["Align"]

CARD = {
    "summary": "AlignMI: gradients averaged over noisy (PAA) or transformed (TAA) copies of each image",
    "title": "Generative Model Inversion Through the Lens of the Manifold Hypothesis",
    "authors": "Peng, Han, Yu, Liu, Liu and Zhou",
    "venue": "NeurIPS",
    "year": 2025,
    "link": "https://arxiv.org/abs/2509.20177",
    "access": "white_box",
    "prior": None,
    "role": "wrapper",
    "cost": None,
    "wraps": "gradients",
}

PRESETS = {"paper": {}, "quick": {"copies": 4}}

# Configurations and functions of AlanPeng0897/AlignMI at commit 3f7fff9; `paper` is PAA, `paper_taa` TAA.
AROUND = {
    # high_resolution: FaceScrub_ResNet18_SG1024.yaml, optimization_PAA and optimization_TAA
    "ppa": {
        "paper": {"ppa.steps": 70, "ppa.candidates": 100, "ppa.images": 100, "ppa.reference_batch": 35},
        "paper_taa": {
            "ppa.steps": 70,
            "ppa.candidates": 100,
            "ppa.images": 100,
            "ppa.reference_batch": 35,
            "mode": "transform",
        },
    },
    # low_resolution: gmi_stylegan-celeba_vgg16-celeba.yaml, gmi_optimize_paa and _taa, whose prior_loss is 0
    "lomma_gmi": {
        "paper": {
            "lomma_gmi.pretrained": True,
            "lomma_gmi.realism": 0.0,
            "lomma_gmi.steps": 100,
            "lomma_gmi.images": 100,
            "lomma_gmi.reference_batch": 20,
            "sigma": 0.003,
        },
        "paper_taa": {
            "lomma_gmi.pretrained": True,
            "lomma_gmi.realism": 0.0,
            "lomma_gmi.steps": 100,
            "lomma_gmi.images": 100,
            "lomma_gmi.reference_batch": 20,
            "copies": 30,
            "mode": "transform",
            "scale": (0.9, 1.0),
            "degrees": 3.0,
        },
        "quick": {"lomma_gmi.realism": 0.0},
    },
    # theirs is LOMMA's loss; around GMI alone what they changed about it is the same
    "gmi": {
        "paper": {"gmi.realism": 0.0, "gmi.steps": 100, "gmi.images": 100, "gmi.reference_batch": 20, "sigma": 0.003},
        "paper_taa": {
            "gmi.realism": 0.0,
            "gmi.steps": 100,
            "gmi.images": 100,
            "gmi.reference_batch": 20,
            "copies": 30,
            "mode": "transform",
            "scale": (0.9, 1.0),
            "degrees": 3.0,
        },
        "quick": {"gmi.realism": 0.0},
    },
    # low_resolution: ked_dcgan-celeba_vgg16-celeba.yaml, kedmi_optimize_paa and kedmi_optimize_taa
    "lomma_kedmi": {
        "paper": {"lomma_kedmi.pretrained": True, "lomma_kedmi.steps": 100, "lomma_kedmi.images": 100, "sigma": 0.05},
        "paper_taa": {
            "lomma_kedmi.pretrained": True,
            "lomma_kedmi.steps": 200,
            "lomma_kedmi.images": 100,
            "mode": "transform",
        },
    },
}


@dataclass(frozen=True)
class Align(Wrapper):
    """min_z mean_i loss(T(x_i)), x_i = x + sigma N(0, I) (noise: PAA) or x cropped, mirrored, turned (transform: TAA).

    Args:
        copies: Copies of each image and step, all in one pass; each is a gradient image of its own.
        mode: noise (PAA) or transform (TAA).
        sigma: Standard deviation of the noise, images being in [0, 1]. The authors: .06 around PPA, .05 around KEDMI,
            .003 around GMI.
        scale: Area of a transformed copy's crop. The authors: .8-1, around GMI .9-1.
        ratio: Its height : width.
        degrees: Its largest turn. The authors: 5, around GMI 3.
        mirror: Mirror half of the transformed copies.
        select: Average scores as well; the paper averages gradients only.

    Source: section 4 of the paper; values of the authors' code (50 copies; 30 transformed ones around GMI), and what
    it changes about an attack: see AROUND.
    Differs: sigma is fixed, theirs is a share of the batch's brightest minus darkest pixel, so that it depends on which
    images are searched together; each image has transforms of its own, theirs are drawn for a whole batch. Around GMI
    they stretch each batch of copies from its darkest to its brightest pixel onto [0, 1], because their StyleGAN's
    output has no bounds; a prior's images are in [0, 1] already. Around KEDMI their Gaussian is wider by 5, one for all
    images of an identity, and moves twice a step under PAA; the critic sees the copies. Here KEDMI stays as it is.
    """

    copies: int = 50
    mode: Literal["noise", "transform"] = "noise"
    sigma: float = 0.06
    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    degrees: float = 5.0
    mirror: bool = True
    select: bool = False

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise UserError(f"align: copies must be at least 1, got {self.copies}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(
                f"align: scale must satisfy 0 < low <= high <= 1 and ratio 0 < low <= high, got {self.scale} and "
                f"{self.ratio}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """The attack's, its gradient images (and with `select` all others) times copies."""
        return viewed_cost(self.wrapped.cost(prior, public), self.copies, self.select)

    def view(self, x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
        """One random copy of each image; noisy ones are not clamped."""
        if self.mode == "transform":
            return augment.random_resized_crop(
                x, noise, self.scale, self.ratio, 0.5 if self.mirror else 0.0, self.degrees
            )
        return x + self.sigma * noise.normal(*x.shape[1:]).to(x.dtype) if self.sigma else x

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Run the attack under averaged gradients."""
        viewed = Viewed(oracle, seed_of(seed, "align"), self.view, self.copies, self.select)
        return self.wrapped(viewed, prior, labels, seed, replace(work, batch=max(1, work.batch // self.copies)))
