"""Soft actor-critic for many independent agents at once: every weight has a leading axis, one row an agent.

Losses are summed over agents and averaged over an agent's own batch, optimisers work elementwise, and every number
drawn comes from the agent's own noise: so an agent learns what it would learn alone.

References:
    | Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018)
    | https://arxiv.org/abs/1812.05905
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mibench.runtime.rng import Noise

__all__ = ["Agents", "Networks", "Replay", "Transitions", "tanh_gaussian"]

LOG_STD = (-20.0, 2.0)


class Transitions(NamedTuple):
    """What agents remember: state, action, reward, next state (empty if never needed), 1 where the episode ended."""

    state: Float[Tensor, "k b s"]
    action: Float[Tensor, "k b a"]
    reward: Float[Tensor, "k b"]
    after: Float[Tensor, "k b n"]
    done: Float[Tensor, "k b"]


class Replay:
    """A buffer of transitions for each agent, all filled alike; it keeps whatever is written to it.

    Args:
        capacity: Transitions per agent.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.filled = capacity, 0
        self.kept: Transitions | None = None

    def add(self, new: Transitions) -> None:
        """Remember."""
        agents, count = new.reward.shape
        if self.kept is None:
            self.kept = Transitions(*(part.new_zeros(agents, self.capacity, *part.shape[2:]) for part in new))
        for kept, part in zip(self.kept, new, strict=True):
            kept[:, self.filled : self.filled + count] = part
        self.filled += count

    def draw(self, count: int, noise: Noise) -> Transitions:
        """`count` transitions of each agent, with replacement."""
        assert self.kept is not None
        place = (noise.uniform(count) * self.filled).long().clamp(max=self.filled - 1)
        agent = torch.arange(len(place), device=place.device)[:, None]
        return Transitions(*(kept[agent, place] for kept in self.kept))


