"""Two rows of the papers at their true size, with random weights: seconds, peak memory, ratio to the authors' loops.

PPA: StyleGAN2 of 1024 pixels, crop 800, ResNet-18 at 224 pixels, 530 people, pool 2000, 200 candidates, 50 steps, 100
views, 50 images. KEDMI: 64 pixels, VGG16-BN, 1000 people, 300 of them attacked, 2400 steps, 5 images. Nothing is
measured but time and memory: random weights cost what trained ones cost.

    python tests/benchmarks/true_size.py                  # on a GPU
    python tests/benchmarks/true_size.py --small          # every step of it on a CPU, in a minute

The authors' loops are ports of their structure with the same mathematics: every parameter of generator and target gets
a gradient, modulated weights make a convolution of its own for each image, the whole image is drawn before it is
cropped, float32, a look at the loss at every step, PPA's batch of 20 and KEDMI's of 60. Their seconds are those of
`--steps` steps, times what the row takes; ours are those of the whole attack on `--identities` people.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.ppa import PPA
from mibench.core import Access, Attack, AttackContext, Oracle, Prior, Split
from mibench.core.losses import poincare
from mibench.models.fold import fold
from mibench.priors.kedmi import KedmiRecipe
from mibench.priors.stylegan2_ada import StyleGan2Ada
from mibench.priors.stylegan2_ada_network import Block, Generator, Layer, doubled
from mibench.runtime.engine import Engine, describe, resolve
from mibench.stages.invert import batch_of

SMALL = {
    "ppa": {"resolution": 64, "base": 1024, "most": 32, "layers": 2, "crop": 50},
    "attack": {"pool": 8, "candidates": 4, "images": 2, "steps": 3, "selection_views": 3},
}


def timed(engine: Engine, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and gigabytes of the device at their highest (NaN on a CPU)."""
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated() / 1e9 if cuda else math.nan


def attacked(attack: Attack, target: nn.Module, prior: Prior, people: int, classes: int, engine: Engine) -> Any:
    """The whole attack, as the stage `invert` runs it."""
    oracle = Oracle(target, Access.WHITE_BOX, classes)  # type: ignore[arg-type]
    batch = batch_of(engine, prior.image_shape, prior)
    with engine.autocast():
        return attack(oracle, prior, torch.arange(people, device=engine.device), 0, AttackContext(batch))


def authors_layer(layer: Layer, x: Tensor, w: Tensor) -> Tensor:
    """Modulated weights of each image, all of them in one grouped convolution."""
    n, inside = x.shape[:2]
    weight = layer.weight[None] * layer.style(w)[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, n * inside, *x.shape[2:])
    if layer.up:
        x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
        x = x.reshape(n, -1, *x.shape[2:])
        tap = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 4.0
        x = F.conv2d(x, (tap[:, None] * tap).repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n)
        x = x.reshape(n, -1, *x.shape[2:])
    return F.leaky_relu(x + layer.strength * layer.noise + layer.bias[:, None, None], 0.2) * math.sqrt(2.0)


def authors_image(generator: Generator, w: Tensor) -> Tensor:
    """The whole image."""
    x, image = generator.constant[None].repeat(len(w), 1, 1, 1), None
    for block in generator.grown:
        assert isinstance(block, Block) and isinstance(block.conv, Layer)
        x = authors_layer(block.grow, x, w) if isinstance(block.grow, Layer) else x
        x = authors_layer(block.conv, x, w)
        weight = block.paint.weight[None] * (block.paint.gain * block.paint.style(w))[:, None]
        painted = torch.einsum("nchw,noc->nohw", x, weight) + block.paint.bias[:, None, None]
        image = painted if image is None else doubled(image) + painted
    assert image is not None
    return image


