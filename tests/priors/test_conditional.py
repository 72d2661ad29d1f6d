"""Laws of the conditional priors: published sizes, losses worked out by hand, resuming, whom they draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_resumes, session
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize
from worlds import public, small_net

from mibench.core import Access, Oracle, PriorTrainer, Split, TrainingContext, augment
from mibench.plugins import capabilities, registry
from mibench.priors.conditional import ConditionalNorm, ConditionalPrior, Trunk, Up, conv, halved, identities
from mibench.priors.gan import Loop
from mibench.priors.plg import Plg, PlgPrior, top_n
from mibench.priors.tacgan import Tacgan, TacganPrior
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

CLASSES = 3
KINDS: dict[str, type[Plg] | type[Tacgan]] = {"plg": Plg, "tacgan": Tacgan}


def oracle(kind: str) -> Oracle:
    access = KINDS[kind].target_access
    assert access is not None
    return Oracle(small_net(CLASSES).eval(), access, CLASSES)


def tiny(kind: str, **changed: Any) -> PriorTrainer:
    own = {"top": 5} if kind == "plg" else {"silent": 0}
    return KINDS[kind](**{"width": 2, "latent_dim": 4, "batch": 4, "critic_steps": 2, "steps": 2} | own | changed)


def trained(
    recipe: PriorTrainer, split: Split, told: TrainingContext, asked: Oracle
) -> tuple[ConditionalPrior, list[dict[str, float]]]:
    torch.manual_seed(0)
    prior = recipe.build(tuple(split.images.shape[1:]), CLASSES, split)
    assert isinstance(prior, ConditionalPrior)
    log = recipe.train(prior, split, asked, told)
    prior.eval()
    return prior, log


# --- networks


def test_published_sizes() -> None:
    prior = Plg().build((3, 64, 64), 1000, public(64))
    assert sum(p.numel() for p in prior.generator.parameters()) == 17_973_379
    assert sum(p.numel() for name, p in prior.named_parameters() if not name.startswith("generator.")) == 11_165_441
    other = Tacgan().build((3, 64, 64), 1000, public(64))
    assert sum(p.numel() for p in other.generator.parameters()) == 17_973_379
    # The trunk is PLG's; projection 1,025 + 1,024,000 becomes two linear heads.
    assert sum(p.numel() for p in other.trunk.parameters()) == 11_165_441 - 1_025 - 1_024_000
    assert sum(p.numel() for p in [*other.real.parameters(), *other.classes.parameters()]) == 1_025 + 1_025_000


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32)])
@pytest.mark.parametrize("kind", ["plg", "tacgan"])
def test_images_lie_in_0_1_and_depend_on_latent_and_identity(kind: str, shape: tuple[int, int, int]) -> None:
    prior = tiny(kind).build(shape, CLASSES, public(shape[1], shape[0])).eval()
    with torch.no_grad():  # every identity starts with the same gains
        for module in prior.modules():
            if isinstance(module, ConditionalNorm):
                module.bias.copy_(torch.randn(module.bias.shape, generator=torch.Generator().manual_seed(1)))
    z = (5 * prior.sample(Noise(1, torch.arange(6)))).requires_grad_()
    y = torch.arange(6) % CLASSES
    x = prior.decode(z, y)
    assert x.shape == (6, *shape) and x.dtype == torch.float32 and bool(((x >= 0) & (x <= 1)).all())
    slope = torch.autograd.grad(x.square().sum(), z)[0]
    assert bool((slope.abs().sum(dim=1) > 0).all())
    changed = (prior.decode(z, (y + 1) % CLASSES) - x).abs().amax(dim=(1, 2, 3))
    assert bool((changed > 1e-4).all())
    assert torch.allclose(prior.decode(z[2:3], y[2:3]), x[2:3], atol=1e-5)  # nobody else in the batch matters


@pytest.mark.parametrize("kind", ["plg", "tacgan"])
def test_a_prior_that_is_not_told_whom_to_draw_says_so(kind: str) -> None:
    prior = tiny(kind).build((3, 16, 16), CLASSES, public())
    assert prior.conditional
    with (
        pytest.raises(UserError, match="draws a given identity and was told none") as caught,
        capabilities.naming_others(),
    ):
        prior.decode(torch.zeros(1, 4))
    assert (
        "--prior one that has: " in str(caught.value)
        and "wgan_gp" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_conditional_norm_is_the_formula_in_both_modes() -> None:
    layer = ConditionalNorm(2, 3).double()
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        layer.bias.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    y = torch.tensor([2, 0, 2, 1])
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    wanted = (x - mean) / (var + 1e-5).sqrt() * layer.gain[y][:, :, None, None] + layer.bias[y][:, :, None, None]
    torch.testing.assert_close(layer.train()(x, y), wanted)
    running = layer.norm.running_mean, layer.norm.running_var
    assert running[0] is not None and running[1] is not None
    mean, var = running[0][None, :, None, None], running[1][None, :, None, None]
    wanted = (x - mean) / (var + 1e-5).sqrt() * layer.gain[y][:, :, None, None] + layer.bias[y][:, :, None, None]
    torch.testing.assert_close(layer.eval()(x, y), wanted)


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_blocks_are_the_published_ones(upsampling: str) -> None:
    """The shortcuts' 1x1 convolutions run after the doubling and before the mean in the papers."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([1, 0])
    up = Up(4, 3, 2, upsampling).double().eval()
    inner = up.convs[0](up.grow(F.relu(up.norms[0](x, y))))
    wanted = up.convs[1](F.relu(up.norms[1](inner, y))) + up.shortcut(up.grow(x))
    torch.testing.assert_close(up(x, y), wanted)
    layer = conv(4, 3, 3).double()
    torch.testing.assert_close(halved(x, layer), F.avg_pool2d(layer(x), 2))
    trunk = Trunk((4, 16, 16), 2).double().eval()
    x = torch.randn(2, 4, 16, 16, dtype=torch.float64)
    first, second, third = trunk.blocks
    h = F.avg_pool2d(first.convs[1](F.relu(first.convs[0](x))) + first.shortcut(x), 2)
    for block in (second, third):
        h = F.avg_pool2d(block.convs[1](F.relu(block.convs[0](F.relu(h)))) + block.shortcut(h), 2)
    assert h.shape[2:] == (2, 2)
    torch.testing.assert_close(trunk(x).double(), F.relu(h).sum(dim=(2, 3)), rtol=1e-5, atol=1e-5)


