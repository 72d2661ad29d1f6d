"""Laws of rlb: its reward, soft actor-critic against formulas written with torch's own modules, what it keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F
from worlds import World, attack_on, quick, workspace

from mibench.attacks.parts.sac import Agents, Networks, Replay, Transitions, tanh_gaussian
from mibench.attacks.rlb import RLB
from mibench.core import Access, Cost, Oracle
from mibench.core.losses import margin_reward
from mibench.plugins import capabilities, registry
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

KEYS = torch.tensor([7, 2, 9])
STATES, ACTIONS, BATCH = 4, 3, 5


def agents(keys: Tensor = KEYS, **given: Any) -> Agents:
    return Agents(Noise(3, keys), STATES, ACTIONS, **({"hidden": 6, "lr": 0.01} | given))


def transitions(keys: Tensor = KEYS, number: int = 0) -> Transitions:
    noise = Noise(5, keys).of(number)
    return Transitions(
        noise.of("s").normal(BATCH, STATES),
        2 * noise.of("a").uniform(BATCH, ACTIONS) - 1,
        noise.of("r").normal(BATCH),
        noise.of("n").normal(BATCH, STATES),
        (noise.of("d").uniform(BATCH) < 0.4).float(),
    )


# --- the reward


def reward_on_logits(logits: Tensor, y: Tensor, action: Tensor) -> Tensor:
    """The formula as printed, from log-softmax."""
    log_p, log_a = logits.log_softmax(1), action.log_softmax(1)
    place = y[:, None]
    margin = log_p.exp().gather(1, place) - log_p.exp().scatter(1, place, -1.0).amax(dim=1, keepdim=True)
    return (2 * log_p.gather(1, place) + 2 * log_a.gather(1, place) + 8 * margin.clamp(min=1e-7).log())[:, 0]


def test_the_rewards_golden_values() -> None:
    """Worked out by hand for l = [2, 1, 0, -1]: -8.951678 for y = 0, -138.705524 for y = 2."""
    p = torch.tensor([2.0, 1.0, 0.0, -1.0]).softmax(0).expand(2, -1)
    torch.testing.assert_close(
        margin_reward(p, torch.tensor([0, 2])), torch.tensor([-8.951678, -138.705524]), rtol=0, atol=2e-5
    )


def test_the_reward_is_that_on_logits() -> None:
    logits, y = 3 * Noise(0, torch.arange(50)).normal(6), torch.arange(50) % 6
    other = logits.roll(1, 0)
    expected = reward_on_logits(logits, y, other)
    found = margin_reward(logits.softmax(1), y, (2.0, 2.0, 8.0), other.softmax(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    nested = margin_reward(logits.softmax(1).reshape(10, 5, 6), y.reshape(10, 5))
    torch.testing.assert_close(nested.flatten(), reward_on_logits(logits, y, logits), rtol=1e-4, atol=1e-4)
    assert margin_reward(torch.eye(2), torch.tensor([1, 0])).isfinite().all()  # a probability of exactly 0


# --- the pieces of soft actor-critic


def test_log_density_is_that_of_torchs_transformed_normal() -> None:
    noise = Noise(1, torch.arange(200))
    mean, log_std, eps = noise.of(0).normal(3), 0.5 * noise.of(1).normal(3), noise.of(2).normal(3)
    action, density = tanh_gaussian(mean, log_std, eps)
    base = TransformedDistribution(Normal(mean.double(), log_std.double().exp()), [TanhTransform(cache_size=1)])
    u = mean.double() + log_std.double().exp() * eps.double()
    torch.testing.assert_close(action.double(), u.tanh(), rtol=0, atol=1e-6)
    torch.testing.assert_close(density.double(), base.log_prob(u.tanh()), rtol=1e-4, atol=1e-4)
    # Where tanh rounds to 1 the density is still log N(u) - 2 (log 2 - u): at u = 30 that is 57.69.
    far = tanh_gaussian(torch.tensor([30.0]), torch.zeros(1), torch.zeros(1))
    assert far[0] == 1.0 and float(far[1]) == pytest.approx(60 - 2 * 0.693147 - 0.918939, abs=1e-4)


def test_networks_are_torchs_linear_layers_with_torchs_initial_scale() -> None:
    networks = Networks(Noise(0, KEYS), [4, 50, 2])
    x = Noise(1, KEYS).normal(BATCH, 4)
    found = networks(x)
    for k in range(3):
        hidden = F.linear(x[k], networks.weights[0][k].T, networks.biases[0][k, 0]).relu()
        expected = F.linear(hidden, networks.weights[1][k].T, networks.biases[1][k, 0])
        torch.testing.assert_close(found[k], expected, rtol=1e-5, atol=1e-6)
    bounds = [float(part.abs().max().detach()) for part in networks.weights]
    assert 0.48 < bounds[0] <= 0.5 and 0.13 < bounds[1] <= 50**-0.5
    assert not torch.equal(networks.weights[0][0], networks.weights[0][1])


def test_the_critic_starts_as_the_authors_does() -> None:
    """Source: SAC.py, Critic: weights U(+-1 / sqrt(outputs)) in the hidden layers, U(+-.003) in the last; biases
    torch's U(+-1 / sqrt(inputs)). The actor keeps torch's own start, because its reset is never called."""
    learner = Agents(Noise(3, KEYS), 90, 10, hidden=64)
    reach = [float(part.abs().max().detach()) for part in learner.critic.weights]
    assert 0.124 < reach[0] <= 0.125 and 0.124 < reach[1] <= 0.125 and 0.0028 < reach[2] <= 0.003
    reach = [float(part.abs().max().detach()) for part in learner.critic.biases]
    assert 0.095 < reach[0] <= 0.1 and 0.12 < reach[1] <= 0.125 and reach[2] <= 0.125
    reach = [float(part.abs().max().detach()) for part in learner.actor.weights]
    assert 0.104 < reach[0] <= 90**-0.5 and 0.124 < reach[1] <= 0.125 and 0.124 < reach[2] <= 0.125
    state, action = Noise(1, KEYS).of("s").normal(50, 90), 2 * Noise(1, KEYS).of("a").uniform(50, 10) - 1
    values = learner.critic(torch.cat([state, action], dim=2))
    assert (values - learner.critic.biases[2]).abs().max() < 0.02  # all actions look alike


def test_the_slow_critic_follows_by_tau() -> None:
    learner = agents(tau=0.25)
    assert learner.slow is not None
    before = [part.detach().clone() for part in learner.slow.parameters()]
    for one, other in zip(learner.slow.parameters(), learner.critic.parameters(), strict=True):
        assert torch.equal(one, other)  # they start together
    learner.update(transitions(), Noise(8, KEYS))
    for old, slow, own in zip(before, learner.slow.parameters(), learner.critic.parameters(), strict=True):
        assert not torch.equal(own, old)
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * own, rtol=0, atol=1e-6)


class Plain:
    """One agent as the authors write it, from the weights of row k of many: twins that start equal and stay so."""

    def __init__(self, many: Agents, k: int, lr: float, gamma: float, tau: float, scalar: bool, mean: bool) -> None:
        def module(networks: Networks) -> nn.Sequential:
            layers: list[nn.Module] = []
            for weight, bias in zip(networks.weights, networks.biases, strict=True):
                layer = nn.Linear(*weight.shape[1:])
                layer.weight.data, layer.bias.data = weight[k].detach().T.clone(), bias[k, 0].detach().clone()
                layers += [layer, nn.ReLU()]
            return nn.Sequential(*layers[:-1])

        assert many.slow is not None
        self.actor, self.one, self.two = (module(part) for part in (many.actor, many.critic, many.critic))
        self.slow = [module(many.slow), module(many.slow)]
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.of_critics = torch.optim.Adam([*self.one.parameters(), *self.two.parameters()], lr=lr)
        self.of_actor = torch.optim.Adam(self.actor.parameters(), lr=lr)
        self.of_alpha = torch.optim.Adam([self.log_alpha], lr=lr)
        self.gamma, self.tau, self.scalar, self.mean = gamma, tau, scalar, mean

    def policy(self, state: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(state).chunk(2, dim=1)
        std = log_std.clamp(-20, 2).exp()
        eps = noise.normal(1, 1)[0] if self.scalar else noise.normal(len(state), ACTIONS)[0]
        base = TransformedDistribution(Normal(mean, std), [TanhTransform(cache_size=1)])
        action = base.transforms[0](mean + std * eps)
        density = base.log_prob(action)
        return action, density.mean(1) if self.mean else density.sum(1)

    def update(self, s: Tensor, a: Tensor, r: Tensor, after: Tensor, done: Tensor, noise: Noise) -> None:
        with torch.no_grad():
            action, density = self.policy(after, noise.of("target"))
            pair = torch.cat([after, action], 1)
            low = torch.minimum(self.slow[0](pair), self.slow[1](pair))[:, 0]
            target = r + self.gamma * (1 - done) * (low - self.log_alpha.exp() * density)
        loss = sum(0.5 * F.mse_loss(critic(torch.cat([s, a], 1))[:, 0], target) for critic in (self.one, self.two))
        self.of_critics.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        self.of_critics.step()
        action, density = self.policy(s, noise.of("actor"))
        pair = torch.cat([s, action], 1)
        value = self.one(pair)[:, 0]
        self.of_actor.zero_grad()
        (self.log_alpha.exp().detach() * density - value).mean().backward()
        self.of_actor.step()
        self.of_alpha.zero_grad()
        (-self.log_alpha * (density.detach() - ACTIONS)).mean().backward()
        self.of_alpha.step()
        for slow, own in zip(self.slow, (self.one, self.two), strict=True):
            for old, new in zip(slow.parameters(), own.parameters(), strict=True):
                old.data = (1 - self.tau) * old.data + self.tau * new.data


@pytest.mark.parametrize("draw", ["vector", "scalar"])
@pytest.mark.parametrize("log_prob", ["sum", "mean"])
def test_updates_are_the_authors(draw: Any, log_prob: Any) -> None:
    values = {"lr": 0.01, "gamma": 0.9, "tau": 0.3}
    many = agents(draw=draw, log_prob=log_prob, **values)
    plain = [Plain(many, k, **values, scalar=draw == "scalar", mean=log_prob == "mean") for k in range(3)]
    for number in range(4):
        batch, noise = transitions(number=number), Noise(8, KEYS).of(number)
        many.update(batch, noise)
        for k, one in enumerate(plain):
            one.update(*(part[k] for part in batch), Noise(8, KEYS[k : k + 1]).of(number))
    for k, one in enumerate(plain):
        torch.testing.assert_close(many.log_alpha[k], one.log_alpha, rtol=0, atol=1e-6)
        assert many.slow is not None
        ours_and_theirs = (many.actor, one.actor), (many.critic, one.one), (many.critic, one.two)
        for ours, theirs in (*ours_and_theirs, (many.slow, one.slow[0]), (many.slow, one.slow[1])):
            linear = [layer for layer in theirs if isinstance(layer, nn.Linear)]
            for weight, bias, layer in zip(ours.weights, ours.biases, linear, strict=True):
                torch.testing.assert_close(weight[k].T, layer.weight, rtol=0, atol=2e-5)
                torch.testing.assert_close(bias[k, 0], layer.bias, rtol=0, atol=2e-5)


def test_agents_side_by_side_learn_what_each_learns_alone() -> None:
    together, alone = agents(), [agents(KEYS[k : k + 1]) for k in range(3)]
    for number in range(20):
        together.update(transitions(number=number), Noise(8, KEYS).of(number))
        for k, one in enumerate(alone):
            key = KEYS[k : k + 1]
            one.update(transitions(key, number), Noise(8, key).of(number))
    state = transitions(number=99).state
    for k, one in enumerate(alone):
        own = slice(k, k + 1)
        torch.testing.assert_close(together.actor(state)[own], one.actor(state[own]), rtol=0, atol=1e-5)
        torch.testing.assert_close(together.log_alpha[own], one.log_alpha, rtol=0, atol=1e-6)


def test_without_bootstrap_the_target_is_the_reward_and_nothing_else_changes() -> None:
    """If every transition ends its episode, gamma (1 - done) is 0: the slow critic may as well not exist."""
    batch = transitions()._replace(done=torch.ones(3, BATCH))
    with_slow, without = agents(), agents(bootstrap=False)
    for _ in range(3):
        with_slow.update(batch, Noise(8, KEYS))
        without.update(batch._replace(after=batch.after[:, :, :0]), Noise(8, KEYS))
    assert without.slow is None and torch.equal(without.target(batch, Noise(8, KEYS)), batch.reward)
    for one, other in zip(with_slow.actor.parameters(), without.actor.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scalar_noise_moves_all_dimensions_alike() -> None:
    state = transitions().state
    for draw, alike in (("scalar", True), ("vector", False)):
        learner = agents(draw=draw)
        mean, log_std = learner.actor(state).detach().chunk(2, dim=2)
        eps = (torch.atanh(learner.act(state, Noise(4, KEYS))) - mean) / log_std.exp()
        assert torch.isclose(eps, eps[:, :, :1], atol=1e-3).all() == alike
        assert not torch.isclose(eps[:, 0], eps[:, 1], atol=1e-3).any()  # but each rollout is its own


def test_the_memory_draws_uniformly_from_what_was_written() -> None:
    memory = Replay(10)
    for number in range(3):
        step = torch.full((2, 2), float(number)) + torch.tensor([[0.0, 0.5], [100.0, 100.5]])
        memory.add(Transitions(step[:, :, None], step[:, :, None], step, step[:, :, None], step))
    drawn = memory.draw(3000, Noise(0, torch.arange(2)))
    for k, base in enumerate((0.0, 100.0)):
        values, counts = (drawn.reward[k] - base).unique(return_counts=True)
        assert values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
        assert ((counts - 500).abs() < 5 * (500 * 5 / 6) ** 0.5).all()
    assert torch.equal(drawn.state[:, :, 0], drawn.reward) and torch.equal(drawn.action[:, :, 0], drawn.reward)


def test_agents_find_the_best_action_of_a_bandit() -> None:
    """r = -10 |a - c|^2 with a c of its own for each agent."""
    centre = torch.tensor([[0.6, -0.5, 0.0], [-0.3, 0.7, 0.4], [0.0, 0.2, -0.7]])
    learner = agents(hidden=32, lr=0.01, bootstrap=False)
    memory = Replay(3000)
    for number in range(200):
        noise = Noise(2, KEYS).of(number)
        state = noise.of("s").normal(10, STATES)
        action = learner.act(state, noise.of("a"))
        gained = -10 * (action - centre[:, None]).square().sum(dim=2)
        memory.add(Transitions(state, action, gained, state[:, :, :0], torch.ones_like(gained)))
        learner.update(memory.draw(64, noise.of("r")), noise)
    mean = learner.actor(Noise(6, KEYS).normal(20, STATES)).detach()[:, :, :ACTIONS].tanh().mean(dim=1)
    assert (mean - centre).abs().mean() < 0.15 and (mean - centre).abs().max() < 0.4


# --- the attack


class Watched(Oracle):
    """An oracle that remembers p_y of everything it was asked, [identities, asked]."""

    def __init__(self, world: World, budget: int | None = None) -> None:
        super().__init__(world.target, Access.BLACK_BOX, world.classes, budget)
        self.asked: list[Tensor] = []

    def probs(self, x: Tensor, labels: Tensor | None) -> Tensor:
        p = super().probs(x, labels)
        assert labels is not None
        views = p.unflatten(0, (-1, len(labels)))
        self.asked.append(views[:, torch.arange(len(labels)), labels].T)
        return p


@pytest.mark.parametrize("extra", [False, True])
def test_the_best_of_all_rollouts_are_kept_best_first(extra: bool) -> None:
    world = World(5)
    oracle = Watched(world)
    found = attack_on(world, "rlb", oracle=oracle, images=4, episodes=60, batch=16, hidden=8, extra=extra)
    asked = torch.cat(oracle.asked, dim=1)
    assert asked.shape == (5, 120 if extra else 60)
    with torch.no_grad():
        p = world.target(found.images).softmax(1).gather(1, found.labels[:, None]).reshape(5, 4)
    torch.testing.assert_close(p, asked.topk(4, dim=1).values, rtol=0, atol=1e-5)
    assert len(found.latents.unique(dim=0)) == 20 and found.latents.abs().max() <= 1  # distinct; alpha = 0 keeps tanh


def test_the_policy_itself_improves() -> None:
    world = World(8)
    oracle = Watched(world)
    attack_on(world, "rlb", oracle=oracle, episodes=600)
    asked = torch.cat(oracle.asked, dim=1).log()
    assert (asked[:, -100:].mean(dim=1) > asked[:, :60].mean(dim=1) + 0.5).all()


@pytest.mark.parametrize(
    ("alpha", "steps", "extra", "each"),
    [(0.0, 1, True, 2), (0.0, 1, False, 1), (0.5, 1, True, 3), (0.5, 3, True, 7), (0.0, 3, False, 3)],
)
def test_the_cost_of_every_kind_of_episode(alpha: float, steps: int, extra: bool, each: int) -> None:
    world, oracle = World(4), World(4).oracle(Access.BLACK_BOX)
    labels = torch.tensor([3, 1])
    settings: dict[str, Any] = {"episodes": 24, "episodes_per_update": 4, "batch": 5, "hidden": 8, "images": 3}
    settings |= {"alpha": alpha, "steps": steps, "extra": extra}
    found = attack_on(world, "rlb", labels, oracle=oracle, work=workspace(world, 5), **settings)
    assert quick("rlb", **settings).cost(world.prior) == Cost(24 * each, 0, 0)
    assert oracle.queries.tolist() == [0, 24 * each, 0, 24 * each]
    wide = attack_on(world, "rlb", labels, **settings)
    torch.testing.assert_close(found.latents, wide.latents, rtol=0, atol=1e-4)


def test_a_step_keeps_alpha_of_the_state() -> None:
    """s' = .75 s + .25 a with |a| < 1: every latent lies within .25 of .75 times a start."""
    settings: dict[str, Any] = {"episodes": 4, "episodes_per_update": 4, "images": 4, "alpha": 0.75}
    found = attack_on(World(4), "rlb", **settings).latents.reshape(4, 4, 1, -1)
    start = Noise(0, torch.arange(4)).of("rlb").of("round", 0).of("state").normal(4, found.shape[-1])
    distance = (found - 0.75 * start[:, None]).abs().amax(dim=3)
    assert (distance.amin(dim=2) < 0.25).all() and (distance.amin(dim=1) < 0.25).all()
    assert attack_on(World(4), "rlb", **(settings | {"alpha": 0.0})).latents.abs().max() < 1


