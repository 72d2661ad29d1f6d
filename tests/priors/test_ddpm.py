"""Laws of diffusion: golden schedules, closed-form Gaussians, guidance, the network's start, resuming, labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_resumes, session
from torch import Tensor
from worlds import SHAPE, GaussianDiffusion, public, small_net

from mibench.core import Access, Oracle, Split, TrainingContext, augment
from mibench.plugins import registry
from mibench.priors.ddpm import Ddpm, DdpmPrior
from mibench.priors.diffusion import LEVELS, signal, timesteps
from mibench.priors.unet import Eigenspace, UNet
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

CLASSES = 3
TINY: dict[str, Any] = {
    "width": 4,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (8,),
    "heads": 2,
    "top": 5,
    "steps": 3,
    "batch": 4,
    "tune_steps": 2,
    "tune_batch": 2,
    "tune_views": 1,
    "sampler_steps": 2,
    "decay": 0.5,
    "lr": 1e-3,
}


def oracle(access: Access = Access.WHITE_BOX) -> Oracle:
    return Oracle(small_net(CLASSES).eval().requires_grad_(False), access, CLASSES)


def built(split: Split, **changed: Any) -> tuple[Ddpm, DdpmPrior]:
    recipe = Ddpm(**(TINY | changed))
    torch.manual_seed(0)
    return recipe, recipe.build(tuple(split.images.shape[1:]), CLASSES, split)


def latents(count: int, *purpose: object) -> Tensor:
    return Noise(3, torch.arange(count)).of(*purpose).normal(*SHAPE)


# --- schedule and sampler


def test_the_schedule_has_its_published_values() -> None:
    """DDPM's linear betas: abar_0 = .9999, the last about 4.0e-5 (log abar = sum log(1 - beta))."""
    abar = signal()
    assert len(abar) == LEVELS and (abar.diff() < 0).all()
    assert float(abar[0]) == pytest.approx(0.9999, abs=1e-7)
    assert float(abar[1]) == pytest.approx(0.9999 * (1 - (1e-4 + 0.0199 / 999)), abs=1e-7)
    assert float(abar[-1]) == pytest.approx(4.0358e-5, rel=1e-3)
    assert float(abar[500]) == pytest.approx(0.0779, rel=5e-3)


def test_the_sampler_visits_evenly_spaced_levels() -> None:
    assert timesteps(999, 10) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert timesteps(100, 10) == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert timesteps(7, 1) == [7]


@pytest.mark.parametrize("t", [0, 100, 999])
def test_noised_images_have_the_moments_of_q(t: int) -> None:
    prior, x, a = GaussianDiffusion(4), torch.full((200, *SHAPE), 0.7), float(signal()[t])
    found = prior.noisy(x, torch.full((200,), t), latents(200, "eps"))
    count = found.numel()
    assert float(found.mean()) == pytest.approx(0.7 * a**0.5, abs=5 * ((1 - a) / count) ** 0.5)
    assert float(found.var()) == pytest.approx(1 - a, rel=5 * (2 / count) ** 0.5)


@pytest.mark.parametrize(("mean", "spread"), [(0.3, 0.5), (-0.6, 0.25), (0.0, 1.0)])
@torch.no_grad()
def test_ddim_carries_noise_to_the_data_where_the_best_prediction_is_known(mean: float, spread: float) -> None:
    """N(0, I) ends as N(mean, spread^2). With eta = 0 the map is affine and its error falls as 1 / steps."""
    prior = GaussianDiffusion(4, mean, spread)
    z, y = latents(60), torch.arange(60) % 4
    *_, rough = prior.denoise(z, LEVELS - 1, y, 60, 3.0)
    *_, fine = prior.denoise(z, LEVELS - 1, y, 120, 3.0)
    *_, noisy = prior.denoise(z, LEVELS - 1, y, 120, 3.0, 1.0, Noise(3, torch.arange(60)))
    limit = (2 * fine - rough).double()
    assert float(limit.mean()) == pytest.approx(mean, abs=0.03 * spread)
    assert float(limit.std() / z.std()) == pytest.approx(spread, rel=0.02)
    assert abs(float(fine.std() / z.std()) - spread) < 0.6 * abs(float(rough.std() / z.std()) - spread) + 1e-3
    assert float(noisy.mean()) == pytest.approx(mean, abs=0.03 * spread)
    assert float(noisy.std()) == pytest.approx(spread, rel=0.12)
    assert torch.corrcoef(torch.stack([fine.flatten(), z.flatten()]))[0, 1] > 0.9999
    assert torch.corrcoef(torch.stack([noisy.flatten(), z.flatten()]))[0, 1] < 0.9


