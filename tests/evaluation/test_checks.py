"""Every check fires on what it is for and stays silent on its neighbour."""

import math

import pytest

from mibench.core import Access
from mibench.evaluation.checks import (
    CHECKS,
    Evidence,
    Facts,
    Finding,
    Floor,
    Gate,
    Judge,
    brief,
    check,
    check_facts,
    explanation,
    passed,
)
from mibench.stats.intervals import Interval


def rate(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 100, 50)


def evidence(**changes: object) -> Evidence:
    given = {
        "label": "mid beta=0.1",
        "best": {
            Access.WHITE_BOX: ("ppa", rate(0.2)),
            Access.BLACK_BOX: ("cma_es", rate(0.5)),
            Access.LABEL_ONLY: ("brep", rate(0.1)),
        },
        "gaps": {(Access.BLACK_BOX, Access.WHITE_BOX): rate(-0.1), (Access.LABEL_ONLY, Access.WHITE_BOX): rate(-0.1)},
        "side_effects": ({"served_sum_error": 1e-7, "gradient_norm": {"cross_entropy": {"vanishing": 0.01}}},),
    }
    return Evidence(**(given | changes))  # type: ignore[arg-type]


def fired(one: Evidence) -> set[str]:
    return {found.check for found in check([one])}


def test_a_sound_result_raises_nothing() -> None:
    assert fired(evidence()) == set()
    assert fired(evidence(side_effects=(), gaps={})) == set()


def test_weaker_access_that_beats_a_stronger_one() -> None:
    assert fired(evidence(gaps={(Access.BLACK_BOX, Access.WHITE_BOX): rate(0.3)})) == {"weaker_access_wins"}
    (found,) = check([evidence(gaps={(Access.BLACK_BOX, Access.WHITE_BOX): rate(0.3)})])
    assert "cma_es reaches 50.0%" in found.text and "ppa only 20.0%" in found.text and found.label == "mid beta=0.1"
    # Within the interval of chance, or the other way round, it is no finding.
    assert not fired(evidence(gaps={(Access.BLACK_BOX, Access.WHITE_BOX): rate(0.03)}))
    assert not fired(evidence(gaps={(Access.WHITE_BOX, Access.BLACK_BOX): rate(0.3)}))


@pytest.mark.parametrize(("share", "expected"), [(0.05, False), (0.5, True)])
def test_gradients_that_vanish(share: float, expected: bool) -> None:
    effects = {"gradient_norm": {"cross_entropy": {"vanishing": share}}}
    assert ("gradients_vanish" in fired(evidence(side_effects=({}, effects)))) == expected


@pytest.mark.parametrize(("error", "expected"), [(1e-6, False), (0.01, True), (math.nan, True), (math.inf, True)])
def test_scores_that_are_no_probabilities(error: float, expected: bool) -> None:
    assert ("not_probabilities" in fired(evidence(side_effects=({"served_sum_error": error},)))) == expected


def test_every_check_explains_itself() -> None:
    for name in CHECKS:
        about, why = explanation(name)
        assert about.endswith(".") and len(why) > 60, name


# --- of a score


def judge(**changes: object) -> Judge:
    given = {
        "name": "resnet",
        "family": "resnet",
        "weights": "b",
        "classes": ("ann", "bob"),
        "accuracy": 0.8,
        "dataset": "d",
    }
    return Judge(**(given | changes))  # type: ignore[arg-type]


def facts(**changes: object) -> Facts:
    given = {
        "label": "ppa on none",
        "family": "cnn",
        "weights": "a",
        "classes": ("ann", "bob"),
        "dataset": "d",
        "judges": (judge(), judge(name="ir", family="ir", weights="c")),
        "n": 5000,
        "inception": True,
        "shared": 0,
        "prior_dataset": "d",
        "scored": "x",
        "saved": "x",
        "answer_difference": 0.0,
        "preset": "quick",
        "likeness": rate(0.9),
        "floor": Floor("public_search", rate(0.5), rate(0.4)),
        "random": Floor("random_search", rate(0.5), rate(0.4)),
        "people": 100,
        "others": 100,
        "data": "orl",
        "prior": "stylegan2",
        "prior_draws": "public",
        "gates": (Gate("verifier resnet", 0.01), Gate("the threshold of ir", 0.05)),
        "named": (Gate("resnet", 0.2),),
        "copies": 0,
        "fit": 0.995,
        "rivals": 3,
        "cross_fitted": True,
    }
    return Facts(**(given | changes))  # type: ignore[arg-type]