def test_what_was_found_before_learning_is_a_failure() -> None:
    world = World(4)
    assert attack_on(world, "rlb", episodes=60, batch=60, hidden=8).failed.all()  # learning needs one more than 60
    assert not attack_on(world, "rlb", episodes=800).failed.any()
    none = attack_on(world, "rlb", oracle=world.oracle(Access.BLACK_BOX, budget=9))  # a round is 10
    assert none.failed.all() and len(none.latents.unique(dim=0)) == 8


def test_presets_are_the_published_numbers_and_the_repositorys_switches() -> None:
    paper, legacy = (registry.configure("attacks", "rlb", preset).plugin for preset in ("paper", "legacy"))
    assert paper == RLB() and (paper.noise, paper.log_prob) == ("vector", "sum")
    assert (legacy.noise, legacy.log_prob) == ("scalar", "mean")
    assert paper.cost(World(2).prior) == Cost(*registry.card("attacks", "rlb")["cost"]) == Cost(80_000, 0, 0)
    found = [
        attack_on(World(4), "rlb", episodes=40, batch=16, noise=noise, log_prob=how).latents
        for noise, how in (("vector", "sum"), ("scalar", "sum"), ("vector", "mean"))
    ]
    assert not torch.isclose(found[0], found[1]).all() and not torch.isclose(found[0], found[2]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"images": 0},
        {"episodes": 25},
        {"episodes_per_update": 0},
        {"alpha": 1.0},
        {"gamma": 1.5},
        {"tau": 2.0},
        {"noise": "none"},
        {"weights": (1.0, 2.0)},
        {"steps": 0},
        {"batch": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="rlb"):
        quick("rlb", **settings)


def test_a_prior_without_latents_to_move_is_refused() -> None:
    with pytest.raises(UserError, match="rlb needs a generator"):
        capabilities.require(quick("rlb"), PublicImages(World(2).public().images))
