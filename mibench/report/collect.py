"""Every finished score of a results folder as one table; what cannot be read is named, never fatal.

Scores are comparable only within one *protocol*: the same images, the same evaluation models, the same attacked
identities. Each row says which protocol it belongs to; a table never mixes two.
"""

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mibench.plugins import registry
from mibench.runs import PROTOCOL, Library, Run, canonical, unchanged
from mibench.runtime.errors import UserError, printable
from mibench.stages.train_target import changed_from_recipe

__all__ = ["PRDC", "RATES", "Hits", "Scored", "changes", "defense_label", "frame", "rows", "scored", "settings_text"]

RATES = ("open_top1", "open_top5", "closed_top1", "closed_top5", "knn_train", "knn_heldout")
"""What an evaluation model says of each image; every one has an interval."""

DOUBTS = ("calibrated", "gap", "times_real")
"""How much of that is likeness, with intervals; older scores have none of them."""

SETS = ("fid", "kid")
"""What an evaluation model's features say of all images together."""

PRDC = ("precision", "recall", "density", "coverage")
"""How far the images lie among real ones in these features; blank in scores that were made without it."""


class Hits(NamedTuple):
    """Each reconstruction's identity and whether it was recognised; by identity, each one's as they were made."""

    labels: Int64[Tensor, " n"]
    hits: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Scored:
    """A whole score run with the runs it builds on."""

    run: Run
    scores: Mapping[str, Any]
    fingerprint: str

    @property
    def inversion(self) -> Run:
        """What was scored."""
        return _single(self.run, "inversion")

    @property
    def target(self) -> Run:
        """What was attacked."""
        return _single(self.inversion, "target")

    @property
    def prior(self) -> Run | None:
        """Where the images come from; None where another program made them."""
        return _single(self.inversion, "prior") if "prior" in self.inversion.parents else None

    @property
    def made_by(self) -> list[Mapping[str, Any]]:
        """How the images were made, as specifications; of another program's images only what they are called."""
        if self.prior is None:
            return [{"name": self.inversion.spec["attack"]["settings"]["name"]}]
        return [self.inversion.spec, self.prior.spec]

    @property
    def evaluators(self) -> list[Run]:
        """Who judged; the first gives the headline."""
        found = self.run.parents["evaluators"]
        return found if isinstance(found, list) else [found]

    @property
    def names(self) -> list[str]:
        """The evaluation models' names, headline first."""
        return [run.spec["model"] for run in self.evaluators]

    @property
    def card(self) -> Mapping[str, Any]:
        """The protocol card; empty in older scores."""
        found = self.scores.get("card")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def protocol(self) -> str:
        """6 hex digits: the images, the judges and who was attacked; rows that share them are comparable.

        Of the card, resolution, crop and reference images follow from the fingerprint of all pixels. Selection and
        budget are the attack's own, which its row shows.
        """
        key = [self.fingerprint, [run.id for run in self.evaluators], self.scores["identities"]]
        # Attacks of mibench take the first so many identities; a folder of images may be of any.
        others = self.card.get("split", {}).get("attacked")
        key += [others] if others is not None else []
        return hashlib.sha256(canonical(key).encode()).hexdigest()[:6]

    @cached_property
    def row(self) -> dict[str, Any]:
        """The score as one flat row."""
        return _row(self)

    @cached_property
    def recipe(self) -> str:
        """What an undefended twin shares: everything but the defense."""
        target = {key: value for key, value in self.target.spec.items() if key != "defenses"}
        return canonical([target, *self.made_by])

    @cached_property
    def hits(self) -> Hits:
        """The headline evaluation model's verdicts."""
        # Not by way of `per_image`: pandas takes ten times as long for a small file, and a report reads them all.
        with (self.run.path / "per_image.csv").open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            head = next(lines)
            label, hit = head.index("label"), head.index(f"open_top1@{self.names[0]}")
            found = torch.tensor([(int(line[label]), line[hit] == "1") for line in lines], dtype=torch.int64)
        labels, hits = found[found[:, 0].argsort(stable=True)].T
        return Hits(labels, hits.bool())

    @cached_property
    def by_identity(self) -> tuple[Int64[Tensor, " c"], Float64[Tensor, " c"]]:
        """Each identity and its mean headline hits."""
        names, index, count = self.hits.labels.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, index, self.hits.hits.double())
        return names, sums / count

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per reconstruction, in the order they were made; `order` counts within an identity."""
        table = pd.read_csv(self.run.path / "per_image.csv", dtype={"identity": str}, keep_default_na=False)
        table["label"] = table["label"].astype("int64")
        table["order"] = table.groupby("label").cumcount()
        return table


def _single(run: Run, role: str) -> Run:
    parent = run.parents[role]
    if not isinstance(parent, Run):
        raise UserError(f"{run.path} names several runs as its {role}; delete it and run it again")
    return parent


# --- reading --------------------------------------------------------------------------------------------------------


def scored(root: Path, warnings: list[str] | None = None) -> list[Scored]:
    """All whole score runs below a results folder; each one left out adds a line with its path to `warnings`."""
    said = warnings if warnings is not None else []
    found = []
    library = Library(root)
    for path in sorted((root / "scores").glob("[!.]*")):
        if not path.is_dir():
            continue
        try:
            found.append(_read(library, path))
        except UserError as error:
            text = str(error)
            here = printable(str(path))
            said.append(f"left out {here}: {text}" if here not in text else f"left out: {text}")
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            said.append(printable(f"left out {path}: it {what}; delete that directory and run it again"))
    return found


def _read(library: Library, path: Path) -> Scored:
    """One score run, refused unless whole and untouched."""
    for name in ("done", "run.json", "scores.json", "per_image.csv"):
        if not (path / name).is_file():
            raise UserError(f"{name} is missing; delete that directory and run it again")
    made_by = json.loads((path / "run.json").read_text(encoding="utf-8")).get("protocol")
    if made_by != PROTOCOL:
        raise UserError(f"it is of protocol {made_by}, this mibench of {PROTOCOL}; its numbers are not comparable")
    try:
        run = library.find(path.name)
    except UserError as error:
        if not str(error).startswith("unknown run"):
            raise
        gone = str(error).partition(";")[0]
        raise UserError(f"a run it builds on is missing ({gone}); run the same command again") from None
    for name in run.read("done"):
        unchanged(path / name)
    scores = run.read("scores.json")
    target = _single(_single(run, "inversion"), "target")
    one = Scored(run, scores, target.read("metrics.json")["dataset_fingerprint"])
    _ = one.row  # whatever a report needs of it is there
    return one


# --- names ----------------------------------------------------------------------------------------------------------


def changes(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the plug-in's defaults; all of them if the plug-in is no longer installed."""
    defaults = _defaults(kind, name)
    if defaults is None:
        return dict(settings)
    return {key: value for key, value in settings.items() if defaults.get(key) != _plain(value)}


