"""SMILE's surrogate: several small experts on a frozen body, taught a target's scores with rare classes weighing more.

On features h of the body, expert e answers o_e = V_e BN(W_e h) + c_e with one BN for all; the surrogate answers their
mean. Only W, V, c and BN's scale and shift learn, so that the body sees each image once.

References:
    | From Head to Tail: Efficient Black-box Model Inversion Attack via Long-tailed Learning (Li et al., CVPR 2025)
    | https://arxiv.org/abs/2503.16266
    | https://github.com/L1ziang/SMILE, long-tailed_surrogate_training.py at commit 0c695e1
    | Class-Balanced Loss Based on Effective Number of Samples (Cui et al., CVPR 2019), the weights
    | https://arxiv.org/abs/1901.05555
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import AttackContext
from mibench.core.steps import Generators, Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import generator, seed_of

__all__ = ["Experts", "LongTail", "class_weights"]


def class_weights(log_p: Float[Tensor, "n k"], top: int, beta: float) -> Float[Tensor, " k"]:
    """w_c = (1 - beta) / (1 - beta^(n_c + 1)), n_c the number of answers that have c among their `top` best classes.

    1 where n_c = 0, falling to 1 - beta: an image of a class that the pool hardly shows weighs more.
    """
    classes = log_p.shape[1]
    counts = log_p.topk(min(top, classes), dim=1).indices.flatten().bincount(minlength=classes)
    return (1.0 - beta) / (1.0 - beta ** (counts + 1.0))


class Experts(nn.Module):
    """Features to the logits of each expert.

    Args:
        inputs: Width of the body's features.
        width: Units of each expert's own layer.
        classes: Of the target.
        count: E.
    """

    def __init__(self, inputs: int, width: int, classes: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, width, bias=False) for _ in range(count))
        self.norm = nn.BatchNorm1d(width, eps=1e-3)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(count))

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "e n k"]:
        """All experts' logits; their mean over e is the surrogate's answer."""
        pairs = zip(self.layers, self.heads, strict=True)
        return torch.stack([head(self.norm(layer(features))) for layer, head in pairs]).float()

    @torch.no_grad()
    def measure(self, features: Float[Tensor, "n d"]) -> None:
        """Give BN the mean and variance of all experts' units on these features, for good."""
        units = torch.cat([layer(features) for layer in self.layers]).float()
        self.norm.running_mean = units.mean(dim=0)
        self.norm.running_var = units.var(dim=0)


@dataclass(frozen=True)
class LongTail:
    """How experts are taught; the defaults are the authors'.

    With t = softmax(log p / T), q_e = softmax(o_e / T) and o the experts' mean, a batch of B images costs

        sum_i w_i sum_e [KL(t_i | q_ei) + ce CE(o_ei, argmax t_i)]
        + diversity sum_e 1 / mean_i KL(softmax(clip(o_ei / T, -20, 20)) | softmax(o_i / T)),

    w_i the class weight of argmax t_i. With reweight = "batch" the braces' mean over the batch is multiplied by sum_i
    w_i instead: as released, where no image of a batch weighs more than another. Equal weights make both the same.

    Args:
        temperature: T.
        ce: Weight of the cross-entropy of the target's best class.
        diversity: Weight of the experts' likeness; 0 leaves it out.
        beta: See `class_weights`.
        top: See `class_weights`.
        reweight: sample or batch.
        epochs: Passes over the answered images.
        batch: Images a step.
        lr: Of Adam.
    """

    temperature: float = 0.5
    ce: float = 0.15
    diversity: float = 10.0
    beta: float = 0.9
    top: int = 10
    reweight: Literal["sample", "batch"] = "sample"
    epochs: int = 200
    batch: int = 128
    lr: float = 1e-3

    def loss(
        self, logits: Float[Tensor, "e n k"], log_p: Float[Tensor, "n k"], weight: Float[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """The batch's loss, from each expert's logits, the target's log scores and w."""
        scaled, teacher = logits / self.temperature, F.log_softmax(log_p / self.temperature, dim=1)
        divergence = (teacher.exp() * (teacher - F.log_softmax(scaled, dim=2))).sum(dim=2)
        best = log_p.argmax(dim=1).expand(logits.shape[:2])
        entropy = F.cross_entropy(logits.flatten(0, 1), best.flatten(), reduction="none").view_as(divergence)
        own = (divergence + self.ce * entropy).sum(dim=0)
        fit = (weight * own).sum() if self.reweight == "sample" else own.mean() * weight.sum()
        if not self.diversity:
            return fit
        one = F.log_softmax(scaled.clamp(-20.0, 20.0), dim=2)
        mean = F.log_softmax(logits.mean(dim=0) / self.temperature, dim=1)
        likeness = 1.0 / (one.exp() * (one - mean)).sum(dim=2).mean(dim=1)
        return fit + self.diversity * likeness.sum()

    def teach(
        self,
        experts: Experts,
        features: Float[Tensor, "n d"],
        log_p: Float[Tensor, "n k"],
        seed: int,
        work: AttackContext | None = None,
    ) -> dict[str, Tensor]:
        """Train new experts in place on features of images that the target answered; their weights.

        Raises:
            UserError: If the loss stops being finite.
        """
        device = features.device
        weight = class_weights(log_p, self.top, self.beta)[log_p.argmax(dim=1)]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(seed_of(seed, "experts"))
            for module in experts.cpu().modules():
                if isinstance(module, nn.Linear | nn.BatchNorm1d):
                    module.reset_parameters()
            experts.to(device).eval().requires_grad_(True)
            experts.measure(features)
            optimizer = torch.optim.Adam(experts.parameters(), lr=self.lr)
            held = Held(fine=torch.ones((), dtype=torch.bool, device=device))
            states = (held, experts, optimizer, Generators())
            for epoch in range(self.epochs) if work is None else work.steps(self.epochs, *states):
                order = torch.randperm(len(features), generator=generator(seed, "experts", epoch)).to(device)
                for index in order.tensor_split(math.ceil(len(order) / self.batch)):
                    loss = self.loss(experts(features[index]), log_p[index], weight[index])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    held.fine = held.fine & loss.detach().isfinite()
        experts.requires_grad_(False)
        if not bool(held.fine):
            raise UserError(
                f"the experts' loss stopped being finite (lr {self.lr}, diversity {self.diversity}); lower one of them"
            )
        return {name: value.detach().clone() for name, value in experts.state_dict().items()}
