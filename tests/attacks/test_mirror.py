"""MIRROR: the P-space, the schedule, one Adam step, the pick, the genetic operators, against formulas."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import World, attack_on, quick, workspace

from mibench.attacks.mirror import Mirror, _RampedAdam, overlapping, ramp
from mibench.attacks.mirror_bb import MirrorBlackBox, first_parents_share, parents
from mibench.attacks.parts.evolution import Fitness, best_distinct, log_odds
from mibench.attacks.parts.pspace import PSpace, searched
from mibench.core import Access, AttackContext, Prior
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


class Activated(Prior):
    """A world's linear prior behind w = LeakyReLU(z): a prior with a w space, as StyleGAN's is."""

    spaces = ("z", "w")

    def __init__(self, world: World, inside: bool = False) -> None:
        super().__init__()
        self.world, self.inside = world, inside
        self.latent_dim, self.image_shape = world.prior.latent_dim, world.prior.image_shape
        self.slope = 0.2 if inside else 1.0
        self.spaces = ("w",) if inside else ("z", "w")

    def space(self, name: str) -> Prior:
        return Activated(self.world, True) if name == "w" and not self.inside else super().space(name)

    def sample(self, noise: Noise) -> Tensor:
        z = super().sample(noise)
        return F.leaky_relu(z, 0.2) if self.inside else z

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.world.prior.decode(z if self.inside else F.leaky_relu(z, 0.2))


# --- P-space


def test_p_space_undoes_leaky_relu_exactly() -> None:
    z = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = F.leaky_relu(z, 0.2)
    space = PSpace.around(w, 0.2)
    torch.testing.assert_close(space.features_at(w), z, rtol=1e-15, atol=0)
    torch.testing.assert_close(space.leave(z), w, rtol=0, atol=0)
    torch.testing.assert_close(space.mean, z.mean(0))
    torch.testing.assert_close(space.std, z.std(0, correction=0))
    assert torch.equal(PSpace.around(z, 1.0).features_at(z), z)
    # Clipping in w is clipping in p, mapped back.
    torch.testing.assert_close(space.clip_w(w), space.leave(space.clip(z)))
    assert not torch.equal(space.clip_w(w), w)


def test_auto_is_w_where_there_is_one() -> None:
    world = World(4)
    prior = Activated(world)
    assert searched(prior, "auto").slope == 0.2 and searched(prior, "z") is prior
    assert searched(world.prior, "auto") is world.prior
    with pytest.raises(UserError, match="has no w space"):
        searched(world.prior, "w")


# --- mirror


def test_the_schedule() -> None:
    """Source: attacks.md section 6. 0 at both ends, half way up at 2.5 %, full from 5 % to 75 %, half at 87.5 %."""
    golden = {0.0: 0.0, 0.025: 0.5, 0.05: 1.0, 0.4: 1.0, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}
    for t, wanted in golden.items():
        assert ramp(t) == pytest.approx(wanted, abs=1e-12)
    assert ramp(0.95) == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.2))


def test_the_last_step_stands_still_and_the_first_does_not() -> None:
    """Rates of 20 steps by the authors' adjust_lr, epochs 1 ... 20."""
    point = torch.zeros(1, 2).requires_grad_()
    optimizer = _RampedAdam(point, 0.25, 20, PSpace(1.0, torch.zeros(2), torch.full((2,), 100.0)))
    rates = []
    for _ in range(20):
        point.grad = torch.ones_like(point)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"] / 0.25)
    golden = [1.0] * 15 + [0.904508, 0.654508, 0.345492, 0.095492, 0.0]
    assert rates == pytest.approx(golden, abs=1e-6)
    assert torch.allclose(point, torch.full((1, 2), -0.25 * sum(golden)), atol=1e-4)  # Adam moves by its rate


