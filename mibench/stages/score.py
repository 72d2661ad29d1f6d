"""Judge reconstructions with evaluation models the attack never saw: read the runs, evaluate, write.

scores.json holds every mean with its interval, per_image.csv the values of each image. Everything is computed from the
uint8 images that were saved.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from mibench import models
from mibench.core import Dataset, Source
from mibench.evaluation import faces
from mibench.evaluation.evaluate import evaluate
from mibench.evaluation.judgement import Answers, PrivateAnswers
from mibench.evaluation.likeness import calibrate
from mibench.evaluation.model import EvaluationModel, stranger_answers
from mibench.evaluation.protocol import Origin
from mibench.evaluation.records import EvaluatorFacts
from mibench.evaluation.verifier import Verifier, lacking
from mibench.metrics import Unavailable
from mibench.metrics.latent import latent_cosine, latent_rank1
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.runs import PROTOCOL, Run, clock, provenance, unchanged
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts
from mibench.stages.train_target import require_other_family
from mibench.stats.intervals import Interval

__all__ = ["evaluation_model", "origin", "plan", "work"]


def plan(
    root: Path,
    inversion: Run,
    evaluators: list[Run],
    precision: str,
    verifiers: list[Run] | None = None,
    photographs: bool = False,
) -> Run:
    """The run that scores an inversion with two or more evaluation models, and verifiers where the data have people for
    them, else the face recognisers that are on this machine where the data are photographs of faces; the first of each
    makes the headline.

    Raises:
        UserError: If an evaluation model is of the target's family, or shares its seed.
    """
    target = inversion.target
    if len({evaluator.spec["model"] for evaluator in evaluators}) < len(evaluators):
        raise UserError("two evaluation models have the same architecture; choose different ones with --evaluators")
    for evaluator in [*evaluators, *(verifiers or [])]:
        require_other_family(evaluator.spec["model"], target.spec["model"])
        if evaluator.spec["seed"] == target.spec["seed"]:
            raise UserError(f"target and evaluation model share the seed {target.spec['seed']}; use another --seed")
    published = faces.present()[0] if photographs and not verifiers else []
    others = sorted(name for name in registry.names("metrics") if not registry.is_own("metrics", name))
    return Run(
        root,
        "scores",
        inversion.name,
        {
            "precision": precision,
            **({"verifiers": published} if published else {}),
            **({"metrics": others} if others else {}),
        },
        {
            "evaluators": list(evaluators),
            "inversion": inversion,
            **({"verifiers": list(verifiers)} if verifiers else {}),
        },
        {"photographs": True} if photographs else {},
    )


def origin(inversion: Run) -> Origin:
    """How an inversion's images came to be; of another program's images nothing is known but what was given."""
    spec = inversion.spec
    return Origin(
        spec["attack"]["name"] if inversion.prior is not None else None,
        spec["attack"]["settings"],
        spec["access"],
        spec["budget"],
        inversion.target.spec["dataset"],
        PROTOCOL,
    )


_models: dict[tuple[Any, ...], EvaluationModel] = {}
"""Evaluation models with what all scores need of them, by run, state of its files, data and engine."""


def evaluation_model(run: Run, data: Dataset, engine: Engine) -> EvaluationModel:
    """A trained evaluation model; its threshold and its view of private images are taken once a process.

    Raises:
        UserError: If a file is missing, damaged, or not the one that the run was finished with.
    """
    files = [run.path / "model.safetensors", run.path / "features.safetensors"]
    finished = (run.path / "done").stat()
    key = (run.path, finished.st_mtime_ns, finished.st_ino, data.fingerprint(), engine.precision, str(engine.device))
    return _kept(_models, key, files, lambda: _prepared(run, data, engine))


def _prepared(run: Run, data: Dataset, engine: Engine) -> EvaluationModel:
    network = artifacts.load_classifier(run, data)
    tensors, _ = artifacts.read_tensors(run.path / "features.safetensors", "private features")
    name, metrics = run.spec["model"], run.read("metrics.json")
    placed: Classifier = engine.place(fold(network))  # type: ignore[assignment]
    train, heldout = (
        Answers(tensors[f"{part}_logits"], tensors[f"{part}_features"], tensors[f"{part}_labels"])
        for part in ("train", "heldout")
    )
    others = stranger_answers(placed, data, engine)
    facts = EvaluatorFacts(
        heldout_accuracy=Interval(**metrics["natural_accuracy"]),
        heldout_accuracy_open=Interval(**metrics["open_set_accuracy"]),
        distractors=metrics["distractors"],
        distractors_are_public=metrics["distractors_are_public"],
        knn_real_to_real=metrics["knn_real_to_real"],
        calibration=calibrate(others.logits, data),
    )
    private, seed = PrivateAnswers(train, heldout), run.spec["seed"]
    return EvaluationModel(name, placed, models.family(name), private, others, facts, run.label, run.id, seed)


_verifiers: dict[tuple[Any, ...], Verifier] = {}
"""Verifiers with templates and thresholds, likewise."""


def verifier(run: Run, data: Dataset, engine: Engine) -> Verifier | None:
    """A trained verifier; its templates and thresholds on the data are made once a process. None where the data have
    too few people or images for one (`evaluation.verifier.lacking`).

    Raises:
        UserError: If a file is missing or damaged.
    """
    people = run.read("metrics.json")["people"]
    if lacking(people, data) is not None:
        return None
    finished = (run.path / "done").stat()
    key = (run.path, finished.st_mtime_ns, finished.st_ino, data.fingerprint(), engine.precision, str(engine.device))

    def make() -> Verifier:
        name, network = run.spec["model"], artifacts.load_verifier(run)
        family, trained_on = models.family(name), f"{people} people of {data.name} who play no other part"
        return Verifier.of(name, network, people, data, engine, family, run.id, run.spec["seed"], trained_on)

    return _kept(_verifiers, key, [run.path / "model.safetensors"], make)


Judge = TypeVar("Judge", EvaluationModel, Verifier)


def _kept(
    known: dict[tuple[Any, ...], Judge], key: tuple[Any, ...], files: Iterable[Path], make: Callable[[], Judge]
) -> Judge:
    """The last eight stay, while their files are those that their runs were finished with."""
    for file in files:
        unchanged(file)
    if key not in known:
        while len(known) >= 8:
            known.pop(next(iter(known)))
        known[key] = make()
    return known[key]


def recogniser(name: str, data: Dataset, engine: Engine) -> Verifier:
    """A published face recogniser as a verifier; its templates and thresholds on the data are made once a process.

    Raises:
        UserError: If the data have too few people, images or faces for it, or its file is missing or damaged.
    """
    key = (name, data.fingerprint(), engine.precision, str(engine.device))
    return _kept(_verifiers, key, (), lambda: Verifier.published(faces.RECOGNISERS[name], data, engine))


def verifiers_of(run: Run, data: Dataset, engine: Engine) -> tuple[list[Verifier], list[Unavailable]]:
    """The verifiers of a score, the headline's first, and those that cannot judge these data, with the reason.

    Raises:
        UserError: If the file of a verifier that was trained here is missing or damaged.
    """
    ready = [known for one in run.verifiers if (known := verifier(one, data, engine)) is not None]
    missing = []
    for name in run.spec.get("verifiers", []):
        try:
            ready.append(recogniser(name, data, engine))
        except UserError as error:
            missing.append(Unavailable(f"verified@{name}", str(error), "until then the own-ball gate stands in"))
    if not ready and not missing and run.inputs.get("photographs"):
        missing = faces.present()[1]
    return ready, missing


def ground_truth(inversion: Run, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the data themselves know of each image, where the attack searched the generator that drew them."""
    if inversion.prior is None or "latents" not in tensors:
        return {}
    wanted = inversion.target.inputs["dataset"]
    source: Source = registry.configure("data", wanted["name"], settings=wanted["settings"]).plugin
    anchors = source.anchors(inversion.prior.spec["prior"]["name"])
    z, labels = tensors["latents"], tensors["labels"]
    if anchors is None or z.shape[1] != anchors.shape[1]:
        return {}
    return {"latent_rank1": latent_rank1(z, labels, anchors), "latent_cosine": latent_cosine(z, labels, anchors)}


