"""The reference results that ship with mibench, and one's own scores of the same protocol among them.

The rows are those of `results/reference/*/tables.csv`, to the last digit: `python -m mibench.report.leaderboard
results/reference` copies the columns that a leaderboard needs into the package, and a test holds the two equal.

Scores of another protocol are never in the same list. Rows are sorted by likeness; a rank is given as the ranks that
the intervals leave open: one more than the rows whose whole interval lies above, up to all rows but those whose whole
interval lies below. Rows that share ranks are tied. That is a cautious rule, no test: the same people were attacked,
and a paired difference (`mibench diff`) can be clear where two intervals overlap.
"""

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from mibench.report import frame
from mibench.report.protocol import differing
from mibench.report.result import Result
from mibench.runtime.errors import UserError

__all__ = ["COLUMNS", "Board", "Entry", "Leaderboard", "leaderboard", "references", "ship"]

PROTOCOL = (
    *("protocol", "dataset", "dataset_settings", "fingerprint", "identities", "classes"),
    *("evaluators", "verifiers", "gate"),
)
"""What all rows of a protocol share."""

NUMBERS = (
    *("n", "likeness", "likeness_low", "likeness_high"),
    *("natural_accuracy", "natural_accuracy_low", "natural_accuracy_high"),
)

COLUMNS = (*PROTOCOL, "target_label", "attack_label", "role", "access", "prior", "score", *NUMBERS)
"""Of the shipped files."""

WORDS = {
    "dataset": "data set",
    "dataset_settings": "settings of the data",
    "fingerprint": "images (fingerprint)",
    "identities": "identities attacked",
    "classes": "classes",
    "evaluators": "evaluation models",
    "verifiers": "verifiers",
    "gate": "gate",
}


@dataclass(frozen=True)
class Entry:
    """One row of a leaderboard.

    Args:
        source: The reference's name; empty if it is one's own.
        values: The columns; numbers as floats, None where there is none.
    """

    source: str
    values: Mapping[str, Any]

    @property
    def own(self) -> bool:
        """Whether it comes from one's own results."""
        return not self.source

    @property
    def ranked(self) -> bool:
        """Attacks and floors have ranks; real photographs have none."""
        return self.values["role"] in ("attack", "floor")


@dataclass(frozen=True)
class Board:
    """All rows of one protocol, by likeness, highest first; equal ones attacks first, then by name.

    Args:
        entries: The rows.
    """

    entries: Sequence[Entry]

    @property
    def about(self) -> Mapping[str, Any]:
        """What all rows share."""
        return {name: self.entries[0].values[name] for name in PROTOCOL}

    @property
    def sources(self) -> list[str]:
        """Names of the references."""
        return list(dict.fromkeys(entry.source for entry in self.entries if entry.source))

    @property
    def own(self) -> bool:
        """Whether a row is one's own."""
        return any(entry.own for entry in self.entries)

    def ranks(self, entry: Entry) -> tuple[int, int] | None:
        """The best and the worst rank that the intervals leave open; None for real photographs."""
        if not entry.ranked:
            return None
        others = [one.values for one in self.entries if one.ranked]
        above = sum(one["likeness_low"] > entry.values["likeness_high"] for one in others)
        below = sum(one["likeness_high"] < entry.values["likeness_low"] for one in others)
        return 1 + above, len(others) - below


