"""Finished runs in an object store: `--results s3://bucket/results`.

A run is worked on in a folder of this machine, which stands for the store, and *published* when it is finished: one
object, a tar of its files, named by the whole digest of what was asked, `runs/<kind>/<name>-<digest>.tar`. An object of
such a store appears whole or not at all, and is written only where none is (`If-None-Match: *`), so the first writer
wins and nobody ever sees half a run. One listing says what is finished; parents are brought here when they are needed.
Whatever could not be published stays in the folder and goes with the next command.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mibench.runs.objects import Objects, StoreError
from mibench.runs.run import DIGITS, ELSEWHERE, KINDS, Run, id_of, read_json, unchanged
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, read_bytes
from mibench.runtime.pixels import cache_folder
from mibench.runtime.progress import Reporter

__all__ = ["Store", "StoreError", "attached", "bring_scores", "folder_of", "refuse"]

LAYOUT = 1
"""Of the objects; raised when an older mibench could not read them."""

AT_ONCE = 16
"""Objects that are brought here side by side."""

_OBJECT = re.compile(r"runs/([a-z]+)/([^/]+)-([0-9a-f]{64})\.tar")


class Damaged(StoreError):
    """An object is not what its name says; the others may be."""


class Store(Objects):
    """A store, and the folder of this machine that stands for it.

    Args:
        url: `s3://bucket/folder`, `gs://...`, `memory://...`, `file:///...`.
        folder: The folder; below the user's cache if absent.

    Raises:
        StoreError: If there is no such store, or it cannot be listed.
    """

    def __init__(self, url: str, folder: Path | None = None) -> None:
        super().__init__(url)
        self.folder = (folder or _folder(self.url, self.fs)).absolute()
        self.known: dict[str, str] = {}
        self.unsent: dict[str, str] = {}
        self._whole: set[str] = set()

    # --- what is there

    def refresh(self) -> None:
        """List the store: what is finished, and what workers have put there.

        Raises:
            StoreError: If it cannot be listed.
        """
        self.survey()
        known = {}
        for key in self.objects:
            parts = _OBJECT.fullmatch(key)
            if parts and parts[1] in KINDS:
                known[f"{parts[1]}/{parts[2]}-{parts[3][:DIGITS]}"] = parts[3]
        self.known |= known  # a listing may lag behind what was once seen; a published run is never taken back

    def has(self, run: Run) -> bool:
        """Whether the run was finished by anybody, as of the last look."""
        return self.known.get(run.label) == run.digest

    def look(self, run: Run) -> None:
        """Ask for one run by name: a listing may be older than its end."""
        key = self._key(run.label, run.digest)
        if self.exists(key):
            self.known[run.label] = run.digest

    def begin(self) -> None:
        """Before work is begun that is to be published: can the store be written, and only where nothing is?

        Raises:
            StoreError: If not, or if its objects are of another layout.
        """
        mark = json.dumps({"layout": LAYOUT, "what": "finished runs of mibench"}).encode()
        if self.create("store.json", mark) and self.create("store.json", mark):
            raise StoreError(
                f"{self.url} overwrites what is there though asked not to (If-None-Match), so two workers could spoil "
                "each other's results; use a store that knows conditional writes: AWS S3, Google Cloud, a new MinIO"
            )
        try:
            layout = json.loads(self.read("store.json") or b"null")["layout"]
        except (ValueError, KeyError, TypeError):
            layout = None
        if layout != LAYOUT:
            raise StoreError(
                f"{self.url} holds runs in layout {layout}, this mibench writes {LAYOUT}; use the mibench that made it "
                "or another place"
            )

    # --- bringing

    def bring(self, runs: Iterable[Run]) -> None:
        """Make runs and all they build on files of this machine, where they are published and not here.

        Raises:
            StoreError: If one cannot be read, or is not what its name says.
        """
        wanted: dict[str, Run] = {}

        def visit(run: Run) -> None:
            if run.label in self._whole or run.label in wanted:
                return
            wanted[run.label] = run
            for parent in run.ancestors():
                visit(parent)

        for run in runs:
            visit(run)
        for error in self.bring_labels([label for label, run in wanted.items() if self.has(run)]):
            raise error
        self._whole |= {label for label, run in wanted.items() if (run.path / "done").is_file()}

    def bring_labels(self, labels: Iterable[str]) -> list[UserError]:
        """The same by `kind/name-id`; those that are already here are taken to have brought what they build on.

        Returns:
            What is damaged and was left out.

        Raises:
            StoreError: If the store cannot be read.
        """
        damaged: dict[str, UserError] = {}
        missing = self._missing(labels)
        while missing:
            with ThreadPoolExecutor(min(AT_ONCE, len(missing))) as pool:
                bringing = {label: pool.submit(self._bring, label) for label in missing}
                for label, brought in bringing.items():
                    try:
                        brought.result()
                    except Damaged as error:
                        damaged[label] = error
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
            ids = {id for label in missing if label not in damaged for id in self._builds_on(label)}
            above = (label for label, digest in self.known.items() if digest[:DIGITS] in ids and label not in damaged)
            missing = self._missing(above)
        return list(damaged.values())

    def _missing(self, labels: Iterable[str]) -> list[str]:
        return [label for label in labels if not (self.folder / label / "done").is_file()]

    def _builds_on(self, label: str) -> list[str]:
        parents = read_json(self.folder / label / "run.json")[0].get("parents", {})
        return [id for ids in parents.values() for id in (ids if isinstance(ids, list) else [ids])]

    def _bring(self, label: str) -> None:
        place = self.folder / label
        with self._fetched(label) as scratch:
            if place.exists() and not (place / "done").is_file():  # what a deletion has left
                shutil.rmtree(place)
            try:
                scratch.rename(place)
            except OSError:
                if not (place / "done").is_file():  # or another process of this machine was faster
                    raise

    @contextmanager
    def _fetched(self, label: str) -> Iterator[Path]:
        """A published run in a hidden directory beside where it belongs, every byte looked at."""
        digest = self.known[label]
        place = self.folder / label
        scratch = place.with_name(f".bring-{place.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            self.get(self._key(label, digest), scratch / ".tar")
            self._unpack(scratch, label, digest)
            yield scratch
        except OSError as error:
            raise StoreError(
                f"cannot bring {label} from {self.url} to {self.folder}: {error.strerror or error}; make room there or "
                "set XDG_CACHE_HOME to another disk"
            ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _unpack(self, scratch: Path, label: str, digest: str) -> None:
        """Refuse what is not byte by byte the run that its name promises."""
        key = self._key(label, digest)
        damaged = Damaged(f"{self.url}/{key} is damaged; delete that object and run the command that made it again")
        try:
            with tarfile.open(scratch / ".tar", "r:") as tar:
                for member in tar:
                    if not member.isreg() or "/" in member.name or member.name.startswith("."):
                        raise damaged
                    source = tar.extractfile(member)
                    assert source is not None
                    with (scratch / member.name).open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
        except (tarfile.TarError, EOFError):
            raise damaged from None
        (scratch / ".tar").unlink()
        try:
            stored = json.loads(read_bytes(scratch / "done"))
            card = json.loads(read_bytes(scratch / "run.json"))
            whole = {path.name for path in scratch.iterdir()} == {"done", *stored}
            same = whole and all(_sha256(scratch / name) == wanted for name, wanted in stored.items())
            if not same or card["digest"] != digest or f"{card['kind']}/{card['name']}-{card['id']}" != label:
                raise damaged
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise damaged from None

    # --- publishing

    def publish(self, run: Run, say: Callable[[str], None]) -> None:
        """Publish a finished run; where that fails it stays here, and `settle` tries again."""
        try:
            self._publish(run.label, run.digest)
            self.unsent.pop(run.label, None)
        except StoreError as error:
            self.unsent[run.label] = str(error)
            say(f"note: {run.label} is finished and kept in {self.folder}, but not published yet: {error}")

    def _publish(self, label: str, digest: str) -> None:
        place = self.folder / label
        outbox = self.folder / ".outbox"
        outbox.mkdir(parents=True, exist_ok=True)
        parcel = outbox / f"{place.name}.{os.getpid()}.tar"
        try:
            _pack(place, parcel)
            first = self.create(self._key(label, digest), parcel)
            self.known[label] = digest
            if not first:
                self._yield(label)
        except OSError as error:
            raise StoreError(f"cannot pack {place}: {error.strerror or error}; make room there") from None
        finally:
            parcel.unlink(missing_ok=True)

    def _yield(self, label: str) -> None:
        """Somebody published the run first: theirs is the run, here too, so that all hosts build on the same files."""
        place = self.folder / label
        with self._fetched(label) as theirs:
            if read_bytes(theirs / "done") == read_bytes(place / "done"):
                return
            mine = place.with_name(f".mine-{place.name}.{os.getpid()}")
            place.rename(mine)
            theirs.rename(place)
            shutil.rmtree(mine, ignore_errors=True)

    def unpublished(self) -> dict[str, str]:
        """The finished runs of the folder that the store has not: label -> digest."""
        left = {}
        for kind in KINDS:
            for done in (self.folder / kind).glob("[!.]*/done"):
                label = f"{kind}/{done.parent.name}"
                if label not in self.known:
                    with suppress(UserError):  # a damaged one is named by whoever needs it
                        card = read_json(done.parent / "run.json")[0]
                        if str(card.get("digest")).startswith(id_of(done.parent.name)):
                            left[label] = str(card["digest"])
        return left

    def settle(self, reporter: Reporter) -> None:
        """Publish what was finished here and could not be published when it was.

        Raises:
            StoreError: If it cannot be published now either.
        """
        self._sweep()
        left = self.unpublished()
        for place, (label, digest) in enumerate(
            sorted(left.items(), key=lambda one: KINDS.index(one[0].split("/")[0]))
        ):
            try:
                self._publish(label, digest)
            except StoreError as error:
                raise StoreError(
                    f"{len(left) - place} finished run(s) could not be published and are kept in {self.folder}; run "
                    f"the same command again to publish them ({error})"
                ) from None
            except UserError as error:  # a file of it was changed: nobody is to have it
                reporter.say(f"note: not published: {error}")
                continue
            reporter.say(f"published {label}")
        self.unsent.clear()

    def _sweep(self) -> None:
        """Delete what processes of this machine have left that were killed while they brought or published."""
        for path in [
            *self.folder.glob(".outbox/*.tar"),
            *self.folder.glob("*/.bring-*"),
            *self.folder.glob("*/.mine-*"),
        ]:
            try:
                os.kill(int(path.name.removesuffix(".tar").rpartition(".")[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            except (OSError, ValueError):
                continue  # somebody else's

    def _key(self, label: str, digest: str) -> str:
        kind, _, name = label.partition("/")
        return f"runs/{kind}/{name.rpartition('-')[0]}-{digest}.tar"


def _folder(url: str, fs: Any) -> Path:
    """One for each store: the same URL of another server is another store."""
    server = (
        getattr(fs, "endpoint_url", None) or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    digest = hashlib.sha256(f"{url} {server or ''}".encode()).hexdigest()[:12]
    tail = re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2])[-40:].strip("-.")
    return cache_folder() / "stores" / f"{tail}-{digest}"


def _pack(place: Path, parcel: Path) -> None:
    """The files that a run was finished with, in one order and without owners and times: equal runs, equal bytes.

    Raises:
        UserError: If one was changed since.
    """
    names = sorted(read_json(place / "done")[0])
    for name in names:
        unchanged(place / name)
    with tarfile.open(parcel, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in [*names, "done"]:
            member = tarfile.TarInfo(name)
            with open_file(place / name) as file:
                member.size = os.fstat(file.fileno()).st_size
                tar.addfile(member, file)


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def attached(root: Path) -> Store | None:
    """The store for which a folder of this process stands."""
    store = ELSEWHERE.get(root)
    return store if isinstance(store, Store) else None


def folder_of(results: str | Path) -> Path:
    """The folder to work in for what stands behind `--results`: itself, or the one that stands for a store.

    Raises:
        UserError: If there is no such store.
    """
    text = str(results)
    if "://" not in text:
        return Path(results)
    for store in list(ELSEWHERE.values()):
        if isinstance(store, Store) and store.url == text.rstrip("/"):
            return store.folder
    store = Store(text)
    store.refresh()
    ELSEWHERE[store.folder] = store
    return store.folder


def bring_scores(root: Path) -> list[str]:
    """Put every score of a store, and what they build on, into the folder that stands for it; a line for each that is
    damaged there."""
    store = attached(root)
    if store is None:
        return []
    return [str(error) for error in store.bring_labels([one for one in store.known if one.startswith("scores/")])]


def refuse(root: Path, what: str, instead: str) -> None:
    """Refuse what cannot be done in a store.

    Raises:
        UserError: If a folder stands for one.
    """
    if (store := attached(root)) is not None:
        raise UserError(f"{what} is not done in the store {store.url}: {instead}")