def without_heldout(data: Dataset, labels: Int64[Tensor, " n"]) -> list[str]:
    """The people among `labels` of whom every image was trained on, as a split at random leaves some."""
    judged = labels.unique()
    return [data.classes[label] for label in judged[~torch.isin(judged, data.heldout.labels)].tolist()]


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Score every image with every evaluation model; write scores.json and per_image.csv."""
    started = clock()
    inversion, target = run.inversion, run.inversion.target
    data = artifacts.dataset(target)
    tensors, _ = artifacts.read_tensors(inversion.path / "images.safetensors", "reconstructions")
    if people := without_heldout(data, tensors["labels"]):
        reporter.say(
            f"{run.label}: {len(people)} of the attacked people have no held-out image ({', '.join(people[:8])}"
            f"{', ...' if len(people) > 8 else ''}): distances to held-out images are means over the others"
        )
    with run.writing(describe(engine), reporter.say) as folder:
        verifiers, missing = verifiers_of(run, data, engine)
        score = evaluate(
            tensors["images"],
            tensors["labels"],
            artifacts.load_classifier(target, data),
            [evaluation_model(evaluator, data, engine) for evaluator in run.evaluators],
            data,
            engine,
            verifiers=verifiers,
            missing=missing,
            truth=ground_truth(inversion, tensors),
            absent=torch.isin(tensors["labels"], tensors["missing"]) if "missing" in tensors else None,
            natural_accuracy=Interval(**target.read("metrics.json")["natural_accuracy"]),
            origin=origin(inversion),
            target_label=target.label,
            reporter=reporter,
            title=f"score {run.name} on {target.name}",
        )
        table = score.per_image_csv(data.classes)
        write_json(folder / "scores.json", score.to_json())
        write_atomic(folder / "per_image.csv", lambda scratch: scratch.write_text(table, encoding="utf-8"))
        run.finish(provenance(started, describe(engine)))
