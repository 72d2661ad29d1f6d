"""Pictures decoded once: a folder with one memory-mapped file of pixels and labels, named by what it holds.

    prepared/<name>-<choices>-<content>/pixels.safetensors     uint8, n x c x s x s for each part, and its labels
                                        pack.json              what it was made of
                                        names.txt              part and name of every picture, in order

`choices` hashes how the pictures are cut and split, `content` the pixels and labels. While it is made the folder has a
hidden name and a journal of the jobs that are done; a killed preparation goes on where it was, and the last step is one
rename. A pack is all that training and attacks need: the authors' files can go, or lie on another machine.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from mibench.core import Split
from mibench.data.published.crops import Crop
from mibench.data.published.stores import open_store
from mibench.data.published.worker import Job, Picture, Result, decode
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_lock, read_text, write_json
from mibench.runtime.pixels import mapped
from mibench.runtime.progress import Reporter

__all__ = ["Pack", "Part", "check", "find", "prepare"]

_FORMAT = 1
_JOB = 128
"""Pictures of one job: what a kill costs each process."""

_FEW = 512
"""So many pictures are decoded sooner than processes start."""


@dataclass(frozen=True)
class Part:
    """Some pictures of one store, with a label each.

    Args:
        store: Where they lie.
        crop: What is made of each.
        pictures: In order.
        labels: One each; -1 is unknown.
    """

    store: Path
    crop: Crop
    pictures: Sequence[Picture]
    labels: Sequence[int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(pictures, channels, size, size)."""
        return len(self.pictures), 3 if self.crop.colour else 1, self.crop.size, self.crop.size


@dataclass(frozen=True)
class Pack:
    """What was prepared.

    Args:
        place: Its folder.
        about: pack.json.
    """

    place: Path
    about: Mapping[str, Any]

    def digest(self, *parts: str) -> str:
        """A hash over the pixels and labels of some parts; of all where none is named."""
        return _digest({name: self.about["digests"][name] for name in parts or self.about["digests"]})

    def has(self, part: str) -> bool:
        """Whether there is such a part."""
        return part in self.about["parts"]

    def part(self, name: str) -> Split:
        """Pictures and labels, mapped from the file: never write to them.

        Raises:
            UserError: The file is damaged.
        """
        try:
            tensors, _ = mapped(self.place / "pixels.safetensors")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.place} is damaged ({error}); remove it and prepare the data again") from None
        labels = torch.from_numpy(tensors[f"{name}.labels"].numpy().view("<i4")[:, 0].astype(np.int64))
        return Split(tensors[name], labels)

    def verify(self) -> None:
        """Read it all and compare the hashes.

        Raises:
            UserError: It changed since it was made.
        """
        if _digests(self.place / "pixels.safetensors") != self.about["digests"]:
            raise UserError(f"{self.place} changed since it was made: remove it and prepare the data again")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _prefix(name: str, choices: Mapping[str, Any]) -> str:
    return f"{name}-{_digest([_FORMAT, choices])[:8]}"


def find(folder: Path, name: str, choices: Mapping[str, Any]) -> Pack | None:
    """The pack of these choices, if it was prepared.

    Raises:
        UserError: Its pack.json cannot be read.
    """
    for place in sorted(folder.glob(f"{_prefix(name, choices)}-*")):
        try:
            return Pack(place, json.loads(read_text(place / "pack.json")))
        except (OSError, ValueError) as error:
            raise UserError(f"{place} is damaged ({error}); remove it and prepare the data again") from None
    return None


