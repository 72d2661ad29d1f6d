"""Judge reconstructions with evaluation models the attack never saw.

Everything is computed from the uint8 images that were saved. One forward pass of each evaluation model yields logits
and features for all of its metrics.
"""

import csv
import hashlib
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mibench.core import Dataset, Split, to_float
from mibench.data.cache import cached, hash_of
from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.false_positives import log_odds
from mibench.metrics.fid import Statistics, frechet_distance, statistics
from mibench.metrics.kid import kernel_distance
from mibench.metrics.knn import knn_distance
from mibench.metrics.prdc import K, Manifold, manifold, prdc
from mibench.models.fold import fold
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts, false_positives, protocol
from mibench.stages.train_target import require_other_family
from mibench.stats.intervals import clustered_interval
from mibench.training import predict

__all__ = ["plan", "work"]

Columns = dict[str, Tensor]

WOBBLE = 64
"""Images that the target is asked about twice, to see whether it answers alike."""


def plan(root: Path, inversion: Run, evaluators: list[Run], precision: str) -> Run:
    """The run that scores an inversion with two or more evaluation models.

    Raises:
        UserError: If an evaluation model is of the target's family, or shares its seed.
    """
    target = inversion.parents["target"]
    assert isinstance(target, Run)
    if len({evaluator.spec["model"] for evaluator in evaluators}) < len(evaluators):
        raise UserError("two evaluation models have the same architecture; choose different ones with --evaluators")
    for evaluator in evaluators:
        require_other_family(evaluator.spec["model"], target.spec["model"])
        if evaluator.spec["seed"] == target.spec["seed"]:
            raise UserError(f"target and evaluation model share the seed {target.spec['seed']}; use another --seed")
    return Run(
        root,
        "scores",
        inversion.name,
        {"precision": precision},
        {"evaluators": list(evaluators), "inversion": inversion},
    )


def summary(values: Tensor, labels: Int64[Tensor, " n"]) -> dict[str, float | None]:
    """Mean, 95% interval clustered by identity, n; bounds are null where no interval exists."""
    return clustered_interval(values, labels).as_json()


def judge(
    logits: Float[Tensor, "n k"],
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    private: Columns,
    classes: int,
) -> Columns:
    """Per-image verdicts of one evaluation model."""
    closed = closed_set(logits, classes)
    columns = {
        "open_top1": top_k(logits, labels, 1),
        "open_top5": top_k(logits, labels, min(5, logits.shape[1])),
        "closed_top1": top_k(closed, labels, 1),
        "closed_top5": top_k(closed, labels, min(5, classes)),
        "knn_train": knn_distance(features, labels, private["train_features"], private["train_labels"]),
        "knn_heldout": knn_distance(features, labels, private["heldout_features"], private["heldout_labels"]),
    }
    return {name: values.cpu() for name, values in columns.items()}


class Reference(NamedTuple):
    """Real features, and what two sets of images that are compared with them need of them only once.

    `statistics` and `manifold` are null where there are too few images for them.
    """

    features: Float[Tensor, "m d"]
    statistics: Statistics | None
    manifold: Manifold | None


def reference(real: Float[Tensor, "m d"]) -> Reference:
    """Statistics and balls of real features."""
    return Reference(real, statistics(real) if len(real) >= 2 else None, manifold(real) if len(real) > K else None)


@lru_cache(maxsize=8)
def private_reference(evaluator: Path, attacked: tuple[int, ...], place: torch.device) -> Reference:
    """An evaluation model's view of the attacked people's private images; kept, since attack after attack needs it."""
    private, _ = artifacts.read_tensors(evaluator / "features.safetensors", "private features")
    rows = torch.isin(private["train_labels"], torch.tensor(attacked))
    return reference(private["train_features"][rows].to(place))


def inception_features(
    pool3: Callable[[Tensor], Tensor], real: Split, data: Dataset, device: torch.device
) -> Float[Tensor, "m 2048"]:
    """Inception's features of private images; kept on disk, since they take longest of all metrics."""
    known = (data.fingerprint(), real.labels.unique().tolist(), inception.WEIGHTS, device.type, torch.__version__)

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        with torch.no_grad():
            return {"features": torch.cat([pool3(part).cpu() for part in real.images.split(64)])}, {}

    tensors, _ = cached(hash_of("inception", *known, files=[Path(inception.__file__)]), make)
    return tensors["features"].to(device)


