"""The commands that do the main job: train, attack, sweep, run, demo, report."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mibench.cli import options

if TYPE_CHECKING:
    from mibench.runs import Run

__all__ = ["attack", "demo", "report", "run", "sweep", "train", "worker"]


def train(
    defense: options.Defense = "none",
    model: options.Model = "cnn",
    pretrained: options.Pretrained = None,
    recipe: options.Recipe = None,
    evaluators: options.Evaluators = None,
    dataset: options.Dataset = "digiface",
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
    """Train a target, defended or not, and the evaluation models of its data set."""
    from mibench.cli import conduct, printing
    from mibench.experiments import options as experiments

    device, precision = conduct.machine(device, precision)
    experiment = experiments.training(
        defense=defense,
        model=model,
        pretrained=pretrained,
        recipe=recipe,
        evaluators=evaluators,
        dataset=dataset,
        seed=seed,
        sets=sets,
        precision=precision,
    )
    conduct.conduct(
        [experiment],
        results,
        device,
        profile=profile,
        log=log,
        dry_run=dry_run,
        force=force,
        as_json=as_json,
        show=printing.print_training,
    )


def attack(
    method: options.Method = "ppa",
    preset: options.Preset = "quick",
    target: options.Targets = None,
    prior: options.AttackPrior = None,
    adaptive: options.Adaptive = False,
    identities: options.Identities = None,
    budget: options.Budget = None,
    isolate: options.Isolate = False,
    shards: options.Shards = 1,
    evaluators: options.Evaluators = None,
    dataset: options.Dataset = "digiface",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    profile: options.Profile = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Attack every trained target of the data set: prior if missing, inversion, floors, scores."""
    from mibench.cli import conduct
    from mibench.experiments import options as experiments

    device, precision = conduct.machine(device, precision)
    experiment = experiments.attack(
        method=method,
        preset=preset,
        target=target,
        prior=prior,
        adaptive=adaptive,
        identities=identities,
        budget=budget,
        isolate=isolate,
        shards=shards,
        evaluators=evaluators,
        dataset=dataset,
        seed=seed,
        sets=sets,
        precision=precision,
    )
    conduct.conduct(
        [experiment],
        results,
        device,
        zoo=conduct.zoo(no_zoo),
        profile=profile,
        log=log,
        dry_run=dry_run,
        force=force,
        as_json=as_json,
        show=lambda runs: _shown(runs, full),
    )


