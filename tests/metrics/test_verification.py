"""A matcher's verdict: templates and cosines by definition, thresholds on ties, the ROC against scikit-learn."""

import math

import pytest
import torch
from features import faces, fixed, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mibench.metrics.false_positives import threshold
from mibench.metrics.verification import RATES, accepted, area_under_roc, claims, similarity, templates, without_own


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / a.norm() / b.norm())


def test_a_template_is_the_mean_direction_and_a_claim_the_cosine_to_it() -> None:
    f, y, g, z = faces(9, 20)
    template = templates(g, z, 4)
    for person in range(4):
        own = [g[i] / g[i].norm() for i in range(20) if z[i] == person]
        mean = torch.stack(own).mean(0)
        torch.testing.assert_close(template[person], mean / mean.norm())
        for i in range(9):
            assert float(claims(f, template)[i, person]) == pytest.approx(cosine(f[i], mean))
    torch.testing.assert_close(similarity(f, y, template), claims(f, template).gather(1, y[:, None])[:, 0])


def test_people_without_images_have_no_template_and_accept_nothing() -> None:
    f, _, g, z = faces(6, 12)
    template = templates(g, z, 7)
    assert bool((template[4:] == 0).all()) and bool((claims(f, template)[:, 4:] == 0).all())


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_brightness_of_features_and_their_order_do_not_matter(seed: int, scale: float) -> None:
    f, g, z = normal(8, 5, seed=seed), normal(12, 5, seed=seed + 1), torch.arange(12) % 3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    whole = claims(f, templates(g, z, 3))
    torch.testing.assert_close(claims(scale * f, templates(scale * g[order], z[order], 3)), whole)
    turn = torch.linalg.qr(normal(5, 5, seed=seed + 2)).Q
    torch.testing.assert_close(claims(f @ turn, templates(g @ turn, z, 3)), whole)
    assert float(whole.abs().max()) <= 1 + 1e-12


def test_a_genuine_image_is_compared_with_the_others_only() -> None:
    g = fixed(3, 7, 4)
    z = torch.tensor([0, 0, 0, 1, 1, 2, 0])
    found = without_own(g, z)
    for i in range(7):
        rest = (z == z[i]) & (torch.arange(7) != i)
        if not bool(rest.any()):
            assert math.isnan(float(found[i]))
            continue
        mean = (g[rest] / g[rest].norm(dim=1, keepdim=True)).mean(0)
        assert float(found[i]) == pytest.approx(cosine(g[i], mean))
    assert float(without_own(g[:2], z[:2])[0]) == pytest.approx(cosine(g[0], g[1]))


def test_the_area_under_the_roc_curve_in_closed_form() -> None:
    one = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert area_under_roc(one + 2, one) == 1 and area_under_roc(one - 2, one) == 0 and area_under_roc(one, one) == 0.5
    assert area_under_roc(torch.tensor([2.0]).double(), torch.tensor([1.0, 2.0, 3.0, 0.0]).double()) == 2.5 / 4


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.lists(st.integers(-4, 4), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_area_is_scikit_learns_whatever_the_ties(genuine: list[int], impostors: list[int]) -> None:
    a, b = torch.tensor(genuine).double(), torch.tensor(impostors).double()
    truth = [1] * len(genuine) + [0] * len(impostors)
    assert area_under_roc(a, b) == pytest.approx(roc_auc_score(truth, genuine + impostors))
    assert area_under_roc(a, b) == pytest.approx(1 - area_under_roc(b, a))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=300))
def test_thresholds_never_let_more_impostors_in_than_stated(values: list[int]) -> None:
    impostors = torch.tensor(values).double() / 9
    limits = {metric: threshold(impostors, rate) for metric, rate in RATES.items()}
    for metric, rate in RATES.items():
        assert int(accepted(impostors, limits[metric]).sum()) <= rate * len(values)
    assert limits["verified_strict"] >= limits["verified"]


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="verification: 1 of 10 features"):
        claims(torch.tensor([[1.0, math.nan]] + [[1.0, 0.0]] * 4), torch.eye(2).double())
    with pytest.raises(ValueError, match="of 0 genuine and 2 impostor claims"):
        area_under_roc(torch.zeros(0).double(), torch.zeros(2).double())
