"""`--log`: the numbers of each run that is finished, for TensorBoard or Weights & Biases as well.

A mirror copies what a run has written (log.jsonl, metrics.json, scores.json, its specification) once it is whole; the
run itself knows nothing of it and has the same bytes. Images and names of people are copied nowhere.

References:
    | TensorBoard with PyTorch
    | https://pytorch.org/docs/stable/tensorboard.html
    | Weights & Biases
    | https://docs.wandb.ai/ref/python/
"""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mibench.runs.run import Run, canonical
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text
from mibench.runtime.progress import Reporter

__all__ = ["Mirror", "Scalar", "mirror", "read", "scalars"]

RESULTS = ("metrics.json", "scores.json")
"""Files of one record: what a run measured in the end."""

CLOCKS = ("step", "epoch")
"""Fields of a record of log.jsonl that say when it was made."""


class Mirror(NamedTuple):
    """Where numbers are copied to.

    Args:
        kind: tensorboard or wandb.
        place: A folder of event files, or a project.
    """

    kind: str
    place: str


class Scalar(NamedTuple):
    """One number.

    Args:
        name: `log/loss`, `metrics/natural_accuracy`.
        value: Finite or not.
        step: When in the run, by the record's own clock; 0 of what was measured in the end.
    """

    name: str
    value: float
    step: int


def read(texts: Sequence[str]) -> tuple[Mirror, ...]:
    """What stands behind `--log`: `tensorboard:DIR`, `wandb:PROJECT`.

    Raises:
        UserError: If it is neither, or the package is not installed here.
    """
    known = []
    for text in texts:
        kind, _, place = text.partition(":")
        if kind not in _WRITERS or not place:
            raise UserError(f"--log takes tensorboard:DIR or wandb:PROJECT, got '{text}'")
        if find_spec(kind) is None:
            raise UserError(f"--log {text} needs the package {kind}; install it with: pip install 'mibench[{kind}]'")
        known.append(Mirror(kind, str(Path(place).absolute()) if kind == "tensorboard" else place))
    return tuple(known)


_broken: set[Mirror] = set()


def mirror(run: Run, mirrors: Sequence[Mirror], reporter: Reporter) -> None:
    """Copy a finished run's numbers. A mirror that fails stops nothing: it is told once and this process leaves it."""
    for one in mirrors:
        if one in _broken:
            continue
        try:
            _WRITERS[one.kind](run, one.place, list(scalars(run)))
        except Exception as error:
            _broken.add(one)
            why = " ".join(str(error).split())
            reporter.say(
                f"note: --log {one.kind}:{one.place} failed and is left out from now on ({type(error).__name__}: {why})"
            )


def scalars(run: Run) -> Iterator[Scalar]:
    """Every number that a finished run holds, booleans left out.

    A log of several phases, whose clocks begin again, has a name for each: `log/phase1/loss`.
    """
    if (run.path / "log.jsonl").is_file():
        for number, line in enumerate(read_text(run.path / "log.jsonl").splitlines()):
            record = json.loads(line)
            clock = next((record[name] for name in CLOCKS if name in record), number)
            where = f"log/phase{int(record['phase'])}" if "phase" in record else "log"
            told = {key: value for key, value in record.items() if key not in (*CLOCKS, "phase", "of")}
            yield from (Scalar(name, value, int(clock)) for name, value in _numbers(where, told))
    for file in RESULTS:
        if (run.path / file).is_file():
            measured = {key: value for key, value in run.read(file).items() if key != "card"}  # of the protocol
            yield from (Scalar(name, value, 0) for name, value in _numbers(Path(file).stem, measured))
    made = run.read("run.json").get("provenance", {})
    took = {name: made[name] for name in ("seconds", "cpu_seconds") if name in made}
    yield from (Scalar(name, value, 0) for name, value in _numbers("run", took))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _numbers(f"{name}/{key}", value[key])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _asked(run: Run) -> dict[str, Any]:
    """The specification; not its inputs, which say where somebody's images lie."""
    return {"spec": json.loads(canonical(run.spec)), "parents": run.parent_ids()}


def _tensorboard(run: Run, place: str, numbers: list[Scalar]) -> None:
    """One folder of event files for each run, as TensorBoard wants it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(place) / run.kind / run.path.name)) as writer:
        writer.add_text("specification", f"```\n{json.dumps(_asked(run), indent=1, sort_keys=True)}\n```")
        for one in numbers:
            writer.add_scalar(one.name, one.value, one.step)


def _wandb(run: Run, place: str, numbers: list[Scalar]) -> None:
    """One run there for each run here, under its id: done again it is the same one. Nothing but the numbers and the
    specification is sent: no code, no host, no output."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=30,
        login_timeout=10,
    )
    with wandb.init(
        project=place,
        id=f"{run.kind}-{run.id}",
        name=run.label,
        group=run.kind,
        config=_asked(run),
        dir=str(run.root),
        resume="allow",
        reinit="create_new",
        settings=settings,
    ) as told:
        clocks = sorted({one.name.rpartition("/")[0] for one in numbers if one.name.startswith("log/")})
        for clock in clocks:  # each phase has a clock of its own
            told.define_metric(f"{clock}/step", hidden=True)
            told.define_metric(f"{clock}/*", step_metric=f"{clock}/step")
        records: dict[tuple[str, int], dict[str, float]] = {}
        for one in numbers:
            where = one.name.rpartition("/")[0]
            if one.name.startswith("log/"):
                record = records.setdefault((where, one.step), {f"{where}/step": one.step})
                record[one.name] = one.value
            else:
                told.summary[one.name] = one.value
        for record in records.values():
            told.log(record)


_WRITERS: dict[str, Callable[[Run, str, list[Scalar]], None]] = {"tensorboard": _tensorboard, "wandb": _wandb}
