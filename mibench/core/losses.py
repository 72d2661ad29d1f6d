"""What an attack minimises: one value per image, lower is better.

l are the target's logits, y the identity. Attacks add these per image (never average over the batch), so that the
update of one latent does not depend on its neighbours. Each attack names its own source.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.core import Prior, Term

__all__ = [
    "IDENTITY",
    "cross_entropy",
    "feature_distance",
    "margin_reward",
    "max_margin",
    "nll",
    "on_logits",
    "poincare",
    "realism",
    "top_k_margin",
]

Logits = Float[Tensor, "n k"]
Labels = Int64[Tensor, " n"]
Values = Float[Tensor, " n"]


def _own(logits: Logits, y: Labels) -> Values:
    return logits.gather(1, y[:, None])[:, 0]


def _others(logits: Logits, y: Labels) -> Logits:
    """The logits with the identity's own set to -inf."""
    return logits.scatter(1, y[:, None], float("-inf"))


def cross_entropy(logits: Logits, y: Labels) -> Values:
    """lse(l) - l_y. Used by GMI, KEDMI, VMI."""
    return F.cross_entropy(logits, y, reduction="none")


def nll(logits: Logits, y: Labels) -> Values:
    """-l_y on raw logits, unbounded below. Used by LOMMA."""
    return -_own(logits, y)


def max_margin(logits: Logits, y: Labels) -> Values:
    """max_{k != y} l_k - l_y, not clamped. Used by PLG-MI, LOKT and SFMI."""
    return _others(logits, y).amax(dim=1) - _own(logits, y)


def top_k_margin(logits: Logits, y: Labels, k: int) -> Values:
    """-l_y plus the mean of the k largest other logits; k = 0 gives `nll`. Used by Diff-MI with k = 20."""
    if k == 0:
        return nll(logits, y)
    return _others(logits, y).topk(k, dim=1).values.mean(dim=1) - _own(logits, y)


def poincare(logits: Logits, y: Labels, xi: float = 1e-4) -> Values:
    """arccosh(1 + 2 |u - v|^2 / ((1 - |u|^2)(1 - |v|^2))), u = l / |l|_1, v = clip(onehot(y) - xi, 0, 1).

    Used by PPA. v is (1 - xi) at y and 0 elsewhere, and 1 - |v|^2 = xi (2 - xi). As u nears v every difference of
    squares cancels in float32, so all is written in the others' share r = sum_{k != y} |u_k| = 1 - |u_y|:
    |u - v|^2 = q + (u_y - 1 + xi)^2 with q = sum_{k != y} u_k^2, and 1 - |u|^2 = r (2 - r) - q. A logit vector with a
    single non-zero entry would put u on the boundary; 1 - |u|^2 is kept above 1e-7.
    """
    total = logits.abs().sum(dim=1, keepdim=True).clamp(min=1e-12)
    others = logits.scatter(1, y[:, None], 0.0) / total
    share, square = others.abs().sum(dim=1), others.square().sum(dim=1)
    below = share - 2.0 * (_own(logits, y) / total[:, 0]).clamp(max=0.0)  # 1 - u_y
    distance = square + (below - xi).square()
    room = (share * (2.0 - share) - square).clamp(min=1e-7) * (xi * (2.0 - xi))
    # arccosh(1 + e) = log(1 + e + sqrt(e (2 + e))): exact for small e, where arccosh(1 + e) loses every digit.
    excess = 2.0 * distance / room
    return torch.log1p(excess + torch.sqrt(excess * (2.0 + excess)))


def margin_reward(
    p: Float[Tensor, "*b k"],
    y: Int64[Tensor, "*b"],
    weights: tuple[float, float, float] = (2.0, 2.0, 8.0),
    action: Float[Tensor, "*b k"] | None = None,
) -> Float[Tensor, "*b"]:
    """w1 log p_y(s') + w2 log p_y(a) + w3 log max(1e-7, p_y(s') - max_{k != y} p_k(s')): higher is better.

    `p` are the target's probabilities at s', `action` those at a, the same when None. A probability that rounds to 0
    counts as float32's smallest normal number, 1e-38. Used by RLB-MI.
    """
    place = y[..., None]
    own = p.gather(-1, place)[..., 0]
    margin = own - p.scatter(-1, place, float("-inf")).amax(dim=-1)
    at_action = own if action is None else action.gather(-1, place)[..., 0]
    least = torch.finfo(torch.float32).tiny
    terms = (own.clamp(min=least).log(), at_action.clamp(min=least).log(), margin.clamp(min=1e-7).log())
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))  # type: ignore[return-value]


def feature_distance(features: Float[Tensor, "n d"], wanted: Float[Tensor, "#n d"]) -> Float[Tensor, " n"]:
    """PREG: mean over the dimensions of (phi - wanted)^2. Used by LOMMA and Diff-MI."""
    return (features - wanted).square().mean(dim=1)


def realism(prior: Prior, images: Float[Tensor, "n c h w"]) -> Values:
    """How unreal the prior's critic finds an image: -D(x) (GMI), or softplus(-lse D(x)) for a K+1 critic (KEDMI).

    softplus(-lse) is -log P(real) when the fake class has logit 0.
    """
    score = prior.critic(images)
    return F.softplus(-score) if prior.critic_kind == "kp1" else -score


def on_logits(objective: Callable[[Logits, Labels], Values]) -> Term:
    """An identity loss as what `Oracle.loss` takes; it has no use for features."""
    return lambda logits, features, y: objective(logits, y)


IDENTITY: dict[str, Callable[[Logits, Labels], Values]] = {
    "cross_entropy": cross_entropy,
    "max_margin": max_margin,
    "nll": nll,
    "poincare": poincare,
}
"""Identity losses by name, for attacks that let the user choose."""
