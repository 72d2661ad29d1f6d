"""Laws of the search: the published momentum rule, clamps, budgets, and pools."""

import pytest
import torch
from torch import Tensor
from worlds import World

from mibench.attacks.parts.latents import DiagonalGaussian, Point
from mibench.attacks.parts.search import adam, best_of_pool, chunks, descend, keys, pool_scores, robust_confidence
from mibench.core import Access, AttackContext, BudgetExhausted, Oracle, augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

NOISE = Noise(0, torch.arange(3))


def half_square(z: Tensor, noise: Noise) -> Tensor:
    return 0.5 * z.square().sum(dim=1)


def momentum(point: Point, lr: float = 0.02) -> torch.optim.Optimizer:
    return torch.optim.SGD(point.parameters(), lr=lr, momentum=0.9, nesterov=True)


def test_three_steps_of_momentum_are_the_published_ones() -> None:
    """By hand: f = z^2 / 2 from z = 1, lr .02, momentum .9."""
    for steps, expected in enumerate((0.96200000, 0.90924400, 0.84452833), start=1):
        point = Point(torch.ones(3, 2))
        assert descend(point, half_square, momentum(point), steps, NOISE) == steps
        torch.testing.assert_close(point.z.detach(), torch.full((3, 2), expected), rtol=0, atol=1e-7)


def by_hand(z: float, steps: int, lr: float, clamp: float, slope: float) -> float:
    """v' = .9 v - lr g; z' = clamp(z - .9 v + 1.9 v'); v is not reset."""
    v = 0.0
    for _ in range(steps):
        old, v = v, 0.9 * v - lr * slope
        z = max(-clamp, min(clamp, z - 0.9 * old + 1.9 * v))
    return z


def test_a_clamp_does_not_reset_the_momentum() -> None:
    """Pushed against the wall for five steps, then pulled back: the momentum gathered at the wall still holds it."""
    point = Point(torch.full((1, 1), 0.95))
    optimizer = momentum(point, lr=0.05)
    noise = NOISE.rows(torch.tensor([0]))
    descend(point, lambda z, drawn: -z[:, 0], optimizer, 5, noise, clamp=1.0)
    assert float(point.z.detach()) == 1.0 == by_hand(0.95, 5, 0.05, 1.0, -1.0)
    velocity = optimizer.state[point.z]["momentum_buffer"]
    torch.testing.assert_close(velocity, torch.full((1, 1), -sum(0.9**i for i in range(5))))
    descend(point, lambda z, drawn: z[:, 0], optimizer, 1, noise, clamp=1.0)
    assert float(point.z.detach()) == 1.0  # without the old momentum it would be 1 - .05 * 1.9


def test_the_clamp_holds_after_every_step_and_not_before_the_first() -> None:
    seen: list[Tensor] = []

    def loss(z: Tensor, noise: Noise) -> Tensor:
        seen.append(z.detach().clone())
        return half_square(z, noise)

    point = Point(torch.full((3, 2), 5.0))
    descend(point, loss, momentum(point), 4, NOISE, clamp=1.0)
    assert (seen[0] == 5.0).all() and all(z.abs().max() <= 1.0 for z in seen[1:])
    assert point.z.detach().abs().max() <= 1.0


def test_scale_is_a_smaller_step_for_momentum() -> None:
    scaled, slow = Point(torch.ones(3, 2)), Point(torch.ones(3, 2))
    descend(scaled, half_square, momentum(scaled, lr=0.5), 7, NOISE, scale=1 / 100)
    descend(slow, half_square, momentum(slow, lr=0.005), 7, NOISE)
    torch.testing.assert_close(scaled.z, slow.z)


def test_the_sum_keeps_latents_apart() -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def loss(z: Tensor, noise: Noise) -> Tensor:
        return (z - noise.normal(2)).square().sum(dim=1)

    together = Point(start)
    descend(together, loss, momentum(together), 6, NOISE)
    for i in range(3):
        alone = Point(start[i : i + 1])
        descend(alone, loss, momentum(alone), 6, NOISE.rows(torch.tensor([i])))
        torch.testing.assert_close(alone.z[0], together.z[i])


def test_every_step_draws_anew() -> None:
    drawn: list[Tensor] = []

    def loss(z: Tensor, noise: Noise) -> Tensor:
        drawn.append(noise.uniform(1))
        return half_square(z, noise)

    point = Point(torch.ones(3, 2))
    descend(point, loss, momentum(point), 5, NOISE)
    assert len(torch.cat(drawn).unique()) == 15


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_breaks_names_the_step(bad: float) -> None:
    count = 0

    def loss(z: Tensor, noise: Noise) -> Tensor:
        nonlocal count
        count += 1
        return half_square(z, noise) + (bad if count == 4 else 0.0) * torch.tensor([0.0, 1.0, 0.0]).nan_to_num()[1]

    point = Point(torch.ones(3, 2))
    with pytest.raises(UserError, match=r"step 3 of 9 \(lr 0\.02\).*--set lr=") as caught:
        descend(point, loss, momentum(point), 9, NOISE)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_breaks_at_the_last_step_is_told_too() -> None:
    """sqrt at 0: the loss is finite, its gradient is not, and the latent it leaves behind is worth nothing."""
    point = Point(torch.zeros(3, 2))
    with pytest.raises(UserError, match="finite"):
        descend(point, lambda z, noise: z.square().sum(dim=1).sqrt(), momentum(point), 1, NOISE)


