"""The command `bench`: how fast this machine is, beside plain loops of the same mathematics."""

import json
from typing import Annotated

import typer

from mibench.cli import options

__all__ = ["bench"]


def bench(
    accuracy: Annotated[
        bool,
        typer.Option("--accuracy", help="Instead: the time in which the authors' loop and ours are equally accurate."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only this attack, training or scoring; may be repeated.", metavar="WHAT"),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each piece of work is timed.")] = 3,
    people: Annotated[int, typer.Option(min=2, max=100, help="People that --accuracy attacks.")] = 50,
    target: Annotated[
        str, typer.Option("--target", help="Target of the zoo that --accuracy attacks, say re@1.", metavar="NAME")
    ] = "none",
    device: options.Device = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="Of ours: fp32, bf16, both; auto is both where bf16 is fast, else fp32.")
    ] = "auto",
    as_json: options.Json = False,
) -> None:
    """How fast this machine is: steps, images, arithmetic and memory, beside plain loops; a few minutes, idle."""
    import torch

    from mibench.cli import printing_bench
    from mibench.experiments.bench import attack_rows, equal_accuracy, peaks, score_rows, training_rows
    from mibench.experiments.bench.equal import RACES
    from mibench.experiments.bench.rows import ATTACKS
    from mibench.runtime import engine
    from mibench.runtime.errors import unknown

    known = list(RACES) if accuracy else [*ATTACKS, "training", "scoring"]
    for name in only or ():
        if name not in known:
            raise unknown("work that is timed", name, known)
    wanted = only or known
    place = torch.device(engine.device_name(device))
    engine.set_threads(place.type)
    choices = {"fp32": ["fp32"], "bf16": ["bf16"], "both": ["fp32", "bf16"]}
    choices["auto"] = choices["both" if engine.fast_bf16(place.type) else "fp32"]
    if precision not in choices:
        raise unknown("precision", precision, choices)
    precisions = choices[precision]
    if accuracy:
        races = [race for name in wanted for race in equal_accuracy(name, people, place, precisions, target)]
        if as_json:
            print(json.dumps([race.to_json() for race in races], indent=1))
        else:
            printing_bench.races(races, people)
        return
    most = peaks(place, precisions)
    attacks = [name for name in ATTACKS if name in wanted]
    rows = list(attack_rows(place, most, turns, attacks)) if attacks else []
    rows += training_rows(place, most, turns) if "training" in wanted else []
    rows += score_rows(place, precisions) if "scoring" in wanted else []
    if as_json:
        print(json.dumps([vars(row) for row in rows], indent=1))
    else:
        printing_bench.rows(rows, turns)
