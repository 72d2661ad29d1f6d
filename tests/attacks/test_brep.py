"""Laws of brep, in a world where a class is a ball: walk to its centre, grow to its radius, end in any case."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import World, attack_on, quick

from mibench.attacks.brep import BREP, expands, starts
from mibench.core import Access, AttackContext, Cost, Oracle, Prior
from mibench.plugins import capabilities, registry
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

DIM, WIDE = 3, 40.0


class Straight(Prior):
    """One pixel for each dimension of z: x = .5 + z / 40."""

    latent_dim, image_shape = DIM, (1, 1, DIM)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return (0.5 + z / WIDE)[:, None, None, :]


class Balls(nn.Module):
    """Class k is the ball of radius r_k around c_k, the last class is what lies outside; remembers what it saw."""

    def __init__(self, centres: Tensor, radii: Tensor) -> None:
        super().__init__()
        self.centres, self.radii = nn.Parameter(centres), nn.Parameter(radii)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = (x[:, 0, 0] - 0.5) * WIDE
        self.seen.append(z)
        inside = self.radii - (z[:, None] - self.centres).norm(dim=2)
        return torch.cat([inside, torch.zeros(len(z), 1)], dim=1)


CENTRES, RADII = torch.tensor([[0.7, -0.5, 0.2], [-2.0, 2.0, 2.0], [50.0, 0.0, 0.0]]), torch.tensor([2.5, 2.0, 1.0])
"""The third class lies where no latent of the pool does; the second one's centre lies outside the box of 1.5."""


def walk(labels: Tensor, seed: int = 0, batch: int = 256, **settings: Any) -> tuple[Any, Balls, Oracle]:
    target = Balls(CENTRES, RADII)
    oracle = Oracle(target, Access.LABEL_ONLY, 4)
    attack = BREP(**({"iterations": 150, "radius": 0.3, "init_pool": 500} | settings))
    return attack(oracle, Straight(), labels, seed, AttackContext(batch)), target, oracle


def sphere(points: Tensor) -> tuple[Tensor, float]:
    """Centre and radius of points on a sphere: |p|^2 = 2 p c + (R^2 - |c|^2) is linear in both."""
    known = torch.cat([2 * points, torch.ones(len(points), 1)], dim=1).double()
    solved = torch.linalg.lstsq(known, points.double().square().sum(1, keepdim=True)).solution[:, 0]
    return solved[:-1].float(), float((solved[-1] + solved[:-1].square().sum()) ** 0.5)


# --- rules


@pytest.mark.parametrize(("rule", "least"), [("all", 32), ("legacy", 29), ("majority_75", 25)])
def test_how_many_of_32_points_let_the_sphere_grow(rule: Any, least: int) -> None:
    count = torch.arange(33)
    inside = torch.arange(32)[:, None] < count[None, :]
    assert torch.equal(expands(inside, rule), count >= least)
    if rule == "legacy":  # the code's own words: the sum of +1 and -1 above .75 N
        assert torch.equal(expands(inside, rule), (2 * count - 32) > 0.75 * 32)


def test_starts_are_the_first_hits_of_each_label() -> None:
    seen, labels = torch.tensor([3, 1, 1, 0, 1, 3]), torch.tensor([1, 3, 2, 0])
    place, reached = starts(seen, labels, 3)
    assert place[0].tolist() == [1, 2, 4] and place[1].tolist() == [0, 5, 0] and place[3].tolist() == [3, 3, 3]
    assert reached.tolist() == [True, True, False, True]
    assert starts(seen, labels, 20)[0][0].tolist() == ([1, 2, 4] * 7)[:20]


# --- the walk


@pytest.mark.parametrize("rule", ["all", "legacy", "majority_75"])
def test_it_walks_to_the_middle_of_a_ball_and_its_sphere_grows_to_the_balls(rule: Any) -> None:
    found, target, _ = walk(torch.tensor([0]), rule=rule)
    start, _ = sphere(target.seen[2][:32])  # after the pool's two batches
    away = float((start - CENTRES[0]).norm())
    assert away > 1.0 and float((found.latents[0] - CENTRES[0]).norm()) < 0.5 * away and not found.failed[0]
    _, radius = sphere(target.seen[-2])
    assert 0.7 * 2.5 < radius < 1.5 * 2.5  # the last growth may overshoot by 1.3, more where points may be outside


def test_one_iteration_by_hand() -> None:
    """d = mean((s - 1) / 2 u), z' = clamp(z + min(R / 3, 3) d), kept if inside."""
    labels = torch.tensor([0, 1])
    for rule, iterations in (("all", 8), ("legacy", 8), ("majority_75", 8)):
        pool = Noise(4, torch.arange(500)).of("brep-pool").normal(DIM).clamp(-1.5, 1.5)
        distance = (pool[:, None] - CENTRES).norm(dim=2)
        seen = torch.where(distance[:, 0] < 2.5, 0, torch.where(distance[:, 1] < 2.0, 1, 3))
        overlap = (distance[:, 0] < 2.5) & (distance[:, 1] < 2.0)
        seen = torch.where(overlap, (RADII - distance).argmax(1), seen)
        for label in labels:
            z, radius, best = pool[(seen == label).nonzero()[0, 0]], torch.tensor(1.0), None
            noise = Noise(4, label[None]).of("brep")
            for number in range(iterations):
                u = noise.of("iteration", number).normal(32, DIM)[0]
                u = u / u.norm(dim=1, keepdim=True)
                inside = RADII - ((z + radius * u)[:, None] - CENTRES).norm(dim=2)
                s = torch.where((inside.argmax(1) == label) & (inside.amax(1) > 0), 1.0, -1.0)
                grows = {"all": s.sum() == 32, "legacy": s.sum() > 24, "majority_75": (s > 0).sum() > 24}[rule]
                step = min(float(radius) / 3, 3.0) / (1.3 if rule == "legacy" and grows else 1.0)
                proposal = (z + step * ((s - 1) / 2)[:, None].mul(u).mean(0)).clamp(-1.5, 1.5)
                room = RADII - (proposal - CENTRES).norm(dim=1)
                if int(room.argmax()) == label and room.max() > 0:
                    z = proposal
                    best = z if grows else best
                radius = radius * 1.3 if grows else radius
            found, _, _ = walk(labels, 4, rule=rule, radius=1.0, iterations=iterations)
            torch.testing.assert_close(found.latents[int(label)], z if best is None else best, rtol=0, atol=1e-5)
            assert bool(found.failed[int(label)]) == (best is None)


