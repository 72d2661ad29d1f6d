"""The command line: a command is a few lines over the stages. Heavy imports live inside the commands."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mibench import __version__
from mibench.runtime.errors import UserError, printable, unknown

if TYPE_CHECKING:
    from mibench.experiments.sweep import Sweep
    from mibench.runs import Run

app = typer.Typer(
    name="mibench",
    no_args_is_help=True,
    help="How much of a classifier's private training images can a model-inversion attack reconstruct, and how much "
    "does a defense prevent? Start with: mibench demo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Look at and prepare data sets.")
app.add_typer(data_app, name="data", rich_help_panel="Look")

Dataset = Annotated[str, typer.Option("--dataset", help="Data set: digiface, orl, mnist, folder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Everything random is derived from it.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of all runs.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a setting; prefix data., training., prior. as needed."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved specification and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if it is done.")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Defense = Annotated[
    str, typer.Option("--defense", help="none, re, or several joined by +; see: mibench list defenses.")
]
Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="What the target starts from: none, imagenet or public.")
]
Model = Annotated[str, typer.Option("--model", help="Architecture of the target model.")]
Evaluators = Annotated[
    str | None, typer.Option("--evaluators", help="Evaluation models, comma-separated; two of other families.")
]
Method = Annotated[
    str, typer.Option("--method", help="Attacks: ppa, ppa+eot, gmi,kedmi or all; see: mibench list attacks.")
]
Preset = Annotated[str, typer.Option("--preset", help="Settings of the attack: quick, paper, legacy; others it has.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Trained target (id or directory); all of the data set if absent.")
]
PriorName = Annotated[str | None, typer.Option("--prior", help="Prior; the attack's own if absent.")]
Informed = Annotated[
    bool, typer.Option("--informed", help="Add what attackers try who know the defense, at the attack's own budget.")
]
Identities = Annotated[int | None, typer.Option("--identities", min=1, help="Attack only the first so many.")]
Budget = Annotated[int | None, typer.Option("--budget", min=1, help="Most target queries per identity.")]


# --- doing it -------------------------------------------------------------------------------------------------------


def carry_out(runs: list["Run"], device: str, force: bool, dry_run: bool) -> bool:
    """Execute the runs and what they need, or print what would be done; returns whether anything was to be done."""
    if dry_run:
        from mibench.runs.executor import pending

        todo = {run.label for run in pending(runs, force)}
        shown: dict[str, Any] = {}

        def visit(run: "Run") -> None:
            for parent in run.ancestors():
                visit(parent)
            shown[run.label] = {**run.description(), "done": run.label not in todo}

        for run in runs:
            visit(run)
        print(json.dumps(list(shown.values()), indent=1, sort_keys=True))
        return False
    from mibench.runtime.terminal import Terminal
    from mibench.stages import execute

    with Terminal() as terminal:
        execute(runs, device, terminal, force)
    return True


def tell(runs: list["Run"], as_json: bool) -> None:
    """stdout: JSON, or the run directories, the main one last."""
    if as_json:
        found = [{**run.description(), "path": str(run.path), "metrics": read_metrics(run)} for run in runs]
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    for run in runs:
        print(run.path)


def read_metrics(run: "Run") -> dict[str, Any]:
    """What a finished run measured."""
    return run.read("scores.json" if run.kind == "scores" else "metrics.json")


# --- commands -------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Do")
def train(
    defense: Defense = "none",
    model: Model = "cnn",
    pretrained: Pretrained = None,
    evaluators: Evaluators = None,
    dataset: Dataset = "digiface",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a target, defended or not, and the evaluation models of its data set."""
    from mibench.cli import printing
    from mibench.experiments import planning

    given = planning.defense_sets(sets, defense, ["evaluator"])
    device, precision = planning.prepare(device, precision)
    data = planning.choose_data(dataset, given["data"])
    target = planning.plan_target(results, data, model, defense, given, seed, precision, pretrained)
    judges = planning.choose_evaluators(results, data, model, evaluators, precision, given["evaluator"])
    runs = [*judges, target]
    if carry_out(runs, device, force, dry_run):
        if not as_json:
            printing.print_training(runs)
        tell([target] if not as_json else runs, as_json)


