"""Every check fires on what it is for and stays silent on its neighbour."""

import math

import pytest

from mibench.checks import CHECKS, Evidence, check
from mibench.metrics.statistics import Interval


def rate(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 100, 50)


def evidence(**changes: object) -> Evidence:
    given = {
        "label": "mid beta=0.1",
        "best": {
            "white_box": ("ppa", rate(0.2)), "black_box": ("cma_es", rate(0.5)), "label_only": ("brep", rate(0.1)),
        },
        "gaps": {("black_box", "white_box"): rate(-0.1), ("label_only", "white_box"): rate(-0.1)},
        "side_effects": ({"served_sum_error": 1e-7, "gradient_norm": {"cross_entropy": {"vanishing": 0.01}}},),
    }  # fmt: skip
    return Evidence(**(given | changes))  # type: ignore[arg-type]


def fired(one: Evidence) -> set[str]:
    return {found.check for found in check([one])}


def test_a_sound_result_raises_nothing() -> None:
    assert fired(evidence()) == set()
    assert fired(evidence(side_effects=(), gaps={})) == set()


def test_weaker_access_that_beats_a_stronger_one() -> None:
    assert fired(evidence(gaps={("black_box", "white_box"): rate(0.3)})) == {"weaker_access_wins"}
    (found,) = check([evidence(gaps={("black_box", "white_box"): rate(0.3)})])
    assert "cma_es reaches 50.0%" in found.text and "ppa only 20.0%" in found.text and found.label == "mid beta=0.1"
    # Within the interval of chance, or the other way round, it is no finding.
    assert not fired(evidence(gaps={("black_box", "white_box"): rate(0.03)}))
    assert not fired(evidence(gaps={("white_box", "black_box"): rate(0.3)}))


@pytest.mark.parametrize(("share", "expected"), [(0.05, False), (0.5, True)])
def test_gradients_that_vanish(share: float, expected: bool) -> None:
    effects = {"gradient_norm": {"cross_entropy": {"vanishing": share}}}
    assert ("gradients_vanish" in fired(evidence(side_effects=({}, effects)))) == expected


@pytest.mark.parametrize(("error", "expected"), [(1e-6, False), (0.01, True), (math.nan, True), (math.inf, True)])
def test_scores_that_are_no_probabilities(error: float, expected: bool) -> None:
    assert ("not_probabilities" in fired(evidence(side_effects=({"served_sum_error": error},)))) == expected


def test_every_check_explains_itself() -> None:
    for name, found in CHECKS.items():
        assert found.__doc__ and len(found.__doc__.split("\n\n")) >= 2, name
