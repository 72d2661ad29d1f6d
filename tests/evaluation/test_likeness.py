"""Calibrated success, agreement and the yardstick: closed forms, what must not count, what scoring writes."""

import csv
import json
import math

import pytest
import torch
from features import normal
from shell import world

from mibench.evaluation import likeness
from mibench.evaluation.judgement import Answers, PrivateAnswers
from mibench.evaluation.records import Yardstick
from mibench.metrics.false_positives import impostor_scores, log_odds
from mibench.stages import artifacts
from mibench.stats.intervals import paired_interval

# --- agreement ------------------------------------------------------------------------------------------------------


def test_agreement_is_of_different_families_only() -> None:
    hits = {name: normal(12, seed=place) > 0 for place, name in enumerate(("resnet", "resnet18", "ir"))}
    families = {"resnet": "resnet", "resnet18": "resnet", "ir": "ir"}
    pairs = likeness.agreement(hits, families, torch.arange(4).repeat_interleave(3))
    assert list(pairs) == ["resnet+ir", "resnet18+ir"]
    assert pairs["resnet+ir"].both.value == float((hits["resnet"] & hits["ir"]).double().mean())
    never = {name: torch.zeros(4).bool() for name in ("resnet", "ir")}
    assert likeness.agreement(never, families, torch.arange(4))["resnet+ir"].kappa is None


# --- the yardstick --------------------------------------------------------------------------------------------------


def line(train: list[float], heldout: list[float], owners: list[int]) -> PrivateAnswers:
    """Real images on a line."""
    labels, logits = torch.tensor(owners), torch.zeros(len(owners), 3)
    return PrivateAnswers(*(Answers(logits, torch.tensor(side)[:, None], labels) for side in (train, heldout)))


def test_the_yardstick_in_closed_form() -> None:
    """People at 0 and 100 on a line; only the first is attacked: the second must not count."""
    private = line([0.0, 0.0, 100.0, 100.0], [0.0, 3.0, 100.0, 250.0], [0, 0, 1, 1])
    assert likeness.yardstick(private, torch.tensor([0])) == Yardstick(3.0, "heldout")
    lone = line([0.0, 90.0], [4.0, 100.0], [0, 1])
    assert likeness.yardstick(lone, torch.tensor([0])) == Yardstick(4.0, "train")
    same = line([0.0, 0.0], [1.0, 1.0], [0, 0])
    assert likeness.yardstick(same, torch.tensor([0])) == Yardstick(None, "heldout")


# --- as scored ------------------------------------------------------------------------------------------------------


def scored() -> tuple[dict, list[dict[str, str]]]:
    folder = world().one("scores/kedmi-*")
    with (folder / "per_image.csv").open() as file:
        return json.loads((folder / "scores.json").read_text()), list(csv.DictReader(file))


def test_every_number_is_in_the_table_of_images() -> None:
    report, rows = scored()
    labels = torch.tensor([int(row["label"]) for row in rows])
    for name, found in report["evaluators"].items():
        passed = [int(row[f"calibrated@{name}"]) for row in rows]
        assert found["calibrated"]["value"] == sum(passed) / len(passed) and set(passed) <= {0, 1}
        target, own = ([row[key] == "1" for row in rows] for key in ("target_top1", f"open_top1@{name}"))
        wanted = paired_interval(torch.tensor(target), torch.tensor(own), labels)
        assert [found["gap"][key] for key in ("value", "low", "high")] == [wanted.value, wanted.low, wanted.high]
        far = [math.sqrt(float(row[f"knn_heldout@{name}"])) / found["yardstick"]["distance"] for row in rows]
        assert [float(row[f"times_real@{name}"]) for row in rows] == pytest.approx(far, rel=1e-4)
        assert found["times_real"]["value"] == pytest.approx(sum(far) / len(far), rel=1e-4)
    both = [row["open_top1@resnet"] == row["open_top1@ir"] == "1" for row in rows]
    assert report["agreement"]["resnet+ir"]["both"]["value"] == sum(both) / len(both)


def test_the_threshold_lets_one_percent_of_the_heldout_impostors_pass_and_counts_their_own() -> None:
    report, _ = scored()
    for name, found in report["evaluators"].items():
        tensors, _ = artifacts.read_tensors(
            world().one(f"evaluators/digiface-{name}-*") / "features.safetensors", "private features"
        )
        limit, logits, labels = found["calibration"]["threshold"], tensors["heldout_logits"], tensors["heldout_labels"]
        impostors = impostor_scores(logits, labels, 4)
        assert found["calibration"]["held_out"]["pairs"] == len(impostors) == 8 * 3
        assert float((impostors > limit).double().mean()) == found["calibration"]["held_out"]["pass"] <= 0.01
        assert found["calibration"]["strangers_are"] == "public" and found["calibration"]["strangers"]["images"] == 40
        assert found["calibration"]["strangers"]["pass"] <= 0.01
        assert limit == max(found["calibration"][kind]["threshold"] for kind in ("held_out", "strangers"))
        genuine = float((log_odds(logits, labels) > limit).double().mean())
        assert report["ceiling"][name]["calibrated"]["value"] == genuine
