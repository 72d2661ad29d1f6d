"""The site is whole: every method and command has its page, every public name its docstring, every command exists."""

import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import mibench
from mibench.experiments import suites
from mibench.experiments.published import published
from mibench.plugins import registry

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs" / "generate"))  # as mkdocs does for its hooks

import floors  # noqa: E402
import methods  # noqa: E402
import protocols  # noqa: E402
import reference  # noqa: E402
from docstrings import parse, prose  # noqa: E402

EVERY = [(kind, name) for kind in methods.TITLES for name in registry.names(kind)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_method_has_a_page_with_its_settings_and_source(kind: str, name: str) -> None:
    page = methods.page(kind, name)
    card = registry.card(kind, name)
    assert page.startswith(f"# `{name}`\n") and "## What it does" in page
    assert f"({name}.md)" in methods.index(kind)
    if card.get("authors"):
        assert f"]({card['link']})" in page and "```bibtex" in page
    prose_only = re.sub(r"\]\([^)]*\)", "", page)
    assert not re.findall(r"[\w/]+\.md\b", prose_only), "cite what a reader can open"
    if kind in registry.BASES:
        from mibench.plugins.settings import settings_of

        for field in settings_of(registry.load(kind, name)):
            row = re.search(rf"^\| `[\w.]*\b{field}` \|.*\| (.*) \|$", page, re.MULTILINE)
            assert row, f"{kind}/{name}: no row for the setting {field}"
            assert row[1].strip(), f"{kind}/{name}: the docstring's Args do not describe {field}"


@pytest.mark.parametrize("name", ["kedmi-celeba", "mirror-vggface2"])
def test_every_published_protocol_has_a_page_with_its_sweeps_numbers_and_differences(name: str) -> None:
    page, whole = protocols.page(name), suites.parsed(name)[2]
    assert f"]({name}.md)" in protocols.index()
    assert all(f"| {part['name']} |" in page for part in whole.get("sweep", []))
    for one in published([name]):
        row = f"| `{one.model}` | `{one.defense}` |"
        assert any(line.startswith(row) and one.source in line for line in page.splitlines())
        assert one.value is None or f"| {one.value:.2f}" in page
    for line in protocols.WORDS[name]["differs"]:
        assert f"- {line}" in page
    assert f"mibench run {name} --check" in page and "mibench data prepare " in page
    prose_only = re.sub(r"\]\([^)]*\)", "", page)
    assert not re.findall(r"[\w/]+\.md\b", prose_only), "cite what a reader can open"


def test_every_command_is_on_the_page_with_its_options() -> None:
    page = reference.cli()
    for name, command in reference.commands().items():
        assert f"## mibench {name}\n" in page
        assert command.help, f"mibench {name} has no help"
        for given in command.params:
            assert getattr(given, "help", None) or given.name == "help", f"mibench {name}: {given.name} has no help"


def _lines(text: str) -> Iterator[str]:
    """Commands in indented or fenced blocks and in `code`."""
    for line in re.findall(r"(?:^ {4}|&& |`)(mibench [a-z][^`\n]*)", text, re.MULTILINE):
        yield line.split("&&")[0].strip()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_prose_exist_with_their_options(path: Path) -> None:
    known = reference.commands()
    for line in _lines(path.read_text(encoding="utf-8")):
        words = shlex.split(line.partition(" # ")[0].replace("...", ""))[1:]
        if not words or "|" in words:
            continue
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        if not re.fullmatch(r"[a-z-]+", words[0]):
            continue
        assert name in known, f"{path.name}: there is no command {line!r}"
        offered = {option for given in known[name].params for option in (*given.opts, *given.secondary_opts)}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= offered | {"--help"}, f"{path.name}: {line!r} uses {used - offered}"


def test_every_public_name_is_described() -> None:
    page = reference.api()
    for name, one in reference.public().items():
        assert f"# {name.removeprefix('mibench.core.')}\n" in page, f"{name} is not on the page"
        named = isinstance(one, type) or inspect.isfunction(one)
        doc = parse(one.__doc__ if named else reference.alias(name.rpartition(".")[2]))
        assert doc.body, f"{name} has no docstring"
        if name.count(".") == 1 and callable(one) and not isinstance(one, type):  # a function of mibench itself
            arguments = set(inspect.signature(one).parameters)
            assert set(doc.items("Args")) == arguments, f"{name}: Args differ: {set(doc.items('Args')) ^ arguments}"
            assert "Raises" in doc.sections, f"{name} does not say what it raises"


def test_the_picture_shows_every_floor_once_with_what_it_is_for() -> None:
    picture = floors.picture()
    for room in floors.floors():
        assert picture.count(f'class="room">{room}<') == 1
        assert floors.purpose(room)


def test_docstrings_become_markdown_that_says_the_same() -> None:
    arguments = "Args:\n    a: One\n        and more.\n    b: Two. Differs: not a section."
    doc = parse(f"min_z f(z).\n\n{arguments}\n\nSource: x. Differs: y.")
    assert doc.body == "min_z f(z)."
    assert doc.items("Args") == {"a": "One and more.", "b": "Two. Differs: not a section."}
    assert (doc.sections["Source"], doc.sections["Differs"]) == ("x.", "y.")
    assert prose("a * b_c <d> `e_f` *g h*") == r"a \* b\_c &lt;d> `e_f` *g h*"


def test_the_readme_is_two_screens_and_shows_the_script_that_is_tested() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    script = (ROOT / "docs" / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert script.strip() in readme
    for command in ("python -m pip install . && mibench demo", "python -m pip install '.[test]' && python -m pytest"):
        assert f"\n    {command}\n" in readme
    assert "2410.05159" in readme
    for link in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", readme):
        assert (ROOT / (link[0] or link[1])).exists(), link


@pytest.mark.parametrize("kind", list(methods.TITLES))
def test_the_readme_names_every_method(kind: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if kind in ("models", "metrics"):
        return  # families and modules; a row names what they give
    for name, card in registry.cards(kind).items():
        assert f"`{name}`" in readme or f"`+{name}`" in readme or name == "none", f"{card.get('role', kind)} {name}"


def test_the_numbers_in_the_readme_are_those_of_the_reference_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [row for row in methods._rows("judges/tables.csv") if row["target_label"] in ("none seed 0", "")]
    wanted = {"public_search": "floor: the public", "gmi": "GMI", "ppa": "PPA", "real held-out": "ceiling"}
    for row in rows:
        label = wanted.get(row["attack"])
        if label:
            line = next(line for line in readme.splitlines() if line.startswith(f"| {label}"))
            assert methods._percent(row, "likeness") in line, (row["attack"], line)
            assert methods._percent(row, "open_top1@resnet") in line, (row["attack"], line)


def test_one_version_everywhere() -> None:
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {mibench.__version__}\n" in cff
    assert f"## [{mibench.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    loaded: Any = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(loaded)
    for kind, name in EVERY:
        assert (tmp_path / "site" / kind / name / "index.html").is_file()
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert not [path for path, page in pages.items() if re.search(r"8\s*&lt;\s*-", page)], "a file was not put in"
    quickstart = pages[tmp_path / "site" / "quickstart" / "index.html"]
    whole = [part.count('class="whole"') for part in re.split(r"(<pre>.*?</pre>)", quickstart, flags=re.DOTALL)]
    assert sum(whole[::2]) > 5 and not sum(whole[1::2]), "options in sentences are not broken; code is left alone"
    assert "celeba/<wbr>align_" in pages[tmp_path / "site" / "papers" / "ppa-celeba" / "index.html"]
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert len(index["docs"]) > len(EVERY)
    assert version("mkdocs")
