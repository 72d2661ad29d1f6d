"""Laws of the priors: losses worked out by hand, resuming to the same bits, published sizes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_resumes, session
from torch import Tensor
from torch.nn import functional as F
from worlds import public, small_net

from mibench.core import Access, Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.plugins import capabilities
from mibench.priors import gan
from mibench.priors.dcgan import ShippedDcgan
from mibench.priors.gan import Loop, average, average_of, levels
from mibench.priors.kedmi import KedmiPrior, KedmiRecipe
from mibench.priors.public import Public
from mibench.priors.wgan_gp import WganGp, WganPrior
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise
from mibench.testing.laws import report
from mibench.testing.priors import LAWS, PriorTrial

CLASSES = 3


def oracle() -> Oracle:
    return Oracle(small_net(CLASSES).eval().requires_grad_(False), Access.BLACK_BOX, CLASSES)


def tiny(kind: str, **changed: Any) -> PriorTrainer:
    settings = {"width": 2, "latent_dim": 4, "batch": 4, "critic_steps": 2, "steps": 2, "warm_up": 0} | changed
    return WganGp(**settings) if kind == "wgan_gp" else KedmiRecipe(**{"kernels": 3, "kernel_dim": 2} | settings)


def trained(recipe: PriorTrainer, split: Split, told: TrainingContext) -> tuple[Prior, list[dict[str, float]]]:
    torch.manual_seed(0)
    prior = recipe.build(tuple(split.images.shape[1:]), CLASSES, split)
    log = recipe.train(prior, split, oracle() if recipe.target_access else None, told)
    return prior.eval(), log


# --- sizes


def test_published_sizes() -> None:
    split = public(64)
    gmi = WganGp().build((3, 64, 64), 1000, split)
    assert sum(p.numel() for p in gmi.generator.parameters()) == 5_142_083
    assert sum(p.numel() for p in gmi.critic_network.parameters()) == 4_316_545
    kedmi = KedmiRecipe().build((3, 64, 64), 1000, split)
    assert sum(p.numel() for p in kedmi.generator.parameters()) == 5_142_083
    assert sum(p.numel() for name, p in kedmi.named_parameters() if not name.startswith("generator")) == 18_888_936


@pytest.mark.parametrize(("side", "count"), [(16, 2), (32, 3), (64, 4), (256, 6)])
def test_levels_count_doublings(side: int, count: int) -> None:
    assert levels((3, side, side)) == count


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 48, 48), (3, 64, 32), (3, 63, 63)])
def test_sides_that_do_not_double_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"got {shape[1]} x {shape[2]}"):
        tiny("wgan_gp").build(shape, CLASSES, public(32))


# --- training


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["wgan_gp", "kedmi"])
def test_a_resumed_training_ends_with_the_same_bits(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the warm-up, between the phases, in the game itself."""
    recipe = tiny(kind, warm_up=4, steps=4, decay=0.5, mirror=True, upsampling="nearest")
    _, log = assert_resumes(lambda told: trained(recipe, public(size), told), (1, 2, 3), tmp_path, monkeypatch)
    assert len(log) == 4


