"""DP-SGD: each image's gradient is clipped, and noise hides what any one of them adds to a step.

References:
    | Deep Learning with Differential Privacy (Abadi et al., 2016)
    | https://arxiv.org/abs/1607.00133
    | Opacus: User-Friendly Differential Privacy Library in PyTorch (Yousefpour et al., 2021), which does the work
    | https://arxiv.org/abs/2109.12298
"""

import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mibench.core import Defense, Schedule, Split, Step
from mibench.runtime.errors import UserError
from mibench.runtime.rng import generator

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

__all__ = ["DPSGD"]

CARD = {
    "summary": "clip every image's gradient and add noise (differential privacy of single images)",
    "title": "Deep Learning with Differential Privacy",
    "authors": "Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang",
    "venue": "ACM CCS",
    "year": 2016,
    "link": "https://arxiv.org/abs/1607.00133",
    "strength": "noise",
    "grid": [0.01, 0.1, 0.4, 1.1],
    "adaptive": {},
    "conflicts": {
        "at_at": "each image would bring a second row into the batch, and the inner attack runs past the recorder of "
        "each image's gradient",
        "bido": "its penalty compares the images of a batch, so that no image has a gradient of its own to clip",
        "cutmix": "a row would show two images, and clipping rows would not bound what one image adds",
        "mid": "its penalty reads a layer's output past the recorder of each image's gradient",
        "mixup": "a row would show two images, and clipping rows would not bound what one image adds",
        "pgd_at": "its inner attack runs past the recorder of each image's gradient",
        "ssd": "it serves averages over private images, which the noise of training does not cover",
        "tl": "dp_sgd replaces the batch norms that tl keeps as public images have trained them",
        "trap": "each image would bring further rows into the batch, and the triggers learn from images without noise",
    },
    "packages": {"opacus": "dp"},
    "zero": "its batches are Poisson samples and its batch norms are group norms, even without noise",
}

PRESETS = {"paper": {"noise": 0.01, "clip": 1.0}}
"""What the model-inversion papers ran under the name of DP-SGD (VGG-16, CelebA: gmi/target/train_dp.py at commit
23dc853 of https://github.com/Jiachen-T-Wang/mi-defense): its epsilon is above a million."""

LEAST_PRV_NOISE = 0.3
"""Below, the PRV accountant's grid grows fast: 2 s at .3, 7 s at .2, with epsilon beyond any use."""


