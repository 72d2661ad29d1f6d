"""What a model wants, found out by asking it about pictures whose people are known.

Every sensible way of showing it a picture is tried (size, channels, their order, range and normalisation), every
sensible way of reading its answer (logits, log-probabilities, probabilities, independent scores, embeddings) and every
sensible order of its classes. The way that names most people rightly is taken; among ways that are not told apart by
that (the difference is at most one standard error of the best one's accuracy), the one whose first batch norm sees the
mean and variance that it remembers from training; in a network without, the most usual of those that are nearly as sure
of the right people (a higher contrast alone makes a network surer of what it knows by heart). Where the best way is no
better than guessing, nothing fits, and the refusal says what was seen.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor, nn

from mibench.core.access import Access
from mibench.models.imported.network import Fitting, Gallery, Output, Wanted, as_logits
from mibench.models.imported.opening import Opened
from mibench.runtime.errors import UserError

__all__ = ["NORMALISATIONS", "NOTHING", "Found", "Given", "Pictures", "Way", "find"]

Means = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Means = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NORMALISATIONS: dict[str, Means] = {
    "imagenet": IMAGENET,
    "half": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (1 / 255,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "caffe": (IMAGENET[0], (1 / 255,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion": ((0.2860,), (0.3530,)),
}
"""Mean and std by the names that --normalise takes; `unit` is [0, 1], `half` [-1, 1], `bytes` 0 to 255 and `caffe` 0 to
255 less ImageNet's mean. Those of data sets are the published ones."""

SIZES = (224, 64, 32, 28, 112, 128, 160, 96, 256, 299)

FIRST, LAST = 48, 256
"""Pictures that all ways are tried on, and the last few."""

ERROR = 0.01
"""Share of models that answer at random which may pass for one that fits, over all ways together."""

WEAK = 0.5
"""Accuracy below which the user is told that the model knows few of the people."""

SURE = 0.1
"""Mean log-probability by which a way must be surer of the right people than a more usual one."""

STEADY = 1e-3
"""How much scores may differ between two calls, or alone and in a batch, in a model that is not random."""


class Pictures(NamedTuple):
    """Pictures of the private people, spread over them.

    Args:
        at: (side, channels) -> the pictures.
        labels: Places in `names`.
        names: Of the people: folders, in alphabetical order.
        learnt: Whether a picture is among those a target would be trained on; the others are held out.
    """

    at: Callable[[int, int], UInt8[Tensor, "n c s s"]]
    labels: Int64[Tensor, " n"]
    names: tuple[str, ...]
    learnt: Tensor


@dataclass(frozen=True)
class Given:
    """What the user says the model wants; None is to be found out.

    Args:
        size: Side in pixels.
        normalise: A key of NORMALISATIONS, or mean and std as `0.5,0.5`.
        channels: `rgb`, `bgr` or `grey`.
        output: One of OUTPUTS.
        classes: The names of the outputs, in order; `matched` takes the one-to-one naming that fits best.
    """

    size: int | None = None
    normalise: str | None = None
    channels: str | None = None
    output: Output | None = None
    classes: tuple[str, ...] | None = None
    matched: bool = False


NOTHING = Given()
"""The user says nothing."""


@dataclass(frozen=True)
class Way:
    """One way of asking and reading, and how well it does.

    Args:
        wanted: The way.
        normalisation: In words.
        order: Of the classes, in words.
        accuracy: Share of the pictures whose person it names.
        confidence: Mean log-probability of the right person.
        n: Pictures.
        rank: How usual it is; 0 is the most.
        mismatch: Between what the first batch norm sees and what it remembers; NaN in a network without.
    """

    wanted: Wanted
    normalisation: str
    order: str
    accuracy: float
    confidence: float
    n: int
    rank: int = 0
    mismatch: float = math.nan


