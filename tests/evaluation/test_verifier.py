"""A verifier on tensors: thresholds hold their rates, real images are never compared with themselves, refusals."""

import json
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mibench.core import Dataset, Split, to_uint8
from mibench.evaluation.evaluate import evaluate
from mibench.evaluation.model import EvaluationModel
from mibench.evaluation.records import VerifierFacts
from mibench.evaluation.score import Score
from mibench.evaluation.verifier import FEWEST, ROC_RATES, Verifier
from mibench.metrics.verification import RATES
from mibench.models.base import Classifier, Prepare
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

CPU = resolve("cpu", "fp32")
SHAPE = (3, 4, 4)
PEOPLE = 24
EACH = 4


def faces(people: Tensor, role: str, noise: float = 0.12) -> Tensor:
    """Images around a picture of each person's own."""
    anchor = Noise(0, people).of(role).uniform(*SHAPE)
    own = Noise(0, torch.arange(len(people))).of(role, "image").normal(*SHAPE)
    return to_uint8((anchor + noise * own).clamp(0, 1))


def network(classes: int, scale: float = 1.0) -> Classifier:
    """Features are the pixels, less their mean."""
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 48))
    model = Classifier(Prepare(SHAPE, [0.0], [1.0]), trunk, nn.Linear(48, classes), 48).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trunk[1].weight.copy_(scale * (torch.eye(48) - 1 / 48))
        trunk[1].bias.zero_()
        model.head.weight.copy_(torch.randn(classes, 48, generator=draw))
        model.head.bias.zero_()
    return model


def people(count: int = PEOPLE, heldout: int = EACH, strangers: int = 200) -> Dataset:
    """People of noise; the public images are strangers."""
    own, unseen = torch.arange(count).repeat_interleave(6), torch.arange(count).repeat_interleave(heldout)
    return Dataset(
        "noise",
        tuple(f"person {i}" for i in range(count)),
        Split(faces(own, "private", 0.1), own),
        Split(faces(unseen, "private"), unseen),
        Split(faces(torch.arange(strangers), "stranger"), torch.full((strangers,), -1)),
        Split(faces(torch.arange(8), "distractor"), torch.arange(8)),
        False,
        True,
        {},
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return people()


@pytest.fixture(scope="module")
def verifier(data: Dataset) -> Verifier:
    return Verifier.of("net", network(30), 300, data, CPU, "net", "abcd1234", 3000)


def features(images: Tensor) -> Tensor:
    x = images.double().flatten(1) / 255
    return nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)


def impostors(data: Dataset) -> tuple[Tensor, Tensor]:
    """Cosines of strangers, and of private people who claim to be others, by the definition."""
    real = features(data.heldout.images)
    template = torch.stack([real[data.heldout.labels == who].mean(0) for who in range(len(data.classes))])
    template = nn.functional.normalize(template, dim=1)
    other = data.heldout.labels[:, None] != torch.arange(len(data.classes))
    return (features(data.public.images) @ template.T).flatten(), (real @ template.T)[other]


def test_thresholds_hold_the_stated_rates_exactly_on_the_impostors(data: Dataset, verifier: Verifier) -> None:
    kinds = dict(zip(("strangers", "others"), impostors(data), strict=True))
    for metric, rate in RATES.items():
        limit = verifier.facts.thresholds[metric]
        for kind, own in kinds.items():
            facts = verifier.facts.impostors[kind]
            assert facts.claims == len(own) == facts.images * (PEOPLE if kind == "strangers" else PEOPLE - 1)
            passing = float((own > limit + 1e-6).double().mean())
            assert (
                facts.passing[metric] == pytest.approx(passing, abs=1.01 / len(own)) and facts.passing[metric] <= rate
            )
        tight = max(int((own > limit + 1e-6).sum()) - int(rate * len(own)) for own in kinds.values())
        assert -1 <= tight <= 0  # the higher one of the two kinds is as low as its rate allows


