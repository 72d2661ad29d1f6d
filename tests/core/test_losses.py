"""Laws of the objectives: golden values worked out by hand, gradients, symmetry, and their edges."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import LinearPrior

from mibench.core import losses as objectives
from mibench.core.losses import cross_entropy, margin_reward, max_margin, nll, poincare, top_k_margin

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
ALL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **objectives.IDENTITY,
    "top_k_margin": lambda logits, y: top_k_margin(logits, y, 2),
    "margin_reward": lambda logits, y: margin_reward(logits.softmax(1), y),  # the oracle gives scores
}
GOLDEN = {
    "cross_entropy": (0.440190, 2.440190),
    "nll": (-2.0, 0.0),
    "max_margin": (-1.0, 2.0),
    "top_k_margin": (-1.5, 1.5),
    "poincare": (9.392612, 10.691895),
    "margin_reward": (-8.951678, -138.705524),
}


@pytest.mark.parametrize("name", sorted(ALL))
def test_golden_values(name: str) -> None:
    for y, expected in zip((0, 2), GOLDEN[name], strict=True):
        value = float(ALL[name](LOGITS, torch.tensor([y]))[0])
        assert value == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_every_identity_loss_has_a_golden_value() -> None:
    assert set(ALL) == set(GOLDEN)


def test_realism_of_both_critics() -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prior = LinearPrior(4, "wgan")
    assert torch.equal(objectives.realism(prior, x), -prior.critic(x))
    prior.critic_kind = "kp1"
    prior.critic = lambda x: LOGITS.logsumexp(dim=1).expand(len(x))  # type: ignore[method-assign]
    torch.testing.assert_close(objectives.realism(prior, x), torch.full((3,), 0.083554), rtol=0, atol=1e-6)
    # -log P(real) of the K + 1 softmax whose fake logit is 0.
    softmax = torch.softmax(torch.cat([LOGITS, torch.zeros(1, 1)], dim=1), dim=1)
    torch.testing.assert_close(objectives.realism(prior, x)[0], -softmax[0, :4].sum().log(), rtol=1e-5, atol=0)


def logits_at_random(n: int = 7, k: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return scale * torch.randn(n, k, generator=generator, dtype=torch.float64), torch.arange(n) % k


@pytest.mark.parametrize("name", sorted(ALL))
def test_gradients_by_finite_differences(name: str) -> None:
    logits, y = logits_at_random()
    if name == "margin_reward":  # below its clamp the margin has no gradient: stay above
        logits = logits + 9.0 * F.one_hot(y, 6)
    assert torch.autograd.gradcheck(lambda x: ALL[name](x, y), logits.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ALL))
def test_renaming_the_other_classes_and_reordering_images_changes_nothing(name: str) -> None:
    logits, y = logits_at_random()
    value = ALL[name](logits, y)
    permutation = torch.tensor([3, 5, 0, 1, 4, 2])
    renamed = torch.empty_like(logits)
    renamed[:, permutation] = logits
    torch.testing.assert_close(ALL[name](renamed, permutation[y]), value, rtol=1e-12, atol=1e-12)
    order = torch.tensor([6, 0, 3, 2, 5, 1, 4])
    assert torch.equal(ALL[name](logits[order], y[order]), value[order])


@pytest.mark.parametrize("name", sorted(ALL))
def test_one_image_at_a_time(name: str) -> None:
    logits, y = logits_at_random()
    singles = torch.cat([ALL[name](logits[i : i + 1], y[i : i + 1]) for i in range(len(y))])
    torch.testing.assert_close(ALL[name](logits, y), singles, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ALL))
def test_more_of_the_identity_is_better(name: str) -> None:
    """Losses fall and the reward rises when the identity's own logit rises and the others fall."""
    logits, y = logits_at_random()
    own = F.one_hot(y, 6)
    change = ALL[name](logits + 20.0 * own - 1.0, y) - ALL[name](logits, y)
    assert ((change > 0) if name == "margin_reward" else (change < 0)).all()