def ppa(engine: Engine, people: int, steps: int, small: bool) -> dict[str, Any]:
    """Seconds for one person, ours and theirs."""
    side, classes = (32, 10) if small else (224, 530)
    recipe = StyleGan2Ada(**(SMALL["ppa"] if small else {"crop": 800}))
    nothing = Split(torch.zeros(0, 3, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    torch.manual_seed(0)
    prior = recipe.build((3, side, side), classes, nothing).eval()
    target = models.build("resnet18" if not small else "cnn", classes, (3, side, side)).eval()
    plain = [StyleGan2Ada(**{**vars(recipe), "crop": 0}).build((3, side, side), classes, nothing).generator, target]
    plain[0].load_state_dict(prior.generator.state_dict())
    w = torch.randn(4 if small else 20, recipe.style_dim, device=engine.device)
    assert isinstance(plain[0], Generator) and isinstance(prior.generator, Generator)
    generator, judge = plain[0].to(engine.device).eval(), target.to(engine.device)
    crop, full = recipe.crop, recipe.resolution
    top = (full - crop) // 2
    y = torch.zeros(len(w), dtype=torch.int64, device=engine.device)

    def step(point: Tensor, adam: torch.optim.Optimizer) -> None:
        image = authors_image(generator, point)[:, :, top : top + crop, top : top + crop]
        image = F.interpolate(image, (side, side), mode="bilinear", antialias=True)
        loss = poincare(judge((image + 1) / 2), y).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()

    point = w.clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=0.005, betas=(0.1, 0.1))
    step(point, adam)
    theirs, their_memory = timed(engine, lambda: [step(point, adam) for _ in range(steps)])
    attack = PPA(**SMALL["attack"]) if small else PPA()
    prior = engine.place(prior.requires_grad_(False))  # type: ignore[assignment]
    ready = engine.place(fold(target)).requires_grad_(False)  # type: ignore[arg-type]
    ours, memory = timed(engine, lambda: attacked(attack, ready, prior, people, classes, engine))
    image_theirs = theirs / steps / len(w)
    # Of the whole attack ours: pool, candidates x steps with gradient, views; of theirs only what is like for like.
    alone = steps_alone(attack)
    gradients, gradient_memory = timed(engine, lambda: attacked(alone, ready, prior, people, classes, engine))
    image_ours = gradients / people / alone.candidates / alone.steps
    return {
        "batch": batch_of(engine, prior.image_shape, prior),
        "seconds per identity, whole attack": ours / people,
        "peak GB": memory,
        "ms per gradient image": 1000 * image_ours,
        "ms per gradient image, authors' loop": 1000 * image_theirs,
        "peak GB, authors' loop": their_memory,
        "peak GB, steps alone": gradient_memory,
        "ratio": image_theirs / image_ours,
    }


def steps_alone(attack: PPA) -> PPA:
    """The attack without its selections: as many candidates as images, and no larger a pool."""
    return PPA(pool=attack.candidates, candidates=attack.candidates, images=attack.candidates, steps=attack.steps)


def kedmi(engine: Engine, people: int, steps: int, small: bool) -> dict[str, Any]:
    """Seconds for all people."""
    classes, shape = (10 if small else 1000), (3, 64, 64)
    nothing = Split(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    torch.manual_seed(0)
    prior = KedmiRecipe(**({"width": 4} if small else {})).build(shape, classes, nothing).eval()
    target = models.build("cnn" if small else "vgg16_bn64", classes, shape).eval()
    prior.to(engine.device)
    target.to(engine.device)
    batch = min(people, 60)
    mean = torch.zeros(batch, prior.latent_dim, device=engine.device, requires_grad=True)
    spread = torch.ones(batch, prior.latent_dim, device=engine.device, requires_grad=True)
    adam = torch.optim.Adam([mean, spread], lr=0.02)
    y = torch.arange(batch, device=engine.device) % classes

    def step() -> None:
        z = mean + torch.exp(spread / 2) * torch.randn_like(mean)
        image = prior.decode(z)
        loss = F.softplus(-prior.critic(image)).mean() + 100 * F.cross_entropy(target(image), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()

    step()
    theirs, their_memory = timed(engine, lambda: [step() for _ in range(steps)])
    attack = KEDMI(steps=3) if small else KEDMI()
    whole = theirs / steps * attack.steps * math.ceil(people / batch)
    placed = engine.place(prior.requires_grad_(False))
    ready = engine.place(fold(target)).requires_grad_(False)  # type: ignore[arg-type]
    ours, memory = timed(engine, lambda: attacked(attack, ready, placed, people, classes, engine))  # type: ignore[arg-type]
    return {
        "identities": people,
        "seconds": ours,
        "peak GB": memory,
        "seconds, authors' loop": whole,
        "peak GB, authors' loop": their_memory,
        "ratio": whole / ours,
    }


def main() -> None:
    """Print one JSON object."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--small", action="store_true", help="small networks and counts, for a CPU")
    asked.add_argument("--identities", type=int, default=2, help="people that PPA attacks")
    asked.add_argument("--steps", type=int, default=5, help="steps of the authors' loops that are timed")
    asked.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    asked.add_argument("--row", choices=("ppa", "kedmi", "both"), default="both")
    given = asked.parse_args()
    engine = resolve("cpu" if given.small else "auto", given.precision)
    made: dict[str, Any] = {"machine": describe(engine), "small": given.small}
    if given.row != "kedmi":
        made["PPA"] = ppa(engine, given.identities, given.steps, given.small)
    if given.row != "ppa":
        made["KEDMI"] = kedmi(engine, 6 if given.small else 300, given.steps, given.small)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
