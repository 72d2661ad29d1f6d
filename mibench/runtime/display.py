"""How a result shows itself: a table in a terminal, HTML with a picture in a notebook."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mibench.runtime import escape
from mibench.runtime.files import read_bytes

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Shown"]


class Shown:
    """Gives rich and HTML representations to whatever can summarise itself."""

    def summary(self) -> Mapping[str, str]:
        """What is worth knowing at a glance, in order: name -> value as a person reads it."""
        raise NotImplementedError

    def picture(self) -> Path | None:
        """A PNG beside the summary, if there is one."""
        return None

    def __rich__(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(title=type(self).__name__, show_header=False)
        for name, value in self.summary().items():
            table.add_row(name, Text(escape.terminal(value)))
        return table

    def _repr_html_(self) -> str:
        facts = [(escape.html(name), escape.html(value)) for name, value in self.summary().items()]
        rows = (f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts)
        path, shown = self.picture(), ""
        if path is not None and path.is_file():
            data = base64.b64encode(read_bytes(path)).decode()
            shown = f'<img alt="{escape.html(path.name)}" src="data:image/png;base64,{data}" style="max-width:100%">'
        return f"<div><table>{''.join(rows)}</table>{shown}</div>"
