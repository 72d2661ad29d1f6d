"""The command line: a command is a few lines over the stages. Heavy imports live inside the commands."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mibench import __version__
from mibench.errors import UserError, unknown

if TYPE_CHECKING:
    from mibench.registry import Choice
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
Defense = Annotated[str, typer.Option("--defense", help="none, re, or several joined by +.")]
Model = Annotated[str, typer.Option("--model", help="Architecture of the target model.")]
Evaluators = Annotated[
    str | None, typer.Option("--evaluators", help="Evaluation models, comma-separated; two of other families.")
]
Method = Annotated[str, typer.Option("--method", help="Attack; see: mibench list attacks.")]
Preset = Annotated[str, typer.Option("--preset", help="Settings of the attack: quick or paper.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Trained target (id or directory); all of the data set if absent.")
]
PriorName = Annotated[str | None, typer.Option("--prior", help="Prior; the attack's own if absent.")]
Identities = Annotated[int | None, typer.Option("--identities", min=1, help="Attack only the first so many.")]
Budget = Annotated[int | None, typer.Option("--budget", min=1, help="Most target queries per identity.")]


# --- from options to runs -------------------------------------------------------------------------------------------


def split_sets(sets: list[str] | None, main: str, prefixes: list[str]) -> dict[str, dict[str, str]]:
    """`--set` values by what they belong to: `prefix.field=value`, or a bare field for the command's main subject."""
    from mibench.registry import parse_sets

    found: dict[str, dict[str, str]] = {name: {} for name in [main, *prefixes]}
    for field, value in parse_sets(sets or []).items():
        owner, dot, name = field.partition(".")
        if not dot:
            if main == "none":
                shown = ", ".join(f"{prefix}.{field}" for prefix in prefixes)
                raise UserError(f"--set {field}=...: without a defense it needs a prefix, one of {shown}")
            owner, name = main, field
        if owner not in found:
            raise unknown("prefix of --set", owner, found)
        found[owner][name] = value
    return found


def prepare(device: str, precision: str) -> tuple[str, str]:
    """The device and precision that `auto` stands for here."""
    from mibench.engine import device_name, resolve

    return device_name(device), resolve(device, precision).precision


def choose_data(name: str, settings: dict[str, str]) -> "Choice":
    """The data set with its settings."""
    from mibench.registry import configure

    return configure("data", name, settings=settings)


def data_of(target: "Run") -> "Choice":
    """The data set a target was trained on."""
    from mibench.registry import configure

    asked = target.inputs["dataset"]
    return configure("data", asked["name"], settings=asked["settings"])


def choose_defenses(text: str, settings: dict[str, dict[str, str]]) -> list["Choice"]:
    """`re+bido` with the settings of each."""
    from mibench.registry import configure

    chosen = [name.strip() for name in text.split("+")]
    if len(set(chosen)) != len(chosen):
        raise UserError(f"--defense {text} names a defense twice")
    if "none" in chosen and len(chosen) > 1:
        raise UserError(f"--defense {text}: 'none' cannot be combined")
    return [configure("defenses", name, settings=settings.get(name, {})) for name in chosen]


def choose_evaluators(
    root: Path, data: "Choice", architecture: str, given: str | None, precision: str, training: dict[str, str]
) -> list["Run"]:
    """The runs of the evaluation models for a target's architecture."""
    from mibench import registry
    from mibench.models import family
    from mibench.stages.train_target import evaluator_families, plan_evaluator
    from mibench.training import Training

    chosen = [name.strip() for name in given.split(",")] if given else evaluator_families(architecture)
    names = list(dict.fromkeys(chosen))
    if len(names) < 2 or len({family(name) for name in names}) < 2:
        raise UserError(f"--evaluators needs at least two models of different families, got {', '.join(names)}")
    for name in names:
        if family(name) == family(architecture):
            raise UserError(
                f"the evaluation model {name} is of the target's own family ({family(name)}); it would reward images "
                f"made for the target: choose others, for example {','.join(evaluator_families(architecture))}"
            )
    checked = json_settings(registry.build(Training, "evaluator", dict(training)), training)
    return [plan_evaluator(root, data, name, precision, checked) for name in names]


