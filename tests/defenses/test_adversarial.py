"""Laws of inner optimisations and of the defenses that live on them: at_at, pgd_at and trap."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours, small_net

from mibench import models
from mibench.core import Batch, Defense, Step, to_float
from mibench.defenses.at_at import AntiAdversarialTraining, other_classes
from mibench.defenses.parts.adversary import calm, pgd
from mibench.defenses.pgd_at import AdversarialTraining
from mibench.defenses.trap import TrapMID, Traps, balanced_classes
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit

ENGINE = resolve("cpu", "fp32")
DEFENSES: dict[str, Defense] = {"at_at": AntiAdversarialTraining(), "pgd_at": AdversarialTraining(), "trap": TrapMID()}


def linear(classes: int = 3, seed: int = 0) -> Classifier:
    """l = W (pixels), on images of 3 x 4 x 4."""
    torch.manual_seed(seed)
    return Classifier(Prepare((3, 4, 4), [0.0], [1.0]), nn.Flatten(), nn.Linear(48, classes), 48)


def inside(n: int, *shape: int) -> Tensor:
    """Images whose pixels are far from 0 and 1."""
    return 0.3 + 0.4 * torch.rand(n, *(shape or (3, 4, 4)), generator=torch.Generator().manual_seed(1))


def noise(n: int) -> Noise:
    return Noise(3, torch.arange(n)).of("batch")


def craft(model: nn.Module, x: Tensor, y: Tensor, **changes: Any) -> Tensor:
    asked = {"eps": 0.03, "step": 0.01, "iterations": 8, "targeted": False} | changes
    return pgd(model, x, y, noise=noise(len(x)), autocast=nullcontext, **asked)


def step_of(model: nn.Module, n: int, memory: nn.Module | None = None, epoch: int = 0) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Step(model, memory or nn.Module(), optimizer, noise(n), epoch, 3, ENGINE)


def batch_of(x: Tensor, y: Tensor, classes: int = 3) -> Batch:
    return Batch(x, F.one_hot(y, classes).float(), torch.ones(len(x)), len(x))


def memory_of(defense: Defense, classes: int, shape: tuple[int, int, int]) -> Traps:
    torch.manual_seed(5)
    memory = defense.memory(classes, shape)
    assert isinstance(memory, Traps)
    return memory


# --- calm and pgd


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
    net, x, y = linear(2), inside(5), torch.tensor([0, 1, 1, 0, 1])
    slope = (net.head.weight[1 - y] - net.head.weight[y]).detach().reshape(x.shape).sign()
    torch.testing.assert_close(craft(net, x, y) - x, 0.03 * slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(craft(net, x, y, targeted=True) - x, -0.03 * slope, atol=1e-6, rtol=0)
    # One step from the random start, by hand.
    start = 0.03 * (2 * noise(5).uniform(3, 4, 4) - 1)
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
        pgd(net, x[i : i + 1], y[i : i + 1], 0.03, 0.01, 8, False, noise(6).rows(torch.tensor([i])), nullcontext)
        for i in range(6)
    ]
    torch.testing.assert_close(craft(net, x, y), torch.cat(alone), atol=1e-6, rtol=0)


def test_autocast_reaches_the_forward_pass_only() -> None:
    seen: list[bool] = []
    net = small_net()
    net.register_forward_hook(lambda *given: seen.append(torch.is_autocast_enabled("cpu")))
    x = to_float(colours(6).images)
    out = pgd(net, x, torch.arange(6) % 3, 0.03, 0.01, 2, False, noise(6), resolve("cpu", "bf16").autocast)
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


# --- at_at and pgd_at


def test_the_added_rows_of_at_at() -> None:
    """Own rows untouched, then (x + delta, y') with y' != y; the row weights sum to 1.08 n."""
    net, split = small_net(), colours(12)
    given = batch_of(to_float(split.images), split.labels)
    defense = AntiAdversarialTraining(eps=0.01, iterations=10)
    out = defense.batch(given, step_of(net, 12))
    assert out.clean == 12 and torch.equal(out.x[:12], given.x) and torch.equal(out.t[:12], given.t)
    assert float(out.w.sum()) == pytest.approx(1.08 * 12) and torch.equal(out.w[12:], torch.full((12,), 0.08))
    y = out.t[12:].argmax(1)
    assert torch.equal(out.t[12:], F.one_hot(y, 3).float()) and (y != split.labels).all()
    assert (out.x[12:] - given.x).abs().max() <= 0.01 + 1e-6

    def p(images: Tensor) -> Tensor:
        return net.eval()(images).softmax(1).gather(1, y[:, None])[:, 0]

    assert (p(out.x[12:]) > p(given.x)).all()


def test_other_classes_are_even_and_never_the_own() -> None:
    n = 8000
    y = torch.arange(n) % 5
    drawn = other_classes(y, 5, Noise(0, torch.arange(n)))
    table = torch.stack([torch.bincount(drawn[y == k], minlength=5) for k in range(5)])
    assert (table.diagonal() == 0).all()
    others = table[~torch.eye(5, dtype=torch.bool)].double()
    assert (others - n / 20).abs().max() < 4.5 * (n / 5 * 0.25 * 0.75) ** 0.5
    assert torch.equal(other_classes(y, 2, Noise(0, torch.arange(n)))[y < 2], 1 - y[y < 2])


def test_pgd_at_replaces_images_and_nothing_else() -> None:
    net, split = small_net(), colours(12)
    own = batch_of(to_float(split.images), split.labels)
    given = Batch(torch.cat([own.x, own.x[:4]]), torch.cat([own.t, own.t[:4]]), torch.ones(16), 12)
    out = AdversarialTraining(eps=0.02).batch(given, step_of(net, 12))
    assert out.clean == 12 and torch.equal(out.t, given.t) and torch.equal(out.w, given.w)
    assert torch.equal(out.x[12:], given.x[12:])
    assert torch.equal(
        out.x[:12], pgd(net, own.x, split.labels, 0.02, 0.005, 7, False, noise(12).of("start"), nullcontext)
    )


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


# --- trap


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
    traps, x = memory_of(TrapMID(), 3, (3, 16, 16)), inside(4, 3, 16, 16)
    y = torch.tensor([2, 0, 2, 1])
    assert traps.triggers.min() >= 0 and traps.triggers.max() <= 1 and traps.triggers.std() > 0.25
    by_hand = torch.stack([0.75 * x[i] + 0.25 * traps.triggers[k] for i, k in enumerate(y.tolist())])
    assert torch.equal(traps.inject(x, y, 0.25), by_hand)
    assert torch.equal(traps.inject(x, y, 1.0), traps.triggers[y])


def test_the_rows_of_trap_weigh_what_they_should() -> None:
    """(1 - beta) for an image, beta for its trapped copy, n together; the trigger is the one after its step."""
    net, x, y = small_net(), to_float(colours(10, 16).images), colours(10, 16).labels
    defense = TrapMID(alpha=0.1, beta=0.3)
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
    net, x = linear(3), inside(7)
    torch.manual_seed(8)
    value = torch.randn(48)
    defense = TrapMID(alpha=0.5, beta=0.2, step=0.125, lr=0.0)
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
    traps, ours = (memory_of(TrapMID(), 3, (3, 16, 16)) for _ in range(2))
    theirs = traps.discriminator
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for number in range(3):
        x, fake = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        ours.discriminate(x, fake, 0.05)
        logits = theirs(torch.cat([x, fake]))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits[:5], torch.ones(5))
        loss = loss + F.binary_cross_entropy_with_logits(logits[5:], torch.zeros(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, other in zip(ours.discriminator.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def trapped(epochs: int) -> tuple[float, float]:
    """(trap success, natural accuracy) on the training images after so many epochs."""
    torch.manual_seed(0)
    net, split = models.build("cnn", 3, (3, 16, 16)), colours(60, 16)
    recipe = Training(epochs=epochs, batch=20, lr=0.01, augment=False)
    report = fit(net, split, 3, recipe, ENGINE, 5, Silent(), "toy", [TrapMID(alpha=0.1, beta=0.5)]).reports[0]
    return report["trap_success"], float((net(to_float(split.images)).argmax(1) == split.labels).float().mean())


def test_traps_catch_more_the_longer_they_are_trained() -> None:
    early, late = trapped(1), trapped(15)
    assert late[0] > 0.9 and early[0] < 0.7, (early, late)
    assert late[1] > 0.9, "and images without a trigger are still told apart"


def test_trap_success_by_hand() -> None:
    """A network that sees nothing but the trigger is caught always, one that sees nothing once in K times."""
    defense, split = TrapMID(alpha=1.0), colours(30, 4)
    net = linear(3).eval()
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


# --- settings


def test_the_papers_settings() -> None:
    paper = {name: registry.configure("defenses", name, "paper").plugin for name in DEFENSES}
    assert paper["at_at"] == AntiAdversarialTraining(0.08, 2.5e-4, 0.2, 5)
    assert paper["trap"] == TrapMID(0.02, 0.2, 0.01) == TrapMID()
    assert replace(paper["pgd_at"], eps=0.0) == AdversarialTraining(0.0, 0.25, 7)
    assert paper["pgd_at"].eps == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("at_at", {"lam": -0.1}),
        ("at_at", {"eps": 1.1}),
        ("at_at", {"step": 0.0}),
        ("at_at", {"iterations": 0}),
        ("pgd_at", {"eps": -0.1}),
        ("pgd_at", {"step": 2.1}),
        ("pgd_at", {"iterations": 0}),
        ("trap", {"alpha": 0.0}),
        ("trap", {"alpha": 1.1}),
        ("trap", {"beta": 1.0}),
        ("trap", {"beta": -0.1}),
        ("trap", {"step": 1.1}),
        ("trap", {"lr": -1.0}),
        *[("at_at", {field: float("nan")}) for field in ("lam", "eps", "step")],
        *[("pgd_at", {field: float("nan")}) for field in ("eps", "step")],
        *[("trap", {field: float("nan")}) for field in ("alpha", "beta", "step", "lr")],
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        replace(DEFENSES[name], **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", name, settings=settings)
