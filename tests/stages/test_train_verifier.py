"""Training a verifier: the same bits, resumed or not; what data without bystanders get; what it changes."""

import csv
import json
from pathlib import Path

import pytest
import torch
from interruptions import Stop

from mibench import stages
from mibench.core import Source
from mibench.experiments import options
from mibench.experiments.plan import plan
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts, invert, score, train_prior, train_target, train_verifier

ENGINE = resolve("cpu", "fp32")
PEOPLE = {
    "identities": 20,
    "train_images": 3,
    "heldout_images": 2,
    "public_images": 40,
    "distractors": 2,
    "distractor_images": 3,
    "image_size": 16,
    "bystanders": 20,
}
SHORT = {"epochs": 2, "batch": 20}


def data(**changed: int) -> registry.Choice:
    return registry.configure("data", "digiface", settings=PEOPLE | changed)


def planned(root: Path, architecture: str = "resnet", **changed: int) -> Run:
    run = train_verifier.plan(root, data(**changed), architecture, "fp32", SHORT)
    assert run is not None
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(artifacts.load_verifier(run).state_dict())


def test_the_same_seed_gives_the_same_bits_resumed_or_not(tmp_path: Path) -> None:
    whole, again = planned(tmp_path / "one"), planned(tmp_path / "two")
    train_verifier.work(whole, ENGINE, Silent())
    stop = Stop(4)
    with pytest.raises(KeyboardInterrupt):
        train_verifier.work(again, ENGINE, stop)
    torch.rand(5)  # whatever this process drew meanwhile
    train_verifier.work(again, ENGINE, Silent())
    made, remade = ({name: of for name, of in run.read("done").items() if name != "run.json"} for run in (whole, again))
    assert whole.id == again.id and made == remade and "model.safetensors" in made
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    own = whole.read("metrics.json")
    assert own["people"] == 20 and own["bystanders"] == data().plugin.load_bystanders().fingerprint()


def test_it_learns_its_bystanders_and_nobody_else(tmp_path: Path) -> None:
    run = train_verifier.plan(tmp_path, data(), "resnet", "fp32", {"epochs": 25, "batch": 20})
    assert run is not None
    train_verifier.work(run, ENGINE, Silent())
    people = data().plugin.load_bystanders()
    model = artifacts.load_verifier(run).eval()
    with torch.no_grad():
        answers = model(people.images.float() / 255).argmax(1)
    assert float((answers == people.labels).double().mean()) > 0.9


def test_its_id_is_its_own(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert run.kind == "verifiers" and run.spec["seed"] == train_verifier.VERIFIER_SEED
    others = [planned(tmp_path, "ir"), planned(tmp_path, bystanders=21), planned(tmp_path, seed=1)]
    assert len({run.id, *(other.id for other in others)}) == 4
    full = train_verifier.plan(tmp_path, data(), "resnet", "fp32")
    assert full is not None and full.spec["training"]["least_steps"] == 1600
    with pytest.raises(UserError, match="unknown architecture 'gone'"):
        train_verifier.plan(tmp_path, data(), "gone", "fp32")


@pytest.mark.parametrize("lacking", [{"bystanders": 19}, {"bystanders": 0}, {"identities": 19}])
def test_too_few_people_plan_no_verifier(tmp_path: Path, lacking: dict[str, int]) -> None:
    assert train_verifier.plan(tmp_path, data(**lacking), "resnet", "fp32") is None
    orl = registry.configure("data", "orl")
    assert train_verifier.plan(tmp_path, orl, "resnet", "fp32") is None


def test_the_number_of_bystanders_moves_scores_and_nothing_else(tmp_path: Path) -> None:
    def ids(count: int) -> dict[str, set[str]]:
        sets = {"data": {**PEOPLE, "bystanders": count}}
        experiment = options.grid(defenses=("none", "re"), methods=("ppa",), preset="quick", settings=sets)
        found: dict[str, set[str]] = {}
        waiting = plan(experiment, tmp_path)
        while waiting:
            run = waiting.pop()
            found.setdefault(run.kind, set()).add(run.id)
            waiting += run.ancestors()
        return found

    few, more, none = ids(20), ids(30), ids(0)
    for kind in ("targets", "evaluators", "priors", "inversions"):
        assert few[kind] == more[kind] == none[kind], kind
    assert not few["verifiers"] & more["verifiers"] and "verifiers" not in none
    assert not few["scores"] & more["scores"] and not few["scores"] & none["scores"]


@pytest.fixture(scope="module")
def inversion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Run]]:
    """One image of each of 20 people by prior_sample, and two evaluation models."""
    root = tmp_path_factory.mktemp("scored")
    victim = train_target.plan(root, data(), "cnn", [], 0, "fp32", {"epochs": 1, "batch": 20})
    judges = [
        train_target.plan_evaluator(root, data(), name, "fp32", {"epochs": 1, "batch": 20}) for name in ("resnet", "ir")
    ]
    prior = train_prior.plan(root, data(), registry.configure("priors", "dcgan"), None, 0, "fp32")
    attack = registry.configure("attacks", "prior_sample", settings={"images": 1})
    run = invert.plan(root, victim, prior, attack, 0, "fp32", 20, None)
    for one in (victim, *judges, prior, run):
        stages.perform(one, ENGINE, Silent())
    return run, judges


