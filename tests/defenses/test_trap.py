"""Trap-MID: balanced traps, the blend, the triggers' step by hand, trap success."""

from typing import Any

import pytest
import torch
from defending import ENGINE, assert_refused, batch_of, inner_images, linear_net, preset, step_of
from torch import nn
from torch.nn import functional as F
from worlds import colours, small_net

from mibench import models
from mibench.core import Defense, to_float
from mibench.defenses.at_at import AntiAdversarialTraining
from mibench.defenses.pgd_at import AdversarialTraining
from mibench.defenses.trap import TrapMID, Traps, balanced_classes, turned
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit


def memory_of(defense: Defense, classes: int, shape: tuple[int, int, int]) -> Traps:
    torch.manual_seed(5)
    memory = defense.memory(classes, shape)
    assert isinstance(memory, Traps)
    return memory


def test_traps_are_balanced_whatever_the_batches_are() -> None:
    classes, n = 7, 35
    every = balanced_classes(Noise(4, torch.arange(n)).of(0), classes)
    assert torch.bincount(every).tolist() == [5] * 7
    assert all(sorted(part.tolist()) == list(range(7)) for part in every.split(7))
    index = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    parts = [balanced_classes(Noise(4, part).of(0), classes) for part in index.split(8)]
    assert torch.equal(torch.cat(parts), every[index])
    assert not torch.equal(every, balanced_classes(Noise(4, torch.arange(n)).of(1), classes))
    # Each place draws each class equally often over the epochs: independent of the image's own class.
    drawn = torch.stack([balanced_classes(Noise(4, torch.arange(7)).of(e), classes) for e in range(1400)])
    table = torch.stack([torch.bincount(drawn[:, place], minlength=7) for place in range(7)]).double()
    assert (table - 200).abs().max() < 4.5 * (1400 / 7 * 6 / 7) ** 0.5


def test_the_injection_is_a_blend() -> None:
    traps, x = memory_of(TrapMID(), 3, (3, 16, 16)), inner_images(4, 3, 16, 16)
    y = torch.tensor([2, 0, 2, 1])
    assert traps.triggers.min() >= 0 and traps.triggers.max() <= 1 and traps.triggers.std() > 0.25
    by_hand = torch.stack([0.75 * x[i] + 0.25 * traps.triggers[k] for i, k in enumerate(y.tolist())])
    assert torch.equal(traps.inject(x, y, 0.25), by_hand)
    assert torch.equal(traps.inject(x, y, 1.0), traps.triggers[y])


def test_the_rows_of_trap_weigh_what_they_should() -> None:
    """(1 - beta) for an image, beta for its trapped copy, n together; the trigger is the one after its step."""
    net, x, y = small_net(), to_float(colours(10, 16).images), colours(10, 16).labels
    defense = TrapMID(alpha=0.1, beta=0.3, turn=False)
    traps = memory_of(defense, 3, (3, 16, 16))
    step = step_of(net, 10, traps)
    out = defense.batch(batch_of(x, y), step)
    assert out.clean == 10 and torch.equal(out.x[:10], x) and torch.equal(out.t[:10], F.one_hot(y, 3).float())
    torch.testing.assert_close(out.w, torch.tensor([0.7] * 10 + [0.3] * 10))
    assert float(out.w.sum()) == pytest.approx(10.0)
    wanted = balanced_classes(step.noise.of("class"), 3)
    assert torch.equal(out.t[10:].argmax(1), wanted)
    assert torch.equal(out.x[10:], traps.inject(x, wanted, 0.1))
    # Rows that another defense has added keep their weight and stand before the trapped ones.
    stacked = AntiAdversarialTraining().batch(batch_of(x, y), step)
    out = defense.batch(stacked, step)
    torch.testing.assert_close(out.w, torch.tensor([0.7] * 10 + [0.08] * 10 + [0.3] * 10))
    assert torch.equal(out.x[10:20], stacked.x[10:])