def test_relations_between_the_losses() -> None:
    logits, y = logits_at_random()
    torch.testing.assert_close(top_k_margin(logits, y, 1), max_margin(logits, y))
    assert torch.equal(top_k_margin(logits, y, 0), nll(logits, y))
    # Cross-entropy and margins ignore a common shift; nll does not.
    for loss in (cross_entropy, max_margin):
        torch.testing.assert_close(loss(logits + 5.0, y), loss(logits, y))
    torch.testing.assert_close(nll(logits + 5.0, y), nll(logits, y) - 5.0)
    # Max-margin is within log(K - 1) of the log-odds: lse over the others lies between max and max + log(K - 1).
    odds = torch.logit(torch.exp(-cross_entropy(logits, y)))
    gap = max_margin(logits, y) + odds
    assert (gap <= 1e-9).all() and (gap >= -torch.log(torch.tensor(5.0)) - 1e-9).all()


def test_margin_reward_takes_the_action_apart() -> None:
    logits, y = logits_at_random()
    at_action, _ = logits_at_random(scale=1.0)
    p = logits.softmax(1)
    difference = margin_reward(p, y, action=at_action.softmax(1)) - margin_reward(p, y)
    log_p = torch.log_softmax(at_action, 1) - torch.log_softmax(logits, 1)
    torch.testing.assert_close(difference, 2 * log_p.gather(1, y[:, None])[:, 0])


def textbook(logits: Tensor, y: Tensor, xi: float = 1e-4) -> Tensor:
    """The formula as printed, in float64, with v built."""
    logits = logits.double()
    u = logits / logits.abs().sum(dim=1, keepdim=True)
    v = (F.one_hot(y, logits.shape[1]).double() - xi).clamp(0, 1)
    square = (u - v).square().sum(1)
    return torch.acosh(1 + 2 * square / ((1 - u.square().sum(1)) * (1 - v.square().sum(1))))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_poincare_is_the_textbooks(classes: int, scale: float) -> None:
    logits, y = logits_at_random(40, classes, scale)
    torch.testing.assert_close(poincare(logits, y), textbook(logits, y), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(poincare(logits.float(), y).double(), textbook(logits, y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(poincare(logits * 7, y), poincare(logits, y))  # scale-free


@pytest.mark.parametrize("rest", [0.5, 0.1, 1e-2, 1e-3, 3e-4, 1e-4, 3e-5])
def test_poincare_stays_exact_near_its_goal(rest: float) -> None:
    """u_y = 1 - rest: as the attack succeeds, u nears v, and float32 must still tell which way is down."""
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(9, generator=generator, dtype=torch.float64) - 0.5
    logits = torch.cat([torch.tensor([1.0 - rest], dtype=torch.float64), rest * others / others.abs().sum()])[None]
    y = torch.tensor([0])
    exact = logits.clone().requires_grad_()
    wanted = torch.autograd.grad(textbook(exact, y).sum(), exact)[0]
    rounded = logits.float().requires_grad_()
    value = poincare(rounded, y)
    found = torch.autograd.grad(value.sum(), rounded)[0]
    torch.testing.assert_close(value.double(), textbook(logits, y), rtol=2e-2, atol=1e-3)
    assert found.isfinite().all()
    assert F.cosine_similarity(found.double(), wanted) > 0.99


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize(
    "logits",
    [
        [0.0, 0.0, 0.0],
        [1e4, 0.0, 0.0],
        [1e4, 0.5, -0.5],
        [-1e4, 1e4, 0.0],
        [1e-30, 0.0, 0.0],
        [0.0, 50.0, 0.0],
        [3.0, 3.0, 3.0],
    ],
)
def test_values_and_gradients_are_finite_at_the_edges(name: str, logits: list[float]) -> None:
    x = torch.tensor([logits], requires_grad=True)
    value = ALL[name](x, torch.tensor([0]))
    gradient = torch.autograd.grad(value.sum(), x)[0]
    assert value.isfinite().all() and gradient.isfinite().all()