@pytest.mark.parametrize("kind", ["z", "w"])
def test_adam_takes_the_published_steps_inside_the_box(kind: str) -> None:
    """Adam .25 ramped on 10 CE of the flipped or plain image, clipped to the box; each row keeps its own best step."""
    world, labels, steps = World(6), torch.arange(3), 8
    prior = Activated(world) if kind == "w" else world.prior
    view = searched(prior, "auto")
    attack = Mirror(images=2, candidates=2, pool=50, steps=steps)
    found = attack(world.oracle(), prior, labels, 5, AttackContext())

    pool = view.sample(Noise(5, torch.arange(50)).of("pool"))
    p = F.leaky_relu(pool, 1 / view.slope)
    low = F.leaky_relu(p.mean(0) - p.std(0, correction=0), view.slope)
    high = F.leaky_relu(p.mean(0) + p.std(0, correction=0), view.slope)
    with torch.no_grad():
        scores = world.target(view.decode(pool)).softmax(1)
    y = labels.repeat_interleave(2)
    noise = Noise(5, y * 2 + torch.arange(2).repeat(3)).of("mirror")
    z = pool[scores[:, labels].topk(2, dim=0).indices.T.flatten()]
    m, v = torch.zeros_like(z), torch.zeros_like(z)
    best, lowest = z, torch.full((6,), torch.inf)
    for step in range(steps):
        flips = noise.of("step", step).of("flip").uniform(1)[:, 0] < 0.5
        point = z.clone().requires_grad_()
        x = view.decode(point)
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        values = 10 * F.cross_entropy(world.target(x), y, reduction="none")
        g = torch.autograd.grad(values.sum(), point)[0]
        better = values.detach() < lowest
        best, lowest = torch.where(better[:, None], z, best), torch.where(better, values.detach(), lowest)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        corrected = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 8e-8)
        z = (z - 0.25 * ramp((step + 1) / steps) * corrected).clamp(low, high)
    order = lowest.reshape(3, 2).argsort(dim=1, stable=True) + 2 * torch.arange(3)[:, None]
    torch.testing.assert_close(found.latents, best[order.flatten()], rtol=0, atol=1e-5)


def test_the_box_holds_after_every_step() -> None:
    world = World(6)
    prior = Activated(world)
    seen: list[Tensor] = []

    class Watched(Activated):
        def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
            if z.requires_grad:
                seen.append(z.detach().clone())
            return super().decode(z, y)

    view = Watched(world, True)
    prior.space = lambda name: view  # type: ignore[method-assign]
    Mirror(images=1, candidates=4, pool=300, steps=30, pick="confidence")(
        world.oracle(), prior, torch.arange(6), 0, AttackContext()
    )
    box = PSpace.around(view.sample(Noise(0, torch.arange(300)).of("pool")), 0.2)
    inside = [bool((box.clip_w(w) == w).all()) for w in seen]
    assert len(inside) == 30 and all(inside[1:]) and not inside[0]  # the start is a pool member, wherever it lies


def test_candidates_that_agree_on_their_other_labels_come_first() -> None:
    """Rows: p over 8 classes, the identity is 0. Rows 1 and 3 share labels 1 and 2; row 0 is the surest, alone."""
    order = torch.tensor([[0, 3, 4, 5, 6], [0, 1, 2, 5, 7], [4, 0, 1, 2, 3], [0, 1, 2, 6, 3]])
    p = torch.full((4, 8), 0.001)
    for row, (classes, top) in enumerate(zip(order, (0.9, 0.6, 0.9, 0.7), strict=True)):
        p[row].scatter_(0, classes, torch.tensor([top, 0.04, 0.03, 0.02, 0.01]))
    assert overlapping(p, 0).tolist() == [3, 1, 0, 2]
    # Rows 0 and 1 share label 5 only: the rule of one label. Row 2 is not recognised.
    assert overlapping(p[:3], 0).tolist() == [0, 1, 2]
    assert overlapping(p[[0, 2]], 0).tolist() == [0, 1]
    assert overlapping(p, 7).tolist() == log_odds(p, torch.full((4,), 7)).argsort(descending=True).tolist()


def test_every_candidate_keeps_its_best_step() -> None:
    """Without mirroring, what is returned is never worse than the pool's member it started from."""
    world = World(6)
    none = attack_on(world, "mirror", pool=60, steps=0, mirror=False)
    some = attack_on(world, "mirror", pool=60, steps=30, mirror=False)
    assert none.failed.all()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(world.target(world.prior.decode(z)), y, reduction="none")

    before, after = (loss(found.latents, found.labels).reshape(6, 2) for found in (none, some))
    assert (after.amin(1) <= before.amin(1) + 1e-6).all() and after.mean() < before.mean()
    moved = ~some.failed
    assert moved.any()
    starts = (some.latents[:, None] == none.latents[None]).all(dim=2).any(dim=1)
    assert torch.equal(starts, some.failed)  # failed is exactly: still at its start


