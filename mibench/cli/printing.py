"""What commands print besides the report: training results, plug-ins, data sets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mibench import zoo
from mibench.runtime.terminal import SafeConsole, say

if TYPE_CHECKING:
    from mibench.core import Dataset
    from mibench.experiments.listing import Listed
    from mibench.runs import Run
    from mibench.runs.status import Status
    from mibench.stages.shelve import Verified
    from mibench.zoo import Entry

__all__ = [
    "describe_data",
    "hours_of",
    "print_attacks",
    "print_cards",
    "print_checks",
    "print_entry",
    "print_first",
    "print_plan",
    "print_status",
    "print_suites",
    "print_training",
    "print_verified",
    "print_zoo",
    "show_scores",
]


def print_training(runs: list["Run"]) -> None:
    """Natural accuracy of targets and evaluation models, as a table; who taught each verifier, below."""
    table = Table(box=None, pad_edge=False, title_justify="left", title="Natural accuracy on held-out images")
    for column in ("run", "role", "accuracy", "95% interval", "open-set"):
        table.add_column(column, justify="right" if column in ("accuracy", "open-set") else "left")
    verifiers = [run for run in runs if run.kind == "verifiers"]
    orders = []
    for run in runs:
        if run in verifiers:
            continue
        metrics = run.read("metrics.json")
        orders += [metrics["label_order"]["said"]] if "label_order" in metrics else []
        natural = metrics["natural_accuracy"]
        opened = metrics.get("open_set_accuracy")
        table.add_row(
            f"{run.name}-{run.id}",
            "target" if run.kind == "targets" else "evaluation model",
            f"{natural['value']:.3f}",
            f"{natural['low']:.3f} - {natural['high']:.3f}",
            f"{opened['value']:.3f}" if opened else "",
        )
    console = SafeConsole()
    console.print(table)
    for line in orders:
        console.print(line, soft_wrap=True)
    for run in verifiers:
        people = run.read("metrics.json")["people"]
        console.print(f"{run.name}-{run.id}  verifier, taught by {people} people who play no other part")


def print_cards(kinds: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Plug-ins by kind, from their cards."""
    shown = {
        "priors": ("critic", "venue", "year", "link"),
        "data": ("identities", "images", "licence"),
        "models": ("architectures", "year", "link"),
        "metrics": ("unit", "direction", "link"),
    }
    console = SafeConsole()
    for one, cards in kinds.items():
        if one == "attacks":
            print_attacks(cards)
            continue
        if one == "defenses":
            print_defenses(cards)
            continue
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


def print_defenses(cards: dict[str, dict[str, Any]]) -> None:
    """Published defenses, then controls: what is swept over which values, venue, summary, adaptive attacker, link."""
    console = SafeConsole()
    line = "{:<14}{:<14}{:<28}  {}".format
    for role, title in (("defense", "defenses"), ("control", "controls: what a defense is compared with")):
        own = {name: card for name, card in cards.items() if card.get("role", "defense") == role}
        console.print(Text(title, "bold"))
        console.print(Text(line("", "strength", "over", "venue"), "dim"), no_wrap=True, overflow="ellipsis")
        for name, card in own.items():
            values = " ".join(f"{value:g}" for value in card.get("grid", []))
            known = [part for part in (card.get("venue"), card.get("year")) if part]
            shown = Text(line(name, str(card.get("strength") or ""), values, " ".join(map(str, known))))
            shown.stylize("cyan", 0, len(name))
            console.print(shown, no_wrap=True, overflow="ellipsis")
            about = Text(card["summary"])
            if card.get("adaptive"):
                tried = "; ".join(f"{change} ({why})" for change, why in card["adaptive"].items())
                about.append(f"\nadaptive attacker: {tried}", "dim")
            if card.get("link"):
                about.append(f"\n{card['link']}", "dim")
            console.print(Padding(about, (0, 0, 0, 2)))
        console.print()