def test_one_step_of_the_triggers_by_hand() -> None:
    """f = W x, D(x) = v x: d/dx' = -sigmoid(-D) v + W' (p - e_y'), summed over the images that share a trigger."""
    net, x = linear_net(3), inner_images(7)
    torch.manual_seed(8)
    value = torch.randn(48)
    defense = TrapMID(alpha=0.5, beta=0.2, step=0.125, lr=0.0, turn=False)
    traps = memory_of(defense, 3, (3, 16, 16))
    traps.triggers = torch.rand(3, 3, 4, 4)
    traps.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(48, 1, bias=False))
    traps.discriminator[1].weight.data.copy_(value[None])
    traps.momentum0 = torch.zeros(1, 48)
    before, step = traps.triggers.clone(), step_of(net, 7, traps)
    y = balanced_classes(step.noise.of("class"), 3)
    seen = traps.inject(x, y, 0.5).flatten(1)
    with torch.no_grad():
        p = net(seen.reshape(-1, 3, 4, 4)).softmax(1) - F.one_hot(y, 3)
        slope = -torch.sigmoid(-seen @ value)[:, None] * value + p @ net.head.weight
    total = torch.zeros(3, 48).index_add(0, y, slope).reshape(3, 3, 4, 4)
    defense.batch(batch_of(x, torch.arange(7) % 3), step)
    torch.testing.assert_close(traps.triggers, (before - 0.125 * total.sign()).clamp(0, 1), atol=1e-6, rtol=0)
    assert (traps.triggers == 0).any() and (traps.triggers == 1).any()


def test_a_trigger_that_no_image_of_the_batch_carries_stays() -> None:
    net, x = small_net(9), to_float(colours(4, 16).images)
    defense = TrapMID()
    traps = memory_of(defense, 9, (3, 16, 16))
    before, step = traps.triggers.clone(), step_of(net, 4, traps)
    defense.batch(batch_of(x, torch.arange(4), 9), step)
    used = balanced_classes(step.noise.of("class"), 9)
    moved = (traps.triggers - before).flatten(1).abs().amax(dim=1) > 0
    assert torch.equal(moved.nonzero()[:, 0], used.sort().values)


