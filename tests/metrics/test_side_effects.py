"""Laws of what a defense changes besides accuracy: robustness, calibration, the gradients an attacker starts from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import colours

from mibench.core import Split
from mibench.core.losses import cross_entropy, max_margin
from mibench.evaluation.side_effects import side_effects
from mibench.metrics import calibration, gradients, robustness
from mibench.metrics.calibration import Calibration
from mibench.models.base import Classifier, Prepare
from mibench.models.served import Served, Shaper
from mibench.runtime.rng import Noise

SHAPE = (3, 4, 4)
EPS = (0.04, 0.02, 0.005)


def linear(classes: int, scale: float = 1.0, seed: int = 0) -> Classifier:
    """logits = scale W (x - 1/2) + b."""
    torch.manual_seed(seed)
    model = Classifier(Prepare(SHAPE, [0.5], [1.0]), nn.Flatten(), nn.Linear(48, classes), 48).eval()
    with torch.no_grad():
        model.head.weight.mul_(scale)
        model.head.bias.mul_(scale)
    return model


def inner_images(count: int, seed: int = 0) -> Tensor:
    """So far from 0 and 1 that no attack is stopped there."""
    return 0.1 + 0.8 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


# --- robustness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_accuracy_of_two_linear_classes_is_the_share_of_margins_above_eps_times_the_l1_norm(scale: float) -> None:
    # scale 1e4: the softmax is saturated, and the cross-entropy would have no gradient.
    model, x = linear(2, scale), inner_images(120)
    with torch.no_grad():
        y = model(x).argmax(1)
        y[:20] = 1 - y[:20]  # some are wrong as they are
        difference = model.head.weight[0] - model.head.weight[1]
        margin = model(x).diff(dim=1)[:, 0] * torch.where(y == 1, 1.0, -1.0)
    found = robustness.correct_under_attack(model, x, y, EPS)
    for row, eps in zip(found, EPS, strict=True):
        expected = margin > eps * difference.abs().sum()
        sure = (margin - eps * difference.abs().sum()).abs() > 1e-4 * scale
        assert torch.equal(row[sure], expected[sure]) and sure.float().mean() > 0.95
    shares = found.float().mean(dim=1)
    assert 0 < shares[0] < shares[1] < shares[2] < 0.84


def test_of_several_linear_classes_the_nearest_boundary_counts() -> None:
    model, x = linear(4), inner_images(100, seed=1)
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        apart = (model.head.weight[y][:, None] - model.head.weight[None]).abs().sum(2)  # n k
        reach = ((logits.gather(1, y[:, None]) - logits) / apart.clamp(min=1e-9)).scatter(1, y[:, None], math.inf)
    found = robustness.correct_under_attack(model, x, y, EPS, steps=20)
    for row, eps in zip(found, EPS, strict=True):
        can_fall = reach.amin(1) < eps
        assert bool((row | can_fall).all()), "nothing falls that cannot"
        assert float((row & can_fall).float().mean()) <= 0.02, "and what can fall does"
    assert 0.05 < float(found[1].float().mean()) < 0.95


def test_larger_eps_never_leaves_more_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5))
    model = Classifier(Prepare(SHAPE, [0.5], [0.2]), nn.Flatten(), head, 48).eval()
    x = inner_images(70)
    with torch.no_grad():
        y = model(x).argmax(1)
    up = robustness.correct_under_attack(model, x, y, (0.0, 0.001, 0.01, 0.03, 0.1))
    assert bool((up[:-1] | ~up[1:]).all()) and up[0].all() and not up[-1].all()
    down = robustness.correct_under_attack(model, x, y, (0.1, 0.03, 0.01, 0.001, 0.0))
    assert torch.equal(up.flip(0), down)


def test_no_change_exceeds_eps_or_leaves_the_image_range_and_nothing_is_left_behind() -> None:
    model, eps = linear(3), 0.03
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(2)).round()  # pixels at 0 and at 1
    y = model(x).argmax(1)
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return model(images)

    state, before = torch.random.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    found = robustness.correct_under_attack(watched, x, y, (eps,))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found, robustness.correct_under_attack(model, x, y, (eps,))), "the same seed, the same bits"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for images in seen:
        assert images.min() >= 0 and images.max() <= 1
        nearest = (images[:, None] - x[None]).abs().flatten(2).amax(2).amin(1)
        assert nearest.max() <= eps + 1e-6


def test_a_tie_falls_and_a_network_without_gradients_raises_no_alarm() -> None:
    x, y = inner_images(6), torch.tensor([0, 1, 2, 0, 1, 2])

    def constant(images: Tensor) -> Tensor:
        return 0.0 * images.flatten(1)[:, :3]

    assert not robustness.correct_under_attack(constant, x, y, (0.01,)).any()

    def right_for_no_reason(images: Tensor) -> Tensor:
        return 0.0 * images.flatten(1)[:, :3] + 9 * torch.eye(3)[y]

    intervals = robustness.adversarial_accuracy(right_for_no_reason, x, y).values()
    assert [found.value for found in intervals] == [1.0] * 3 and all(found.low < 1 for found in intervals)


def test_spread_takes_a_turn_with_every_identity() -> None:
    labels = torch.tensor([2, 0, 0, 0, 1, 1, 2, 2, 2])
    assert robustness.spread(labels, 3).tolist() == [0, 1, 4]
    assert robustness.spread(labels, 6).tolist() == [0, 1, 2, 4, 5, 6]
    assert robustness.spread(labels, 99).tolist() == list(range(9))


# --- calibration ----------------------------------------------------------------------------------------------------


def two_classes(confidence: list[float]) -> Tensor:
    """Scores of class 0 as given, all at least a half."""
    first = torch.tensor(confidence)
    return torch.stack([first, 1 - first], dim=1)


def test_ece_by_hand() -> None:
    # Bins of a fifth: {.55, .59} with one right, {.7, .79} with both, {.95} wrong.
    probs = two_classes([0.55, 0.59, 0.7, 0.79, 0.95])
    labels = torch.tensor([0, 1, 0, 0, 1])
    expected = (2 * abs(0.5 - 0.57) + 2 * abs(1 - 0.745) + abs(0 - 0.95)) / 5
    found = calibration.calibration(probs, labels, bins=5)
    assert found.ece == pytest.approx(expected, abs=1e-6) and found.confidence == pytest.approx(0.716, abs=1e-6)


def test_bins_are_closed_above() -> None:
    # 3/4 lies in the bin (1/2, 3/4], with .6; open above, it would lie with .9.
    probs, labels = two_classes([0.6, 0.75, 0.9]), torch.tensor([0, 1, 0])
    together = (abs(1 - 1.35) + abs(1 - 0.9)) / 3
    assert calibration.calibration(probs, labels, bins=4).ece == pytest.approx(together, abs=1e-6)


def test_a_calibrated_network_has_no_error_and_a_boastful_one_all_of_it() -> None:
    probs = two_classes([0.75] * 4 + [0.6] * 5 + [1.0] * 2)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0])
    assert calibration.calibration(probs, labels).ece == pytest.approx(0.0, abs=1e-6)
    sure = torch.eye(3)[[0, 1, 2, 0]]
    assert calibration.calibration(sure, torch.tensor([1, 2, 0, 2])) == Calibration(1.0, 1.0)


def test_labels_drawn_from_the_scores_are_nearly_calibrated_and_order_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(20_000, 5, generator=draw), dim=1)
    labels = torch.multinomial(probs, 1, generator=draw)[:, 0]
    found = calibration.calibration(probs, labels)
    assert found.ece < 0.02
    sharper = torch.softmax(3 * probs.log(), dim=1)
    assert calibration.calibration(sharper, labels).ece > 0.1
    back = calibration.calibration(probs.flip(0), labels.flip(0))
    assert back.ece == pytest.approx(found.ece, rel=1e-9)


@pytest.mark.parametrize("probs", [torch.full((2, 2), math.nan), torch.zeros(0, 2)])
def test_broken_scores_are_refused(probs: Tensor) -> None:
    with pytest.raises(ValueError, match="calibration"):
        calibration.calibration(probs, torch.zeros(len(probs), dtype=torch.int64))


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_of_a_linear_network_are_closed_form() -> None:
    model, x = linear(3), inner_images(60)
    y = gradients.others(model(x).argmax(1), 3, Noise(0, torch.arange(60)))
    weight = model.head.weight.detach()
    with torch.no_grad():
        logits = model(x)
        error = logits.softmax(1) - torch.eye(3)[y]
        rival = logits.scatter(1, y[:, None], -math.inf).argmax(1)
    found = gradients.gradient_norms(model, x, y, cross_entropy)
    torch.testing.assert_close(found, (error @ weight).norm(dim=1), rtol=1e-4, atol=1e-6)
    margin = gradients.gradient_norms(model, x, y, max_margin)
    torch.testing.assert_close(margin, (weight[rival] - weight[y]).norm(dim=1), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())
    # One image at a time gives the same: nothing is averaged over a batch.
    alone = torch.cat([gradients.gradient_norms(model, x[i : i + 1], y[i : i + 1], cross_entropy) for i in range(5)])
    torch.testing.assert_close(alone, found[:5])


def test_vanished_gradients_are_seen() -> None:
    x = inner_images(30)
    y = torch.zeros(30, dtype=torch.int64)

    def saturated(images: Tensor) -> Tensor:
        # Already sure of the wanted class: the softmax rounds to it, its cross-entropy is flat, the logits are not.
        return linear(2)(images) + torch.tensor([1000.0, 0.0])

    flat = gradients.summary(gradients.gradient_norms(saturated, x, y, cross_entropy))
    steep = gradients.summary(gradients.gradient_norms(saturated, x, y, max_margin))
    assert flat.vanishing == 1.0 and flat.median < 1e-8 and steep.vanishing == 0.0 and steep.median > 0.1
    dead = gradients.gradient_norms(lambda images: 0.0 * images.flatten(1)[:, :3], x, y, max_margin)
    assert gradients.summary(dead) == gradients.GradientNorm(0.0, 1.0)
    mixed = gradients.summary(torch.tensor([0.0, 1e-9, 2e-8, 1.0, 3.0]))
    assert mixed.vanishing == pytest.approx(0.4) and mixed.median == pytest.approx(2e-8)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_other_class_is_uniform_over_the_others(classes: int) -> None:
    labels = torch.arange(6000) % classes
    found = gradients.others(labels, classes, Noise(3, torch.arange(6000)))
    assert bool((found != labels).all() & (found >= 0).all() & (found < classes).all())
    jumps = torch.bincount((found - labels) % classes, minlength=classes)[1:] / 6000
    torch.testing.assert_close(jumps, torch.full((classes - 1,), 1 / (classes - 1)), atol=0.03, rtol=0)


# --- together, as a target's metrics --------------------------------------------------------------------------------


class Careless(Shaper):
    """Scores that add up to less than 1."""

    def forward(self, probs: Tensor, noise: Noise) -> Tensor:
        return 0.9 * probs


def heldout() -> Split:
    return colours(60, 4)


def measured(model: Classifier) -> dict[str, Any]:
    split = heldout()
    with torch.no_grad():
        logits = model(split.images / 255.0)
    return side_effects(model, logits, split)


def test_a_targets_side_effects_leave_everything_as_it_was() -> None:
    import json

    model = linear(3)
    state = torch.random.get_rng_state()
    found = measured(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found == measured(model) and not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    json.dumps(found, allow_nan=False)
    assert set(found["adversarial_accuracy"]) == {"0.031", "0.0025", "0.0005"}
    assert set(found["adversarial_accuracy"]["0.031"]) == {"value", "low", "high", "n", "clusters"}
    values = [found["adversarial_accuracy"][eps]["value"] for eps in ("0.031", "0.0025", "0.0005")]
    assert values == sorted(values)
    assert set(found["gradient_norm"]) == {"cross_entropy", "max_margin"}
    assert found["served_sum_error"] < 1e-6


def test_shaped_scores_change_what_is_served_and_not_what_a_white_box_attacker_meets() -> None:
    model = linear(3)
    plain, shaped = measured(model), measured(Served(model, Careless(), 0).eval())
    assert shaped["served_sum_error"] == pytest.approx(0.1, abs=1e-6)
    assert shaped["adversarial_accuracy"] == plain["adversarial_accuracy"]
    assert shaped["gradient_norm"] == plain["gradient_norm"]
