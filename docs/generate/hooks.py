"""What mkdocs calls while it builds: adds the generated pages and pictures, so that none can be out of date.

Nothing is written to disk: a page exists in the site only. Addresses follow names: `attacks/gmi/` is
`mibench/attacks/gmi.py`.
"""

import re
from typing import Any

import contract
import datasets
import methods
import networks
import protocols
import reference
from floors import picture
from mkdocs.structure.files import File

from mibench.plugins import registry

COPIED = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
"""Files of the repository's root that are pages too."""


def pages() -> dict[str, str]:
    """Address in the docs folder -> content of every generated page."""
    made = {f"{kind}/index.md": methods.index(kind) for kind in methods.TITLES}
    made |= {f"{kind}/{name}.md": methods.page(kind, name) for kind in methods.TITLES for name in registry.names(kind)}
    made |= {"cli.md": reference.cli(), "api.md": reference.api(), "extend/contract.md": contract.page()}
    made |= {"datasets.md": datasets.page()}
    made |= {"networks.md": networks.page(), "papers/index.md": protocols.index()}
    made |= {f"papers/{name}.md": protocols.page(name) for name in protocols.NAMES}
    return made | {file.lower(): _copy(file) for file in COPIED}


def _copy(file: str) -> str:
    """A file of the repository's root as a page; its links into docs/ and to its like are the site's own."""
    text = (methods.ROOT / file).read_text(encoding="utf-8").replace("](docs/", "](")
    for other in COPIED:
        text = text.replace(f"]({other})", f"]({other.lower()})")
    return text


def on_config(config: Any) -> Any:
    """Put the lists of protocols and of methods into the navigation, below their headings."""
    for entry in config.nav:
        for heading, below in entry.items() if isinstance(entry, dict) else ():
            if heading == "The papers' protocols":
                below[:] = ["papers/index.md", *({name: f"papers/{name}.md"} for name in protocols.NAMES)]
            if heading == "Methods":
                below[:] = [
                    {
                        title: [
                            f"{kind}/index.md",
                            *({name: f"{kind}/{name}.md"} for name in sorted(registry.names(kind))),
                        ]
                    }
                    for kind, title in methods.TITLES.items()
                ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated files."""
    for address, content in pages().items():
        files.append(File.generated(config, address, content=content))
    files.append(File.generated(config, "assets/floors.svg", content=picture()))
    return files


LONG = 32
"""Characters of a name that a narrow column cannot hold whole."""


def _name(found: re.Match[str]) -> str:
    """One word of `code`: an option or another name with a hyphen in one piece, a long path breakable at its joints."""
    word = found[0]
    if len(word) > LONG:
        return re.sub(r"(?<=[/_)])(?=\w)", "<wbr>", word)
    return f'<span class="whole">{word}</span>' if "-" in word else word


def on_page_content(html: str, **_: Any) -> str:
    """Say where lines may break: not within an option or an interval, but within long paths and addresses."""
    html = re.sub(r"(?<=<code>)(?<!</span><code>)[^<]+(?=</code>)", lambda one: re.sub(r"\S+", _name, one[0]), html)
    html = re.sub(r"(\[[-+]?[\d.]+), ([-+]?[\d.]+\])", r"\1,&nbsp;\2", html)
    address = re.compile(r'(<a href="https?://([^"]*)">)https?://\2</a>')
    return address.sub(lambda one: one[1] + one[2].rstrip("/").replace("/", "/<wbr>") + "</a>", html)