def prepare(
    folder: Path,
    name: str,
    choices: Mapping[str, Any],
    parts: Mapping[str, Part],
    notes: Mapping[str, Any],
    reporter: Reporter,
    processes: int = 0,
) -> Pack:
    """Decode what is not decoded yet.

    Args:
        folder: Of all packs.
        name: Of the data set.
        choices: How pictures are cut and split, as JSON values.
        parts: What to decode.
        notes: What else to keep in pack.json.
        reporter: Is told how far it is.
        processes: How many work at it; 0 is one for each core this process may use.

    Raises:
        UserError: A picture that is listed and not there, or that cannot be decoded: how many and which; too little
            disk; another process is at it.
    """
    inputs = check(parts)
    made = find(folder, name, choices)
    if made is not None and made.about["inputs"] == inputs:
        return made
    place = folder / f".{_prefix(name, choices)}-{inputs[:8]}.partial"
    header, offsets = _header(parts)
    size = len(header) + sum(prod(part.shape) + 4 * len(part.pictures) for part in parts.values())
    _make_room(place, size)
    with _alone(place, name):
        file = place / "pixels.safetensors"
        if not file.exists() or file.stat().st_size != size:
            _allocate(file, size, header, parts, offsets)
        results = _decode(place, file, parts, offsets, name, reporter, processes)
        _refuse_bad(results, parts, name)
        faceless = [one for result in results for one in result.faceless]
        if faceless:
            reporter.say(
                f"{len(faceless)} pictures have no face that MTCNN finds; their centre is taken: {faceless[0]}, ..."
            )
        digests = _digests(file)
        content = _digest(digests)
        about = {
            "format": _FORMAT,
            "choices": dict(choices),
            "inputs": inputs,
            "sources": hashlib.sha256(b"".join(h for result in results for h in result.hashes)).hexdigest(),
            "content": content,
            "digests": digests,
            "parts": {key: list(part.shape) for key, part in parts.items()},
            "notes": {**notes, "faceless": len(faceless)},
        }
        lines = [f"{key}\t{picture.name}\n" for key, part in parts.items() for picture in part.pictures]
        (place / "names.txt").write_text("".join(lines), encoding="utf-8")
        write_json(place / "pack.json", about)
        final = folder / f"{_prefix(name, choices)}-{content[:12]}"
        if final.exists():  # other files, the same pixels
            shutil.rmtree(final)
        place.rename(final)
    for left in ("lock", "done.jsonl"):
        (final / left).unlink(missing_ok=True)
    for old in folder.glob(f"{_prefix(name, choices)}-*"):
        if old != final:
            shutil.rmtree(old)
    for half in folder.glob(f".{_prefix(name, choices)}-*.partial"):  # of files that have changed since
        shutil.rmtree(half, ignore_errors=True)
    return Pack(final, about)


def check(parts: Mapping[str, Part]) -> str:
    """See that every picture is there and of the size that its crop is for; nothing is decoded.

    Returns:
        A hash of which files, how large and how old, make which rows.

    Raises:
        UserError: How many are missing, or which size was expected.
    """
    inputs = _inputs(parts)
    _probe(parts)
    return inputs


def _inputs(parts: Mapping[str, Part]) -> str:
    """A hash of which files, how large and how old, make which rows; that all of them are there."""
    digest = hashlib.sha256()
    for key, part in parts.items():
        sizes = open_store(part.store).sizes()
        missing = [picture.name for picture in part.pictures if picture.name not in sizes]
        if missing:
            raise UserError(
                f"{part.store} lacks {len(missing):,} of {len(part.pictures):,} pictures of the {key} part, the first "
                f"is {missing[0]}: it was not unpacked or fetched to the end; do that again"
            )
        digest.update(json.dumps([key, part.crop.spec()]).encode())
        for picture, label in zip(part.pictures, part.labels, strict=True):
            digest.update(repr((picture.name, picture.box, picture.matrix, label, sizes[picture.name])).encode())
    return digest.hexdigest()


def _probe(parts: Mapping[str, Part]) -> None:
    """Refuse pictures of another size than the crop is for by the first one that opens, before any is decoded."""
    for key, part in parts.items():
        crop = part.crop
        if crop.expects == (0, 0) or crop.first:
            continue
        name, size = _first_size(part)
        if size is not None and size != crop.expects:
            raise UserError(
                f"{part.store}/{name} ({key}) has {size[0]} x {size[1]} pixels, this crop is for {crop.expects[0]} x "
                f"{crop.expects[1]}: it is another version of the data set; fetch the one that `mibench data prepare "
                "NAME --dry-run` lists, or choose the crop that is made for it"
            )


def _first_size(part: Part) -> tuple[str, tuple[int, int] | None]:
    """The first picture that opens, and its size; damaged ones are named when all are decoded."""
    store = open_store(part.store)
    for picture in part.pictures[:8]:
        with suppress(Exception), Image.open(io.BytesIO(store.read(picture.name))) as opened:
            return picture.name, opened.size
    return "", None


def _header(parts: Mapping[str, Part]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and where in the file each part's pixels begin."""
    entries, at = {}, {}
    position = 0
    for key, part in parts.items():
        for name, shape in ((key, part.shape), (f"{key}.labels", (len(part.pictures), 4))):
            entries[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [position, position + prod(shape)]}
            at[name] = position
            position += prod(shape)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in at.items()}


