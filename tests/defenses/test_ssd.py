"""The stealthy shield: its budget, its optimum against a general solver, its classes and means."""

from typing import Any

import numpy as np
import pytest
import torch
from defending import SIDE, assert_refused, network, noise, probs
from scipy import optimize, stats
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours

from mibench.core import Split, Step, to_float
from mibench.defenses.ssd import Shield, StealthyShield, nearest
from mibench.models.base import Classifier
from mibench.runtime.engine import resolve


def entropy(p: Tensor) -> Tensor:
    return torch.distributions.Categorical(probs=p).entropy()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - p * q.log()).sum(1)


@pytest.mark.parametrize("eps", [0.05, 0.5, 1.5])
@pytest.mark.parametrize("k", [3, 100])
def test_the_shield_keeps_its_budget_and_comes_closer(eps: float, k: int) -> None:
    f, q = probs(300, k, 6.0), probs(300, k, 3.0, seed=1)
    budget = eps * entropy(f)
    p = nearest(f, q, budget)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(300), atol=1e-6, rtol=0)
    moved = (p - f).abs().sum(1)
    assert (moved <= budget + 1e-5).all()
    away = (f - q).abs().sum(1) > budget
    assert away.any()
    torch.testing.assert_close(moved[away], budget[away], atol=1e-5, rtol=1e-4)  # all of it is spent
    torch.testing.assert_close(p[~away], q[~away])  # q itself where it can be reached
    assert (divergence(p, q) <= divergence(f, q) + 1e-6).all()
    assert (divergence(p, q)[away] < divergence(f, q)[away]).double().mean() > 0.99


def solved(f: np.ndarray, q: np.ndarray, budget: float) -> np.ndarray:
    """The convex problem given to a general solver: p = f + up - down, up and down >= 0, sum(up) = sum(down) <= c/2."""
    k = len(f)

    def loss(v: np.ndarray) -> float:
        p = np.clip(f + v[:k] - v[k:], 1e-12, None)
        return float((p * np.log(p / q)).sum())

    def slope(v: np.ndarray) -> np.ndarray:
        g = np.log(np.clip(f + v[:k] - v[k:], 1e-12, None) / q) + 1
        return np.concatenate([g, -g])

    balance = np.concatenate([np.ones(k), -np.ones(k)])
    found = optimize.minimize(
        loss,
        np.zeros(2 * k),
        jac=slope,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
        bounds=[(0, None)] * k + [(0, one) for one in f],
        constraints=[
            {"type": "eq", "fun": lambda v: balance @ v, "jac": lambda v: balance},
            {"type": "ineq", "fun": lambda v: budget - v.sum(), "jac": lambda v: -np.ones(2 * k)},
        ],
    )
    return f + found.x[:k] - found.x[k:]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_shield_equals_a_general_convex_solver(k: int) -> None:
    f, q = probs(25, k, 1.5).double(), probs(25, k, 1.5, seed=1).double()
    budget = torch.linspace(0.02, 0.9, 25).double() * entropy(f)
    p = nearest(f.float(), q.float(), budget.float())
    for mine, a, b, c in zip(p.double(), f, q, budget, strict=True):
        theirs = torch.from_numpy(solved(a.numpy(), b.numpy(), float(c)))
        assert (theirs - a).abs().sum() <= c + 1e-6 and abs(theirs.sum() - 1) < 1e-6, "the solver is feasible"
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=0)
        assert divergence(mine[None], b[None]) <= divergence(theirs.clamp(min=1e-12)[None], b[None]) + 1e-6


def test_the_shield_by_hand() -> None:
    """f = (.8, .1, .1), q = (.2, .6, .2), budget .4: .2 is taken from the first; .2 q-levelled over the others.

    Upper level b = .6 / .2; below, classes 2 and 3 together have ratios 1/6 and 1/2: a (.6) = .1 + .2 gives a = 1/2, at
    which class 3 stands at .1 = a q_3 exactly.
    """
    p = nearest(torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([[0.2, 0.6, 0.2]]), torch.tensor([0.4]))
    torch.testing.assert_close(p, torch.tensor([[0.6, 0.3, 0.1]]))
    still = nearest(torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([[0.2, 0.6, 0.2]]), torch.tensor([0.0]))
    torch.testing.assert_close(still, torch.tensor([[0.8, 0.1, 0.1]]))


