"""From a number back to the data: a run, how it was specified, what came out, and every run it builds on."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mibench.metrics import Unit
from mibench.report.naming import changes, defense_label
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.stages.train_target import changed_from_recipe

__all__ = ["ROLE", "chain", "made", "specified"]

ROLE = {
    "backbones": "backbone",
    "evaluators": "evaluation model",
    "inversions": "inversion",
    "priors": "prior",
    "scores": "score",
    "shards": "shard of an inversion",
    "targets": "target",
    "verifiers": "verifier",
}

ORDER = ("inversion", "target", "backbone", "prior", "evaluators", "verifiers")
"""Parents are shown in this order: first what leads back to the data."""


def chain(run: Run) -> RenderableType:
    """A tree from the run down to the data set, then the data set's card.

    Raises:
        UserError: If a file of one of the runs cannot be read.
    """
    tree = Tree(_about(run), guide_style="dim")
    _grow(tree, run, {run.id})
    name, card = _card(run)
    return Group(tree, Text(), Text(f"data set {name}", style="bold"), card)


def _grow(tree: Tree, run: Run, seen: set[str]) -> None:
    for parent in _parents(run):
        if parent.id in seen:
            tree.add(Text(f"{ROLE[parent.kind]} {parent.id}: as above", style="dim"))
            continue
        seen.add(parent.id)
        _grow(tree.add(_about(parent)), parent, seen)
    if "dataset" in run.spec:
        data = run.spec["dataset"]
        tree.add(Text(f"data set {data['name']}  {_settings('data', data)}".rstrip()))


def _parents(run: Run) -> Iterator[Run]:
    for role in sorted(run.parents, key=lambda role: ORDER.index(role) if role in ORDER else len(ORDER)):
        parents = run.parents[role]
        yield from parents if isinstance(parents, list) else [parents]


def _about(run: Run) -> RenderableType:
    """One run: who, how it was specified, its numbers, when and on what, its files."""
    head = Text.assemble((ROLE[run.kind], "bold"), " ", (run.name, "bold"), " ", (run.id, "cyan"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in (
        ("specified", specified(run)),
        ("result", _result(run)),
        ("made", made(run)),
        ("files", _files(run)),
        ("path", str(run.path)),
    ):
        if text:
            grid.add_row(name, Text(text))
    return Group(head, grid)


def _settings(kind: str, item: Mapping[str, Any]) -> str:
    """What is not a default."""
    changed = changes(kind, item["name"], item["settings"])
    return " ".join(f"{key}={json.dumps(value)}" for key, value in changed.items())


def specified(run: Run) -> str:
    """What a run was asked to do, but for defaults, in a line."""
    spec = run.spec
    parts = []
    if run.kind == "targets":
        parts += [str(spec["model"]), f"defense {defense_label(spec)}"]
    if run.kind in ("evaluators", "verifiers"):
        parts.append(str(spec["model"]))
    for kind, key in (("attacks", "attack"), ("priors", "prior")):
        if key in spec:
            parts.append(f"{spec[key]['name']} {_settings(kind, spec[key]) or '(defaults)'}")
    if run.kind in ("targets", "evaluators"):
        parts += [f"{key} {value}" for key, value in changed_from_recipe(run).items()]
    if "shard" in spec:
        parts.append("shard {}/{}".format(*spec["shard"]))
    shown = ("access", "identities", "budget", "seed", "precision")
    parts += [f"{key} {spec[key]}" for key in shown if spec.get(key) is not None]
    return ", ".join(parts)


def rate(known: Mapping[str, Any]) -> str:
    """`82.0 [74.1,88.2] %`."""
    return f"{Unit.SHARE.interval(known['value'], known['low'], known['high'])} {Unit.SHARE.sign}"


def _result(run: Run) -> str:
    if run.kind == "scores":
        scores = run.read("scores.json")
        lines = [
            f"{scores['n']} reconstructions of {scores['identities']} identities; the target itself says "
            f"{rate(scores['target']['top1'])}",
            f"likeness {rate(scores['likeness'])}, gate {scores['gate']}; real held-out images "
            f"{rate(scores['likeness_ceiling'])}",
        ]
        for judge in run.evaluators:
            name = judge.spec["model"]
            own = scores["evaluators"][name]
            lines.append(
                f"{name}: open-set {rate(own['open_top1'])}, closed {rate(own['closed_top1'])}, "
                f"KNN {own['knn_train']['value']:.4g}"
                + ("" if own["fid"] is None else f", fid@{name} {own['fid']:.4g}")
            )
        lines += [
            f"verifier {name}: {rate(own['verified'])} at FAR 1%, {rate(own['verified_strict'])} at FAR .1%"
            for name, own in sorted(scores["verifiers"].items())
        ]
        return "\n".join(lines)
    metrics = run.read("metrics.json")
    if run.kind == "inversions" and metrics["queries_per_identity"] is None:
        each = sorted({metrics["images_least"], metrics["images_most"]})
        return (
            f"{metrics['images']} images of {metrics['identities']} identities, {' to '.join(map(str, each))} each, "
            "made by another program; queries unknown"
        )
    if run.kind in ("inversions", "shards"):
        return (
            f"{metrics['images']} images of {metrics['identities']} identities; per identity "
            f"{metrics['queries_per_identity']:,.0f} queries, {metrics['gradient_images_per_identity']:,.0f} with "
            f"gradient; {metrics['shared_queries']:,} shared"
        )
    if run.kind == "priors" and "imported" in metrics:
        return (
            f"imported from {metrics['imported']['format']}, {metrics['imported']['resolution']} px, "
            f"{metrics['parameters']:,} parameters; licence: {metrics['imported']['licence']}"
        )
    if run.kind == "priors":
        return (
            f"{metrics['latent_dim']} latent dimensions, {metrics['parameters']:,} parameters, "
            f"{metrics['public_images']:,} public images, {metrics['target_queries']:,} target queries"
        )
    if run.kind == "backbones":
        people = "named people" if metrics["named_people"] else "images, each a class of its own"
        return f"learnt to tell {metrics['classes']:,} public {people} apart; {metrics['parameters']:,} parameters"
    if run.kind == "verifiers":
        return f"taught by {metrics['people']:,} people who play no other part; {metrics['parameters']:,} parameters"
    text = f"natural accuracy {rate(metrics['natural_accuracy'])}"
    if "open_set_accuracy" in metrics:
        text += f", open-set {rate(metrics['open_set_accuracy'])} among {metrics['distractors']} more people"
    return f"{text}; {metrics['classes']} classes, {metrics['parameters']:,} parameters"


def made(run: Run) -> str:
    """How long a run took, on what, when, and by which code."""
    known = run.read("run.json").get("provenance", {})
    place = known.get("gpu") or " ".join(str(known[key]) for key in ("device", "machine") if known.get(key))
    parts = [
        f"{known['seconds']:,} s" if "seconds" in known else "",
        f"on {place}" if place else "",
        str(known.get("finished", "")),
        f"mibench {known['mibench']}" if "mibench" in known else "",
        str(known.get("commit") or ""),
    ]
    return ", ".join(part for part in parts if part)


def size(path: Path) -> str:
    """A file's size with its unit."""
    amount = float(path.stat().st_size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def _files(run: Run) -> str:
    return ", ".join(f"{path.name} {size(path)}" for path in sorted(run.path.iterdir()) if path.name != "done")


def _card(run: Run) -> tuple[str, RenderableType]:
    """The data set's card, as the nearest run trained on it wrote it down."""
    waiting, data = [run], None
    while waiting:
        current = waiting.pop(0)
        data = data or current.spec.get("dataset")
        if (current.path / "data.json").is_file():
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(overflow="fold")
            for key, value in current.read("data.json").items():
                grid.add_row(key.replace("_", " "), Text(value if isinstance(value, str) else json.dumps(value)))
            return current.spec["dataset"]["name"], grid
        waiting.extend(_parents(current))
    if data is None:
        raise UserError(f"{run.path} leads to no data set; delete it and run it again")
    return data["name"], Text(f"this run holds no card of its data: mibench data show {data['name']}", style="dim")
