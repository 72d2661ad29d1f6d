"""Identification, agreement and the yardstick: closed forms, what must not count, what scoring writes."""

import csv
import json
import math

import pytest
import torch
from features import normal
from shell import world

from mibench.core import Dataset, Split
from mibench.evaluation import likeness
from mibench.evaluation.judgement import Answers, PrivateAnswers
from mibench.evaluation.records import Yardstick
from mibench.metrics.false_positives import best_claim
from mibench.stats.intervals import paired_interval

# --- agreement ------------------------------------------------------------------------------------------------------


def test_agreement_is_of_different_families_only() -> None:
    hits = {name: normal(12, seed=place) > 0 for place, name in enumerate(("resnet", "resnet18", "ir"))}
    families = {"resnet": "resnet", "resnet18": "resnet", "ir": "ir"}
    pairs = likeness.agreement(hits, families, torch.arange(4).repeat_interleave(3))
    assert list(pairs) == ["resnet+ir", "resnet18+ir"]
    assert pairs["resnet+ir"].both.value == float((hits["resnet"] & hits["ir"]).double().mean())
    mean = pairs["resnet+ir"].both
    assert (mean.n, mean.clusters) == (12, 4) and mean.low < mean.value < mean.high


# --- the yardstick --------------------------------------------------------------------------------------------------


def line(train: list[float], heldout: list[float], owners: list[int]) -> PrivateAnswers:
    """Real images on a line."""
    labels, logits = torch.tensor(owners), torch.zeros(len(owners), 3)
    return PrivateAnswers(*(Answers(logits, torch.tensor(side)[:, None], labels) for side in (train, heldout)))


def test_the_yardstick_in_closed_form() -> None:
    """People at 0 and 100 on a line; only the first is attacked: the second must not count."""
    private = line([0.0, 0.0, 100.0, 100.0], [0.0, 3.0, 100.0, 250.0], [0, 0, 1, 1])
    far = torch.tensor([[-7.0], [16.0]])  # 7 and 13 from the nearest held-out image of person 0
    assert likeness.yardstick(private, far, torch.tensor([0])) == Yardstick(3.0, 10.0, "heldout")
    # Strangers are measured to every attacked person: 7 and 13, 107 and 84 are less than photographs' 76.5.
    assert likeness.yardstick(private, far, torch.tensor([1, 0, 0])) == Yardstick(None, None, "heldout")
    further = likeness.yardstick(private, 10 * far, torch.tensor([1, 0, 0]))
    assert further == Yardstick(76.5, (70 + 157 + 170 + 60) / 4, "heldout")
    lone = line([0.0, 90.0], [4.0, 100.0], [0, 1])
    assert likeness.yardstick(lone, far, torch.tensor([0])) == Yardstick(4.0, (11 + 12) / 2, "train")


@pytest.mark.parametrize(
    ("heldout", "far"),
    [
        ([1.0, 1.0], [[9.0]]),  # all real images are copies
        ([0.0, 3.0], [[4.0]]),  # strangers are nearer than photographs
    ],
)
def test_without_a_scale_there_is_none(heldout: list[float], far: list[list[float]]) -> None:
    private = line([0.0, 0.0], heldout, [0, 0])
    assert likeness.yardstick(private, torch.tensor(far), torch.tensor([0])) == Yardstick(None, None, "heldout")
    empty = torch.zeros(0, 1)
    assert likeness.yardstick(line([0.0], [0.0, 3.0], [0, 0]), empty, torch.tensor([0])).stranger is None


# --- the threshold of identification --------------------------------------------------------------------------------


def test_the_threshold_lets_five_percent_of_strangers_images_in_and_counts_whom_the_model_names() -> None:
    logits = normal(200, 12, seed=4).float()
    data = Dataset(
        "noise",
        tuple("abcdefgh"),
        *(Split(torch.zeros(0, 3, 2, 2).byte(), torch.zeros(0).long()),) * 4,
        distractors_are_public=False,
        flip=True,
        card={},
    )
    found = likeness.calibrate(logits, data)
    surest, _ = best_claim(logits, 8)
    assert found is not None and found.strangers == 200 and found.rate == 0.05 and found.strangers_are == "public"
    assert found.passing == 0.05 == float((surest > found.threshold).double().mean())
    assert found.named == float((logits.argmax(1) < 8).double().mean())
    assert likeness.calibrate(logits[:0], data) is None


# --- as scored ------------------------------------------------------------------------------------------------------


def scored() -> tuple[dict, list[dict[str, str]]]:
    folder = world().one("scores/kedmi-*")
    with (folder / "per_image.csv").open() as file:
        return json.loads((folder / "scores.json").read_text()), list(csv.DictReader(file))


def test_every_number_is_in_the_table_of_images() -> None:
    report, rows = scored()
    labels = torch.tensor([int(row["label"]) for row in rows])
    for name, found in report["evaluators"].items():
        for key in ("tpir", "own_ball"):
            passed = [int(row[f"{key}@{name}"]) for row in rows]
            assert found[key]["value"] == sum(passed) / len(passed) and set(passed) <= {0, 1}
        target, own = ([row[key] == "1" for row in rows] for key in ("target_top1", f"open_top1@{name}"))
        assert all(hit or row[f"own_ball@{name}"] == "0" for hit, row in zip(own, rows, strict=True))
        wanted = paired_interval(torch.tensor(target), torch.tensor(own), labels)
        assert [found["gap"][key] for key in ("value", "low", "high")] == [wanted.value, wanted.low, wanted.high]
        scale = found["yardstick"]
        if scale["photograph"] is not None:
            span = scale["stranger"] - scale["photograph"]
            near = [(scale["stranger"] - math.sqrt(float(row[f"knn_heldout@{name}"]))) / span for row in rows]
            assert [float(row[f"closeness@{name}"]) for row in rows] == pytest.approx(near, rel=1e-3, abs=1e-3)
            assert found["closeness"]["value"] == pytest.approx(sum(near) / len(near), rel=1e-3, abs=1e-3)
        assert found["calibration"]["strangers"] == 40 and found["calibration"]["passing"] <= 0.05
    both = [row["open_top1@resnet"] == row["open_top1@ir"] == "1" for row in rows]
    assert report["agreement"]["resnet+ir"]["both"]["value"] == sum(both) / len(both)


def test_four_people_are_too_few_for_a_verifier_and_the_own_ball_gate_stands_in() -> None:
    report, rows = scored()
    assert report["verifiers"] == {} and report["gate"] == "own_ball@resnet" and report["both_verified"] is None
    assert [row["likeness"] for row in rows] == [row["own_ball@resnet"] for row in rows]
    assert report["likeness"] == report["evaluators"]["resnet"]["own_ball"]
    assert report["likeness_ceiling"] == report["ceiling"]["resnet"]["own_ball"]
