"""Pictures: a person's private image, the nearest unseen one, and what each attack made, with the verdicts below.

The private image shown is the person's first training image. Beside it stands, of the same person's held-out images,
the one nearest to it (squared L2 in the headline evaluation model's features): how alike two photographs of one
person are, which no reconstruction need surpass. Of each attack the first reconstruction is shown, good or bad.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor

from mibench.core import Dataset
from mibench.metrics.knn import knn_distance
from mibench.report import tables
from mibench.report.leakage import numbered
from mibench.report.result import Result
from mibench.runtime import escape
from mibench.runtime.files import write_atomic
from mibench.stages import artifacts

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["IDENTITIES", "draw", "write"]

IDENTITIES = 6
"""People shown: of those attacked, the ones with the first labels."""

MOST = 12
"""Columns of reconstructions a picture holds; where there are more, each target shows its highest headline only."""

INK, GREY, GOOD, BAD = "#1b1f24", "#6b7280", "#15803d", "#b91c1c"
TILE = 176
"""Images are enlarged by a whole factor to about this many pixels."""

GAP, GROUP, MARGIN, LINE = 12, 30, 28, 26
NARROWEST, LETTER = 620, 11
"""The sheet's least width, and how wide a letter is at most on average, in pixels."""

YES, NO = "✓", "✗"

LEGEND = (
    f"target {YES}{NO} %: the attacked model's verdict and its confidence in the person",
    f"line below and bar: {YES} likeness: the evaluation model {{}}, which the attack never saw, names the person, and "
    f"the gate agrees; {NO} whom it names instead, or 'not alike' where only the gate refuses",
)


@dataclass(frozen=True)
class Verdict:
    """What the target and the headline say of one reconstruction."""

    target: bool
    confidence: float
    evaluator: bool
    answer: str


@dataclass(frozen=True)
class Strip:
    """One column: its defense and attack, an image per person, and the verdicts."""

    defense: str
    attack: str
    images: UInt8[Tensor, "n c h w"]
    verdicts: tuple[Verdict, ...]


def verdict(row: pd.Series, evaluator: str, classes: Sequence[str]) -> Verdict:
    """Read off per_image.csv. `evaluator` is the headline, likeness; `answer` the name of the person the evaluation
    model saw, or 'someone else', or 'not alike' where it saw the person and the gate does not.

    Scores that kept no `answer@` column tell a hit, and 'someone else' where only the closed-set answer is a hit;
    otherwise the answer was 'other': another private person or someone else.
    """
    if row["target_confidence"] != row["target_confidence"]:  # the attack left this person out
        return Verdict(False, 0.0, False, "no image")
    hit = bool(row[f"open_top1@{evaluator}"])
    named = row.get(f"answer@{evaluator}")
    if named is not None and int(named) != int(row["label"]):
        answer = classes[int(named)] if int(named) < len(classes) else "someone else"
    elif hit:
        answer = classes[int(row["label"])] if bool(row["likeness"]) else "not alike"
    else:
        answer = "someone else" if bool(row[f"closed_top1@{evaluator}"]) else "other"
    return Verdict(bool(row["target_top1"]), float(row["target_confidence"]), bool(row["likeness"]), answer)


def strips(results: list[Result], group: pd.DataFrame, labels: list[int], classes: Sequence[str]) -> list[Strip]:
    """One strip for each (defense, attack) of a protocol, in the order of its table."""
    shown = group[group["role"] == "attack"]
    if len(shown) > MOST:
        best = shown.groupby("target", sort=False)[tables.HEADLINE].idxmax()
        shown = shown.loc[best].head(MOST)
    runs = {result.run.id: result for result in results}
    made = []
    for _, row in shown.iterrows():
        one = runs[row["score"]]
        tensors, _ = artifacts.read_tensors(one.inversion.path / "images.safetensors", "reconstructions")
        places = [int((tensors["labels"] == label).nonzero()[0, 0]) for label in labels]
        verdicts = tuple(verdict(one.per_image.iloc[place], one.names[0], classes) for place in places)
        made.append(Strip(row["target_label"], row["attack_label"], tensors["images"][places], verdicts))
    return made


