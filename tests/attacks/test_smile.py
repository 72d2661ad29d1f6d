"""Laws of the attack smile: who is asked when, where latents may be, what the stages do alone."""

from typing import Any

import pytest
import torch
from attacking import Activated, accuracy
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import World, attack_on, quick, workspace

from mibench.attacks import smile
from mibench.attacks.parts.evolution import log_odds
from mibench.attacks.parts.experts import Experts
from mibench.attacks.parts.pspace import PSpace, ramp
from mibench.attacks.smile import Smile
from mibench.core import Access, AttackContext, BudgetExhausted, Oracle, to_float, to_uint8
from mibench.plugins import registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SMALL: dict[str, Any] = {
    "pool": 60,
    "people": 30,
    "embedding_epochs": 1,
    "width": 16,
    "epochs": 2,
    "steps": 8,
    "queries": 12,
    "box": 1.0,
    "final_box": 1.7,
    "sigma": 0.3,
}


def test_the_published_settings() -> None:
    """run_SMILE.sh, the README's commands and the argument defaults of the authors' code at commit 0c695e1."""
    attack = registry.configure("attacks", "smile", "paper").plugin
    assert attack == Smile() and attack.cost(World(3).prior) == (1000, 0, 2500)
    assert (attack.experts, attack.temperature, attack.ce, attack.diversity) == (3, 0.5, 0.15, 10.0)
    assert (attack.beta, attack.top, attack.epochs, attack.batch, attack.lr) == (0.9, 10, 200, 128, 1e-3)
    assert (attack.steps, attack.rate, attack.box, attack.sigma, attack.final_box) == (201, 0.2, 1.0, 1.0, 1.7)
    legacy = registry.configure("attacks", "smile", "legacy").plugin
    assert (attack.reweight, legacy.reweight) == ("sample", "batch")


class LinearExperts(Experts):
    """The target's own answers, as two experts that differ by a constant."""

    def __init__(self, world: World) -> None:
        nn.Module.__init__(self)
        self.world = world

    def forward(self, features: Tensor) -> Tensor:
        logits = self.world.target.head(features)
        return torch.stack([logits, logits + 1.0])