def test_one_ddim_step_by_its_formula() -> None:
    prior, x, y = GaussianDiffusion(4, 0.2, 0.7), latents(5), torch.arange(5) % 4
    noise, abar = Noise(1, torch.arange(5)), signal().double()
    a, b = abar[80], abar[40]
    eps = (x - a.sqrt() * 0.2) * (1 - a).sqrt() / (a * 0.49 + 1 - a)
    clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
    for eta in (0.0, 0.5, 1.0):
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        after = b.sqrt() * clean + (1 - b - sigma**2).sqrt() * eps + sigma * noise.of("ddim", 0).normal(*SHAPE)
        first, second = prior.denoise(x, 80, y, 2, 1.0, eta, noise)
        torch.testing.assert_close(first, clean.float(), rtol=0, atol=1e-5)
        then = (after - (1 - b).sqrt() * (after - b.sqrt() * 0.2) * (1 - b).sqrt() / (b * 0.49 + 1 - b)) / b.sqrt()
        torch.testing.assert_close(second, then.float(), rtol=0, atol=1e-5)


def test_decode_is_in_range_differentiable_and_one_by_one() -> None:
    prior = GaussianDiffusion(4, spread=0.3)
    z, y = latents(6).flatten(1), torch.arange(6) % 4
    z.requires_grad_()
    x = prior.decode(z, y)
    assert x.shape == (6, *SHAPE) and x.min() >= 0 and x.max() <= 1
    slope = torch.autograd.grad(x.sum(), z)[0]
    step = 1e-2
    moved = prior.decode(z + step, y).sum() - prior.decode(z - step, y).sum()
    assert float(slope.sum()) == pytest.approx(float(moved.detach()) / (2 * step), rel=1e-2)
    torch.testing.assert_close(prior.decode(z[2:3], y[2:3]), x[2:3], rtol=0, atol=1e-6)


@torch.no_grad()
def test_guidance_is_3_own_minus_2_nobody() -> None:
    _, prior = built(public())
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.tensor([0, 2])
    own, none = prior.eps(x, t, y), prior.eps(x, t, torch.full((2,), CLASSES))
    assert not torch.allclose(own, none)
    torch.testing.assert_close(prior.guided(x, t, y, 3.0), 3 * own - 2 * none, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.guided(x, t, y, 1.0), own)


# --- network


@torch.no_grad()
@pytest.mark.parametrize(("shape", "patch", "eigenfaces"), [((3, 64, 64), 4, 4), ((1, 32, 32), 2, 0)])
def test_the_network_starts_at_zero(shape: tuple[int, int, int], patch: int, eigenfaces: int) -> None:
    """So its loss starts at E |eps|^2 = 1, or at that of the best linear prediction."""
    net = UNet(shape, CLASSES, 8, (1, 2), 1, (8,), 2, patch)
    x, t, y = torch.randn(20, *shape), torch.randint(0, 1000, (20,)), torch.arange(20) % 4
    assert torch.equal(net(x, t, y), torch.zeros_like(x))
    eps = torch.randn(20, *shape)
    assert float((net(x, t, y) - eps).square().mean()) == pytest.approx(1.0, abs=5 * (2 / eps.numel()) ** 0.5)
    split = Split(torch.zeros(8, *shape, dtype=torch.uint8), torch.full((8,), -1))
    _, prior = built(split, patch=patch, eigenfaces=eigenfaces)
    found = prior.eps(x, t, y)
    assert torch.equal(found, prior.gaussian(x, prior.level(t), y) if prior.gaussian is not None else found * 0)


