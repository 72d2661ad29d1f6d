"""Evaluation on tensors: closed forms in a world of colours, invariances, the same numbers as from files, refusals."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from reported import facts
from shell import world
from torch import Tensor, nn

from mibench.core import Dataset, Split, to_float, to_uint8
from mibench.evaluation import evaluate as evaluate_module
from mibench.evaluation import fields
from mibench.evaluation.evaluate import evaluate
from mibench.evaluation.model import EvaluationModel
from mibench.evaluation.protocol import Origin
from mibench.evaluation.score import Score
from mibench.metrics import declared, dictionary
from mibench.models.base import Classifier, Prepare
from mibench.runs import find
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.stages import artifacts
from mibench.stages.score import origin
from mibench.stats.intervals import clustered_interval

CPU = resolve("cpu", "fp32")
SHAPE = (3, 4, 4)
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1], [0.1, 0.9, 0.9]])
PRIVATE = 3
"""Three private people are red, green and blue; yellow and cyan are somebody else."""


def pictures(labels: Tensor, seed: int) -> Tensor:
    """Each person's colour under noise."""
    noise = torch.rand(len(labels), *SHAPE, generator=torch.Generator().manual_seed(seed))
    return to_uint8(COLOURS[labels][:, :, None, None] + 0.08 * (noise - 0.5))


def network(classes: int, scale: float = 1.0, sharpness: float = 40.0) -> Classifier:
    """Features are `scale` times the mean colour, logits the negative squared distances to the people's colours."""
    trunk = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    model = Classifier(Prepare(SHAPE, [0.0], [1.0]), trunk, nn.Linear(3, classes), 3).eval()
    with torch.no_grad():
        trunk[2].weight.copy_(scale * torch.eye(3))
        trunk[2].bias.zero_()
        model.head.weight.copy_(2 * sharpness * COLOURS[:classes] / scale)
        model.head.bias.copy_(-sharpness * COLOURS[:classes].square().sum(dim=1))
    return model


@pytest.fixture(scope="module")
def data() -> Dataset:
    own, others = torch.arange(24) % PRIVATE, PRIVATE + torch.arange(8) % 2
    return Dataset(
        "colours",
        ("red", "green", "blue"),
        Split(pictures(own, 1), own),
        Split(pictures(own[:9], 2), own[:9]),
        Split(pictures(others, 3), torch.full((8,), -1)),
        Split(pictures(others, 4), others - PRIVATE),
        False,
        True,
        {},
    )


@pytest.fixture(scope="module")
def judges(data: Dataset) -> list[EvaluationModel]:
    return [
        EvaluationModel.of(name, network(5, scale), data, CPU, name) for name, scale in (("one", 1.0), ("two", 3.0))
    ]


