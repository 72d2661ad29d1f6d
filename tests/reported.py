"""Finished runs of noise, written by hand: what tests of reports, protocols and the human study look at."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from mibench.core import Dataset, Split
from mibench.evaluation.records import ImpostorClaims, VerifierFacts
from mibench.report.rows import RATES
from mibench.runs import Run
from mibench.stages import artifacts
from mibench.stats.intervals import clustered_interval

CLASSES = tuple(f"person_{i}" for i in range(4))
DATA = {"name": "digiface", "settings": {}}
RE = {"a_e": 0.4, "a_min": 0.1, "p": 1.0, "ratio": [1.0, 1.0], "fill": "mean", "location": "uniform"}
IMAGES = 3


def split(n: int, labels: list[int], seed: int) -> Split:
    images = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Split(images, torch.tensor(labels))


@pytest.fixture(scope="session")
def noise() -> Dataset:
    own = [0, 0, 1, 1, 2, 2, 3, 3]
    return Dataset(
        "digiface",
        CLASSES,
        split(8, own, 1),
        split(8, own, 2),
        split(5, [0, 1, 2, 3, 4], 3),
        split(3, [0, 1, 2], 4),
        False,
        True,
        {"source": "noise"},
    )


@pytest.fixture
def data(noise: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set of noise, in place of the one the runs name."""
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: noise)
    return noise


def finish(run: Run, files: dict[str, object], seconds: float = 1.5) -> Run:
    with run.writing() as folder:
        for name, content in files.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            elif name.endswith(".json"):
                (folder / name).write_text(json.dumps(content))
            else:
                tensors, header = content  # type: ignore[misc]
                artifacts.write_tensors(folder / name, tensors, header)
        run.finish({"seconds": seconds, "device": "cpu", "machine": "x", "finished": "then", "mibench": "0"})
    return run


def summary(values: torch.Tensor, labels: torch.Tensor) -> dict[str, float | None]:
    found = clustered_interval(values, labels)._asdict()
    return {key: None if value != value else value for key, value in found.items()}  # JSON has no NaN


def judge(root: Path, name: str, data: Dataset) -> Run:
    draw = torch.Generator().manual_seed(9)
    tensors = {f"{part}_features": torch.randn(len(data.train), 5, generator=draw) for part in ("train", "heldout")}
    tensors |= {f"{part}_logits": torch.randn(len(data.train), 7, generator=draw) for part in ("train", "heldout")}
    tensors |= {"train_labels": data.train.labels, "heldout_labels": data.heldout.labels}
    run = Run(
        root,
        "evaluators",
        f"digiface-{name}",
        {"dataset": DATA, "model": name, "seed": 1000, "training": {}},
        inputs={"dataset": DATA},
    )
    accuracy = summary(torch.arange(len(data.heldout)) < len(data.heldout) - 1, data.heldout.labels)
    return finish(
        run,
        {
            "metrics.json": {
                "classes": 4,
                "dataset_fingerprint": data.fingerprint(),
                "natural_accuracy": accuracy,
                "open_set_accuracy": accuracy,
                "distractors": 3,
                "distractors_are_public": False,
                "knn_real_to_real": 7.25,
                "parameters": 10,
            },
            "features.safetensors": (tensors, {"role": "private features"}),
        },
    )


CALIBRATION = {
    "threshold": 1.5,
    "rate": 0.05,
    "strangers": 40,
    "passing": 0.05,
    "named": 0.475,
    "strangers_are": "public",
}


def facts(classes: int) -> VerifierFacts:
    """Of a verifier that accepts nine in ten real images."""
    far = {"verified": 0.01, "verified_strict": 0.001}
    labels = torch.arange(classes).repeat_interleave(10)
    genuine = clustered_interval(torch.arange(len(labels)) % 10 > 0, labels)
    return VerifierFacts(
        300,
        "300 other people",
        {"verified": 0.4, "verified_strict": 0.6},
        {"strangers": ImpostorClaims(40, 40 * classes, far), "others": ImpostorClaims(8, 8 * (classes - 1), far)},
        {"verified": genuine, "verified_strict": genuine, "similarity": genuine},
        0.987,
        ((0.001, 0.9), (0.01, 0.9)),
    )


