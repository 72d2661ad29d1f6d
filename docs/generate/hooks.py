"""What mkdocs calls while it builds: adds the generated pages and pictures, so that none can be out of date.

Nothing is written to disk: a page exists in the site only. Addresses follow names: `attacks/gmi/` is
`mibench/attacks/gmi.py`.
"""

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
