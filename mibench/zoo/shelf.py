"""The shelf: a results folder inside the package whose runs were trained, rounded to float16 and measured again.

A run that a plan wants and that stands here is installed: its files are copied into the results folder, digests
checked, instead of being trained. Everything that follows (provenance, `show`, `cite`, checks) finds a finished run.

A run's card (run.json) says besides: `origin.zoo`, its name here, and `origin.rounded`, what was measured before its
weights were rounded; `provenance.command` is what makes it again. The zoo is written by `mibench.stages.shelve`.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mibench.runs import PROTOCOL, Library, Run
from mibench.runs.run import read_json
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import read_bytes

__all__ = ["PREFIX", "SHELF", "Entry", "Shelf", "install", "origin"]

SHELF = Path(__file__).parent / "shelf"
"""Where the runs lie that ship with mibench."""

PREFIX = "zoo:"
"""What a reference to the zoo begins with: `zoo:re`, `zoo:re@1`."""

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Entry:
    """One run of the zoo.

    Args:
        name: What a person calls it: `re`, `stylegan2`.
        run: The run, on the shelf.
        card: Its run.json.
    """

    name: str
    run: Run
    card: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """`re@0`: its name and its seed."""
        return f"{self.name}@{self.run.spec['seed']}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.run.path.iterdir())

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What was measured after rounding; recipes and what belongs to the training are as they were before."""
        return self.run.read("metrics.json")

    def check(self) -> None:
        """Compare the digest of every file with the one it was shelved with.

        Raises:
            UserError: If one is damaged or missing.
        """
        digests, _ = _json(self.run.path / "done")
        for name, digest in digests.items():
            _whole(self.run.path / name, digest)


class Shelf:
    """The runs of the zoo, found by name, or by what a plan wants.

    Args:
        root: The results folder that holds them; what ships with mibench if absent.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = SHELF if root is None else root

    @cached_property
    def labels(self) -> frozenset[str]:
        """`kind/name-id` of every run, without reading any."""
        return frozenset(f"{path.parent.parent.name}/{path.parent.name}" for path in self.root.glob("*/[!.]*/done"))

    @cached_property
    def entries(self) -> list[Entry]:
        """Every run with its card, in the order of their kinds and names.

        Raises:
            UserError: If one is damaged, or of another protocol.
        """
        library = Library(self.root)
        cards = {path: _card(path) for path in library.paths.values()}
        read = [_entry(library, path, card) for path, card in cards.items()]
        return sorted(read, key=lambda entry: (entry.run.kind, entry.name, entry.run.spec["seed"]))

    def find(self, reference: str, seed: int | None = None) -> Entry:
        """The entry of a name; with its lowest seed unless another is asked for.

        Args:
            reference: `re`, `re@1`, or the same after `zoo:`.
            seed: In the place of `@1`.

        Raises:
            UserError: If the zoo has no such name or seed.
        """
        name, _, text = reference.removeprefix(PREFIX).partition("@")
        named = [entry for entry in self.entries if entry.name == name]
        if not named:
            raise unknown("name in the zoo", name, {entry.name for entry in self.entries})
        wanted = text or ("" if seed is None else str(seed))
        chosen = [entry for entry in named if wanted in ("", str(entry.run.spec["seed"]))]
        if not chosen:
            raise unknown(f"seed of {name} in the zoo", wanted, [str(entry.run.spec["seed"]) for entry in named])
        return chosen[0]

    def take(self, reference: str, results: Path) -> Run:
        """The run of a name as a run of a results folder, which executing it installs."""
        return _moved(self.find(reference).run, results)

    def match(self, run: Run) -> Run:
        """What the zoo has in the place of a planned run, which executing it installs; the run itself if it has none.

        Precision apart, the specification must be the same: a network that is ready was trained in its own. That holds
        for the backbone that a target starts from, too; the target that a prior learns from is given.
        """
        parents = {
            role: self.match(one) if isinstance(one, Run) and one.kind == "backbones" else one
            for role, one in run.parents.items()
        }
        for precision in dict.fromkeys((run.spec["precision"], *PRECISIONS)):
            spec = {**run.spec, "precision": precision}
            ready = replace(run, spec=spec, parents=parents, inputs={**run.inputs, "zoo": str(self.root)})
            if ready.label in self.labels:
                return ready
        return run


def origin(run: Run) -> str | None:
    """The shelf from which executing a run installs it; None for a run that is worked out."""
    return run.inputs.get("zoo")


def install(run: Run) -> None:
    """Copy a run from its shelf into its results folder, whole or not at all; within the run's lock.

    Raises:
        UserError: If a file of the zoo is damaged, missing, or of another protocol; if the results cannot be written.
    """
    source = Path(run.inputs["zoo"]) / run.kind / run.path.name
    card = _card(source)
    run.compare(card)
    digests, _ = _json(source / "done")
    with run.writing() as folder:
        for name, digest in digests.items():
            (folder / name).write_bytes(_whole(source / name, digest))
        shutil.copyfile(source / "done", folder / "done")
        run.appear()


def _moved(run: Run, results: Path) -> Run:
    """A run of the shelf, and what it builds on, as runs of a results folder."""
    parents: dict[str, Run | list[Run]] = {
        role: [_moved(one, results) for one in each] if isinstance(each, list) else _moved(each, results)
        for role, each in run.parents.items()
    }
    return replace(run, root=results, parents=parents, inputs={**run.inputs, "zoo": str(run.root)})


def _entry(library: Library, path: Path, card: dict[str, Any]) -> Entry:
    try:
        run = library.load(path)
        return Entry(str(card["origin"]["zoo"]), run, card)
    except (KeyError, TypeError):
        raise _damaged(path / "run.json", "it does not say what it is called here") from None
    except UserError as error:
        raise _damaged(path / "run.json", str(error)) from None


def _card(path: Path) -> dict[str, Any]:
    card, _ = _json(path / "run.json")
    if card.get("protocol") != PROTOCOL:
        raise UserError(
            f"{path.name} in the zoo was made under protocol {card.get('protocol')}, this mibench has {PROTOCOL}: the "
            "same settings give other numbers; install mibench again, or train instead with --no-zoo"
        )
    return card


def _json(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        return read_json(path)
    except UserError as error:
        raise _damaged(path, str(error)) from None


def _whole(path: Path, digest: str) -> bytes:
    """A file's content, if it has this digest."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(path, "its digest is not the one it was shelved with")
    return content


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"the zoo's {path.parent.name}/{path.name} is damaged ({why}): install mibench again, or train instead with "
        "--no-zoo"
    )