def test_extreme_scores_stay_probabilities() -> None:
    """A sure network (one-hot: no entropy, no budget), scores of 0, and means as small as the floor."""
    sure = torch.eye(4)
    q = torch.full((4, 4), 1e-12) + torch.eye(4).roll(1, 0)
    q = q / q.sum(1, keepdim=True)
    assert torch.equal(nearest(sure, q, entropy(sure).abs() * 0), sure)
    f = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(4, 4)
    p = nearest(f, q, torch.full((4,), 0.3))
    assert p.isfinite().all() and (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(4))
    assert ((p - f).abs().sum(1) <= 0.3 + 1e-5).all()


def test_the_class_is_drawn_from_the_softmax_of_the_scores() -> None:
    """f = (.5, .3, .2), T = .5 over 20,000 images: softmax of (1, .6, .4), not of logits."""
    n, f = 20_000, torch.tensor([0.5, 0.3, 0.2])
    drawn = Shield(probs(3, 3), 1.0, 0.5).label(f.expand(n, 3), noise(n))
    expected = torch.softmax(f / 0.5, 0) * n
    assert (
        stats.chisquare(
            drawn.bincount(minlength=3).numpy(), expected.double().numpy() * n / float(expected.double().sum())
        ).pvalue
        > 1e-3
    )


def test_a_low_temperature_takes_the_largest_score_and_k_classes_need_a_lower_one() -> None:
    """e^(1/T) / (e^(1/T) + K - 1) bounds the chance of the argmax; T = 1 / ln(9 K) makes it at least .9."""
    k, n = 50, 4000
    sure = F.one_hot(torch.zeros(n, dtype=torch.long), k).float()
    drawn = Shield(probs(k, k), 1.0, 1 / float(torch.tensor(9.0 * k).log())).label(sure, noise(n))
    assert stats.binomtest(int((drawn == 0).sum()), n, 9 * k / (9 * k + k - 1)).pvalue > 1e-3
    assert (Shield(probs(k, k), 1.0, 0.01).label(sure, noise(n)) == 0).all()


def finished(
    defense: StealthyShield, split: Split, precision: str = "fp32", k: int = 3
) -> tuple[nn.Module, Classifier]:
    model = network(k)
    memory = defense.memory(k, (3, SIDE, SIDE))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = Step(model, memory, optimizer, noise(len(split)), 1, 1, resolve("cpu", precision))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert defense.finish(step, split) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return memory, model


@pytest.mark.parametrize("count", [36, 300])
def test_the_memory_holds_the_mean_scores_of_each_class(count: int) -> None:
    """300 images are more than one chunk."""
    split = colours(count, SIDE)
    memory, model = finished(StealthyShield(), split)
    told = model(to_float(split.images)).softmax(1)
    expected = torch.stack([told[split.labels == y].mean(0) for y in range(3)])
    torch.testing.assert_close(memory.q, expected, atol=1e-6, rtol=1e-4)


def test_a_class_without_images_has_uniform_means_and_none_is_zero() -> None:
    memory, _ = finished(StealthyShield(), colours(12, SIDE), k=5)
    torch.testing.assert_close(memory.q[3:], torch.full((2, 5), 0.2))
    assert (memory.q > 0).all()
    low, _ = finished(StealthyShield(), colours(12, SIDE), "bf16")
    assert low.q.dtype == torch.float32
    torch.testing.assert_close(low.q.sum(1), torch.ones(3))


def test_a_shielded_service_is_its_equation() -> None:
    defense, split = StealthyShield(0.8, 0.2), colours(36, SIDE)
    memory, model = finished(defense, split)
    memory.q.copy_(probs(3, 3))  # far from what an untrained network says, so that there is something to move
    service, x = defense.deploy(model, memory), to_float(split.images)
    told, f = service(x).softmax(1), model(x).softmax(1)
    budget = 0.8 * entropy(f)
    fits = [(nearest(f, memory.q[y].expand(36, 3), budget) - told).abs().amax(1) < 1e-5 for y in range(3)]
    assert torch.stack(fits).any(0).all(), "towards one of the classes"
    assert all(fit.any() for fit in fits), "and not always the same"
    assert ((told - f).abs().sum(1) <= budget + 1e-5).all()


@pytest.mark.parametrize(
    "settings",
    [{"eps": -0.5}, {"eps": float("nan")}, {"eps": float("inf")}, {"temperature": 0.0}, {"temperature": float("nan")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("ssd", settings)
