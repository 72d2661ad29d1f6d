"""Laws of oracles seen through views, and of the wrappers that look through them."""

import itertools
from typing import Any

import pytest
import torch
from attacking import COMPOSED, ERASE, GMI_SHORT, KEDMI_SHORT, PPA_SHORT, erased, run, same
from torch import Tensor, nn
from worlds import World, attack_on, workspace

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.gmi import GMI
from mibench.attacks.parts.views import Either, Layer, Viewed, viewed_cost
from mibench.attacks.ppa import PPA
from mibench.attacks.prior_search import PriorSearch
from mibench.core import Access, Attack, BudgetExhausted, Cost, Oracle
from mibench.core.losses import nll, on_logits
from mibench.defenses.re import RandomErasing
from mibench.models.base import Classifier, Prepare
from mibench.plugins import capabilities
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def linear(weight: Tensor, bias: Tensor) -> Classifier:
    """l = W x + b on images of 1 x 2 x 2 pixels; its features are the pixels."""
    head = nn.Linear(4, len(bias))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return Classifier(Prepare((1, 2, 2), [0.0], [1.0]), nn.Flatten(), head, 4).eval()


def test_the_loss_of_a_linear_target_is_the_mean_over_the_views() -> None:
    """Views x + shift_c: mean_c -l_y(x + shift_c) = -l_y(x) - mean_c shift_c sum(W_y); the gradient stays -W_y."""
    torch.manual_seed(0)
    weight, bias, shifts = torch.randn(3, 4), torch.randn(3), torch.tensor([0.1, -0.3, 0.5])
    target, y = linear(weight, bias), torch.tensor([0, 2, 2, 1, 0])
    oracle = Oracle(target, Access.WHITE_BOX, 3)
    noise = Noise(7, torch.arange(5))

    def shift(x: Tensor, drawn: Noise) -> Tensor:
        copy = next(c for c in range(3) if noise.of("copy", c).purpose == drawn.purpose)
        return x + shifts[copy]

    viewed = Viewed(oracle, 0, shift, 3)
    x = torch.rand(5, 1, 2, 2, requires_grad=True)
    values = viewed.loss(x, y, on_logits(nll), noise)
    plain = nll(target(x), y).detach()
    torch.testing.assert_close(values.detach(), plain - shifts.mean() * weight[y].sum(dim=1))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(gradient.flatten(1), -weight[y])
    assert oracle.queries.tolist() == [6, 3, 6] and oracle.gradient_images.tolist() == [6, 3, 6]
    assert torch.equal(viewed.queries, oracle.queries) and torch.equal(viewed.counts()["queries"], oracle.queries)


def test_scores_and_votes_are_averaged_over_the_same_views_for_every_image() -> None:
    weight = torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0]])
    oracle = Oracle(linear(weight, torch.zeros(2)), Access.WHITE_BOX, 2)

    def mask(x: Tensor, drawn: Noise) -> Tensor:
        """Hide the first or the second pixel."""
        hidden = (drawn.uniform(1) < 0.5).to(x.dtype)
        gone = torch.cat([hidden, 1 - hidden, torch.zeros(len(x), 2)], dim=1)
        return x * (1 - gone).reshape(-1, 1, 2, 2)

    viewed = Viewed(oracle, 3, mask, 5)
    x = torch.rand(6, 1, 2, 2)
    fixed = Noise(3, torch.zeros(6, dtype=torch.int64)).of("fixed views")
    seen = torch.stack([mask(x, fixed.of("copy", copy)) for copy in range(5)])
    with torch.no_grad():
        logits = oracle._target(seen.flatten(0, 1)).reshape(5, 6, 2)
    torch.testing.assert_close(viewed.probs(x, None), logits.softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(viewed.logits(x, None), logits.mean(dim=0))
    hits = (logits.argmax(dim=2)[..., None] == torch.arange(2)).sum(dim=0)
    assert torch.equal(viewed.labels(x, None), hits.argmax(dim=1)) and not torch.equal(hits[:, 0], hits[:, 1])
    assert oracle.shared_queries == 5 * 6 * 3 and int(oracle.queries.sum()) == 0
    one = torch.cat([viewed.probs(image[None], torch.tensor([1])) for image in x])  # alone or together
    torch.testing.assert_close(one, viewed.probs(x, None))
    assert oracle.queries.tolist() == [0, 30]


def test_without_select_only_gradients_are_averaged() -> None:
    world = World(4)
    oracle, y = world.oracle(), torch.arange(4)
    viewed = Viewed(oracle, 0, ERASE, 3, select=False)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(viewed.probs(x, y), oracle.probs(x, y))
    noise = Noise(0, y)
    assert torch.equal(viewed.loss(x, y, on_logits(nll), noise), oracle.loss(x, y, on_logits(nll), noise))
    assert oracle.queries.tolist() == [4] * 4 and int(oracle.gradient_images.sum()) == 0
    viewed.loss(x.requires_grad_(), y, on_logits(nll), noise).sum().backward()
    assert oracle.queries.tolist() == [7] * 4 and oracle.gradient_images.tolist() == [3] * 4


def test_layers_share_counts_access_and_budget() -> None:
    world = World(3)
    oracle = world.oracle(budget=60)
    layered = Viewed(Layer(Viewed(oracle, 0, ERASE, 4), 0), 0, ERASE, 5)
    assert layered.affordable(100, 1) == 3 and layered.affordable(100, 2) == 1 and layered.affordable(2, 0) == 2
    x, y = torch.rand(3, 3, 8, 8), torch.arange(3)
    assert layered.probs(x, y).shape == (3, 3) and oracle.queries.tolist() == [20] * 3
    assert layered.affordable(100, 1) == 2 and layered.budget == 60 and layered.num_classes == 3
    layered.add(oracle.counts())
    assert oracle.queries.tolist() == [40] * 3
    layered.probs(x, y)
    with pytest.raises(BudgetExhausted):
        layered.probs(x, y)
    blind = Viewed(world.oracle(Access.BLACK_BOX), 0, ERASE, 2)
    with pytest.raises(UserError, match="was granted black_box"):
        blind.answers(x, y)


def test_layers_draw_their_own_views_of_every_view_above() -> None:
    """Below two copies of a batch the next layer draws for 2n images, no two alike, and the same ones again."""
    seen: list[Tensor] = []

    def record(x: Tensor, drawn: Noise) -> Tensor:
        seen.append(drawn.uniform(1)[:, 0])
        return x

    world = World(3)
    viewed = Viewed(Viewed(world.oracle(), 0, record, 2), 0, lambda x, drawn: x, 3)
    x, y = torch.rand(3, 3, 8, 8, requires_grad=True), torch.arange(3)
    for _ in range(2):
        viewed.loss(x, y, on_logits(nll), Noise(0, y))
    assert [len(one) for one in seen] == [9] * 4
    assert len(torch.cat(seen[:2]).unique()) == 18 and torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))


