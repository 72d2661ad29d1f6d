"""Judge images with evaluation models the attack never saw: tensors in, a `Score` out; no files, no runs.

Everything is computed from uint8 images, as they would be saved. One forward pass of each evaluation model yields
logits and features for all of its metrics.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mibench.core import Dataset, Split, to_uint8
from mibench.evaluation import protocol
from mibench.evaluation.absent import mean, means, spread, without
from mibench.evaluation.judgement import Answers, distances, place_of, verdicts
from mibench.evaluation.likeness import agreement, yardstick
from mibench.evaluation.model import EvaluationModel, accuracy, answers, as_trained
from mibench.evaluation.protocol import Origin
from mibench.evaluation.records import Judgement, TargetAnswers, Verification
from mibench.evaluation.score import Score
from mibench.evaluation.verifier import Verifier
from mibench.metrics import Unavailable, outside
from mibench.metrics.accuracy import top_k
from mibench.metrics.false_positives import identified
from mibench.metrics.knn import closeness
from mibench.metrics.own_ball import own_ball
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter, Silent
from mibench.stats.intervals import Interval, clustered_interval, paired_interval
from mibench.training import predict

__all__ = ["ASKED_TWICE", "ceiling", "evaluate", "evaluate_with"]

ASKED_TWICE = 64
"""Images that the target is asked about twice, to see whether it answers alike."""


def evaluate(
    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    target: Classifier,
    evaluators: Sequence[EvaluationModel],
    data: Dataset,
    engine: Engine | None = None,
    *,
    verifiers: Sequence[Verifier] = (),
    missing: Sequence[Unavailable] = (),
    truth: Mapping[str, Tensor] | None = None,
    absent: Bool[Tensor, " n"] | None = None,
    natural_accuracy: Interval | None = None,
    origin: Origin | None = None,
    target_label: str = "the target",
    reporter: Reporter | None = None,
    title: str = "evaluate",
) -> Score:
    """How much of the private people do these images show?

    Args:
        images: Reconstructions, as stored, or in [0, 1]: these are rounded to 8 bits first, as saving would.
        labels: Whom each image claims to show: places in `data.classes`.
        target: What was attacked; not changed.
        evaluators: Evaluation models of other families than the target's, the headline first.
        data: The target's data set: private images, held-out images of the same people, strangers.
        engine: Where networks run; the fastest that is safe here if absent.
        verifiers: Independent matchers, the headline's first; without one the own-ball gate stands in.
        missing: Verifiers that could not be had, and why.
        truth: Ground truth of each image by metric, where the data know it (`metrics.latent`).
        absent: Rows of identities that the attack left out: misses in every accuracy, no part of any distance
            (`evaluation.absent`); their pixels are not looked at. None where every row has an image.
        natural_accuracy: Of the target, where it is known; else it is measured on the held-out images.
        origin: How the images came to be, for the protocol card.
        target_label: What errors call the target.
        reporter: Told of the progress.
        title: What the progress is called.

    Returns:
        Means with 95% intervals clustered by identity, and the values of each image. The order of the images changes
        nothing but the order of these.

    Raises:
        UserError: No evaluation model, or two of one name; images of another shape than the data's; labels that are
            no class; a network that answers NaN or infinity.
        ValueError: Not one label for each image, or no image.
    """
    engine = engine or resolve()
    stored, labels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu(), labels.cpu()
    _check(stored, labels, evaluators, data)
    absent = absent.cpu() if absent is not None and bool(absent.any()) else None
    shown = slice(None) if absent is None else ~absent
    with (reporter or Silent()).task(title, len(evaluators) + len(verifiers) + 2, "models") as task:
        network: Classifier = engine.place(fold(target))  # type: ignore[assignment]
        said, hits, confidence = _ask_target(network, stored, labels, absent, engine, target_label)
        if natural_accuracy is None:
            logits, _ = predict(as_trained(target, engine), data.heldout.images, engine)
            natural_accuracy = accuracy(logits, data.heldout.labels, len(data.classes))
        task.advance()
        judged, best = {}, {}
        for model in evaluators:
            judged[model.name] = evaluate_with(model, stored, labels, hits, data, engine, absent)
            best[model.name] = ceiling(model, labels, data, engine)
            task.advance()
        verified: dict[str, Verification] = {}
        for verifier in verifiers:
            verified[verifier.name] = verifier.judge(stored, labels, engine, absent)
            task.advance()
        from mibench.evaluation.perceptual import perceptual  # torchvision is slow to import

        seen = perceptual(data, stored[shown], labels[shown], place_of(engine))
        distance_of = spread(seen.images | outside.measured(data, stored[shown], labels[shown]), absent)
        task.advance()
    classes = len(data.classes)
    chance = {f"open_top1@{model.name}": 1 / (classes + model.facts.distractors) for model in evaluators}
    headline, known = evaluators[0], without(truth or {}, absent)
    likeness, gate = gated(judged[headline.name].images, verified, headline.name)
    real = torch.isin(headline.private.heldout.labels, labels)
    sure = {one.name: Verification({}, {key: of[real] for key, of in one.heldout.items()}) for one in verifiers}
    genuine, _ = gated(best[headline.name].images, sure, headline.name)
    pair = [one.images["verified"] for one in verified.values()][:2]
    hits_of = {name: one.images["open_top1"] for name, one in judged.items()}
    return Score(
        n=len(stored),
        identities=len(labels.unique()),
        classes=classes,
        natural_accuracy=natural_accuracy,
        target=said,
        evaluators=judged,
        facts={model.name: model.facts for model in evaluators},
        ceiling=best,
        chance={"closed_top1": 1 / classes} | chance,
        agreement=agreement(hits_of, {model.name: model.family for model in evaluators}, labels),
        likeness=clustered_interval(likeness, labels),
        likeness_ceiling=clustered_interval(genuine, headline.private.heldout.labels[real]),
        gate=gate,
        verifiers=verified,
        verifier_facts={verifier.name: verifier.facts for verifier in verifiers},
        both_verified=clustered_interval(pair[0] & pair[1], labels) if len(pair) == 2 else None,
        truth=means(known, labels),
        perceptual=means(distance_of, labels),
        inception=seen.inception,
        unavailable=(*missing, *seen.unavailable),
        pixels=hashlib.sha256(stored.contiguous().numpy().tobytes()).hexdigest(),
        card=protocol.card(
            data, labels, [model.card for model in evaluators], [one.card for one in verifiers], origin or Origin()
        ),
        images={
            "label": labels,
            "likeness": likeness,
            "target_top1": hits,
            "target_confidence": confidence,
            **known,
            **distance_of,
        },
        copies=copies(stored[shown], data),
        missing=() if absent is None else tuple(data.classes[label] for label in labels[absent].unique().tolist()),
    )


def copies(images: UInt8[Tensor, "n c h w"], data: Dataset) -> int:
    """How many images are a private image of anybody, byte by byte; no attack draws that from others' pictures."""
    private = {*data.train.hashes(), *data.heldout.hashes()}
    return sum(one in private for one in Split(images, torch.zeros(len(images), dtype=torch.int64)).hashes())