@cache
def _defaults(kind: str, name: str) -> dict[str, Any] | None:
    """As JSON has them; None if the plug-in is no longer installed. Kept: a report asks for each many times."""
    try:
        return {key: _plain(value) for key, value in registry.defaults(kind, name).items()}
    except (UserError, ImportError):
        return None


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _card(kind: str, name: str) -> dict[str, Any]:
    try:
        return registry.card(kind, name)
    except UserError:
        return {}


def _text(settings: Mapping[str, Any]) -> str:
    """`a_e=0.8 ratio=0.5,2`."""
    parts = []
    for key, value in settings.items():
        shown = (
            ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, list | tuple)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        parts.append(f"{key}={shown}")
    return " ".join(parts)


def settings_text(kind: str, name: str, settings: Mapping[str, Any]) -> str:
    """The settings that are not the plug-in's defaults, as text."""
    return _text(changes(kind, name, settings))


def defense_label(spec: Mapping[str, Any]) -> str:
    """`none`, `re a_e=0.8`, `re a_e=0.4 + bido`: names, their strength, and what else is not a default."""
    labels = []
    for item in spec.get("defenses", []):
        name, settings = item["name"], item["settings"]
        strength = _card("defenses", name).get("strength")
        shown: dict[str, Any] = {strength: settings[strength]} if strength and strength in settings else {}
        labels.append(" ".join(part for part in (name, _text(shown | changes("defenses", name, settings))) if part))
    return " + ".join(labels) or "none"


def preset(kind: str, name: str, settings: Mapping[str, Any]) -> str:
    """The preset that gives these settings; else what is not a default."""
    changed = changes(kind, name, settings)
    try:
        offered = registry.presets(kind, name)
    except UserError:
        offered = {"default": {}}
    named = [
        key
        for key in sorted(offered, key=lambda key: key == "default")
        if {k: _plain(v) for k, v in changes(kind, name, offered[key]).items()} == changed
    ]
    return named[0] if named else _text(changed)


# --- the table ------------------------------------------------------------------------------------------------------


