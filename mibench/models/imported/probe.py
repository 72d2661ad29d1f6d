"""What a model wants, found out by asking it about pictures whose people are known.

Every sensible way of showing it a picture is tried (size, channels, their order, range and normalisation), every
sensible way of reading its answer (logits, log-probabilities, probabilities, independent scores, embeddings) and every
sensible order of its classes. The way that names most people rightly is taken; among ways that are not told apart by
that (the difference is at most one standard error of the best one's accuracy), those of the size at which the right
people are named most surely, of sizes that hardly differ the most usual one; of these the one whose first batch norm
sees the mean and variance that it remembers from training; in a network without, the most usual of those that are
nearly as sure of the right people (a higher contrast alone makes a network surer of what it knows by heart). Where the
best way is no better than guessing, nothing fits, and the refusal says what was seen.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from scipy.stats import binom
from torch import Tensor

from mibench.core.access import Access
from mibench.models.imported import normalisations
from mibench.models.imported.network import Fitting, Gallery, Output, Wanted, as_logits
from mibench.models.imported.normalisations import NORMALISATIONS, Means, normalisation, wide
from mibench.models.imported.opened import Opened
from mibench.models.imported.orders import matching, orders
from mibench.models.imported.remembered import watching
from mibench.models.imported.ways import NOTHING, Found, Given, Pictures, Way, best_of
from mibench.runtime.errors import UserError

__all__ = ["FIRST", "LAST", "find"]

SIZES = (224, 64, 32, 28, 48, 96, 112, 128, 160, 256, 299)
"""Sides that networks are trained at, the most usual first."""

FIRST, LAST = 48, 256
"""Pictures that all ways are tried on, and the last few."""

LARGE = 96
"""Side above which all ways are tried on half as many pictures: a passage takes time with its square."""

TRIED = 2
"""Normalisations that every other size is tried with: the best ones at the first size."""

ERROR = 0.01
"""Share of models that answer at random which may pass for one that fits, over all ways together."""

WEAK = 0.5
"""Accuracy below which the user is told that the model knows few of the people."""


STEADY = 1e-3
"""How much scores may differ between two calls, or alone and in a batch, in a model that is not random."""


def find(opened: Opened, pictures: Pictures, given: Given = NOTHING, most: int = LAST) -> Found:
    """What a model wants.

    Args:
        opened: The model.
        pictures: Whose people it should know.
        given: What the user knows already.
        most: Pictures that the last ways are tried on; a server is shown no others.

    Raises:
        UserError: Nothing fits (with what was seen instead), it answers NaN, its answer hangs on the rest of the batch,
            or it has fewer classes than there are people.
    """
    search = _Search(opened, pictures, given, most)
    ways = search.ways()
    best = best_of(ways)
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
    shown = len(search.last) if search.remote else 0
    known = len(pictures.labels)
    return Found(best, tuple(ranked), grants, gallery, tuple(notes), shown, known, opened.declared.usual)


class _Search:
    """One search: what the model answered, tried in all ways."""

    def __init__(self, opened: Opened, pictures: Pictures, given: Given, most: int = LAST) -> None:
        self.opened, self.pictures, self.given = opened, pictures, given
        self.failures: list[str] = []
        self.ranks: dict[Wanted, int] = {}
        self.remote = opened.declared.size is None and hasattr(opened.module, "asked")
        self.last = self._rows(most)

    # --- ways to ask

    def ways(self) -> list[Way]:
        """All ways on a few pictures, the last few ways on more."""
        first = self.given.size or self.opened.declared.size or self._first_size()
        few = self.last if self.remote else self._rows(min(len(self.last), FIRST // (2 if first > LARGE else 1)))
        made = [way for asking in self._askings(first) for way in self._read(asking, few)]
        if not made:
            why = self.failures[0] if self.failures else "it answered nothing"
            raise UserError(f"the model cannot be asked: {why}; say what it wants with --size, --channels, --output")
        if self._free_size:
            made += self._other_sizes(made, few)
        best = best_of(made)
        if best.wanted.channels == 3 and self.given.channels is None and not self.remote:
            made += self._read((replace(_plain(best.wanted), reverse=True), best.normalisation), few)
        if len(self.last) == len(few):
            return made
        finalists = sorted(made, key=lambda way: (-way.accuracy, way.rank))
        kept: dict[tuple[Wanted, str], None] = {}
        for way in [best_of(made), *finalists]:
            kept.setdefault((_plain(way.wanted), way.normalisation))
        again = [way for asking in list(kept)[:4] for way in self._read(asking, self.last)]
        known = {(way.wanted, way.order) for way in again}
        return [*again, *(way for way in made if (way.wanted, way.order) not in known)]

    def _other_sizes(self, made: Sequence[Way], few: Int64[Tensor, " m"]) -> list[Way]:
        """The best normalisations so far at all other sizes; all normalisations where another size is the best."""
        more: list[Way] = []
        for _ in range(2):  # a normalisation that is best at the new size only has not been tried at the others
            ranked = sorted([*made, *more], key=lambda way: (-way.accuracy, way.rank))
            askings = list(dict.fromkeys((replace(_plain(way.wanted), size=0), way.normalisation) for way in ranked))
            before = best_of([*made, *more]).wanted.size
            tried = {(replace(_plain(way.wanted), size=0), way.wanted.size) for way in [*made, *more]}
            for size, (wanted, name) in itertools.product(self._sizes(), askings[:TRIED]):
                if (wanted, size) not in tried:
                    more += self._read((replace(wanted, size=size), name), few)
            best = best_of([*made, *more])
            if best.wanted.size == before:
                break
            for wanted, name in self._askings(best.wanted.size):
                if wanted.channels == best.wanted.channels and wanted not in self.ranks:
                    more += self._read((wanted, name), few)
        return more

    def _sizes(self) -> list[int]:
        """Sides that the model may have been trained at: usual ones up to the pictures' own, that one, and the
        published one. Larger ones would enlarge the pictures, which nobody trains on."""
        side, usual = self.pictures.side, self.opened.declared.usual
        largest = max(side or 0, 64) if side or usual else max(SIZES)
        own = [side] if side and min(SIZES) <= side <= max(SIZES) else []
        return list(dict.fromkeys([*([usual] if usual else []), *own, *(one for one in SIZES if one <= largest)]))

    @property
    def _free_size(self) -> bool:
        return self.given.size is None and self.opened.declared.size is None and not self.remote

    def _askings(self, size: int) -> Iterator[tuple[Wanted, str]]:
        """All channels and normalisations at one size."""
        declared, given = self.opened.declared, self.given
        if self.remote:
            channels = 1 if given.channels == "grey" else 3
            mean, std = (0.0,) * channels, (1.0,) * channels
            yield Wanted(given.size or 0, channels, False, False, False, mean, std), "as the server decodes them"
            return
        fixed = {"grey": 1, "rgb": 3, "bgr": 3}.get(given.channels or "", declared.channels)
        for channels in [fixed] if fixed else [3, 1]:
            for name, (mean, std) in self._normalisations(channels).items():
                yield Wanted(size, channels, given.channels == "bgr", declared.last, declared.bytes, mean, std), name

    def _first_size(self) -> int:
        """The published size, the pictures' own, or else the first usual size that the model answers at."""
        if self.remote:
            return 0
        known = [self.opened.declared.channels] if self.opened.declared.channels else [3, 1]
        for size, channels in itertools.product([*self._sizes(), *SIZES], known):
            wanted = Wanted(size, channels, False, False, False, (0.0,) * channels, (1.0,) * channels)
            if self._ask(wanted, self._rows(2)) is not None:
                return size
        return SIZES[0]

    def _normalisations(self, channels: int) -> dict[str, Means]:
        """Mean and std by what they are called, those that come with the model first."""
        declared, given = self.opened.declared, self.given
        if declared.bytes:
            return {"0 to 255 as uint8": ((0.0,) * channels, (1 / 255,) * channels)}
        if given.normalise is not None:
            mean, std = normalisation(given.normalise)
            return {f"normalised by {given.normalise}": (wide(mean, channels), wide(std, channels))}
        if "its own" in declared.means:
            return {"normalised by itself": declared.means["its own"]}
        ways = normalisations.usual(channels, declared.means)
        own = self.pictures.at(64, channels).float() / 255
        spread = own.std(dim=(0, 2, 3))
        if bool((spread > 0).all()):
            known = tuple(own.mean(dim=(0, 2, 3)).tolist()), tuple(spread.tolist())
            ways["normalised by the pictures' own mean and std"] = known
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
            with torch.no_grad(), watching(self.opened.module) as mismatch:
                for part in shown.split(32):
                    parts.append(self.opened.module(prepare(part.float() / 255)))
        except Exception as error:  # whatever the user's network raises on an image it does not take
            if self.remote and isinstance(error, UserError):
                raise
            self.failures.append(f"at {side} px with {wanted.channels} channels: {str(error).splitlines()[0][:160]}")
            return None
        raw = torch.cat(parts).float()
        if not bool(raw.isfinite().all()):
            self.failures.append(f"it answers NaN or infinity with {wanted.mean}, {wanted.std}")
            return None
        self.mismatch = mismatch.value
        return raw

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
        names = self.pictures.names
        if self.given.matched:
            return {"named one-to-one by what the model answers": matching(logits, labels, len(names))}
        inside = self.opened.declared.classes or getattr(self.opened.module, "names", ())
        return orders(names, raw.shape[1], inside, self.given.classes)

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
        rows = self.last
        raw = self._ask(replace(way.wanted, order=()), rows)
        assert raw is not None
        labels, people = self.pictures.labels[rows], len(self.pictures.names)
        # Every person's pictures in turn, so that both halves show everybody.
        half = torch.zeros(len(rows), dtype=torch.bool)
        for person in range(people):
            half[(labels == person).nonzero()[::2, 0]] = True
        if bool(half.all()):
            return 0.0
        order = torch.tensor(matching(raw.log_softmax(dim=1), labels, people, half))
        return float((raw.argmax(dim=1)[~half] == order[labels[~half]]).double().mean())

    def diagnosis(self, best: Way) -> str:
        """What was seen, where nothing fits."""
        people = len(self.pictures.names)
        said = (
            f"no way of asking the model fits: the best of {len(NORMALISATIONS)} normalisations and all class orders "
            f"names {best.accuracy:.0%} of {best.n} private pictures rightly ({best.normalisation}; {best.order}), and "
            f"guessing {1 / people:.0%}"
        )
        rows = self.last
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
            order = matching(raw.log_softmax(dim=1), self.pictures.labels[rows], people)
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


def _plain(wanted: Wanted) -> Wanted:
    """The way of asking alone, without what is made of the answer."""
    return replace(wanted, output="logits", order=())
