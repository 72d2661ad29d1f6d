"""BibTeX of everything a run was made with, from the cards of its plug-ins."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from mibench import __version__, models
from mibench.metrics import declared
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime import escape
from mibench.runtime.errors import UserError

__all__ = ["bibtex", "entry", "used"]

JOURNALS = {
    "TMLR",
    "IEEE TDSC",
    "TNNLS",
    "TIFS",
    "JMLR",
    "IJCV",
    "PAMI",
    "Proceedings of the IEEE",
    "Evolutionary Computation",
    "Educational and Psychological Measurement",
}


SIDE_EFFECTS = {"adversarial_accuracy": "robustness", "ece": "calibration", "gradient_norm": "gradients", "ood": "ood"}
"""What a target's metrics.json measures -> the metric."""


def used(run: Run) -> Iterator[tuple[str, str]]:
    """(kind, name) of every plug-in that a run and its ancestors were made with, attacks first, each once."""
    order = list(registry.SINGULAR)
    yield from sorted(dict.fromkeys(_walk(run, set())), key=lambda used: order.index(used[0]))


def _walk(run: Run, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Of a run and its ancestors, but for those that were seen."""
    if run.label in seen:
        return
    seen.add(run.label)
    spec = run.spec
    if "attack" in spec:
        base, *around = str(spec["attack"]["name"]).split("+")
        yield from [("attacks", name) for name in (base, *around)]
    if "prior" in spec:
        yield "priors", spec["prior"]["name"]
    yield from [("defenses", item["name"]) for item in spec.get("defenses", [])]
    if "model" in spec:
        yield "models", models.family(spec["model"])
    if "dataset" in spec:
        yield "data", spec["dataset"]["name"]
    if run.kind == "scores":
        scores = run.read("scores.json") if run.done else {}
        # fid and kid are also measured in each evaluation model's own features
        yield from [("metrics", name) for name in ("accuracy", "knn", "fid", "kid")]
        if any(judge.get("prdc") for judge in scores.get("evaluators", {}).values()):
            yield "metrics", "prdc"
        known = declared()  # a metric of a package that is no longer installed cannot be cited
        yield from [("metrics", known[name].module) for name in scores.get("perceptual", {}) if name in known]
    if run.kind == "targets":
        measured = run.read("metrics.json").get("side_effects", {}) if run.done else {}
        yield from [("metrics", name) for key, name in SIDE_EFFECTS.items() if key in measured]
    for parent in run.ancestors():
        yield from _walk(parent, seen)


def _key(card: Mapping[str, Any]) -> str:
    """`zhang2020secret`: first author, year, first telling word of the title; ASCII only."""
    author = re.split(r",| and ", card["authors"])[0]
    words = [word for word in re.findall(r"[^\W\d_]+", card["title"]) if len(word) > 3]
    text = f"{author}{card['year']}{words[0] if words else ''}".lower().replace(" ", "")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def entry(card: Mapping[str, Any]) -> str:
    """One BibTeX entry; a card without a title has nothing to cite and gives ''."""
    if not card.get("title") or not card.get("authors"):
        return ""
    venue = card.get("venue", "")
    kind, where = ("misc", "howpublished")
    if venue and venue != "arXiv":
        kind, where = ("article", "journal") if venue in JOURNALS else ("inproceedings", "booktitle")
    authors = " and ".join(re.split(r", | and ", card["authors"]))
    fields = {"title": card["title"], "author": authors, where: venue, "year": card["year"], "url": card["link"]}
    texts = {name: escape.bibtex(str(value), name == "url") for name, value in fields.items() if value}
    texts["title"] = f"{{{texts['title']}}}"  # its capitals stay
    lines = [f"  {name} = {{{text}}}," for name, text in texts.items()]
    return "\n".join([f"@{kind}{{{_key(card)},", *lines, "}"])


def bibtex(*runs: Run) -> str:
    """What to cite for some runs: mibench, then attacks, priors, defenses, models, data, metrics, each paper once."""
    entries: dict[str, tuple[str, list[str]]] = {}  # by key: two cards may link to one paper in different places
    order = list(registry.SINGULAR)
    seen: set[str] = set()
    both = dict.fromkeys(one for run in runs for one in _walk(run, seen))
    for kind, name in sorted(both, key=lambda one: order.index(one[0])):
        try:
            card = registry.card(kind, name)
        except UserError:
            continue  # a plug-in that is no longer installed
        text = entry(card)
        if text:
            entries.setdefault(_key(card), (text, []))[1].append(escape.terminal(f"{registry.SINGULAR[kind]} {name}"))
    own = (
        "@software{mibench,\n  title = {{mibench: how much of a classifier's training images can be reconstructed}},\n"
        f"  version = {{{__version__}}},\n}}"
    )
    return "\n\n".join([own, *(f"% {', '.join(names)}\n{text}" for text, names in entries.values())])
