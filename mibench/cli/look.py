"""The commands that look: list, checks, show, features, judge, cite, doctor, verify."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mibench.cli import options
from mibench.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from mibench.runs import Run

__all__ = ["checks", "cite", "doctor", "features", "find", "judge", "list_plugins", "show", "status", "verify"]


def list_plugins(
    kind: Annotated[
        str | None, typer.Argument(help="attacks, defenses, priors, data, models, metrics or suites.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """What there is: attacks, defenses, priors, data sets, models, metrics, suites."""
    if kind == "suites" and not as_json:
        from mibench.cli import printing
        from mibench.experiments import listing  # the suites themselves would need torch

        printing.print_suites(listing.listed())
        return
    from mibench import metrics
    from mibench.cli import printing
    from mibench.plugins import registry

    kinds = [*registry.BASES, "models", "metrics"]
    if kind is not None and kind not in [*kinds, "suites"]:
        raise unknown("kind of plug-in", kind, [*kinds, "suites"])
    if kind == "suites":
        from mibench.experiments import suites
        from mibench.runtime.absent import as_published

        with as_published():
            shipped = {name: suites.read(name) for name in suites.suites()}
        print(json.dumps({name: [one.describe() for one in parts] for name, parts in shipped.items()}))
        return
    cards = {one: metrics.listing() if one == "metrics" else registry.cards(one) for one in ([kind] if kind else kinds)}
    if as_json:
        print(json.dumps(cards, indent=1))
    else:
        printing.print_cards(cards)


def checks(
    results: options.Folder = options.RESULTS,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each check looks for, and why.")] = False,
    as_json: options.Json = False,
) -> None:
    """Can these numbers be trusted? What looks like privacy but is a weak attack, or no measurement at all."""
    from mibench.cli import printing

    printing.print_checks(None if explain else results, as_json)


def status(results: options.Folder = options.RESULTS, as_json: options.Json = False) -> None:
    """What is worked on now: which runs, where, since when, the last sign of life, and how long it takes yet."""
    from mibench.cli import printing
    from mibench.runs.status import counts, status

    shown, finished = status(results), counts(results)
    if as_json:
        print(json.dumps({"finished": finished, "working": [one._asdict() for one in shown]}, indent=1))
    else:
        printing.print_status(shown, finished)


def find(results: Path, reference: str) -> "Run":
    """A finished run; one that is named by its path lies in that path's results folder, zoo:NAME in the zoo."""
    from mibench import runs
    from mibench.zoo import PREFIX, Shelf

    if reference.startswith(PREFIX):
        return Shelf().find(reference).run
    path = Path(reference)
    return runs.find(results if path.parent == Path() else path.parent.parent, reference)


def show(run: options.AnyRun, results: options.Results = options.RESULTS, as_json: options.Json = False) -> None:
    """Walk from a number back to the data it came from."""
    start = find(results, run)
    if as_json:
        from mibench.cli.conduct import metrics_of

        chain: list[dict[str, Any]] = []

        def visit(one: "Run") -> None:
            chain.append({**one.read("run.json"), "path": str(one.path), "metrics": metrics_of(one)})
            for parent in one.ancestors():
                visit(parent)

        visit(start)
        print(json.dumps(chain, indent=1, sort_keys=True))
        return
    from mibench.report.show import chain as walk
    from mibench.runtime.terminal import SafeConsole, say

    SafeConsole().print(walk(start))
    say(start.path)


def features(
    run: options.Reconstructed,
    identities: Annotated[
        int, typer.Option("--identities", min=2, max=8, help="How many are drawn, and projected together.")
    ] = 6,
    device: options.Device = "auto",
    results: options.Results = options.RESULTS,
    as_json: options.Json = False,
) -> None:
    """Where reconstructions lie in the target's features: among private images, or among erased ones."""
    from mibench.report import features as space
    from mibench.runtime import engine
    from mibench.runtime.terminal import SafeConsole, Terminal, say

    reconstructed = find(results, run)
    with Terminal() as terminal:
        folder, report = space.write(reconstructed, identities, engine.resolve(device, "fp32"), terminal)
    if as_json:
        print(json.dumps(report, indent=1, sort_keys=True))
        return
    SafeConsole().print(space.table(report))
    say(folder / "features.png")


