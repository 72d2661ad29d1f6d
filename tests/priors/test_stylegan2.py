"""Laws of the small StyleGAN2: modulation by explicit weights, spaces, places, losses by hand, resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_resumes, session
from torch import Tensor
from torch.nn import functional as F
from worlds import public, small_net

from mibench.attacks.ppa import PPA
from mibench.core import Access, AttackContext, Oracle, Split, TrainingContext
from mibench.plugins import capabilities
from mibench.priors.dcgan import DcganPrior, ShippedDcgan
from mibench.priors.gan import Loop
from mibench.priors.stylegan2 import StyleGan2, StylePrior, r1
from mibench.priors.stylegan2_network import Linear, Mapping, Modulated, StyleGenerator, activate
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SETTINGS: dict[str, Any] = {
    "latent_dim": 6,
    "style_dim": 5,
    "layers": 2,
    "width": 2,
    "most": 8,
    "steps": 4,
    "batch": 4,
    "lazy": 2,
}


def untrained(shape: tuple[int, int, int] = (3, 32, 32), **changed: Any) -> StylePrior:
    torch.manual_seed(3)
    prior = StyleGan2(**(SETTINGS | changed)).build(shape, 3, public()).eval()
    prior.find_centre(1, 500)
    return prior


def trained(recipe: StyleGan2, split: Split, told: TrainingContext) -> tuple[StylePrior, list[dict[str, float]]]:
    torch.manual_seed(0)
    prior = recipe.build((3, *split.images.shape[2:]), 3, split)
    return prior, recipe.train(prior, split, None, told)


# --- the networks


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulation_is_a_convolution_of_its_own_for_each_image(kernel: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = Modulated(4, 6, 5, kernel, demodulate=demodulate).double()
    with torch.no_grad():
        layer.bias.normal_()
    x, w = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    found = layer(x, w)
    for one in range(3):
        style = layer.style.weight @ w[one] / math.sqrt(5) + 1.0
        weight = layer.weight / math.sqrt(4 * kernel**2) * style[None, :, None, None]
        if demodulate:
            weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        wanted = F.conv2d(x[one : one + 1], weight, layer.bias, padding=kernel // 2)
        torch.testing.assert_close(found[one : one + 1], wanted, rtol=1e-5, atol=1e-5)


def test_growing_is_zeros_between_pixels_a_convolution_and_a_filter() -> None:
    torch.manual_seed(0)
    layer = Modulated(4, 6, 5, up=True).double()
    x, w = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    stuffed = torch.zeros(2, 4, 17, 17, dtype=torch.float64)
    stuffed[:, :, 1:17:2, 1:17:2] = x  # a convolution of stride 1 over this, weights turned round, is a transposed one
    tap = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=torch.float64)
    for one in range(2):
        style = layer.style.weight @ w[one] / math.sqrt(5) + 1.0
        weight = layer.weight * style[None, :, None, None]
        weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        wide = F.conv2d(F.pad(stuffed[one : one + 1], (1, 1, 1, 1)), weight.flip(2, 3))
        wanted = F.conv2d(F.pad(wide, (1, 1, 1, 1)), (tap[:, None] * tap).expand(6, 1, 4, 4), groups=6)
        assert wanted.shape[2:] == (16, 16)
        torch.testing.assert_close(layer(x, w)[one : one + 1], wanted, rtol=1e-5, atol=1e-5)


def test_demodulation_keeps_the_variance_at_one_whatever_the_style() -> None:
    torch.manual_seed(0)
    layer = Modulated(16, 8, 5)
    w = torch.randn(6, 5) * torch.tensor([0.1, 1, 3, 10, 30, 100])[:, None]
    with torch.no_grad():
        out = layer(torch.randn(6, 16, 40, 40), w)[:, :, 1:-1, 1:-1]  # the border sees padding
        power = out.square().mean(dim=(1, 2, 3))
    assert bool(((power - 1).abs() < 0.1).all()), power


def test_an_activation_leaves_unit_power() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert float(activate(x).square().mean()) == pytest.approx(1 + 0.04, abs=0.02)
    assert float(activate(torch.tensor([-1.0])) / activate(torch.tensor([1.0]))) == pytest.approx(-0.2)


def test_mapping_by_its_formula() -> None:
    torch.manual_seed(0)
    mapping = Mapping(6, 5, 2, rate=0.01)
    z = torch.randn(7, 6)
    torch.testing.assert_close(mapping(1000 * z), mapping(z), rtol=1e-4, atol=1e-5)  # only the direction counts
    x = z / z.square().mean(dim=1, keepdim=True).sqrt()
    for layer in mapping.layers:
        x = x @ layer.weight.T * 0.01 / math.sqrt(x.shape[1]) + 0.01 * layer.bias
        x = math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)
    torch.testing.assert_close(mapping(z), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_the_learning_rate_is_the_same_for_every_layer_relative_to_its_weights(rate: float) -> None:
    """Adam's first step moves each stored weight by lr, so what is used moves by lr * rate * its initial size."""
    for inside in (4, 100):
        torch.manual_seed(0)
        layer = Linear(inside, 3, rate=rate)
        used = layer(torch.eye(inside)).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        layer(torch.ones(1, inside)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            layer.bias.zero_()
            moved = (layer(torch.eye(inside)) - used).abs() * math.sqrt(inside)
        assert float((used * math.sqrt(inside)).std()) == pytest.approx(1.0, abs=0.35)
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * rate), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("side", "layers"), [(16, 6), (32, 8), (64, 10), (256, 14), (1024, 18)])
def test_published_numbers_of_layers_that_hear_w(side: int, layers: int) -> None:
    """18 at 1024 px, 16 at 512, 14 at 256."""
    assert StyleGenerator((3, side, side), 2, 2, 1, 1, 2, 1.0).layers == layers


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32), (3, 16, 16)])
def test_images_lie_in_0_1_and_depend_on_every_latent(shape: tuple[int, int, int]) -> None:
    prior = untrained(shape)
    for space in ("z", "w", "w+"):
        view = prior.space(space)
        z = (3 * view.sample(Noise(1, torch.arange(4)))).requires_grad_()
        x = view.decode(z)
        assert x.shape == (4, *shape) and bool(((x >= 0) & (x <= 1)).all())
        slope = torch.autograd.grad(x.square().sum(), z)[0]
        assert bool((slope != 0).all())
        with torch.no_grad():
            torch.testing.assert_close(view.decode(z[:1]), x[:1], atol=1e-5, rtol=0)
            scores = view.critic(x)
            torch.testing.assert_close(view.critic(x[:1]), scores[:1], atol=1e-5, rtol=1e-5)