def tanh_gaussian(
    mean: Float[Tensor, "*b d"], log_std: Float[Tensor, "*b d"], eps: Float[Tensor, "*b d"]
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d"]]:
    """a = tanh(u), u = mean + exp(log_std) eps, and log p(a) of each dimension.

    log p(a) = log N(u; mean, std) - log(1 - tanh(u)^2), the last written as 2 (log 2 - u - softplus(-2u)), which stays
    exact where tanh(u) rounds to 1.
    """
    u = mean + log_std.exp() * eps
    density = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
    return u.tanh(), density - 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


class Networks:
    """k perceptrons with ReLU between layers, evaluated by batched matrix products.

    Args:
        noise: One stream for each, for the initial weights and biases: U(-1, 1) / sqrt(inputs), torch's default.
        sizes: Width of the input, of each hidden layer, of the output.
    """

    def __init__(self, noise: Noise, sizes: Sequence[int]) -> None:
        self.weights, self.biases = [], []
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            drawn = (2.0 * noise.of("layer", layer).uniform(inputs + 1, outputs) - 1.0) / math.sqrt(inputs)
            self.weights.append(drawn[:, 1:].contiguous().requires_grad_())
            self.biases.append(drawn[:, :1].contiguous().requires_grad_())

    def parameters(self) -> list[Tensor]:
        """Weights [k, in, out], biases [k, 1, out]."""
        return [*self.weights, *self.biases]

    def __call__(self, x: Float[Tensor, "k b i"]) -> Float[Tensor, "k b o"]:
        """Outputs in float32, whatever precision the hidden layers are evaluated in."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = x.relu()
        return x.float()

    @torch.no_grad()
    def follow(self, other: "Networks", tau: float) -> None:
        """Polyak: own <- (1 - tau) own + tau other."""
        for own, new in zip(self.parameters(), other.parameters(), strict=True):
            own.lerp_(new, tau)


class Agents:
    """k agents: a tanh-Gaussian actor, twin critics (with slow copies where episodes go on) and a temperature each.

    Critics minimise .5 (Q(s, a) - t)^2, t = r + gamma (1 - done) (min Q'(s', a') - alpha log pi(a' | s')); the actor
    minimises alpha log pi(a | s) - min Q(s, a); the temperature alpha minimises -alpha (log pi + target entropy) with
    target entropy -d. Slow copies follow by tau after each update.

    Args:
        noise: One stream for each agent.
        states: Length of a state.
        actions: Length d of an action in (-1, 1)^d.
        hidden: Width of the two hidden layers of every network.
        lr: Adam's learning rate for all three.
        gamma: Discount.
        tau: Speed of the slow critics.
        draw: vector: every dimension has its own noise; scalar: one number for all of them (and, in an update, for the
            whole batch).
        log_prob: sum over the dimensions of an action: its log-density; mean: that divided by d.
        bootstrap: Whether an episode may go on after a transition. If not, t = r, there are no slow critics, and what
            came after (batch.after) is never looked at.

    Source: the paper above; scalar and mean as in the authors' code of RLB-MI, https://github.com/HanGyojin/RLB-MI
    (commit 3a113bd).
    """

    def __init__(
        self,
        noise: Noise,
        states: int,
        actions: int,
        hidden: int = 256,
        lr: float = 5e-4,
        gamma: float = 0.99,
        tau: float = 0.01,
        draw: Literal["vector", "scalar"] = "vector",
        log_prob: Literal["sum", "mean"] = "sum",
        bootstrap: bool = True,
    ) -> None:
        self.actions, self.gamma, self.tau = actions, gamma, tau
        self.scalar, self.mean, self.bootstrap = draw == "scalar", log_prob == "mean", bootstrap
        self.actor = Networks(noise.of("actor"), [states, hidden, hidden, 2 * actions])
        sizes = [states + actions, hidden, hidden, 1]
        self.critics = [Networks(noise.of("critic", twin), sizes) for twin in range(2)]
        self.slow = [Networks(noise.of("critic", twin), sizes) for twin in range(2)] if bootstrap else []
        self.log_alpha = torch.zeros(len(noise.keys), device=noise.keys.device, requires_grad=True)
        values = [parameter for critic in self.critics for parameter in critic.parameters()]
        self.of_critics = torch.optim.Adam(values, lr=lr, fused=True)
        self.of_policy = torch.optim.Adam([*self.actor.parameters(), self.log_alpha], lr=lr, fused=True)

    def _sample(
        self, state: Float[Tensor, "k b s"], eps: Float[Tensor, "k e f"]
    ) -> tuple[Float[Tensor, "k b a"], Float[Tensor, "k b"]]:
        mean, log_std = self.actor(state).chunk(2, dim=2)
        action, density = tanh_gaussian(mean, log_std.clamp(*LOG_STD), eps.expand_as(mean))
        return action, density.mean(dim=2) if self.mean else density.sum(dim=2)

    @torch.no_grad()
    def act(self, state: Float[Tensor, "k b s"], noise: Noise) -> Float[Tensor, "k b a"]:
        """An action for each state, drawn from the policy."""
        return self._sample(state, noise.normal(state.shape[1], 1 if self.scalar else self.actions))[0]

    def _policy(
        self, state: Float[Tensor, "k b s"], noise: Noise
    ) -> tuple[Float[Tensor, "k b a"], Float[Tensor, "k b"]]:
        shape = (1, 1) if self.scalar else (state.shape[1], self.actions)
        return self._sample(state, noise.normal(*shape))

    @staticmethod
    def _values(
        critics: list[Networks], state: Float[Tensor, "k b s"], action: Float[Tensor, "k b a"]
    ) -> Float[Tensor, "2 k b"]:
        pair = torch.cat([state, action], dim=2)
        return torch.stack([critic(pair)[:, :, 0] for critic in critics])

    @torch.no_grad()
    def target(self, batch: Transitions, noise: Noise) -> Float[Tensor, "k b"]:
        """What the critics should say: t."""
        if not self.bootstrap:
            return batch.reward
        action, density = self._policy(batch.after, noise.of("target"))
        value = self._values(self.slow, batch.after, action).amin(dim=0) - self.log_alpha.exp()[:, None] * density
        return batch.reward + self.gamma * (1.0 - batch.done) * value

    def critic_loss(self, batch: Transitions, noise: Noise) -> Float[Tensor, " k"]:
        """Of both critics together."""
        error = self._values(self.critics, batch.state, batch.action) - self.target(batch, noise)
        return 0.5 * error.square().mean(dim=2).sum(dim=0)

    def policy_loss(self, batch: Transitions, noise: Noise) -> Float[Tensor, " k"]:
        """Of actor and temperature together; neither's gradient sees the other's part."""
        action, density = self._policy(batch.state, noise.of("actor"))
        value = self._values(self.critics, batch.state, action).amin(dim=0)
        alpha = self.log_alpha.exp()
        actor = alpha.detach()[:, None] * density - value
        temperature = -alpha[:, None] * (density.detach() - self.actions)
        return (actor + temperature).mean(dim=1)

    def update(self, batch: Transitions, noise: Noise) -> None:
        """One step of the critics, then one of actor and temperature, then the slow critics follow."""
        for loss, optimizer in ((self.critic_loss, self.of_critics), (self.policy_loss, self.of_policy)):
            parameters = optimizer.param_groups[0]["params"]
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(batch, noise).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        if self.bootstrap:
            for slow, critic in zip(self.slow, self.critics, strict=True):
                slow.follow(critic, self.tau)