def json_settings(built: Any, given: dict[str, str]) -> dict[str, Any]:
    """The given settings with their values as the types they turned out to be."""
    return {name: getattr(built, name) for name in given}


def plan_targets(
    root: Path, data: "Choice", model: str, defense: str, sets: dict[str, dict[str, str]], seed: int, precision: str
) -> "Run":
    """The run of one target."""
    from mibench import registry
    from mibench.stages import train_target
    from mibench.training import Training

    training = json_settings(registry.build(Training, "training", dict(sets["training"])), sets["training"])
    if seed == train_target.EVALUATOR_SEED:
        raise UserError(f"seed {seed} is the evaluation models'; a target needs another one")
    return train_target.plan(root, data, model, choose_defenses(defense, sets), seed, precision, training)


def defense_sets(sets: list[str] | None, defense: str, extra: list[str]) -> dict[str, dict[str, str]]:
    """`--set` for a stack of defenses: bare fields belong to the only or first one."""
    from mibench.registry import names

    chosen = [name.strip() for name in defense.split("+")]
    for name in chosen:
        if name not in names("defenses"):
            raise unknown("defense", name, names("defenses"))
    return split_sets(sets, chosen[0], [*chosen[1:], "data", "training", *extra])


def find_targets(root: Path, data: "Choice", wanted: list[str] | None, exact: bool) -> list["Run"]:
    """The named targets, or every finished one of the data set."""
    from mibench import runs

    if wanted:
        found = [runs.find(root, one) for one in wanted]
        for run in found:
            if run.kind != "targets":
                raise UserError(f"{run.label} is not a target; --target takes one of {root}/targets")
        return found
    found = [
        run
        for run in runs.finished(root, "targets")
        if run.spec["dataset"]["name"] == data.name and (not exact or run.spec["dataset"] == data.spec())
    ]
    if not found:
        raise UserError(
            f"no trained target of data set '{data.name}' in {root}; run first: mibench train --dataset {data.name}"
        )
    return found


def plan_attack(
    target: "Run",
    method: str,
    preset: str,
    settings: dict[str, Any],
    prior: str | None,
    prior_settings: dict[str, str],
    seed: int,
    precision: str,
    identities: int | None,
    budget: int | None,
) -> "Run":
    """The inversion of one target, with the prior it needs."""
    from mibench import registry
    from mibench.stages import invert, train_prior

    attack = registry.configure("attacks", method, preset, settings)
    if identities is not None and target.done and identities > (known := target.read("metrics.json")["classes"]):
        raise UserError(f"--identities {identities}: the target {target.label} knows {known} identities")
    wanted = prior or registry.card("attacks", method)["prior"]
    recipe = registry.configure("priors", wanted, prior_preset(wanted, preset), prior_settings)
    parent = train_prior.plan(target.root, data_of(target), recipe, target, seed, precision)
    return invert.plan(target.root, target, parent, attack, seed, precision, identities, budget)


def prior_preset(name: str, preset: str) -> str:
    """An attack's preset is its prior's too; a prior without presets (nothing to train) has only its defaults."""
    from mibench import registry

    return "default" if set(registry.presets("priors", name)) == {"default"} else preset


FLOORS = ("prior_sample", "prior_search", "public_search")


def plan_floors(inversion: "Run", seed: int, precision: str) -> list["Run"]:
    """The floors an attack's numbers stand on: same target, same prior, same number of images."""
    target, prior = inversion.parents["target"], inversion.parents["prior"]
    from mibench import registry
    from mibench.runs import Run
    from mibench.stages import invert

    assert isinstance(target, Run) and isinstance(prior, Run)
    asked = inversion.spec["attack"]["settings"]
    floors = []
    for name in FLOORS:
        settings = {"images": asked["images"]}
        if name == "prior_search" and "pool" in asked:
            settings["pool"] = asked["pool"]
        if name == "public_search":
            floors.append(plan_attack(
                target, name, "default", settings, None, {}, seed, precision, inversion.spec["identities"], None
            ))  # fmt: skip
        else:
            attack = registry.configure("attacks", name, "default", settings)
            floors.append(
                invert.plan(target.root, target, prior, attack, seed, precision, inversion.spec["identities"])
            )
    return floors


