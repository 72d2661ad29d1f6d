"""The command that audits a model of the user's own."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mibench.cli import options

if TYPE_CHECKING:
    from mibench.experiments.audit import Prepared, Schedule

__all__ = ["audit"]


def audit(
    model: Annotated[
        str | None,
        typer.Option("--model", help="resnet18, timm:NAME, package.module:function, or a FILE.pt2, .ts or .onnx."),
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its weights: .safetensors, .pt, .pth.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="URL of a server that answers JSON.")] = None,
    private: Annotated[Path | None, typer.Option("--private", help="DIR/<person>/*.jpg: whom the model knows.")] = None,
    public: Annotated[
        Path | None, typer.Option("--public", help="Other people's pictures, which an attacker could have.")
    ] = None,
    access: Annotated[
        str | None, typer.Option("--access", help="white-box, black-box or label-only; the most it gives if absent.")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0, help="For everything, as estimated.")] = None,
    queries: Annotated[
        int | None, typer.Option("--queries", min=1, help="Of a server, for everything; else of attacks and floors.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Attacks, in the place of the planned ones.")] = None,
    prior: options.AttackPrior = None,
    defenses: Annotated[
        str | None, typer.Option("--defenses", help="What these would buy, trained on the same data: re,ls.")
    ] = None,
    defense_model: Annotated[
        str, typer.Option("--defense-model", help="The architecture that --defenses are trained with.")
    ] = "cnn",
    identities: options.Identities = None,
    evaluators: options.Evaluators = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="FILE: the outputs' names, one a line, in order; or: matched.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="Side of the pictures that the model wants.")
    ] = None,
    normalise: Annotated[
        str | None, typer.Option("--normalise", help="imagenet, half, unit, bytes, ... or mean/std: 0.5/0.5.")
    ] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="rgb, bgr or grey.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="logits, probabilities, log-probabilities, sigmoid, embeddings.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=16, help="Side of the pictures that are attacked and judged.")
    ] = None,
    faces: Annotated[bool, typer.Option("--faces", help="They are photographs of faces.")] = False,
    names: Annotated[bool, typer.Option("--names/--no-names", help="Call people by their names.")] = True,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    profile: options.Profile = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """What leaks from your own model, about whom, and what a defense would buy."""
    from mibench.api.audits import verdict_of
    from mibench.cli import conduct
    from mibench.experiments import audit as audits
    from mibench.experiments import auditing
    from mibench.runs import mirrors
    from mibench.runs.store import refuse
    from mibench.runtime import engine
    from mibench.runtime.terminal import Terminal
    from mibench.stages import execute

    refuse(results, "an audit", "what leaks about people stays on this machine; give a folder")
    device, precision = conduct.machine(device, precision)
    copied = mirrors.read(log or ())
    asked = auditing.read(
        model=model,
        weights=weights,
        endpoint=endpoint,
        private=private,
        public=public,
        access=access,
        minutes=minutes,
        queries=queries,
        method=method,
        prior=prior,
        defenses=defenses,
        defense_model=defense_model,
        identities=identities,
        evaluators=evaluators,
        classes=classes,
        size=size,
        normalise=normalise,
        channels=channels,
        output=output,
        image_size=image_size,
        faces=faces,
        seed=seed,
        sets=sets,
        precision=precision,
    )
    with Terminal() as terminal:
        prepared = audits.prepare(asked, results, terminal)
        planned = audits.schedule(prepared, results, engine.resolve(device, precision))
    _announce(prepared, planned)
    if dry_run:
        conduct.describe(list(planned.runs), force, as_json)
        return
    planned.speeds.keep(prepared, results)
    with Terminal() as terminal:
        execute(list(planned.runs)[::-1], device, terminal, force, profile=profile, log=copied)
    said = verdict_of(prepared, planned, results, names)
    if as_json:
        print(json.dumps(said.to_json(), indent=1, sort_keys=True))
        return
    from mibench.runtime.terminal import SafeConsole, say

    SafeConsole().print(said)
    say(f"next: mibench report {results} (tables, figures, page), mibench checks {results}", prepared.target.path)


def _announce(prepared: "Prepared", planned: "Schedule") -> None:
    """What was found out, what will be done and what it costs, on stderr, before it starts."""
    from mibench.runtime.terminal import say

    width = max(40, shutil.get_terminal_size().columns)
    for line in [*(f"  {line}" for line in prepared.lines), *(f"note: {line}" for line in prepared.found.notes)]:
        folded = textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        say(*folded, to_stderr=True)
    say("", to_stderr=True)
    for step in planned.steps:
        seconds = f"{step.seconds / 60:6.1f} min" if step.seconds == step.seconds else "     ?    "
        asks = f"{step.queries:>10,} queries" if step.queries else ""
        say(f"  {'done   ' if step.done else seconds:>10}  {step.what:<52}{asks}".rstrip(), to_stderr=True)
    say(
        f"  about {planned.seconds / 60:.1f} min{_over(prepared, planned)}; at most {planned.queries:,} "
        f"queries{_of(prepared, planned)}",
        "  Ctrl-C stops, the same command goes on from there",
        to_stderr=True,
    )


def _over(prepared: "Prepared", planned: "Schedule") -> str:
    """Where what an audit takes at least is more than what was granted."""
    minutes = prepared.asked.minutes
    if minutes is None or planned.seconds <= 60 * minutes:
        return ""
    return f" (more than --minutes {minutes:g}: nothing more can be left out)"


def _of(prepared: "Prepared", planned: "Schedule") -> str:
    """Whose queries, and how many in all where they are paid for."""
    if not prepared.paid:
        return " of your model by attacks and floors"
    limit = f" of --queries {prepared.asked.queries:,}" if prepared.asked.queries is not None else ""
    return f" of your server, {planned.whole:,} in all{limit}"