def answers(who: Run, network: nn.Module, images: UInt8[Tensor, "n c h w"], engine: Engine) -> tuple[Tensor, Tensor]:
    """`predict`, refused where it is no number.

    Raises:
        UserError: If a model answers NaN or infinity.
    """
    logits, features = predict(network, images, engine)
    if not (logits.isfinite().all() and features.isfinite().all()):
        raise UserError(
            f"{who.label} answers {images.shape[0]} images with NaN or infinity in {engine.precision}, so that nothing "
            "can be scored; try --precision fp32, else train it again with --force and a lower training.lr"
        )
    return logits, features


def distances(real: Float[Tensor, "m d"] | Reference, generated: Float[Tensor, "n d"]) -> dict[str, Any]:
    """Fréchet and kernel distance, precision, recall, density and coverage of two sets of features, real first.

    Null, never 0, where there are too few images for one. On the features' device, in float64.
    """
    known = real if isinstance(real, Reference) else reference(real)
    fewest = min(len(known.features), len(generated))
    kernel = kernel_distance(known.features, generated) if fewest >= 3 else None
    within = prdc(known.manifold, generated) if known.manifold and fewest > K else None
    return {
        "fid": frechet_distance(known.statistics, generated) if known.statistics and fewest >= 2 else None,
        "kid": kernel and kernel.value,
        "kid_error": kernel and kernel.error,
        "n": len(generated),
        "n_real": len(known.features),
        "prdc": within and within._asdict() | {"k": K},
    }


def place_of(engine: Engine) -> torch.device:
    """Where distances of features are taken: the engine's device, unless it has no float64."""
    return engine.device if engine.device.type != "mps" else torch.device("cpu")


