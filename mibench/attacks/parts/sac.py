"""Soft actor-critic for many independent agents at once: every weight has a leading axis, one row an agent.

Losses are summed over agents and averaged over an agent's own batch, optimisers work elementwise, and every number
drawn comes from the agent's own noise: so an agent learns what it would learn alone.

References:
    | Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018)
    | https://arxiv.org/abs/1812.05905
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mibench.runtime.rng import Noise

__all__ = ["Agents", "Networks", "Replay", "Transitions", "tanh_gaussian"]

LOG_STD = (-20.0, 2.0)
CRITIC_LAST = 3e-3
"""A critic starts near 0 everywhere: no action looks better than another before the first reward."""


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

    def state_dict(self) -> dict[str, Any]:
        """What has been filled so far."""
        return {"filled": self.filled, "kept": [part[:, : self.filled] for part in self.kept or ()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember that, and nothing else."""
        self.filled, self.kept = 0, None
        if state["filled"]:
            self.add(Transitions(*state["kept"]))

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
        last: With a number the weights start as the authors' critics do: U(-1, 1) / sqrt(outputs), and
            U(-last, last) in the last layer; biases as ever.
    """

    def __init__(self, noise: Noise, sizes: Sequence[int], last: float | None = None) -> None:
        self.weights, self.biases = [], []
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            drawn = 2.0 * noise.of("layer", layer).uniform(inputs + 1, outputs) - 1.0
            usual = reach = 1.0 / math.sqrt(inputs)
            if last is not None:
                reach = last if layer == len(sizes) - 2 else 1.0 / math.sqrt(outputs)
            self.weights.append((reach * drawn[:, 1:]).contiguous().requires_grad_())
            self.biases.append((usual * drawn[:, :1]).contiguous().requires_grad_())

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
    """k agents: a tanh-Gaussian actor, a critic (with a slow copy where episodes go on) and a temperature each.

    The critic minimises .5 (Q(s, a) - t)^2, t = r + gamma (1 - done) (Q'(s', a') - alpha log pi(a' | s')); the actor
    minimises alpha log pi(a | s) - Q(s, a); the temperature alpha minimises -log alpha (log pi + target entropy) with
    target entropy -d. The slow copy follows by tau after each update.

    There is one critic, not soft actor-critic's twins, because RLB-MI has one: its code builds two from the same seed
    and teaches both the same, so that they stay equal and min(Q1, Q2) = Q1. With twins that differ, the minimum at
    actor and target makes the agent shy of what it knows little about.

    Args:
        noise: One stream for each agent.
        states: Length of a state.
        actions: Length d of an action in (-1, 1)^d.
        hidden: Width of the two hidden layers of every network.
        lr: Adam's learning rate for all three.
        gamma: Discount.
        tau: Speed of the slow critic.
        draw: vector: every dimension has its own noise; scalar: one number for all of them (and, in an update, for the
            whole batch).
        log_prob: sum over the dimensions of an action: its log-density; mean: that divided by d.
        bootstrap: Whether an episode may go on after a transition. If not, t = r, there is no slow critic, and what
            came after (batch.after) is never looked at.

    Source: SAC.py of https://github.com/HanGyojin/RLB-MI (commit 3a113bd).
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
        self.scalar, self.mean = draw == "scalar", log_prob == "mean"
        self.actor = Networks(noise.of("actor"), [states, hidden, hidden, 2 * actions])
        sizes = [states + actions, hidden, hidden, 1]
        self.critic = Networks(noise.of("critic"), sizes, last=CRITIC_LAST)
        self.slow = Networks(noise.of("critic"), sizes, last=CRITIC_LAST) if bootstrap else None
        self.log_alpha = torch.zeros(len(noise.keys), device=noise.keys.device, requires_grad=True)
        self.of_critic = torch.optim.Adam(self.critic.parameters(), lr=lr, fused=True)
        self.of_policy = torch.optim.Adam([*self.actor.parameters(), self.log_alpha], lr=lr, fused=True)

    def state_dict(self) -> dict[str, Any]:
        """Weights, temperatures and optimisers."""
        return {
            "weights": [one.detach() for one in self._weights()],
            "of_critic": self.of_critic.state_dict(),
            "of_policy": self.of_policy.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be those agents."""
        for one, kept in zip(self._weights(), state["weights"], strict=True):
            one.copy_(kept)
        self.of_critic.load_state_dict(state["of_critic"])
        self.of_policy.load_state_dict(state["of_policy"])

    def _weights(self) -> list[Tensor]:
        slow = self.slow.parameters() if self.slow is not None else []
        return [*self.actor.parameters(), *self.critic.parameters(), *slow, self.log_alpha]

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
    def _value(critic: Networks, state: Float[Tensor, "k b s"], action: Float[Tensor, "k b a"]) -> Float[Tensor, "k b"]:
        return critic(torch.cat([state, action], dim=2))[:, :, 0]

    @torch.no_grad()
    def target(self, batch: Transitions, noise: Noise) -> Float[Tensor, "k b"]:
        """What the critic should say: t."""
        if self.slow is None:
            return batch.reward
        action, density = self._policy(batch.after, noise.of("target"))
        value = self._value(self.slow, batch.after, action) - self.log_alpha.exp()[:, None] * density
        return batch.reward + self.gamma * (1.0 - batch.done) * value

    def critic_loss(self, batch: Transitions, noise: Noise) -> Float[Tensor, " k"]:
        """Half the mean squared error."""
        error = self._value(self.critic, batch.state, batch.action) - self.target(batch, noise)
        return 0.5 * error.square().mean(dim=1)

    def policy_loss(self, batch: Transitions, noise: Noise) -> Float[Tensor, " k"]:
        """Of actor and temperature together; neither's gradient sees the other's part."""
        action, density = self._policy(batch.state, noise.of("actor"))
        actor = self.log_alpha.detach().exp()[:, None] * density - self._value(self.critic, batch.state, action)
        temperature = -self.log_alpha[:, None] * (density.detach() - self.actions)
        return (actor + temperature).mean(dim=1)

    def update(self, batch: Transitions, noise: Noise) -> None:
        """One step of the critic, then one of actor and temperature, then the slow critic follows."""
        for loss, optimizer in ((self.critic_loss, self.of_critic), (self.policy_loss, self.of_policy)):
            parameters = optimizer.param_groups[0]["params"]
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(batch, noise).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        if self.slow is not None:
            self.slow.follow(self.critic, self.tau)