def test_the_discriminators_step_is_torchs_sgd_on_binary_cross_entropy() -> None:
    """As in the authors' engine.py: one mean over the joint batch (twice ours before), and the target's SGD."""
    traps, ours = (memory_of(TrapMID(), 3, (3, 16, 16)) for _ in range(2))
    theirs = traps.discriminator
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for number in range(3):
        x, fake = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        ours.discriminate(x, fake, 0.05)
        logits = theirs(torch.cat([x, fake]))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat([torch.ones(5), torch.zeros(5)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, other in zip(ours.discriminator.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def trapped(epochs: int, turn: bool = False) -> tuple[float, float]:
    """(trap success, natural accuracy) on the training images after so many epochs."""
    torch.manual_seed(0)
    net, split = models.build("cnn", 3, (3, 16, 16)), colours(60, 16)
    recipe = Training(epochs=epochs, batch=20, lr=0.01, augment=False)
    report = fit(net, split, 3, recipe, ENGINE, 5, Silent(), "toy", [TrapMID(alpha=0.1, beta=0.5, turn=turn)]).reports[
        0
    ]
    return report["trap_success"], float((net(to_float(split.images)).argmax(1) == split.labels).float().mean())


def test_traps_catch_more_the_longer_they_are_trained() -> None:
    early, late = trapped(1), trapped(15)
    assert late[0] > 0.9 and early[0] < 0.7, (early, late)
    assert late[1] > 0.9, "and images without a trigger are still told apart"


def test_views_are_the_authors_each_with_a_coin_of_its_own() -> None:
    """aug_list of engine.py: crop of area .8-1, mirror, turn by up to 30 degrees, each with probability 1/2."""
    n, side = 4000, 33
    line = torch.linspace(-1, 1, side)
    x = torch.stack([line.expand(side, side), line[:, None].expand(side, side)])  # a pixel's own place
    seen = turned(x.expand(n, 2, side, side), Noise(3, torch.arange(n)))
    middle = side // 2
    step = 2 / (side - 1)
    across, down = ((seen[:, :, middle, middle + 1] - seen[:, :, middle, middle - 1]) / (2 * step)).unbind(1)
    angle = torch.rad2deg(torch.atan2(down, across.abs()))
    scale = torch.hypot(across, down)
    within = 4.5 * (0.25 / n) ** 0.5
    assert abs(float((across < 0).float().mean()) - 0.5) < within
    turning, cropped = angle.abs() > 1e-3, (scale - 1).abs() > 1e-4
    assert abs(float(turning.float().mean()) - 0.5) < within and angle.abs().max() < 30.1
    assert angle.max() > 29 and angle.min() < -29
    assert abs(float(cropped.float().mean()) - 0.5) < within
    assert scale.max() < 1 + 1e-4 and 0.8 - 1e-3 < scale.square().min() < 0.805
    both = (turning & cropped & (across < 0)).float().mean()
    assert abs(float(both) - 0.125) < 4.5 * (0.125 * 0.875 / n) ** 0.5
    assert torch.equal(turned(x.expand(3, 2, side, side), Noise(3, torch.arange(3))), seen[:3])


def test_the_network_sees_images_and_traps_turned_after_the_trigger_came_in() -> None:
    net, x, y = small_net(), to_float(colours(10, 16).images), colours(10, 16).labels
    defense = TrapMID(alpha=0.5)
    traps = memory_of(defense, 3, (3, 16, 16))
    step = step_of(net, 10, traps)
    out = defense.batch(batch_of(x, y), step)
    wanted = balanced_classes(step.noise.of("class"), 3)
    torch.testing.assert_close(out.x[:10], turned(x, step.noise.of("clean view")))
    torch.testing.assert_close(out.x[10:], turned(traps.inject(x, wanted, 0.5), step.noise.of("trapped view")))
    assert not torch.equal(out.x[:10], x)


def test_turned_traps_still_catch() -> None:
    caught, natural = trapped(25, turn=True)
    assert caught > 0.8 and natural > 0.8, (caught, natural)


def test_trap_success_by_hand() -> None:
    """A network that sees nothing but the trigger is caught always, one that sees nothing once in K times."""
    defense, split = TrapMID(alpha=1.0), colours(30, 4)
    net = linear_net(3).eval()
    traps = memory_of(defense, 3, (3, 16, 16))
    traps.triggers = torch.rand(3, 3, 4, 4)
    with torch.no_grad():
        net.head.weight.copy_(10 * (traps.triggers - 0.5).flatten(1))
        net.head.bias.copy_(-5 * (traps.triggers - 0.5).square().flatten(1).sum(1))
    step = step_of(net, 30, traps, epoch=3)
    assert defense.finish(step, split) == {"trap_success": 1.0}
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert defense.finish(step, split)["trap_success"] == pytest.approx(1 / 3)


def test_no_traps_no_memory() -> None:
    assert TrapMID(beta=0.0).memory(3, (3, 16, 16)) is None
    net, given = small_net(), batch_of(to_float(colours(6).images), colours(6).labels)
    for defense in (TrapMID(beta=0.0), AntiAdversarialTraining(lam=0.0), AdversarialTraining(eps=0.0)):
        assert defense.batch(given, step_of(net, 6)) is given
        assert defense.finish(step_of(net, 6), colours(6)) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"alpha": 1.1},
        {"beta": 1.0},
        {"beta": -0.1},
        {"step": 1.1},
        {"lr": -1.0},
        {"alpha": float("nan")},
        {"beta": float("nan")},
        {"step": float("nan")},
        {"lr": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("trap", settings)


def test_the_papers_settings() -> None:
    assert preset("trap") == TrapMID(0.02, 0.2, 0.01, 0.01, True) == TrapMID()
