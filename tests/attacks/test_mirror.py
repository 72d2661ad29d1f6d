"""MIRROR: the schedule, one Adam step, the box, the pick, against formulas."""

import math

import pytest
import torch
from attacking import Activated
from torch import Tensor
from torch.nn import functional as F
from worlds import World, attack_on, quick

from mibench.attacks.mirror import Mirror, overlapping
from mibench.attacks.parts.evolution import log_odds
from mibench.attacks.parts.pspace import PSpace, RampedAdam, ramp, searched
from mibench.core import AttackContext
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def test_the_schedule() -> None:
    """0 at both ends, half way up at 2.5 %, full from 5 % to 75 %, half at 87.5 %."""
    golden = {0.0: 0.0, 0.025: 0.5, 0.05: 1.0, 0.4: 1.0, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}
    for t, wanted in golden.items():
        assert ramp(t) == pytest.approx(wanted, abs=1e-12)
    assert ramp(0.95) == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.2))


def test_the_last_step_stands_still_and_the_first_does_not() -> None:
    """Rates of 20 steps by the authors' adjust_lr, epochs 1 ... 20."""
    point = torch.zeros(1, 2).requires_grad_()
    ramps = [ramp((step + 1) / 20) for step in range(20)]
    optimizer = RampedAdam(point, 0.25, ramps, PSpace(1.0, torch.zeros(2), torch.full((2,), 100.0)), eps=8e-8)
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


@pytest.mark.parametrize("settings", [{"images": 0}, {"images": 9}, {"pool": 4}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="mirror: 1 <= images <= candidates <= pool"):
        Mirror(**settings)