def moved(recipe: PriorTrainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The gradients that each optimiser saw, in order."""
    seen: list[dict[str, Tensor]] = []

    class Recording(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0, 0)) -> None:
            self.all = list(parameters)
            super().__init__(self.all, lr=0.0)

        def step(self, closure: Any = None) -> None:
            seen.append({str(i): p.grad.clone() for i, p in enumerate(self.all)})

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    trained(recipe, public(32), session())
    return seen


def draws(recipe: Any) -> tuple[Loop, Split, Callable[..., Tensor]]:
    loop = Loop(session(), public(32), recipe.batch, False, {})
    return loop, public(32), lambda *purpose: loop.noise(*purpose).normal(recipe.latent_dim)


def assert_gradients(seen: dict[str, Tensor], loss: Tensor, parameters: list[Tensor]) -> None:
    wanted = torch.autograd.grad(loss, parameters)
    scale = max(float(g.abs().max()) for g in wanted)
    for number, gradient in enumerate(wanted):
        assert torch.allclose(seen[str(number)].double(), gradient, atol=2e-4 * scale, rtol=2e-3), number


def test_one_step_of_wgan_gp_is_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = WganGp(width=2, latent_dim=4, batch=4, critic_steps=1, steps=1, upsampling="nearest")
    on_critic, on_generator = moved(recipe, monkeypatch)
    torch.manual_seed(0)
    prior = recipe.build((3, 32, 32), CLASSES, public(32)).double()
    assert isinstance(prior, WganPrior)
    prior.train()
    loop, split, latents = draws(recipe)
    real = split.images[loop.index("real", 0, 0)].double() / 255
    fake = prior.generator(latents("critic", 0, 0).double()).double().detach()
    a = loop.noise("critic", 0, 0).of("mix").uniform(1, 1, 1).double()
    mix = (a * fake + (1 - a) * real).requires_grad_()
    score = prior.critic_network
    slope = torch.autograd.grad(score(mix).sum(), mix, create_graph=True)[0]
    penalty = ((slope.square().sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()
    loss = score(fake).mean() - score(real).mean() + 10 * penalty
    assert_gradients(on_critic, loss, list(score.parameters()))
    wanted = -score(prior.generator(latents("generator", 0).double()).double()).mean()
    assert_gradients(on_generator, wanted, list(prior.generator.parameters()))


def test_one_step_of_kedmi_is_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = KedmiRecipe(
        width=2,
        latent_dim=4,
        batch=4,
        critic_steps=1,
        steps=1,
        upsampling="nearest",
        entropy=0.3,
        kernels=3,
        kernel_dim=2,
    )
    on_critic, on_generator = moved(recipe, monkeypatch)
    torch.manual_seed(0)
    prior = recipe.build((3, 32, 32), CLASSES, public(32))
    assert isinstance(prior, KedmiPrior)
    target = small_net(CLASSES).eval()
    prior.double().train()
    loop, split, latents = draws(recipe)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, minibatch discrimination by a double loop over the batch."""
        f = prior.trunk(x)
        m = (f @ prior.theta).reshape(len(x), 3, 2)
        o = [sum(torch.exp(-(m[i] - m[j]).abs().sum(dim=1)) for j in range(len(x)) if j != i) for i in range(len(x))]
        return f, prior.logits(torch.cat([f, torch.stack(o)], dim=1))  # type: ignore[arg-type]

    def real(*purpose: object) -> tuple[Tensor, Tensor]:
        x = split.images[loop.index(*purpose)].float() / 255
        return x.double(), torch.softmax(target(x), dim=1).double()

    labelled, answers = real("labelled", 0, 0)
    unlabelled, _ = real("unlabelled", 0, 0)
    fake = prior.generator(latents("critic", 0, 0).double()).double().detach()
    on_labelled, on_real, on_fake = (judge(x)[1] for x in (labelled, unlabelled, fake))
    known = -(answers * torch.log(torch.softmax(on_labelled, dim=1))).sum(dim=1).mean()
    # A K+1 critic whose fake class has logit 0: P(fake) = 1 / (1 + sum_k exp l_k).
    p_fake = [1 / (1 + logits.exp().sum(dim=1)) for logits in (on_real, on_fake)]
    loss = known - 0.5 * (torch.log(1 - p_fake[0]).mean() + torch.log(p_fake[1]).mean())
    judges = [*prior.trunk.parameters(), prior.theta, *prior.logits.parameters()]
    assert_gradients(on_critic, loss, judges)

    features, logits = judge(prior.generator(latents("generator", 0).double()).double())
    matched = (features.mean(dim=0) - prior.trunk(real("matched", 0)[0]).mean(dim=0).detach()).abs().mean()
    p = torch.softmax(logits, dim=1)
    assert_gradients(on_generator, matched - 0.3 * (p * p.log()).sum(), list(prior.generator.parameters()))


def test_golden_values_of_the_critics_losses() -> None:
    """Worked out by hand for l = [2, 1, 0, -1]."""
    answers = torch.softmax(torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64), dim=0)
    logits = torch.tensor([0.5, 0.0, -0.5, 1.0], dtype=torch.float64)
    assert math.isclose(float(-(answers * F.log_softmax(logits, dim=0)).sum()), 1.476895, abs_tol=1e-6)
    lse = torch.linspace(-15, 15, 81, dtype=torch.float64)  # torch's softplus is the identity above 20
    p_real = torch.exp(lse) / (1 + torch.exp(lse))
    assert torch.allclose(F.softplus(lse) - lse, -p_real.log(), atol=1e-9)


