"""Laws of the training loop: it learns, it resumes to the same bits, and the hooks see what they should."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import Stop
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours, small_net

from mibench.core import Batch, Defense, Schedule, Split, Step
from mibench.runtime.engine import at_once, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit, loss_of, predict

ENGINE = resolve("cpu", "fp32")
RECIPE = Training(epochs=4, batch=10, lr=0.02, weight_decay=0.01)


def run(net: nn.Module, recipe: Training = RECIPE, data: Split | None = None, **given: Any) -> list[dict[str, float]]:
    given = {"seed": 3, "reporter": Silent(), "label": "toy"} | given
    return fit(net, data or colours(), 3, recipe, ENGINE, **given).log


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_torchs_generator_decides_nothing_and_stays_as_it_was() -> None:
    """Dropout draws from it within an epoch; a caller's own draws go on as if nothing had been trained."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = small_net(dropout=0.3)
        for parameter in net.parameters():
            torch.nn.init.constant_(parameter, 0.1)
        before = torch.get_rng_state()
        run(net)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state(net))
    assert equal(*states)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["onecycle", "steps", "constant"])
def test_learns_a_separable_problem(optimizer: str, schedule: str) -> None:
    net, unseen = small_net(), colours(60, seed=1)
    recipe = Training(8, 12, 0.05, 1e-4, optimizer, schedule)
    log = run(net, recipe)
    logits, _ = predict(net, unseen.images, ENGINE)
    assert (logits.argmax(1) == unseen.labels).float().mean() > 0.95
    assert [entry["epoch"] for entry in log] == list(range(8)) and log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert not net.training


def test_same_seed_same_bits_another_seed_differs() -> None:
    states = []
    for seed in (3, 3, 4):
        net = small_net(dropout=0.3)
        run(net, seed=seed)
        states.append(state(net))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_what_happens_outside_does_not_matter() -> None:
    """Neither the global generator's state nor draws made by someone else between the steps of two trainings."""
    states = []
    for outside in (0, 12345):
        net = small_net(dropout=0.3)
        torch.manual_seed(outside)
        run(net)
        states.append(state(net))
    assert equal(*states)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_at_any_epoch_it_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)  # type: ignore[arg-type]
    whole = small_net(dropout=0.3)
    log = run(whole, recipe)
    for stop in (0, 3, 4, 6, 8, 15):  # 4 steps an epoch: within and between epochs
        path = tmp_path / f"{stop}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(small_net(dropout=0.3), recipe, reporter=Stop(stop), checkpoint=path)
        assert path.exists() == (stop >= 4)
        # Another start, to see that everything comes from the checkpoint (where there is one).
        again = small_net(seed=7 if path.exists() else 0, dropout=0.3)
        reporter = Stop(1000)
        assert run(again, recipe, reporter=reporter, checkpoint=path) == log
        assert equal(state(again), state(whole)), stop
        assert reporter.seen == reporter.total == 16  # the bar starts where the work does


def test_interrupted_twice(tmp_path: Path) -> None:
    whole = small_net()
    log = run(whole)
    path = tmp_path / "checkpoint.pt"
    for stop in (5, 5):
        with pytest.raises(KeyboardInterrupt):
            run(small_net(), reporter=Stop(stop), checkpoint=path)
    again = small_net()
    assert run(again, checkpoint=path) == log and equal(state(again), state(whole))


def test_a_loss_that_breaks_names_the_step_and_the_setting(tmp_path: Path) -> None:
    recipe = replace(RECIPE, lr=1e30, optimizer="sgd", schedule="constant")
    path = tmp_path / "checkpoint.pt"
    wanted = r"toy: the loss became (nan|inf) at step [123] of 16 \(lr 1e\+30.*training\.lr"
    with pytest.raises(UserError, match=wanted) as e:
        run(small_net(), recipe, checkpoint=path)
    assert "\n" not in str(e.value) and not path.exists()


