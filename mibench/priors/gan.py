"""What the adversarial priors share: the generator and critic of GMI, a warm start, an average of the weights.

References:
    | The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks (Zhang et al., CVPR 2020)
    | https://arxiv.org/abs/1911.07135
    | Improved Training of Wasserstein GANs (Gulrajani et al., NeurIPS 2017)
    | https://arxiv.org/abs/1704.00028
    | Auto-Encoding Variational Bayes (Kingma and Welling, ICLR 2014), the warm start
    | https://arxiv.org/abs/1312.6114
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core import Prior, Split, TrainingContext, augment
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.engine import at_once
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["Encoder", "GanPrior", "Generator", "Loop", "critic_blocks", "levels"]

Upsampling = Literal["transposed", "nearest"]


def levels(image_shape: tuple[int, int, int]) -> int:
    """How often 4 pixels double to the image's side.

    Raises:
        UserError: If the side is not a power of two of at least 16.
    """
    _, height, width = image_shape
    count = int(math.log2(height)) - 2 if height >= 16 else 0
    if height != width or 4 * 2**count != height:
        near = 2 ** max(4, round(math.log2(max(height, width))))
        raise UserError(
            f"a GAN prior needs square images of 16, 32, 64, 128, ... pixels; got {height} x {width}: choose such a "
            f"size with --set data.image_size={near} and train again, or another prior with --prior"
        )
    return count


class Generator(nn.Module):
    """z -> Linear -> 4x4 -> doublings -> sigmoid, each doubling halves the channels down to `width`.

    At 64 px and width 64 with transposed convolutions this is GMI's generator (5,142,083 parameters).
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int, upsampling: Upsampling) -> None:
        super().__init__()
        doublings = levels(image_shape)
        top = width * 2 ** (doublings - 1)
        self.top = top
        self.project = nn.Sequential(nn.Linear(latent_dim, top * 16, bias=False), nn.BatchNorm1d(top * 16), nn.ReLU())
        layers: list[nn.Module] = []
        for level in range(doublings):
            last = level == doublings - 1
            inside, outside = top // 2**level, image_shape[0] if last else top // 2 ** (level + 1)
            if upsampling == "transposed":
                layers.append(nn.ConvTranspose2d(inside, outside, 5, 2, 2, 1, bias=last))
            else:
                layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(inside, outside, 3, padding=1, bias=last)]
            layers += [nn.Sigmoid()] if last else [nn.BatchNorm2d(outside), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1]."""
        x = self.project(z).reshape(len(z), self.top, 4, 4)
        return self.layers(x.contiguous(memory_format=torch.channels_last)).float()


def critic_blocks(image_shape: tuple[int, int, int], width: int, first_norm: bool) -> nn.Sequential:
    """Convolutions 5x5 of stride 2 with instance norm and LeakyReLU .2, from the image down to 8x8 and `width` 2^i."""
    layers: list[nn.Module] = []
    inside = image_shape[0]
    for level in range(levels(image_shape) - 1):
        outside = width * 2**level
        layers.append(nn.Conv2d(inside, outside, 5, 2, 2))
        if level > 0 or first_norm:
            layers.append(nn.InstanceNorm2d(outside, affine=True))
        layers.append(nn.LeakyReLU(0.2))
        inside = outside
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Images to the mean and log-variance of a latent: only used to warm the generator up."""

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = image_shape[0]
        for level in range(levels(image_shape)):
            outside = width * 2**level
            layers += [nn.Conv2d(inside, outside, 5, 2, 2, bias=False), nn.BatchNorm2d(outside), nn.LeakyReLU(0.2)]
            inside = outside
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside * 16, 2 * latent_dim))

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """(mu, log variance)."""
        mu, log_var = self.layers(2 * x - 1).float().chunk(2, dim=1)
        return mu, log_var.clamp(-10.0, 4.0)


class GanPrior(Prior):
    """A generator in [0, 1] with z ~ N(0, I)."""

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.generator = Generator(image_shape, latent_dim, width, upsampling)

    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """G(z)."""
        return self.generator(z)


