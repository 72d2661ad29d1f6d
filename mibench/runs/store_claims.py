"""Who works on which run, where hosts share an object store: as `claims`, without locks and renames.

A host's workers claim runs among themselves in the folder that stands for the store; between hosts a claim is an object
`claims/<kind>/<id>/<n>` that holds its worker's token, written only where there is none. Whoever holds the highest n
the run. It is taken from a worker whose card, `workers/<token>.json`, has not changed for a minute, by writing n + 1:
one of all who try can. A claim saves double work, nothing else: where two hosts do one run all the same (one
only slept; the store lists late), the first to publish stays. Checkpoints stay on their host, so a run that is taken
over begins anew.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mibench.runs import claims
from mibench.runs.claims import Worker, require_same
from mibench.runs.run import Run
from mibench.runs.store import Store, StoreError

__all__ = ["StoreWorker", "cards"]

EVERY = 3
"""Beats of a worker between two of its cards in the store."""

CARDS, CLAIMS, FAILED = "workers/", "claims/", "failed/"


def cards(store: Store) -> dict[str, dict[str, Any]]:
    """What the workers of all hosts last said of themselves, by token, with `age`: seconds since, by the store's clock
    against this machine's."""
    known = {}
    for key, info in store.below(CARDS).items():
        with suppress(ValueError):
            card = json.loads(store.read(CARDS + key) or b"null")
            if isinstance(card, dict):
                written = info.get("LastModified") or info.get("updated") or info.get("mtime") or info.get("created")
                stamp = getattr(written, "timestamp", None)
                seconds = float(stamp() if stamp else written or time.time())
                known[key.removesuffix(".json")] = card | {"age": max(0.0, time.time() - seconds)}
    return known


class StoreWorker(Worker):
    """A worker of a folder that stands for a store: its claims hold among hosts, too.

    Args:
        root: The folder.
        store: Its store; `refresh` it before each look for work.
    """

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root)
        self.store = store
        self._marks: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> "StoreWorker":
        others = {token: card for token, card in cards(self.store).items() if claims.differs(self.card, card)}
        if others:
            self._watch()
            time.sleep(claims.BEAT * (EVERY + 1))
            self.store.refresh()
            for token, card in others.items():
                if self._changed(token):
                    require_same(self.card, card, f"the worker {card.get('process')} on {card.get('host')}")
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.store.delete(f"{CARDS}{self.token}.json")

    def beat(self) -> None:
        """Here at every beat, in the store at every third and whenever the run changes."""
        super().beat()
        if self.card["beat"] % EVERY == 1 or self.card["run"] != getattr(self, "_told", ""):
            self._told = self.card["run"]
            try:
                self.store.write(f"{CARDS}{self.token}.json", json.dumps(self.card).encode())
            except StoreError:  # away for a while: claims and results will say so
                if self.card["beat"] == 1:
                    raise

    # --- claims

    def _watch(self) -> None:
        for key, info in self.store.below(CARDS).items():
            mark, token = _mark(info), key.removesuffix(".json")
            if token not in self._marks or self._marks[token][0] != mark:
                self._marks[token] = (mark, time.monotonic())

    def _changed(self, token: str) -> bool:
        info = self.store.below(CARDS).get(f"{token}.json")
        return info is not None and _mark(info) != self._marks[token][0]

    def _dead(self, token: str) -> bool:
        """Whether a worker's card is gone or has stood still for so long, as far as this one has watched."""
        self._watch()
        if f"{token}.json" not in self.store.below(CARDS):
            mark, since = self._marks.setdefault(token, ("", time.monotonic()))
            if mark:  # it was there
                self._marks[token] = ("", time.monotonic())
                return False
        else:
            since = self._marks[token][1]
        return time.monotonic() - since > claims.SILENT

    @contextmanager
    def claimed(self, run: Run) -> Iterator[Run | None]:
        """The run to work on, in a directory of this worker's own; None if somebody of any host has it."""
        place = f"{CLAIMS}{run.kind}/{run.id}/"
        numbers = sorted(int(one) for one in self.store.below(place) if one.isdecimal())
        if numbers:
            holder = (self.store.read(f"{place}{numbers[-1]}") or b"").decode(errors="backslashreplace")
            if holder and not self._dead(holder):  # an empty one was given back meanwhile
                if (self.root / claims.FOLDER / f"{holder}.json").is_file():  # of this host: watched here, too
                    self.silent(holder, claims.cards(self.root))
                yield None
                return
        with super().claimed(run) as own:
            mine = f"{place}{numbers[-1] + 1 if numbers else 0}"
            if own is None or not self.store.create(mine, self.token.encode()):
                yield None
                return
            try:
                yield own
            finally:
                for number in numbers:  # of the dead
                    self.store.delete(f"{place}{number}")
                self.store.delete(mine)

    # --- failures

    def failures(self) -> dict[str, str]:
        """The notes of runs that failed on any host: key -> `kind/id`."""
        return {key: key.rpartition("/")[0] for key in self.store.below(FAILED)}

    def tell(self, run: Run, why: str) -> None:
        """Leave word that a run failed, and why."""
        with suppress(StoreError):
            key = f"{FAILED}{run.kind}/{run.id}/{self.token}"
            self.store.write(key, json.dumps({"by": self.token, "why": why}).encode())

    def forget(self, run: Run) -> None:
        """Take the notes on a run away: it is tried again."""
        for key in self.store.below(f"{FAILED}{run.kind}/{run.id}/"):
            self.store.delete(f"{FAILED}{run.kind}/{run.id}/{key}")

    def why(self, key: str) -> str | None:
        """What a note says; None if it was taken away."""
        try:
            return str(json.loads(self.store.read(FAILED + key) or b"")["why"])
        except (ValueError, KeyError, TypeError):
            return None


def _mark(info: Mapping[str, Any]) -> str:
    """What changes whenever an object is written anew."""
    return repr([info.get(name) for name in ("ETag", "etag", "generation", "mtime", "created", "size")])