FIRES = {
    "evaluator_is_target": [{"judges": (judge(weights="a"),)}, {"judges": (judge(family="cnn"),)}],
    "evaluator_too_weak": [{"judges": (judge(accuracy=0.3),)}, {"judges": (judge(accuracy=math.nan),)}],
    "identities_overlap": [{"shared": 3}],
    "labels_differ": [{"judges": (judge(classes=("bob", "ann")),)}, {"judges": (judge(classes=("ann",)),)}],
    "evaluator_of_other_data": [{"judges": (judge(dataset="e"),)}],
    "prior_knows_private": [{"prior_dataset": "e"}],
    "too_few_for_fid": [{"n": 200}],
    "random_target_scored_once": [{"answer_difference": 0.4}],
    "selected_by_evaluator": [{"selects": "evaluator"}],
    "pixels_differ": [{"saved": "y"}],
    "not_above_floor": [
        {"floor": Floor("public_search", rate(0.5), rate(0.04))},
        {"floor": Floor("public_search", rate(0.95), rate(-0.05))},
        {"floor": Floor("public_search", rate(0.9), rate(0.05))},
    ],
    "few_people": [{"people": 19}],
    "prior_of_other_domain": [{"prior": "dcgan", "prior_draws": "digiface"}],
    "few_distractors": [{"others": 1}, {"others": 9}],
    "strangers_accepted": [
        {"gates": (Gate("verifier resnet", 0.11),)},
        {"gates": (Gate("verifier resnet", 0.01), Gate("the threshold of ir", 0.2))},
        {"gates": (Gate("verifier resnet", math.nan),)},
    ],
    "strangers_named": [{"named": (Gate("resnet", 0.5), Gate("ir", 0.1))}],
    "private_image_returned": [{"copies": 1}],
    "identities_failed": [{"missing": 2}],
    "target_not_converged": [
        {"fit": 0.877},
        {"fit": 0.877, "converged": False},
        {"fit": 0.4, "converged": False, "imported": True},
    ],
    "quick_below_random": [{"random": Floor("random_search", rate(0.95), rate(-0.06))}],
    "strongest_chosen_on_itself": [{"cross_fitted": False}],
    "global_generators_used": [{"generators": ("torch",)}, {"generators": ("random", "numpy")}],
}
SILENT = {
    "not_above_floor": {"floor": None},
    "not_above_floor of a floor": {"floor": Floor("public_search", rate(0.95), rate(-0.05)), "role": "floor"},
    "few_people": {"people": 20},
    "prior_of_other_domain": {"prior": "dcgan", "prior_draws": "digiface", "data": "digiface"},
    "prior_of_other_domain of pixels": {"prior": "pixels", "prior_draws": "none"},
    "prior_of_other_domain unknown": {"prior_draws": None},
    "few_distractors": {"others": 10},
    "strangers_accepted": {"gates": (Gate("verifier resnet", 0.1),)},
    "strangers_named": {"named": (Gate("resnet", 0.33),)},
    "private_image_returned": {"copies": None},
    "target_not_converged": {"fit": 0.99},
    "target_not_converged unknown": {"fit": None},
    "target_not_converged trained elsewhere": {"fit": 0.8, "converged": True, "imported": True},
    "target_not_converged at a plateau": {"fit": 0.877, "converged": True},
    "quick_below_random": {"random": Floor("random_search", rate(0.93), rate(-0.03))},
    "quick_below_random of the paper": {"random": Floor("random_search", rate(0.95), rate(-0.06)), "preset": "paper"},
    "strongest_chosen_on_itself": {"rivals": 1, "cross_fitted": False},
    "evaluator_too_weak": {"judges": (judge(accuracy=0.5),)},
    "identities_overlap": {"shared": None},
    "prior_knows_private": {"prior_dataset": None},
    "too_few_for_fid": {"n": 200, "inception": False},
    "random_target_scored_once": {"answer_difference": 0.4, "passes": 8},
    "selected_by_evaluator": {"selects": "nobody"},
    "pixels_differ": {"saved": None},
}


def test_sound_facts_raise_nothing() -> None:
    assert check_facts([facts()]) == []
    for name, changes in SILENT.items():
        assert check_facts([facts(**changes)]) == [], name


@pytest.mark.parametrize("name", FIRES)
def test_each_check_fires_on_its_own_mistake_and_on_no_other(name: str) -> None:
    for changes in FIRES[name]:
        found = check_facts([facts(**changes)])
        assert [one.check for one in found] == [name] and found[0].label == "ppa on none"
        assert "\n" not in found[0].text


def test_every_check_is_tried() -> None:
    tried = {"weaker_access_wins", "gradients_vanish", "not_probabilities", *FIRES}
    assert tried == set(CHECKS)


def test_what_holds_of_many_scores_is_said_once() -> None:
    found = check_facts([facts(label=str(i), shared=3) for i in range(5)] + [facts(label="x", n=10)])
    assert [(one.check, one.label) for one in found] == [("identities_overlap", "5 scores"), ("too_few_for_fid", "x")]


def test_what_passed_is_what_found_nothing() -> None:
    found = [*check([evidence()]), *check_facts([facts(people=3), facts(fit=0.5), facts(fit=0.4)])]
    assert {one.check for one in found} == {"few_people", "target_not_converged"}
    assert set(passed(found)) == set(CHECKS) - {"few_people", "target_not_converged"} and passed([]) == list(CHECKS)


def test_the_first_screen_has_one_line_for_each_check_that_fired() -> None:
    found = [Finding("few_people", "ppa", "a"), Finding("few_people", "gmi", "b"), Finding("pixels_differ", "ppa", "c")]
    assert brief(found) == ["ppa: a (few_people), and 1 more", "ppa: c (pixels_differ)"] and brief([]) == []