def print_suites(suites: Sequence["Listed"]) -> None:
    """The shipped suites: name and title, then data, weights and what it comes to; below, whose hours these are."""
    console = SafeConsole()
    console.print(Text.assemble(("suites", "bold"), ("   mibench run NAME", "dim")))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column()
    for one in suites:
        kind = "data" if one.runs is None else "embedded data"
        fetched = f"fetch {', '.join(one.fetched)}" if one.fetched else f"{kind} ({', '.join(one.data)})"
        weights = f"weights {', '.join(one.weights)}" if one.weights else "no weights"
        told = "; ".join(filter(None, (fetched, weights, one.cost)))
        grid.add_row(one.name, Text.assemble(one.title, ("\n" + told, "dim")))
    console.print(grid)
    console.print(
        "Core hours are of one core (an AMD EPYC, fp32), as each suite measured it, where nothing is done yet; those "
        "of the papers' suites, and of GPUs, are not measured. What is here, what is missing, and how long it takes on "
        "this machine: mibench run NAME --check",
        style="dim",
    )


def print_plan(runs: list["Run"], todo: set[str], seconds: Mapping[str, float]) -> None:
    """Planned runs in the order in which they can be done: what they are, what they build on, what is done.

    Args:
        runs: Parents first.
        todo: Labels of those that are still to do.
        seconds: What a run of a kind, or of a plug-in (`kind/name`), takes on one core; may be empty.
    """
    console = SafeConsole()
    width = max((len(run.label) for run in runs), default=0)
    lines = [Text(f"{'state':<6} {'run':<{width}}  settings", "bold")]
    for run in runs:
        state = "done" if run.label not in todo else "zoo" if zoo.origin(run) else "to do"
        lines.append(Text.assemble(f"{state:<6} ", (f"{run.label:<{width}}", "cyan"), (f"  {settings_of(run)}", "dim")))
    for line in lines:
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"{len(runs)} runs, {len(todo)} to do; all settings with --json", style="dim")
    if seconds:
        hours, untold = hours_of([run for run in runs if run.label in todo], seconds)
        left = f"; {untold} runs that it says nothing of not counted" if untold else ""
        console.print(f"about {hours:.1f} h on one core, by the suite's own measurement{left}", style="dim")


def hours_of(runs: list["Run"], seconds: Mapping[str, float]) -> tuple[float, int]:
    """Hours that some runs take together, and how many of them nothing is said of.

    Args:
        runs: What is to be done.
        seconds: By kind and attack, prior, architecture or stack of defenses (`inversions/ppa`, `targets/ir3`), or by
            kind alone.
    """
    known = []
    for run in runs:
        spec = run.spec
        words = [run.name, *(str(spec[key]) for key in ("model",) if key in spec)]
        words += [one["name"] for key in ("attack", "prior") if isinstance(one := spec.get(key), Mapping)]
        words += ["+".join(item["name"] for item in spec.get("defenses", ()))]
        keys = [*(f"{run.kind}/{word}" for word in words), run.kind]
        known.append(next((seconds[key] for key in keys if key in seconds), None))
    told = [one for one in known if one is not None]
    return sum(told) / 3600, len(known) - len(told)


def print_status(working: list["Status"], finished: Mapping[str, int]) -> None:
    """Runs that are worked on, and how many are finished."""
    console = SafeConsole()
    table = Table(box=None, pad_edge=False)
    for column in ("run", "where", "since", "last sign of life", "done", "left"):
        table.add_column(column)
    for one in working:
        alive = f"{one.silent:.0f} s ago" + ("" if one.alive else " (dead?)")
        share = "" if one.share is None else f"{one.share:.0%}"
        left = "" if one.left is None else f"about {one.left / 60:.1f} min"
        table.add_row(one.run, one.where, one.since, alive, share, left)
    if working:
        console.print(table)
    kinds = ", ".join(f"{number} {kind}" for kind, number in finished.items()) or "nothing"
    console.print(f"{len(working)} run(s) in work; finished: {kinds}")


def print_first(scores: list["Run"]) -> None:
    """The first attack's headline beside its floors', and where its pictures are; on stderr, in two lines.

    Args:
        scores: Those of its floors, then its own.
    """
    from mibench.evaluation.score import Score
    from mibench.metrics.declaration import Unit

    *floors, main = [(run.inversion, Score.from_json(run.read("scores.json")).headline) for run in scores]
    shown = [f"{one.spec['attack']['name']} {Unit.SHARE.interval(*rate[:3])}" for one, rate in [main, *floors]]
    attack, target = main[0], main[0].target
    say(f"first result, {target.name}: like the person, %: {'; '.join(shown)}", to_stderr=True)
    say(f"its pictures: {attack.path / 'grid.png'}", to_stderr=True)


