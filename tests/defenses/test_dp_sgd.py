"""Laws of DP-SGD: what a step is, what it cannot exceed, what epsilon it claims, and what it leaves behind."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours, small_net

from mibench import models
from mibench.core import Batch, Defense, Schedule, Step
from mibench.defenses.dp_sgd import DPSGD, batch_norms, group_norm
from mibench.models.base import Classifier, Prepare
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Fitted, Training, fit, loss_of

CPU = resolve("cpu", "fp32")
SHAPE = (3, 4, 4)
RECIPE = Training(epochs=3, batch=10, lr=0.01)
PER_EPOCH = 4
NO_CLIP = 1e9


def linear(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Prepare(SHAPE, [0.5], [0.5]), nn.Flatten(), nn.Linear(48, 3), 48)


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=draw), torch.randint(3, (count,), generator=draw)


def one_step(
    defense: DPSGD, model: nn.Module, x: Tensor, y: Tensor, schedule: Schedule, epoch: int = 0, seed: int = 7
) -> list[Tensor]:
    """The gradient that the optimiser is given, parameter by parameter."""
    model.train()
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    running, optimizer = defense.wrap(model, inner, schedule)
    step = Step(model, nn.Module(), optimizer, Noise(seed, torch.arange(len(x))).of(epoch), epoch, 2, CPU)
    defense.epoch(step)
    optimizer.zero_grad(set_to_none=True)
    loss_of(Batch(x, F.one_hot(y, 3).float(), torch.ones(len(x)), len(x)), running(x)).backward()
    optimizer.step()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    defense.finish(step, colours(6, 4))
    return found


def plain_sum(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of the summed cross-entropy."""
    return list(torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), list(model.parameters())))


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("count", [1, 7, 12])
def test_without_noise_and_clipping_the_step_is_the_plain_one_over_the_expected_batch(count: int) -> None:
    schedule = Schedule(images=40, per_epoch=4, epochs=2, seed=0)
    x, y = images(count)
    got = one_step(DPSGD(noise=0.0, clip=NO_CLIP), linear(), x, y, schedule)
    torch.testing.assert_close(flat(got), flat(plain_sum(linear(), x, y)) / 10, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["cnn", "resnet", "ir"])
