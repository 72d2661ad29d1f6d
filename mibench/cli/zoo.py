"""The commands on the zoo: zoo list, zoo show, zoo verify, zoo add, zoo make."""

import json
from typing import Annotated

import typer

from mibench.cli import options

__all__ = ["add", "list_entries", "make", "show", "verify"]

Name = Annotated[str, typer.Argument(help="A name in the zoo: re, re@1, stylegan2; see: mibench zoo list.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names in the zoo; all if there are none.")]


def list_entries(as_json: options.Json = False) -> None:
    """What the zoo has ready: targets, evaluation models, verifiers, priors."""
    from mibench.cli import printing
    from mibench.zoo import Shelf

    entries = Shelf().entries
    if as_json:
        print(json.dumps([{**entry.card, "metrics": entry.metrics} for entry in entries], indent=1, sort_keys=True))
    else:
        printing.print_zoo(entries)


def show(name: Name, as_json: options.Json = False) -> None:
    """The card of one entry: data, recipe, seed, accuracy, digest, and the command that makes it again."""
    from mibench.cli import printing
    from mibench.zoo import Shelf

    entry = Shelf().find(name)
    if as_json:
        print(json.dumps({**entry.card, "metrics": entry.metrics}, indent=1, sort_keys=True))
    else:
        printing.print_entry(entry)


def verify(names: Names = None, device: options.Device = "auto", as_json: options.Json = False) -> None:
    """Check digests, and measure the zoo again on the embedded data; exit code 1 if a number is another."""
    from mibench.cli import printing
    from mibench.runtime import engine
    from mibench.stages import shelve

    made = []
    for one in shelve.verify(engine.resolve(device, "fp32"), names=names or ()):
        made.append(one)
        if not as_json:
            printing.print_verified(one)
    if as_json:
        print(json.dumps([one.to_json() for one in made], indent=1))
    if not all(one.holds for one in made):
        raise typer.Exit(1)


def add(
    run: options.AnyRun,
    name: Annotated[str, typer.Option("--name", help="What it will be called: zoo:NAME.")],
    results: options.Results = options.RESULTS,
) -> None:
    """Put a finished run into the zoo: rounded to float16, measured again, with its card."""
    from mibench.cli import look
    from mibench.runtime import engine
    from mibench.stages import shelve

    found = look.find(results, run)
    command = str(found.read("run.json")["provenance"]["command"])
    print(shelve.add(found, name, command, engine.resolve("cpu", "fp32")).run.path)


def make(names: Names = None, device: options.Device = "auto", results: options.Results = options.RESULTS) -> None:
    """Train what the zoo's list names and the zoo has not, and put it there."""
    from mibench.experiments import zoo
    from mibench.runs.store import refuse
    from mibench.runtime import engine
    from mibench.runtime.terminal import Terminal

    refuse(results, "zoo make", "what is shelved is made in a folder; give one")
    with Terminal() as terminal:
        for entry in zoo.make(results, engine.device_name(device), terminal, tuple(names or ())):
            print(f"{entry.reference}  {entry.run.path}", flush=True)