def test_a_real_image_is_judged_by_the_persons_other_images(data: Dataset, verifier: Verifier) -> None:
    real, labels = features(data.heldout.images), data.heldout.labels
    for place in range(0, len(real), 7):
        rest = (labels == labels[place]) & (torch.arange(len(real)) != place)
        template = nn.functional.normalize(real[rest].mean(0), dim=0)
        assert float(verifier.heldout["similarity"][place]) == pytest.approx(float(real[place] @ template), abs=1e-5)
    assert verifier.facts.genuine["similarity"].value == pytest.approx(float(verifier.heldout["similarity"].mean()))
    with_own = verifier.judge(data.heldout.images, labels, CPU).images["similarity"]
    assert bool((with_own > verifier.heldout["similarity"]).all())  # with itself in the template it would be nearer


def test_the_area_under_the_roc_curve_is_scikit_learns(data: Dataset, verifier: Verifier) -> None:
    genuine = verifier.heldout["similarity"].tolist()
    others = torch.cat(impostors(data)).tolist()
    truth = [1] * len(genuine) + [0] * len(others)
    assert (
        verifier.facts.auc == pytest.approx(roc_auc_score(truth, genuine + others), abs=1e-4)
        and verifier.facts.auc > 0.9
    )
    rates, passing = zip(*verifier.facts.roc, strict=True)
    assert rates == ROC_RATES and list(passing) == sorted(passing)


def test_permuted_labels_pass_at_the_false_accept_rate(data: Dataset, verifier: Verifier) -> None:
    """Private training images that claim to be somebody else: no image here set a threshold."""
    rates = [
        verifier.judge(data.train.images, (data.train.labels + shift) % PEOPLE, CPU).means["verified"].value
        for shift in range(1, PEOPLE)
    ]
    assert sum(rates) / len(rates) < 0.02
    assert verifier.judge(data.train.images, data.train.labels, CPU).means["verified"].value > 0.8


def test_the_scale_of_features_and_the_order_of_images_do_not_matter(data: Dataset, verifier: Verifier) -> None:
    other = Verifier.of("net", network(30, 7.0), 300, data, CPU, "net")
    for metric, limit in verifier.facts.thresholds.items():
        assert other.facts.thresholds[metric] == pytest.approx(limit, abs=1e-5)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    one = verifier.judge(data.train.images, data.train.labels, CPU)
    two = verifier.judge(data.train.images[order], data.train.labels[order], CPU)
    torch.testing.assert_close(two.images["similarity"], one.images["similarity"][order])
    assert bool((one.images["verified"] | ~one.images["verified_strict"]).all())


def test_facts_survive_their_json(verifier: Verifier) -> None:
    saved = json.loads(json.dumps(verifier.facts.to_json(), allow_nan=False))
    assert VerifierFacts.from_json(saved) == verifier.facts
    assert verifier.card == {"model": "net", "run": "abcd1234", "seed": 3000, "people": 300, "trained_on": ""}


