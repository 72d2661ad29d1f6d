"""What all pages share: one template environment, our style and scripts inside, and a policy that lets in no others.

A page is one file. What comes from a results folder is escaped; the policy forbids it to load or to send anything.
"""

import base64
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from mibench import __version__
from mibench.runtime.escape import terminal
from mibench.runtime.files import write_atomic

__all__ = ["render", "unnamed", "write"]


def render(template: str, scripts: tuple[str, ...], **values: Any) -> str:
    """A page's text.

    Args:
        template: Its name; it extends `frame.html`.
        scripts: Names of the scripts that it takes along.
        values: What the template shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("mibench.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: terminal(value) if type(value) is str and not value.isprintable() else value,
    )

    def verbatim(*names: str) -> Markup:
        """Files of ours: nothing of them is escaped."""
        loader: Any = environment.loader
        return Markup("\n".join(loader.get_source(environment, name)[0] for name in names))

    style, script = verbatim("page.css"), verbatim(*scripts)
    policy = (
        "default-src 'none'; img-src data: blob:; "
        f"style-src {allowed(style)}; script-src {allowed(script)}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        policy=policy, style=style, script=script, version=__version__, **values
    )


def allowed(text: str) -> str:
    """What lets one inline style or script pass the policy: its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def unnamed(line: str) -> str:
    """A line without absolute paths."""
    return " ".join(f"…/{Path(word).name}" if word.startswith("/") else word for word in line.split(" "))


def write(path: Path, text: str) -> Path:
    """A page's file; it appears whole or not at all."""
    write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
    return path
