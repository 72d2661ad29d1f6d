"""The information bottleneck: its divergence, its head, its noise."""

import math
from typing import Any

import pytest
import torch
from defending import SIDE, assert_refused, at_epoch, cnn, deployed, drawn, pixels, preset, trained, weighted_rows
from scipy import stats
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from mibench.defenses.mid import Bottleneck, MutualInformation, divergence


def test_divergence_is_torchs() -> None:
    mu, r = drawn(5, 7), 4 * drawn(5, 7, seed=1) + 3
    wanted = kl_divergence(Normal(mu, F.softplus(r - 5)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(torch.cat([mu, r], 1)), wanted, rtol=1e-5, atol=1e-5)


def test_golden_divergences() -> None:
    """A new head costs 4.50 nats a dimension (mu = 0, r = 0); N(0, 1) itself costs nothing."""
    assert divergence(torch.zeros(1, 2 * 256)).item() == pytest.approx(1153, abs=1)
    unit = torch.cat([torch.zeros(1, 3), torch.full((1, 3), 5 + math.log(math.e - 1))], 1)
    assert divergence(unit).item() == pytest.approx(0.0, abs=1e-6)


def test_divergence_is_finite_where_the_spread_underflows() -> None:
    """ln softplus(u) -> u for u << 0, in value and slope; r shifted by -200 makes softplus 0 in float32."""
    r = (drawn(4, 6) - 200).requires_grad_()
    assert (F.softplus(r - 5) == 0).all()
    code = torch.cat([torch.zeros(4, 6), r], 1)
    torch.testing.assert_close(divergence(code), (-0.5 - (r - 5)).sum(1))
    (gradient,) = torch.autograd.grad(divergence(code).sum(), r)
    torch.testing.assert_close(gradient, -torch.ones_like(r))
    # and across the switch at -15 both sides agree with float64
    near = torch.linspace(-12, -8, 41)[None]
    exact = divergence(torch.cat([torch.zeros_like(near), near], 1))
    wanted = (0.5 * (F.softplus(near.double() - 5) ** 2 - 1) - F.softplus(near.double() - 5).log()).sum(1)
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-6, atol=0)


def test_the_mean_network_is_one_linear_map() -> None:
    head, h = Bottleneck(10, 4, 3).eval(), drawn(6, 10)
    weight = head.decode.weight @ head.encode.weight[:4]
    bias = head.decode.weight @ head.encode.bias[:4] + head.decode.bias
    torch.testing.assert_close(head(h), F.linear(h, weight, bias))
    torch.testing.assert_close(head(h, torch.zeros(6, 4)), head(h))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(h), head(h, torch.zeros(6, 4))) and head(h).dtype == torch.float32
    torch.testing.assert_close(head(h.bfloat16()), F.linear(h.bfloat16().float(), weight, bias))


def test_training_draws_the_code_and_eval_does_not() -> None:
    torch.manual_seed(0)
    head, h = Bottleneck(10, 4, 3), drawn(1, 10).expand(20000, 10)
    with torch.no_grad():
        head.encode.bias[4:] += 6.0  # a spread of about 1
        noise = (head.train()(h) - head.eval()(h))[:, 0]
        s = F.softplus(head.encode(h[:1])[0, 4:] - 5)
        sigma = float((head.decode.weight[0] * s).square().sum().sqrt())
    assert stats.kstest(noise.numpy(), stats.norm(0, sigma).cdf).pvalue > 1e-3


@pytest.mark.parametrize("per_dim", [False, True])
def test_the_penalty_is_beta_times_the_weighted_divergence(per_dim: bool) -> None:
    batch, code = weighted_rows(b=9, clean=6), drawn(9, 8)
    found = MutualInformation(0.5, per_dim=per_dim).penalty(batch, drawn(9, 4), [code], at_epoch())
    each = torch.stack([divergence(code[i : i + 1])[0] * batch.w[i] for i in range(9)])
    torch.testing.assert_close(found, 0.5 * each.sum() / 6 / (4 if per_dim else 1))


def test_without_a_price_there_is_no_penalty() -> None:
    defense = MutualInformation(0.0)
    model = cnn(defense)
    assert list(defense.taps(model)) == [] and defense.penalty(weighted_rows(), drawn(6, 4), [], at_epoch()) is None
    assert list(MutualInformation().taps(model)) == [model.head.encode]


@pytest.mark.parametrize(("k", "width"), [(None, 64), (5, 5)])
def test_surgery_keeps_the_features_and_their_width(k: int | None, width: int) -> None:
    plain, model = cnn().eval(), cnn(MutualInformation(k=k)).eval()
    assert model.head.k == width and model.head.decode.out_features == 3 and model.feature_dim == 128
    assert torch.equal(plain.features(pixels()), model.features(pixels()))


def test_a_higher_price_lets_less_through() -> None:
    def nats(beta: float) -> float:
        model = trained(MutualInformation(beta))
        return float(divergence(model.head.encode(model.features(pixels()))).mean().detach())

    cheap, fair, dear = nats(0.0), nats(0.01), nats(1.0)
    assert dear < fair < cheap


def test_noise_is_served_by_content_and_only_served() -> None:
    defense = MutualInformation(serve="noise")
    model = cnn(defense).eval()
    with torch.no_grad():
        model.head.encode.bias[64:] += 6.0
        served = deployed(defense, model)
        x = pixels()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(served(x)[order], served(x[order]))  # asking again, elsewhere in a batch
        assert torch.equal(served.features(x), model.features(x))
        assert torch.equal(served.head(served.features(x)), model(x))  # the white box holds the mean network
        # Many images with the same features: N(mean logits, W s^2 W').
        h = model.features(x[:1])
        others = torch.rand(5000, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        noise = (served.serve(h.expand(5000, -1), others) - model.head(h))[:, 0]
        s = F.softplus(model.head.encode(h)[0, 64:] - 5)
        sigma = float((model.head.decode.weight[0] * s).square().sum().sqrt())
    assert stats.kstest(noise.numpy(), stats.norm(0, sigma).cdf).pvalue > 1e-3
    assert not torch.allclose(served(x), deployed(defense, model, seed=1)(x))  # another target, another key
    assert deployed(MutualInformation(serve="mean"), model) is model


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"beta": float("nan")}, {"beta": float("inf")}, {"k": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("mid", settings, next(iter(settings)))


def test_the_papers_settings() -> None:
    assert preset("mid") == MutualInformation(0.003, None, False, "noise")