def _make_room(place: Path, size: int) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write below {place.parent.parent} ({error.strerror}); make a folder that you can write to, link "
            "the data sets into it, and give that as root"
        ) from None
    file = place / "pixels.safetensors"
    free = shutil.disk_usage(place).free + (file.stat().st_blocks * 512 if file.exists() else 0)
    if free < size:
        with suppress(OSError):
            place.rmdir()
        raise UserError(
            f"{place.parent} has {free / 1e9:.3g} GB free and the decoded pictures take {size / 1e9:.3g} GB; make "
            "room, or take a smaller data.image_size or fewer pictures"
        )


@contextmanager
def _alone(place: Path, name: str) -> Iterator[None]:
    with open_lock(place / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is preparing '{name}' in {place}; wait for it") from None
        yield


def _allocate(file: Path, size: int, header: bytes, parts: Mapping[str, Part], offsets: Mapping[str, int]) -> None:
    """The whole file with its header and labels; pixels are zero."""
    (file.parent / "done.jsonl").unlink(missing_ok=True)
    with file.open("wb") as handle:
        if hasattr(os, "posix_fallocate"):  # a full disk is told now, not after hours
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            handle.truncate(size)
        handle.write(header)
        for key, part in parts.items():
            handle.seek(offsets[f"{key}.labels"])
            handle.write(np.asarray(part.labels, "<i4").tobytes())
        handle.flush()
        os.fsync(handle.fileno())


def _jobs(file: Path, parts: Mapping[str, Part], offsets: Mapping[str, int]) -> list[Job]:
    return [
        Job(
            file,
            offsets[key] + start * prod(part.shape[1:]),
            part.store,
            part.crop,
            part.pictures[start : start + _JOB],
        )
        for key, part in parts.items()
        for start in range(0, len(part.pictures), _JOB)
    ]


def _decode(
    place: Path,
    file: Path,
    parts: Mapping[str, Part],
    offsets: Mapping[str, int],
    name: str,
    reporter: Reporter,
    processes: int,
) -> list[Result]:
    """Every job's result, in order; those in the journal are not done again, and only whole ones get into it."""
    jobs = _jobs(file, parts, offsets)
    results = _journal(place / "done.jsonl")
    waiting = [number for number in range(len(jobs)) if number not in results]
    left = sum(len(jobs[number].pictures) for number in waiting)
    total = sum(len(job.pictures) for job in jobs)
    with reporter.task(f"decode {name}", total, "pictures") as task, (place / "done.jsonl").open("a") as journal:
        task.advance(total - left)
        for number, result in _run([(number, jobs[number]) for number in waiting], left, processes):
            results[number] = result
            if not result.bad:
                line = {"job": number, "hashes": [h.hex() for h in result.hashes], "faceless": result.faceless}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            task.advance(len(jobs[number].pictures))
    return [results[number] for number in range(len(jobs))]


def _journal(file: Path) -> dict[int, Result]:
    """The jobs that are done; the last line may be half a one."""
    done = {}
    if file.exists():
        for line in read_text(file).splitlines():
            with suppress(ValueError, KeyError):
                entry = json.loads(line)
                hashes = [bytes.fromhex(text) for text in entry["hashes"]]
                done[int(entry["job"])] = Result(hashes, [], list(entry["faceless"]))
    return done


def _run(jobs: Sequence[tuple[int, Job]], pictures: int, processes: int) -> Iterator[tuple[int, Result]]:
    """Each job's number and result, as they are done."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processes or cores, len(jobs))
    if count < 2 or (not processes and pictures <= _FEW):
        for number, job in jobs:
            yield number, decode(job)
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"))
    try:
        futures = {pool.submit(decode, job): number for number, job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes pictures was killed (too little memory?); run the same command again, with fewer "
            "--processes: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _refuse_bad(results: Sequence[Result], parts: Mapping[str, Part], name: str) -> None:
    bad = [entry for result in results for entry in result.bad]
    if bad:
        total = sum(len(part.pictures) for part in parts.values())
        told = "; ".join(f"{file} ({reason})" for file, reason in bad[:3])
        raise UserError(
            f"{len(bad)} of {total:,} pictures of '{name}' cannot be decoded: {told}{'; ...' if len(bad) > 3 else ''}; "
            "replace them (in scraped data, remove them) and run the same command again: the others are kept"
        )


def _digests(file: Path) -> dict[str, str]:
    """sha256 over the shape, pixels and labels of each part."""
    tensors, _ = mapped(file)
    digests = {}
    for key in (name for name in tensors if not name.endswith(".labels")):
        digest = hashlib.sha256(repr(tuple(tensors[key].shape)).encode())
        for tensor in (tensors[key], tensors[f"{key}.labels"]):
            for rows in tensor.split(256):
                digest.update(rows.numpy())
        digests[key] = digest.hexdigest()
    return digests
