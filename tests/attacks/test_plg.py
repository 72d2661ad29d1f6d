"""Laws of the attack plg: the published step, the views it looks through, what it refuses."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from worlds import ToldPrior, World, attack_on, quick

from mibench.attacks.plg import PLG
from mibench.core import AttackContext, Cost, augment
from mibench.plugins import capabilities
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

KEYS = torch.arange(6)


def test_plg_takes_the_published_steps() -> None:
    """Adam lr .1 on the sum over two views of max_{k != y} l_k - l_y; nothing is clipped."""
    world, labels = World(5), torch.tensor([3, 0])
    prior, y = ToldPrior(world.prior), torch.tensor([3, 3, 0, 0])
    noise = Noise(5, torch.tensor([6, 7, 0, 1])).of("plg")

    def plg(steps: int) -> Tensor:
        return PLG(images=2, steps=steps)(world.oracle(), prior, labels, 5, AttackContext()).latents

    z, m, v = plg(0), torch.zeros(4, 7), torch.zeros(4, 7)
    torch.testing.assert_close(z, noise.of("start").normal(7))
    for step in range(4):
        point = z.clone().requires_grad_()
        loss = torch.zeros(())
        for view in range(2):
            x = augment.view(prior.decode(point, y), noise.of("step", step).of("view", view), True)
            logits = world.target(x)
            for i in range(4):
                loss = loss + max(logits[i, k] for k in range(5) if k != y[i]) - logits[i, y[i]]
        g = torch.autograd.grad(loss, point)[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        z = z - 0.1 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 60e-8)
        torch.testing.assert_close(plg(step + 1), z, rtol=0, atol=1e-4)


def test_the_published_cost() -> None:
    """6,000 gradient images per class."""
    assert PLG().cost(World(3).prior) == Cost(6000, 6000, 0)


@pytest.mark.parametrize("objective", ["max_margin", "cross_entropy", "poincare", "nll"])
def test_every_objective_succeeds(objective: str) -> None:
    world = World(6)
    found = attack_on(world, "plg", objective=objective, images=8)
    enough = 0.75 if objective == "nll" else 0.9  # nll may raise all logits
    assert float((world.truth(found.images) == found.labels).float().mean()) >= enough


def test_an_unconditional_prior_is_refused_in_one_line() -> None:
    for name in ("plg", "lokt"):
        with pytest.raises(UserError, match=f"{name} needs a prior that is told whom to draw.*--prior.* plg") as caught:
            capabilities.require(quick(name), World(3).prior)
        assert "\n" not in str(caught.value)
        capabilities.require(quick(name), ToldPrior(World(3).prior))


@pytest.mark.parametrize("setting", [{"images": 0}, {"views": 0}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"plg: .*{next(iter(setting))}"):
        quick("plg", **setting)


# --- the views


def photographs(n: int = 6, height: int = 24, width: int = 24) -> Tensor:
    """Smooth images, so that resampling twice and once differ little."""
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 3, width)[None]
    phase = torch.arange(n * 3).reshape(n, 3, 1, 1)
    return 0.5 + 0.2 * torch.sin(rows + phase) + 0.2 * torch.cos(1.3 * columns - phase)


@pytest.mark.parametrize("size", [(24, 24), (16, 32)])
def test_a_turn_of_the_whole_image_is_torchvisions(size: tuple[int, int]) -> None:
    x = photographs(2, *size)
    one, nil = torch.ones(2), torch.zeros(2)
    out = augment.crop(x, one, one, nil, nil, nil, torch.tensor([0.2, -0.1]))
    for row, angle in enumerate((0.2, -0.1)):
        wanted = TF.rotate(x[row], -math.degrees(angle), TF.InterpolationMode.BILINEAR)
        inside = slice(size[0] // 4, -size[0] // 4), slice(size[1] // 4, -size[1] // 4)
        other = TF.rotate(x[row], math.degrees(angle), TF.InterpolationMode.BILINEAR)
        error = (out[row] - wanted)[(..., *inside)].abs().max()
        wrong = (out[row] - other)[(..., *inside)].abs().max()
        assert min(error, wrong) < 1e-4 < 10 * max(error, wrong)
        assert float(error) < 1e-4, "the angle's sign"


def test_views_are_drawn_for_each_image_alone() -> None:
    x, noise = photographs(1).expand(6, -1, -1, -1), Noise(0, KEYS)
    together = augment.view(x, noise, True)
    assert len(together.flatten(1).unique(dim=0)) == 6 and together.min() >= 0 and together.max() <= 1
    index = torch.tensor([4, 1])
    torch.testing.assert_close(augment.view(x[index], noise.rows(index), True), together[index], rtol=0, atol=1e-6)


def test_views_shift_turn_and_jitter_as_far_as_published() -> None:
    """Crops of area .8-1 magnify by 1-1.118; turns reach 5 degrees; brightness and contrast move by up to .2."""
    n = 500
    noise = Noise(0, torch.arange(n))
    grid = torch.linspace(0, 1, 33)
    ramp = grid[None, None, None, :].expand(n, 1, 33, -1).contiguous()
    turned = augment.view(ramp, noise, False)
    across, down = turned[:, 0, 16, 20] - turned[:, 0, 16, 12], turned[:, 0, 20, 16] - turned[:, 0, 12, 16]
    angle = torch.rad2deg(torch.atan(down / across))
    still = angle.abs() < 1e-3
    assert abs(float(still.float().mean()) - 0.5) < 4 * 0.5 / n**0.5  # kornia's RandomRotation turns every other image
    assert 4.8 < float(angle.max()) <= 5.01 and -5.01 <= float(angle.min()) < -4.8
    assert abs(float(angle[~still].mean())) < 4 * 5 / (3 * n / 2) ** 0.5
    white = augment.view(torch.ones_like(ramp), noise, False)[:, 0]
    assert (white[still] - white[still, 16:17, 16:17]).abs().max() < 1e-5  # nothing came in from outside
    far = angle.abs() > 4
    assert (white[far][:, [0, 0, -1, -1], [0, -1, 0, -1]] < 0.1).all()  # black
    grey = torch.full((n, 3, 8, 8), 0.5)
    always, half = (augment.view(grey, noise, False, jitter)[:, :, 3:5, 3:5] for jitter in (1.0, 0.5))
    assert 0.4 <= float(always.min()) < 0.405 and 0.595 < float(always.max()) <= 0.6
    kept = (half - 0.5).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert abs(float(kept.float().mean()) - 0.5) < 4 * 0.5 / n**0.5
    torch.testing.assert_close(half[~kept], always[~kept])


def test_views_are_distributed_as_kornias() -> None:
    """Golden numbers of kornia 0.6.6, 3,000 views by the authors' four transforms of this image of 32 px: the mean of
    the upper left pixel, which turns make black, and how often it is black; both with and without sure jitter."""
    x, noise = photographs(1, 32, 32).expand(1000, -1, -1, -1), Noise(0, torch.arange(1000))
    for jitter in (1.0, 0.5):
        corner = augment.view(x, noise, True, jitter)[:, :, 0, 0]
        torch.testing.assert_close(corner.mean(dim=0), torch.tensor([0.373, 0.449, 0.429]), rtol=0, atol=0.03)
        assert abs(float((corner.sum(dim=1) < 0.05).float().mean()) - 0.125) < 0.035
