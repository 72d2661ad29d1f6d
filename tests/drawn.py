"""Drawn pictures of made-up classes: each class has its own arrangement of shapes, each picture its own variation."""

import random
from pathlib import Path

from PIL import Image, ImageDraw


def draw(rng: random.Random, kind: int, size: int, colour: bool) -> Image.Image:
    """One picture of a class: the same few shapes in the same places, shaken, on a background of its own."""
    own = random.Random(f"class {kind}")
    mode, fours = ("RGB", 3) if colour else ("L", 1)

    def shade(source: random.Random, low: int, high: int) -> tuple[int, ...]:
        return tuple(source.randint(low, high) for _ in range(fours))

    def shaken(value: float) -> float:
        return value + rng.gauss(0, 0.02)

    picture = Image.new(mode, (size, size), shade(rng, 0, 60) if colour else rng.randint(0, 60))
    pen = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y, wide, high = own.uniform(0, 0.6), own.uniform(0, 0.6), own.uniform(0.2, 0.5), own.uniform(0.2, 0.5)
        form, ink = own.choice(("rectangle", "ellipse", "line")), shade(own, 110, 235)
        x, y, wide, high = shaken(x), shaken(y), max(0.1, shaken(wide)), max(0.1, shaken(high))
        box = [round(size * one) for one in (x, y, x + wide, y + high)]
        ink = tuple(min(255, max(0, one + rng.randint(-15, 15))) for one in ink)
        if form == "line":
            pen.line(box, fill=ink if colour else ink[0], width=max(1, size // 10))
        else:
            getattr(pen, form)(box, fill=ink if colour else ink[0])
    return picture


def tree(
    root: Path, private: int = 10, public: int = 20, each: int = 10, size: int = 28, colour: bool = False, seed: int = 0
) -> tuple[Path, Path]:
    """Folders of private classes and of other, public ones; returns both."""
    for side, first, count in (("private", 0, private), ("public", 1000, public)):
        for kind in range(first, first + count):
            folder = root / side / f"{'thing' if side == 'private' else 'other'}{kind:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            for turn in range(each):
                picture = draw(random.Random(f"{seed} {kind} {turn}"), kind, size, colour)
                picture.save(folder / f"{turn:03d}.png")
    return root / "private", root / "public"
