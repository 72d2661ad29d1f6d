"""Docstrings as Markdown: prose, sections, and the table of a dataclass's or function's arguments."""

import inspect
import re
from dataclasses import dataclass, field

__all__ = ["Doc", "cell", "parse", "prose", "references", "signature"]

SECTIONS = ("References", "Args", "Raises", "Returns", "Yields", "Source", "Differs", "Shapes", "Units", "Example")
INDENTED = ("Args", "Raises", "Returns", "Yields", "References")
HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):(?:\s+(.*))?$")
INLINE = re.compile(r"^(\S.*[.;]) (Differs|Source): ", re.MULTILINE)
"""Where one section begins in the middle of another's line; indented lines belong to an argument."""


@dataclass
class Doc:
    """A docstring in parts.

    Args:
        body: The text before the first section.
        sections: Title -> its lines, dedented.
    """

    body: str
    sections: dict[str, str] = field(default_factory=dict)

    def items(self, section: str) -> dict[str, str]:
        """`name: meaning` entries of a section such as Args or Raises; `a, b: meaning` says it of both."""
        entries: dict[str, str] = {}
        name = ""
        for line in self.sections.get(section, "").splitlines():
            match = re.match(r"^(\w[\w.]*(?:, \w+)*):\s*(.*)$", line)
            if match:
                name = match[1]
                entries[name] = match[2]
            elif line.strip():
                entries[name] = f"{entries.get(name, '')} {line.strip()}".strip()
        return {one: text for names, text in entries.items() for one in names.split(", ")}


def parse(text: str | None) -> Doc:
    """A docstring's body and sections."""
    body: list[str] = []
    sections: dict[str, list[str]] = {}
    here, indented = body, False
    for line in INLINE.sub(r"\1\n\2: ", inspect.cleandoc(text or "")).splitlines():
        match = HEAD.match(line)
        if match:
            here = sections.setdefault(match[1], [])
            here += [match[2]] if match[2] else []
            indented = match[1] in INDENTED and not match[2]
        else:
            if indented and line and not line.startswith(" "):  # a remark below the list
                here, indented = body, False
                here.append("")
            here.append(line)
    return Doc(
        "\n".join(body).strip(), {name: inspect.cleandoc("\n" + "\n".join(lines)) for name, lines in sections.items()}
    )


def prose(text: str) -> str:
    """Text of a docstring as Markdown: what Markdown would take for markup is escaped, outside of `code` and blocks."""
    lines = []
    for line in text.splitlines():
        code = line.startswith("    ")
        lines.append(line if code else "".join(_escape(part) for part in re.split(r"(`[^`]*`)", line)))
    return "\n".join(lines)


def _escape(part: str) -> str:
    if part.startswith("`"):
        return part
    part = re.sub(r"([*\[\]_])", r"\\\1", part).replace("<", "&lt;")
    part = re.sub(r"(?<!\w)\\\*(\w(?:[\w -]*\w)?)\\\*(?!\w)", r"*\1*", part)  # *emphasis* stays
    return re.sub(r"https?://\S+[\w/]", lambda link: f"<{link[0].replace(chr(92), '')}>", part)


def cell(text: str) -> str:
    """Prose on one line of a table."""
    return prose(" ".join(text.split())).replace("|", r"\|")


def references(section: str) -> str:
    """The lines of a References section as a list."""
    entries: list[str] = []
    for line in section.splitlines():
        if line.strip().startswith("| "):
            text = line.strip()[2:]
            if entries and text.startswith("http"):
                entries[-1] += f", {text}"  # the address of the paper before it
            else:
                entries.append(text)
        elif entries and line.strip():
            entries[-1] += f" {line.strip()}"
    return "\n".join(f"- {prose(entry)}" for entry in entries)


def signature(name: str, function: object) -> str:
    """`name(argument: type = default, ...) -> type`, one argument a line where it is long; modules' paths left out."""
    try:
        shown = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    kept = [one for one in shown.parameters.values() if one.name not in ("self", "cls")]
    parts = [_short(str(one)) for one in kept]
    if any(one.kind is one.KEYWORD_ONLY for one in kept):
        parts.insert(next(i for i, one in enumerate(kept) if one.kind is one.KEYWORD_ONLY), "*")
    silent = shown.return_annotation is shown.empty or inspect.isclass(function)
    returns = "" if silent else f" -> {_annotation(shown.return_annotation)}"
    line = f"{name}({', '.join(parts)}){returns}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def _annotation(value: object) -> str:
    return value if isinstance(value, str) else _short(inspect.formatannotation(value))


def _short(text: str) -> str:
    text = re.sub(r"<(?:function|class|object)[^>]*?([\w.]+)[^>]*>", r"\1", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text).replace("'", '"')