def print_zoo(entries: list["Entry"]) -> None:
    """What the zoo has, kind by kind: name and seeds, accuracy on held-out images, size, digest."""
    console = SafeConsole()
    table = Table(box=None, pad_edge=False)
    for column in ("zoo:", "seed", "is", "natural", "as\ntrained", "KB", "of"):  # 79 letters wide
        right = column not in ("zoo:", "is", "of")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, vertical="bottom")
    for entry in entries:
        run, metrics = entry.run, entry.metrics
        natural, fit = metrics.get("natural_accuracy"), metrics.get("fit")
        table.add_row(
            Text(entry.name, "cyan"),
            str(run.spec["seed"]),
            run.kind.removesuffix("s"),
            f"{100 * natural['value']:.1f}" if natural else "",
            f"{100 * fit['value']:.1f}" if fit else "",
            f"{entry.size / 1024:.0f}",
            _strengths(run),
        )
    console.print(table)
    total = sum(entry.size for entry in entries) / 2**20
    console.print(f"{len(entries)} runs, {total:.1f} MB; mibench zoo show NAME has the card of one", style="dim")


def _strengths(run: "Run") -> str:
    """How strong each defense of a target is, by the number that its card names; and a target's network."""
    from mibench.plugins import registry

    if run.kind != "targets":
        return ""
    named = [(one, registry.card("defenses", one["name"]).get("strength")) for one in run.spec["defenses"]]
    return " ".join([run.spec["model"], *(f"{key}={one['settings'][key]:.3g}" for one, key in named if key)])


def print_entry(entry: "Entry") -> None:
    """An entry's card, a line a fact."""
    run, card, metrics = entry.run, entry.card, entry.metrics
    made = card["provenance"]
    accuracy = [
        f"{label} {100 * metrics[key]['value']:.1f}%"
        for key, label in (("natural_accuracy", "natural"), ("open_set_accuracy", "open-set"), ("fit", "as trained"))
        if key in metrics
    ]
    facts = {
        "name": f"zoo:{entry.reference}",
        "run": run.label,
        "digest": card["digest"],
        "data": f"{run.spec['dataset']['name']} {_flat(run.spec['dataset'].get('settings', {}))}",
        "network": f"{run.spec.get('model', '')} {settings_of(run)}".strip(),
        "recipe": _flat(run.spec.get("training") or {}),
        "accuracy": ", ".join(accuracy),
        "rounded": "float16, measured again after rounding",
        "made": f"{made['finished']}, commit {made['commit']}, mibench {made['mibench']}, {made['cpu_seconds']} CPU s",
        "again": made["command"],
    }
    console = SafeConsole()
    for key, value in facts.items():
        if value:
            console.print(Text.assemble((f"{key:<9} ", "dim"), value))