def test_every_layer_of_our_networks_has_the_gradients_of_its_images(architecture: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return DPSGD().surgery(models.build(architecture, 3, (3, 16, 16)))

    x, y = torch.rand(5, 3, 16, 16), torch.tensor([0, 1, 2, 1, 0])
    schedule = Schedule(images=20, per_epoch=4, epochs=2, seed=0)
    free = one_step(DPSGD(noise=0.0, clip=NO_CLIP), network(), x, y, schedule)
    expected = flat(plain_sum(network().train(), x, y)) / 5
    torch.testing.assert_close(flat(free), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    # Clipped: the sum of what each image alone gives, shortened to the bound.
    clip = 0.1
    alone = [flat(plain_sum(network().train(), x[i : i + 1], y[i : i + 1])) for i in range(5)]
    clipped = sum(part * min(1.0, clip / float(part.norm())) for part in alone)
    got = flat(one_step(DPSGD(noise=0.0, clip=clip), network(), x, y, schedule)) * 5
    torch.testing.assert_close(got, clipped, atol=1e-5, rtol=1e-3)


def test_one_image_never_moves_a_step_by_more_than_the_bound() -> None:
    model, clip = linear(), 0.3
    x, y = images(9)
    schedule = Schedule(images=10, per_epoch=1, epochs=1, seed=0)
    # By hand for a linear net: d CE / d W = (p - e_y) z^T and d CE / d b = p - e_y, so |g|^2 = |p - e_y|^2 (|z|^2 + 1).
    z = (x.flatten(1) - 0.5) / 0.5
    error = model(x).softmax(1) - F.one_hot(y, 3)
    norms = error.norm(dim=1) * (z.square().sum(1) + 1).sqrt()
    assert norms.min() > clip, "every image must be clipped for this test to say anything"
    factors = (clip / norms)[:, None]
    weight, bias = (factors * error).T @ z / 10, (factors * error).sum(0) / 10
    got = one_step(DPSGD(noise=0.0, clip=clip), linear(), x, y, schedule)
    torch.testing.assert_close(got[0], weight, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(got[1], bias, atol=1e-6, rtol=1e-4)
    for left_out in range(9):
        rest = [i for i in range(9) if i != left_out]
        without = one_step(DPSGD(noise=0.0, clip=clip), linear(), x[rest], y[rest], schedule)
        assert float((flat(got) - flat(without)).norm()) * 10 <= clip * (1 + 1e-5)


def test_noise_has_the_promised_spread_and_is_a_function_of_seed_and_epoch() -> None:
    schedule = Schedule(images=20, per_epoch=2, epochs=2, seed=0)
    x, y = images(8)
    noise, clip = 2.0, 0.5

    def run(epoch: int = 0, seed: int = 7, **settings: float) -> Tensor:
        defense = DPSGD(**{"noise": noise, "clip": clip, **settings})
        return flat(one_step(defense, linear(), x, y, schedule, epoch, seed))

    drawn = torch.stack([run(seed=seed) - run(noise=0.0) for seed in range(12)]) * 10 / (noise * clip)
    assert abs(float(drawn.std()) - 1) < 0.07 and abs(float(drawn.mean())) < 0.1
    assert torch.equal(run(), run())
    assert not torch.equal(run(), run(epoch=1)) and not torch.equal(run(), run(seed=8))


@pytest.mark.parametrize(
    ("accountant", "kind", "noise"),
    [("rdp", RDPAccountant, 0.01), ("rdp", RDPAccountant, 1.1), ("prv", PRVAccountant, 1.1)],
)
@pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")
def test_epsilon_is_that_of_the_library_after_every_step(accountant: str, kind: type, noise: float) -> None:
    fitted, _ = train(DPSGD(noise=noise, delta=1e-4, accountant=accountant))
    counted = kind()
    for _ in range(RECIPE.epochs * PER_EPOCH):
        counted.step(noise_multiplier=noise, sample_rate=1 / PER_EPOCH)
    assert fitted.reports == [{"epsilon": pytest.approx(counted.get_epsilon(1e-4), rel=1e-6)}]


def test_epsilon_of_full_batches_is_below_the_closed_form_and_near_it() -> None:
    # One step on all images with noise s is the Gaussian mechanism: Rényi divergence a / (2 s^2) at order a; the best
    # order of a / (2 s^2) + log(1 / delta) / (a - 1) gives 1 / (2 s^2) + sqrt(2 log(1 / delta)) / s.
    s, delta = 4.0, 1e-5
    closed = 1 / (2 * s * s) + math.sqrt(2 * math.log(1 / delta)) / s
    found = DPSGD(noise=s, delta=delta).epsilon(Schedule(images=10, per_epoch=1, epochs=1, seed=0))
    assert 0.7 * closed < found < closed


def test_epsilon_counts_the_trainings_that_were_thrown_away() -> None:
    schedule, defense = Schedule(images=100, per_epoch=10, epochs=4, seed=0), DPSGD(noise=1.0)
    again = Schedule(images=100, per_epoch=10, epochs=4, seed=0, before=3)
    assert again.steps == schedule.steps == 40 and again.looks == 70
    assert defense.epsilon(again) == defense.epsilon(Schedule(images=100, per_epoch=10, epochs=7, seed=0))
    assert defense.epsilon(again) > defense.epsilon(schedule)


def test_more_noise_is_less_epsilon_and_clipping_alone_claims_none() -> None:
    schedule = Schedule(images=100, per_epoch=10, epochs=5, seed=0)
    found = [DPSGD(noise=noise).epsilon(schedule) for noise in (0.01, 0.1, 0.4, 1.1, 5.0)]
    assert found == sorted(found, reverse=True) and found[0] > 1e5 and found[-1] < 1
    fitted, _ = train(DPSGD(noise=0.0))
    assert fitted.reports == [{}]


def train(defense: Defense, precision: str = "fp32") -> tuple[Fitted, nn.Module]:
    model = defense.surgery(small_net())
    engine = resolve("cpu", precision)
    return fit(model, colours(40), 3, RECIPE, engine, 5, Silent(), "toy", [defense]), model


def test_it_leaves_the_model_as_a_plain_one() -> None:
    _, model = train(DPSGD())
    assert set(model.state_dict()) == set(DPSGD().surgery(small_net()).state_dict())
    for module in model.modules():
        assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks
    for parameter in model.parameters():
        assert parameter.grad is None and not {"grad_sample", "summed_grad", "_forward_counter"} & set(vars(parameter))


def test_bf16_changes_nothing_because_the_bound_needs_float32() -> None:
    plain, half = train(DPSGD())[1].state_dict(), train(DPSGD(), "bf16")[1].state_dict()
    assert all(torch.equal(plain[name], half[name]) for name in plain)


def test_batches_are_poisson_samples() -> None:
    sizes: list[int] = []

    class Watch(Defense):
        def batch(self, batch: Batch, step: Step) -> Batch:
            sizes.append(batch.clean)
            return batch

    defense = DPSGD()
    fit(
        defense.surgery(small_net()),
        colours(200),
        3,
        Training(epochs=5, batch=20, lr=0.01),
        CPU,
        5,
        Silent(),
        "toy",
        [defense, Watch()],
    )
    sizes_ = torch.tensor(sizes, dtype=torch.float64)
    # Binomial(200, 1/10): mean 20, variance 18; 50 batches.
    assert abs(float(sizes_.mean()) - 20) < 3 and 9 < float(sizes_.var()) < 32


@pytest.mark.parametrize("architecture", ["cnn", "resnet", "ir", "vgg16_bn64", "resnet18"])
def test_no_batch_norm_is_left_on_any_architecture_even_without_weights(architecture: str) -> None:
    with torch.device("meta"):
        before = models.build(architecture, 10, (3, 64, 64))
        norms = len(batch_norms(before))
        after = DPSGD().surgery(before)
        assert norms and not batch_norms(after) and isinstance(after, Classifier)
        assert sum(isinstance(module, nn.GroupNorm) for module in after.modules()) == norms
        assert after.train()(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_group_norm_follows_opacus_but_never_groups_single_features() -> None:
    for norm in (nn.BatchNorm2d(16), nn.BatchNorm2d(48), nn.BatchNorm1d(128)):
        theirs, ours = ModuleValidator.fix(nn.Sequential(norm))[0], group_norm(norm)
        assert (theirs.num_groups, theirs.num_channels, theirs.affine) == (
            ours.num_groups,
            ours.num_channels,
            ours.affine,
        )
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert ModuleValidator.fix(nn.Sequential(nn.BatchNorm1d(32)))(features).abs().max() < 1e-3, "theirs is always 0"
    assert group_norm(nn.BatchNorm1d(32))(features).std() > 0.9
    assert torch.equal(group_norm(nn.BatchNorm1d(32))(features)[:1], group_norm(nn.BatchNorm1d(32))(features[:1]))


def test_without_opacus_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UserError, match=r"pip install 'mibench\[dp\]'") as caught:
        DPSGD().surgery(small_net())
    assert "\n" not in str(caught.value)


def test_batch_norms_added_after_it_are_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    with pytest.raises(UserError, match="name dp_sgd last"):
        DPSGD().wrap(small_net(), optimizer, Schedule(10, 2, 1, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": -1.0},
        {"noise": math.nan},
        {"noise": math.inf},
        {"clip": 0.0},
        {"clip": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"accountant": "prv", "noise": 0.1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^dp_sgd: .*got") as caught:
        replace(DPSGD(), **wrong)
    assert "\n" not in str(caught.value)