@pytest.mark.parametrize("count", [20, 21, 22, 23])
def test_no_batch_is_a_single_image_and_every_image_is_seen_once_an_epoch(count: int) -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Watch(Defense):
        def transform(self, x: Tensor, noise: Noise) -> Tensor:
            seen.append(noise.keys)
            return x

    run(small_net(), replace(RECIPE, epochs=2, batch=7), colours(count), defenses=[Watch()])
    sizes = [len(keys) for keys in seen]
    assert max(sizes) <= 7 and max(sizes) - min(sizes) <= 1
    half = len(seen) // 2
    epochs = torch.cat(seen[:half]), torch.cat(seen[half:])
    assert all(torch.equal(keys.sort().values, torch.arange(count)) for keys in epochs)
    assert not torch.equal(*epochs)


def test_loss_is_cross_entropy_and_takes_targets_off_the_simplex() -> None:
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    x, ones = torch.zeros(6, 1, 1, 1), torch.ones(6)
    hot = F.one_hot(y, 4).float()
    torch.testing.assert_close(loss_of(Batch(x, hot, ones, 6), logits), F.cross_entropy(logits, y))
    # Label smoothing, positive and negative: CE((1-a) e_y + a/K) = CE_y - a (mean_k log p - log p_y) in closed form.
    log_p = F.log_softmax(logits, 1)
    for alpha in (0.1, -0.05, -2.0):
        dense = (1 - alpha) * hot + alpha / 4
        closed = (-(1 - alpha) * log_p.gather(1, y[:, None])[:, 0] - alpha * log_p.mean(1)).mean()
        torch.testing.assert_close(loss_of(Batch(x, dense, ones, 6), logits), closed)
        if alpha > 0:
            torch.testing.assert_close(closed, F.cross_entropy(logits, y, label_smoothing=alpha))
    # By hand: -sum_k t_k log p_k.
    soft = torch.softmax(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 1)
    value = loss_of(Batch(x[:1], soft, ones[:1], 1), torch.tensor([[0.5, 0.0, -0.5, 1.0]]))
    assert float(value) == pytest.approx(1.476895, abs=1e-6)


def test_loss_weighs_rows_and_divides_by_the_clean_ones() -> None:
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    weights = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 2.0])
    batch = Batch(torch.zeros(6, 1, 1, 1), F.one_hot(y, 4).float(), weights, 3)
    rows = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(loss_of(batch, logits), (weights * rows).sum() / 3)