def test_every_layer_of_the_trunk_has_spectral_norm_1() -> None:
    prior = tiny("plg").build((3, 16, 16), CLASSES, public()).train()
    with torch.no_grad():
        for _ in range(200):  # power iterations
            prior.judge(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    prior.eval()
    normed = [module for module in prior.modules() if parametrize.is_parametrized(module)]
    assert len(normed) == 3 * 3 + 2
    for module in normed:
        largest = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1.0, abs=1e-3)


# --- pseudo labels


def test_top_n_is_the_best_of_every_image_for_every_identity() -> None:
    scores = torch.softmax(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    scores[7] = torch.tensor([0.9, 0.9, 0.01, 0.01])  # one image may serve several identities
    found = top_n(scores, 6)
    for k in range(4):
        best = sorted(range(50), key=lambda i: -float(scores[i, k]))[:6]
        assert found[k].tolist() == best
    assert 7 in found[0] and 7 in found[1]
    for n in (0, 51):
        with pytest.raises(UserError, match=f"plg: top must lie in 1 ... 50.*got {n}"):
            top_n(scores, n)


def test_identities_are_uniform() -> None:
    counts = torch.bincount(identities(Noise(0, torch.arange(3000)), 7), minlength=7)
    assert len(counts) == 7 and float(((counts - 3000 / 7) ** 2 / (3000 / 7)).sum()) < 22.5  # chi2_6, p = .001


# --- training


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", ["plg", "tacgan"])
def test_a_resumed_training_ends_with_the_same_bits_and_counts(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the warm-up, between the phases, in the game itself."""
    recipe = tiny(kind, warm_up=4, steps=4, decay=0.5, upsampling="nearest")
    asked: list[Oracle] = []

    def train(told: TrainingContext) -> tuple[ConditionalPrior, list[dict[str, float]]]:
        asked.append(oracle(kind))
        return trained(recipe, public(size), told, asked[-1])

    _, log = assert_resumes(train, (1, 2, 3), tmp_path, monkeypatch)
    whole, *later = ((one.shared_queries, one.shared_gradients) for one in asked)
    assert len(log) == 4 and later[1::2] == [whole] * 3  # each second one was resumed


@pytest.mark.parametrize("warm_up", [0, 1])
def test_what_training_asks_in_closed_form(warm_up: int) -> None:
    asked = oracle("plg")
    trained(tiny("plg", warm_up=warm_up, steps=3), public(), session(), asked)
    assert asked.shared_queries == 24 + 3 * 4 and asked.shared_gradients == 3 * 4 and int(asked.queries.sum()) == 0
    asked = oracle("tacgan")
    assert asked.access == Access.LABEL_ONLY  # labels are enough
    trained(tiny("tacgan", warm_up=warm_up, steps=3, silent=1), public(), session(), asked)
    assert asked.shared_queries == 24 * warm_up + (3 - 1) * 2 * 4 and asked.shared_gradients == 0


def test_the_target_keeps_its_weights_and_gets_no_gradients() -> None:
    asked = oracle("plg")
    target = asked._target
    before = {name: value.clone() for name, value in target.state_dict().items()}
    trained(tiny("plg"), public(), session(), asked)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in target.parameters()) and not target.training


def moved(recipe: PriorTrainer, kind: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The gradients that each optimiser saw, in order."""
    seen: list[dict[str, Tensor]] = []

    class Recording(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] | None = None) -> None:
            assert (lr, betas) in ((2e-4, (0.0, 0.9)), (2e-3, None))  # the game, the warm-up
            self.all = list(parameters)
            super().__init__(self.all, lr=0.0)

        def step(self, closure: Any = None) -> None:
            seen.append({str(i): p.grad.clone() for i, p in enumerate(self.all)})

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    trained(recipe, public(), session(), oracle(kind))
    return seen


def assert_gradients(seen: dict[str, Tensor], loss: Tensor, parameters: list[Tensor]) -> None:
    wanted = torch.autograd.grad(loss, parameters)
    scale = max(float(g.abs().max()) for g in wanted)
    assert scale > 1e-3
    for number, gradient in enumerate(wanted):
        assert torch.allclose(seen[str(number)].double(), gradient, atol=2e-4 * scale, rtol=2e-3), number


def again(recipe: PriorTrainer) -> tuple[Any, Loop, Callable[..., tuple[Tensor, Tensor]]]:
    """The same untrained prior in float64, the loop's draws, and the fakes of a step."""
    torch.manual_seed(0)
    prior: Any = recipe.build((3, 16, 16), CLASSES, public()).double()
    prior.train()
    loop = Loop(session(), public(), 4, False, {})

    def fakes(*purpose: object) -> tuple[Tensor, Tensor]:
        noise = loop.noise("drawn", *purpose)
        y = (noise.uniform(1)[:, 0] * CLASSES).long()
        return prior.generator(noise.of("z").normal(4).double(), y).double(), y

    return prior, loop, fakes


def test_one_step_of_plg_is_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("plg", critic_steps=1, steps=1, mirror_views=False, inversion=0.7)
    on_critic, on_generator = moved(recipe, "plg", monkeypatch)
    prior, loop, fakes = again(recipe)
    assert isinstance(prior, PlgPrior)
    target = small_net(CLASSES).eval()
    images = public().images.float() / 255
    p = torch.softmax(target(images), dim=1).detach()
    noise = loop.noise("pairs", "critic", 0, 0)
    named = (noise.uniform(1)[:, 0] * CLASSES).long()
    rank = (noise.of("place").uniform(1)[:, 0] * 5).long()
    real = torch.stack(
        [images[sorted(range(24), key=lambda i: -float(p[i, k]))[int(r)]] for k, r in zip(named, rank, strict=True)]
    )
    real = (real + loop.noise("dequantise", 0, 0).uniform(3, 16, 16) / 256).double()

    fake, y = fakes("critic", 0, 0)
    scores = prior.judge(torch.cat([real, fake.detach()]), torch.cat([named, y])).double()
    loss = torch.clamp(1 - scores[:4], min=0).mean() + torch.clamp(1 + scores[4:], min=0).mean()
    judging = [part for name, part in prior.named_parameters() if not name.startswith("generator.")]
    assert_gradients(on_critic, loss, judging)

    fresh, loop, fakes = again(recipe)
    with torch.no_grad():  # the power iterations of the judge's step
        fresh.judge(torch.cat([real, fake.detach()]), torch.cat([named, y]))
        fakes("critic", 0, 0)
    fake, y = fakes("generator", 0)
    seen = augment.view(fake.float(), loop.noise("view", 0), False, 0.5)
    logits = target(seen).double()
    margin = torch.stack([max(logits[i, k] for k in range(CLASSES) if k != y[i]) - logits[i, y[i]] for i in range(4)])
    wanted = 0.7 * margin.mean() - fresh.judge(fake, y).mean()
    assert_gradients(on_generator, wanted, list(fresh.generator.parameters()))


def test_the_papers_reals_are_not_mirrored_but_the_targets_views_are() -> None:
    """train_cgan.py: no flip among the public images' transforms, RandomHorizontalFlip among the fakes'."""
    for kind in ("plg", "tacgan"):
        paper = registry.configure("priors", kind, "paper").plugin
        assert not paper.mirror and getattr(paper, "mirror_views", True)
        assert registry.configure("priors", kind, "quick").plugin.mirror  # 2,000 images are few
    x = torch.rand(8, 3, 16, 16)
    assert torch.equal(tiny("plg").mirrored(x, Noise(0, torch.arange(8))), x)


def test_the_projection_discriminator_is_the_formula() -> None:
    prior = tiny("plg").build((3, 16, 16), CLASSES, public()).eval()
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    h = prior.trunk(x)
    wanted = h @ prior.real.weight[0] + prior.real.bias[0] + (prior.embedding.weight[y] * h).sum(dim=1)
    torch.testing.assert_close(prior.judge(x, y), wanted)


def test_the_first_steps_of_tacgan_know_no_classes() -> None:
    asked, recipe = oracle("tacgan"), tiny("tacgan", silent=2)
    prior, _ = trained(recipe, public(), session(), asked)
    torch.manual_seed(0)
    fresh = recipe.build((3, 16, 16), CLASSES, public())
    assert isinstance(prior, TacganPrior) and isinstance(fresh, TacganPrior)
    assert torch.equal(prior.classes.weight, fresh.classes.weight) and asked.shared_queries == 0
    assert not torch.equal(prior.real.weight, fresh.real.weight)


def test_one_step_of_tacgan_is_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("tacgan", critic_steps=1, steps=1, alpha=1.3)
    seen = moved(recipe, "tacgan", monkeypatch)
    prior, loop, fakes = again(recipe)
    target = small_net(CLASSES).eval()
    real = (public().images.float() / 255)[loop.index("real", 0, 0)].double()
    fake, _ = fakes("critic", 0, 0)
    said = target(fake.detach().float()).argmax(dim=1)
    scores, names = (part.double() for part in prior.judge(torch.cat([real, fake.detach()])))
    share = torch.sigmoid(scores)
    loss = -torch.log(share[:4]).mean() - torch.log(1 - share[4:]).mean()
    p = torch.softmax(names[4:], dim=1)
    loss = loss - 1.3 * torch.log(p[torch.arange(4), said]).mean()
    judging = [part for name, part in prior.named_parameters() if not name.startswith("generator.")]
    assert_gradients(seen[0], loss, judging)

    fake, y = fakes("generator", 0)
    score, names = (part.double() for part in prior.judge(fake))
    p = torch.softmax(names, dim=1)
    wanted = -torch.log(torch.sigmoid(score)).mean() - 1.3 * torch.log(p[torch.arange(4), y]).mean()
    assert_gradients(seen[1], wanted, list(prior.generator.parameters()))


# --- what is refused


@pytest.mark.parametrize("kind", ["plg", "tacgan"])
def test_without_a_target_nothing_is_learnt(kind: str) -> None:
    recipe = tiny(kind)
    with pytest.raises(UserError, match=f"the prior '{kind}' learns from a target's answers; name one with --target"):
        recipe.train(recipe.build((3, 16, 16), CLASSES, public()), public(), None, session())


@pytest.mark.parametrize("kind", ["plg", "tacgan"])
@pytest.mark.parametrize("setting", [{"steps": 0}, {"batch": 1}, {"width": 0}, {"critic_steps": 0}, {"decay": 1.0}])
def test_settings_out_of_range(kind: str, setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{kind}: .*{next(iter(setting))}"):
        tiny(kind, **setting)


@pytest.mark.parametrize("kind", ["plg", "tacgan"])
def test_less_access_than_asked_for_is_refused(kind: str) -> None:
    for access in Access:
        asked = Oracle(small_net(CLASSES).eval(), access, CLASSES)
        if access >= KINDS[kind].target_access:  # type: ignore[operator]
            trained(tiny(kind, steps=1), public(), session(), asked)
        else:
            with pytest.raises(UserError, match=f"was granted {access.name.lower()}"):
                trained(tiny(kind, steps=1), public(), session(), asked)