def scored(data: Dataset, judges: list[EvaluationModel], images: Tensor, labels: Tensor, **more: Any) -> Score:
    return evaluate(images, labels, network(PRIVATE), judges, data, CPU, **more)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of a JSON value; lists, empty mappings and those of free keys are leaves."""
    if isinstance(value, Mapping) and value and path not in ("card.split.dataset", "card.selection.settings"):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_the_private_images_themselves_are_everything_an_attack_could_find(
    data: Dataset, judges: list[EvaluationModel]
) -> None:
    score = scored(data, judges, data.train.images, data.train.labels)
    for one in score.evaluators.values():
        rates = {name: one.means[name].value for name in ("open_top1", "open_top5", "closed_top1", "tpir", "own_ball")}
        assert set(rates.values()) == {1.0}
        assert one.means["knn_train"].value == 0 < one.means["knn_heldout"].value and one.means["gap"].value == 0
        assert one.distances.fid == pytest.approx(0, abs=1e-9) and one.distances.prdc == (1.0, 1.0, 1.0, 1.0)
    assert (score.target.top1.value, score.target.answer_difference, score.natural_accuracy.value) == (1.0, 0.0, 1.0)
    assert score.agreement["one+two"].both.value == 1 and score.gate == "own_ball@one"
    assert (score.n, score.identities, score.classes) == (24, 3, 3) and score.headline.value == 1
    assert score.copies == 24


def test_private_images_are_counted_byte_by_byte(data: Dataset, judges: list[EvaluationModel]) -> None:
    images = torch.cat([data.heldout.images[:2], data.train.images[:1] ^ 1, data.public.images[:2]])
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert scored(data, judges, images, labels).copies == 2
    assert scored(data, judges, images[2:], labels[2:]).copies == 0


def test_an_oracle_that_is_its_own_evaluation_model_has_no_gap_whatever_the_images(data: Dataset) -> None:
    labels = torch.arange(60) % PRIVATE
    images = to_uint8(torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(5)).mean(dim=(2, 3), keepdim=True))
    images = images.expand(-1, -1, 4, 4).contiguous()
    own = EvaluationModel.of("self", network(PRIVATE), data, CPU, "self")
    score = evaluate(images, labels, network(PRIVATE), [own], data, CPU)
    one = score.evaluators["self"]
    assert own.facts.distractors == 0 and score.chance["open_top1@self"] == 1 / 3
    assert one.means["gap"].value == 0 and one.means["open_top1"] == score.target.top1 == one.means["closed_top1"]
    assert torch.equal(one.images["open_top1"], score.images["target_top1"]) and 0 < score.target.top1.value < 1


def test_over_all_shifts_of_the_labels_the_closed_set_hits_are_exactly_chance(
    data: Dataset, judges: list[EvaluationModel]
) -> None:
    """Each image names one person, whom exactly one shift claims."""
    images = to_uint8(torch.rand(31, *SHAPE, generator=torch.Generator().manual_seed(6)))
    labels = torch.arange(31) % PRIVATE
    shifts = [scored(data, judges, images, (labels + shift) % PRIVATE) for shift in range(PRIVATE)]
    for name in ("one", "two"):
        rates = [score.evaluators[name].means["closed_top1"].value for score in shifts]
        assert math.fsum(rates) / PRIVATE == pytest.approx(shifts[0].chance["closed_top1"]) == pytest.approx(1 / 3)
    wrong = scored(data, judges, data.train.images, (data.train.labels + 1) % PRIVATE)
    assert wrong.headline.value == 0 and wrong.evaluators["one"].means["tpir"].value == 0
    assert wrong.chance["open_top1@one"] == 1 / 5


def test_somebody_elses_image_is_a_closed_set_hit_only(data: Dataset, judges: list[EvaluationModel]) -> None:
    """Yellow lies between red and green: the mistake that an open-set evaluation model sees."""
    labels = torch.tensor([0, 1] * 6)
    yellow = pictures(torch.full((12,), 3), 7)
    one = scored(data, judges, yellow, labels).evaluators["one"]
    assert one.means["open_top1"].value == 0 == one.means["tpir"].value == one.means["own_ball"].value
    assert one.means["closed_top1"].value > 0 and set(one.images["answer"].tolist()) == {3}


def test_real_heldout_images_reach_the_ceiling(data: Dataset, judges: list[EvaluationModel]) -> None:
    score = scored(data, judges, data.heldout.images, data.heldout.labels)
    for name, best in score.ceiling.items():
        assert {key: score.evaluators[name].means[key] for key in best.means} == best.means
        assert score.evaluators[name].distances == best.distances
        assert score.evaluators[name].means["knn_heldout"].value == 0 and "knn_heldout" not in best.means


def test_features_of_another_scale_change_distances_by_its_square_and_no_verdict(
    data: Dataset, judges: list[EvaluationModel]
) -> None:
    score = scored(data, judges, pictures(torch.arange(12) % PRIVATE, 8), torch.arange(12) % PRIVATE)
    one, two = score.evaluators.values()
    for name in ("knn_train", "knn_heldout"):
        assert two.means[name].value == pytest.approx(9 * one.means[name].value, rel=1e-4)
    assert two.means["closeness"].value == pytest.approx(one.means["closeness"].value, rel=1e-4)
    assert two.means["own_ball"] == one.means["own_ball"]
    assert two.distances.fid == pytest.approx(9 * one.distances.fid, rel=1e-3)
    assert two.means["open_top1"] == one.means["open_top1"]


# --- invariances ----------------------------------------------------------------------------------------------------


def test_the_order_of_the_images_does_not_matter(data: Dataset, judges: list[EvaluationModel]) -> None:
    labels = torch.arange(30) % PRIVATE
    images = to_uint8(torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(9)))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one, other = (scored(data, judges, images[rows], labels[rows]) for rows in (torch.arange(30), order))
    there, back = dict(leaves(one.to_json())), dict(leaves(other.to_json()))
    assert there.pop("pixels") != back.pop("pixels") and there.keys() == back.keys()
    for key, value in there.items():
        assert back[key] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value), key
    for name, values in one.per_image().items():
        torch.testing.assert_close(other.per_image()[name], values[order], rtol=1e-6, atol=0)


def test_images_in_0_1_are_judged_as_they_would_be_saved(data: Dataset, judges: list[EvaluationModel]) -> None:
    labels = torch.arange(6) % PRIVATE
    stored = pictures(labels, 10)
    whole = scored(data, judges, stored, labels)
    assert scored(data, judges, to_float(stored) + 0.3 / 255, labels).to_json() == whole.to_json()
    known = scored(data, judges, stored, labels, natural_accuracy=whole.natural_accuracy)
    assert known.to_json() == whole.to_json()


def test_networks_are_left_as_they_are(data: Dataset, judges: list[EvaluationModel]) -> None:
    target = network(PRIVATE)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    evaluate(data.train.images, data.train.labels, target, judges, data, CPU)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(parameter.requires_grad for parameter in target.parameters())


# --- the same numbers as from files ---------------------------------------------------------------------------------


def test_tensors_give_what_files_gave() -> None:
    """Everything is measured again from the networks and the data: the private answers, thresholds, accuracies."""
    made = world()
    run = find(made.results, made.one("scores/kedmi-*").name)
    engine = resolve("cpu", run.spec["precision"])
    data = artifacts.dataset(run.inversion.target)
    tensors, _ = artifacts.read_tensors(run.inversion.path / "images.safetensors", "reconstructions")
    judges = [
        EvaluationModel.of(
            one.spec["model"], artifacts.load_classifier(one, data), data, engine, run=one.id, seed=one.spec["seed"]
        )
        for one in run.evaluators
    ]
    target = artifacts.load_classifier(run.inversion.target, data)
    score = evaluate(tensors["images"], tensors["labels"], target, judges, data, engine, origin=origin(run.inversion))
    assert json.loads(json.dumps(score.to_json())) == run.read("scores.json")
    assert score.per_image_csv(data.classes) == (run.path / "per_image.csv").read_text(encoding="utf-8")
    assert Score.from_json(run.read("scores.json")) == score


# --- the type -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def score(data: Dataset, judges: list[EvaluationModel]) -> Score:
    images = to_uint8(torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(11)))
    return scored(
        data, judges[::-1], images, torch.arange(12) % PRIVATE, origin=Origin("ppa", {"images": 4}, "white_box")
    )


def test_a_score_survives_its_json_and_keeps_the_headline_first(score: Score) -> None:
    text = json.dumps(score.to_json(), sort_keys=True, allow_nan=False)
    again = Score.from_json(json.loads(text))
    assert again == score and list(again.evaluators) == ["two", "one"] and again.headline == score.headline
    assert json.dumps(again.to_json(), sort_keys=True) == text
    with pytest.raises(UserError, match=r"without its images; read per_image\.csv"):
        again.per_image()


def test_means_are_found_by_their_columns(score: Score) -> None:
    assert score.mean("natural_accuracy") == score.natural_accuracy and score.mean("target_top1") == score.target.top1
    assert score.mean("both@two+one") == score.agreement["two+one"].both
    assert score.mean("gap@one") == score.evaluators["one"].means["gap"]
    with pytest.raises(UserError, match=r"no mean 'open_top1@three'; it has, among others: likeness, open_top1@two"):
        score.mean("open_top1@three")


def test_every_mean_is_a_declared_metric(score: Score) -> None:
    for one in score.evaluators.values():
        assert set(one.means) <= set(declared()) and set(one.images) - {"answer"} <= set(declared())


def test_the_data_dictionary_knows_every_key_and_column(score: Score) -> None:
    keys = [path for path, _ in leaves(score.to_json())]
    entries = dictionary(keys, fields.SCORES)
    assert len(entries) == len(keys) > 100 and all(one.meaning and one.unit and one.source for one in entries)
    by_name = {one.name: one for one in entries}
    assert by_name["evaluators.one.knn_train.value"].direction == "lower leaks more"
    assert by_name["chance.open_top1@one"].meaning.startswith("what guessing")
    columns = next(csv.reader(io.StringIO(score.per_image_csv(("red", "green", "blue")))))
    assert [one.name for one in dictionary(columns, fields.PER_IMAGE)] == columns
    assert columns[:5] == ["identity", "label", "likeness", "target_top1", "target_confidence"]


def test_every_field_is_used(score: Score) -> None:
    """No line of the dictionary speaks of what is never written."""
    found = score.to_json()
    found["perceptual"]["inception"] = found["evaluators"]["one"] | {"fid": 1.0}
    found["verifiers"] = {"net": {"verified": found["likeness"], "facts": facts(3).to_json()}}
    few = json.loads(json.dumps(found))
    few["ceiling"]["one"]["prdc"] = few["evaluators"]["one"]["prdc"] = few["perceptual"]["inception"]["prdc"] = None
    keys = {path for one in (score.to_json(), found, few) for path, _ in leaves(one)} | {"missing"}
    for field in fields.SCORES:
        assert any(len(dictionary([key], [field])) and key for key in keys if _is(field.name, key)), field.name


def _is(pattern: str, key: str) -> bool:
    own, given = pattern.split("."), key.split(".")
    return len(own) == len(given) and all(one in ("*", other) for one, other in zip(own, given, strict=True))


# --- people of whom no image came back


def test_who_is_left_out_is_a_miss_in_every_accuracy_and_no_part_of_any_distance(
    data: Dataset, judges: list[EvaluationModel]
) -> None:
    images, labels = data.train.images, data.train.labels
    absent = labels == 1
    grey = torch.where(absent[:, None, None, None], torch.full_like(images, 128), images)
    whole = scored(data, judges, images, labels)
    some = scored(data, judges, images[~absent], labels[~absent])
    found = scored(data, judges, grey, labels, absent=absent)
    assert found.missing == ("green",) and some.missing == () and (found.n, found.identities) == (24, 3)
    assert found.target.top1 == clustered_interval(whole.images["target_top1"] & ~absent, labels)
    assert found.likeness.n == 24 and found.likeness.value == pytest.approx(some.likeness.value * 16 / 24)
    assert found.target.confidence == some.target.confidence
    for name, one in found.evaluators.items():
        mine, theirs = one.means, some.evaluators[name].means
        for metric, mean in mine.items():
            if metric.endswith(("top1", "top5", "tpir", "own_ball")):
                assert mean.n == 24 and mean.value == pytest.approx(theirs[metric].value * 16 / 24), metric
            elif metric != "gap":
                assert mean.n == 16, metric
                assert metric == "closeness" or mean == theirs[metric], metric  # its scale is that of all people
        assert one.distances.n == 16
    text = list(csv.DictReader(io.StringIO(found.per_image_csv(("red", "green", "blue")))))
    row = next(line for line in text if line["identity"] == "green")
    assert row["likeness"] == row["open_top1@one"] == "0" and row["answer@one"] == "-1"
    assert row["knn_train@one"] == row["target_confidence"] == "nan"
    again = Score.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.missing == ("green",) and again.likeness == found.likeness
    assert "missing" not in whole.to_json() and "1 failed, no image: green" in found.summary()["images"]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_is_refused(data: Dataset, judges: list[EvaluationModel]) -> None:
    images, labels = data.train.images, data.train.labels
    with pytest.raises(UserError, match=r"evaluation models \(none\): give at least one"):
        scored(data, [], images, labels)
    with pytest.raises(UserError, match=r"evaluation models one, one: .* a name of its own"):
        scored(data, judges[:1] * 2, images, labels)
    with pytest.raises(ValueError, match="24 images and 3 labels"):  # as without shapes checked at run time
        evaluate_module._check(images, labels[:3], judges, data)
    with pytest.raises(ValueError, match="0 images"):
        scored(data, judges, images[:0], labels[:0])
    with pytest.raises(UserError, match=r"labels go from 1 to 3; allowed: 0 to 2"):
        scored(data, judges, images, labels + 1)
    with pytest.raises(UserError, match=r"of shape \(3, 2, 2\), those of 'colours' of \(3, 4, 4\)"):
        scored(data, judges, images[:, :, :2, :2], labels)
    broken = network(PRIVATE)
    with torch.no_grad():
        broken.head.bias[1] = torch.inf
    with pytest.raises(UserError, match="the target answers 24 images with NaN or infinity"):
        evaluate(images, labels, broken, judges, data, CPU)
    blind = Dataset(**(vars(data) | {"heldout": Split(images[:0], labels[:0])}))
    with pytest.raises(UserError, match="'colours' has no held-out images"):
        EvaluationModel.of("one", network(5), blind, CPU, "one")
    with pytest.raises(UserError, match="evaluation model one knows 2 classes, 'colours' has 3 private people"):
        EvaluationModel.of("one", network(2), data, CPU, "one")
    with pytest.raises(UserError, match="unknown architecture 'one'"):
        EvaluationModel.of("one", network(5), data, CPU)
