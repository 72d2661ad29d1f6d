"""Whatever a name says, and whatever lies in the place of a file: shown in one line, refused at once."""

# ruff: noqa: F811 (fixtures are imported)
import csv
import dataclasses
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import reported
import torch
from PIL import Image
from reported import noise  # noqa: F401 (a fixture)
from shell import ENVIRONMENT, command
from worlds import noise_image

from mibench.core import Dataset
from mibench.data import decode
from mibench.experiments import suites
from mibench.human_study.exchange import read_answers
from mibench.metrics import weights
from mibench.models import dlib_face
from mibench.runtime.checkpoints import read_checkpoint
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked, open_file, open_lock, write_json
from mibench.runtime.progress import Silent
from mibench.runtime.terminal import SafeConsole
from mibench.stages import artifacts

HOSTILE = {
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "return": "over\rwrite\nline",
    "bidi": "\u202egnp.exe\u2066",
    "formula": "=1+1",
    "sum": "@SUM(A1)",
    "link": '=HYPERLINK("http:~~evil","x")',
    "tab": "a\tb",
    "pipe": "a|b`c`*d*",
    "script": "<script>alert(1)<~script>",
    "write18": "$\\write18{id}$",
    "input": "\\input{x}",
    "markup": "[bold red]x[~]:smile:",
    "bytes": os.fsdecode(b"\xff\xfe\x80"),
    "long": "n" * 240,
}
"""Names that a file system takes: a slash would end one."""

RAW = ("\x1b[31m", "\x07", "\r", "\u202e", "\u2066", "\t", "\udcff", "gnp.exe\u2066")


def tree(root: Path) -> Path:
    """A data set of people with these names."""
    for place, name in enumerate(HOSTILE.values()):
        for number in range(2):
            path = root / "private" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise_image(10 * place + number).save(path)
    for number in range(3):
        path = root / "public" / str(number) / "a.png"
        path.parent.mkdir(parents=True)
        noise_image(900 + number).save(path)
    return root


def raw(text: str) -> list[str]:
    """What a terminal would obey in a text."""
    return [one for one in RAW if one in text]


def test_data_show_takes_people_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback where a name is no UTF-8."""
    monkeypatch.chdir(tmp_path)
    folder = tree(tmp_path / "people")
    told = command("data", "show", "folder", "--set", f"path={folder}", "--set", "image_size=16")
    assert told.code == 0, told.err
    assert raw(told.out) == raw(told.err) == []
    with Image.open("folder.png") as picture:
        assert picture.size[0] > 100
    told = command("data", "show", "folder", "--set", f"path={folder}", "--set", "image_size=16", "--json")
    assert told.code == 0 and raw(told.out) == [] and "\\udcff" in told.out


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_error_quotes_a_name_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ("data", "show", "folder", "--set", f"path={name}"),
        ("show", name),
        ("cite", name),
        ("features", name),
        ("run", name),
        ("list", name),
        ("checks", name),
        ("report", name),
        ("attack", "--method", name),
        ("train", "--defense", name),
    ):
        told = command(*words)
        if words[0] == "checks":
            assert raw(told.out) == raw(told.err) == []
        else:
            assert raw(told.error) == [] and told.error.isprintable(), words


@pytest.mark.parametrize("name", [*HOSTILE.values(), "x" * 10_000], ids=[*HOSTILE.keys(), "10,000"])
def test_a_console_shows_what_it_is_given(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    table.add_row(Text(name))
    console = SafeConsole(width=400)
    console.print(table, name, Text(name))
    told = capsys.readouterr().out
    assert raw(told) == []
    if name.startswith("[bold"):
        assert name in told, "markup is text"


# --- what is no file ------------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # such a name has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


KINDS: list[Callable[[Path], None]] = [pipe, unix_socket, device, terminal]
READERS: dict[str, Callable[[Path], object]] = {
    "suite": lambda path: suites.read(str(path)),
    "answers": lambda path: read_answers(path, []),
    "weights": lambda path: weights.read(path, weights.WeightFile(("w",), "https://example.invalid", "")),
    "dlib": dlib_face.read,
    "checkpoint": lambda path: read_checkpoint(path, torch.device("cpu")),
    "tensors": lambda path: artifacts.read_tensors(path, "reconstructions"),
    "header": artifacts.read_header,
    "picture": lambda path: decode.decode_all([path], 16, True, Silent()),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(reader: str, kind: Callable[[Path], None], tmp_path: Path) -> None:
    """Each of these waited for ever, or read without end."""
    path = tmp_path / "x.toml"
    kind(path)
    with pytest.raises(UserError) as told:
        READERS[reader](path)
    assert str(path) in str(told.value) or reader == "suite"


def test_the_file_that_was_looked_at_is_the_one_that_is_read(tmp_path: Path) -> None:
    """Its name may lead elsewhere by then."""
    path = tmp_path / "a"
    path.write_bytes(b"first")
    with checked(path) as name, open_file(path) as file:
        path.unlink()
        path.write_bytes(b"second")
        assert Path(name).read_bytes() == file.read() == b"first"


def test_a_lock_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="pipe"):
        open_lock(tmp_path / "lock")


def test_a_pipe_named_as_a_killed_writers_folder_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.json.1.tmp")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize("what", ["person", "picture", "groups"])
def test_a_link_out_of_the_tree_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, secret = tmp_path / "people", tmp_path / "secret"
    for name in ("a", "b"):
        for number in range(2):
            path = root / "private" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise_image(10 * ord(name) + number).save(path)
    for number in range(3):
        (root / "public" / str(number)).mkdir(parents=True)
        noise_image(number).save(root / "public" / str(number) / "a.png")
    secret.mkdir()
    noise_image(77).save(secret / "0.png")
    noise_image(78).save(secret / "1.png")
    (secret / "g.csv").write_text("identity,group\na,x\n")
    link = {"person": "private/c", "picture": "private/a/2.png", "groups": "groups.csv"}[what]
    (root / link).symlink_to(secret / {"person": "", "picture": "0.png", "groups": "g.csv"}[what])
    words = ("data", "show", "folder", "--set", f"path={root}", "--set", "image_size=16")
    assert "1 link(s) lead out of" in command(*words).error
    (root / link).unlink()
    (root / "private/a/2.png").symlink_to("0.png")  # within the tree, and a copy of the person's own
    assert command(*words).code == 0


# --- pixels ---------------------------------------------------------------------------------------------------------

DECODE = """
import resource, sys
from pathlib import Path
from mibench.core import Dataset
from mibench.data import decode
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode.decode_all([Path(name) for name in sys.argv[1:]], 32, True, Silent())
    print("read")