# --- doing it -------------------------------------------------------------------------------------------------------


def carry_out(runs: list["Run"], device: str, force: bool, dry_run: bool) -> bool:
    """Execute the runs and what they need, or print what would be done; returns whether anything was to be done."""
    if dry_run:
        from mibench.suite import pending

        todo = {run.label for run in pending(runs, force)}
        shown: dict[str, Any] = {}

        def visit(run: "Run") -> None:
            for parent in run.ancestors():
                visit(parent)
            shown[run.label] = {**run.asked(), "done": run.label not in todo}

        for run in runs:
            visit(run)
        print(json.dumps(list(shown.values()), indent=1, sort_keys=True))
        return False
    from mibench.progress import Terminal
    from mibench.suite import execute

    with Terminal() as terminal:
        execute(runs, device, terminal, force)
    return True


def tell(runs: list["Run"], as_json: bool) -> None:
    """stdout: JSON, or the run directories, the main one last."""
    if as_json:
        found = [
            {**run.asked(), "path": str(run.path), "metrics": read_metrics(run)} for run in runs
        ]
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    for run in runs:
        print(run.path)


def read_metrics(run: "Run") -> dict[str, Any]:
    """What a finished run measured."""
    return run.read("scores.json" if run.kind == "scores" else "metrics.json")


def print_training(runs: list["Run"]) -> None:
    """Natural accuracy of targets and evaluation models, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left", title="Natural accuracy on held-out images")
    for column in ("run", "role", "accuracy", "95% interval", "open-set"):
        table.add_column(column, justify="right" if column in ("accuracy", "open-set") else "left")
    for run in runs:
        metrics = run.read("metrics.json")
        natural = metrics["natural_accuracy"]
        opened = metrics.get("open_set_accuracy")
        table.add_row(
            f"{run.name}-{run.id}",
            "target" if run.kind == "targets" else "evaluation model",
            f"{natural['value']:.3f}",
            f"{natural['low']:.3f} - {natural['high']:.3f}",
            f"{opened['value']:.3f}" if opened else "",
        )
    Console().print(table)


# --- commands -------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Do")
def train(
    defense: Defense = "none",
    model: Model = "cnn",
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
    given = defense_sets(sets, defense, ["evaluator"])
    device, precision = prepare(device, precision)
    data = choose_data(dataset, given["data"])
    target = plan_targets(results, data, model, defense, given, seed, precision)
    judges = choose_evaluators(results, data, model, evaluators, precision, given["evaluator"])
    runs = [*judges, target]
    if carry_out(runs, device, force, dry_run):
        if not as_json:
            print_training(runs)
        tell([target] if not as_json else runs, as_json)


@app.command("train-target", rich_help_panel="Stages")
def train_target_command(
    defense: Defense = "none",
    model: Model = "cnn",
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
    given = defense_sets(sets, defense, [])
    device, precision = prepare(device, precision)
    data = choose_data(dataset, given["data"])
    target = plan_targets(results, data, model, defense, given, seed, precision)
    if carry_out([target], device, force, dry_run):
        if not as_json:
            print_training([target])
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
    from mibench import registry, runs
    from mibench.stages import train_prior

    given = split_sets(sets, "prior", ["data"])
    device, precision = prepare(device, precision)
    recipe = registry.configure("priors", prior, prior_preset(prior, preset), given["prior"])
    owner = None
    if target is not None:
        owner = runs.find(results, target)
    elif recipe.plugin.needs_target:
        owner = find_targets(results, choose_data(dataset, given["data"]), None, bool(given["data"]))[0]
    data = data_of(owner) if owner is not None else choose_data(dataset, given["data"])
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
    from mibench import registry

    given = split_sets(sets, "attack", ["prior", "data"])
    device, precision = prepare(device, precision)
    registry.configure("attacks", method, preset, given["attack"])  # a wrong name is told before a missing target
    found = find_targets(results, choose_data(dataset, given["data"]), target, bool(given["data"]))
    runs = [
        plan_attack(one, method, preset, given["attack"], prior, given["prior"], seed, precision, identities, budget)
        for one in found
    ]
    if carry_out(runs, device, force, dry_run):
        tell(runs, as_json)


@app.command(rich_help_panel="Stages")
def score(
    inversion: Annotated[
        list[str] | None, typer.Option("--inversion", help="Inversion (id or directory); all if absent.")
    ] = None,
    evaluators: Evaluators = None,
    device: Device = "auto",
    precision: Precision = "auto",
    results: Results = Path("results"),
    sets: Sets = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stage 4: judge reconstructions with evaluation models the attack never saw."""
    from mibench import runs

    given = split_sets(sets, "evaluator", [])
    device, precision = prepare(device, precision)
    found = [runs.find(results, one) for one in inversion] if inversion else runs.finished(results, "inversions")
    for run in found:
        if run.kind != "inversions":
            raise UserError(f"{run.label} is not an inversion; --inversion takes one of {results}/inversions")
    if not found:
        raise UserError(f"no inversion in {results}; run first: mibench invert")
    scores = [plan_score(run, evaluators, precision, given["evaluator"]) for run in found]
    if carry_out(scores, device, force, dry_run):
        tell(scores, as_json)


