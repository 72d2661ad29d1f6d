"""`mibench leaderboard` in the terminal: own rows are always shown, nothing that matters is cut."""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mibench.metrics import Unit
from mibench.report.leaderboard import Board, Entry, Leaderboard

__all__ = ["MOST", "OWN", "render"]

MOST = 15
"""Rows of a list that are shown besides one's own."""

OWN = "*"

NOTE = (
    "likeness %, natural accuracy % [95% interval]. rank: the ranks that the intervals leave open; rows that share "
    "some are tied, which is no test (mibench diff compares two runs, person by person). floor: no inversion at all. "
    f"{OWN} yours. Rows of one list share images, evaluation models, verifiers and people; of two lists none compare."
)


def render(board: Leaderboard, folder: Path, full: bool = False) -> RenderableType:
    """Every protocol's rows by likeness; then one's own that compare with none, and why.

    Args:
        board: What is shown.
        folder: Where one's own rows come from.
        full: Show every row.
    """
    parts: list[RenderableType] = []
    matching = [one for one in board.boards if one.own]
    for one in matching or board.boards:
        parts += [*_board(one, full), Text()]
    hidden = [one for one in board.boards if one not in matching] if matching else []
    if hidden and full:
        for one in hidden:
            parts += [*_board(one, full), Text()]
    elif hidden:
        names = ", ".join(f"{'/'.join(one.sources)} ({one.about['protocol']})" for one in hidden)
        parts += [Text(f"References of other protocols: {names}; --full shows them.", style="dim")]
    if not board.own:
        parts.append(Text(f"{folder} has no finished scores: these are the references alone.", style="yellow"))
    for line in board.apart:
        count = f"{line['scores']} {'score' if line['scores'] == 1 else 'scores'}"
        text = f"not comparable: {count} of yours, protocol {line['protocol']}: {line['reason']}"
        parts.append(Text(text, style="yellow"))
    return Group(*parts, Text(NOTE, style="dim"))


def _board(board: Board, full: bool) -> list[RenderableType]:
    about = board.about
    settings = f" ({about['dataset_settings']})" if about["dataset_settings"] else ""
    title = (
        f"{'/'.join(board.sources)}: {about['dataset']}{settings}, {about['identities']} people, protocol "
        f"{about['protocol']}"
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rank", no_wrap=True)
    table.add_column("attack", overflow="fold")
    table.add_column("target", overflow="fold")
    table.add_column("likeness", justify="right", no_wrap=True)
    table.add_column("natural", justify="right", no_wrap=True)
    shown = [entry for place, entry in enumerate(board.entries) if full or place < MOST or _kept(entry)]
    for entry in shown:
        table.add_row(*_cells(board, entry), style=_style(entry))
    rest = len(board.entries) - len(shown)
    more = [Text(f"and {rest} more rows: --full", style="dim")] if rest else []
    return [Text(title, style="bold"), table, *more]


def _kept(entry: Entry) -> bool:
    return entry.own or not entry.ranked


def _style(entry: Entry) -> str:
    return "bold" if entry.own else {"floor": "dim", "ceiling": "italic"}.get(entry.values["role"], "")


def _cells(board: Board, entry: Entry) -> list[str]:
    ranks, values = board.ranks(entry), entry.values
    rank = "" if ranks is None else str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"
    floor = " (floor)" if values["role"] == "floor" else ""
    rates = [
        Unit.SHARE.interval(values[name], values[f"{name}_low"], values[f"{name}_high"], 0)
        for name in ("likeness", "natural_accuracy")
    ]
    return [rank + (OWN if entry.own else ""), f"{values['attack_label']}{floor}", values["target_label"], *rates]