def test_the_network_sees_noise_level_and_identity_and_every_pixel() -> None:
    torch.manual_seed(0)
    net = UNet((3, 16, 16), CLASSES, 8, (1, 2), 1, (8,), 2, 2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t, y = torch.randn(1, 3, 16, 16, requires_grad=True), torch.tensor([5]), torch.tensor([1])
    out = net(x, t, y)
    assert not torch.allclose(out, net(x, t + 1, y)) and not torch.allclose(out, net(x, t, y + 1))
    assert (torch.autograd.grad(out[0, 0, 8, 8], x)[0].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("changed", [{"patch": 8}, {"multipliers": (1, 1, 1, 1, 1, 1)}])
def test_sides_that_cannot_be_halved_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="24 x 24 cannot be cut"):
        built(public(24), **changed)


def test_eigenfaces_predict_best_for_gaussian_images() -> None:
    """With every eigenvector kept, eps = sqrt(1-a) (a C + (1-a) I)^-1 (x - sqrt(a) m_y), by a plain inverse."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator) * torch.linspace(0.1, 1.0, 12) + 0.3
    shown = torch.arange(40).reshape(4, 10)
    space = Eigenspace(12, 4, 11)
    space.fit(x, shown)
    means = torch.cat([x.reshape(4, 10, 12).mean(dim=1), x.mean(dim=0)[None]])
    away = (x - x.mean(dim=0)).double()
    covariance = away.T @ away / 40
    noisy, y = torch.randn(5, 12, 1, 1, generator=generator), torch.arange(5)
    for t in (0, 300, 999):
        a = signal()[t].double()
        shifted = noisy[:, :, 0, 0] - a.sqrt() * means[y].double()
        wanted = (1 - a).sqrt() * torch.linalg.solve(a * covariance + (1 - a) * torch.eye(12).double(), shifted.T).T
        found = space(noisy, signal()[torch.full((5,), t)][:, None, None, None], y)
        torch.testing.assert_close(found[:, :, 0, 0], wanted.float(), rtol=1e-4, atol=1e-4)


# --- training


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it learns to denoise, and while it is tuned."""
    split = public()

    def trained(told: TrainingContext) -> tuple[DdpmPrior, list[dict[str, float]]]:
        recipe, prior = built(split, mirror=True, eigenfaces=4)
        return prior, recipe.train(prior, split, oracle(), told)

    _, log = assert_resumes(trained, (1, 2), tmp_path, monkeypatch)
    assert len(log) == 3


def test_the_target_chooses_the_images_and_is_asked_a_known_number_of_times() -> None:
    split, asked = public(), oracle()
    recipe, prior = built(split)
    recipe.train(prior, split, asked, session())
    with torch.no_grad():
        scores = small_net(CLASSES).eval()(split.images.float() / 255).softmax(1)
    for label in range(CLASSES):
        assert set(prior.shown[label].tolist()) == set(scores[:, label].topk(5).indices.tolist())
    # every public image once; 2 tuning steps of 2 identities, 2 predictions, 1 view
    assert asked.shared_queries == 24 + 8 and asked.shared_gradients == 8
    assert not asked.queries.any() and not asked.gradient_images.any()
    with pytest.raises(UserError, match="granted black_box"):
        recipe.train(prior, split, oracle(Access.BLACK_BOX), session())
    with pytest.raises(UserError, match="name one with --target"):
        recipe.train(prior, split, None, session())


def test_tuning_moves_the_label_embedding_and_the_middle_only() -> None:
    split = public()
    moved: list[str] = []
    for changed in ({"tune_steps": 0}, {"tune_steps": 3, "tune_lr": 1e-2}):
        recipe, prior = built(split, **changed)
        recipe.train(prior, split, oracle(), session())
        moved.append({name: value.clone() for name, value in prior.state_dict().items()})  # type: ignore[arg-type]
    before, after = moved
    names = {name for name in before if not torch.equal(before[name], after[name])}  # type: ignore[attr-defined,index]
    convolutions = {
        f"net.middle.{place}.{which}.{part}"
        for place in (0, 2)
        for which in ("first", "second")
        for part in ("weight", "bias")
    }
    assert names == {"net.label.weight", "net.middle.1.project.weight", "net.middle.1.project.bias", *convolutions}


def test_tuning_looks_as_the_authors_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLG-MI's view with jitter in every other one, of predictions that are clamped for the view and not before."""
    split = public()
    recipe, prior = built(split, tune_steps=1, steps=1)
    plain, shown, drawn = augment.view, [], []
    denoise = prior.denoise

    def watched(x: Tensor, noise: Noise, mirror: bool, jitter: float = 1.0) -> Tensor:
        shown.append((x.detach(), mirror, jitter))
        return plain(x, noise, mirror, jitter)

    def drawing(*given: Any, **named: Any) -> Any:
        for x in denoise(*given, **named):
            drawn.append(x.detach())
            yield x

    monkeypatch.setattr(augment, "view", watched)
    prior.denoise = drawing  # type: ignore[method-assign]
    recipe.train(prior, split, oracle(), session())
    assert [(mirror, jitter) for _, mirror, jitter in shown] == [(True, 0.5)] * len(drawn) and len(drawn) == 2
    assert max(float(x.abs().max()) for x in drawn) > 1
    for x, (seen, _, _) in zip(drawn, shown, strict=True):
        torch.testing.assert_close(seen, ((x + 1) / 2).clamp(0, 1))


def test_tuning_lowers_the_targets_loss() -> None:
    split = public()
    recipe, prior = built(split, tune_steps=12, tune_lr=2e-2, tune_batch=4, steps=2)
    log: list[float] = []
    tune = Ddpm._tune
    object.__setattr__(recipe, "_tune", lambda *given: log.append(float(value := tune(recipe, *given))) or value)
    recipe.train(prior, split, oracle(), session())
    assert sum(log[-4:]) < sum(log[:4])


@pytest.mark.parametrize(("drop", "learnt"), [(1.0, [CLASSES]), (0.0, [0, 1, 2])])
def test_identities_are_dropped_for_a_whole_batch_at_once(drop: float, learnt: list[int]) -> None:
    seen = labels_of(drop, 10)
    assert sorted({label for batch in seen for label in batch}) == learnt


def test_as_many_batches_as_asked_drop_their_identities() -> None:
    seen = labels_of(0.25, 60)
    dropped = [batch == [CLASSES] * 4 for batch in seen]
    assert all(dropped[i] or CLASSES not in batch for i, batch in enumerate(seen))
    assert abs(sum(dropped) - 15) < 4 * (60 * 0.1875) ** 0.5


def labels_of(drop: float, steps: int) -> list[list[int]]:
    split = public(8)
    recipe, prior = built(split, drop=drop, steps=steps, tune_steps=0, attention=(), multipliers=(1,))
    seen: list[list[int]] = []
    eps = prior.eps
    prior.eps = lambda x, t, y: seen.append(y.tolist()) or eps(x, t, y)  # type: ignore
    recipe.train(prior, split, oracle(), session())
    return seen


def test_the_kept_weights_are_the_running_average() -> None:
    split = public()
    weights: list[Tensor] = []
    recipe, prior = built(split, steps=3, tune_steps=0, decay=0.5)
    learn = Ddpm._learn

    def watched(*given: Any) -> Tensor:
        loss = learn(recipe, *given)
        weights.append(prior.net.enter.weight.detach().clone())
        return loss

    start = prior.net.enter.weight.detach().clone()
    object.__setattr__(recipe, "_learn", watched)
    recipe.train(prior, split, oracle(), session())
    wanted = start
    for weight in weights:
        wanted = 0.5 * wanted + 0.5 * weight
    torch.testing.assert_close(prior.net.enter.weight, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"width": 6, "heads": 2}, {"steps": 0}, {"drop": 1.5}, {"decay": 1.0}, {"sampler_steps": 1000}, {"top": 0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="ddpm: ") as caught:
        registry.configure("priors", "ddpm", "quick", settings)
    assert "\n" not in str(caught.value)


def test_few_public_images_illustrate_with_all_there_are() -> None:
    split = public(count=3)
    recipe, prior = built(split)
    recipe.train(prior, split, oracle(), session())
    assert prior.shown.shape == (CLASSES, 3)
    assert replace(recipe, top=2).build((3, 16, 16), 3, split).shown.shape == (3, 2)
