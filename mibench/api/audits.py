"""What leaks from a model of one's own, from Python."""

import hashlib
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from mibench.api.calls import Settings
from mibench.experiments import audit as audits
from mibench.experiments import auditing
from mibench.experiments.audit import Asked, Prepared, Schedule
from mibench.models.imported.endpoint import Endpoint
from mibench.models.imported.sources import ModelSource, read_source
from mibench.models.imported.ways import NOTHING, Given
from mibench.report import read
from mibench.report.verdict import Verdict, verdict
from mibench.runs import executor
from mibench.runs.store import folder_of, refuse
from mibench.runtime import engine
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import execute, imported

__all__ = ["audit", "verdict_of"]


def audit(
    model: nn.Module | str | Path | Endpoint,
    private: str | Path,
    public: str | Path,
    *,
    weights: str | Path | None = None,
    access: str | None = None,
    minutes: float | None = None,
    queries: int | None = None,
    method: str | None = None,
    prior: str | None = None,
    defenses: tuple[str, ...] = (),
    defense_model: str = "cnn",
    identities: int | None = None,
    evaluators: str | None = None,
    image_size: int | None = None,
    given: Given = NOTHING,
    faces: bool = False,
    seed: int = 0,
    settings: Settings | None = None,
    results: str | Path = "results",
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Verdict:
    """What leaks from a model: the command `mibench audit`.

    Args:
        model: A network in eval mode (images as it wants them, to scores), an architecture's name,
            `package.module:name`, a file that holds a program, or a server.
        private: A folder of folders: the people it knows.
        public: Pictures of other people, which an attacker could have.
        weights: A file of weights, where the model is a name.
        access: `white-box`, `black-box` or `label-only`; the most that the model gives if absent.
        minutes: For everything, as estimated; no limit if absent.
        queries: Of the model, for everything; no limit if absent.
        method: Attacks, comma-separated; planned for the budget if absent.
        prior: What all attacks search; each one's own if absent.
        defenses: Trained on the same data, to say what they would buy.
        defense_model: The architecture that they are trained with.
        identities: Only the first so many people are attacked; as many as fit the time if absent.
        evaluators: Evaluation models, comma-separated; two of other families if absent.
        image_size: Side of the pictures that are attacked and judged; at most 64 if absent.
        given: What the model wants, as far as it is known; the rest is found out.
        faces: The pictures are photographs of faces.
        seed: Everything random is derived from it.
        settings: Of `attack`, `prior`, `data`, `evaluator`, `training` and each defense.
        results: The folder of all runs.
        device: As in `train_target`.
        precision: As in `train_target`; the model itself runs in float32.
        progress: Draw bars on stderr.

    Raises:
        UserError: The model cannot be opened or asked, does not know these people, or does not give the access.
    """
    place, exact = engine.device_name(device), engine.resolve(device, precision).precision
    asked = Asked(
        _source(model, Path(weights) if weights is not None else None),
        Path(private),
        Path(public),
        auditing.read_access(access),
        given,
        minutes,
        queries,
        method,
        prior,
        identities,
        image_size,
        evaluators,
        tuple(defenses),
        defense_model,
        {owner: dict(own) for owner, own in (settings or {}).items()},
        faces,
        seed,
        exact,
    )
    root = folder_of(results)
    refuse(root, "an audit", "what leaks about people stays on this machine; give a folder")
    with ExitStack() as stack:
        reporter: Reporter = Silent()
        if progress:
            from mibench.runtime.terminal import Terminal

            reporter = stack.enter_context(Terminal())
        prepared = audits.prepare(asked, root, reporter)
        planned = audits.schedule(prepared, root, engine.resolve(device, exact))
        planned.speeds.keep(prepared, root)
        # One after the other: a notebook, or an object of this process, cannot be handed to workers.
        for run in executor.pending(list(planned.runs)):
            execute([run], place, reporter)
    return verdict_of(prepared, planned, root)


def _source(model: nn.Module | str | Path | Endpoint, weights: Path | None) -> ModelSource:
    if isinstance(model, Endpoint):
        return read_source(None, weights, model)
    if not isinstance(model, nn.Module):
        text = str(model)
        if text.startswith(("http://", "https://")):
            return read_source(None, weights, Endpoint(text))
        return read_source(text, weights, None)
    if weights is not None:
        raise UserError("weights belong to a name; load them into the network before the call")
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    key = digest.hexdigest()
    imported.OBJECTS[key] = model
    return ModelSource("object", type(model).__name__, digest=key, objects={"module": model})


def verdict_of(prepared: Prepared, planned: Schedule, results: Path, names: bool = True) -> Verdict:
    """The verdict on an audit whose runs are done."""
    wanted = {run.id for run in planned.runs}
    scores = [one for one in read(results) if one.run.id in wanted]
    return verdict(scores, prepared.target.id, prepared.access, planned.untried, names)