def _interval(key: str, found: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    return {f"{key}{at}": found["value"], f"{key}_low{at}": found["low"], f"{key}_high{at}": found["high"]}


def _prdc(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Precision, recall, density, coverage; null where there are too few images, or in an old file."""
    known = found.get("prdc") or {}
    return {key: known.get(key) for key in PRDC}


def _judged(names: Iterable[str], judges: Mapping[str, Any]) -> dict[str, Any]:
    """`open_top1@resnet`, `open_top1_low@resnet`, ... from the `evaluators` or the `ceiling` of a scores.json."""
    flat: dict[str, Any] = {}
    for name in names:
        for key in (*RATES, *DOUBTS):
            if key in judges[name]:  # the ceiling has no distance to the held-out images: each would find itself
                flat |= _interval(key, judges[name][key], f"@{name}")
        flat |= {f"{key}@{name}": judges[name][key] for key in SETS}
        flat |= {f"{key}@{name}": value for key, value in _prdc(judges[name]).items()}
    return flat


def _row(one: Scored) -> dict[str, Any]:
    """One score run as one flat row."""
    scores, spec = one.scores, one.inversion.spec
    attack = spec["attack"]
    made = one.inversion.read("metrics.json")
    flat: dict[str, Any] = _shared(one) | {
        "target": one.target.id,
        "model": one.target.spec["model"],
        "target_seed": one.target.spec["seed"],
        "start": {True: "from imagenet", "public": "from public"}.get(one.target.spec.get("pretrained"), ""),
        "training": _text(changed_from_recipe(one.target)),
        "defense": defense_label(one.target.spec),
    }
    flat |= _interval("natural_accuracy", scores["natural_accuracy"])
    flat |= {
        "attack": attack["name"] if one.prior else attack["settings"]["name"],
        "role": _card("attacks", attack["name"]).get("role", "attack"),
        "preset": preset("attacks", attack["name"], attack["settings"]) if one.prior else attack["name"],
        "access": spec["access"],
        "seed": spec["seed"],
        "budget": spec["budget"],
        **_origin(one.prior),
        "n": scores["n"],
    }
    flat |= _judged(one.names, scores["evaluators"])
    flat |= _interval("target_top1", scores["target"]["top1"])
    flat |= _interval("target_confidence", scores["target"]["confidence"])
    for name, found in scores["perceptual"].items():
        if name == "inception":
            flat |= {"fid": found["fid"], "kid": found["kid"]}
            flat |= {f"{key}@inception": value for key, value in _prdc(found).items()}  # 'precision' is also a dtype's
        else:
            flat |= _interval(name, found)
    for pair, found in scores.get("agreement", {}).items():
        flat |= _interval("both", found["both"], f"@{pair}") | {f"kappa@{pair}": found["kappa"]}
    flat |= _cost(one.inversion, one.prior, made)
    flat |= {
        "inversion": one.inversion.id,
        "prior_run": one.prior.id if one.prior else "",
        "card": scores.get("card_hash", ""),
        "score": one.run.id,
    }
    return flat


def _origin(prior: Run | None) -> dict[str, str]:
    """The prior by name; blank where another program made the images."""
    if prior is None:
        return {"prior": "", "prior_preset": ""}
    asked = prior.spec["prior"]
    return {"prior": asked["name"], "prior_preset": preset("priors", asked["name"], asked["settings"])}


def _cost(inversion: Run, prior: Run | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the target and how long it took; not known (NaN, never 0) of another program's images."""
    names = (
        "queries",
        "gradient_images",
        "shared_queries",
        "prior_queries",
        "prior_gradients",
        "seconds",
        "cpu_seconds",
        "prior_cpu_seconds",
    )
    if prior is None:
        return dict.fromkeys(names, math.nan)
    own, learnt = (run.read("run.json")["provenance"] for run in (inversion, prior))
    asked = prior.read("metrics.json")
    values = (
        made["queries_per_identity"],
        made["gradient_images_per_identity"],
        made["shared_queries"],
        asked.get("target_queries", 0),
        asked.get("target_gradients", 0),
        own["seconds"],
        own.get("cpu_seconds"),
        learnt.get("cpu_seconds"),
    )
    return dict(zip(names, values, strict=True))


def _shared(one: Scored) -> dict[str, Any]:
    """What all rows of a protocol have in common."""
    data = one.target.spec["dataset"]
    flat: dict[str, Any] = {
        "protocol": one.protocol,
        "dataset": data["name"],
        "dataset_settings": _text(changes("data", data["name"], data["settings"])),
        "fingerprint": one.fingerprint,
        "evaluators": ",".join(one.names),
        "identities": one.scores["identities"],
        "classes": one.scores["classes"],
        "unavailable": "; ".join(item["name"] for item in one.scores["unavailable"]),
    }
    for name in one.names:
        judge = one.scores["evaluators"][name]
        for key in ("heldout_accuracy", "heldout_accuracy_open"):
            flat |= _interval(key, judge[key], f"@{name}")
        flat |= {f"{key}@{name}": judge[key] for key in ("distractors", "distractors_are_public", "knn_real_to_real")}
    return flat


def references(one: Scored) -> list[dict[str, Any]]:
    """The chance row and the ceiling row: they depend on the protocol only, not on the target or the attack."""
    chance = one.scores["chance"]
    lowest = {f"closed_top1@{name}": chance["closed_top1"] for name in one.names} | {
        key: value for key, value in chance.items() if key != "closed_top1"
    }
    known = one.scores["ceiling"][one.names[0]]["open_top1"]
    return [
        _shared(one) | {"attack": "chance", "role": "floor"} | lowest,
        _shared(one)
        | {"attack": "real held-out", "role": "ceiling", "n": known["n"]}
        | _judged(one.names, one.scores["ceiling"]),
    ]


ROLES = {"floor": 0, "attack": 1, "ceiling": 2}


def frame(found: Iterable[Scored]) -> pd.DataFrame:
    """One row per score run, one chance and one ceiling row per protocol, in the order in which a table shows them:
    chance, then target by target (undefended first) its floors and its attacks, then the ceiling.

    `target_label` and `attack_label` are names that no two targets of a protocol, no two rows of a target share.
    """
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in found:
        groups[one.protocol].append(one)
    flat = [line for ones in groups.values() for line in [*references(ones[0]), *(one.row for one in ones)]]
    if not flat:
        return pd.DataFrame()
    table = pd.DataFrame(flat)
    parts = {"model": "", "start": "", "training": "", "target_seed": "seed "}
    table.insert(1, "target_label", _labels(table, "defense", parts, {"target": "#"}, "target"))
    parts = {"prior": "from ", "preset": "", "prior_preset": "", "budget": "budget "}
    table.insert(2, "attack_label", _labels(table, "attack", parts, {"seed": "seed ", "score": "#"}, "score"))
    edge = (table["role"] == "ceiling").astype(int) - (table["attack"] == "chance").astype(int)
    place = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "identities": -table["identities"],
            "protocol": table["protocol"],
            "edge": edge,
            "defended": table["defense"] != "none",
            "target": table["target_label"],
            "role": table["role"].map(ROLES),
            "attack": table["attack_label"],
        }
    )
    return table.loc[place.sort_values(list(place.columns), kind="stable").index].reset_index(drop=True)


