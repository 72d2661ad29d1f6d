"""Laws of the attack lokt: labels only, counted in closed form; the inversion never asks the target."""

from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import ToldPrior, World, attack_on, quick, workspace

from mibench.attacks import lokt
from mibench.attacks.lokt import LOKT
from mibench.core import Access, AttackContext, Cost, Oracle, augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SHORT: dict[str, Any] = {"steps": 3, "samples": 40, "surrogates": ("cnn",), "epochs": 1}


def test_only_the_samples_are_asked_and_only_for_labels() -> None:
    world = World(4)
    events: list[str] = []

    class Watched(Oracle):
        def labels(self, x: Tensor, labels: Tensor | None) -> Tensor:
            assert labels is None  # shared: whom the attack is after does not matter
            events.append("asked")
            return super().labels(x, labels)

    oracle = Watched(world.target, Access.LABEL_ONLY, 4)
    prior = ToldPrior(world.prior)
    decode = prior.decode
    drawn: list[int] = []

    def watched(z: Tensor, y: Tensor | None = None) -> Tensor:
        if z.requires_grad:
            events.append("inverting")
        elif "inverting" not in events:
            drawn.extend(y.tolist())  # type: ignore[union-attr]
        return decode(z, y)

    prior.decode = watched  # type: ignore[method-assign]
    for steps in (3, 9):
        events.clear()
        drawn.clear()
        before = oracle.shared_queries
        attack = quick("lokt", **SHORT | {"steps": steps})
        attack(oracle, prior, torch.tensor([2, 0]), 0, AttackContext(batch=16))
        assert "asked" not in events[events.index("inverting") :] and events.count("inverting") == steps
        assert oracle.shared_queries - before == 40 and int(oracle.queries.sum()) == 0
        assert oracle.shared_gradients == 0 and int(oracle.gradient_images.sum()) == 0
        assert torch.bincount(torch.tensor(drawn[:40])).tolist() == [10] * 4  # every class alike


def test_the_published_cost() -> None:
    """500 labels for each of 1000 classes, none during the inversion."""
    attack = LOKT()
    assert attack.cost(World(3).prior) == Cost(0, 0, 500_000)
    assert attack.surrogates == ("densenet121", "densenet161", "densenet169")


def test_the_surrogates_learn_the_labels_the_target_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    world, seen = World(4), {}

    def train_surrogates(
        name: str, architectures: Any, images: Tensor, answers: Tensor, lesson: Any, *rest: Any
    ) -> Any:
        seen.update(images=images, answers=answers, lesson=lesson, augment=rest[3])
        return [world.target]

    monkeypatch.setattr(lokt, "train_surrogates", train_surrogates)
    attack_on(world, "lokt", batch=9, **SHORT)
    with torch.no_grad():
        said = world.target(seen["images"].float() / 255).argmax(dim=1)
    assert torch.equal(seen["answers"].argmax(dim=1), said) and bool((seen["answers"].sum(dim=1) == 1).all())
    assert seen["answers"].unique().tolist() == [0.0, 1.0]
    assert (seen["lesson"].schedule, seen["lesson"].momentum, seen["lesson"].batch) == ("cosine", 0.9, 9)
    x, noise = torch.rand(3, 3, 8, 8), Noise(1, torch.arange(3))
    assert torch.equal(seen["augment"](x, noise), augment.view(x, noise, True, jitter=0.5))  # ColorJitter(p=0.5)


def test_lokt_takes_the_published_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam lr .1 on the sum over two views of the surrogates' mean margin."""
    world = World(5)
    surrogates = [World(5, sharpness=sharpness).target for sharpness in (1.0, 3.0)]
    monkeypatch.setattr(lokt, "train_surrogates", lambda *given: surrogates)
    prior, y = ToldPrior(world.prior), torch.tensor([3, 3, 0, 0])
    noise = Noise(5, torch.tensor([6, 7, 0, 1])).of("lokt")

    def run(steps: int) -> Tensor:
        attack = LOKT(images=2, steps=steps, samples=5)
        return attack(world.oracle(Access.LABEL_ONLY), prior, torch.tensor([3, 0]), 5, AttackContext()).latents

    z, m, v = noise.of("start").normal(7), torch.zeros(4, 7), torch.zeros(4, 7)
    for step in range(3):
        point = z.clone().requires_grad_()
        loss = torch.zeros(())
        for view in range(2):
            x = augment.view(prior.decode(point, y), noise.of("step", step).of("view", view), True)
            for surrogate in surrogates:
                logits = surrogate(x)
                for i in range(4):
                    loss = loss + (max(logits[i, k] for k in range(5) if k != y[i]) - logits[i, y[i]]) / 2
        g = torch.autograd.grad(loss, point)[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        z = z - 0.1 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 60e-8)
        torch.testing.assert_close(run(step + 1), z, rtol=0, atol=1e-4)


@pytest.mark.parametrize("budget", [0, 1, 2, 17])
def test_a_budget_shortens_the_samples(budget: int) -> None:
    world = World(4)
    oracle = world.oracle(Access.LABEL_ONLY, budget)
    found = attack_on(world, "lokt", oracle=oracle, work=workspace(world), **SHORT)
    assert oracle.shared_queries == (budget if budget >= 2 else 0)  # one image teaches nobody
    assert bool(found.failed.all()) == (budget < 2) and bool(found.failed.any()) == (budget < 2)


@pytest.mark.parametrize("setting", [{"images": 0}, {"views": 0}, {"epochs": 0}, {"samples": 1}, {"surrogates": ()}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"lokt: .*{next(iter(setting))}"):
        quick("lokt", **setting)