@pytest.mark.parametrize("kind", ["z", "w"])
def test_the_descent_takes_the_published_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam .2 ramped on CE of the experts' mean, from the pool's best, clipped to mean +- 1 std after each step."""
    world, y = World(5), torch.tensor([3, 0])
    prior = Activated(world) if kind == "w" else world.prior
    space = prior.space("w") if kind == "w" else prior
    monkeypatch.setattr(Smile, "_surrogate", lambda self, *given: (world.target, LinearExperts(world)))
    pool = space.sample(Noise(4, torch.arange(50)).of("pool"))
    box = PSpace.around(pool, space.slope)
    with torch.no_grad():
        scores = world.target(to_float(to_uint8(space.decode(pool)))).softmax(1)
    z, m, v = pool[scores[:, y].argmax(0)], torch.zeros(2, 7), torch.zeros(2, 7)
    steps = 9
    for step in range(steps):
        point = z.clone().requires_grad_()
        loss = F.cross_entropy(world.target(space.decode(point)) + 0.5, y, reduction="sum")
        g = torch.autograd.grad(loss, point)[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 0.2 * ramp(step / (steps - 1))
        z = z - rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        p = box.features_at(z)
        z = box.leave(torch.maximum(torch.minimum(p, box.mean + box.std), box.mean - box.std))
    attack = Smile(pool=50, steps=steps, queries=0)
    found = attack(world.oracle(Access.BLACK_BOX), prior, y, 4, workspace(world))
    torch.testing.assert_close(found.latents, z.detach(), rtol=0, atol=1e-4)
    assert not found.failed.any()


def test_the_surrogate_sees_the_pools_stored_images_and_the_targets_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    world, seen = World(6), {}
    teach = smile.LongTail.teach

    def watched(self: smile.LongTail, experts: Any, features: Tensor, log_p: Tensor, seed: int, work: Any) -> Any:
        seen.update(lesson=self, features=features, log_p=log_p)
        return teach(self, experts, features, log_p, seed, work)

    monkeypatch.setattr(smile.LongTail, "teach", watched)
    one = attack_on(world, "smile", torch.tensor([1, 4]), **SMALL, reweight="batch")
    pool = world.prior.sample(Noise(0, torch.arange(60)).of("pool"))
    with torch.no_grad():
        said = world.target(to_float(to_uint8(world.prior.decode(pool)))).log_softmax(1)
    torch.testing.assert_close(seen["log_p"], said, rtol=1e-4, atol=1e-5)
    assert len(seen["features"]) == 60 and seen["lesson"].reweight == "batch" and seen["lesson"].epochs == 2
    assert one.images.isfinite().all()
    before = {name: value for name, value in seen.items() if name != "lesson"}
    attack_on(world, "smile", torch.tensor([5]), **SMALL)  # whom it is after does not matter
    assert all(torch.equal(value, seen[name]) for name, value in before.items())


def test_only_the_finish_asks_for_somebody_and_within_its_box() -> None:
    world, events = World(6), []

    class Watched(Oracle):
        def probs(self, x: Tensor, labels: Tensor | None) -> Tensor:
            events.append(None if labels is None else labels.tolist())
            return super().probs(x, labels)

    oracle = Watched(world.target, Access.BLACK_BOX, 6)
    found = attack_on(world, "smile", torch.tensor([2, 0]), oracle=oracle, **SMALL, start="surrogate")
    assert events == [None] + [[2, 2, 0, 0]] * 6  # 12 queries, six for each of two images
    pool = world.prior.sample(Noise(0, torch.arange(60)).of("pool"))
    mean, std = pool.mean(0), pool.std(0, correction=0)
    assert ((found.latents - mean).abs() <= 1.7 * std + 1e-6).all()
    assert ((found.latents - mean).abs() > 1.05 * std).any()
    alone = attack_on(world, "smile", torch.tensor([2, 0]), **SMALL | {"queries": 0})
    assert ((alone.latents - mean).abs() <= std + 1e-6).all()


def test_without_a_surrogate_the_es_starts_at_the_pools_best() -> None:
    """epochs = 0 needs no public image; its first query is the sample, clipped to the box."""
    world, y = World(6), torch.arange(6)
    work = AttackContext()
    pool = world.prior.sample(Noise(0, torch.arange(300)).of("pool"))
    with torch.no_grad():
        best = pool[world.target(world.prior.decode(pool)).softmax(1).argmax(0)]
    settings: dict[str, Any] = {"epochs": 0, "pool": 300, "images": 1, "start": "surrogate", "final_box": 1.7}
    first = attack_on(world, "smile", y, work=AttackContext(), **settings, queries=1)
    mean, std = pool.mean(0), pool.std(0, correction=0)
    torch.testing.assert_close(first.latents, best.clamp(mean - 1.7 * std, mean + 1.7 * std))
    nothing = attack_on(world, "smile", y, work=AttackContext(), **settings, queries=0)
    assert torch.equal(nothing.latents, best) and nothing.failed.all()
    with pytest.raises(UserError, match="smile learns from public images"):
        attack_on(world, "smile", y, work=work, queries=0)


def test_the_better_start_is_never_below_the_pools_best() -> None:
    world, y = World(8), torch.arange(8)
    pool = world.prior.sample(Noise(0, torch.arange(60)).of("pool"))
    with torch.no_grad():
        known = world.target(to_float(to_uint8(world.prior.decode(pool)))).softmax(1)
        floor = torch.stack([log_odds(known, torch.full((60,), k)).max() for k in range(8)])
        found = attack_on(world, "smile", y, images=1, **SMALL)
        after = log_odds(world.target(found.images).softmax(1), y)
    assert (after >= floor - 0.1).all()  # the pool's images are stored ones


def test_the_surrogate_alone_inverts_the_toy_world() -> None:
    """Nothing is asked for anybody; a latent moves from the pool's best to where the target itself is surer."""
    world = World(10)
    oracle = world.oracle(Access.BLACK_BOX, budget=500)
    transfer = attack_on(world, "smile", oracle=oracle, queries=0)
    assert int(oracle.queries.sum()) == 0 and oracle.shared_queries == 500
    assert accuracy(world, transfer) >= 0.9 and not transfer.failed.any()


@pytest.mark.parametrize("budget", [0, 1, 2, 30, 60, 61, 62, 65, 72, 99])
def test_a_budget_cuts_the_finish_first(budget: int) -> None:
    world = World(4)
    oracle = world.oracle(Access.BLACK_BOX, budget)
    if budget < 2:
        with pytest.raises(BudgetExhausted):
            attack_on(world, "smile", oracle=oracle, **SMALL)
        assert oracle.shared_queries == 0
        return
    attack_on(world, "smile", oracle=oracle, **SMALL)
    own = min(12, max(0, budget - 60)) // 2 * 2
    assert oracle.shared_queries == min(60, budget) and oracle.queries.tolist() == [own] * 4


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"images": 0}, "1 <= images <= pool"),
        ({"pool": 1, "images": 1}, "2 <= pool"),
        ({"experts": 1}, "needs diversity 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"sigma": 0.0}, "sigma"),
        ({"beta": 1.0}, "beta"),
        ({"top": 0}, "top"),
        ({"people": 1}, "people"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"smile: .*{told}"):
        quick("smile", **setting)