def _flat(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def print_verified(one: "Verified") -> None:
    """One measurement made again, in a line."""
    verdict, numbers = "holds" if one.holds else "DIFFERS", f"card {one.card:.4f}  here {one.here:.4f}"
    say(f"{verdict:<8} {one.entry.reference:<22} {one.metric:<20} {numbers}")


def settings_of(run: "Run") -> str:
    """Settings of its defenses, attack or prior, and whom it attacks."""
    spec = run.spec
    named = [*spec.get("defenses", ()), *(spec[kind] for kind in ("attack", "prior") if kind in spec)]
    words = [f"{key}={spec[key]}" for key in ("seed", "identities", "budget") if spec.get(key) is not None]
    words += ["shard={}/{}".format(*spec["shard"])] if "shard" in spec else []
    words += [f"{key}={value}" for one in named for key, value in one["settings"].items()]
    return " ".join(words)


SECTIONS = {
    "white_box": "white box: gradients",
    "black_box": "black box: scores",
    "label_only": "label only",
    "wrapper": "wrappers: ppa+eot",
    "floor": "floors: no inversion at all",
}


def print_attacks(cards: dict[str, dict[str, Any]]) -> None:
    """Attacks by access: prior, what the paper preset asks for one class and for all together, venue, summary, link."""
    console = SafeConsole()
    line = "{:<16}{:<12}{:>10}{:>10}{:>10}  {}".format
    for section, title in SECTIONS.items():
        own = {name: card for name, card in cards.items() if section_of(card) == section}
        if not own:
            continue
        head = ("prior", "gradients", "queries", "shared", "venue")
        console.print(Text(title, "bold"))
        console.print(Text(line("", *head), "dim"), no_wrap=True, overflow="ellipsis")
        for name, card in own.items():
            known = [part for part in (card.get("venue"), card.get("year")) if part]
            cells = [str(card.get("prior") or ""), *budget(card.get("cost")), " ".join(map(str, known))]
            shown = Text(line(name, *cells))
            shown.stylize("cyan", 0, len(name))
            console.print(shown, no_wrap=True, overflow="ellipsis")
            about = Text.assemble(card["summary"], (f"\n{card['link']}" if card.get("link") else "", "dim"))
            console.print(Padding(about, (0, 0, 0, 2)))
        console.print()
    legend = "images per class under the paper preset, or the defaults; shared: images that serve all classes"
    console.print(Text(legend, "dim"))


def section_of(card: dict[str, Any]) -> str:
    """Wrappers and floors by their role, attacks by their access."""
    role = card.get("role", "attack")
    return str(card.get("access") if role == "attack" else role)


def budget(cost: list[int | None] | None) -> list[str]:
    """Gradient images and other queries per class, and queries that serve all classes; blank where it is none."""
    if cost is None:
        return ["", "", ""]  # a wrapper's is that of the attack inside, times its views
    queries, gradients, shared = cost
    others = None if queries is None else queries - (gradients or 0)
    return [f"{count:,}" if count else "" for count in (gradients, others)] + [
        "public" if shared is None else f"{shared:,}" if shared else ""
    ]


def show_scores(results: Path, scores: list["Run"], full: bool) -> None:
    """What some scores say, on stdout: the first screen, or with `full` the tables."""
    from mibench.report import content, read, screen, terminal  # pandas: not for `mibench list`

    wanted = {run.id for run in scores}
    console = SafeConsole()
    shown = content.Content([result for result in read(results) if result.run.id in wanted])
    console.print(terminal.render(shown, console, people=False) if full else screen.render(shown, folder=results))


def print_checks(results: Path | None, as_json: bool) -> None:
    """What the checks find in a results folder and which found nothing, or (None) what each of them looks for."""
    from mibench.evaluation import checks

    console = SafeConsole()
    if results is None:
        about = {name: checks.explanation(name) for name in checks.CHECKS}
        if as_json:
            print(json.dumps({name: {"looks_for": one, "why": why} for name, (one, why) in about.items()}, indent=1))
            return
        for name, (one, why) in about.items():
            console.print(Text(name, "bold cyan"))
            console.print(Padding(Text.assemble(one, ("\n" + why, "dim")), (0, 0, 1, 2)))
        return
    from mibench.report import content, read
    from mibench.runs.store import bring_scores

    bring_scores(results)
    scores = read(results)
    findings = content.Content(scores).findings
    well = checks.passed(findings) if scores else []
    if as_json:
        print(json.dumps({"findings": [one._asdict() for one in findings], "passed": well}, indent=1))
        return
    for finding in findings:
        console.print(Text.assemble((f"! {finding.check}", "yellow"), f" {finding.label}: {finding.text}"))
    if well:
        console.print(Text.assemble((f"passed ({len(well)}): ", "green"), ", ".join(well)))
    console.print(f"{len(scores)} scores, {len(checks.CHECKS)} checks, {len(findings)} findings", style="dim")


def describe_data(data: "Dataset", as_json: bool) -> None:
    """Sizes, provenance and fingerprint of a data set."""
    sizes = {split: len(getattr(data, split)) for split in ("train", "heldout", "public", "distractors")}
    facts = {
        "name": data.name,
        "identities": len(data.classes),
        "image_shape": list(data.image_shape),
        **sizes,
        "distractor_people": data.distractor_count,
        "distractors_are_public": data.distractors_are_public,
        "fingerprint": data.fingerprint(),
        "card": dict(data.card),
    }
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return

    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in facts.items():
        if key != "card":
            table.add_row(key.replace("_", " "), str(value), style="")
    for what, images in data.card.get("converted", {}).items():
        table.add_row("converted", f"{images} image(s): {what}")
    for key, value in data.card.items():
        if isinstance(value, str | int | float):
            table.add_row(key.replace("_", " "), str(value), style="dim")
    SafeConsole().print(table)