def _labels(table: pd.DataFrame, name: str, parts: Mapping[str, str], last: Mapping[str, str], owner: str) -> pd.Series:
    """The column `name`, longer where needed: `parts` (column -> words before it) that vary between equal names of a
    protocol are added to all of them; if that still leaves one label to two owners of a target, so are the `last`."""
    labels = table[name].fillna("").astype(str).copy()

    def add(where: Any, column: str, before: str) -> None:
        labels[where] += [f" {before}{_cell(value)}" if _cell(value) else "" for value in table.loc[where, column]]

    for _, group in table.groupby(["protocol", name], sort=False):
        for column, before in parts.items():
            told_apart = table.loc[group.index].assign(label=labels[group.index]).groupby(["target", "label"])[owner]
            if owner == "score" and (told_apart.nunique() <= 1).all():
                break  # no word more than needed
            if group[column].map(_cell).nunique() > 1:
                add(group.index, column, before)
    keys = ["protocol", "label"] if owner == "target" else ["protocol", "target", "label"]
    for column, before in last.items():
        for _, group in table.assign(label=labels).groupby(keys, sort=False):
            if group[owner].nunique() > 1 and group[column].map(_cell).nunique() > 1:
                add(group.index, column, before)
    return labels


def _cell(value: Any) -> str:
    """A cell as text; empty where there is none. pandas turns whole numbers with gaps into floats."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(root: Path, warnings: list[str] | None = None) -> pd.DataFrame:
    """One row per finished score run below a results folder, with the chance and ceiling rows of each protocol.

    Args:
        root: The results folder.
        warnings: Gets one line for each run that is damaged or of another version; such runs are left out.
    """
    return frame(scored(root, warnings))