@dataclass(frozen=True)
class Found:
    """What a model wants.

    Args:
        way: The way that fits.
        ways: All that were tried, best first.
        grants: The strongest access that it gives.
        gallery: Whether it is an embedder, identified by a gallery of the private pictures.
        notes: What the user should know, a sentence each.
    """

    way: Way
    ways: tuple[Way, ...]
    grants: Access
    gallery: bool
    notes: tuple[str, ...]

    @property
    def told(self) -> list[str]:
        """What was found and why, a line each."""
        wanted, way = self.wanted, self.way
        colours = "grey" if wanted.channels == 1 else "blue, green, red" if wanted.reverse else "red, green, blue"
        side = f"{wanted.size} px" if wanted.size else "any size"
        lines = [f"input: {side}, {colours}{', channels last' if wanted.last else ''}, {way.normalisation}"]
        lines.append(f"output: {len(wanted.order)} {wanted.output}" if not self.gallery else "output: embeddings")
        lines.append(f"classes: {way.order}")
        lines.append(f"names {way.accuracy:.0%} of {way.n} private pictures rightly{self._better()}")
        alike = [one.normalisation for one in self.ways if self._as_good(one)]
        if alike:
            told = ", ".join(dict.fromkeys(alike))
            lines.append(f"no worse, and so not told apart: {told}; say --normalise if you know")
        return lines

    def _as_good(self, one: Way) -> bool:
        best = self.way
        same = one.wanted.size == best.wanted.size and one.wanted.reverse == best.wanted.reverse
        equal = one.accuracy >= best.accuracy and one.order == best.order and one.n == best.n
        equal = equal and math.isnan(best.mismatch)
        return same and equal and one.normalisation != best.normalisation

    @property
    def wanted(self) -> Wanted:
        """What the model wants."""
        return self.way.wanted

    def _better(self) -> str:
        """How the next best ways do that differ in one respect."""
        best, told = self.way, []
        keys: tuple[Callable[[Way], str], ...] = (
            lambda one: one.normalisation,
            lambda one: f"{one.wanted.size} px",
            lambda one: "blue first" if one.wanted.reverse else "red first",
            lambda one: one.order,
        )
        for key in keys:
            others = [one for one in self.ways if key(one) != key(best)]
            if others:
                next_best = max(others, key=lambda one: (one.accuracy, one.confidence))
                if next_best.accuracy >= best.accuracy and key is keys[0] and math.isnan(best.mismatch):
                    continue
                told.append(f"{key(next_best)} {next_best.accuracy:.0%}")
        return f"; next best: {', '.join(told)}" if told else ""


def find(opened: Opened, pictures: Pictures, given: Given = NOTHING) -> Found:
    """What a model wants.

    Raises:
        UserError: Nothing fits (with what was seen instead), it answers NaN, its answer hangs on the rest of the batch,
            or it has fewer classes than there are people.
    """
    search = _Search(opened, pictures, given)
    ways = search.ways()
    best = _best(ways)
    if not search.fits(best):
        raise UserError(search.diagnosis(best))
    gallery = best.wanted.output == "embeddings"
    notes = [*opened.notes, *search.steadiness(best.wanted)]
    if best.accuracy < WEAK:
        notes.append(f"it names only {best.accuracy:.0%} of the private pictures: what it has not learnt cannot leak")
    others = len(best.wanted.order) - len(pictures.names)
    if others > 0 and not gallery:
        notes.append(f"it knows {others} classes besides the {len(pictures.names)} people of the folder")
    grants = Access.LABEL_ONLY if best.wanted.output == "labels" else Access.BLACK_BOX
    if opened.differentiable and search.has_gradients(best.wanted):
        grants = Access.WHITE_BOX
    elif opened.differentiable:
        notes.append("no gradient flows through it: black box at most")
    ranked = sorted(ways, key=lambda way: (way.accuracy, way.confidence), reverse=True)
    return Found(best, tuple(ranked), grants, gallery, tuple(notes))


