"""What commands print besides the report: training results, plug-ins, data sets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mibench.core import Dataset
    from mibench.runs import Run

__all__ = ["describe_data", "print_cards", "print_training", "show_tables"]


def print_training(runs: list["Run"]) -> None:
    """Natural accuracy of targets and evaluation models, as a table."""
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


def print_cards(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Plug-ins by kind, from their cards."""
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


def show_tables(results: Path, scores: list["Run"]) -> None:
    """The tables of some scores, on stdout."""
    from mibench.report import collect, tables  # pandas: not for `mibench list`

    wanted = {run.id for run in scores}
    found = [one for one in collect.scored(results) if one.run.id in wanted]
    console = Console()
    console.print(tables.render(found, collect.frame(found), console))


def describe_data(data: "Dataset", as_json: bool) -> None:
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