@app.command("train-target", rich_help_panel="Stages")
def train_target_command(
    defense: Defense = "none",
    model: Model = "cnn",
    pretrained: Pretrained = None,
    dataset: Dataset = "digiface",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stage 1: train one target."""
    from mibench.cli import printing
    from mibench.experiments import planning

    given = planning.defense_sets(sets, defense, [])
    device, precision = planning.prepare(device, precision)
    data = planning.choose_data(dataset, given["data"])
    target = planning.plan_target(results, data, model, defense, given, seed, precision, pretrained)
    if carry_out([target], device, force, dry_run):
        if not as_json:
            printing.print_training([target])
        tell([target], as_json)


@app.command("train-prior", rich_help_panel="Stages")
def train_prior_command(
    prior: Annotated[str, typer.Option("--prior", help="Prior; see: mibench list priors.")] = "wgan_gp",
    preset: Preset = "quick",
    target: Annotated[str | None, typer.Option("--target", help="The target that kedmi learns from.")] = None,
    dataset: Dataset = "digiface",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stage 2: learn an image prior on the public images."""
    from mibench import runs
    from mibench.experiments import planning
    from mibench.plugins import registry
    from mibench.stages import train_prior

    given = planning.split_sets(sets, "prior", ["data"])
    device, precision = planning.prepare(device, precision)
    recipe = registry.configure("priors", prior, planning.prior_preset(prior, preset), given["prior"])
    owner = None
    if target is not None:
        owner = runs.find(results, target)
    elif recipe.plugin.target_access is not None:
        chosen = planning.choose_data(dataset, given["data"])
        owner = planning.find_targets(results, chosen, None, bool(given["data"]))[0]
    data = planning.data_of(owner) if owner is not None else planning.choose_data(dataset, given["data"])
    run = train_prior.plan(results, data, recipe, owner, seed, precision)
    if carry_out([run], device, force, dry_run):
        tell([run], as_json)


@app.command(rich_help_panel="Stages")
def invert(
    method: Method = "ppa",
    preset: Preset = "quick",
    target: Targets = None,
    prior: PriorName = None,
    identities: Identities = None,
    budget: Budget = None,
    dataset: Dataset = "digiface",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stage 3: attack targets, keep the reconstructions, score nothing."""
    from mibench.experiments import planning

    given = planning.attack_sets(sets, method, ["prior", "data"])
    device, precision = planning.prepare(device, precision)
    methods = planning.choose_methods(method, preset, given["attack"])  # a wrong name is told before a missing target
    data = planning.choose_data(dataset, given["data"])
    found = planning.find_targets(results, data, target, bool(given["data"]))
    runs = [
        planning.plan_attack(
            one, name, preset, given["attack"], prior, given["prior"], seed, precision, identities, budget
        )
        for one in found
        for name in methods
    ]
    if carry_out(runs, device, force, dry_run):
        tell(runs, as_json)


@app.command(rich_help_panel="Stages")
def score(
    inversion: Annotated[
        list[str] | None, typer.Option("--inversion", help="Inversion (id or directory); all if absent.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Judge another program's images: FOLDER/<person>/*.png.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="The target that --images were made from.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call --images; the folder's if absent.")] = None,
    evaluators: Evaluators = None,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stage 4: judge reconstructions, your own or another program's, with evaluation models the attack never saw."""
    from mibench import runs
    from mibench.cli import printing
    from mibench.experiments import planning

    given = planning.split_sets(sets, "evaluator", [])
    device, precision = planning.prepare(device, precision)
    if images is None and (target is not None or name is not None):
        raise UserError("--target and --name belong to --images FOLDER; to score an inversion name it with --inversion")
    if images is not None and inversion:
        raise UserError("--images and --inversion exclude each other; score them one after the other")
    if images is not None:
        found = [planning.plan_images(results, images, target, name)]
    else:
        found = [runs.find(results, one) for one in inversion or []] or runs.finished(results, "inversions")
    for run in found:
        if run.kind != "inversions":
            raise UserError(f"{run.label} is not an inversion; --inversion takes one of {results}/inversions")
    if not found:
        raise UserError(f"no inversion in {results}; run first: mibench invert")
    scores = [planning.plan_score(run, evaluators, precision, given["evaluator"]) for run in found]
    if carry_out(scores, device, force, dry_run):
        if images is not None and not as_json:
            printing.show_tables(results, scores)
        tell(scores, as_json)


@app.command(rich_help_panel="Do")
def attack(
    method: Method = "ppa",
    preset: Preset = "quick",
    target: Targets = None,
    prior: PriorName = None,
    informed: Informed = False,
    identities: Identities = None,
    budget: Budget = None,
    evaluators: Evaluators = None,
    dataset: Dataset = "digiface",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Attack every trained target of the data set: prior if missing, inversion, floors, scores."""
    from mibench.cli import printing
    from mibench.experiments import planning

    given = planning.attack_sets(sets, method, ["prior", "data", "evaluator"])
    device, precision = planning.prepare(device, precision)
    methods = planning.choose_methods(method, preset, given["attack"])  # a wrong name is told before a missing target
    data = planning.choose_data(dataset, given["data"])
    found = planning.find_targets(results, data, target, bool(given["data"]))
    scores = []
    for one in found:
        for name in methods:
            main = planning.plan_attack(
                one, name, preset, given["attack"], prior, given["prior"], seed, precision, identities, budget
            )
            runs = [] if name in planning.floors() else planning.plan_floors(main, seed, precision)
            others = planning.informed(name, given["attack"], one) if informed else []
            most = budget or (planning.queries(main) if others else None)
            runs += [
                planning.plan_attack(
                    one, other, preset, changed, prior, given["prior"], seed, precision, identities, most
                )
                for other, changed in others
            ]
            scores += [planning.plan_score(run, evaluators, precision, given["evaluator"]) for run in [*runs, main]]
    scores = list({run.id: run for run in scores}.values())  # attacks share floors
    # The attack itself first: what it refuses (a prior without a critic) is then told before minutes of floors.
    if carry_out(scores[::-1], device, force, dry_run):
        if not as_json:
            printing.show_tables(results, scores)
        tell(scores, as_json)


@app.command(rich_help_panel="Do")
def sweep(
    defense: Annotated[
        list[str] | None, typer.Option("--defense", help="As often as you like: none, re, 're location=torus', all.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="As often as you like: ppa, 'ppa steps=100'.")
    ] = None,
    strengths: Annotated[str, typer.Option("--strengths", help="grid, default, or values: 0.2,0.4.")] = "grid",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Targets of each kind: seeds 0, 1, ...")] = 1,
    informed: Informed = False,
    preset: Preset = "quick",
    model: Model = "cnn",
    pretrained: Pretrained = None,
    identities: Identities = None,
    evaluators: Evaluators = None,
    dataset: Dataset = "digiface",
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train defenses over their strengths, attack them all, show privacy against utility."""
    from mibench.experiments import planning
    from mibench.experiments import sweep as sweeps

    given = planning.split_sets(sets, "training", ["data", "prior", "evaluator"])
    values = strengths if strengths in ("grid", "default") else tuple(strengths.split(","))
    chosen = sweeps.Sweep(
        "",
        dataset,
        model,
        tuple(defense or ["none", "re"]),
        values,
        tuple(range(seeds)),
        tuple(method or ["ppa"]),
        informed,
        preset=preset,
        identities=identities,
        pretrained=pretrained,
        evaluators=evaluators,
        settings=given,
    )
    carry_out_sweeps([chosen], device, precision, results, dry_run, force, as_json)


@app.command(rich_help_panel="Do")
def run(
    suite: Annotated[str, typer.Argument(help="A TOML file, or a suite's name; see: mibench list suites.")],
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a suite: a file of targets and attacks, resumable."""
    from mibench.experiments import sweep as sweeps

    carry_out_sweeps(sweeps.read(suite), device, precision, results, dry_run, force, as_json)


def carry_out_sweeps(
    sweeps: list["Sweep"], device: str, precision: str, results: Path, dry_run: bool, force: bool, as_json: bool
) -> None:
    """Plan all of it before any of it is done, do it, show it."""
    from mibench.cli import printing
    from mibench.experiments import planning
    from mibench.experiments.sweep import plan

    device, precision = planning.prepare(device, precision)
    scores = list({run.id: run for one in sweeps for run in plan(one, results, precision)}.values())
    if carry_out(scores, device, force, dry_run):
        if not as_json:
            printing.show_tables(results, scores)
        tell(scores, as_json)


@app.command(rich_help_panel="Do")
def report(
    results: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("results"),
    private_images: Annotated[
        bool, typer.Option("--private-images/--no-private-images", help="Show real photographs, and people's names.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Tables in the terminal; the same as CSV, Markdown, LaTeX and JSON; figures and picture grids."""
    from rich.console import Console

    from mibench import report as reports

    folder = reports.write(results, Console(quiet=as_json), private_images)
    if as_json:
        print((folder / "tables.json").read_text(encoding="utf-8"))
    else:
        print(folder)


@app.command(rich_help_panel="Do")
def demo(
    identities: Identities = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """No defense against random erasing under two attacks, on embedded data, in minutes."""
    from mibench.experiments import planning

    device, precision = planning.prepare(device, precision)
    data = planning.choose_data("digiface", {})
    scores = []
    for defense, settings in (("none", []), ("re", ["a_e=0.4"]), ("re", ["a_e=0.8"])):
        given = planning.defense_sets(settings, defense, [])
        target = planning.plan_target(results, data, "cnn", defense, given, seed, precision)
        for method in ("ppa", "gmi"):
            main = planning.plan_attack(target, method, "quick", {}, None, {}, seed, precision, identities, None)
            for run in [*planning.plan_floors(main, seed, precision), main]:
                scores.append(planning.plan_score(run, None, precision, {}))
    unique = list({run.id: run for run in scores}.values())
    if carry_out(unique, device, force, dry_run):
        report(results, as_json=as_json)


@app.command("list", rich_help_panel="Look")
def list_command(
    kind: Annotated[
        str | None, typer.Argument(help="attacks, defenses, priors, data, models, metrics or suites.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What there is: attacks, defenses, priors, data sets, models, metrics, suites."""
    from mibench.cli import printing
    from mibench.plugins import registry

    kinds = [*registry.BASES, "models", "metrics"]
    if kind is not None and kind not in [*kinds, "suites"]:
        raise unknown("kind of plug-in", kind, [*kinds, "suites"])
    if kind == "suites":
        from mibench.experiments import sweep as sweeps

        suites = {name: sweeps.read(name) for name in sweeps.suites()}
        if as_json:
            print(json.dumps({name: [sweeps.described(one) for one in parts] for name, parts in suites.items()}))
        else:
            printing.print_suites(suites)
        return
    found = {one: registry.cards(one) for one in ([kind] if kind else kinds)}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    printing.print_cards(found)


@app.command(rich_help_panel="Look")
def checks(
    results: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("results"),
    explain: Annotated[bool, typer.Option("--explain", help="Say what each check looks for, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Can these numbers be trusted? What looks like privacy but is a weak attack, or no measurement at all."""
    from mibench.cli import printing

    printing.print_checks(None if explain else results, as_json)


@app.command(rich_help_panel="Look")
def show(
    run: Annotated[str, typer.Argument(help="A run: its id, the beginning of it, or its directory.")],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Walk from a number back to the data it came from."""
    from mibench import runs

    found = runs.find(results if Path(run).parent == Path() else Path(run).parent.parent, run)
    if as_json:
        chain: list[dict[str, Any]] = []

        def visit(one: "Run") -> None:
            chain.append({**one.read("run.json"), "path": str(one.path), "metrics": read_metrics(one)})
            for parent in one.ancestors():
                visit(parent)

        visit(found)
        print(json.dumps(chain, indent=1, sort_keys=True))
        return
    from rich.console import Console

    from mibench.report.show import chain as walk

    Console().print(walk(found))
    print(found.path)


@app.command(rich_help_panel="Look")
def features(
    run: Annotated[str, typer.Argument(help="An inversion or a score: its id, its beginning, or its directory.")],
    identities: Annotated[
        int, typer.Option("--identities", min=2, max=8, help="How many are drawn, and projected together.")
    ] = 6,
    device: Device = "auto",
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Where reconstructions lie in the target's features: among private images, or among erased ones."""
    from rich.console import Console

    from mibench import runs
    from mibench.report import features as space
    from mibench.runtime import engine
    from mibench.runtime.terminal import Terminal

    found = runs.find(results if Path(run).parent == Path() else Path(run).parent.parent, run)
    with Terminal() as terminal:
        folder, report = space.write(found, identities, engine.resolve(device, "fp32"), terminal)
    if as_json:
        print(json.dumps(report, indent=1, sort_keys=True))
        return
    Console().print(space.table(report))
    print(folder / "features.png")


@app.command(rich_help_panel="Look")
def judge(
    run: Annotated[str, typer.Argument(help="An inversion or a score: its id, its beginning, or its directory.")],
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Reconstructions to judge; catch trials come on top.")
    ] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images are asked about.")] = 0,
    rater: Annotated[str, typer.Option("--rater", help="Whose answers they are.")] = "human",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the pairs and questions.jsonl here, for another program.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--import", help="Read JSON lines of id and answer, as another program gave them.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="What the answers amount to, rater by rater.")] = False,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Let a person or another program say whether reconstructions show the private person, on a local page."""
    from mibench import runs
    from mibench.human_study import answers as kept
    from mibench.human_study import exchange, questions
    from mibench.stages import artifacts

    if sum([export is not None, answers is not None, summary]) > 1:
        raise UserError("--export, --import and --summary exclude each other; give one at a time")
    named = runs.find(results if Path(run).parent == Path() else Path(run).parent.parent, run)
    inversion = runs.inversion_of(named, "judge")
    target = inversion.parents["target"]
    data = artifacts.dataset(target)  # type: ignore[arg-type]
    shown = export is None and answers is None and not summary
    # Whoever reads answers takes those to any number of pairs: fewer pairs are among the more.
    every = inversion.read("metrics.json")["images"]
    asked = questions.ask(inversion, data, pairs if shown or export is not None else every, seed)
    store = kept.Answers(inversion)
    if export is not None:
        print(f"{export} holds private images; it is yours to keep from others", file=sys.stderr)
        print(exchange.export(asked, export))
        return
    if answers is not None:
        store.record(rater, exchange.read_answers(answers, asked))
    if shown:
        serve(asked, store, rater, port)
    found = {name: kept.summary(asked, given) for name, given in store.read().items()}
    if as_json:
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    if not found and summary:
        raise UserError(f"nobody has judged {inversion.label} yet; run first: mibench judge {inversion.id}")
    for name, one in found.items():
        print("\n".join(kept.lines(name, one)))


def serve(asked: list[Any], store: Any, rater: str, port: int) -> None:
    """Show the page until Ctrl-C."""
    from mibench.human_study.server import Server

    with Server(asked, store, rater, port) as server:
        print(f"open {server.url} in a browser on this machine; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)


@app.command(rich_help_panel="Look")
def cite(
    run: Annotated[str, typer.Argument(help="A run: its id, the beginning of it, or its directory.")],
    results: Results = Path("results"),
) -> None:
    """BibTeX of what a run used: attack, prior, defenses, models, data set, metrics."""
    from mibench import runs
    from mibench.report.cite import bibtex

    print(bibtex(runs.find(results if Path(run).parent == Path() else Path(run).parent.parent, run)))


@app.command(rich_help_panel="Look")
def doctor(as_json: Json = False) -> None:
    """What this machine has: devices, precision, threads, optional weights, and what is missing."""
    from mibench.cli.doctor import examine

    examine(as_json)


@app.command(rich_help_panel="Look")
def verify(device: Device = "auto", precision: Precision = "auto", as_json: Json = False) -> None:
    """Check the metrics on this machine against closed forms and other packages; exit code 1 if one fails."""
    from mibench.evaluation.verify import examine

    if not examine(device, precision, as_json):
        raise typer.Exit(1)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """The data sets and where they come from."""
    list_command("data", as_json)


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="Data set.")] = "digiface",
    sets: Sets = None,
    output: Annotated[Path | None, typer.Option("--output", help="The PNG to write.")] = None,
    as_json: Json = False,
) -> None:
    """Write a labelled picture of the splits, and print their sizes."""
    from mibench.cli import printing
    from mibench.data.show import picture_grid

    data = load_data(name, sets)
    path = output or Path(f"{name}.png")
    try:
        picture_grid(data, path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no kind of picture
        raise UserError(f"cannot write the picture {path}: {error}") from None
    printing.describe_data(data, as_json)
    if not as_json:
        print(path)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Data set.")] = "digiface", sets: Sets = None, as_json: Json = False
) -> None:
    """Read (or draw) every image once, check the splits, and fill the cache."""
    from mibench.cli import printing

    data = load_data(name, sets)
    printing.describe_data(data, as_json)


def load_data(name: str, sets: list[str] | None) -> Any:
    """The data set, with a bar while it is read or drawn."""
    from mibench.experiments import planning
    from mibench.runtime.terminal import Terminal

    with Terminal() as terminal:
        return planning.choose_data(name, planning.split_sets(sets, "data", [])["data"]).plugin.load(terminal)


def version(value: bool) -> bool:
    """Print the version and stop."""
    if value:
        print(__version__)
        raise typer.Exit
    return value


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """The entry point: mistakes are one line on stderr and exit code 2; Ctrl-C says how to resume."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this exit code and says nothing
            raise KeyboardInterrupt
    except UserError as error:
        code = refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("mibench: interrupted; what is done is kept: run the same command again to resume", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = refuse(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; mend that and run "
            "the same command again"
        )
    except Exception as error:
        # typer brings its own copy of click, so its usage errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        code = refuse(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def refuse(message: str) -> int:
    """Say a mistake in one line; a bare `mibench` has none to say and has printed its help."""
    if message:
        print(f"mibench: error: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