def test_a_radius_has_its_limit() -> None:
    _, free, _ = walk(torch.tensor([0]))
    _, held, _ = walk(torch.tensor([0]), max_radius=1.0)
    assert sphere(free.seen[-2])[1] > 1.3 and 1.0 / 1.3 < sphere(held.seen[-2])[1] <= 1.0


def test_a_step_is_never_longer_than_3() -> None:
    """A huge sphere is all outside: |d| <= 1, so that no proposal lies more than 3 away, and R / 3 would be 30."""
    _, target, _ = walk(torch.tensor([0]), radius=90.0, iterations=1, points=1, clip=15.0, init_pool=5000)
    point, proposal = target.seen[-2][0], target.seen[-1][0]
    start = target.seen[0]
    start = torch.cat(target.seen[:-2])
    own = start[((start - CENTRES[0]).norm(dim=1) < 2.5).nonzero()[0, 0]]
    assert float((point - own).norm()) == pytest.approx(90.0, abs=1e-3)
    assert float((proposal - own).norm()) == pytest.approx(3.0, abs=1e-3)


def test_a_class_that_is_never_seen_ends_as_a_failure_at_the_same_cost() -> None:
    labels = torch.tensor([0, 2])
    found, _, oracle = walk(labels, images=2, iterations=20)
    assert found.failed.tolist() == [False, False, True, True] and found.images.isfinite().all()
    assert oracle.queries.tolist() == [2 * 20 * 33, 0, 2 * 20 * 33, 0] and oracle.shared_queries == 500
    # It stays at a start of its own, in the box, another one for each restart.
    none, _, _ = walk(labels, images=2, iterations=0)
    assert torch.equal(found.latents[2:], none.latents[2:]) and none.failed.all()
    assert found.latents.abs().max() <= 1.5 and not torch.equal(found.latents[2], found.latents[3])


def test_a_centre_outside_the_box_is_approached_to_the_box() -> None:
    found, _, _ = walk(torch.tensor([1]))
    assert found.latents.abs().max() <= 1.5
    torch.testing.assert_close(found.latents[0], torch.tensor([-1.5, 1.5, 1.5]), rtol=0, atol=0.3)


def test_restarts_begin_at_different_hits() -> None:
    found, target, _ = walk(torch.tensor([0, 1]), images=3, iterations=0)
    pool = torch.cat(target.seen)
    for label in (0, 1):
        own = found.latents[3 * label : 3 * label + 3]
        assert len(own.unique(dim=0)) == 3
        assert all(torch.isclose(pool, one, atol=1e-5).all(dim=1).any() for one in own)


def test_all_spheres_of_all_identities_are_one_forward() -> None:
    _, target, _ = walk(torch.tensor([0, 1, 2]), images=2, iterations=7, batch=32 * 6)
    assert [len(z) for z in target.seen][-14:] == [32 * 6, 6] * 7


# --- the attack


def test_presets_are_the_published_numbers_and_the_repositorys_switch() -> None:
    paper, legacy = (registry.configure("attacks", "brep", preset).plugin for preset in ("paper", "legacy"))
    assert paper == BREP() and paper.rule == "all" and legacy.rule == "legacy"
    assert (paper.points, paper.radius, paper.expansion, paper.clip) == (32, 2.0, 1.3, 1.5)
    assert paper.cost(World(2).prior) == Cost(*registry.card("attacks", "brep")["cost"])


@pytest.mark.parametrize(
    "settings",
    [
        {"images": 0},
        {"points": 0},
        {"radius": 0.0},
        {"clip": 0.0},
        {"expansion": 1.0},
        {"init_pool": 0},
        {"rule": "most"},
        {"max_radius": "wide"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="brep"):
        quick("brep", **settings)


def test_priors_of_the_wrong_kind_are_refused() -> None:
    world = World(2)
    with pytest.raises(UserError, match="brep needs an unconditional generator"):
        capabilities.require(quick("brep"), PublicImages(world.public().images))
    world.prior.conditional = True
    with pytest.raises(UserError, match="brep needs an unconditional generator"):
        capabilities.require(quick("brep"), world.prior)


def test_it_sees_labels_only_and_is_confident_all_the_same() -> None:
    """From the pool's first hits, more steps make the target more confident, of which the attack knows nothing."""
    world = World(6)
    mean = []
    for iterations in (0, 60):
        found = attack_on(world, "brep", iterations=iterations, radius=0.5, images=3)
        with torch.no_grad():
            mean.append(float(world.target(found.images).softmax(1).gather(1, found.labels[:, None]).mean()))
    assert mean[1] > mean[0] + 0.1