class Loop:
    """Steps with a checkpoint, a progress bar, a log and batches: everything about training a GAN but its losses.

    All randomness is a function of (seed, step, place in the batch), so a resumed run ends with the same bits.

    Args:
        session: The machine and the seed.
        public: The attacker's images.
        batch: Images a step.
        mirror: Mirror public images at random.
        parts: Whatever must be saved to resume: networks and optimisers by name.
    """

    def __init__(
        self, session: TrainingContext, public: Split, batch: int, mirror: bool, parts: dict[str, Any]
    ) -> None:
        self.session = session
        self.mirror = mirror
        self.images = session.engine.resident(public.images)
        self.batch = batch
        self.parts = parts
        self.log: list[dict[str, float]] = []
        self.place = torch.arange(batch, device=session.engine.device)

    def noise(self, *purpose: object) -> Noise:
        """One stream per place in the batch."""
        return Noise(seed_of(self.session.seed, "prior"), self.place).of(*purpose)

    def index(self, *purpose: object) -> Int64[Tensor, " b"]:
        """Places in the public split, drawn with replacement."""
        u = self.noise(*purpose).uniform(1)[:, 0]
        return (u * len(self.images)).long().clamp(max=len(self.images) - 1)

    def at(self, index: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Public images in [0, 1]."""
        return self.session.engine.images(self.images[index.to(self.images.device)])

    def real(self, *purpose: object) -> Float[Tensor, "b c h w"]:
        """A batch of public images in [0, 1], mirrored at random where the recipe says so."""
        x = self.at(self.index(*purpose))
        return augment.flip(x, self.noise(*purpose, "mirror")) if self.mirror else x

    @torch.no_grad()
    def ask(self, answer: Callable[[Tensor, None], Tensor]) -> Tensor:
        """What the target (`oracle.probs`, `oracle.labels`) says of every public image, each asked once."""
        engine = self.session.engine
        parts = self.images.split(at_once(256, self.images.shape, engine.device))
        with engine.autocast():
            return torch.cat([answer(engine.images(part), None) for part in parts])

    def run(self, phase: str, steps: int, step: Callable[[int], dict[str, Tensor]], every: int = 100) -> None:
        """Do `step(0) ... step(steps - 1)`; every so often write log, checkpoint and picture.

        Raises:
            UserError: If a loss stops being finite; names phase and step.
        """
        path = self.session.checkpoint
        start = 0
        if path is not None and path.exists():
            state = read_checkpoint(path, self.session.engine.device)
            if state["phase"] != phase:
                if phase == "warm-up":
                    return  # it was over when the checkpoint was written
            else:
                for name, part in self.parts.items():
                    part.load_state_dict(state["parts"][name])
                self.log, start = state["log"], state["done"]
        label = f"{self.session.label} ({phase})"
        with self.session.reporter.task(label, steps, "steps") as task:
            task.advance(start)
            for number in range(start, steps):
                losses = step(number)
                task.advance()
                if (number + 1) % every and number + 1 < steps:
                    continue
                values = {name: float(value) for name, value in losses.items()}
                if not all(math.isfinite(value) for value in values.values()):
                    raise UserError(
                        f"{label}: a loss stopped being finite by step {number + 1} of {steps}: {values}; lower the "
                        "learning rate with --set lr=... or --set prior.lr=..."
                    )
                self.log.append({"phase": float(phase == "gan"), "step": float(number + 1), **values})
                self._save(phase, number + 1)

    def _save(self, phase: str, done: int) -> None:
        path = self.session.checkpoint
        if path is None:
            return
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        write_checkpoint(path, {"parts": parts, "phase": phase, "done": done, "log": self.log})
        prior = self.parts["prior"]
        prior.eval()
        self.session.picture(prior)
        prior.train()

    def warm_up(
        self,
        prior: Prior,
        steps: int,
        width: int,
        lr: float,
        pairs: Callable[[int], tuple[Tensor, Tensor | None]] | None = None,
    ) -> None:
        """Train the generator as the decoder of a variational auto-encoder on the public images.

        `pairs` gives a step's images, and their identities if the generator is told whom to draw.

        Loss per image: |x - G(z)|^2 / (2 sigma^2) * .1 + KL(q(z|x) || N(0, I)), sigma = .1: a Gaussian likelihood,
        tempered because pixels are not independent. A GAN that starts from a blurred copy of the public images needs
        a small part of the steps it needs from noise.
        """
        engine = self.session.engine
        encoder = engine.place(Encoder(prior.image_shape, prior.latent_dim, width))
        learning = [*prior.get_submodule("generator").parameters(), *encoder.parameters()]
        optimizer = torch.optim.Adam(learning, lr=lr)
        self.parts |= {"encoder": encoder, "warm-up optimizer": optimizer}

        def step(number: int) -> dict[str, Tensor]:
            noise = self.noise("warm-up", number)
            x, y = pairs(number) if pairs is not None else (self.real("warm-up real", number), None)
            rise = min(1.0, (number + 1) / (0.3 * steps))
            fall = 0.5 * (1 + math.cos(math.pi * max(0.0, number / steps - 0.3) / 0.7))
            optimizer.param_groups[0]["lr"] = lr * min(rise, fall)
            with engine.autocast():
                mu, log_var = encoder(x)
                z = mu + torch.exp(0.5 * log_var) * noise.of("z").normal(prior.latent_dim)
                drawn = prior.decode(z, y)
            error = (drawn - x).square().sum(dim=(1, 2, 3)) / (2 * 0.1**2)
            divergence = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1)
            loss = (0.1 * error + divergence).mean() / 1000
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return {"loss": loss.detach(), "kl": divergence.mean().detach()}

        self.run("warm-up", steps, step)
        # What only the warm-up needed is not kept for the rest.
        self.parts = {name: part for name, part in self.parts.items() if name not in ("encoder", "warm-up optimizer")}


def average_of(network: nn.Module) -> nn.Module:
    """A frozen copy to hold the running average of the weights."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def average(into: nn.Module, network: nn.Module, decay: float) -> None:
    """into <- decay * into + (1 - decay) * network, buffers of statistics included."""
    for old, new in zip(into.state_dict().values(), network.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