def _best(ways: Sequence[Way]) -> Way:
    """See the module; of those that were tried on most pictures."""
    n = max(way.n for way in ways)
    ways = [way for way in ways if way.n == n]
    most = max(way.accuracy for way in ways)
    error = math.sqrt(max(most * (1 - most), 1 / n) / n)
    near = [way for way in ways if way.accuracy >= most - error]
    if not any(math.isnan(way.mismatch) for way in near):
        return min(near, key=lambda way: (way.mismatch, way.rank))
    surest = max(way.confidence for way in near)
    return min((way for way in near if way.confidence >= surest - SURE), key=lambda way: (way.rank, -way.confidence))


class _Search:
    """One search: what the model answered, tried in all ways."""

    def __init__(self, opened: Opened, pictures: Pictures, given: Given) -> None:
        self.opened, self.pictures, self.given = opened, pictures, given
        self.failures: list[str] = []
        self.ranks: dict[Any, int] = {}
        self.remote = opened.declared.size is None and hasattr(opened.module, "asked")

    # --- ways to ask

    def ways(self) -> list[Way]:
        """All ways on a few pictures, the last few ways on more."""
        few = self._rows(FIRST)
        made = [way for asking in self._askings() for way in self._read(asking, few)]
        if not made:
            why = self.failures[0] if self.failures else "it answered nothing"
            raise UserError(f"the model cannot be asked: {why}; say what it wants with --size, --channels, --output")
        best = _best(made)
        if best.wanted.channels == 3 and self.given.channels is None and not self.remote:
            made += self._read((replace(best.wanted, reverse=True), best.normalisation), few)
        if self._free_size:
            for size in SIZES:
                if size != best.wanted.size:
                    made += self._read((replace(best.wanted, size=size), best.normalisation), few)
        finalists = sorted(made, key=lambda way: (-way.accuracy, way.rank))
        kept: dict[tuple[Wanted, str], None] = {}
        for way in [_best(made), *finalists]:
            kept.setdefault((replace(way.wanted, order=(), output="logits"), way.normalisation))
        many = self._rows(LAST)
        if len(many) == len(few):
            return made
        again = [way for asking in list(kept)[:4] for way in self._read(asking, many)]
        named = {(way.wanted, way.order) for way in again}
        return [*again, *(way for way in made if (way.wanted, way.order) not in named)]

    @property
    def _free_size(self) -> bool:
        return self.given.size is None and self.opened.declared.size is None and not self.remote

    def _askings(self) -> Iterator[tuple[Wanted, str]]:
        declared, given = self.opened.declared, self.given
        if self.remote:
            channels = 1 if given.channels == "grey" else 3
            mean, std = (0.0,) * channels, (1.0,) * channels
            yield Wanted(given.size or 0, channels, False, False, False, mean, std), "as the server decodes them"
            return
        sides = [given.size or declared.size or self._first_size()]
        fixed = {"grey": 1, "rgb": 3, "bgr": 3}.get(given.channels or "", declared.channels)
        for channels in [fixed] if fixed else [3, 1]:
            for size in sides:
                for name, (mean, std) in self._normalisations(channels).items():
                    yield (
                        Wanted(size, channels, given.channels == "bgr", declared.last, declared.bytes, mean, std),
                        name,
                    )

    def _first_size(self) -> int:
        """The first usual size that the model answers at."""
        for size in SIZES:
            for channels in [self.opened.declared.channels] if self.opened.declared.channels else [3, 1]:
                wanted = Wanted(size, channels, False, False, False, (0.0,) * channels, (1.0,) * channels)
                if self._ask(wanted, self._rows(2)) is not None:
                    return size
        return SIZES[0]

    def _normalisations(self, channels: int) -> dict[str, Means]:
        """Mean and std by what they are called, those that come with the model first."""
        declared, given = self.opened.declared, self.given

        def wide(values: tuple[float, ...]) -> tuple[float, ...]:
            if len(values) == channels:
                return values
            return (values[0],) * channels if len(values) == 1 else (sum(values) / len(values),) * channels

        if declared.bytes:
            return {"0 to 255 as uint8": ((0.0,) * channels, (1 / 255,) * channels)}
        if given.normalise is not None:
            mean, std = normalisation(given.normalise)
            return {f"normalised by {given.normalise}": (wide(mean), wide(std))}
        if "its own" in declared.means:
            return {"normalised by itself": declared.means["its own"]}
        words = {
            "imagenet": "normalised by ImageNet's mean and std",
            "half": "range -1 to 1",
            "unit": "range 0 to 1",
            "bytes": "range 0 to 255",
            "clip": "normalised by CLIP's mean and std",
            "caffe": "range 0 to 255 less ImageNet's mean",
            "cifar10": "normalised by CIFAR-10's mean and std",
            "mnist": "normalised by MNIST's mean and std",
            "fashion": "normalised by Fashion-MNIST's mean and std",
        }
        usual = {"mnist", "fashion"} if channels == 3 else {"clip", "cifar10", "caffe"}
        ways = {f"normalised by {name}": (wide(mean), wide(std)) for name, (mean, std) in declared.means.items()}
        for key, (mean, std) in NORMALISATIONS.items():
            if key not in usual and (wide(mean), wide(std)) not in ways.values():
                ways[words[key]] = (wide(mean), wide(std))
        own = self.pictures.at(64, channels).float() / 255
        mean, std = own.mean(dim=(0, 2, 3)).tolist(), own.std(dim=(0, 2, 3)).tolist()  # type: ignore[assignment]
        if all(std):
            ways["normalised by the pictures' own mean and std"] = (tuple(mean), tuple(std))
        return ways

    def _rows(self, most: int) -> Int64[Tensor, " m"]:
        """Places of at most so many pictures, spread over the people, held-out and learnt in turn."""
        labels = self.pictures.labels
        seen: dict[int, int] = {}
        turns = []
        for place, label in enumerate(labels.tolist()):
            seen[label] = seen.get(label, 0) + 1
            turns.append((seen[label], place))
        return torch.tensor(sorted(place for _, place in sorted(turns)[:most]))

    def _ask(self, wanted: Wanted, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m k"] | None:
        """What it answers to some pictures; None where it cannot be asked so."""
        side = wanted.size or 64
        shown = self.pictures.at(side, wanted.channels)[rows]
        prepare = Fitting((wanted.channels, side, side), wanted)
        parts = []
        try:
            with torch.no_grad(), self._watched():
                for part in shown.split(32):
                    parts.append(self.opened.module(prepare(part.float() / 255)))
        except UserError:
            raise
        except Exception as error:  # whatever the user's network raises on an image it does not take
            self.failures.append(f"at {side} px with {wanted.channels} channels: {str(error).splitlines()[0][:160]}")
            return None
        raw = torch.cat(parts).float()
        if not bool(raw.isfinite().all()):
            self.failures.append(f"it answers NaN or infinity with {wanted.mean}, {wanted.std}")
            return None
        return raw

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Compare what the first batch norm sees of the pictures with what it remembers: the Kullback-Leibler
        divergence of two normal distributions, mean over channels; into `mismatch`."""
        self.mismatch = math.nan
        norm = next((one for one in self.opened.module.modules() if type(one) is nn.BatchNorm2d), None)
        if norm is None or norm.running_mean is None or norm.running_var is None:
            yield
            return
        seen: list[tuple[Tensor, Tensor, int]] = []

        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().float()
            seen.append((x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3)), len(x)))

        hook = norm.register_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()
        if seen:
            counts = torch.tensor([float(n) for _, _, n in seen])
            mean, square = (torch.stack([one[k] for one in seen]).T @ counts / counts.sum() for k in (0, 1))  # type: ignore[misc]
            variance = (square - mean.square()).clamp(min=1e-12)
            usual = norm.running_var.clamp(min=1e-12)
            ratio = variance / usual
            apart = (mean - norm.running_mean).square() / usual + ratio - 1 - ratio.log()
            self.mismatch = float(apart.mean() / 2)

    # --- ways to read

    def _read(self, asking: tuple[Wanted, str], rows: Int64[Tensor, " m"]) -> list[Way]:
        """One way of asking, read in every sensible way."""
        wanted, name = asking
        raw = self._ask(wanted, rows)
        if raw is None:
            return []
        labels = self.pictures.labels[rows]
        output = self.given.output or _output(raw, hasattr(self.opened.module, "asked"))
        if output == "embeddings":
            return self._as_gallery(wanted, name, raw, rows)
        logits = as_logits(raw, output).log_softmax(dim=1)
        ways = []
        rank = self.ranks.setdefault(replace(wanted, order=()), len(self.ranks))
        for words, order in self._orders(raw, labels, logits).items():
            target = torch.tensor(order)[labels]
            said = logits.gather(1, target[:, None])[:, 0]
            accuracy = float((raw.argmax(dim=1) == target).double().mean())
            whole = (*order, *(place for place in range(raw.shape[1]) if place not in set(order)))
            full = replace(wanted, output=output, order=tuple(whole))
            sure = float(said.mean())
            ways.append(Way(full, name, words, accuracy, sure, len(rows), rank, self.mismatch))
        return ways

    def _as_gallery(self, wanted: Wanted, name: str, raw: Tensor, rows: Int64[Tensor, " m"]) -> list[Way]:
        """An embedder: a gallery of the learnt pictures, asked about the others."""
        labels, learnt = self.pictures.labels[rows], self.pictures.learnt[rows]
        if not bool(learnt.any()) or bool(learnt.all()):
            return []
        gallery = Gallery.of(raw[learnt], labels[learnt], len(self.pictures.names))
        logits = gallery(raw[~learnt]).log_softmax(dim=1)
        own = labels[~learnt]
        accuracy = float((logits.argmax(dim=1) == own).double().mean())
        sure = float(logits.gather(1, own[:, None]).mean())
        full = replace(wanted, output="embeddings", order=tuple(range(len(self.pictures.names))))
        words = "the folders, by a gallery of the pictures that are not held out"
        return [Way(full, name, words, accuracy, sure, int((~learnt).sum()))]

    def _orders(self, raw: Tensor, labels: Tensor, logits: Tensor) -> dict[str, tuple[int, ...]]:
        """Which output each person may be, by why."""
        names, count = self.pictures.names, raw.shape[1]
        if self.given.matched:
            return {"named one-to-one by what the model answers": _matching(logits, labels, len(names))}
        if self.given.classes is not None:
            return {"as --classes says": _named(self.given.classes, names, count, "--classes")}
        inside = self.opened.declared.classes or getattr(self.opened.module, "names", ())
        orders: dict[str, tuple[int, ...]] = {}
        if inside and len(inside) == count and set(names) <= set(inside):
            orders["by the names in the model's file"] = _named(inside, names, count, "the model")
        if count < len(names):
            raise UserError(
                f"the model answers {count} numbers and the folder has {len(names)} people; an embedder needs --output "
                "embeddings, a classifier one class for each of them: remove the people it does not know"
            )
        if all(re.fullmatch(r"\d+", name) for name in names):
            numbers = [int(name) for name in names]
            if max(numbers) < count and len(set(numbers)) == len(numbers):
                orders["folders that are called by the output's number"] = tuple(numbers)
            if min(numbers) >= 1 and max(numbers) <= count and len(set(numbers)) == len(numbers):
                orders["folders that are called by the output's number, from 1"] = tuple(one - 1 for one in numbers)
        if count == len(names):
            orders["folders in alphabetical order"] = tuple(range(count))
            for words, key in (
                ("natural order (2 before 10)", _natural),
                ("order without regard to case", str.casefold),
            ):
                ranked = sorted(names, key=key)
                orders[f"folders in {words}"] = tuple(ranked.index(name) for name in names)
        if count == len(names) + 1:
            orders["alphabetical order behind a background class"] = tuple(range(1, count))
            orders["alphabetical order before one more class"] = tuple(range(len(names)))
        if not orders:
            raise UserError(
                f"the model answers {count} classes and the folder has {len(names)} people; say which is which with "
                "--classes FILE: one name a line, in the order of the outputs (the folder's people must be among them)"
            )
        return {
            words: order
            for place, (words, order) in enumerate(orders.items())
            if order not in list(orders.values())[:place]
        }

    # --- whether it fits

    def fits(self, way: Way) -> bool:
        """Whether a model that guesses would hardly do as well, however many ways are tried."""
        hits = round(way.accuracy * way.n)
        tried = 200 if not self.given.matched else 1
        luck = float(binom.sf(hits - 1, way.n, 1 / max(2, len(self.pictures.names))))
        if self.given.matched:  # the naming was made on the same pictures: judged on halves
            return self._matched_on_halves(way) > 2 / len(self.pictures.names)
        return luck * tried < ERROR

    def _matched_on_halves(self, way: Way) -> float:
        rows = self._rows(LAST)
        raw = self._ask(replace(way.wanted, order=()), rows)
        assert raw is not None
        labels, people = self.pictures.labels[rows], len(self.pictures.names)
        # Every person's pictures in turn, so that both halves show everybody.
        half = torch.zeros(len(rows), dtype=torch.bool)
        for person in range(people):
            half[(labels == person).nonzero()[::2, 0]] = True
        if bool(half.all()):
            return 0.0
        order = torch.tensor(_matching(raw.log_softmax(dim=1), labels, people, half))
        return float((raw.argmax(dim=1)[~half] == order[labels[~half]]).double().mean())

    def diagnosis(self, best: Way) -> str:
        """What was seen, where nothing fits."""
        people = len(self.pictures.names)
        said = (
            f"no way of asking the model fits: the best of {len(NORMALISATIONS)} normalisations and all class orders "
            f"names {best.accuracy:.0%} of {best.n} private pictures rightly ({best.normalisation}; {best.order}), and "
            f"guessing {1 / people:.0%}"
        )
        rows = self._rows(LAST)
        raw = self._ask(replace(best.wanted, order=()), rows)
        if raw is None or best.wanted.output == "embeddings":
            return f"{said}; is it trained on these people?"
        answers = raw.argmax(dim=1)
        common = float(torch.bincount(answers).max() / len(answers))
        if common > max(0.9, 3 / people):
            return (
                f"{said}; it answers one class to {common:.0%} of them whatever they show: untrained, or it wants "
                "something that was not tried (say so with --size, --normalise, --channels)"
            )
        matched = self._matched_on_halves(best)
        if matched > max(0.5, 3 / people):
            order = _matching(raw.log_softmax(dim=1), self.pictures.labels[rows], people)
            names = self.pictures.names
            shown = ", ".join(f"{names[person]} is output {order[person]}" for person in range(min(4, people)))
            return (
                f"{said}; but one output is each person's own: named one-to-one by what it answers to half of the "
                f"pictures it names {matched:.0%} of the others ({shown}, ...). Either its classes have another order "
                "(give --classes FILE, one name a line in the order of the outputs, or accept this naming with "
                "--classes matched) or it knows other people who look like these"
            )
        return f"{said}; is it trained on these people, and are the folders named as its classes?"

    def steadiness(self, wanted: Wanted) -> list[str]:
        """What differs between calls; refuses a model whose answer hangs on the rest of the batch.

        Raises:
            UserError: An image alone is answered otherwise than among others: batch norms that were left in train mode.
        """
        if self.remote:
            return []
        rows = self._rows(8)
        one, again = self._ask(wanted, rows), self._ask(wanted, rows)
        alone = [self._ask(wanted, rows[place : place + 1]) for place in range(len(rows))]
        assert one is not None and again is not None
        one, again = (as_logits(raw, wanted.output).softmax(dim=1) for raw in (one, again))
        changed = float((one - again).abs().max())
        if changed > STEADY:
            return [
                f"its answers are random: the scores of one picture differ by up to {changed:.2g} between two calls "
                "(dropout or noise that stays on); every number holds for one draw of it"
            ]
        parts = [part for part in alone if part is not None]
        if len(parts) == len(alone):
            single = as_logits(torch.cat(parts), wanted.output).softmax(dim=1)
            hangs = float((one - single).abs().max())
            if hangs > 10 * STEADY:
                raise UserError(
                    f"the model answers a picture otherwise alone than among others (scores differ by {hangs:.2g}): "
                    "its batch norms are in train mode; call model.eval() before you save or export it"
                )
        return []

    def has_gradients(self, wanted: Wanted) -> bool:
        """Whether the scores of a picture have a gradient with respect to it."""
        side = wanted.size or 64
        x = (self.pictures.at(side, wanted.channels)[:2].float() / 255).requires_grad_(True)
        try:
            out = self.opened.module(Fitting((wanted.channels, side, side), wanted)(x))
            (slope,) = torch.autograd.grad(out.float().square().sum(), x)
        except RuntimeError:
            return False
        return bool(slope.isfinite().all()) and bool((slope != 0).any())


def normalisation(text: str) -> Means:
    """A key of NORMALISATIONS, or `mean/std` in units of [0, 1]: `0.5/0.5`, `0.48,0.46,0.41/0.23,0.22,0.23`.

    Raises:
        UserError: Neither.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(one) for one in part.split(",")) for part in text.split("/"))
        if len(mean) == len(std) in (1, 3) and all(math.isfinite(one) for one in mean) and min(std) > 0:
            return mean, std
    except ValueError:
        pass
    raise UserError(
        f"--normalise {text}: give one of {', '.join(NORMALISATIONS)}, or mean/std in units of [0, 1] such as 0.5/0.5 "
        "or 0.485,0.456,0.406/0.229,0.224,0.225"
    )