def test_picking_costs_one_look_and_the_budget_may_forgo_it() -> None:
    world = World(6)
    attack = quick("mirror", candidates=4, images=1, pool=60, steps=5)
    cost = attack.cost(world.prior)
    assert cost == (4 * 5 + 4, 20, 60)
    paper = Mirror().cost(world.prior)
    assert paper == (160_008, 160_000, 100_000)
    oracle = world.oracle(budget=60 + 20)
    attack(oracle, world.prior, torch.arange(6), 0, AttackContext())
    assert oracle.queries.tolist() == [20] * 6


# --- mirror_bb


def test_the_first_parents_share_of_genes() -> None:
    """attacks.md section 6 (e): .9 against .1 gives the .9 parent's gene with probability .044 in the authors' code."""
    one, other = torch.tensor([0.9]).log(), torch.tensor([0.1]).log()
    assert float(first_parents_share(one, other, "legacy")) == pytest.approx(0.0438, abs=5e-5)
    assert float(first_parents_share(one, other, "fixed")) == pytest.approx(0.9, abs=1e-6)
    assert float(first_parents_share(other, one, "fixed")) == pytest.approx(0.1, abs=1e-6)


def test_parents_are_drawn_by_their_confidence() -> None:
    p = torch.tensor([[0.05, 0.2, 0.15], [0.9, 0.0, 0.9]])
    u = torch.arange(1000).float().add(0.5).div(1000).expand(2, -1)
    drawn = parents(p.log().clamp(min=-80), u)
    shares = torch.stack([row.bincount(minlength=3) for row in drawn]) / 1000
    torch.testing.assert_close(shares, torch.tensor([[0.125, 0.5, 0.375], [0.5, 0.0, 0.5]]), rtol=0, atol=2e-3)


def test_one_generation_by_formula() -> None:
    world, labels = World(6), torch.arange(3)
    prior = Activated(world)
    view = prior.space("w")
    for settings in ({}, {"crossover": "legacy", "mutation_noise": "shared"}):
        attack = MirrorBlackBox(images=2, pool=40, population=5, generations=1, **settings)
        found = attack(world.oracle(Access.BLACK_BOX), prior, labels, 7, AttackContext())
        pool = view.sample(Noise(7, torch.arange(40)).of("pool"))
        p = F.leaky_relu(pool, 5.0)
        mean, std = p.mean(0), p.std(0, correction=0)
        with torch.no_grad():
            scores = world.target(view.decode(pool)).softmax(1)
        for label in range(3):
            own = scores[:, label].topk(5).indices
            confidence = scores[own, label]
            noise = Noise(7, torch.tensor([label])).of("mirror_bb").of("generation", 0)
            chosen = torch.searchsorted((confidence / confidence.sum()).cumsum(0), noise.of("parents").uniform(8)[0])
            u = noise.of("crossover").uniform(4, 8)[0]
            mutates = noise.of("mutates").uniform(4, 8)[0] < 0.1
            rows = 1 if settings else 4
            added = 0.1 * std * (2 * noise.of("mutation").uniform(rows, 8)[0] - 1)
            children = []
            for child in range(4):
                a, b = chosen[child], chosen[child + 4]
                fa, fb = (confidence[a].log(), confidence[b].log()) if settings else (confidence[a], confidence[b])
                gene = torch.where(u[child] < fa / (fa + fb), p[own[a]], p[own[b]])
                gene = gene + mutates[child] * added[child % rows]
                children.append(gene.clamp(mean - std, mean + std))
            whole = torch.stack([p[own[0]], *children])
            with torch.no_grad():
                after = world.target(view.decode(F.leaky_relu(whole, 0.2))).softmax(1)[:, label]
            ranked = F.leaky_relu(whole[after.argsort(descending=True)], 0.2)
            second = next(row for row in ranked if not torch.allclose(row, ranked[0]))  # clones are left out
            wanted = torch.stack([ranked[0], second])
            torch.testing.assert_close(found.latents[2 * label : 2 * label + 2], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"crossover": "legacy", "mutation_noise": "shared"}])
