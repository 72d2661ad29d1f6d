"""Reinforcement-learning-based black-box inversion: an agent per identity learns which latents the target believes.

References:
    | Reinforcement Learning-Based Black-Box Model Inversion Attacks (Han et al., CVPR 2023)
    | https://arxiv.org/abs/2304.04625
    | Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018), the learner
    | https://arxiv.org/abs/1812.05905
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.queries import query_many
from mibench.attacks.parts.sac import Agents, Replay, Transitions
from mibench.attacks.parts.search import keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions
from mibench.core.losses import margin_reward
from mibench.core.steps import Held
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["RLB"]

CARD = {
    "summary": "a soft actor-critic agent per identity, rewarded by the target's scores",
    "title": "Reinforcement Learning-Based Black-Box Model Inversion Attacks",
    "authors": "Han, Choi, Lee and Kim",
    "venue": "CVPR",
    "year": 2023,
    "link": "https://arxiv.org/abs/2304.04625",
    "access": "black_box",
    "prior": "wgan_gp",
    "role": "attack",
    "cost": [80_000, 0, 0],
    "requires": ["gradients"],
    "toy": {"short": {"episodes": 40, "hidden": 8, "batch": 16}},
}

PRESETS = {
    "paper": {},
    "quick": {
        "images": 2,
        "episodes": 1000,
        "episodes_per_update": 10,
        "extra": False,
        "hidden": 64,
        "batch": 64,
        "lr": 0.01,
    },
    "legacy": {"noise": "scalar", "log_prob": "mean"},
}

REPLAY_BYTES = 4 * 2**30
"""Most that the agents searched at once may remember."""


@dataclass(frozen=True)
class RLB(Attack):
    """max over a policy of E[reward(s')], s' = alpha s + (1 - alpha) a, s ~ N(0, I), a ~ policy(s) in (-1, 1)^d.

    Args:
        images: Reconstructions per identity: the best of all rollouts by p_y, best first; of equals the later first.
        episodes: Rollouts the agent learns from.
        steps: Steps of an episode.
        alpha: How much of the state stays; 0 jumps to the action.
        weights: Of log p_y(s'), of log p_y(a) and of the log-margin in the reward.
        hidden: Width of the two hidden layers of actor and critic.
        batch: Remembered transitions an update learns from; learning begins when there are more than that.
        lr: Adam's learning rate for actor, critic and temperature.
        gamma: Discount. The last step of an episode is final, so with one step nothing is discounted.
        tau: Speed of the slow critic, which likewise only longer episodes have.
        episodes_per_update: Episodes played side by side under one policy before it learns again (the paper: 1).
        updates: Updates after them.
        extra: Play one more rollout with each episode that is scored and may be kept, but not learned from.
        noise: vector: each dimension of an action explores by itself; scalar: one number moves all (the authors' code).
        log_prob: sum: the log-density of an action; mean: divided by d (the authors' code; the target entropy -d is
            then out of reach and the temperature only falls).

    Source: sections 3 and 4 of the paper; values and the learner of the authors' code (commit 3a113bd of
    https://github.com/HanGyojin/RLB-MI).
    Differs: with alpha = 0 the images of s' and a are one and asked for once (the authors ask twice, so a third of
    their 120,000 queries is repetition); the extra rollout is played beside the episode, not after its update; learned
    rollouts may be kept too (the authors keep extra ones only); batches are drawn with replacement, from a memory that
    never forgets (theirs holds more than is ever written); log pi is exact where theirs adds 1e-6 to 1 - a^2, and in
    episodes of several steps the critic's target takes the temperature as it is, theirs as it was an update before.
    """

    images: int = 1
    episodes: int = 40_000
    steps: int = 1
    alpha: float = 0.0
    weights: tuple[float, float, float] = (2.0, 2.0, 8.0)
    hidden: int = 256
    batch: int = 256
    lr: float = 5e-4
    gamma: float = 0.99
    tau: float = 0.01
    episodes_per_update: int = 1
    updates: int = 1
    extra: bool = True
    noise: Literal["vector", "scalar"] = "vector"
    log_prob: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if min(self.images, self.steps, self.hidden, self.batch, self.episodes_per_update) < 1:
            raise UserError("rlb: images, steps, hidden, batch and episodes_per_update must be at least 1")
        if self.episodes % self.episodes_per_update:
            raise UserError(
                f"rlb: episodes must be a multiple of episodes_per_update, got {self.episodes} and "
                f"{self.episodes_per_update}"
            )
        if not (self.alpha < 1 and self.gamma <= 1 and self.tau <= 1):
            raise UserError(
                f"rlb: alpha must lie in [0, 1), gamma and tau in [0, 1], got {self.alpha}, {self.gamma}, {self.tau}"
            )

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """One query per step (two where alpha > 0 makes s' and a differ), one per extra rollout."""
        return Cost(self.episodes // self.episodes_per_update * self._round(), 0, 0)

    def _round(self) -> int:
        """Queries of one identity between two updates."""
        asked = self.steps * (2 if self.alpha > 0 else 1) + (1 if self.extra else 0)
        return self.episodes_per_update * asked

    @torch.no_grad()
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Train all agents side by side; keep the best latents they came by."""
        rounds = oracle.affordable(self.episodes // self.episodes_per_update, self._round())
        y, key = keys(labels, self.images)
        # Where the budget ends before there are enough rollouts, samples that were never scored fill the places.
        unscored = prior.sample(Noise(seed, key).of("rlb-unscored")).reshape(len(labels), self.images, -1)
        memory = 4 * self.episodes * self.steps * (3 * prior.latent_dim + 2)
        together = max(1, min(work.batch // (2 * self.episodes_per_update), REPLAY_BYTES // max(1, memory)))

        def part(rows: slice) -> Tensor:
            stream = Noise(seed, labels[rows]).of("rlb")
            return self._learn(oracle, prior, labels[rows], rounds, unscored[rows], stream, work).flatten(1)

        found = piecewise("rlb", len(labels), oracle, replace(work, batch=together), part)
        z, late = found.reshape(len(y), -1).split([prior.latent_dim, 1], dim=1)
        return Reconstructions(render(prior, z, y, work), y, z.contiguous(), late[:, 0] == 0)

    def _learn(
        self,
        oracle: Oracle,
        prior: Prior,
        y: Int64[Tensor, " k"],
        rounds: int,
        unscored: Float[Tensor, "k i d"],
        noise: Noise,
        work: AttackContext,
    ) -> Float[Tensor, "k i e"]:
        """The best latents of each identity, and behind each 1 if it was found after learning had begun."""
        d, n = prior.latent_dim, self.episodes_per_update
        agents = Agents(
            noise, d, d, self.hidden, self.lr, self.gamma, self.tau, self.noise, self.log_prob, self.steps > 1
        )
        memory = Replay(rounds * n * self.steps)
        best = torch.cat([unscored, torch.zeros_like(unscored[:, :, :1])], dim=2)
        held = Held(best=best, score=torch.full_like(best[:, :, 0], -1.0), learned=False)
        for number in work.steps(rounds, held, memory, agents):
            drawn = noise.of("round", number)
            state = drawn.of("state").normal(n * (2 if self.extra else 1), d)
            for step in range(self.steps):
                action = agents.act(state, drawn.of("act", step))
                after = self.alpha * state + (1.0 - self.alpha) * action
                last = step == self.steps - 1
                # Of the extra rollouts only the end is worth a query.
                asked = after if last else after[:, :n]
                if self.alpha > 0:
                    asked = torch.cat([asked, action[:, :n]], dim=1)
                p = query_many(oracle.probs, prior, asked.transpose(0, 1), y, work).transpose(0, 1)
                at_action = p[:, -n:] if self.alpha > 0 else None
                gained = margin_reward(p[:, :n], y[:, None].expand(-1, n), self.weights, at_action)
                next_state = after[:, :n] if self.steps > 1 else after[:, :n, :0]
                done = torch.full_like(gained, float(last))
                memory.add(Transitions(state[:, :n], action[:, :n], gained, next_state, done))
                state = after
            own = p[:, : state.shape[1]].gather(2, y[:, None, None].expand(-1, state.shape[1], 1))[:, :, 0]
            latest = torch.cat([state, torch.full_like(own[:, :, None], float(held.learned))], dim=2)
            score, place = torch.cat([own, held.score], dim=1).sort(dim=1, descending=True, stable=True)
            held.score, place = score[:, : self.images], place[:, : self.images, None].expand(-1, -1, d + 1)
            held.best = torch.cat([latest, held.best], dim=1).gather(1, place)
            if memory.filled > self.batch:
                held.learned = True
                for update in range(self.updates):
                    stream = drawn.of("update", update)
                    agents.update(memory.draw(self.batch, stream.of("replay")), stream)
        return torch.as_tensor(held.best)