@pytest.mark.parametrize(
    ("given", "learnt", "message"),
    [
        ({}, FEWEST - 1, "a verifier needs at least 20 people to learn from; 'noise' has 19"),
        ({"count": FEWEST - 1}, 300, "a verifier needs at least 20 private people to verify; 'noise' has 19"),
        ({"heldout": 1}, 300, "person 0 of 'noise' has 1: give every person at least 2"),
        ({"strangers": 0}, 300, "a verifier's threshold needs images of strangers; 'noise' has no public images"),
    ],
)
def test_what_a_verifier_cannot_do_without_is_one_line(given: dict[str, int], learnt: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        Verifier.of("net", network(30), learnt, people(**given), CPU, "net")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_network_that_answers_nan_is_named(data: Dataset, verifier: Verifier) -> None:
    broken = network(30)
    with torch.no_grad():
        broken.trunk[1].bias[3] = torch.nan
    with pytest.raises(UserError, match="verifier net answers"):
        Verifier.of("net", broken, 300, data, CPU, "net")


# --- in a score -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judges(data: Dataset) -> list[EvaluationModel]:
    """Logits are cosines to the people's mean training image, so that real images are named."""
    model = network(PEOPLE + 8)
    x = data.train.images.float().flatten(1) / 255
    x = x - x.mean(1, keepdim=True)
    with torch.no_grad():
        model.head.weight.zero_()
        for who in range(PEOPLE):
            model.head.weight[who] = 3 * x[data.train.labels == who].mean(0)
    return [EvaluationModel.of("judge", model, data, CPU, "judge")]


def scored(data: Dataset, judges: list[EvaluationModel], images: Tensor, labels: Tensor, **more: Any) -> Score:
    return evaluate(images, labels, network(PEOPLE), judges, data, CPU, **more)


def test_likeness_is_named_and_verified_image_by_image(
    data: Dataset, judges: list[EvaluationModel], verifier: Verifier
) -> None:
    images, labels = data.train.images, data.train.labels.roll(3)  # half of them claim to be somebody else
    second = Verifier.of("other", network(30), 300, data, CPU, "other")
    score = scored(data, judges, images, labels, verifiers=[verifier, second])
    one = score.verifiers["net"]
    both = score.evaluators["judge"].images["open_top1"] & one.images["verified"]
    assert torch.equal(score.images["likeness"], both) and score.headline.value == float(both.double().mean())
    assert score.gate == "verified@net" and 0 < score.headline.value < 1
    assert score.both_verified is not None and score.both_verified == one.means["verified"]  # equal networks agree
    real = judges[0].private.heldout
    named = real.logits.argmax(1) == real.labels
    assert score.likeness_ceiling.value == float((named & verifier.heldout["verified"]).double().mean())
    assert score.mean("verified@net") == one.means["verified"] and score.mean("likeness") == score.headline


def test_without_a_verifier_the_own_ball_gate_stands_in(data: Dataset, judges: list[EvaluationModel]) -> None:
    score = scored(data, judges, data.train.images, data.train.labels)
    assert score.gate == "own_ball@judge" and score.verifiers == {} and score.both_verified is None
    assert torch.equal(score.images["likeness"], score.evaluators["judge"].images["own_ball"])
    assert score.headline.value > 0.9  # private images lie in their own balls
    real = score.ceiling["judge"].means["own_ball"]
    assert score.likeness_ceiling.value == real.value
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_a_score_with_verifiers_and_ground_truth_survives_its_json(
    data: Dataset, judges: list[EvaluationModel], verifier: Verifier
) -> None:
    labels = data.train.labels
    truth = {"latent_rank1": labels % 2 == 0, "latent_cosine": torch.linspace(-1, 1, len(labels)).double()}
    score = scored(data, judges, data.train.images, labels, verifiers=[verifier], truth=truth)
    again = Score.from_json(json.loads(json.dumps(score.to_json(), allow_nan=False)))
    assert (
        again == score
        and again.truth["latent_rank1"].value == 0.5
        and again.verifiers["net"].means == (score.verifiers["net"].means)
    )
    assert again.verifier_facts["net"] == verifier.facts and again.card["verifiers"] == [verifier.card]
    table = score.per_image()
    assert {"likeness", "verified@net", "verified_strict@net", "similarity@net", "latent_rank1"} <= set(table)
    assert torch.equal(table["latent_rank1"], truth["latent_rank1"])


def test_strangers_seldom_reach_the_headline(data: Dataset, judges: list[EvaluationModel], verifier: Verifier) -> None:
    """Images of people whom nobody knows, claimed to be everybody in turn: likeness is no more than the rate."""
    count = len(data.public)
    rates = [
        scored(data, judges, data.public.images, (torch.arange(count) + shift) % PEOPLE, verifiers=[verifier]).headline
        for shift in range(0, PEOPLE, 6)
    ]
    assert sum(rate.value for rate in rates) / len(rates) <= 0.02