def sweep(
    defense: options.Defenses = None,
    method: options.Methods = None,
    strengths: options.Strengths = "grid",
    seeds: options.Seeds = 1,
    adaptive: options.Adaptive = False,
    preset: options.Preset = "quick",
    prior: options.AttackPrior = None,
    model: options.Model = "cnn",
    pretrained: options.Pretrained = None,
    identities: options.Identities = None,
    budget: options.Budget = None,
    evaluators: options.Evaluators = None,
    dataset: options.Dataset = "digiface",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    profile: options.Profile = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Train defenses over their strengths, attack them all, show privacy against utility."""
    from mibench.cli import conduct
    from mibench.experiments import options as experiments
    from mibench.experiments.reading import split_sets

    device, precision = conduct.machine(device, precision)
    experiment = experiments.grid(
        dataset=dataset,
        model=model,
        defenses=defense or ("none", "re"),
        strengths=strengths if strengths in ("grid", "default") else strengths.split(","),
        seeds=range(seed, seed + seeds),
        seed=seed,
        methods=method or ("ppa",),
        adaptive=adaptive,
        preset=preset,
        prior=prior,
        identities=identities,
        budget=budget,
        pretrained=pretrained,
        evaluators=evaluators,
        settings=split_sets(sets, "training", ["data", "prior", "evaluator", "verifier"]),
        precision=precision,
    )
    conduct.conduct(
        [experiment],
        results,
        device,
        zoo=conduct.zoo(no_zoo),
        profile=profile,
        log=log,
        dry_run=dry_run,
        force=force,
        as_json=as_json,
        show=lambda runs: _shown(runs, full),
    )


def run(
    suite: options.Suite,
    identities: options.Identities = None,
    shards: options.Shards = 1,
    on: options.On = None,
    check: options.Check = False,
    measure: options.Measure = False,
    rehearse: options.Rehearse = False,
    keep: options.Keep = None,
    dataset: options.OtherDataset = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    profile: options.Profile = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Run a suite: a file of targets and attacks, resumable; with --on ray on a cluster."""
    from mibench.cli import conduct, rehearsing
    from mibench.experiments import suites
    from mibench.runtime.absent import as_published

    device, precision = conduct.machine(device, precision)
    asked: dict[str, Any] = {"dataset": dataset, "seed": seed, "identities": identities, "sets": sets}
    if check or measure:
        conduct.check(
            suite, results, device, precision, asked, zoo=conduct.zoo(no_zoo), on=on, measure=measure, as_json=as_json
        )
        return
    if rehearse or keep is not None:
        rehearsing.conduct(suite, device, precision, asked, rehearse, keep, as_json, results)
        return
    with as_published() if dry_run else conduct.telling_of_check(suite):
        experiments = suites.read(suite, **asked, precision=precision)
        conduct.conduct(
            [replace(one, shards=shards) for one in experiments],
            results,
            device,
            zoo=conduct.zoo(no_zoo),
            profile=profile,
            log=log,
            dry_run=dry_run,
            force=force,
            as_json=as_json,
            show=lambda runs: _shown(runs, full),
            seconds=suites.seconds(suite),
            on=on,
        )


def worker(
    folder: options.Shared,
    suite: options.Suite,
    identities: options.Identities = None,
    shards: options.Shards = 1,
    dataset: options.OtherDataset = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    profile: options.Profile = False,
    log: options.Log = None,
) -> None:
    """Help with a suite: do its runs that are ready and that no other worker of the folder does; start any number."""
    from mibench.cli import conduct
    from mibench.experiments import suites

    device, precision = conduct.machine(device, precision)
    asked: dict[str, Any] = {"dataset": dataset, "seed": seed, "identities": identities, "sets": sets}
    with conduct.telling_of_check(suite):
        experiments = [replace(one, shards=shards) for one in suites.read(suite, **asked, precision=precision)]
        conduct.help_with(experiments, folder.absolute(), device, zoo=conduct.zoo(no_zoo), profile=profile, log=log)


def demo(
    identities: options.Identities = None,
    dataset: options.OtherDataset = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    profile: options.Profile = False,
    log: options.Log = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """No defense against random erasing under two attacks, on embedded data, in minutes."""
    from mibench.cli import conduct, printing
    from mibench.experiments import suites

    def show(runs: list["Run"]) -> None:
        report(results, full=full)

    device, precision = conduct.machine(device, precision)
    experiments = suites.read("demo", dataset=dataset, seed=seed, identities=identities, sets=sets, precision=precision)
    conduct.conduct(
        experiments,
        results,
        device,
        zoo=conduct.zoo(no_zoo),
        profile=profile,
        log=log,
        dry_run=dry_run,
        force=force,
        as_json=as_json,
        show=show,
        early=printing.print_first,
    )


def report(
    results: options.Folder = options.RESULTS,
    private_images: options.PrivateImages = True,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """The first screen in the terminal; an offline page; CSV, Markdown, LaTeX and JSON; figures and picture grids."""
    from mibench import report as reports
    from mibench.runs.store import bring_scores
    from mibench.runtime.terminal import SafeConsole, say

    say(*(f"note: left out: {line}" for line in bring_scores(results)), to_stderr=True)
    folder = reports.write(results, SafeConsole(quiet=as_json), private_images, full)
    if as_json:
        print((folder / "tables.json").read_text(encoding="utf-8"))
    else:
        say(folder / "index.html")
        say(folder)


def _shown(runs: list["Run"], full: bool) -> None:
    """What some scores say, on stdout."""
    from mibench.cli import printing

    printing.show_scores(runs[-1].root, runs, full)