def real(result: Result, data: Dataset, labels: list[int]) -> tuple[UInt8[Tensor, "n c h w"], UInt8[Tensor, "n c h w"]]:
    """Each person's first private image and the held-out image nearest to it."""
    features, _ = artifacts.read_tensors(result.evaluators[0].path / "features.safetensors", "private features")
    private, heldout = [], []
    for label in labels:
        own = int((data.train.labels == label).nonzero()[0, 0])
        unseen = (data.heldout.labels == label).nonzero()[:, 0]
        here = features["train_features"][own].expand(len(unseen), -1)
        # One class per pair, so that the distances come one by one.
        each = torch.arange(len(unseen))
        distance = knn_distance(here, each, features["heldout_features"][unseen], each)
        private.append(data.train.images[own])
        heldout.append(data.heldout.images[unseen[int(distance.argmin())]])
    return torch.stack(private).cpu(), torch.stack(heldout).cpu()


# --- drawing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pen:
    """Text on the sheet."""

    canvas: "ImageDraw.ImageDraw"
    plain: "ImageFont.FreeTypeFont"
    bold: "ImageFont.FreeTypeFont"
    large: "ImageFont.FreeTypeFont"

    def words(self, x: float, y: int, parts: Sequence[tuple[str, str]], width: int, bold: bool = False) -> None:
        """Coloured parts on one line, centred on x, shortened to the width."""
        font = self.bold if bold else self.plain
        texts = [escape.terminal(text, 200) for text, _ in parts]
        while font.getlength("".join(texts)) > width and len(texts[-1]) > 2:
            texts[-1] = texts[-1].rstrip("…")[:-1].rstrip() + "…"
        at = x - font.getlength("".join(texts)) / 2
        for text, (_, colour) in zip(texts, parts, strict=True):
            self.canvas.text((at, y), text, fill=colour, font=font)
            at += font.getlength(text)


def _fonts(sheet: "Image.Image") -> Pen:
    """DejaVu, which matplotlib brings along: it has the tick and the cross."""
    import matplotlib
    from PIL import ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = str(folder / "DejaVuSans.ttf"), str(folder / "DejaVuSans-Bold.ttf")
    return Pen(
        ImageDraw.Draw(sheet), ImageFont.truetype(plain, 18), ImageFont.truetype(bold, 18), ImageFont.truetype(bold, 22)
    )


def _picture(image: UInt8[Tensor, "c h w"], factor: int) -> "Image.Image":
    from PIL import Image

    x = image.expand(3, -1, -1).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


