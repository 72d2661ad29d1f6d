"""The network of an imported target: opened from the files of its run, or asked for over the network.

A run of an imported target holds a copy of whatever it was made from: weights as safetensors, a program as it was
given. Code stays where it is; that it is the code that was audited is checked.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from mibench.core import Dataset
from mibench.models.imported.endpoint import Endpoint
from mibench.models.imported.network import Gallery, Imported, Wanted, assemble
from mibench.models.imported.opened import Opened
from mibench.models.imported.opening import open_source
from mibench.models.imported.own_code import code_digest
from mibench.models.imported.sources import ModelSource, companions
from mibench.runs import Run, unchanged
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked

__all__ = ["FILES", "OBJECTS", "is_imported", "journal_of", "network", "opened", "source_of"]

FILES = {
    "weights": "weights.safetensors",
    "code": "weights.safetensors",
    "exported": "program.pt2",
    "torchscript": "program.ts",
    "onnx": "program.onnx",
}
"""What a run holds of each kind of source."""

OBJECTS: dict[str, nn.Module] = {}
"""Networks that were handed over in this Python process, by digest."""


def is_imported(run: Run) -> bool:
    """Whether a run is a target or an evaluation model that somebody else trained."""
    return run.kind in ("targets", "evaluators") and run.spec.get("origin") == "imported"


def journal_of(root: Path, endpoint: Endpoint) -> Path:
    """Where the answers of a server are kept: beside the runs, since all of them ask it."""
    return root / "answers" / f"{endpoint.digest}.sqlite"


def source_of(run: Run) -> ModelSource:
    """What the target was made from, as its run keeps it.

    Raises:
        UserError: The run's copy has changed, the code is not the code that was audited, or the object is gone.
    """
    known: dict[str, Any] = dict(run.spec["source"])
    kind, model, where = known["kind"], str(known.get("model", "")), str(run.inputs.get("where", ""))
    objects: dict[str, Any] = {"where": where}
    if kind == "endpoint":
        endpoint = Endpoint(**{**run.inputs["endpoint"], **known["endpoint"]})
        return ModelSource(kind, endpoint=endpoint, objects={"journal": journal_of(run.root, endpoint)})
    if kind == "object":
        if known["sha256"] not in OBJECTS:
            raise UserError(
                f"{run.label} was an object of a Python process that has ended; call mibench.audit with it again, or "
                "audit it from a file"
            )
        return ModelSource(kind, model, objects={"module": OBJECTS[known["sha256"]]})
    if kind == "code" and known["code"] != code_digest(model, where):
        raise UserError(
            f"the code of {model} has changed since {run.label} was audited; audit it again, or restore the code"
        )
    file = None
    if "sha256" in known:
        file = (run.path if run.done else run.work) / FILES[kind]
        for one in [file, *companions(file)]:
            unchanged(one)
    return ModelSource(kind, model, file, digest=str(known.get("sha256", "")), objects=objects)


def opened(run: Run) -> Opened:
    """The model, ready to answer."""
    return open_source(source_of(run))


def network(run: Run, data: Dataset) -> Imported:
    """The target behind what it wants, frozen and in eval mode."""
    wanted = Wanted.from_json(run.spec["wanted"])
    gallery = None
    if wanted.output == "embeddings":
        path = run.path / "model.safetensors"
        with checked(path) as name, safe_open(name, framework="pt") as file:
            gallery = Gallery(file.get_tensor("gallery"))
        unchanged(path)
    return assemble(opened(run), wanted, data.image_shape, gallery)