def plan_score(inversion: "Run", evaluators: str | None, precision: str, training: dict[str, str]) -> "Run":
    """The score of one inversion."""
    from mibench.runs import Run
    from mibench.stages import score as stage

    target = inversion.parents["target"]
    assert isinstance(target, Run)
    judges = choose_evaluators(
        target.root, data_of(target), target.spec["model"], evaluators, precision, training
    )
    return stage.plan(target.root, inversion, judges, precision)


@app.command(rich_help_panel="Do")
def attack(
    method: Method = "ppa",
    preset: Preset = "quick",
    target: Targets = None,
    prior: PriorName = None,
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
    from mibench import registry

    given = split_sets(sets, "attack", ["prior", "data", "evaluator"])
    device, precision = prepare(device, precision)
    registry.configure("attacks", method, preset, given["attack"])  # a wrong name is told before a missing target
    found = find_targets(results, choose_data(dataset, given["data"]), target, bool(given["data"]))
    scores = []
    for one in found:
        main = plan_attack(
            one, method, preset, given["attack"], prior, given["prior"], seed, precision, identities, budget
        )
        floors = [] if method in FLOORS else plan_floors(main, seed, precision)
        scores += [plan_score(run, evaluators, precision, given["evaluator"]) for run in [*floors, main]]
    # The attack itself first: what it refuses (a prior without a critic) is then told before minutes of floors.
    if carry_out(scores[::-1], device, force, dry_run):
        if not as_json:
            show_tables(results, scores)
        tell(scores, as_json)


def show_tables(results: Path, scores: list["Run"]) -> None:
    """The tables of some scores, on stdout."""
    from rich.console import Console

    from mibench.report import collect, tables

    wanted = {run.id for run in scores}
    found = [one for one in collect.scored(results) if one.run.id in wanted]
    console = Console()
    console.print(tables.render(found, collect.frame(found), console))


@app.command(rich_help_panel="Do")
def report(
    results: Annotated[Path, typer.Argument(help="Folder of all runs.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Tables in the terminal; the same as CSV, Markdown, LaTeX and JSON; picture grids."""
    from rich.console import Console

    from mibench import report as reports

    folder = reports.write(results, Console(quiet=as_json))
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
    device, precision = prepare(device, precision)
    data = choose_data("digiface", {})
    scores = []
    for defense, settings in (("none", []), ("re", ["a_e=0.4"]), ("re", ["a_e=0.8"])):
        given = defense_sets(settings, defense, [])
        target = plan_targets(results, data, "cnn", defense, given, seed, precision)
        for method in ("ppa", "gmi"):
            main = plan_attack(target, method, "quick", {}, None, {}, seed, precision, identities, None)
            for run in [*plan_floors(main, seed, precision), main]:
                scores.append(plan_score(run, None, precision, {}))
    unique = list({run.id: run for run in scores}.values())
    if carry_out(unique, device, force, dry_run):
        report(results, as_json)


@app.command("list", rich_help_panel="Look")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="attacks, defenses, priors, data, models or metrics.")] = None,
    as_json: Json = False,
) -> None:
    """What there is: attacks, defenses, priors, data sets, models, metrics."""
    from mibench import registry

    kinds = [*registry.BASES, "models", "metrics"]
    if kind is not None and kind not in kinds:
        raise unknown("kind of plug-in", kind, kinds)
    found = {one: registry.cards(one) for one in ([kind] if kind else kinds)}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    shown = {
        "attacks": ("access", "prior", "venue", "year", "link"), "defenses": ("strength", "venue", "year", "link"),
        "priors": ("critic", "venue", "year", "link"), "data": ("identities", "images", "licence"),
        "models": ("architectures", "year", "link"), "metrics": ("range", "better", "link"),
    }  # fmt: skip
    console = Console()
    for one, cards in found.items():
        table = Table(box=None, pad_edge=False, title=one, title_justify="left", title_style="bold")
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("summary", ratio=3)
        for column in shown[one]:
            table.add_column(column, ratio=1, style="dim" if column == "link" else "")
        for name, card in cards.items():
            cells = [card.get(column) for column in shown[one]]
            texts = [", ".join(map(str, c)) if isinstance(c, list | tuple) else str(c or "") for c in cells]
            table.add_row(name, card["summary"], *texts)
        console.print(table)
        console.print()


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
def doctor(as_json: Json = False) -> None:
    """What this machine has: devices, precision, threads, optional weights, and what is missing."""
    from mibench.doctor import examine

    examine(as_json)


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
    from mibench.data.show import picture_grid

    data = load_data(name, sets)
    path = output or Path(f"{name}.png")
    try:
        picture_grid(data, path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no kind of picture
        raise UserError(f"cannot write the picture {path}: {error}") from None
    describe_data(data, as_json)
    if not as_json:
        print(path)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Data set.")] = "digiface",
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Read (or draw) every image once, check the splits, and fill the cache."""
    data = load_data(name, sets)
    describe_data(data, as_json)


def load_data(name: str, sets: list[str] | None) -> Any:
    """The data set, with a bar while it is read or drawn."""
    from mibench.progress import Terminal

    with Terminal() as terminal:
        return choose_data(name, split_sets(sets, "data", [])["data"]).plugin.load(terminal)


def describe_data(data: Any, as_json: bool) -> None:
    """Sizes, provenance and fingerprint of a data set."""
    sizes = {split: len(getattr(data, split)) for split in ("train", "heldout", "public", "distractors")}
    facts = {
        "name": data.name, "identities": len(data.classes), "image_shape": list(data.image_shape), **sizes,
        "distractor_people": data.distractor_count, "distractors_are_public": data.distractors_are_public,
        "fingerprint": data.fingerprint(), "card": dict(data.card),
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in facts.items():
        if key != "card":
            table.add_row(key.replace("_", " "), str(value), style="")
    for what, images in data.card.get("converted", {}).items():
        table.add_row("converted", f"{images} image(s): {what}")
    for key, value in data.card.items():
        if isinstance(value, str | int | float):
            table.add_row(key.replace("_", " "), str(value), style="dim")
    Console().print(table)


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
    except Exception as error:
        # typer brings its own copy of click, so its usage errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        code = refuse(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def refuse(message: str) -> int:
    """Say a mistake in one line; a bare `mibench` has none to say and has printed its help."""
    if message:
        print(f"mibench: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