def test_random_erasing_inside_the_loss_masks_the_gradient() -> None:
    """d/dx mean_c -l_y(x erased by M_c) = -W_y * mean_c (1 - M_c), the masks drawn by hand."""
    world, y = World(4), torch.tensor([0, 3, 3, 1])
    noise = Noise(11, torch.tensor([5, 6, 7, 8]))
    x = world.prior.decode(torch.randn(4, 6, generator=torch.Generator().manual_seed(0))).detach().requires_grad_()
    viewed = Viewed(world.oracle(), 0, ERASE, 6)
    (gradient,) = torch.autograd.grad(viewed.loss(x, y, on_logits(nll), noise).sum(), x)
    (whole,) = torch.autograd.grad(nll(world.target(x), y).sum(), x)
    masks = torch.stack([RandomErasing(a_e=0.4).mask(noise.of("copy", copy), 8, 8) for copy in range(6)])
    shown = (~masks).float().mean(dim=0)[:, None]
    assert 0.5 < float(shown.mean()) < 0.9 and float(shown.std()) > 0.1
    torch.testing.assert_close(gradient, whole * shown)


@pytest.mark.parametrize("attack", [GMI_SHORT, PPA_SHORT, KEDMI_SHORT])
def test_a_wrapper_at_zero_strength_changes_no_bit(attack: Attack) -> None:
    world = World(5)
    plain = run(attack, world, work=workspace(world))
    for wrapper in (EOT(attack, copies=1), Align(attack, copies=1, sigma=0.0)):
        assert same(run(wrapper, world, work=workspace(world)), plain)
    assert not torch.equal(run(EOT(attack, copies=1), world).latents, plain.latents)
    assert not torch.equal(run(Align(attack, copies=1), world).latents, plain.latents)


def test_what_views_cost() -> None:
    assert viewed_cost(Cost(30, 10, 7), 4, True) == Cost(120, 40, 28)
    assert viewed_cost(Cost(30, 10, 7), 4, False) == Cost(20 + 40, 40, 7)
    prior = World(4).prior
    assert EOT(PPA(), copies=10).cost(prior) == Cost(300_000, 100_000, 40_000)
    assert Align(PPA()).cost(prior) == Cost(200 * 100 + 50 * 10_000, 500_000, 4000)


def test_attacks_without_gradients_are_refused_in_one_line() -> None:
    prior = World(4).prior
    for wrapper, name in ((EOT(PriorSearch()), "eot"), (Align(PriorSearch()), "align")):
        with pytest.raises(UserError, match=f"{name} needs the target's gradients") as caught:
            capabilities.require(wrapper, prior)
        assert "\n" not in str(caught.value)
    for wrapper in (EOT(PPA_SHORT), Align(PPA_SHORT)):
        capabilities.require(wrapper, prior)
    critic_free = World(4, "none").prior
    for wrapper in (EOT(GMI_SHORT), Align(EOT(GMI_SHORT))):
        with pytest.raises(UserError, match="gmi needs a prior with a critic"):
            capabilities.require(wrapper, critic_free)