def gated(
    judged: Mapping[str, Tensor], verified: Mapping[str, Verification], evaluator: str
) -> tuple[Bool[Tensor, " n"], str]:
    """The headline of each image, and the column that it had to pass besides the open-set evaluation model's verdict.

    Args:
        judged: The headline evaluation model's verdicts by metric.
        verified: What each verifier says, the headline's first.
        evaluator: The evaluation model's name.
    """
    for name, one in verified.items():
        return judged["open_top1"] & one.images["verified"], f"verified@{name}"
    return judged["own_ball"], f"own_ball@{evaluator}"


def _check(
    images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " m"], evaluators: Sequence[EvaluationModel], data: Dataset
) -> None:
    names = [model.name for model in evaluators]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"evaluation models {', '.join(names) or '(none)'}: give at least one, and each a name of its own"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"evaluate: {len(images)} images and {len(labels)} labels; give one label to each image")
    if images.shape[1:] != data.image_shape:
        raise UserError(
            f"images to score are of shape {tuple(images.shape[1:])}, those of '{data.name}' of {data.image_shape}; "
            "bring both to one size"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(data.classes):
        raise UserError(
            f"labels go from {low} to {high}; allowed: 0 to {len(data.classes) - 1}, places in data.classes"
        )


def _ask_target(
    network: Classifier,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    absent: Bool[Tensor, " n"] | None,
    engine: Engine,
    label: str,
) -> tuple[TargetAnswers, Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """What the target says of the images: its means, whether it names each person, and how surely."""
    logits = answers(label, network, images, engine)[0].cpu()
    scores = torch.softmax(logits, dim=1)
    said = without({"hits": top_k(logits, labels, 1), "confidence": scores.gather(1, labels[:, None])[:, 0]}, absent)
    hits, confidence = said["hits"], said["confidence"]
    again = torch.softmax(predict(network, images[:ASKED_TWICE], engine)[0].cpu(), dim=1)
    difference = round(float((again - scores[:ASKED_TWICE]).abs().max()), 4)
    rates = mean(hits, labels), mean(confidence, labels)
    return TargetAnswers(*rates, passes=1, answer_difference=difference), hits, confidence


def evaluate_with(
    model: EvaluationModel,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    target_hits: Bool[Tensor, " n"],
    data: Dataset,
    engine: Engine,
    absent: Bool[Tensor, " n"] | None = None,
) -> Judgement:
    """What one evaluation model says of the images: verdicts, identification, distances to real images.

    Args:
        model: The evaluation model.
        images: As stored.
        labels: Whom they claim to show.
        target_hits: Whether the target itself names the person: `gap` is the paired difference to open-set accuracy.
        data: The target's data set.
        engine: Where the model runs.
        absent: Rows without an image.
    """
    logits, features = answers(model.label, model.network, images, engine)
    given = Answers(logits.cpu(), features.cpu(), labels)
    columns = verdicts(given, model.private, len(data.classes))
    told = list(columns)
    columns["answer"] = given.logits.argmax(dim=1)
    columns |= identification(model, given, data)
    columns["own_ball"] = columns["open_top1"] & own_ball(given.features, labels, *model.balls)
    scale = yardstick(model.private, model.strangers.features, labels)
    if scale.photograph is not None and scale.stranger is not None:
        columns["closeness"] = closeness(columns["knn_heldout"], scale.photograph, scale.stranger)
    columns = without(columns, absent)
    said = means({name: columns[name] for name in told}, labels)
    said["gap"] = paired_interval(target_hits, columns["open_top1"], labels)
    more: dict[str, Tensor] = {name: columns[name] for name in ("tpir", "own_ball", "closeness") if name in columns}
    place = place_of(engine)
    real = model.reference(tuple(labels.unique().tolist()), place)
    made = features if absent is None else features[~absent.to(features.device)]
    return Judgement(said | means(more, labels), distances(real, made.to(place)), scale, columns)


def identification(model: EvaluationModel, given: Answers, data: Dataset) -> dict[str, Tensor]:
    """Identification of each image at the model's threshold; nothing where it has none."""
    limit = model.facts.calibration
    if limit is None:
        return {}
    return {"tpir": identified(given.logits, given.labels, len(data.classes), limit.threshold)}


def ceiling(model: EvaluationModel, labels: Int64[Tensor, " n"], data: Dataset, engine: Engine) -> Judgement:
    """What an evaluation model says of real images of the same people that no model has seen, judged as if they were
    reconstructions: what an attack that returns a photograph would reach."""
    real = model.private.heldout.of(labels)
    columns = verdicts(real, model.private, len(data.classes))
    del columns["knn_heldout"]  # each would find itself
    columns |= identification(model, real, data)
    columns["own_ball"] = columns["open_top1"] & own_ball(real.features, real.labels, *model.balls)
    place = place_of(engine)
    private = model.reference(tuple(labels.unique().tolist()), place)
    return Judgement(means(columns, real.labels), distances(private, real.features.to(place)), images=columns)
