"""A target or evaluation model that somebody else trained, brought in so that it is used as any other.

Its id hangs on the bytes of the model (of a server on its URL), on what the model wants and on the data. What it was
trained on is not known: the pictures that mibench holds out may have been among its training pictures.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mibench.core import Dataset, Split
from mibench.evaluation.model import accuracy
from mibench.metrics.accuracy import closed_set, top_k
from mibench.metrics.calibration import calibration
from mibench.metrics.robustness import spread
from mibench.models.imported import naming, weights
from mibench.models.imported.network import Gallery, Imported, Wanted, assemble
from mibench.models.imported.opening import open_source
from mibench.models.imported.own_code import code_digest
from mibench.models.imported.sources import ModelSource, companions, digest_of, digest_of_program, regular
from mibench.models.imported.ways import Found
from mibench.plugins.registry import Choice
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic, write_json
from mibench.runtime.progress import Reporter
from mibench.stages import artifacts, imported
from mibench.stages.train_target import EVALUATOR_SEED, measure_evaluator
from mibench.training import predict
from mibench.training.convergence import MEASURED

__all__ = ["plan", "work"]

FITTED = 300
"""Pictures, of those that are not held out, that `fit` is measured on: as they are, since how they were augmented when
the model learnt them is not known."""

LEARNT = 0.5
"""Accuracy on pictures that are not held out from which a model counts as trained: how it was is not known."""

RESERVED = {
    "data.json",
    "done",
    "heldout.safetensors",
    "log.jsonl",
    "metrics.json",
    "model.safetensors",
    "run.json",
} | {*imported.FILES.values()}
"""Names of a run's own files, which a file beside a program may not have."""

HELDOUT_SHOWN, LEARNT_SHOWN = 2, 1
"""Pictures of each person that a server is shown to measure it: every one of them costs."""


def plan(
    root: Path,
    data: Choice,
    source: ModelSource,
    found: Found,
    family: str,
    precision: str,
    kind: Literal["targets", "evaluators"] = "targets",
) -> Run:
    """The run that brings a model in.

    Args:
        root: The results folder.
        data: The private pictures and the public ones.
        source: The model.
        found: What it wants.
        family: Of its architecture, so that evaluation models are of others; `unknown` where that cannot be told.
        precision: fp32 or bf16; the model itself runs in fp32.
        kind: As what it is brought in.
    """
    spec, inputs = artifacts.dataset_spec(data)
    known = source.identity()
    where = str(Path.cwd())
    if source.kind == "code":
        known["code"] = code_digest(source.model, where)
    placed: dict[str, Any] = {"dataset": inputs, "where": where}
    if source.file is not None:
        placed["file"] = str(source.file.resolve())
    if source.endpoint is not None:
        placed["endpoint"] = asdict(source.endpoint)
    named = source.model if source.kind == "weights" else f"imported:{family}"
    return Run(
        root,
        kind,
        source.name,
        {
            "dataset": spec,
            "defenses": [],
            "grants": found.grants.key,
            "model": named,
            "origin": "imported",
            "precision": precision,
            "pretrained": False,
            "seed": 0 if kind == "targets" else EVALUATOR_SEED,
            "source": known,
            "wanted": found.wanted.to_json(),
        },
        inputs=placed,
    )


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Copy what the model was given as, behind what it wants, and measure it.

    Raises:
        UserError: The file is gone, or is not the one that the run was planned for.
    """
    started = clock()
    data = artifacts.open_dataset(run.inputs["dataset"])
    wanted = Wanted.from_json(run.spec["wanted"])
    with run.writing(describe(engine), reporter.say) as folder, reporter.task(f"import {run.name}", 3, "steps") as task:
        _keep(run, folder)
        task.advance()
        opened = open_source(imported.source_of(run))
        gallery = None
        if wanted.output == "embeddings":
            # No head yet: the network's own features are the embeddings.
            bare = assemble(opened, wanted, data.image_shape, Gallery(torch.zeros(len(data.classes), 1)))
            placed: Imported = engine.place(bare)  # type: ignore[assignment]
            gallery = Gallery.of(_embeddings(placed, data.train, engine), data.train.labels, len(data.classes))
            gallery = Gallery(gallery.templates.cpu())
        model = assemble(opened, wanted, data.image_shape, gallery)
        engine.place(model)
        task.advance()
        metrics = {
            "classes": len(data.classes),
            "dataset_fingerprint": data.fingerprint(),
            "outputs": len(wanted.order),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": None,
        }
        paid = run.spec["source"]["kind"] == "endpoint"
        if run.kind == "evaluators":
            # It has learnt no distractors: 'someone else' is not among its answers.
            metrics |= measure_evaluator(model, data, engine, folder) | {"distractors": 0}
            metrics |= {"label_order": _order(model, data, engine)}
        else:
            metrics |= _measured(model, data, engine, folder, paid)
            if gallery is None and not paid:
                metrics |= {"label_order": _order(model, data, engine)}
        task.advance()
        header = {
            "role": "target model" if run.kind == "targets" else "evaluation model",
            "architecture": run.spec["model"],
            "classes": list(data.classes),
            "classes_count": len(data.classes),
            "dataset": data.name,
            "origin": "imported",
        }
        kept: Mapping[str, Tensor] = {"gallery": gallery.templates} if gallery else {"anchor": torch.zeros(1)}
        artifacts.write_tensors(folder / "model.safetensors", kept, header)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "data.json", dict(data.card))
        run.finish(provenance(started, describe(engine)))


def _keep(run: Run, folder: Path) -> None:
    """A copy of the model's file in the run: weights as safetensors, a program as it is."""
    known = run.spec["source"]
    if "sha256" not in known or known["kind"] == "object":
        return
    file = regular(Path(run.inputs["file"]), "the model")
    program = known["kind"] not in ("weights", "code")
    if (digest_of_program(file) if program else digest_of(file)) != known["sha256"]:
        raise UserError(f"{file} has changed since it was asked for; run the same command again")
    copy = folder / imported.FILES[known["kind"]]
    if copy.name == "weights.safetensors":
        artifacts.write_tensors(copy, weights.read_state(file).tensors, {"role": "weights"})
    else:
        if taken := {one.name for one in companions(file)} & RESERVED:
            raise UserError(
                f"{file} keeps its weights in {taken.pop()}, as a file of a run is called; give it another name"
            )
        for one, name in [(file, copy.name), *((one, one.name) for one in companions(file))]:
            write_atomic(folder / name, partial(shutil.copyfile, one))


