"""What scoring takes: 1,500 reconstructions of 64 px against 30,000 private images, by two evaluation models."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mibench import models
from mibench.core import Dataset, Split
from mibench.evaluation.evaluate import evaluate
from mibench.evaluation.judgement import Answers, PrivateAnswers
from mibench.evaluation.model import EvaluationModel
from mibench.evaluation.records import EvaluatorFacts
from mibench.experiments.bench.machine import spent
from mibench.experiments.bench.rows import Row
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.engine import Engine
from mibench.stats.intervals import Interval

__all__ = ["score_rows"]

PEOPLE, ATTACKED, IMAGES = 1000, 300, 5
"""Of each of the attacked people so many reconstructions: KEDMI's published setting."""

TRAIN, HELDOUT, STRANGERS, OTHERS = 30, 5, 1000, 10
"""Images of each private person, of strangers, and people whom evaluation models know besides."""

SPREAD = 0.5
"""Of a person's images around the person, in features; people lie 1 from each other in every direction."""


def score_rows(
    device: torch.device,
    precisions: Sequence[str],
    people: int = PEOPLE,
    attacked: int = ATTACKED,
    names: Sequence[str] = ("resnet", "ir"),
) -> Iterator[Row]:
    """The first score of a process, which takes neighbours of all private images, and a second one.

    Pixels and weights are noise, features of private images Gaussian around each person: nothing is asked but time.

    Args:
        device: Where networks run.
        precisions: Of the networks.
        people: Private ones, 30 training images each.
        attacked: Of these, 5 reconstructions each.
        names: Architectures of the evaluation models.
    """
    drawn = torch.Generator().manual_seed(0)
    shape = (3, 64, 64)

    def images(count: int) -> Tensor:
        return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=drawn)

    def split(each: int) -> Split:
        return Split(images(people * each), torch.arange(people).repeat_interleave(each))

    nobody = Split(images(1), torch.zeros(1, dtype=torch.int64))
    classes = tuple(map(str, range(people)))
    data = Dataset("noise", classes, split(TRAIN), split(HELDOUT), nobody, nobody, False, True, {"source": "noise"})
    labels = torch.arange(attacked).repeat_interleave(IMAGES)
    made, unknown = images(len(labels)), Interval(0.5, 0.5, 0.5, 1, 1)
    target = models.build("cnn", people, shape).eval()

    def judge(name: str, engine: Engine) -> EvaluationModel:
        network = models.build(name, people + OTHERS, shape).eval()
        width = int(network.head.in_features)  # type: ignore[arg-type]
        centres = torch.randn(people, width, generator=drawn)

        def answers(at: Tensor, whose: Tensor) -> Answers:
            logits = torch.randn(len(whose), people + OTHERS, generator=drawn)
            return Answers(logits, at + SPREAD * torch.randn(len(whose), width, generator=drawn), whose)

        private = (answers(centres[one.labels], one.labels) for one in (data.train, data.heldout))
        others = answers(torch.randn(STRANGERS, width, generator=drawn), torch.full((STRANGERS,), -1))
        facts = EvaluatorFacts(
            heldout_accuracy=unknown,
            heldout_accuracy_open=unknown,
            distractors=OTHERS,
            distractors_are_public=False,
            knn_real_to_real=None,
            calibration=None,
        )
        placed: Classifier = engine.place(fold(network))  # type: ignore[assignment]
        return EvaluationModel(name, placed, models.family(name), PrivateAnswers(*private), others, facts, name)

    for precision in precisions:
        engine = Engine(device, precision)
        judges = [judge(name, engine) for name in names]

        def work(engine: Engine = engine, judges: list[EvaluationModel] = judges) -> None:
            evaluate(made, labels, target, judges, data, engine, natural_accuracy=unknown)

        for when in ("first", "next"):
            seconds = spent(work, device)
            yield Row(f"{when} score, {precision}", seconds, len(labels) / seconds, None, None, None, None)