def perceptual(data: Dataset, images: UInt8[Tensor, "n c h w"], labels: Tensor, device: torch.device) -> Any:
    """LPIPS, FaceNet distance and Inception FID where their weights are present; else why not and how to get them.

    Raises:
        UserError: images of another size than the data's. These networks resize whatever they get, so sharp references
            would be compared with enlarged images (trap 4).
    """
    if images.shape[1:] != data.image_shape:
        raise UserError(
            f"images to score are of shape {tuple(images.shape[1:])}, those of '{data.name}' of {data.image_shape}; "
            "bring both to one size"
        )
    columns: Columns = {}
    sets: dict[str, Any] = {}
    missing: list[Unavailable] = []
    lpips = lpips_distance.load(device=device)
    facenet = facenet_distance.load(device=device)
    pool3 = inception.load(device=device)
    for model in (lpips, facenet, pool3):
        if isinstance(model, Unavailable):
            missing.append(model)
    if len(missing) == 3:
        return columns, sets, missing
    real = data.train.take(torch.isin(data.train.labels, labels).nonzero()[:, 0])
    pairs = images, labels.to(device), real.images, real.labels.to(device)

    def stored(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(to_float(x).to(device))

    if not isinstance(lpips, Unavailable):
        columns["lpips"] = lpips_distance.lpips_distance(stored(lpips), *pairs).cpu()
    if not isinstance(facenet, Unavailable):
        columns["facenet"] = facenet_distance.facenet_distance(stored(facenet), *pairs).cpu()
    if not isinstance(pool3, Unavailable):
        with torch.no_grad():
            generated = torch.cat([stored(pool3)(part) for part in images.split(64)])
        sets["inception"] = distances(inception_features(stored(pool3), real, data, device), generated)
    return columns, sets, missing


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Score every image with every evaluation model; write scores.json and per_image.csv."""
    started = clock()
    inversion, evaluators = run.parents["inversion"], run.parents["evaluators"]
    assert isinstance(inversion, Run) and isinstance(evaluators, list)
    target = inversion.parents["target"]
    assert isinstance(target, Run)
    data = artifacts.dataset(target)
    tensors, _ = artifacts.read_tensors(inversion.path / "images.safetensors", "reconstructions")
    images, labels = tensors["images"], tensors["labels"]
    classes = len(data.classes)
    table: Columns = {"label": labels}
    report: dict[str, Any] = {
        "n": len(images),
        "identities": len(labels.unique()),
        "classes": classes,
        "evaluators": {},
        "ceiling": {},
        "chance": {"closed_top1": 1 / classes},
    }
    label = f"score {run.name} on {target.name}"
    with run.writing() as folder, reporter.task(label, len(evaluators) + 2, "models") as task:
        network = engine.place(fold(artifacts.load_classifier(target, data)))  # type: ignore[arg-type]
        logits, _ = answers(target, network, images, engine)
        hits = top_k(logits.cpu(), labels, 1)
        confidence = torch.softmax(logits.cpu(), dim=1).gather(1, labels[:, None])[:, 0]
        table |= {"target_top1": hits, "target_confidence": confidence}
        again, _ = predict(network, images[:WOBBLE], engine)
        wobble = torch.softmax(again.cpu(), dim=1) - torch.softmax(logits[:WOBBLE].cpu(), dim=1)
        report["target"] = {
            "top1": summary(hits, labels),
            "confidence": summary(confidence, labels),
            "passes": 1,
            "wobble": round(float(wobble.abs().max()), 4),
        }
        report["pixels"] = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        report["natural_accuracy"] = target.read("metrics.json")["natural_accuracy"]
        task.advance()
        named: Columns = {}
        for evaluator in evaluators:
            network = engine.place(fold(artifacts.load_classifier(evaluator, data)))  # type: ignore[arg-type]
            logits, features = answers(evaluator, network, images, engine)
            private, _ = artifacts.read_tensors(evaluator.path / "features.safetensors", "private features")
            name = evaluator.spec["model"]
            columns = judge(logits.cpu(), features.cpu(), labels, private, classes)
            table |= {f"{column}@{name}": values for column, values in columns.items()}
            table[f"answer@{name}"] = logits.cpu().argmax(dim=1)
            named[name] = columns["open_top1"]
            calibration = false_positives.calibrate(network, evaluator, data, private, engine)
            more, doubts = false_positives.measure(logits, labels, columns, hits, private, calibration)
            table |= {f"{column}@{name}": values for column, values in more.items()}
            shown = torch.isin(private["heldout_labels"], labels)
            place = place_of(engine)
            real = private_reference(evaluator.path, tuple(labels.unique().tolist()), place)
            report["evaluators"][name] = (
                {column: summary(values, labels) for column, values in columns.items()}
                | distances(real, features.to(place))
                | doubts
            )
            # The ceiling: real images of the same people that no model has seen, judged as if they were reconstructed.
            genuine = private["heldout_labels"][shown]
            best = judge(
                private["heldout_logits"][shown], private["heldout_features"][shown], genuine, private, classes
            )
            del best["knn_heldout"]  # each would find itself
            best["calibrated"] = log_odds(private["heldout_logits"][shown], genuine) > calibration["threshold"]
            report["ceiling"][name] = {column: summary(values, genuine) for column, values in best.items()} | distances(
                real, private["heldout_features"][shown].to(place)
            )
            metrics = evaluator.read("metrics.json")
            report["chance"][f"open_top1@{name}"] = 1 / (classes + metrics["distractors"])
            report["evaluators"][name] |= {
                "heldout_accuracy": metrics["natural_accuracy"],
                "heldout_accuracy_open": metrics["open_set_accuracy"],
                "distractors": metrics["distractors"],
                "distractors_are_public": metrics["distractors_are_public"],
                "knn_real_to_real": metrics["knn_real_to_real"],
            }
            task.advance()
        report["agreement"] = false_positives.agreement(named, labels)
        card = protocol.card(data, target, inversion, evaluators, labels)
        report |= {"card": card, "card_hash": protocol.digest(card)}
        columns, sets, missing = perceptual(data, images, labels, place_of(engine))
        table |= columns
        report["perceptual"] = {name: summary(values, labels) for name, values in columns.items()} | sets
        report["unavailable"] = [vars(item) for item in missing]
        task.advance()
        write_json(folder / "scores.json", report)
        write_atomic(folder / "per_image.csv", lambda scratch: scratch.write_text(_csv(data, table), encoding="utf-8"))
        run.finish(provenance(started, describe(engine)))


def _csv(data: Dataset, table: Columns) -> str:
    """One line per image; hits as 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["identity", *table])
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    for row in rows:
        cells = [int(value) if isinstance(value, bool) else f"{value:.6g}" for value in row]
        writer.writerow([data.classes[int(row[0])], *cells])
    return text.getvalue()
