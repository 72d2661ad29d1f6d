"""Calibrated success, the gap, agreement and the yardstick: closed forms, what must not count, what scoring writes."""

import csv
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shell import world
from sklearn.metrics import cohen_kappa_score

from mibench.metrics.agreement import kappa
from mibench.metrics.false_positives import impostor_scores, log_odds, threshold
from mibench.stages import artifacts, false_positives
from mibench.stats.intervals import paired_interval


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the score ------------------------------------------------------------------------------------------------------


def test_log_odds_are_those_of_softmax() -> None:
    logits, labels = 4 * draw(50, 7), torch.arange(50) % 7
    p = logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, labels), (p / (1 - p)).log())


def test_log_odds_stay_exact_where_a_probability_rounds_to_one() -> None:
    """A network sure beyond float64 is still ranked: softmax itself would say 1 of both."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [300.0, 0.0, 0.0], [-300.0, 0.0, 0.0]])
    wanted = torch.tensor([200.0, 300.0, -300.0], dtype=torch.float64) - math.log(2)
    torch.testing.assert_close(log_odds(logits, torch.zeros(3, dtype=torch.int64)), wanted)


def test_log_odds_do_not_change_with_a_shift_of_all_logits() -> None:
    logits, labels = draw(20, 5), torch.arange(20) % 5
    torch.testing.assert_close(log_odds(logits.double() + 3.0, labels), log_odds(logits.double(), labels))


def test_impostors_are_everybody_claimed_as_everybody_else() -> None:
    logits, labels = draw(4, 6), torch.tensor([0, 2, 5, -1])
    found = impostor_scores(logits, labels, 3)
    wanted = [
        log_odds(logits[i : i + 1], torch.tensor([y]))
        for i, own in enumerate(labels.tolist())
        for y in range(3)
        if y != own
    ]
    torch.testing.assert_close(found, torch.cat(wanted))
    assert len(found) == 2 + 2 + 3 + 3


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=400), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_never_more_than_the_rate_pass_whatever_the_ties(scores: list[int], rate: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    limit = threshold(values, rate)
    assert int((values > limit).sum()) <= rate * len(values) + 1e-9
    lower = values[values < limit]
    if len(lower):  # it is the smallest such value among them
        assert int((values > lower.max()).sum()) > rate * len(values) + 1e-9


def test_one_percent_of_two_hundred_is_two() -> None:
    values = torch.arange(200, dtype=torch.float64)
    assert threshold(values) == 197.0 and threshold(values[:99]) == 98.0


@pytest.mark.parametrize(
    "give",
    [
        lambda: threshold(torch.zeros(0, dtype=torch.float64)),
        lambda: threshold(torch.zeros(3, dtype=torch.float64), 1.0),
        lambda: log_odds(torch.tensor([[1.0, math.nan]]), torch.tensor([0])),
        lambda: log_odds(draw(1, 3), torch.tensor([3])),
        lambda: log_odds(draw(1, 1), torch.tensor([0])),
        lambda: kappa(torch.zeros(0).bool(), torch.zeros(0).bool()),
    ],
)
def test_what_cannot_be_judged_is_refused(give: object) -> None:
    with pytest.raises(ValueError, match=r"calibrated success|kappa"):
        give()  # type: ignore[operator]


# --- agreement ------------------------------------------------------------------------------------------------------


def test_kappa_is_scikit_learns() -> None:
    one, other = draw(200) > 0.3, draw(200, seed=1) + 0.5 * draw(200) > 0
    assert kappa(one, other) == pytest.approx(cohen_kappa_score(one.numpy(), other.numpy()), abs=1e-12)
    assert kappa(one, one) == 1.0 and math.isnan(kappa(torch.ones(3).bool(), torch.ones(3).bool()))


def test_agreement_is_of_different_families_only() -> None:
    hits = {name: draw(12, seed=place) > 0 for place, name in enumerate(("resnet", "resnet18", "ir"))}
    found = false_positives.agreement(hits, torch.arange(4).repeat_interleave(3))
    assert list(found) == ["resnet+ir", "resnet18+ir"]
    assert found["resnet+ir"]["both"]["value"] == float((hits["resnet"] & hits["ir"]).double().mean())
    never = {name: torch.zeros(4).bool() for name in ("resnet", "ir")}
    assert false_positives.agreement(never, torch.arange(4))["resnet+ir"]["kappa"] is None


# --- the yardstick --------------------------------------------------------------------------------------------------


def line(train: list[float], heldout: list[float], owners: list[int]) -> dict[str, torch.Tensor]:
    labels = torch.tensor(owners)
    return {
        "train_features": torch.tensor(train)[:, None],
        "train_labels": labels,
        "heldout_features": torch.tensor(heldout)[:, None],
        "heldout_labels": labels,
    }


def test_the_yardstick_in_closed_form() -> None:
    """People at 0 and 100 on a line; only the first is attacked: the second must not count."""
    private = line([0.0, 0.0, 100.0, 100.0], [0.0, 3.0, 100.0, 250.0], [0, 0, 1, 1])
    assert false_positives.yardstick(private, torch.tensor([0])) == (3.0, "heldout")
    lone = line([0.0, 90.0], [4.0, 100.0], [0, 1])
    assert false_positives.yardstick(lone, torch.tensor([0])) == (4.0, "train")
    same = line([0.0, 0.0], [1.0, 1.0], [0, 0])
    assert false_positives.yardstick(same, torch.tensor([0])) == (None, "heldout")


def test_times_real_scales_with_the_distance_not_with_its_square() -> None:
    private = line([0.0, 0.0, 9.0, 9.0], [0.0, 2.0, 9.0, 11.0], [0, 0, 1, 1])
    labels, hits = torch.tensor([0, 1]), torch.tensor([True, False])
    columns = {"open_top1": hits, "knn_heldout": torch.tensor([4.0, 36.0], dtype=torch.float64)}
    made, said = false_positives.measure(draw(2, 3), labels, columns, hits, private, {"threshold": 0.0})
    assert made["times_real"].tolist() == [1.0, 3.0] and said["times_real"]["value"] == 2.0


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


def test_an_image_of_somebody_else_is_no_success_though_it_is_the_best_answer() -> None:
    """The mistake it must see: unlike anybody, and still nearest to the claimed person."""
    strangers = torch.zeros(400, 3)
    strangers[:, 0] = torch.linspace(0, 4, 400)
    limit = threshold(impostor_scores(strangers, torch.full((400,), -1), 1))
    looks_alike, likeness = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[9.0, 0.0, 0.0]])
    private = line([0.0, 0.0], [0.0, 1.0], [0, 0])
    for logits, wanted in ((looks_alike, 0.0), (likeness, 1.0)):
        columns = {"open_top1": torch.tensor([True]), "knn_heldout": torch.ones(1, dtype=torch.float64)}
        _, said = false_positives.measure(
            logits, torch.tensor([0]), columns, torch.tensor([True]), private, {"threshold": limit}
        )
        assert said["calibrated"]["value"] == wanted and said["gap"]["value"] == 0
