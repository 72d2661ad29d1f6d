"""Laws of inner optimisations and of what training on them buys."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from defending import ENGINE, batch_noise, batch_of, inner_images, linear_net, step_of
from torch import Tensor, nn
from worlds import colours, small_net

from mibench import models
from mibench.core import Defense, to_float
from mibench.defenses.at_at import AntiAdversarialTraining
from mibench.defenses.parts.adversary import calm, pgd
from mibench.defenses.pgd_at import AdversarialTraining
from mibench.defenses.trap import TrapMID
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.training import Training, fit

DEFENSES: dict[str, Defense] = {"at_at": AntiAdversarialTraining(), "pgd_at": AdversarialTraining(), "trap": TrapMID()}


def craft(model: nn.Module, x: Tensor, y: Tensor, **changes: Any) -> Tensor:
    asked = {"eps": 0.03, "step": 0.01, "iterations": 8, "targeted": False} | changes
    return pgd(model, x, y, noise=batch_noise(len(x)), autocast=nullcontext, **asked)


def test_calm_gives_back_every_modules_own_flag() -> None:
    net = models.build("resnet", 3, (3, 16, 16)).train()
    net.trunk.eval()
    some = list(net.trunk.modules())[5]
    some.training = True
    learning = next(net.parameters())
    learning.requires_grad_(False)
    before = [module.training for module in net.modules()]
    assert len(set(before)) == 2
    with calm(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == before
    with pytest.raises(KeyboardInterrupt), calm(net):
        raise KeyboardInterrupt
    assert [module.training for module in net.modules()] == before
    assert not learning.requires_grad and sum(not one.requires_grad for one in net.parameters()) == 1


@pytest.mark.parametrize("targeted", [False, True])
def test_it_stays_in_the_ball_and_in_the_images_range(targeted: bool) -> None:
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    x[0], x[1] = 0.0, 1.0
    out = craft(small_net(), x, torch.arange(6) % 3, targeted=targeted)
    assert out.min() >= 0 and out.max() <= 1 and (out - x).abs().max() <= 0.03 + 1e-6
    assert (out - x).abs().max() > 0.0299 and not out.requires_grad
    assert (out[0] >= 0).all() and out[0].max() > 0 and out[1].min() < 1
    still = craft(small_net(), x, torch.arange(6) % 3, eps=0.0)
    assert torch.equal(still, x)


def test_on_two_classes_of_a_linear_network_the_best_change_is_eps_times_a_sign() -> None:
    """CE rises along W_other - W_y wherever x is, so that |delta| <= eps is best at eps sign(W_other - W_y)."""
    net, x, y = linear_net(2), inner_images(5), torch.tensor([0, 1, 1, 0, 1])
    slope = (net.head.weight[1 - y] - net.head.weight[y]).detach().reshape(x.shape).sign()
    torch.testing.assert_close(craft(net, x, y) - x, 0.03 * slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(craft(net, x, y, targeted=True) - x, -0.03 * slope, atol=1e-6, rtol=0)
    # One step from the random start, by hand.
    start = 0.03 * (2 * batch_noise(5).uniform(3, 4, 4) - 1)
    once = (start + 0.01 * slope).clamp(-0.03, 0.03)
    torch.testing.assert_close(craft(net, x, y, iterations=1) - x, once, atol=1e-6, rtol=0)
    torch.testing.assert_close(craft(net, x, y, iterations=0) - x, start, atol=1e-6, rtol=0)
    assert start.abs().max() > 0.028 and abs(float(start.mean())) < 0.004


def test_targeted_raises_and_untargeted_lowers_the_probability() -> None:
    net, x, y = small_net(4).eval(), to_float(colours(9).images), torch.arange(9) % 4

    def p(images: Tensor) -> Tensor:
        return net(images).softmax(1).gather(1, y[:, None])[:, 0].detach()

    assert (p(craft(net, x, y, targeted=True)) > p(x)).all() and (p(craft(net, x, y)) < p(x)).all()


def test_rows_never_meet() -> None:
    net, x, y = small_net(), to_float(colours(6).images), torch.arange(6) % 3
    net.train()
    alone = [
        pgd(net, x[i : i + 1], y[i : i + 1], 0.03, 0.01, 8, False, batch_noise(6).rows(torch.tensor([i])), nullcontext)
        for i in range(6)
    ]
    torch.testing.assert_close(craft(net, x, y), torch.cat(alone), atol=1e-6, rtol=0)


def test_autocast_reaches_the_forward_pass_only() -> None:
    seen: list[bool] = []
    net = small_net()
    net.register_forward_hook(lambda *given: seen.append(torch.is_autocast_enabled("cpu")))
    x = to_float(colours(6).images)
    out = pgd(net, x, torch.arange(6) % 3, 0.03, 0.01, 2, False, batch_noise(6), resolve("cpu", "bf16").autocast)
    assert seen == [True, True] and out.dtype == torch.float32 and (out - x).abs().max() > 0.01


@pytest.mark.parametrize("name", DEFENSES)
def test_inner_loops_leave_no_trace_in_the_network(name: str) -> None:
    defense, net = DEFENSES[name], models.build("cnn", 3, (3, 16, 16)).train()
    net.trunk.stage2.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    split = colours(9, 16)
    step = step_of(net, 9, defense.memory(3, (3, 16, 16)))
    out = defense.batch(batch_of(to_float(split.images), split.labels), step)
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [module.training for module in net.modules()] == flags
    for module in (net, step.memory):
        assert all(one.grad is None and one.requires_grad for one in module.parameters())
    assert not out.x.requires_grad and out.x.min() >= 0 and out.x.max() <= 1


def robust(*defenses: Defense) -> float:
    """Mean p_y under an untargeted change of .1 after a short training."""
    net, split = small_net(), colours(60)
    fit(net, split, 3, Training(epochs=20, batch=20, lr=0.02), ENGINE, 5, Silent(), "toy", list(defenses))
    moved = craft(net, to_float(split.images), split.labels, eps=0.1, step=0.02)
    with torch.no_grad():
        return float(net(moved).softmax(1).gather(1, split.labels[:, None]).mean())


def test_adversarial_training_makes_robust_and_anti_adversarial_training_fragile() -> None:
    plain = robust()
    hardened = robust(AdversarialTraining(eps=0.12, iterations=4))
    fragile = robust(AntiAdversarialTraining(lam=0.5, eps=0.05, iterations=4))
    assert fragile + 0.1 < plain < hardened - 0.1, (fragile, plain, hardened)