@pytest.mark.parametrize(
    ("wrapper", "settings"),
    [
        (EOT, {"copies": 0}),
        (Align, {"copies": 0}),
        (Align, {"scale": (0.0, 1.0)}),
        (Align, {"scale": (0.9, 0.8)}),
        (Align, {"ratio": (0.0, 1.0)}),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrapper: type, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=wrapper.__name__.lower()) as caught:
        wrapper(GMI_SHORT, **settings)
    assert "\n" not in str(caught.value)


def test_composed_by_name_they_are_the_same_attack() -> None:
    world = World(4)
    settings = {"steps": 5, "images": 2, "eot.copies": 3, "align.copies": 2, "align.sigma": 0.1}
    found = attack_on(world, "gmi+eot+align", **settings)
    by_hand = Align(EOT(GMI(images=2, steps=5, lr=0.5, realism=0.0), copies=3), copies=2, sigma=0.1)
    assert same(found, run(by_hand, world, work=workspace(world)))


@pytest.mark.parametrize("name", ["ppa+eot", "gmi+eot", "ppa+align", "ppa+ppdg", "ppa+untrap"])
def test_composed_attacks_succeed_where_they_must(name: str) -> None:
    world = World(6)
    settings: dict[str, Any] = {"pool": 200, "steps": 30} if name.startswith("ppa") else {}
    found = attack_on(world, name, work=erased(world), **settings)
    assert float((world.truth(found.images) == found.labels).float().mean()) >= 0.9


def test_the_examples_do_differ() -> None:
    """Guards the laws above: no two composed attacks are accidentally the same search."""
    world = World(4)
    found = {name: run(attack, world).latents for name, attack in COMPOSED.items()}
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(found[one], found[other]), (one, other)


# --- either side: the image itself or its views


def either(copies: int, shift: float, seed: int = 0) -> tuple[Oracle, Either, Tensor, Tensor]:
    """A linear target; every view adds a constant to the pixels."""
    torch.manual_seed(seed)
    weight, bias = torch.randn(3, 4), torch.randn(3)
    oracle = Oracle(linear(weight, bias), Access.WHITE_BOX, 3)
    return oracle, Either(oracle, 0, lambda x, noise: x + shift, copies), weight, bias


def test_the_larger_side_counts_and_alone_is_differentiated() -> None:
    """With views x + s: loss = -l_y(x) - max(0, s sum(W_y)), each image by its own side."""
    oracle, layer, weight, bias = either(4, 0.3, seed=1)
    y, noise = torch.tensor([0, 1, 2, 2]), Noise(1, torch.arange(4))
    x = torch.rand(4, 1, 2, 2, requires_grad=True)
    values = layer.loss(x, y, on_logits(nll), noise)
    plain = -(x.detach().flatten(1) @ weight.T + bias).gather(1, y[:, None])[:, 0]
    sums = 0.3 * weight[y].sum(dim=1)
    assert bool((sums > 0).any()) and bool((sums < 0).any())
    torch.testing.assert_close(values.detach(), plain - sums.clamp(min=0))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(gradient.flatten(1), -weight[y])
    assert oracle.queries.tolist() == [5, 5, 10] == oracle.gradient_images.tolist()


def test_scores_answers_and_labels_are_those_of_the_surer_side() -> None:
    oracle, layer, weight, bias = either(3, 0.4, seed=2)
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    logits = torch.stack([(x + shift).flatten(1) @ weight.T + bias for shift in (0.0, 0.4)])
    p = logits.softmax(dim=2)
    torch.testing.assert_close(layer.probs(x, None), p.amax(dim=0))
    surer = p.gather(2, y.expand(2, -1)[:, :, None])[:, :, 0].argmax(dim=0)
    assert 0 < int(surer.sum()) < 5  # both sides take part
    torch.testing.assert_close(layer.logits(x, y), logits[surer, torch.arange(5)])
    torch.testing.assert_close(layer.answers(x, y)[1], (x + 0.4 * surer[:, None, None, None]).flatten(1))
    assert layer.labels(x, None).tolist() == [
        min(first, second) for first, second in zip(*logits.argmax(dim=2).tolist(), strict=True)
    ]
    assert oracle.shared_queries == 2 * 4 * 5 and layer.affordable(100, 1) == 100


def test_where_views_change_nothing_both_sides_are_the_attack_itself() -> None:
    world, oracles = World(5), [World(5).oracle() for _ in range(2)]
    plain = run(PPA_SHORT, world, oracle=oracles[0], work=workspace(world))
    found = run(EOT(PPA_SHORT, copies=3, combine="larger"), world, oracle=oracles[1], work=workspace(world))
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=1e-4)
    for count, several in zip(oracles[0].counts().values(), oracles[1].counts().values(), strict=True):
        assert torch.equal(4 * count, several)


def test_either_side_is_never_less_sure_than_the_mean() -> None:
    """Erased views of a trained stand-in: the larger of both sides bounds each of them, image by image."""
    world = World(5)
    x, y = (
        torch.rand(6, *world.prior.decode(world.prior.sample(Noise(0, torch.arange(1)))).shape[1:]),
        torch.arange(6) % 3,
    )
    noise = Noise(2, torch.arange(6))
    both = Either(world.oracle(), 0, ERASE, 4).loss(x, y, on_logits(nll), noise)
    alone = world.oracle().loss(x, y, on_logits(nll), noise)
    assert bool((both <= alone + 1e-6).all())