def test_no_steps_leave_the_start() -> None:
    point = Point(torch.ones(3, 2))
    assert descend(point, half_square, momentum(point), 0, NOISE, clamp=0.5) == 0
    assert torch.equal(point.z.detach(), torch.ones(3, 2))


@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_the_budget_stops_the_search_exactly(budget: int) -> None:
    world = World(classes=4)
    oracle = world.oracle(budget=budget)
    y = torch.tensor([0, 1, 1, 3])  # class 1 twice: its budget ends first

    def loss(z: Tensor, noise: Noise) -> Tensor:
        return oracle.logits(world.prior.decode(z), y).square().sum(dim=1)

    point = Point(torch.ones(4, 6))
    taken = descend(point, loss, momentum(point), 10, Noise(0, y))
    assert taken == min(budget // 2, 10)
    assert oracle.queries.tolist() == oracle.gradient_images.tolist() == [taken, 2 * taken, 0, taken]
    assert (point.z.detach() == 1.0).all() == (taken == 0)


# --- latents


def test_a_gaussian_draws_mu_plus_sigma_eps() -> None:
    gaussian = DiagonalGaussian(torch.full((20_000, 2), 3.0), torch.full((20_000, 2), 1.0))
    z = gaussian.draw(Noise(0, torch.arange(20_000)))
    assert float(z.detach().mean()) == pytest.approx(3.0, abs=0.04)
    assert float(z.detach().std()) == pytest.approx(torch.e**0.5, abs=0.03)
    gradient_mu, gradient_log_var = torch.autograd.grad(z.sum(), gaussian.parameters())
    assert torch.equal(gradient_mu, torch.ones_like(gradient_mu))
    torch.testing.assert_close(gradient_log_var, (z.detach() - 3.0) / 2)  # d z / d log_var = sigma eps / 2


def test_latents_are_copies() -> None:
    start = torch.ones(3, 2)
    point, gaussian = Point(start), DiagonalGaussian(start, start)
    descend(point, half_square, momentum(point), 2, NOISE)
    descend(gaussian, half_square, torch.optim.SGD(gaussian.parameters(), lr=0.1), 2, NOISE)
    assert torch.equal(start, torch.ones(3, 2)) and not start.requires_grad


# --- keys, chunks, pools


def test_keys_are_unique_and_belong_to_the_label_not_to_its_place() -> None:
    y, key = keys(torch.tensor([7, 0, 3]), 5)
    assert y.tolist() == [7] * 5 + [0] * 5 + [3] * 5
    assert len(key.unique()) == 15
    assert torch.equal(keys(torch.tensor([3]), 5)[1], key[10:])
    assert len(keys(torch.arange(1000), 7)[1].unique()) == 7000


@pytest.mark.parametrize(("count", "size"), [(1, 5), (5, 5), (6, 5), (100, 7), (1000, 256), (3, 1000), (0, 4)])
def test_chunks_cover_everything_once_in_order_and_evenly(count: int, size: int) -> None:
    parts = [range(count)[piece] for piece in chunks(count, size)]
    assert [i for part in parts for i in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert not lengths or (max(lengths) <= size and max(lengths) - min(lengths) <= 1)
    assert len(parts) == -(-count // size)


def test_best_of_pool_is_a_sort() -> None:
    scores = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0])
    best = best_of_pool(scores, labels, 7)
    for row, label in zip(best, labels, strict=True):
        assert torch.equal(row, scores[:, label].sort(descending=True).indices[:7])
    with pytest.raises(UserError, match="51 candidates are wanted from a pool of 50"):
        best_of_pool(scores, labels, 51)


def test_ties_in_a_pool_do_not_depend_on_who_else_is_asked_for() -> None:
    """A confident target says exactly 1.0 again and again."""
    scores = torch.rand(500, 8, generator=torch.Generator().manual_seed(0)).mul(4).round().div(4)
    together = best_of_pool(scores, torch.arange(8), 20)
    for label in range(8):
        assert torch.equal(best_of_pool(scores, torch.tensor([label]), 20)[0], together[label])


def test_pool_scores_are_the_targets_probabilities() -> None:
    world = World(classes=4)
    oracle = world.oracle(Access.BLACK_BOX)
    pool = world.prior.sample(Noise(0, torch.arange(10)))
    with torch.no_grad():
        x = world.prior.decode(pool)
        plain, mirrored = world.target(x).softmax(1), world.target(x.flip(3)).softmax(1)
    for batch in (3, 10, 99):
        torch.testing.assert_close(pool_scores(oracle, world.prior, pool, False, AttackContext(batch)), plain)
    both = pool_scores(oracle, world.prior, pool, True, AttackContext(4))
    torch.testing.assert_close(both, (plain + mirrored) / 2)
    assert oracle.shared_queries == 3 * 10 + 2 * 10 and oracle.queries.sum() == 0


def test_robust_confidence_is_the_sum_over_views_of_each_images_own_crops() -> None:
    world = World(classes=4)
    y, key = torch.tensor([0, 0, 1, 3, 2]), torch.arange(5)
    with torch.no_grad():
        x = world.prior.decode(world.prior.sample(Noise(0, key)))
    noise = Noise(9, key).of("selection")
    found = {}
    for batch in (2, 5):
        oracle = world.oracle(Access.BLACK_BOX)
        found[batch] = robust_confidence(oracle, lambda rows: x[rows], y, noise, 3, True, AttackContext(batch))
        assert oracle.queries.tolist() == [6, 3, 3, 3]
    torch.testing.assert_close(found[2], found[5])
    views = [augment.random_resized_crop(x, noise.of("view", i), (0.5, 0.9), (0.8, 1.2), 0.5) for i in range(3)]
    with torch.no_grad():
        by_hand = sum(world.target(view).softmax(1)[torch.arange(5), y] for view in views)
    torch.testing.assert_close(found[5], by_hand)


# --- oracle


def test_an_oracle_gives_what_its_access_grants() -> None:
    world, y = World(classes=4), torch.tensor([0, 1])
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for access in Access:
        oracle = world.oracle(access)
        asks = [
            (oracle.labels, Access.LABEL_ONLY),
            (oracle.probs, Access.BLACK_BOX),
            (oracle.logits, Access.WHITE_BOX),
            (oracle.answers, Access.WHITE_BOX),
        ]
        for ask, needed in asks:
            if access >= needed:
                ask(x, y)
            else:
                with pytest.raises(UserError, match=f"needs {needed.name.lower()} access.*{access.name.lower()}"):
                    ask(x, y)
        answered = sum(access >= needed for _, needed in asks)
        assert oracle.queries.tolist() == [answered, answered, 0, 0]  # a refused question costs nothing


def test_an_oracle_counts_views_shared_images_and_gradients() -> None:
    world, y = World(classes=4), torch.tensor([0, 1, 1])
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told: list[int] = []
    oracle = Oracle(world.target, Access.WHITE_BOX, 4, tick=told.append)
    oracle.logits(x.requires_grad_(), y).sum().backward()
    assert oracle.queries.tolist() == oracle.gradient_images.tolist() == [2, 4, 0, 0]
    with torch.no_grad():
        oracle.logits(x, y)
    oracle.logits(x.detach(), y)
    oracle.labels(x[:3], y)
    oracle.probs(x, None)
    assert oracle.queries.tolist() == [7, 14, 0, 0] and oracle.gradient_images.tolist() == [2, 4, 0, 0]
    assert oracle.shared_queries == 6 and told == [6, 6, 6, 3, 6]


def test_an_oracle_refuses_images_that_are_no_whole_number_of_views() -> None:
    world = World(classes=4)
    x = torch.rand(5, 3, 8, 8)
    for labels in (torch.tensor([0, 1, 2]), torch.arange(4).repeat(2)):
        oracle = world.oracle()
        with pytest.raises(UserError, match="whole number of views"):
            oracle.labels(x, labels)


def test_shared_images_count_against_everybodys_budget() -> None:
    world = World(classes=4)
    oracle = world.oracle(Access.BLACK_BOX, budget=10)
    x = torch.rand(8, 3, 8, 8)
    oracle.probs(x, None)
    oracle.probs(x[:2], torch.tensor([1, 2]))
    oracle.probs(x[:1], torch.tensor([1]))
    with pytest.raises(BudgetExhausted):
        oracle.probs(x[:1], torch.tensor([1]))
    with pytest.raises(BudgetExhausted):
        oracle.probs(x[:3], None)
    assert oracle.queries.tolist() == [0, 2, 1, 0] and oracle.shared_queries == 8


# --- Adam under a sum


def test_adam_under_a_sum_moves_as_torchs_under_the_mean_over_a_batch() -> None:
    """m / B / (sqrt(v) / B + eps): gradients of 1e-7, which eps = 1e-8 would otherwise treat as 25 times larger."""
    start = torch.linspace(-1, 1, 25, dtype=torch.float64)[:, None]

    def loss(z: Tensor) -> Tensor:
        return 1e-7 * z.square().sum(dim=1)

    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.005, betas=(0.1, 0.1))
    for _ in range(50):
        optimizer.zero_grad()
        loss(theirs).mean().backward()
        optimizer.step()
    ours = Point(start)
    descend(ours, lambda z, noise: loss(z), adam(ours.parameters(), 0.005, 25, (0.1, 0.1)), 50, NOISE)
    torch.testing.assert_close(ours.z.detach(), theirs.detach(), rtol=0, atol=1e-14)
    plain = Point(start)
    descend(plain, lambda z, noise: loss(z), adam(plain.parameters(), 0.005, 1, (0.1, 0.1)), 50, NOISE)
    assert float((plain.z - theirs).detach().abs().max()) > 0.01
