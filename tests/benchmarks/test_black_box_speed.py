"""Black-box and label-only attacks against plain ports of how their authors structure them: one class, one image at a
time. Printed and never asserted; skipped in normal runs. To measure:

python -m pytest tests/benchmarks -o addopts="" --benchmark-only --benchmark-group-by=group
"""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench import models
from mibench.attacks.brep import BREP
from mibench.attacks.rlb import RLB
from mibench.core import Access, Attack, AttackContext, Oracle, Split
from mibench.experiments.bench.machine import spent
from mibench.models.fold import fold
from mibench.priors.wgan_gp import WganGp, WganPrior
from mibench.runtime.engine import Engine, device_name, fast_bf16, set_threads

DEVICE = torch.device(device_name("auto"))
CLASSES, PAIRS = 100, 2
AT_ONCE = 100 if DEVICE.type == "cuda" else 16
"""Classes that ours attacks together; the ports attack one."""
EPISODES, HIDDEN, REMEMBERED = 12, 256, 4
SPHERES = 1


def networks() -> tuple[nn.Module, WganPrior]:
    """VGG16-BN for 64 px and GMI's generator at the published width."""
    torch.manual_seed(0)
    target = models.build("vgg16_bn64", CLASSES, (3, 64, 64)).eval()
    nothing = Split(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    return target.to(DEVICE), WganGp().build((3, 64, 64), CLASSES, nothing).eval().to(DEVICE)


def ours(attack: Attack, access: Access) -> Callable[[], object]:
    """Many classes at once, networks placed as the stage `invert` places them."""
    engine = Engine(DEVICE, "bf16" if fast_bf16(DEVICE.type) else "fp32")
    target, prior = (engine.place(part).requires_grad_(False) for part in (fold(networks()[0]), networks()[1]))  # type: ignore[arg-type]
    oracle, labels = Oracle(target, access, CLASSES), torch.arange(AT_ONCE, device=DEVICE)

    def attacked() -> None:
        with engine.autocast():
            attack(oracle, prior, labels, 0, AttackContext(2048 if DEVICE.type == "cuda" else 128))  # type: ignore[arg-type]

    return attacked


def compare(benchmark: Any, capsys: Any, name: str, attack: Attack, access: Access, port: Callable[[], object]) -> None:
    """Seconds of ours through the benchmark; the ratio per class from pairs measured in turn."""
    set_threads(DEVICE.type)
    many = ours(attack, access)
    benchmark.pedantic(many, rounds=1, warmup_rounds=1)
    port()
    pairs = [(spent(port, DEVICE), spent(many, DEVICE) / AT_ONCE) for _ in range(PAIRS)]
    ratios = sorted(one / other for one, other in pairs)
    with capsys.disabled():
        print(
            f"\n{name}: {statistics.median(ratios):.1f}x per class ({ratios[0]:.1f} to {ratios[-1]:.1f}), "
            f"{pairs[0][0]:.2f} s against {pairs[0][1]:.4f} s on {DEVICE}"
        )


# --- rlb


class PlainAgent:
    """Soft actor-critic for one class: modules, three optimisers, slow critics."""

    def __init__(self, dim: int, hidden: int) -> None:
        def network(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
            ).to(DEVICE)

        self.actor, self.critics = network(dim, 2 * dim), [network(2 * dim, 1) for _ in range(2)]
        self.slow = [network(2 * dim, 1) for _ in range(2)]
        self.log_alpha = torch.zeros((), device=DEVICE, requires_grad=True)
        self.of_critics = [torch.optim.Adam(critic.parameters(), lr=5e-4) for critic in self.critics]
        self.of_actor = torch.optim.Adam(self.actor.parameters(), lr=5e-4)
        self.of_alpha = torch.optim.Adam([self.log_alpha], lr=5e-4)
        self.memory: list[tuple[Tensor, Tensor, float, Tensor, float]] = []

    def policy(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(state).chunk(2, dim=1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        u = normal.rsample()
        action = u.tanh()
        return action, (normal.log_prob(u) - torch.log(1 - action.square() + 1e-6)).sum(dim=1, keepdim=True)

    def learn(self) -> None:
        rows = [self.memory[int(i)] for i in torch.randperm(len(self.memory))[:REMEMBERED]]
        state, action, after = (torch.cat([row[i] for row in rows]) for i in (0, 1, 3))
        gained, done = (torch.tensor([row[i] for row in rows], device=DEVICE)[:, None] for i in (2, 4))
        with torch.no_grad():
            chosen, density = self.policy(after)
            low = torch.minimum(*(critic(torch.cat([after, chosen], 1)) for critic in self.slow))
            target = gained + 0.99 * (1 - done) * (low - self.log_alpha.exp() * density)
        for critic, optimizer in zip(self.critics, self.of_critics, strict=True):
            optimizer.zero_grad()
            (0.5 * F.mse_loss(critic(torch.cat([state, action], 1)), target)).backward()
            optimizer.step()
        chosen, density = self.policy(state)
        value = torch.minimum(*(critic(torch.cat([state, chosen], 1)) for critic in self.critics))
        self.of_actor.zero_grad()
        (self.log_alpha.exp().detach() * density - value).mean().backward()
        self.of_actor.step()
        self.of_alpha.zero_grad()
        (-self.log_alpha.exp() * (density.detach() - action.shape[1])).mean().backward()
        self.of_alpha.step()
        for slow, critic in zip(self.slow, self.critics, strict=True):
            for old, new in zip(slow.parameters(), critic.parameters(), strict=True):
                old.data.copy_(0.99 * old.data + 0.01 * new.data)


def plain_rlb(target: nn.Module, prior: Any, label: int) -> float:
    """An episode is one image at s', one at a, an update, and one image of an extra rollout; all are read at once."""
    agent, best = PlainAgent(100, HIDDEN), 0.0
    for _ in range(EPISODES):
        state = torch.randn(1, 100, device=DEVICE)
        with torch.no_grad():
            action = agent.policy(state)[0]
            p, at_action = (target(prior.generator(z)).softmax(1)[0] for z in (action, action))
            margin = float(p[label]) - float(torch.cat([p[:label], p[label + 1 :]]).max())
            gained = 2 * float(p[label].log()) + 2 * float(at_action[label].log())
            gained += 8 * float(torch.tensor(max(1e-7, margin)).log())
        agent.memory.append((state, action, gained, action, 1.0))
        if len(agent.memory) > REMEMBERED:
            agent.learn()
        with torch.no_grad():
            extra = agent.policy(torch.randn(1, 100, device=DEVICE))[0]
            best = max(best, float(target(prior.generator(extra)).softmax(1)[0, label]))
    return best


@pytest.mark.parametrize("together", [1, 12])
@pytest.mark.benchmark(group=f"rlb, {EPISODES} episodes of {AT_ONCE} classes")
def test_rlb(benchmark: Any, capsys: Any, together: int) -> None:
    """The same episodes and networks; with `together` episodes to an update."""
    target, prior = networks()
    attack = RLB(episodes=EPISODES, hidden=HIDDEN, batch=REMEMBERED, episodes_per_update=together)
    port = lambda: plain_rlb(target, prior, 3)  # noqa: E731
    compare(benchmark, capsys, f"rlb, {together} episode(s) an update", attack, Access.BLACK_BOX, port)


# --- brep


def plain_brep(target: nn.Module, prior: Any, label: int) -> Tensor:
    """Every point of a sphere is an image of its own, read before the next is asked."""
    z = torch.randn(1, 100, device=DEVICE).clamp(-1.5, 1.5)
    with torch.no_grad():
        for _ in range(SPHERES):
            u = F.normalize(torch.randn(32, 100, device=DEVICE), dim=1)
            outside = [float(int(target(prior.generator(z + 2 * row)).argmax()) != label) for row in u]
            step = (torch.tensor(outside, device=DEVICE)[:, None] * u).mean(dim=0)
            proposal = (z - 2 / 3 * step).clamp(-1.5, 1.5)
            z = proposal if int(target(prior.generator(proposal)).argmax()) == label else z
    return z


@pytest.mark.benchmark(group=f"brep, {SPHERES} sphere(s) of {AT_ONCE} classes")
def test_brep(benchmark: Any, capsys: Any) -> None:
    """All points of all spheres in one forward pass (in pieces of a batch), or one by one."""
    target, prior = networks()
    attack = BREP(iterations=SPHERES, init_pool=1)
    compare(benchmark, capsys, "brep", attack, Access.LABEL_ONLY, lambda: plain_brep(target, prior, 3))