# --- spaces and places


def test_spaces_draw_the_same_z_and_truncate_towards_the_mean() -> None:
    prior = untrained(psi=0.3, cutoff=3)
    noise = Noise(4, torch.arange(5))
    f = prior.generator.mapping(prior.sample(noise))
    mean = prior.generator.mapping(Noise(1, torch.arange(500)).of("centre").normal(6)).mean(dim=0)
    torch.testing.assert_close(prior.generator.centre, mean)
    w, wide = prior.space("w"), prior.space("w+")
    torch.testing.assert_close(w.sample(noise), 0.3 * f + 0.7 * mean)
    layers = wide.sample(noise).reshape(5, prior.generator.layers, 5)
    for layer in range(prior.generator.layers):
        torch.testing.assert_close(layers[:, layer], w.sample(noise) if layer < 3 else f)
    torch.testing.assert_close(wide.decode(f.repeat(1, prior.generator.layers)), w.decode(f))
    full = untrained(psi=1.0)
    torch.testing.assert_close(full.space("w").decode(full.space("w").sample(noise)), full.decode(full.sample(noise)))
    assert w.slope == 0.2 and w.latent_dim == 5 and wide.latent_dim == 5 * 8 and w.space("w") is w
    with pytest.raises(UserError, match=r"no v space, only z, w, w\+"):
        prior.space("v")