@dataclass(frozen=True)
class DPSGD(Defense):
    """g = (sum_i g_i min(1, clip / |g_i|) + noise clip N(0, I)) / E[batch], g_i the gradient of image i's loss.

    Every image is in a batch with the same probability, independently of the others (Poisson sampling), so that the
    accountant's epsilon holds. It is reported as `epsilon`, for (epsilon, delta)-differential privacy of one image
    added or removed; not at all where it is infinite (noise 0: clipping alone).
    Batch normalisation mixes images: each becomes a group normalisation with gcd(32, channels) groups and a fresh scale
    and shift, so that what pretrained weights had in theirs is lost. A control without noise is `noise=0 clip=1e9`.

    Args:
        noise: Standard deviation of the noise in units of `clip`. Under .3 epsilon is in the hundreds and more: that is
            clipping with a little noise, and no privacy to speak of. The default is the published one; on digiface with
            `cnn` it leaves a natural accuracy of .21 after five epochs (epsilon 570,000).
        clip: Largest norm of one image's gradient over all parameters.
        delta: The probability with which epsilon may fail; below 1 / images.
        accountant: rdp (Rényi moments), or prv (tighter; noise of at least .3).

    Where a training is doubled until it converges, epsilon is that of all its candidates together; the choice
    between them reads the accuracy on private images without noise, which no epsilon covers (none is made where epochs
    are given).

    Source: algorithm 1 of the first paper, as Opacus carries it out.
    Differs: a Poisson batch without any image makes no step, which the accountant counts all the same. The noise comes
    from the run's seed, so that a run can be repeated: who knows the seed can subtract the noise. Always in float32,
    because in bf16 norms are off by up to 1 / 256 and the bound with them.

    Needs memory for one gradient of the whole network for each image of a batch.
    """

    noise: float = 0.01
    clip: float = 1.0
    delta: float = 1e-5
    accountant: Literal["rdp", "prv"] = "rdp"

    sampling: ClassVar[Literal["shuffle", "poisson"]] = "poisson"

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise UserError(f"dp_sgd: noise must be a number of at least 0, got {self.noise}")
        if not 0 < self.clip < math.inf:
            raise UserError(f"dp_sgd: clip must be a number above 0, got {self.clip}")
        if not 0 < self.delta < 1:
            raise UserError(f"dp_sgd: delta must lie between 0 and 1, as in 1e-5, got {self.delta}")
        if self.accountant == "prv" and self.noise < LEAST_PRV_NOISE:
            raise UserError(
                f"dp_sgd: the accountant prv needs noise >= {LEAST_PRV_NOISE}, got {self.noise}; use accountant=rdp"
            )

    def surgery(self, model: nn.Module) -> nn.Module:
        """Group for batch normalisation.

        Raises:
            UserError: If opacus is not installed.
        """
        if find_spec("opacus") is None:
            raise UserError("dp_sgd needs the package opacus; install it with: pip install 'mibench[dp]'")
        for name, norm in batch_norms(model).items():
            model.set_submodule(name, group_norm(norm))
        return model

    def wrap(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Per-image gradients, clipped and noised before each step; the noise's generator is set by `epoch`.

        Raises:
            UserError: If another defense has put batch norms into the model since the surgery.
        """
        if batch_norms(model):
            raise UserError("dp_sgd: a defense named after it adds batch norms; name dp_sgd last, as in sca+dp_sgd")
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        recorder = GradSampleModule(model, loss_reduction="mean")
        private = DPOptimizer(
            optimizer,
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=schedule.images * schedule.rate,
            loss_reduction="mean",
        )
        private.mibench = (recorder, schedule)  # for `finish`; a function of the settings, so nothing to checkpoint
        return _InFloat32(recorder), private

    def epoch(self, step: Step) -> None:
        """Noise that depends on the run's seed and the epoch alone."""
        private = cast("DPOptimizer", step.optimizer)
        private.generator = generator("dp_sgd", step.noise.seed, step.epoch, device=step.engine.device)

    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """Takes the hooks off the model; epsilon, if it is finite."""
        private = cast("DPOptimizer", step.optimizer)
        recorder, schedule = private.mibench
        private.zero_grad(set_to_none=True)
        recorder.to_standard_module()
        for parameter in step.model.parameters():
            if hasattr(parameter, "summed_grad"):
                del parameter.summed_grad
        epsilon = self.epsilon(schedule)
        return {"epsilon": epsilon} if math.isfinite(epsilon) else {}

    def epsilon(self, schedule: Schedule) -> float:
        """The accountant's epsilon after this training and the shorter ones it replaces, all at one sampling rate."""
        from opacus.accountants import PRVAccountant, RDPAccountant

        accountant = RDPAccountant() if self.accountant == "rdp" else PRVAccountant()
        accountant.history = [(self.noise, schedule.rate, schedule.looks)]
        with warnings.catch_warnings():
            # The best Rényi order lies at the end of opacus's list for very little and very much noise: the epsilon
            # is then larger than need be, but still holds.
            warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
            return float(accountant.get_epsilon(self.delta))


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every layer that normalises over a batch, by its name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    """opacus's replacement: gcd(32, channels) groups, a fresh scale and shift where there were any.

    Differs: a vector of features has one value a channel, and a group of one value would always give 0; where the rule
    would make such groups, there is a single one.
    """
    groups = math.gcd(32, norm.num_features)
    if isinstance(norm, nn.BatchNorm1d) and groups == norm.num_features:
        groups = 1
    return nn.GroupNorm(groups, norm.num_features, affine=norm.affine)


class _InFloat32(nn.Module):
    """The recorded network without autocast."""

    def __init__(self, recorder: nn.Module) -> None:
        super().__init__()
        self.recorder = recorder

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        # The images ask for a gradient only because torch warns of backward hooks on a layer whose input asks for none.
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.recorder(x.detach().requires_grad_())
        return out