def test_the_elite_is_never_lost(settings: dict[str, str]) -> None:
    world = World(6)
    values = []
    for generations in range(0, 12, 2):
        found = attack_on(world, "mirror_bb", images=1, pool=40, population=8, generations=generations, **settings)
        with torch.no_grad():
            values.append(log_odds(world.target(found.images).softmax(1), found.labels))
    series = torch.stack(values)
    assert (series.diff(dim=0) >= -1e-5).all() and (series[-1] > series[0]).any()


def test_costs_of_the_genetic_algorithm() -> None:
    world = World(6)
    assert MirrorBlackBox().cost(world.prior) == (99_900, 0, 100_000)
    oracle = world.oracle(Access.BLACK_BOX, budget=40 + 17)
    attack_on(world, "mirror_bb", oracle=oracle, pool=40, population=9, generations=5)
    assert oracle.queries.tolist() == [16] * 6 and oracle.shared_queries == 40


# --- parts


def test_log_odds_order_as_p_does_and_do_not_saturate() -> None:
    logits = torch.tensor([[30.0, 0, 1], [40.0, 0, 1], [0.0, 0, 0], [2.0, 0, 0]])
    p, y = logits.softmax(1), torch.zeros(4, dtype=torch.int64)
    assert p[0, 0] == p[1, 0] == 1.0
    wanted = logits[:, 0] - logits[:, 1:].logsumexp(1)
    torch.testing.assert_close(log_odds(p, y), wanted, rtol=1e-5, atol=1e-5)
    assert log_odds(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), y[:2]).isfinite().all()


def test_the_best_distinct_members() -> None:
    z = torch.tensor([[[1.0], [1.0], [2.0], [3.0]], [[4.0], [4.0], [4.0], [4.0]]])
    fitness = torch.tensor([[5.0, 5.0, 1.0, 2.0], [1.0, 3.0, 2.0, 0.0]])
    found, values = best_distinct(z, fitness, 2)
    assert found[0, :, 0].tolist() == [1.0, 3.0] and values[0].tolist() == [5.0, 2.0]
    assert found[1, :, 0].tolist() == [4.0, 4.0] and values[1, 0] == 3.0


def test_fitness_asks_once_for_each_member_in_batches_of_the_workspace() -> None:
    world, y = World(6), torch.tensor([4, 1])
    oracle = world.oracle(Access.BLACK_BOX)
    z = world.prior.sample(Noise(0, torch.arange(10))).reshape(2, 5, -1)
    narrow = Fitness(oracle, world.prior, y, 5, workspace(world, 3))(z)
    torch.testing.assert_close(narrow, Fitness(oracle, world.prior, y, 5, workspace(world))(z))
    assert oracle.queries.tolist() == [0, 10, 0, 0, 10, 0]
    with torch.no_grad():
        p = world.target(world.prior.decode(z[0])).softmax(1)[:, 4]
    torch.testing.assert_close(narrow[0].sigmoid(), p)


# --- what is refused


@pytest.mark.parametrize("name", ["mirror", "mirror_bb"])
def test_priors_that_cannot_serve_all_identities_are_refused(name: str) -> None:
    world = World(4)
    conditional = World(4).prior
    conditional.conditional = True
    for prior in (PublicImages(world.public().images), conditional):
        with pytest.raises(UserError, match=f"{name} scores one pool .* --prior dcgan"):
            quick(name).needs(prior)
    with pytest.raises(UserError, match="has no w space"):
        quick(name, space="w").needs(world.prior)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"images": 0}, {"images": 9}, {"pool": 4}):
        with pytest.raises(UserError, match="mirror: 1 <= images <= candidates <= pool"):
            Mirror(**wrong)
    for wrong in ({"images": 0, "elite": 0, "population": 0}, {"images": 1001}, {"elite": 1000}, {"elite": -1}):
        with pytest.raises(UserError, match="mirror_bb: 1 <= images <= population <= pool"):
            MirrorBlackBox(**wrong)
    with pytest.raises(UserError, match="mutation is a probability"):
        MirrorBlackBox(mutation=1.5)
