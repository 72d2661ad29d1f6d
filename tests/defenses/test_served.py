"""Laws of the defenses that change what is told and nothing else: simplices, budgets, repeatability, optimality."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours

from mibench import models
from mibench.core import Access, Oracle, Split, Step, to_float
from mibench.defenses.noise import Noisy, ScoreNoise, laplace
from mibench.defenses.parts.scores import normalised
from mibench.defenses.rounding import Rounded, Rounding
from mibench.defenses.ssd import Shield, StealthyShield, nearest
from mibench.defenses.temperature import Flattened, Temperature
from mibench.defenses.truncate import TopScores, Truncate
from mibench.models.base import Classifier
from mibench.models.served import Served
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

K, SIDE = 6, 16
NAN, INF = float("nan"), float("inf")
DEFENSES = [
    Truncate(2),
    Rounding(1),
    Temperature(3.0),
    ScoreNoise(0.1),
    ScoreNoise(0.1, "gaussian"),
    StealthyShield(1.0),
]
ZERO = [Truncate(0), Rounding(0), Temperature(1.0), ScoreNoise(0.0), StealthyShield(0.0)]


def probs(n: int = 400, k: int = K, sharp: float = 2.0, seed: int = 0) -> Tensor:
    return torch.softmax(sharp * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)), dim=1)


def noise(n: int = 400, seed: int = 3) -> Noise:
    return Noise(seed, torch.arange(n))


def network(k: int = 3) -> Classifier:
    torch.manual_seed(0)
    model = models.build("cnn", k, (3, SIDE, SIDE)).eval()
    nn.init.normal_(model.head.weight)
    return model


def served(defense: Any, model: Classifier) -> Classifier:
    torch.manual_seed(1)
    memory = defense.memory(model.head.out_features, (3, SIDE, SIDE)) or nn.Module()
    found = defense.deploy(model, memory).eval()
    assert isinstance(found, Classifier)
    return found


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_what_is_told_is_a_distribution_and_one_answer_for_one_image(defense: Any) -> None:
    model, x = network(), to_float(colours(30, SIDE).images)
    service = served(defense, model)
    assert isinstance(service, Served)
    told = service(x).softmax(1)
    assert (told >= 0).all()
    torch.testing.assert_close(told.sum(1), torch.ones(30))
    assert not torch.allclose(told, model(x).softmax(1), atol=1e-3)
    again = torch.cat([service(x[i : i + 1]) for i in range(30)]).softmax(1)
    torch.testing.assert_close(again, told, atol=1e-5, rtol=1e-4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(service(x[order]).softmax(1), told[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_who_holds_the_weights_sees_through_it(defense: Any) -> None:
    model, x = network(), to_float(colours(6, SIDE).images)
    service, y = served(defense, model), torch.zeros(6, dtype=torch.long)
    white = Oracle(service, Access.WHITE_BOX, 3)
    torch.testing.assert_close(white.logits(x, y), model(x))
    torch.testing.assert_close(white.probs(x, y), model(x).softmax(1))
    black = Oracle(service, Access.BLACK_BOX, 3)
    torch.testing.assert_close(black.probs(x, y), service(x).softmax(1))


@pytest.mark.parametrize("defense", ZERO, ids=str)
def test_zero_is_the_model_itself(defense: Any) -> None:
    model = network()
    assert served(defense, model) is model


def test_services_stack_in_order() -> None:
    """Rounding after flattening is not flattening after rounding."""
    model, x = network(), to_float(colours(9, SIDE).images)
    p = model(x).softmax(1)
    flat_first = served(Rounding(1), served(Temperature(2.0), model))
    expected = torch.softmax(p.log() / 2, dim=1).mul(10).round()
    torch.testing.assert_close(flat_first(x).softmax(1), expected / expected.sum(1, keepdim=True))
    round_first = served(Temperature(2.0), served(Rounding(1), model))
    assert not torch.allclose(round_first(x).softmax(1), flat_first(x).softmax(1))


# --- truncation, rounding, temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, K, 50])
def test_truncation_keeps_the_largest_in_proportion(k: int) -> None:
    p = probs()
    told = TopScores(k)(p, noise())
    kept = told > 0
    assert (kept.sum(1) == min(k, K)).all() and torch.equal(told.argmax(1), p.argmax(1))
    assert (torch.where(kept, p, 2.0).amin(1) >= torch.where(kept, -1.0, p).amax(1)).all(), "the largest ones"
    ratio = (told / p)[kept].reshape(len(p), -1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    torch.testing.assert_close(told.sum(1), torch.ones(len(p)))


def test_rounding_by_hand() -> None:
    p = torch.tensor([[0.62, 0.26, 0.12], [0.449, 0.441, 0.11], [0.96, 0.03, 0.01]])
    told = Rounded(1)(p, noise(3))
    torch.testing.assert_close(told, torch.tensor([[0.6, 0.3, 0.1], [4 / 9, 4 / 9, 1 / 9], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(Rounded(2)(p, noise(3)), p.mul(100).round() / p.mul(100).round().sum(1, keepdim=True))
    # Thirty classes of about .03: nothing is left of them at one decimal, and the argmax is told.
    many = probs(20, 30, 0.1)
    assert torch.equal(Rounded(1)(many, noise(20)), F.one_hot(many.argmax(1), 30).float())


def test_rounding_tells_few_values_and_the_argmax_stays_among_the_largest() -> None:
    p = probs()
    told = Rounded(1)(p, noise())
    assert torch.equal(told.gather(1, p.argmax(1, keepdim=True))[:, 0], told.amax(1))
    assert len(told.unique()) < 100 < len(p.unique())


def test_nothing_left_goes_to_the_argmax_of_the_order() -> None:
    scores, order = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[-1.0, -0.5], [9.0, 0.0]])
    assert torch.equal(normalised(scores, order), torch.tensor([[0.0, 1.0], [0.25, 0.75]]))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = torch.randn(50, K, generator=torch.Generator().manual_seed(0)) * 3
    told = Flattened(temperature)(logits.softmax(1), noise(50))
    torch.testing.assert_close(told, torch.softmax(logits / temperature, dim=1))
    assert torch.equal(Flattened(3.0)(torch.tensor([[0.0, 1.0]]), noise(1)), torch.tensor([[0.0, 1.0]]))


# --- noise ----------------------------------------------------------------------------------------------------------


def test_laplace_noise_has_the_laplace_distribution() -> None:
    drawn = laplace(noise(4000), 5)
    assert drawn.isfinite().all() and stats.kstest(drawn.flatten().numpy(), "laplace").pvalue > 1e-3
    assert torch.corrcoef(drawn.T).sub(torch.eye(5)).abs().max() < 5 / 4000**0.5


@pytest.mark.parametrize(("law", "deviation"), [("laplace", 2**0.5), ("gaussian", 1.0)])
def test_the_measured_scale_of_the_noise(law: Any, deviation: float) -> None:
    """Two classes at .5: noise that small is not clipped, and told / (1 - told) gives it back to first order."""
    n, scale = 20_000, 0.001
    told = Noisy(scale, law)(torch.full((n, 2), 0.5), noise(n))
    difference = (told[:, 0] - told[:, 1]).double()  # (n_0 - n_1) scale, to first order
    assert float(difference.std()) == pytest.approx(scale * deviation * 2**0.5, rel=0.03)
    assert abs(float(difference.mean())) < 4 * scale * deviation * 2**0.5 / n**0.5


def test_noisy_scores_are_the_clipped_sum() -> None:
    p = probs()
    told, draw = Noisy(0.3, "laplace")(p, noise()), laplace(noise(), K)
    expected = (p + 0.3 * draw).clamp(min=0)
    assert (expected == 0).any()
    torch.testing.assert_close(told, expected / expected.sum(1, keepdim=True))
    assert torch.equal(told.argmax(1), (p + 0.3 * draw).argmax(1))
    # Two classes and much noise: often both are clipped away.
    pair, drawn = torch.full((400, 2), 0.5), 50 * laplace(noise(), 2) + 0.5
    gone = (drawn <= 0).all(1)
    assert gone.sum() > 50
    assert torch.equal(Noisy(50.0, "laplace")(pair, noise())[gone], F.one_hot(drawn[gone].argmax(1), 2).float())


@pytest.mark.parametrize("defense", [ScoreNoise(0.2), StealthyShield(1.0)], ids=str)
def test_the_key_is_the_targets_own_and_drawn_from_the_seed(defense: Any) -> None:
    x, model, answers = to_float(colours(30, SIDE).images), network(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        memory = defense.memory(3, (3, SIDE, SIDE))
        if isinstance(defense, StealthyShield):
            memory.q.copy_(probs(3, 3))
        answers.append(defense.deploy(model, memory)(x))
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert not any("key" in name for name in defense.deploy(model, memory).state_dict())


# --- the stealthy shield --------------------------------------------------------------------------------------------


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
    ("name", "settings"),
    [
        ("truncate", {"k": -1}),
        ("rounding", {"digits": -1}),
        ("rounding", {"digits": 8}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": -1.0}),
        ("temperature", {"temperature": NAN}),
        ("temperature", {"temperature": INF}),
        ("noise", {"scale": -0.1}),
        ("noise", {"scale": NAN}),
        ("noise", {"scale": INF}),
        ("ssd", {"eps": -0.5}),
        ("ssd", {"eps": NAN}),
        ("ssd", {"eps": INF}),
        ("ssd", {"temperature": 0.0}),
        ("ssd", {"temperature": NAN}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        registry.load("defenses", name)(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", name, settings=settings)
