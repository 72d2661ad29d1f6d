"""The finished runs of a results folder, found by id, name or path."""

import os
from pathlib import Path

from mibench.runs.run import ELSEWHERE, KINDS, Run, id_of, keep, of_this_protocol, other_protocol, read_json, unchanged
from mibench.runtime.errors import UserError, unknown

__all__ = ["Library", "OtherProtocol", "damaged", "find", "finished", "inversion_of"]


class OtherProtocol(UserError):
    """A run that another protocol made.

    Args:
        path: Its directory.
        why: What to say of it.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} was {why}")
        self.path, self.why = path, why


class Library:
    """The finished runs of a results folder as they were when it was opened; each is read once.

    Args:
        root: The results folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        kinds = reversed(KINDS)  # a run that is finished meanwhile has its parents before it
        self.paths = {path.name: path for kind in kinds for path in _whole(root / kind)}
        self.store = ELSEWHERE.get(root)  # what is only there is brought here when it is read
        if self.store is not None:
            self.paths |= {label.partition("/")[2]: root / label for label in self.store.known}
        self.by_id: dict[str, list[Path]] = {}
        for name, path in self.paths.items():
            self.by_id.setdefault(id_of(name), []).append(path)
        self.runs: dict[Path, Run] = {}

    def find(self, reference: str) -> Run:
        """A run by its id, the beginning of it, its directory's name or its path.

        Raises:
            UserError: If nothing or more than one run matches.
        """
        wanted = Path(reference).name
        exact = [self.paths[wanted]] if wanted in self.paths else self.by_id.get(wanted, [])
        matches = exact or [path for name, path in self.paths.items() if wanted and id_of(name).startswith(wanted)]
        if len(matches) > 1:
            raise UserError(f"'{reference}' matches {len(matches)} runs: {', '.join(path.name for path in matches)}")
        if not matches:
            raise unknown("run", reference, self.paths, f"ls {self.root}/*")
        return self.load(matches[0])

    def load(self, path: Path) -> Run:
        """The run in a directory, its parents found by id.

        Raises:
            UserError: If it is not what its name says.
        """
        if path not in self.runs:
            self.runs[path] = self._read(path)
        return self.runs[path]

    def _read(self, path: Path) -> Run:
        for error in self.bring([path]):
            raise error
        card, content = read_json(path / "run.json")
        if foreign := other_protocol(card):
            raise OtherProtocol(path, foreign)
        try:
            parents: dict[str, Run | list[Run]] = {
                role: [self._parent(path, one) for one in ids] if isinstance(ids, list) else self._parent(path, ids)
                for role, ids in card["parents"].items()
            }
            run = Run(self.root, card["kind"], card["name"], dict(card["spec"]), parents, dict(card["inputs"]))
            claimed = card["id"]
            there = run.path  # a kind that is no text is found here
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{path / 'run.json'} is not a mibench run; delete that directory and run it again"
            ) from None
        if run.id != claimed or there != path:
            raise UserError(
                f"{path} does not hold what its name says (its specification is {run.id}): it was edited or renamed; "
                "delete it and run it again"
            )
        run.compare(card)
        unchanged(there / "run.json", content, there)
        keep(there, "run.json", card)
        return run

    def bring(self, paths: list[Path]) -> list[UserError]:
        """Put runs that lie in a store only into the folder; returns what is damaged there."""
        if self.store is None:
            return []
        labels = (f"{path.parent.name}/{path.name}" for path in paths)
        return self.store.bring_labels([label for label in labels if label in self.store.known])

    def _parent(self, path: Path, id: str) -> Run:
        """The run of an earlier kind that the run in a directory builds on."""
        before = KINDS[: KINDS.index(path.parent.name)]
        matches = [one for one in self.by_id.get(id, []) if one.parent.name in before]
        if not matches:
            raise UserError(f"unknown run '{id}', on which {path} builds; run the command that made it again")
        return self.load(matches[0])


def _whole(folder: Path) -> list[Path]:
    """The directories of a folder that hold `done`."""
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:  # there is none of this kind
        return []
    return [folder / name for name in names if os.path.exists(f"{folder}/{name}/done")]


def finished(root: Path, kind: str) -> list[Run]:
    """All whole runs of a kind by name; those of other protocols and damaged ones (`damaged`) are left out."""
    return _read_all(root, kind)[0]


def damaged(root: Path, kind: str) -> list[str]:
    """A line for each run of a kind that cannot be read, of this protocol or none: no reason not to use the others."""
    return _read_all(root, kind)[1]


def _read_all(root: Path, kind: str) -> tuple[list[Run], list[str]]:
    library = Library(root)
    whole, lines = [], []
    paths = sorted(path for path in library.paths.values() if path.parent.name == kind)
    library.bring(paths)  # side by side
    for path in paths:
        try:
            for error in library.bring([path]):
                raise error
            if of_this_protocol(path):
                whole.append(library.load(path))
        except UserError as error:
            lines.append(str(error))
    return whole, lines


def find(root: Path, reference: str) -> Run:
    """A finished run by its id, the beginning of it, its directory's name or its path.

    Raises:
        UserError: If nothing or more than one run matches.
    """
    return Library(root).find(reference)


def inversion_of(run: Run, command: str) -> Run:
    """The inversion that is meant: the run itself, or what a score judged.

    Args:
        run: What the user named.
        command: Who asks, for the error.

    Raises:
        UserError: If it is neither.
    """
    inversion = run.parents["inversion"] if run.kind == "scores" else run
    if not isinstance(inversion, Run) or inversion.kind != "inversions":
        raise UserError(f"{run.label} has no reconstructions; mibench {command} takes an inversion or a score")
    return inversion