def _output(raw: Float[Tensor, "n k"], asked: bool) -> Output:
    """What the numbers are, told from their range and sums."""
    low, high, sums = float(raw.min()), float(raw.max()), raw.sum(dim=1)
    if low >= 0 and bool(((raw == 0) | (raw == 1)).all()) and bool((sums == 1).all()) and asked:
        return "labels"
    if low >= -1e-6 and bool(((sums - 1).abs() < 1e-3).all()):
        return "probabilities"
    if high <= 1e-6 and bool(((raw.exp().sum(dim=1) - 1).abs() < 1e-3).all()):
        return "log-probabilities"
    if low < 0 and raw.shape[1] > 2 and bool(((raw.norm(dim=1) - 1).abs() < 1e-3).all()):
        return "embeddings"
    if low >= 0 and high <= 1 and bool((raw > 0).any()):
        return "sigmoid"
    return "logits"


def _named(classes: Sequence[str], names: Sequence[str], count: int, who: str) -> tuple[int, ...]:
    """Where the folder's people are among the names of the outputs.

    Raises:
        UserError: Another number of names than outputs, or people who are not among them.
    """
    if len(classes) != count:
        raise UserError(f"{who} names {len(classes)} classes and the model answers {count}; name every output once")
    twice = [name for name in classes if list(classes).count(name) > 1]
    lost = [name for name in names if name not in classes]
    if twice or lost:
        what = (
            f"names '{twice[0]}' twice" if twice else f"does not name {len(lost)} of the folder's people ('{lost[0]}')"
        )
        raise UserError(f"{who} {what}; it begins with {', '.join(classes[:5])}: rename the folders or the classes")
    return tuple(list(classes).index(name) for name in names)


def _natural(name: str) -> list[Any]:
    """`person10` after `person9`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _matching(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], people: int, rows: Tensor | None = None
) -> tuple[int, ...]:
    """An output for each person, no output twice, that gives their pictures the most confidence in all (the linear
    assignment problem)."""
    scores = logits.exp()
    if rows is not None:
        scores, labels = scores[rows], labels[rows]
    sums = torch.zeros(people, scores.shape[1]).index_add(0, labels, scores)
    persons, outputs = linear_sum_assignment(-sums.numpy())
    order = [0] * people
    for person, output in zip(persons, outputs, strict=True):
        order[int(person)] = int(output)
    return tuple(order)