@pytest.mark.parametrize("space", ["z", "w", "w+"])
def test_what_is_entered_resumes_to_the_same_image(space: str) -> None:
    view = untrained((1, 32, 32)).space(space)
    z = view.sample(Noise(1, torch.arange(3)))
    image = view.decode(z)
    assert view.blocks == 3
    for place in range(1, view.blocks + 1):
        inside = view.features_at(z, place)
        torch.testing.assert_close(view.decode_from(z, inside, place), image, rtol=0, atol=1e-6)
        if place < view.blocks:
            torch.testing.assert_close(view.advance(z, inside, place), view.features_at(z, place + 1))
        leaf = inside.detach().requires_grad_()
        slope = torch.autograd.grad(view.decode_from(z, leaf, place).square().sum(), leaf)[0]
        assert bool((slope != 0).any(dim=1).all())


def test_the_image_so_far_is_at_the_end_and_is_only_added() -> None:
    """A constant added to what is painted so far moves atanh(2x - 1) by just that; without it the image differs."""
    view = untrained().space("w")
    z = view.sample(Noise(1, torch.arange(3)))

    def image_so_far(place: int, inside: Tensor) -> Tensor:
        return torch.atanh(2 * view.decode_from(z, inside, place) - 1)

    for place in range(1, view.blocks + 1):
        inside = view.features_at(z, place)
        count = view.skip_size(place)
        assert count == 3 * (4 * 2 ** (place - 1)) ** 2
        more, without = inside.clone(), inside.clone()
        more[:, -count:] += 0.25
        without[:, -count:] = 0.0
        torch.testing.assert_close(image_so_far(place, more), image_so_far(place, inside) + 0.25, rtol=0, atol=1e-4)
        assert bool(((view.decode_from(z, without, place) - view.decode(z)).abs() > 1e-3).any())


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32)])
def test_the_shipped_generator_can_be_entered_too(shape: tuple[int, int, int]) -> None:
    prior = ShippedDcgan().build(shape, 3, public())
    assert isinstance(prior, DcganPrior) and prior.blocks == 4
    z = prior.sample(Noise(1, torch.arange(2)))
    for place, width in enumerate((512 * 16, 256 * 64, 128 * 256, 64 * 1024), start=1):
        inside = prior.features_at(z, place)
        assert inside.shape == (2, width) and float(inside.min()) == 0.0 and prior.skip_size(place) == 0
        torch.testing.assert_close(prior.decode_from(z, inside, place), prior.decode(z), rtol=0, atol=1e-6)
        if place < 4:
            torch.testing.assert_close(prior.advance(z, inside, place), prior.features_at(z, place + 1))