@dataclass(frozen=True)
class Spy(Defense):
    """Writes down what each hook is given."""

    strength: float = 0.0
    calls: dict[str, list[Any]] = field(default_factory=dict, compare=False)

    def note(self, hook: str, value: Any) -> None:
        self.calls.setdefault(hook, []).append(value)

    def transform(self, x: Tensor, noise: Noise) -> Tensor:
        self.note("transform", (x, noise))
        return x

    def batch(self, batch: Batch, step: Step) -> Batch:
        self.note("batch", (batch, step.model, step.noise))
        x, t, w = torch.cat([batch.x, batch.x]), torch.cat([batch.t, batch.t]), torch.cat([batch.w, 0 * batch.w])
        twice = Batch(x, t, w, batch.clean)
        return twice if self.strength else batch

    def taps(self, model: nn.Module) -> Sequence[nn.Module]:
        return (model.conv, model.head)

    def penalty(self, batch: Batch, logits: Tensor, taps: Sequence[Tensor], step: Step) -> Tensor | None:
        self.note("penalty", (batch, logits, list(taps)))
        return self.strength * taps[0].square().mean() if self.strength else None

    def wrap(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.note("engine", (model, optimizer))
        return model, optimizer

    def epoch(self, step: Step) -> None:
        self.note("epoch", (step.epoch, step.epochs, step.model.training))


def test_hooks_are_called_with_what_they_should_see() -> None:
    net, spy, data = small_net(), Spy(strength=0.1), colours()
    run(net, defenses=[spy])
    steps = 16
    assert {hook: len(calls) for hook, calls in spy.calls.items()} == {
        "transform": steps,
        "batch": steps,
        "penalty": steps,
        "engine": 1,
        "epoch": 4,
    }
    assert spy.calls["engine"][0][0] is net and isinstance(spy.calls["engine"][0][1], torch.optim.Optimizer)
    assert spy.calls["epoch"] == [(epoch, 4, True) for epoch in range(4)]
    for (x, noise), (batch, model, _), (grown, logits, taps) in zip(
        spy.calls["transform"], spy.calls["batch"], spy.calls["penalty"], strict=True
    ):
        assert x.min() >= 0 and x.max() <= 1 and x.shape[1:] == data.images.shape[1:]
        assert model is net and torch.equal(batch.x, x) and torch.equal(batch.w, torch.ones(len(x)))
        assert torch.equal(batch.t, F.one_hot(data.labels[noise.keys], 3).float())
        assert len(grown.x) == len(logits) == 2 * len(x)
        assert taps[0].shape == (2 * len(x), 8, 12, 12) and taps[1].requires_grad
        assert torch.equal(taps[1], logits)  # the tap on the last layer is the logits of this very pass
    assert not net.conv._forward_hooks and not net.head._forward_hooks


def test_taps_are_removed_when_training_breaks() -> None:
    net = small_net()
    with pytest.raises(KeyboardInterrupt):
        run(net, defenses=[Spy()], reporter=Stop(2))
    assert not net.conv._forward_hooks


def test_noise_is_fresh_each_epoch_apart_for_each_hook_and_keyed_by_the_image() -> None:
    spy = Spy()
    run(small_net(), defenses=[spy])
    drawn: dict[tuple[int, int], list[float]] = {}
    for step, (_, noise) in enumerate(spy.calls["transform"]):
        for key, value in zip(noise.keys.tolist(), noise.uniform(1)[:, 0].tolist(), strict=True):
            drawn[step // 4, key] = [value]
        hook = spy.calls["batch"][step][2]
        assert torch.equal(hook.keys, noise.keys) and not torch.equal(hook.uniform(1), noise.uniform(1))
        assert torch.equal(hook.fixed().uniform(1), noise.fixed().uniform(1))
    assert len(drawn) == 4 * 36 and len({tuple(value) for value in drawn.values()}) == 4 * 36


def test_a_spy_that_changes_nothing_changes_no_bit_and_a_penalty_does() -> None:
    states = []
    for defenses in ([], [Spy()], [Spy(), Spy()], [Spy(strength=0.5)]):
        net = small_net()
        run(net, defenses=defenses)
        states.append(state(net))
    assert equal(states[0], states[1]) and equal(states[0], states[2]) and not equal(states[0], states[3])


def test_defenses_are_applied_in_their_order() -> None:
    @dataclass(frozen=True)
    class Add(Defense):
        amount: float = 0.0

        def transform(self, x: Tensor, noise: Noise) -> Tensor:
            return x + self.amount

    @dataclass(frozen=True)
    class Half(Defense):
        def transform(self, x: Tensor, noise: Noise) -> Tensor:
            return x / 2

    for order, expected in (([Half(), Add(0.5)], lambda x: x / 2 + 0.5), ([Add(0.5), Half()], lambda x: (x + 0.5) / 2)):
        first, last = Spy(), Spy()
        run(small_net(), replace(RECIPE, epochs=1), defenses=[first, *order, last])
        for (x, _), (y, _) in zip(first.calls["transform"], last.calls["transform"], strict=True):
            torch.testing.assert_close(y, expected(x))


def test_before_sees_images_that_no_augmentation_has_touched() -> None:
    seen: list[tuple[Tensor, Noise]] = []

    @dataclass(frozen=True)
    class Blank(Defense):
        def before(self, x: Tensor, noise: Noise) -> Tensor:
            seen.append((x.clone(), noise))
            return torch.zeros_like(x)

    spy, data = Spy(), colours()
    run(small_net(), defenses=[Blank(), spy])
    for (x, noise), (shown, _) in zip(seen, spy.calls["transform"], strict=True):
        assert torch.equal(x, data.images[noise.keys].float() / 255)
        assert torch.equal(shown, torch.zeros_like(shown)), "and the augmentation comes after it"


def test_an_exposure_leaves_out_other_images_in_each_epoch_and_makes_fewer_steps() -> None:
    @dataclass(frozen=True)
    class Half(Defense):
        def exposure(self) -> float:
            return 0.5

    spy, data = Spy(), colours(48)
    recipe = replace(RECIPE, epochs=6, batch=8)
    run(small_net(), recipe, data, defenses=[Half(), spy])
    keys = [noise.keys for _, noise in spy.calls["transform"]]
    assert len(keys) == 6 * 3, "3 of 6 batches an epoch"
    epochs = [torch.cat(keys[3 * epoch : 3 * epoch + 3]) for epoch in range(6)]
    assert all(len(epoch.unique()) == 24 for epoch in epochs)
    assert len({tuple(epoch.sort().values.tolist()) for epoch in epochs}) == 6
    whole = Spy()
    run(small_net(), recipe, data, defenses=[whole])
    order = [noise.keys for _, noise in whole.calls["transform"]]
    assert all(torch.equal(a, b) for a, b in zip(keys[:3], order[:3], strict=True)), "the first of the same order"
    assert Schedule(48, 6, 6, 0, 0.5).steps == 18 and Schedule(48, 6, 6, 0, 0.01).shown == 1


def test_rows_are_made_once_from_the_public_images_and_stand_behind_the_own() -> None:
    data, public = colours(), Split(colours(6, seed=9).images, torch.full((6,), -1))
    made: list[Split] = []

    @dataclass(frozen=True)
    class Guests(Defense):
        def rows(self, train: Split, public: Split, memory: nn.Module, noise: Noise) -> Split:
            made.append(train)
            assert torch.equal(noise.keys, torch.arange(len(train)))
            return Split(torch.cat([train.images, public.images]), torch.cat([train.labels, torch.zeros(6).long()]))

    spy, last = Spy(), Spy()
    run(small_net(), replace(RECIPE, augment=False), data, defenses=[Guests(), spy, Guests(), last], public=public)
    assert [len(one) for one in made] == [36, 42], "each defense sees the rows of those before it"
    keys = torch.cat([noise.keys for _, noise in spy.calls["transform"]])
    assert torch.equal(keys.bincount(), torch.full((48,), 4)), "each row once in each of 4 epochs"
    for (x, noise), (batch, _, _) in zip(spy.calls["transform"], spy.calls["batch"], strict=True):
        guests = noise.keys >= 36
        assert torch.equal(x[guests], public.images[(noise.keys[guests] - 36) % 6].float() / 255)
        assert torch.equal(x[~guests], data.images[noise.keys[~guests]].float() / 255)
        assert (batch.t[guests, 0] == 1).all()
    states = []
    for defenses in ([], [Spy()]):
        net = small_net()
        run(net, data=data, defenses=defenses, public=public)
        states.append(state(net))
    assert equal(*states), "public images alone change no bit"


def test_a_second_pass_has_statistics_of_its_own_and_taps_see_both() -> None:
    seen: list[tuple[int, ...]] = []

    @dataclass(frozen=True)
    class Twice(Defense):
        def batch(self, batch: Batch, step: Step) -> Batch:
            with torch.no_grad():
                step.model(batch.x[:2])  # no output of the step
            x, t, w = torch.cat([batch.x, 1 - batch.x]), torch.cat([batch.t, batch.t]), torch.cat([batch.w, batch.w])
            return Batch(x, t, w, batch.clean, (batch.clean,))

    @dataclass(frozen=True)
    class Look(Defense):
        def taps(self, model: nn.Module) -> Sequence[nn.Module]:
            return (model.head,)

        def penalty(self, batch: Batch, logits: Tensor, taps: Sequence[Tensor], step: Step) -> Tensor | None:
            seen.append((len(batch.x), len(logits), len(taps[0])))
            assert torch.equal(taps[0], logits)
            return None

    run(small_net(), replace(RECIPE, epochs=1), defenses=[Twice(), Look()])
    assert seen and all(rows == given == tapped for rows, given, tapped in seen)


def test_the_gradient_is_that_of_loss_plus_penalties() -> None:
    """One plain step by hand: w - lr (d loss / d w), without augmentation."""
    data, recipe = colours(9), Training(1, 9, 0.1, 0.0, "sgd", "constant", augment=False)
    hand = small_net()
    hand.train()
    order = fitted_order(data, recipe)
    x, y = data.images[order].float() / 255, data.labels[order]
    maps = hand.conv(x)
    logits = hand.head(F.relu(hand.norm(maps)).mean(dim=(2, 3)))
    loss = F.cross_entropy(logits, y) + 0.5 * maps.square().mean()
    gradients = torch.autograd.grad(loss, list(hand.parameters()))
    net = small_net()

    @dataclass(frozen=True)
    class Penalty(Defense):
        def taps(self, model: nn.Module) -> Sequence[nn.Module]:
            return (model.conv,)

        def penalty(self, batch: Batch, logits: Tensor, taps: Sequence[Tensor], step: Step) -> Tensor | None:
            return 0.5 * taps[0].square().mean()

    log = run(net, recipe, data, defenses=[Penalty()])
    assert log[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for mine, theirs, gradient in zip(net.parameters(), hand.parameters(), gradients, strict=True):
        # The first step of Nesterov momentum is lr (1 + momentum) g.
        torch.testing.assert_close(mine, theirs - 0.1 * 1.9 * gradient, rtol=1e-4, atol=1e-6)


def fitted_order(data: Split, recipe: Training) -> Tensor:
    spy = Spy()
    run(small_net(), recipe, data, defenses=[spy])
    return spy.calls["transform"][0][1].keys


def test_learning_rates() -> None:
    onecycle = Training(lr=1.0, schedule="onecycle")
    assert onecycle.rate(0, 100) == pytest.approx(0.04)
    assert onecycle.rate(25, 100) == pytest.approx(1.0)
    assert onecycle.rate(12, 96) == pytest.approx(0.52)  # half of the rise
    assert onecycle.rate(625, 1000) == pytest.approx(0.5)  # half of the fall
    assert onecycle.rate(100, 100) == pytest.approx(0.0, abs=1e-12)
    rates = [onecycle.rate(step, 100) for step in range(100)]
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True) and min(rates) > 0
    steps = Training(lr=1.0, schedule="steps", milestones=(0.5, 0.75))
    assert [steps.rate(step, 8) for step in range(8)] == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)
    assert {Training(lr=0.3, schedule="constant").rate(step, 9) for step in range(9)} == {0.3}


def test_the_optimiser_uses_the_rate_of_each_step() -> None:
    used: list[float] = []

    @dataclass(frozen=True)
    class Watch(Defense):
        def wrap(
            self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
        ) -> tuple[nn.Module, torch.optim.Optimizer]:
            optimizer.register_step_pre_hook(lambda opt, args, kwargs: used.append(opt.param_groups[0]["lr"]))
            return model, optimizer

    run(small_net(), defenses=[Watch()])
    assert used == [RECIPE.rate(step, 16) for step in range(16)]


def test_frozen_parameters_stay() -> None:
    net = small_net()
    net.conv.requires_grad_(False)
    before = state(net)
    run(net)
    after = state(net)
    assert torch.equal(before["conv.weight"], after["conv.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch": 1}, {"lr": 0.0}])
