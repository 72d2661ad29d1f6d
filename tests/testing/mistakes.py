"""The table of mistakes in docs/extend/mistakes.md, for the tests that make them."""

from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "extend" / "mistakes.md"


def rows(section: str) -> list[list[str]]:
    """The cells of every row of a section's table, without the marks of code around what mibench says."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [[*row[:-1], row[-1].removeprefix("`").removesuffix("`")] for row in cells]