except UserError as error:
    print(error)
print(base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def decoded(files: list[Path]) -> tuple[str, float, float]:
    """What is said, and the MB that a process holds at most, before it decodes and in the end."""
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *map(str, files)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    said, sizes = done.stdout.strip().rsplit("\n", 1)
    scale = 1e-3 if sys.platform == "linux" else 1e-6
    before, after = (float(one) * scale for one in sizes.split())
    return said, before, after


def copies(tmp_path: Path, side: int) -> list[Path]:
    first = tmp_path / "0.png"
    Image.new("L", (side, side)).save(first)
    for number in range(1, 8):
        os.link(first, tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(8)]


def test_eight_small_files_of_88_megapixels_are_refused_by_name_without_their_memory(tmp_path: Path) -> None:
    files = copies(tmp_path, 9380)
    assert files[0].stat().st_size < 100_000
    said, before, after = decoded(files)
    assert "8 of 8 image files cannot be read" in said and str(files[0]) in said and "88 million pixels" in said
    assert after - before < 60, (before, after)


def test_large_pictures_are_decoded_one_after_the_other(tmp_path: Path) -> None:
    """36 megapixels each, grey to colour: 36 and 144 MB; eight threads would have held 1.4 GB."""
    said, before, after = decoded(copies(tmp_path, 6000))
    assert said == "read"
    assert after - before < 400, (before, after)


def test_a_large_jpeg_is_halved_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise_image(3, 400, 400)
    picture.resize((800, 800)).save(tmp_path / "a.jpg", quality=95)
    whole, done = decode.decode(tmp_path / "a.jpg", 32, True)
    assert not any("halved" in one for one in done)
    monkeypatch.setattr(decode, "MOST", 200_000)
    halved, done = decode.decode(tmp_path / "a.jpg", 32, True)
    assert any("halved" in one for one in done)
    assert (whole.float() - halved.float()).abs().mean() < 6
    picture.resize((800, 800)).save(tmp_path / "b.jpg", progressive=True)
    with pytest.raises(ValueError, match="million pixels"):
        decode.decode(tmp_path / "b.jpg", 32, True)


# --- the outputs of a results folder ---------------------------------------------------------------------------------


def test_no_output_of_a_results_folder_obeys_a_name(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminal and every file of the report, show, checks and cite, where people and runs have hostile names."""
    names = tuple(HOSTILE.values())
    four = [names[place : place + 4] for place in range(0, 12, 4)]
    for place, people in enumerate(four):
        folder = tmp_path / str(place)
        folder.mkdir()
        own = dataclasses.replace(noise, classes=people)
        monkeypatch.setattr(reported, "CLASSES", people)
        monkeypatch.setattr(artifacts, "open_dataset", lambda inputs, own=own: own)
        root = folder / "results"
        judges = [reported.judge(root, name, own) for name in ("resnet", "ir")]
        for defenses in ([], [{"name": "re", "settings": reported.RE}]):
            victim = reported.target(root, defenses, own)
            run = reported.score(root, "gmi", victim, judges, reported.bits("110000000000"), own)
        monkeypatch.chdir(folder)
        for words in (
            ("report", "results"),
            *([] if place else [("report", "results", "--json")]),  # writes all files again, which takes seconds
            ("show", run.id),
            ("show", run.id, "--json"),
            ("checks", "results"),
            ("cite", run.id),
        ):
            told = command(*words)
            assert told.code == 0, (words, told.err)
            assert raw(told.out.replace("\t", "")) == raw(told.err) == [], words
        for path in (root / "report").iterdir():
            if path.suffix in (".csv", ".md", ".tex", ".json", ".html"):
                text = path.read_text(encoding="utf-8")
                assert raw(text.replace("\t", "")) == [], path
                if path.suffix == ".csv":
                    rows = csv.reader(io.StringIO(text))
                    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@")], path
                if path.suffix in (".md", ".html"):
                    assert "<script>alert" not in text, path
                if path.suffix == ".tex":
                    assert not re.search(r"(?<!\\)\$\\write18|\\input\{x", text.split("\n", 1)[1]), path