def judge(
    run: options.Reconstructed,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Reconstructions to judge; catch trials come on top.")
    ] = 40,
    form: Annotated[
        str, typer.Option("--form", help="pair, or panel, the published form: four photographs, yes or no.")
    ] = "pair",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images are asked about.")] = 0,
    rater: Annotated[str, typer.Option("--rater", help="Whose answers they are.")] = "human",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the pictures and questions.jsonl here, for another program.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--import", help="Read JSON lines of id and answer, as another program gave them.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="What the answers amount to, rater by rater.")] = False,
    results: options.Results = options.RESULTS,
    as_json: options.Json = False,
) -> None:
    """Let a person or another program say whether reconstructions show the private person, on a local page."""
    from mibench import runs
    from mibench.human_study import answers as kept
    from mibench.human_study import exchange, forms, questions
    from mibench.human_study.verdicts import verdicts
    from mibench.runs.store import refuse
    from mibench.runtime.terminal import say
    from mibench.stages import artifacts

    if sum([export is not None, answers is not None, summary]) > 1:
        raise UserError("--export, --import and --summary exclude each other; give one at a time")
    refuse(results, "judge", f"answers stay on this machine, with the runs in {results}: give that folder")
    put = forms.form(form)
    inversion = runs.inversion_of(find(results, run), "judge")
    data = artifacts.dataset(inversion.target)
    shown = export is None and answers is None and not summary
    # Whoever reads answers takes those to any number of pairs: fewer pairs are among the more.
    every = inversion.read("metrics.json")["images"]
    asked = questions.ask(inversion, data, pairs if shown or export is not None else every, seed, put)
    store = kept.Answers(inversion, put)
    if export is not None:
        say(f"{export} holds private images; it is yours to keep from others", to_stderr=True)
        say(exchange.export(asked, export))
        return
    if answers is not None:
        store.record(rater, exchange.read_answers(answers, asked))
    if shown:
        _serve(asked, store, rater, port)
    models = verdicts(inversion)
    summaries = {name: kept.summary(asked, given, models) for name, given in store.read().items()}
    if as_json:
        print(json.dumps(summaries, indent=1, sort_keys=True))
        return
    if not summaries and summary:
        how = "" if put is forms.PAIR else f" --form {put.name}"
        raise UserError(f"nobody has judged {inversion.label} so yet; run first: mibench judge {inversion.id}{how}")
    for name, one in summaries.items():
        say(*kept.lines(name, one))


def _serve(pairs: list[Any], store: Any, rater: str, port: int) -> None:
    """Show the page until Ctrl-C."""
    from mibench.human_study.server import Server

    with Server(pairs, store, rater, port) as server:
        print(f"open {server.url} in a browser on this machine; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)


def cite(run: options.AnyRun, results: options.Results = options.RESULTS) -> None:
    """BibTeX of what a run used: attack, prior, defenses, models, data set, metrics."""
    from mibench.report.cite import bibtex

    print(bibtex(find(results, run)))


def doctor(as_json: options.Json = False) -> None:
    """What this machine has: devices, precision, threads, optional weights, and what is missing."""
    from mibench.cli.doctor import examine

    examine(as_json)


def verify(
    device: options.Device = "auto", precision: options.Precision = "auto", as_json: options.Json = False
) -> None:
    """Check the metrics on this machine against closed forms and other packages; exit code 1 if one fails."""
    from mibench.evaluation.verify import examine

    if not examine(device, precision, as_json):
        raise typer.Exit(1)