def draw(
    title: str,
    evaluator: str,
    names: Sequence[str],
    private: UInt8[Tensor, "n c h w"],
    heldout: UInt8[Tensor, "n c h w"],
    columns: Sequence[Strip],
) -> "Image.Image":
    """The sheet: one row a person, two real images, then the strips grouped by defense."""
    from PIL import Image

    factor = max(1, round(TILE / private.shape[2]))
    high, wide = private.shape[2] * factor, private.shape[3] * factor
    left, x = [], MARGIN
    owners = ["", *(strip.defense for strip in columns)]
    for place in range(2 + len(columns)):
        left.append(x)
        new = place >= 1 and (place == 1 + len(columns) or owners[place] != owners[place - 1])
        x += wide + (GROUP if new else GAP)
    width = max(left[-1] + wide + MARGIN, NARROWEST)
    legend = [line for text in LEGEND for line in wrap(text.format(evaluator), (width - 2 * MARGIN) // LETTER)]
    top = MARGIN + 40 + 2 * LINE + 10
    step = high + 2 * LINE + 20
    height = top + step * len(names) + len(legend) * LINE + MARGIN // 2
    sheet = Image.new("RGB", (width, height), "white")
    pen = _fonts(sheet)
    pen.canvas.text((MARGIN, MARGIN - 6), escape.terminal(title, 200), fill=INK, font=pen.large)

    def middle(place: int) -> float:
        return left[place] + wide / 2

    head = MARGIN + 40
    for place, texts in enumerate((("private", "training image"), ("nearest", "held-out image"))):
        for line, text in enumerate(texts):
            pen.words(middle(place), head + line * LINE, [(text, INK)], wide, bold=True)
    for defense in dict.fromkeys(strip.defense for strip in columns):
        own = [place + 2 for place, strip in enumerate(columns) if strip.defense == defense]
        span = left[own[-1]] + wide - left[own[0]]
        label = "no defense" if defense == "none" else f"defense: {defense}" if len(own) > 1 else defense
        pen.words(left[own[0]] + span / 2, head, [(label, INK)], span, bold=True)
        pen.canvas.line((left[own[0]], head + LINE - 2, left[own[0]] + span, head + LINE - 2), fill=GREY, width=1)
    for place, strip in enumerate(columns):
        pen.words(middle(place + 2), head + LINE + 1, [(strip.attack, INK)], wide)
    for person, name in enumerate(names):
        y = top + person * step
        for place, image in enumerate((private[person], heldout[person])):
            sheet.paste(_picture(image, factor), (int(left[place]), y))
        pen.words(middle(0), y + high + 8, [(name, INK)], wide)
        for place, strip in enumerate(columns, start=2):
            sheet.paste(_picture(strip.images[person], factor), (int(left[place]), y))
            verdict = strip.verdicts[person]
            bar = (left[place], y + high + 2, left[place] + wide - 1, y + high + 5)
            pen.canvas.rectangle(bar, fill=GOOD if verdict.evaluator else BAD)
            mark = (f"{YES} " if verdict.target else f"{NO} ", GOOD if verdict.target else BAD)
            pen.words(middle(place), y + high + 8, [mark, (f"target {100 * verdict.confidence:.0f}%", INK)], wide)
            mark = (f"{YES} ", GOOD) if verdict.evaluator else (f"{NO} ", BAD)
            # A hit needs no name: it is the row's.
            below = evaluator if verdict.evaluator else verdict.answer
            pen.words(middle(place), y + high + 8 + LINE - 2, [mark, (below, INK if verdict.evaluator else GREY)], wide)
    for line, text in enumerate(legend):
        pen.canvas.text((MARGIN, top + step * len(names) + line * LINE), text, fill=GREY, font=pen.plain)
    return sheet


WITHHELD = 232
"""The grey that stands for a private image that is not shown."""


def write(folder: Path, results: list[Result], table: pd.DataFrame, private_images: bool = True) -> list[Path]:
    """`grid-<dataset>-<protocol>.png` for each protocol that has an attack; returns the paths.

    Without private images there is a grey square in the place of each real one, and a number in that of each name.
    """
    paths = []
    for group in tables.protocols(table):
        row: Any = group.iloc[0]
        own = [result for result in results if result.protocol == row["protocol"]]
        data = artifacts.dataset(own[0].target)
        labels = sorted(own[0].per_image["label"].unique().tolist())[:IDENTITIES]
        people = data.classes if private_images else [numbered(label) for label in range(len(data.classes))]
        columns = strips(own, group, labels, people)
        if not columns:
            continue
        private, heldout = real(own[0], data, labels)
        if not private_images:
            private, heldout = torch.full_like(private, WITHHELD), torch.full_like(heldout, WITHHELD)
        title = f"{row['dataset']}: {row['identities']} identities attacked"
        title += "" if private_images else " (private images withheld)"
        names = [people[label] for label in labels]
        sheet = draw(title, own[0].names[0], names, private, heldout, columns)
        path = folder / f"grid-{row['dataset']}-{row['protocol']}.png"
        write_atomic(path, partial(sheet.save, format="PNG"))
        paths.append(path)
    return paths