@pytest.mark.parametrize("kind", ["wgan_gp", "kedmi"])
def test_a_loss_that_is_no_number_names_phase_step_and_setting(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = public(32)
    with pytest.raises(UserError, match=r"train prior toy \(gan\): a loss stopped.*of 3.*--set lr=") as caught:
        trained(tiny(kind, lr=1e30, steps=3), split, session())
    assert "nan" in str(caught.value) or "inf" in str(caught.value)


def test_kedmi_asks_the_target_once_for_each_public_image() -> None:
    asked = oracle()
    recipe, split = tiny("kedmi"), public(32)
    recipe.train(recipe.build((3, 32, 32), CLASSES, split), split, asked, session())
    assert asked.shared_queries == len(split) and int(asked.queries.sum()) == 0


def test_kedmi_without_a_target_is_refused() -> None:
    recipe, split = tiny("kedmi"), public(32)
    with pytest.raises(UserError, match="name one with --target"):
        recipe.train(recipe.build((3, 32, 32), CLASSES, split), split, None, session())


def test_a_trained_kedmi_critic_looks_at_each_image_alone() -> None:
    prior, _ = trained(tiny("kedmi"), public(32), session())
    assert isinstance(prior, KedmiPrior)
    assert prior.get_buffer("reference").abs().sum() > 0
    x = public(32, count=6).images.float() / 255
    with torch.no_grad():
        together, alone = prior.critic(x), torch.cat([prior.critic(one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-5)
    with torch.no_grad():  # while it learns it does not: that is what minibatch discrimination is
        prior.theta.mul_(0.01)
        mixed = prior.judge(x)[1]
        assert not torch.allclose(mixed[:2], prior.judge(x[:2])[1], atol=1e-4)


def test_what_is_kept_is_the_running_average() -> None:
    network = torch.nn.BatchNorm1d(2)
    kept = average_of(network)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(8.0)  # type: ignore[union-attr]
        network.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    average(kept, network, 0.75)
    state = kept.state_dict()
    assert state["weight"].tolist() == [1.5, 1.5] and state["running_mean"].tolist() == [2.0, 2.0]
    assert int(state["num_batches_tracked"]) == 5 and not any(p.requires_grad for p in kept.parameters())


# --- images


TINY: dict[str, dict[str, Any]] = {
    "wgan_gp": {"width": 2, "latent_dim": 4, "batch": 4, "critic_steps": 1, "steps": 2, "warm_up": 2},
    "kedmi": {"width": 2, "latent_dim": 4, "batch": 4, "critic_steps": 1, "steps": 2, "kernels": 3, "kernel_dim": 2},
    "flow": {
        **{"width": 4, "multipliers": (1, 2), "blocks": 1, "attention": (), "heads": 2, "sampler_steps": 3},
        **{"steps": 2, "batch": 4},
    },
    "dcgan": {},
    "public": {},
    "pixels": {},
}
"""Settings with which a prior learns in a second; those of the others are in their own tests."""


@pytest.mark.parametrize("name", TINY)
def test_it_keeps_the_contract(name: str) -> None:
    """The laws that other packages' priors are held to: `mibench.testing.priors`."""
    report(PriorTrial(name, TINY[name]), LAWS)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64), (1, 32, 32)])
@pytest.mark.parametrize("kind", ["wgan_gp", "kedmi", "dcgan"])
def test_decoded_images_of_other_formats_lie_in_0_1(kind: str, shape: tuple[int, int, int]) -> None:
    prior = (ShippedDcgan() if kind == "dcgan" else tiny(kind)).build(shape, CLASSES, public(shape[1], shape[0])).eval()
    x = prior.decode(3 * prior.sample(Noise(1, torch.arange(5))))
    assert x.shape == (5, *shape) and x.dtype == torch.float32 and bool(((x >= 0) & (x <= 1)).all())


def test_the_shipped_generator_in_other_formats() -> None:
    """Grey is the channels' mean, half the size is the mean of each 2 x 2 block."""
    priors = {
        shape: ShippedDcgan().build(shape, CLASSES, public(32)).eval()
        for shape in ((3, 64, 64), (1, 64, 64), (3, 32, 32), (1, 32, 32))
    }
    z = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = {shape: prior.decode(z) for shape, prior in priors.items()}
    full = images[3, 64, 64]
    halved = full.reshape(4, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    assert torch.allclose(images[1, 64, 64][:, 0], full.mean(dim=1), atol=1e-6)
    assert torch.allclose(images[3, 32, 32], halved, atol=1e-6)
    assert torch.allclose(images[1, 32, 32][:, 0], halved.mean(dim=1), atol=1e-6)


def test_the_public_prior_returns_exactly_the_public_images() -> None:
    split = public(count=7)
    prior = Public().build((3, 32, 32), CLASSES, split)
    z = torch.arange(7, dtype=torch.float32)[:, None]
    assert torch.equal((prior.decode(z) * 255).round().to(torch.uint8), split.images)
    places = prior.sample(Noise(0, torch.arange(2000)))[:, 0]
    counts = torch.bincount(places.long(), minlength=7)
    assert len(counts) == 7 and float(((counts - 2000 / 7) ** 2 / (2000 / 7)).sum()) < 22.5  # chi2_6, p = .001


def test_a_prior_without_a_critic_says_which_have_one() -> None:
    prior = Public().build((3, 32, 32), CLASSES, public(32))
    with pytest.raises(UserError, match=r"a prior with a critic; .*kedmi, .*wgan_gp"), capabilities.naming_others():
        prior.critic(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("kind", ["wgan_gp", "kedmi"])
@pytest.mark.parametrize("setting", [{"steps": 0}, {"batch": 1}, {"width": 0}, {"critic_steps": 0}, {"decay": 1.0}])
def test_settings_out_of_range(kind: str, setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{kind}: .*{next(iter(setting))}"):
        tiny(kind, **setting)


def test_the_encoder_is_only_for_the_warm_up() -> None:
    loop = Loop(session(), public(32), 4, False, {})
    prior = tiny("wgan_gp").build((3, 32, 32), CLASSES, public(32))
    loop.parts |= {"prior": prior}
    loop.warm_up(prior, 2, 2, lr=1e-3)
    assert set(loop.parts) == {"prior"} and loop.log[-1]["phase"] == 0.0
    assert isinstance(gan.Encoder((3, 32, 32), 4, 2)(torch.rand(2, 3, 32, 32))[1], Tensor)
