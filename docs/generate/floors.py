"""The picture of the floors: read from the test that enforces them, one line of each room's docstring beside it."""

import ast
import re
from html import escape
from pathlib import Path

__all__ = ["floors", "picture", "purpose"]

ROOT = Path(__file__).parent.parent.parent
STOREYS = (
    ("what people touch", ("api", "cli", "human_study", "report")),
    ("what is run", ("experiments", "testing", "stages", "isolation", "zoo", "runs")),
    ("what is measured", ("evaluation", "training", "metrics")),
    ("the methods", ("defenses", "attacks", "priors", "models", "data", "assets")),
    ("the foundation", ("plugins", "stats", "core", "runtime")),
)
COLOURS = ("#ede7f6", "#e3f2fd", "#e8f5e9", "#fff8e1", "#eceff1")
WIDTH, ROW, GAP, LEFT, NAME = 980, 26, 14, 150, 130


def floors() -> list[str]:
    """The rooms, bottom first, as tests/test_layering.py has them."""
    tree = ast.parse((ROOT / "tests" / "test_layering.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FLOORS":
            return [str(name) for name in eval(compile(ast.Expression(node.value), "FLOORS", "eval"), {})]
    raise LookupError("tests/test_layering.py has no FLOORS")


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = ROOT / "mibench" / room
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=[a-z)?])[.?;](?: |$)", text)[0].replace("`", "")


def picture() -> str:
    """The floors as SVG, the top one first; a room may import from every room below it and from none above."""
    rooms = list(reversed(floors()))
    storeys = [
        (title, [room for room in rooms if room in own], colour)
        for (title, own), colour in zip(STOREYS, COLOURS, strict=True)
    ]
    lost = set(rooms) - {room for _, own, _ in storeys for room in own}
    if lost:
        raise LookupError(f"docs/generate/floors.py: give {sorted(lost)} a storey")
    parts: list[str] = []
    y = GAP
    for title, own, colour in storeys:
        height = ROW * len(own) + GAP
        parts.append(f'<rect x="{GAP}" y="{y}" width="{WIDTH - 2 * GAP}" height="{height}" rx="6" fill="{colour}"/>')
        parts.append(f'<text x="{GAP + 12}" y="{y + height / 2 + 5:.0f}" class="storey">{escape(title)}</text>')
        for place, room in enumerate(own):
            base = y + GAP / 2 + ROW * place + 18
            parts.append(f'<text x="{LEFT + 20}" y="{base:.0f}" class="room">{room}</text>')
            parts.append(
                f'<text x="{LEFT + NAME + 20}" y="{base:.0f}" class="why">{escape(_cut(purpose(room)))}</text>'
            )
        y += height + GAP
    style = (
        "text{font-family:system-ui,sans-serif;font-size:14px;fill:#1b1f24}.storey{font-style:italic;fill:#455a64}"
        ".room{font-family:ui-monospace,monospace;font-weight:bold}.why{fill:#37474f}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'aria-label="The floors of mibench, top first"><rect width="{WIDTH}" height="{y}" fill="white"/>'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


def _cut(text: str) -> str:
    return text if len(text) <= 88 else f"{text[:87].rsplit(' ', 1)[0]} …"