def test_a_score_with_verifiers_says_what_they_say(inversion: tuple[Run, list[Run]]) -> None:
    run, judges = inversion
    matchers = [planned(run.root, name) for name in ("resnet", "ir")]
    for one in matchers:
        train_verifier.work(one, ENGINE, Silent())
    scored = score.plan(run.root, run, judges, "fp32", matchers)
    score.work(scored, ENGINE, Silent())
    report = scored.read("scores.json")
    assert report["gate"] == "verified@resnet" and list(report["verifiers"]) == ["ir", "resnet"]
    assert [one["run"] for one in report["card"]["verifiers"]] == [one.id for one in matchers]
    for name in ("resnet", "ir"):
        facts = report["verifiers"][name]["facts"]
        assert facts["people"] == 20 and facts["impostors"]["strangers"]["claims"] == 40 * 20
        assert all(rate <= 0.01 for rate in facts["impostors"]["strangers"]["passing"].values())
    with (scored.path / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert int(row["likeness"]) == int(row["open_top1@resnet"]) * int(row["verified@resnet"])
        assert int(row["verified@resnet"]) >= int(row["verified_strict@resnet"])
    both = [row["verified@resnet"] == row["verified@ir"] == "1" for row in rows]
    assert report["both_verified"]["value"] == sum(both) / len(both)
    # The attack drew from the very generator: the data know whose anchor each latent is nearest to.
    assert report["truth"]["latent_rank1"]["value"] == sum(int(row["latent_rank1"]) for row in rows) / len(rows)
    assert abs(report["truth"]["latent_cosine"]["value"]) < 0.1  # drawn blindly


def test_data_without_bystanders_are_judged_by_the_own_ball_gate(inversion: tuple[Run, list[Run]]) -> None:
    run, judges = inversion
    scored = score.plan(run.root, run, judges, "fp32")
    score.work(scored, ENGINE, Silent())
    report = json.loads((scored.path / "scores.json").read_text())
    assert report["gate"] == "own_ball@resnet" and report["verifiers"] == {} and scored.verifiers == []
    assert report["likeness"] == report["evaluators"]["resnet"]["own_ball"]


def test_a_verifier_of_the_targets_family_is_refused(inversion: tuple[Run, list[Run]]) -> None:
    run, judges = inversion
    with pytest.raises(UserError, match="cnn"):
        score.plan(run.root, run, judges, "fp32", [planned(run.root, "cnn")])


def test_sources_tell_how_many_bystanders_they_have_without_drawing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Source, *_: object) -> None:
        raise AssertionError("planning drew people")

    monkeypatch.setattr(type(data().plugin), "load_bystanders", refused)
    assert data(bystanders=77).plugin.bystander_count == 77