def _order(model: Imported, data: Dataset, engine: Engine) -> dict[str, Any]:
    """What the pictures say of the order of the outputs."""
    splits = [split.take(spread(split.labels, MEASURED)) for split in (data.train, data.heldout)]
    learnt, heldout = (predict(model, split.images, engine)[0].cpu() for split in splits)
    labels = [split.labels.cpu() for split in splits]
    return naming.verify(learnt, labels[0], heldout, labels[1], len(data.classes)).to_json(data.classes)


def _embeddings(model: Imported, split: Split, engine: Engine) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.features(part).cpu() for part in split.parts(64, engine.device)])


def _measured(model: Imported, data: Dataset, engine: Engine, folder: Path, paid: bool) -> dict[str, Any]:
    """Natural accuracy on the held-out pictures, accuracy on some of the others, and how sure it is.

    Args:
        paid: Every picture that is shown costs: each person's first ones only.
    """
    classes = len(data.classes)
    heldout = data.heldout.take(spread(data.heldout.labels, HELDOUT_SHOWN * classes)) if paid else data.heldout
    logits, _ = predict(model, heldout.images, engine)
    logits = logits.cpu()
    hits = top_k(closed_set(logits, classes), heldout.labels, 1)
    kept = {"hits": hits.to(torch.uint8), "labels": heldout.labels}
    artifacts.write_tensors(folder / "heldout.safetensors", kept, {"role": "held-out verdicts"})
    some = data.train.take(spread(data.train.labels, LEARNT_SHOWN * classes if paid else MEASURED))
    fitted = accuracy(predict(model, some.images, engine)[0], some.labels, classes)
    sure = calibration(logits.softmax(dim=1), heldout.labels)
    return {
        "convergence": {"converged": fitted.value >= LEARNT, "by": "accuracy", "candidates": []},
        "natural_accuracy": accuracy(logits, heldout.labels, classes)._asdict(),
        "fit": fitted._asdict(),
        "side_effects": {"confidence": sure.confidence, "ece": sure.ece},
        "defense_reports": [],
    }