@dataclass(frozen=True)
class Leaderboard:
    """The references, with one's own scores.

    Args:
        references: All shipped rows.
        own: One's own rows.
    """

    references: Sequence[Entry]
    own: Sequence[Entry]

    @cached_property
    def boards(self) -> list[Board]:
        """One for each protocol of the references; those with rows of one's own first."""
        protocols = dict.fromkeys(entry.values["protocol"] for entry in self.references)
        boards = [Board(_sorted([*self.references, *self.own], protocol)) for protocol in protocols]
        return sorted(boards, key=lambda board: not board.own)

    @cached_property
    def apart(self) -> list[dict[str, Any]]:
        """One's own protocols that no reference has: how many scores, and in what they differ from the nearest."""
        known = {board.about["protocol"]: board.about for board in self.boards}
        counts: dict[str, list[Entry]] = {}
        for entry in self.own:
            if entry.values["protocol"] not in known and entry.ranked:
                counts.setdefault(entry.values["protocol"], []).append(entry)
        return [
            {"protocol": protocol, "scores": len(entries), "reason": _reason(entries[0], list(known.values()))}
            for protocol, entries in counts.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Every row with its ranks, whose it is, and what is not comparable."""
        return {
            "boards": [
                dict(board.about)
                | {
                    "rows": [
                        {"source": entry.source or None, "own": entry.own, "ranks": board.ranks(entry)}
                        | {name: entry.values[name] for name in COLUMNS if name not in PROTOCOL}
                        for entry in board.entries
                    ]
                }
                for board in self.boards
            ],
            "not_comparable": self.apart,
        }


def _sorted(entries: Iterable[Entry], protocol: str) -> list[Entry]:
    order = ("attack", "floor", "ceiling")
    own = [entry for entry in entries if entry.values["protocol"] == protocol]
    return sorted(
        own,
        key=lambda entry: (
            -entry.values["likeness"],
            order.index(entry.values["role"]),
            entry.values["target_label"],
            entry.values["attack_label"],
            entry.own,
        ),
    )


def _reason(entry: Entry, boards: Sequence[Mapping[str, Any]]) -> str:
    """In what a row differs from the reference protocol that is most like it, of the same data set if there is one."""
    mine = _texts(entry.values)
    theirs = min(map(_texts, boards), key=lambda one: (one["dataset"] != mine["dataset"], len(differing(one, mine))))
    reasons = [f"{WORDS[name]} ({theirs[name] or 'defaults'}; here {mine[name] or 'defaults'})" for name in WORDS]
    shown = [reason for name, reason in zip(WORDS, reasons, strict=True) if name in differing(theirs, mine)]
    if not shown:  # the protocol goes by their runs, of which the references carry the names alone
        shown = ["evaluation models or verifiers of these names that were trained otherwise, or other people attacked"]
    return f"not {theirs['protocol']}: {', '.join(shown)}"


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: str(values[name]) for name in PROTOCOL}
    return texts | {"fingerprint": texts["fingerprint"][:8]}


def leaderboard(results: Sequence[Result] = ()) -> Leaderboard:
    """The shipped references, and some scores of one's own among those of their protocol."""
    table = frame.scores(results)
    rows = table.astype(object).where(table.notna(), None).to_dict("records") if len(table) else []
    own = [_row(row) for row in rows if row["role"] != "ceiling"]  # type: ignore[arg-type]
    return Leaderboard(references(), [Entry("", row) for row in own if row["likeness"] is not None])


def references() -> list[Entry]:
    """All rows that ship with mibench; chance, which has no likeness, is none of them.

    Raises:
        UserError: If the package lacks them.
    """
    shipped = sorted(
        (one for one in files("mibench.report").joinpath("reference").iterdir() if one.name.endswith(".csv")),
        key=lambda one: one.name,
    )
    entries = []
    for file in shipped:
        lines = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
        entries += [Entry(file.name.removesuffix(".csv"), _row(row)) for row in lines]
    if not entries:
        raise UserError("this installation of mibench lacks its reference results; install it again")
    return entries


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, numbers as floats."""
    flat: dict[str, Any] = {name: "" if row[name] is None else row[name] for name in COLUMNS}
    flat |= {name: float(flat[name]) if flat[name] != "" else None for name in NUMBERS}
    return flat | {name: int(float(flat[name])) for name in ("identities", "classes")}


def ship(reference: Path, package: Path = Path(__file__).parent / "reference") -> list[Path]:
    """Copy what a leaderboard needs of every `tables.csv` into the package, digit by digit.

    Args:
        reference: `results/reference` of the repository.
        package: Where the copies go, each under the name of its folder.

    Returns:
        The files.

    Raises:
        UserError: If there is no table.
    """
    tables = sorted(reference.glob("*/tables.csv"))
    if not tables:
        raise UserError(f"{reference} has no */tables.csv; give results/reference of the repository")
    package.mkdir(exist_ok=True)
    copies = []
    for table in tables:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["likeness"]]
        copies.append(package / f"{table.parent.name}.csv")
        with copies[-1].open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return copies


if __name__ == "__main__":
    print(*ship(Path(sys.argv[1])), sep="\n")
