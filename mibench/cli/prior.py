"""The command that brings in a generator of somebody else's: prior import."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mibench.cli import options

__all__ = ["import_prior"]


def import_prior(
    file: Annotated[Path, typer.Argument(help="ffhq.pkl of NVIDIA's, or a checkpoint .pt of rosinality's.")],
    name: Annotated[str, typer.Option("--name", help="What to call it; the file's name if absent.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Of the weights, if you know; written into the run.")] = "",
    device: options.Device = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Bring in a StyleGAN2 or StyleGAN2-ADA; nothing in its file is run."""
    from mibench.cli import conduct
    from mibench.plugins.settings import parse_settings
    from mibench.runtime.terminal import Terminal, say
    from mibench.stages import execute, import_prior

    device, _ = conduct.machine(device, "fp32")
    settings = {key.removeprefix("prior."): value for key, value in parse_settings(sets or []).items()}
    run = import_prior.plan(results, import_prior.choose(file, settings, name, licence))
    if dry_run:
        conduct.describe([run], force, as_json)
        return
    with Terminal() as terminal:
        execute([run], device, terminal, force)
    if as_json:
        shown = {**run.description(), "path": str(run.path), "metrics": conduct.metrics_of(run)}
        print(json.dumps(shown, indent=1, sort_keys=True))
        return
    say(run.path)