def verifier(root: Path, name: str) -> Run:
    """A finished verifier of 300 people."""
    spec = {"bystanders": 300, "dataset": DATA, "model": name, "seed": 3000, "training": {}}
    run = Run(root, "verifiers", f"digiface-{name}", spec, inputs={"dataset": DATA})
    return finish(run, {"metrics.json": {"people": 300, "parameters": 10}})


def target(root: Path, defenses: list[dict[str, object]], data: Dataset, seed: int = 0, **more: object) -> Run:
    spec = {"dataset": DATA, "defenses": defenses, "model": "cnn", "seed": seed, "training": {}, **more}
    name = "digiface-cnn-" + ("+".join(str(item["name"]) for item in defenses) or "none")
    correct = torch.arange(len(data.heldout)) < len(data.heldout) - 1 - len(defenses)
    return finish(
        Run(root, "targets", name, spec, inputs={"dataset": DATA}),
        {
            "metrics.json": {
                "classes": 4,
                "dataset_fingerprint": data.fingerprint(),
                "parameters": 10,
                "natural_accuracy": summary(correct, data.heldout.labels),
            },
            "data.json": {"source": "synthetic people", "licence": "MIT"},
        },
    )


def score(
    root: Path,
    attack: str,
    victim: Run,
    judges: list[Run],
    hits: list[int],
    data: Dataset,
    identities: int = 4,
    settings: dict[str, object] | None = None,
    seed: int = 0,
    images: int = IMAGES,
    verifiers: list[Run] | None = None,
    verified: list[int] | None = None,
) -> Run:
    """A score whose headline hits are given, image by image.

    The first evaluation model says the same, and so do the own-ball gate and every verifier but the second, unless
    `verified` says what that one does.
    """
    prior = Run(
        root,
        "priors",
        "digiface-dcgan",
        {"dataset": DATA, "precision": "fp32", "seed": 0, "prior": {"name": "dcgan", "settings": {}}},
    )
    if not prior.done:
        finish(prior, {"metrics.json": {"target_queries": 0, "latent_dim": 2, "parameters": 3, "public_images": 5}})
    spec = {
        "access": "white_box",
        "attack": {"name": attack, "settings": settings or {}},
        "budget": None,
        "identities": identities,
        "precision": "fp32",
        "seed": seed,
    }
    labels = torch.arange(identities).repeat_interleave(images)
    draw = torch.Generator().manual_seed(sum(hits))
    shape = (len(labels), *data.image_shape)
    made = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    inversion = finish(
        Run(root, "inversions", attack, spec, {"prior": prior, "target": victim}),
        {
            "metrics.json": {
                "gradient_images_per_identity": 60.0,
                "queries_per_identity": 80.0,
                "shared_queries": 1000,
                "images": len(labels),
                "identities": identities,
            },
            "images.safetensors": ({"images": made, "labels": labels}, {"role": "reconstructions"}),
        },
        seconds=12.25,
    )
    hit = torch.tensor(hits).bool()
    columns = {"likeness": hit, "target_top1": hit | True, "target_confidence": torch.rand(len(hit), generator=draw)}
    report: dict[str, object] = {"n": len(hit), "identities": identities, "classes": len(data.classes)}
    report["perceptual"] = {}
    report["chance"] = {"closed_top1": 0.25} | {f"open_top1@{run.spec['model']}": 1 / 7 for run in judges}
    report["natural_accuracy"] = victim.read("metrics.json")["natural_accuracy"]
    report["target"] = {
        "top1": summary(columns["target_top1"], labels),
        "confidence": summary(columns["target_confidence"], labels),
        "passes": 1,
        "answer_difference": 0.0,
    }
    report["unavailable"] = [{"name": "lpips", "why": "no weights", "how": "fetch them"}]
    report["evaluators"], report["ceiling"], report["verifiers"] = {}, {}, {}
    report |= {"agreement": {}, "truth": {}, "likeness": summary(hit, labels), "pixels": ""}
    report["likeness_ceiling"] = summary(torch.arange(len(labels)) > 0, labels)
    report["gate"] = f"verified@{verifiers[0].spec['model']}" if verifiers else f"own_ball@{judges[0].spec['model']}"
    for place, run in enumerate(judges):
        name = run.spec["model"]
        # A second evaluation model disagrees with the first about everything.
        verdicts = {key: hit if place == 0 else ~hit for key in RATES if "top" in key}
        verdicts |= {key: torch.rand(len(hit), generator=draw) * 30 for key in ("knn_train", "knn_heldout")}
        verdicts |= {"own_ball": verdicts["open_top1"], "tpir": verdicts["open_top1"]}
        verdicts["closeness"] = torch.rand(len(hit), generator=draw)
        columns |= {f"{key}@{name}": values for key, values in verdicts.items()}
        sets = {"fid": 10.5 + sum(hits), "kid": 0.1, "kid_error": 0.01, "n": len(hit), "n_real": 8}
        own = run.read("metrics.json")
        report["evaluators"][name] = (
            {key: summary(values, labels) for key, values in verdicts.items()}
            | sets
            | {
                "heldout_accuracy": own["natural_accuracy"],
                "heldout_accuracy_open": own["open_set_accuracy"],
                "distractors": 3,
                "distractors_are_public": False,
                "knn_real_to_real": 7.25,
                "calibration": CALIBRATION,
            }
        )
        real = torch.ones(len(labels), dtype=torch.bool)
        report["ceiling"][name] = {
            key: summary(real if "top" in key else torch.ones(len(labels)), labels)
            for key in RATES
            if key != "knn_heldout"
        } | sets
    for place, run in enumerate(verifiers or []):
        name = run.spec["model"]
        own = torch.tensor(verified).bool() if place and verified is not None else hit
        verdicts = {"verified": own, "verified_strict": own & (labels > 0), "similarity": own.float() / 2}
        columns |= {f"{key}@{name}": values for key, values in verdicts.items()}
        report["verifiers"][name] = {key: summary(values, labels) for key, values in verdicts.items()}
        report["verifiers"][name]["facts"] = facts(len(data.classes)).to_json()
    if verifiers:
        report["card"] = {"verifiers": [{"model": run.spec["model"]} for run in verifiers]}
        report["card"]["evaluators"] = [{"model": run.spec["model"]} for run in judges]
    pair = [report["verifiers"][run.spec["model"]]["verified"] for run in verifiers or []][1:]
    report["both_verified"] = pair[0] if pair else None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["identity", "label", *columns])
    for place, label in enumerate(labels.tolist()):
        writer.writerow([data.classes[label], label, *(f"{float(values[place]):.6g}" for values in columns.values())])
    parents = {"evaluators": judges, "inversion": inversion} | ({"verifiers": verifiers} if verifiers else {})
    run = Run(root, "scores", attack, {"precision": "fp32"}, parents)
    return finish(run, {"scores.json": report, "per_image.csv": text.getvalue()})


HITS = {  # (defense strength, attack): one digit an image
    (None, "gmi"): "110100100110",
    (None, "ppa"): "111111111101",
    (None, "prior_search"): "111111111111",
    (0.4, "gmi"): "000100000100",
    (0.4, "ppa"): "011010010001",
    (0.8, "gmi"): "000000000000",
    (0.8, "ppa"): "000000000000",
}


def bits(text: str) -> list[int]:
    return [int(digit) for digit in text]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, noise: Dataset) -> Path:
    """Three targets, two attacks and a floor that beats them all."""
    folder = tmp_path_factory.mktemp("world")
    judges = [judge(folder, name, noise) for name in ("resnet", "ir")]
    victims = {None: target(folder, [], noise)}
    victims |= {area: target(folder, [{"name": "re", "settings": RE | {"a_e": area}}], noise) for area in (0.8, 0.4)}
    for (area, attack), hits in HITS.items():
        score(folder, attack, victims[area], judges, bits(hits), noise)
    return folder


@pytest.fixture
def root(tmp_path: Path, world: Path, data: Dataset) -> Path:
    """A copy of the world that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "results"))
