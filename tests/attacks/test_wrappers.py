"""Laws of oracles seen through views and of the wrappers eot, align, ppdg and untrap around real attacks."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import World, attack_on, workspace

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.parts.views import Layer, Viewed, viewed_cost
from mibench.attacks.ppa import PPA
from mibench.attacks.ppdg import PPDG
from mibench.attacks.prior_search import PriorSearch
from mibench.attacks.untrap import Untrap
from mibench.core import Access, Attack, AttackContext, BudgetExhausted, Cost, Oracle, Reconstructions, augment
from mibench.core.losses import nll, on_logits
from mibench.defenses.re import RandomErasing
from mibench.models.base import Classifier, Prepare
from mibench.plugins import capabilities
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

GMI_SHORT = GMI(images=2, steps=8, lr=0.5)
PPA_SHORT = PPA(images=2, candidates=3, pool=24, steps=5, lr=0.03, betas=(0.9, 0.999), selection_views=3)
KEDMI_SHORT = KEDMI(images=2, steps=8, lr=0.05, log_var=-2.0)
PPDG_SHORT: dict[str, Any] = {
    "candidates": 4,
    "keep": 2,
    "views": 3,
    "pivot_steps": 6,
    "pivot_lr": 0.1,
    "steps": 3,
    "lr": 1e-3,
}
WRAPPED: dict[str, Attack] = {
    "gmi+eot": EOT(GMI_SHORT, copies=3),
    "gmi+align": Align(GMI_SHORT, copies=3),
    "ppa+eot": EOT(PPA_SHORT, copies=3),
    "ppa+eot+align": Align(EOT(PPA_SHORT, copies=2), copies=2, mode="transform", select=True),
    "ppa+ppdg": PPDG(PPA_SHORT, **PPDG_SHORT),
    "gmi+untrap": Untrap(GMI_SHORT, images=4, steps=3),
    "ppa+untrap+eot": EOT(Untrap(PPA_SHORT, images=3, steps=2), copies=2),
    "kedmi+ppdg+eot": EOT(PPDG(KEDMI_SHORT, **PPDG_SHORT), copies=2),
}
PLANNED = ["gmi+eot", "ppa+eot+align", "ppa+ppdg", "ppa+untrap+eot"]
"""One of each kind, for the laws that take many runs."""

ERASE = RandomErasing(a_e=0.4, fill="zero").transform
ROUNDING = 1e-4
"""As in test_attacks.py."""


def erased(world: World, batch: int = 256, folder: Path | None = None) -> AttackContext:
    """A workspace whose target was trained on erased images."""
    return replace(workspace(world, batch, folder), transform=ERASE)


def run(
    attack: Attack,
    world: World,
    labels: Tensor | None = None,
    seed: int = 0,
    work: AttackContext | None = None,
    oracle: Oracle | None = None,
) -> Reconstructions:
    labels = torch.arange(world.classes) if labels is None else labels
    return attack(oracle or world.oracle(), world.prior, labels, seed, work or erased(world))


def same(one: Reconstructions, other: Reconstructions) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in asdict(one))


# --- oracles seen through views


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
    assert viewed.queries is oracle.queries and viewed.counts()["queries"] is oracle.queries


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
    viewed.loss(x.requires_grad_(), y, on_logits(nll), noise)
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


# --- the wrappers at zero strength, and what they change


@pytest.mark.parametrize("attack", [GMI_SHORT, PPA_SHORT, KEDMI_SHORT])
def test_a_wrapper_at_zero_strength_changes_no_bit(attack: Attack) -> None:
    world = World(5)
    plain = run(attack, world, work=workspace(world))
    for wrapper in (EOT(attack, copies=1), Align(attack, copies=1, sigma=0.0)):
        assert same(run(wrapper, world, work=workspace(world)), plain)
    assert not torch.equal(run(EOT(attack, copies=1), world).latents, plain.latents)
    assert not torch.equal(run(Align(attack, copies=1), world).latents, plain.latents)


def test_copies_of_one_view_change_nothing_but_the_price() -> None:
    world, oracles = World(5), [World(5).oracle() for _ in range(2)]
    plain = run(PPA_SHORT, world, oracle=oracles[0], work=workspace(world))
    found = run(EOT(PPA_SHORT, copies=4), world, oracle=oracles[1], work=workspace(world))
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=ROUNDING)
    for count, several in zip(oracles[0].counts().values(), oracles[1].counts().values(), strict=True):
        assert torch.equal(4 * count, several)


def test_what_views_cost() -> None:
    assert viewed_cost(Cost(30, 10, 7), 4, True) == Cost(120, 40, 28)
    assert viewed_cost(Cost(30, 10, 7), 4, False) == Cost(20 + 40, 40, 7)
    prior = World(4).prior
    assert EOT(PPA(), copies=10).cost(prior) == Cost(300_000, 100_000, 100_000)
    assert Align(PPA()).cost(prior) == Cost(200 * 100 + 50 * 10_000, 500_000, 10_000)


def test_the_searchs_batch_is_divided_by_the_copies() -> None:
    world, sizes = World(5), []
    world.target.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    features = world.target.features

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return features(x)

    world.target.features = watched  # type: ignore[method-assign]
    run(Align(EOT(PPA_SHORT, copies=2), copies=3, select=True), world, work=erased(world, 24))
    assert max(sizes) == 24


def test_noisy_copies_have_the_given_spread_and_are_not_clamped() -> None:
    x = torch.full((3, 3, 40, 40), 0.98)
    noise = Noise(0, torch.arange(3))
    moved = Align(sigma=0.1).view(x, noise) - x
    assert abs(float(moved.mean())) < 0.005 and float(moved.std()) == pytest.approx(0.1, rel=0.05)
    assert float(moved.max()) > 0.3 and not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(
        Align(mode="transform", scale=(0.5, 0.6), degrees=7.0, mirror=False).view(x, noise),
        augment.random_resized_crop(x, noise, (0.5, 0.6), (0.9, 1.1), 0.0, 7.0),
    )


def test_averaged_gradients_are_steadier() -> None:
    """On a target that ripples quickly, the mean gradient over noisy copies points where the plain slope does."""
    torch.manual_seed(0)
    slope = torch.randn(2, 4)

    class Rippled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def features(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.cat([flat, torch.sin(300 * flat) * self.scale / 30], dim=1)

        def head(self, features: Tensor) -> Tensor:
            return features[:, :4] @ slope.T + features[:, 4:].sum(dim=1, keepdim=True)

    oracle, y = Oracle(Rippled(), Access.WHITE_BOX, 2), torch.zeros(50, dtype=torch.int64)
    x = torch.rand(50, 1, 2, 2, requires_grad=True)
    error = []
    for copies in (1, 64):
        viewed = Viewed(oracle, 0, Align(sigma=0.06).view, copies, select=False)
        (gradient,) = torch.autograd.grad(viewed.loss(x, y, on_logits(nll), Noise(0, torch.arange(50))).sum(), x)
        error.append(float((gradient.flatten(1) + slope[0]).square().mean().sqrt()))
    assert error[0] > 5 and error[1] < error[0] / 6  # about sqrt(64)


# --- the contract of attacks, for composed ones


def test_composed_by_name_they_are_the_same_attack() -> None:
    world = World(4)
    settings = {"steps": 5, "images": 2, "eot.copies": 3, "align.copies": 2, "align.sigma": 0.1}
    found = attack_on(world, "gmi+eot+align", **settings)
    by_hand = Align(EOT(GMI(images=2, steps=5, lr=0.5), copies=3), copies=2, sigma=0.1)
    assert same(found, run(by_hand, world, work=workspace(world)))


@pytest.mark.parametrize("name", WRAPPED)
def test_what_comes_out_and_what_stays_as_it_was(name: str) -> None:
    world, labels = World(6), torch.tensor([4, 0, 3])
    models = (world.target, world.prior)
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    found = run(WRAPPED[name], world, labels)
    assert found.images.shape == (6, *world.prior.image_shape)
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert torch.equal(found.labels, labels.repeat_interleave(2))
    for part in asdict(found).values():
        assert not part.requires_grad and (part.dtype == torch.bool or part.isfinite().all())
    for model, state in zip(models, before, strict=True):
        after = model.state_dict()
        assert after.keys() == state.keys() and all(torch.equal(state[key], after[key]) for key in state)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not model.training


@pytest.mark.parametrize("name", WRAPPED)
def test_the_cost_is_exact(name: str) -> None:
    world, labels, attack = World(6), torch.tensor([4, 0, 3]), WRAPPED[name]
    told: list[int] = []
    oracle = Oracle(world.target, Access.WHITE_BOX, world.classes, tick=told.append)
    run(attack, world, labels, oracle=oracle, work=erased(world, 9))
    cost = attack.cost(world.prior, len(world.public()))
    attacked = torch.zeros(world.classes, dtype=torch.int64)
    attacked[labels] = 1
    assert torch.equal(oracle.queries, attacked * cost.queries)
    assert torch.equal(oracle.gradient_images, attacked * cost.gradient_images)
    assert oracle.shared_queries == cost.shared_queries
    assert sum(told) == cost.queries * 3 + cost.shared_queries


@pytest.mark.parametrize("name", WRAPPED)
def test_same_seed_same_bits_another_seed_differs(name: str) -> None:
    world = World(4)
    torch.manual_seed(0)
    first = run(WRAPPED[name], world, seed=1)
    torch.manual_seed(99)
    assert same(first, run(WRAPPED[name], world, seed=1))
    assert not torch.isclose(first.latents, run(WRAPPED[name], world, seed=2).latents).all(dim=1).any()


@pytest.mark.parametrize("name", WRAPPED)
def test_a_batch_of_identities_gets_what_each_would_get_alone(name: str) -> None:
    world, labels = World(6), torch.tensor([5, 1, 3])
    together = run(WRAPPED[name], world, labels)
    for place, label in enumerate(labels):
        alone = run(WRAPPED[name], world, label[None])
        own = slice(2 * place, 2 * place + 2)
        torch.testing.assert_close(together.latents[own], alone.latents, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(together.images[own], alone.images, rtol=0, atol=ROUNDING)
    narrow = run(WRAPPED[name], world, labels, work=erased(world, 9))
    torch.testing.assert_close(together.latents, narrow.latents, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(together.images, narrow.images, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", PLANNED)
def test_a_budget_is_never_exceeded_and_serves_all_alike(name: str) -> None:
    world, attack = World(4), WRAPPED[name]
    cost = attack.cost(world.prior)
    full = cost.queries + cost.shared_queries
    for budget in (full - 1, cost.shared_queries + cost.queries // 2, 1):
        oracle = world.oracle(budget=budget)
        try:
            wide = run(attack, world, oracle=oracle)
            alone = run(attack, world, torch.tensor([2]), oracle=world.oracle(budget=budget), work=erased(world, 9))
            torch.testing.assert_close(wide.latents[wide.labels == 2], alone.latents, rtol=0, atol=ROUNDING)
        except BudgetExhausted:
            assert budget < cost.shared_queries
        assert int(oracle.queries.max()) + oracle.shared_queries <= budget
    assert same(run(attack, world, oracle=world.oracle(budget=full)), run(attack, world))


def test_an_alignment_that_does_not_select_stays_within_a_budget() -> None:
    """It plans as if all were differentiated, so that PPA's selection gets less than it could, but never too much."""
    world, attack = World(4), Align(PPA_SHORT, copies=3)
    cost = attack.cost(world.prior)
    for budget in (cost.shared_queries + cost.queries, cost.shared_queries + cost.queries // 2):
        oracle = world.oracle(budget=budget)
        run(attack, world, oracle=oracle)
        assert budget * 0.6 < int(oracle.queries.max()) + oracle.shared_queries <= budget


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("budgeted", [False, True])
def test_interrupted_anywhere_it_resumes_to_the_same_result_and_counts(
    name: str, budgeted: bool, tmp_path: Path
) -> None:
    world, labels, attack = World(4), torch.arange(3), WRAPPED[name]
    cost = attack.cost(world.prior)
    budget = cost.shared_queries + cost.queries // 2 if budgeted else None
    whole_oracle = world.oracle(budget=budget)
    whole = run(attack, world, labels, oracle=whole_oracle, work=erased(world, 12))
    total = int(whole_oracle.queries.sum()) + whole_oracle.shared_queries
    for share in (0.3, 0.9):
        folder = tmp_path / str(share)
        folder.mkdir()
        left = int(share * total)

        def tick(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise KeyboardInterrupt

        stopped = Oracle(world.target, Access.WHITE_BOX, world.classes, budget, tick)
        with pytest.raises(KeyboardInterrupt):
            run(attack, world, labels, oracle=stopped, work=erased(world, 12, folder))
        told: list[int] = []
        oracle = Oracle(world.target, Access.WHITE_BOX, world.classes, budget, told.append)
        assert same(run(attack, world, labels, oracle=oracle, work=erased(world, 12, folder)), whole)
        for count, wanted in zip(oracle.counts().values(), whole_oracle.counts().values(), strict=True):
            assert torch.equal(count, wanted)
        assert sum(told) == total


@pytest.mark.parametrize("name", WRAPPED)
def test_less_access_than_the_attack_needs_is_refused(name: str) -> None:
    world = World(4)
    for access in (Access.BLACK_BOX, Access.LABEL_ONLY):
        with pytest.raises(UserError, match=f"was granted {access.name.lower()}"):
            run(WRAPPED[name], world, oracle=world.oracle(access))


@pytest.mark.parametrize("name", ["ppa+eot", "gmi+eot", "ppa+align", "ppa+ppdg", "ppa+untrap"])
def test_composed_attacks_succeed_where_they_must(name: str) -> None:
    world = World(6)
    settings: dict[str, Any] = {"pool": 200, "steps": 30} if name.startswith("ppa") else {}
    found = attack_on(world, name, work=erased(world), **settings)
    assert float((world.truth(found.images) == found.labels).float().mean()) >= 0.9


# --- what is refused


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


def test_the_examples_do_differ() -> None:
    """Guards the laws above: no two composed attacks are accidentally the same search."""
    world = World(4)
    found = {name: run(attack, world).latents for name, attack in WRAPPED.items()}
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(found[one], found[other]), (one, other)