@pytest.mark.parametrize("start", ["same", "legacy"])
def test_ppa_searches_w_and_its_legacy_scores_other_images(start: str) -> None:
    """The scored image hears an untruncated w in its later layers, the start does not."""
    prior = untrained(psi=0.2, cutoff=2)
    target = small_net(3).eval()
    attack = PPA(images=2, candidates=2, pool=40, steps=0, scored_start=start)
    found = attack(Oracle(target, Access.WHITE_BOX, 3), prior, torch.arange(3), 0, AttackContext())
    noise = Noise(0, torch.arange(40)).of("pool")
    w = prior.space("w").sample(noise)
    scored = prior.space("w+" if start == "legacy" else "w")
    with torch.no_grad():
        x = scored.decode(scored.sample(noise))
        p = (target(x).softmax(1) + target(x.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(found.latents, w[p.topk(2, dim=0).indices.T.flatten()])
    torch.testing.assert_close(found.images, prior.space("w").decode(found.latents))
    assert PPA(space="z").space == "z"
    in_z = PPA(images=1, candidates=1, pool=3, steps=0, space="z")
    assert in_z(Oracle(target, Access.WHITE_BOX, 3), prior, torch.arange(3), 0, AttackContext()).latents.shape == (3, 6)
    with pytest.raises(UserError, match="no v space"):
        capabilities.require(PPA(space="v"), prior)


# --- training


def test_the_gradient_penalty_on_critics_whose_gradient_is_known() -> None:
    torch.manual_seed(0)
    x, a = torch.rand(5, 3, 4, 4, requires_grad=True), torch.randn(3, 4, 4)
    torch.testing.assert_close(r1((x * a).sum(dim=(1, 2, 3)), x), a.square().sum())
    c = torch.tensor(0.7, requires_grad=True)
    found = r1(c / 2 * x.square().sum(dim=(1, 2, 3)), x)
    power = x.detach().square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(found, c.detach() ** 2 * power)
    torch.testing.assert_close(torch.autograd.grad(found, c)[0], 2 * c.detach() * power)  # it can be learnt from


def test_two_steps_are_the_published_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softplus losses; the penalty at every second step here, twice as strong; Adam corrected for it."""
    seen: list[list[Tensor]] = []
    settings: list[tuple[float, tuple[float, float]]] = []

    class Recording(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
            self.all = list(parameters)
            settings.append((lr, betas))
            super().__init__(self.all, lr=0.0)

        def step(self, closure: Any = None) -> None:
            seen.append([p.grad.clone() for p in self.all])

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    recipe = StyleGan2(**(SETTINGS | {"steps": 2}))
    trained(recipe, public(), session())
    (lr, betas), (slow, late) = settings[:2]  # the third is the warm-up's
    assert lr == 2e-3 and betas == (0.0, 0.99)
    assert slow == pytest.approx(2e-3 * 2 / 3) and late == pytest.approx((0.0, 0.99 ** (2 / 3)))
    torch.manual_seed(0)
    prior = recipe.build((3, 16, 16), 3, public())
    loop = Loop(session(), public(), 4, False, {})
    critic = prior.critic_network
    for number in (0, 1):
        real = (public().images[loop.index("real", number)].float() / 255).requires_grad_()
        fake = prior.decode(loop.noise("critic", number).normal(6)).detach()
        on_real = critic(real)
        loss = (1 + torch.exp(-on_real)).log().mean() + (1 + torch.exp(critic(fake))).log().mean()
        if number == 0:
            slope = torch.autograd.grad(on_real.sum(), real, create_graph=True)[0]
            loss = loss + 2 * 10 / 2 * slope.square().sum(dim=(1, 2, 3)).mean()
        wanted = torch.autograd.grad(loss, list(critic.parameters()))
        for found, one in zip(seen[2 * number], wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=2e-3, atol=2e-5)
        score = critic(prior.decode(loop.noise("generator", number).normal(6)))
        wanted = torch.autograd.grad((1 + torch.exp(-score)).log().mean(), list(prior.generator.parameters()))
        for found, one in zip(seen[2 * number + 1], wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=2e-3, atol=2e-5)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = StyleGan2(**(SETTINGS | {"warm_up": 4, "decay": 0.5, "mirror": True}))
    prior, log = assert_resumes(lambda told: trained(recipe, public(), told), (1, 2, 3), tmp_path, monkeypatch)
    assert len(log) == 4 and prior.generator.centre.abs().sum() > 0


@pytest.mark.parametrize(
    "setting", [{"steps": 0}, {"batch": 1}, {"width": 0}, {"layers": 0}, {"lazy": 0}, {"decay": 1.0}, {"rate": 0.0}]
)
def test_settings_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"stylegan2: .*{next(iter(setting))}"):
        StyleGan2(**setting)  # type: ignore[arg-type]