def test_impossible_recipes_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="training"):
        Training(**settings)


def test_predictions_do_not_depend_on_the_batch() -> None:
    net, data = small_net(dropout=0.5), colours(37)
    run(net, replace(RECIPE, epochs=1))
    net.train()
    logits, features = predict(net, data.images, ENGINE)
    assert not net.training and not logits.requires_grad
    torch.testing.assert_close(net.head(features), logits)
    torch.testing.assert_close(net(data.images.float() / 255), logits, rtol=1e-5, atol=1e-6)
    for size in (1, 5, 36):
        for one, other in zip(predict(net, data.images, ENGINE, size), (logits, features), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_base_augmentation_can_be_turned_off() -> None:
    def shown(augment: bool, mirror: bool) -> Tensor:
        spy = Spy()
        run(small_net(), replace(RECIPE, epochs=1, augment=augment), defenses=[spy], mirror=mirror)
        order = torch.cat([noise.keys for _, noise in spy.calls["transform"]])
        return torch.cat([x for x, _ in spy.calls["transform"]])[order.argsort()]

    plain = colours().images.float() / 255
    assert torch.equal(shown(False, True), plain)
    assert (shown(True, True) - plain).abs().flatten(1).amax(1).min() > 0.01
    assert not math.isclose(float((shown(True, True) - shown(True, False)).abs().sum()), 0.0)


@pytest.mark.parametrize(
    ("shape", "most"),
    [((9, 3, 64, 64), 256), ((3, 8, 8), 256), ((9, 3, 128, 128), 64), ((9, 1, 256, 256), 16), ((3, 5000, 5000), 1)],
)
def test_large_images_go_through_a_network_in_smaller_batches_on_a_cpu(shape: tuple[int, ...], most: int) -> None:
    assert at_once(256, shape, torch.device("cpu")) == most
    assert at_once(256, shape, torch.device("cuda")) == 256
