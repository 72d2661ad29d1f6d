"""The one way to make the whole zoo again: `mibench/zoo/zoo.toml`, trained, rounded and shelved."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mibench.experiments import options
from mibench.experiments.experiment import Experiment
from mibench.experiments.plan import plan
from mibench.plugins.settings import named
from mibench.runs import Run
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import execute, shelve
from mibench.zoo import PREFIX, SHELF, Entry, Shelf

__all__ = ["LIST", "Wanted", "make", "wanted"]

LIST = SHELF.parent / "zoo.toml"
"""What the zoo holds."""

PRECISION = "fp32"
"""That of every network here: what every machine has."""


@dataclass(frozen=True)
class Wanted:
    """One training of the list.

    Args:
        name: Of its entry; the networks of judges are called by their architectures.
        command: What a person types to make it.
        experiment: What that command stands for.
    """

    name: str
    command: str
    experiment: Experiment


def wanted(source: Path = LIST) -> Iterator[Wanted]:
    """What the list names, in its order: targets seed by seed."""
    for entry in tomllib.loads(source.read_text(encoding="utf-8"))["entry"]:
        if "judges" in entry:
            yield _judges(entry["judges"])
        elif "prior" in entry:
            yield _prior(**entry)
        else:
            own = {key: value for key, value in entry.items() if key != "seeds"}
            yield from (_target(**own, seed=seed) for seed in entry.get("seeds", [0]))


def _judges(model: str) -> Wanted:
    command = f"mibench train --model {model} --precision {PRECISION}"
    return Wanted(f"judges-{model}", command, options.training(model=model, precision=PRECISION))


def _target(
    name: str, target: str, seed: int, model: str = "cnn", pretrained: str | None = None, sets: Sequence[str] = ()
) -> Wanted:
    stack, given = named(target)
    every = [*(f"{key}={value}" for key, value in given.items()), *sets]
    words = ["mibench train-target", f"--defense {stack}", *(f"--set {one}" for one in every)]
    words += [f"--model {model}"] if model != "cnn" else []
    words += [f"--pretrained {pretrained}"] if pretrained else []
    words += [f"--seed {seed}", f"--precision {PRECISION}"]
    experiment = options.training(
        "target", defense=stack, model=model, pretrained=pretrained, seed=seed, sets=every, precision=PRECISION
    )
    return Wanted(name, " ".join(words), experiment)


def _prior(name: str, prior: str, preset: str, target: str | None = None) -> Wanted:
    helper = f"{PREFIX}{target}" if target else None
    words = [f"mibench train-prior --prior {prior} --preset {preset}", *([f"--target {helper}"] if helper else [])]
    experiment = options.prior(prior=prior, preset=preset, target=helper, precision=PRECISION)
    return Wanted(name, " ".join([*words, f"--precision {PRECISION}"]), experiment)


def make(
    results: Path, device: str, reporter: Reporter, names: tuple[str, ...] = (), shelf: Path | None = None
) -> Iterator[Entry]:
    """Train what is missing in the zoo, shelve it, and put what was shelved in the place of what was trained, so that
    all that follows builds on the very networks that ship.

    Args:
        results: The folder of all runs.
        device: Where it is trained.
        reporter: Told of it.
        names: Only these of the list: `re`, `re@1`, `judges-cnn`; all if there are none.
        shelf: Which zoo; what ships with mibench if absent.

    Returns:
        The entries that are new, each when it is there.
    """
    engine = resolve(device, PRECISION)
    for one in wanted():
        if names and not {one.name, f"{one.name}@{one.experiment.seed}"} & set(names):
            continue
        for run in _networks(one, results):
            if run.label in Shelf(shelf).labels:
                continue
            execute([run], device, reporter)
            for needed in [*run.ancestors(), run]:
                if needed.label not in Shelf(shelf).labels:
                    yield _shelved(needed, one, engine, shelf)


def _networks(one: Wanted, results: Path) -> list[Run]:
    """What is shelved of a training: of judges all but the target, which has an entry of its own."""
    planned = plan(one.experiment, results)
    return [run for run in planned if run.kind != "targets" or one.experiment.goal == "target"]


def _shelved(run: Run, one: Wanted, engine: Engine, shelf: Path | None) -> Entry:
    entry = shelve.add(run, name_of(run, one), one.command, engine, shelf)
    run.discard()
    execute([Shelf(shelf).take(entry.reference, run.root)], engine.device.type, Silent())
    return entry


def name_of(run: Run, one: Wanted) -> str:
    """What a run is called in the zoo: as the list says; judges and backbones by their architecture."""
    kinds = {"evaluators": "", "verifiers": "verifier-", "backbones": "backbone-"}
    return f"{kinds[run.kind]}{run.spec['model']}" if run.kind in kinds else one.name
