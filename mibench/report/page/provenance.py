"""Where each number comes from: the runs, the commands that made them, the digests of their files, what to cite."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from mibench.report import protocol
from mibench.report.result import Result
from mibench.report.show import ROLE, made, specified
from mibench.runs import KINDS, Run, lineage
from mibench.runtime.errors import UserError

__all__ = ["Origin", "RunLine", "again", "cards", "command", "every", "lines", "origins"]


class RunLine(NamedTuple):
    """One run as the page lists it."""

    id: str
    role: str
    name: str
    specified: str
    made: str
    command: str
    digests: list[tuple[str, str]]


class Origin(NamedTuple):
    """What a score builds on: (role, run id) from the score back to the data."""

    score: str
    parts: list[tuple[str, str]]
    command: str


def every(results: Sequence[Result]) -> list[Run]:
    """Every run that some scores build on, each once: those first that others build on."""
    known = lineage(result.run for result in results)
    return sorted(known, key=lambda run: (KINDS.index(run.kind), run.name, run.id))


def command(run: Run, private: bool = True) -> str:
    """The command line that made a run, quoted as a shell reads it; '' where it was not recorded.

    Args:
        run: A finished run.
        private: Whether paths are shown whole, or only their last parts.
    """
    told = str(run.read("run.json").get("provenance", {}).get("command", ""))
    try:
        program, *words = shlex.split(told)
    except ValueError:  # there is none, or an older mibench recorded it without quotes
        program, *words = told.split(" ")
    if not program:
        return ""
    known = PurePath(program).name in ("mibench", "__main__.py")
    words = ["mibench" if known else program, *words]
    return shlex.join(words if private else [_short(word) for word in words])


def _short(word: str) -> str:
    """A path's last part; of `data.root=/home/me/faces` likewise."""
    before, equals, value = word.rpartition("=")
    return f"{before}{equals}{PurePath(value).name}" if value.startswith(("/", "~", ".")) and "/" in value else word


def lines(runs: Iterable[Run], private: bool = True) -> list[RunLine]:
    """The runs with their files' digests; one that cannot be read says so."""
    told = []
    for run in runs:
        try:
            digests = sorted((str(name), str(digest)) for name, digest in run.read("done").items())
            told.append(
                RunLine(run.id, ROLE[run.kind], run.name, specified(run), made(run), command(run, private), digests)
            )
        except UserError as error:
            told.append(RunLine(run.id, ROLE[run.kind], run.name, "", str(error), "", []))
    return told


def origins(results: Iterable[Result], private: bool = True) -> dict[str, Origin]:
    """Of each score, by its id, what it builds on and the command that made it."""
    told = {}
    for result in results:
        prior = [("prior", result.prior.id)] if result.prior is not None else []
        judges = [("evaluation model", run.id) for run in result.evaluators]
        judges += [("verifier", run.id) for run in result.verifiers]
        parts = [("inversion", result.inversion.id), ("target", result.target.id), *prior, *judges]
        told[result.run.id] = Origin(result.run.id, parts, again(result, private))
    return told


def again(result: Result, private: bool = True) -> str:
    """The recorded command of the score; else what scores its inversion again."""
    known = command(result.run, private)
    return known or shlex.join(["mibench", "score", result.inversion.id])


def cards(results: Sequence[Result]) -> dict[str, list[tuple[str, str]]]:
    """Protocol -> what its scores have in common, field by field."""
    told: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        if result.protocol in told and not result.score.card:
            continue
        if result.protocol not in told or len(told[result.protocol]) < 9:
            told[result.protocol] = [*protocol.fields(result).items(), *_more(result)]
    return told


def _more(result: Result) -> list[tuple[str, str]]:
    """The rest of the protocol card."""
    card: Mapping[str, Any] = result.score.card
    reference = card.get("reference", {})
    told = [("headline gate", result.score.gate)]
    if result.verifiers:
        told.append(("verifiers", ", ".join(f"{run.spec['model']} {run.id}" for run in result.verifiers)))
    told += [(key.replace("_", " "), str(value)) for key, value in sorted(reference.items())]
    if "mibench" in card:
        told.append(("protocol version", str(card["mibench"])))
    return told
