"""Whatever mibench reads may be wrong in any way: it works, or one line names the file or setting. Never a traceback.

`MIBENCH_FUZZ=50 pytest -n 0 tests/test_fuzz.py` tries 50 times as many inputs, and says how many.
"""

import io
import json
import math
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tarfile
import typing
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import type_checks
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from shell import GAN, JUDGES, SMALL, Outcome, command, full_disk, results, sets, world

from mibench import runs
from mibench.data import decode as decoding
from mibench.experiments import suites
from mibench.plugins import registry
from mibench.plugins.settings import settings_of
from mibench.report import frame, load
from mibench.runs import Library, Run, canonical
from mibench.runtime.checkpoints import read_checkpoint, write_checkpoint
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.stages import artifacts

TIMES = int(os.environ.get("MIBENCH_FUZZ", "1"))
TRIED: Counter[str] = Counter()


def examples(count: int) -> settings:
    return settings(
        max_examples=count * TIMES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )


@pytest.fixture(scope="module", autouse=True)
def _count() -> Iterator[None]:
    yield
    if TIMES > 1:
        print(f"\n{sum(TRIED.values()):,} inputs: {dict(TRIED)}", file=sys.__stderr__)


@contextmanager
def promptly(seconds: float = 60) -> Iterator[None]:
    """No input may hang."""

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def law(kind: str, *words: str) -> Outcome:
    """A command that works, or is refused in one printable line that says something."""
    TRIED[kind] += 1
    with promptly():
        done = command(*words)
    assert done.code in (0, 2), done
    if done.code == 2:
        last = done.err.splitlines()[-1]
        assert last.startswith("mibench: error: ") and len(last) > 30 and last.isprintable(), done.err
        assert "Traceback" not in done.err
    return done


def refused(kind: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, or the one line with which it refuses."""
    TRIED[kind] += 1
    try:
        with promptly():
            return call()
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) > 15, str(error)
        return error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SEEDS = st.integers(0, 2**48)
"""Damage to files is drawn from these: what hypothesis draws may not depend on files."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, wiped, doubled or replaced; never the same bytes."""
    found = bytearray(content)
    place = rng.randrange(max(1, len(content)))
    kind = rng.choice(["cut", "flip", "flip", "flips", "wipe", "insert", "double", "empty", "other"])
    if kind == "cut":
        del found[place:]
    elif kind in ("flip", "flips") and content:
        for _ in range(1 if kind == "flip" else rng.randint(2, 20)):
            found[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "wipe":
        found[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == "insert":
        found[place:place] = rng.randbytes(rng.randint(1, 9))
    elif kind == "double":
        found += bytes(found) or b"x"
    elif kind == "empty":
        found.clear()
    else:
        found = bytearray(rng.randbytes(rng.randrange(40)))
    return bytes(found) if bytes(found) != content else damaged(content, rng)


# --- settings -------------------------------------------------------------------------------------------------------

KINDS = ("attacks", "defenses", "priors", "data")
PLUGINS = [(kind, name) for kind in KINDS for name in registry.names(kind)]
BUILT = [(kind, name) for kind, name in PLUGINS if registry.card(kind, name).get("role") != "wrapper"]
BUILT += [("attacks", name) for name in ("gmi+eot", "ppa+align", "ppa+eot+align")]

ODD: list[Any] = [
    "",
    " ",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "1e308",
    "1e-320",
    "-0.0",
    "9" * 30,
    "9" * 400,
    "9" * 5000,
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1.5",
    "1_0",
    "0x10",
    "٣",
    "½",
    "true",
    "none",
    "None",
    "[]",
    "()",
    "{}",
    "[1",
    "1,2",
    ",",
    "1,2,3,4,5",
    "nan,nan",
    "\x00",
    "\x1b[31m",
    "a\nb",
    "\ud800",
    "😀" * 50,
    "x" * 5000,
    "../../x",
    "a=b",
    "%s{0}",
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    10**18,
    10**30,
    -(10**400),
    0.5,
    -0.5,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    [],
    [1],
    [1, [2]],
    ["a"],
    [math.nan, 1],
    (),
    {},
    {"a": 1},
    b"x",
    1j,
]
"""Values that no setting expects."""


def configured(kind: str, name: str, given: dict[str, Any]) -> registry.Choice | UserError:
    return refused("settings", lambda: registry.configure(kind, name, settings=given))


PREPARED = {"celeba", "facescrub", "pubfig83", "stanford_dogs", "vggface2"}
"""Data sets of files that are not here."""


@pytest.mark.parametrize(("kind", "name"), BUILT, ids=lambda one: one)
def test_every_setting_takes_or_refuses_every_value(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken is of the declared type and goes into a specification that gives the same plug-in again."""
    monkeypatch.setattr(type_checks.Calls, "makings", True)
    given = {"path": "x"} if name == "folder" else {}
    for field in registry.defaults(kind, name):
        for value in ODD:
            choice = configured(kind, name, {**given, field: value})
            if isinstance(choice, UserError):
                owner, _, last = field.rpartition(".")
                # A combination may be refused by the plug-in, in its own words.
                assert any(one in str(choice) for one in (last, owner or name.split("+")[0])), str(choice)
            elif name in PREPARED:  # which says in a specification what the files hold
                assert isinstance(refused("settings", choice.spec), UserError)
            elif name != "folder" and field != "root":  # those are hashed, not kept
                again = registry.configure(kind, name, settings=json.loads(canonical(choice.spec()["settings"])))
                # How many bystanders there are decides no byte of a data set, and so is no part of its specification.
                assert again.spec() == choice.spec() and (again == choice or field == "bystanders")


def texts(kind: str, name: str) -> st.SearchStrategy[dict[str, str]]:
    """Settings as they are typed, mostly good ones."""
    base, around = registry._parts(kind, name)
    hints = {}
    for one, prefix in ((base, ""), *((one, f"{one}.") for one in around)):
        cls = registry.load(kind, one)
        hints |= {prefix + field: typing.get_type_hints(cls)[field] for field in settings_of(cls)}
    return st.fixed_dictionaries({}, optional={field: written(hint) for field, hint in hints.items()})


def written(hint: Any) -> st.SearchStrategy[str]:
    """Texts of a type."""
    args = typing.get_args(hint)
    if type(None) in args:
        return st.just("none") | written(next(one for one in args if one is not type(None)))
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(args)
    if typing.get_origin(hint) is tuple:
        kinds = [args[0]] * 2 if args[-1] is Ellipsis else list(args)
        return st.tuples(*(written(one) for one in kinds)).map(",".join)
    if hint is bool:
        return st.sampled_from(["true", "false", "yes", "0"])
    if hint is int:
        return st.integers(0, 300).map(str)
    if hint is float:
        return st.floats(0, 1).map(str) | st.floats(0, 50).map(repr)
    return st.text("abc./", min_size=1, max_size=6)


def run_of(choice: registry.Choice, spec: dict[str, Any] | None = None) -> Run:
    return Run(Path("results"), "inversions", choice.name, {"attack": spec or choice.spec(), "seed": 0})


@examples(80)
@given(st.data())
def test_text_to_plugin_to_specification_and_back(data: st.DataObject) -> None:
    """The same plug-in and id; the order of keys means nothing, every value does."""
    kind, name = data.draw(st.sampled_from([one for one in BUILT if one[0] != "data"]))
    choice = configured(kind, name, data.draw(texts(kind, name)))
    assume(not isinstance(choice, UserError))
    spec = json.loads(canonical(choice.spec()))
    again = registry.configure(kind, name, settings=spec["settings"])
    assert again.plugin == choice.plugin and again.spec() == choice.spec()
    one = run_of(choice).id
    keys = data.draw(st.permutations(sorted(spec["settings"])))
    shuffled = {"settings": {key: spec["settings"][key] for key in keys}, "name": spec["name"]}
    assert run_of(again).id == one == run_of(again, shuffled).id
    if keys:
        changed = configured(kind, name, {**spec["settings"], **data.draw(texts(kind, name))})
        if not isinstance(changed, UserError):
            assert (run_of(changed).id == one) == (changed.plugin == choice.plugin)
        for key in keys:
            other = {**spec["settings"], key: [spec["settings"][key], "changed"]}
            assert run_of(again, {**spec, "settings": other}).id != one


WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "+",
        "re+",
        "+re",
        "re+re",
        "none+re",
        "re+bido",
        "ppa+eot",
        "eot",
        "ppa+ppa",
        "ppa+eot+eot",
        "gmi+",
        "all",
        "ppa,gmi",
        "a+b",
        ",",
        "resnet,ir",
        "wgan_gp+x",
        "../x",
        "/",
        "~nobody/x",
        "\x1b[2J",
        "a\nb",
        "1e9",
        "-5",
        "9" * 25,
        "\u202eabc",
        "digiface",
        "folder",
        "orl",
        "gmi",
        "quick",
        "paper",
        "cnn",
        "public",
        "imagenet",
        "x" * 5000,
    ]
)
SETS = st.builds(
    lambda owner, field, value: f"{owner}{field}={value}",
    st.sampled_from(["", "data.", "training.", "prior.", "evaluator.", "eot.", "re.", ".", "a.b."])
    | st.text(max_size=4),
    st.sampled_from(["epochs", "lr", "identities", "image_size", "steps", "a_e", "images", "seed", "optimizer", ""])
    | st.text(max_size=6),
    st.sampled_from([one for one in ODD if isinstance(one, str)]) | st.text(max_size=8),
)
OPTIONS = {
    "train": ["--defense", "--model", "--pretrained", "--evaluators", "--dataset", "--seed", "--precision", "--device"],
    "train-prior": ["--prior", "--preset", "--target", "--dataset", "--seed"],
    "invert": ["--method", "--preset", "--target", "--prior", "--identities", "--budget", "--dataset"],
    "attack": ["--method", "--preset", "--target", "--prior", "--identities", "--evaluators"],
    "score": ["--inversion", "--images", "--target", "--name", "--evaluators"],
    "sweep": ["--defense", "--method", "--strengths", "--model", "--seeds", "--seed", "--preset"],
}


def safe(text: str) -> str:
    """As the shell can hand it over; no option."""
    return text.replace("\x00", "0").encode("utf-8", "replace").decode().lstrip("-") or "x"


@examples(60)
@given(st.data())
def test_commands_take_or_refuse_any_words(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(OPTIONS)))
    chosen = data.draw(st.lists(st.sampled_from(OPTIONS[name]), unique=True, max_size=3))
    words = [name, "--dry-run", "--json", "--results", "/nonexistent"]
    for option in chosen:
        words += [option, safe(data.draw(WORDS))]
    for one in data.draw(st.lists(SETS, max_size=2)):
        words += ["--set", safe(one)]
    law("words", *words)


@examples(16)
@given(st.sampled_from(["show", "cite", "features", "judge", "run", "list", "report", "checks", "data"]), WORDS)
def test_commands_on_one_name_take_or_refuse_any(name: str, word: str) -> None:
    law("words", name, safe(word))


# --- TOML -----------------------------------------------------------------------------------------------------------

SUITE = """title = "a"
dataset = "digiface"
defenses = ["none", "re location=torus"]
strengths = [0.4]
methods = ["ppa steps=2", "gmi"]
floors = ["prior_search"]
seeds = [0]
[settings.data]
identities = 4
[settings.training]
epochs = 1
betas = [0.5, 0.9]
[[sweep]]
identities = 2
[[sweep]]
adaptive = false
"""
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["re", "ppa", "all", "grid", "re location", "'", "none+re", "digiface", "a\x1b[0m"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode())
    return (
        {None: "1979-05-27T07:32:00Z", True: "true", False: "false"}.get(value, str(value))
        if (value is None or isinstance(value, bool))
        else str(value)
    )


def suite(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    done = law("toml", "run", str(path), "--dry-run", "--json", "--results", "/nonexistent")
    if done.code == 0:
        json.loads(done.out)


@examples(60)
@given(st.data())
def test_suites_of_any_values(data: st.DataObject) -> None:
    fields = [*suites.FIELDS, "sweep", "colour"]
    found = data.draw(st.dictionaries(st.sampled_from(fields), VALUES, min_size=1, max_size=3))
    lines = [f"{key} = {toml(value)}" for key, value in found.items()]
    rest = [line for line in SUITE.partition("[settings")[0].splitlines() if line.split(" ")[0] not in found]
    suite(Path("/tmp") / f"mibench-fuzz-{os.getpid()}.toml", "\n".join([*lines, *rest]).encode())


@examples(60)
@given(SEEDS)
def test_suites_that_were_damaged(seed: int) -> None:
    rng = random.Random(seed)
    suite(Path("/tmp") / f"mibench-fuzz-{os.getpid()}.toml", damaged(SUITE.encode(), rng))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"\x00",
        b"a = " + b"[" * 100_000,
        b"a = " + b"{b=" * 5000,
        b"seeds = [" + b"9" * 5000 + b"]",
        b"seeds = [0x" + b"f" * 5000 + b"]",
        b"title = 0x" + b"f" * 5000,
        b"sweep = []",
        b"sweep = 1",
        b"[[sweep]]\n" * 3,
        b"[settings.data]\nidentities = 0x" + b"f" * 5000,
        b"seeds = [-1]",
        b"seeds = [true]",
        b"strengths = [1979-05-27]",
        b"defenses = []",
        b"defenses = ['']",
        b"methods = ['gmi steps=1e400']",
        b"a." * 3000 + b"b = 1",
        b"strengths = [nan]",
        b"strengths = [{a = 1}]",
        b"[settings.data]\npath = 'a\\u0000b'",
        b"[settings.data]\n'' = 1",
        b"dataset = 'folder'\n[settings.data]\npath = \"a\\u0000b\"",
        b"dataset = 'folder'\n[settings.data]\npath = '~nobody/x'",
    ],
    ids=range(25),
)
def test_suites_that_are_hard_to_read(folder: Path, content: bytes) -> None:
    suite(folder / "a.toml", content)


def test_a_suite_that_is_no_file(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for name in ("x" * 5000, "loop", ".", "\udcff"):
        assert law("toml", "run", name).code == 2


# --- damage ---------------------------------------------------------------------------------------------------------


def rewritten(text: str, rng: random.Random) -> str:
    """JSON that is still JSON, or nearly: a key gone, a value of another type, a literal that JSON has not."""
    value = json.loads(text)
    where, seen = value, []
    while isinstance(where, dict | list) and where and (not seen or rng.random() < 0.5):
        seen.append((where, rng.choice(sorted(where) if isinstance(where, dict) else range(len(where)))))
        where = where[seen[-1][1]]
    owner, key = seen[-1]
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        1e300,
        10**25,
        "",
        "x",
        [],
        {},
        [[]],
        {"a": 1},
        "../../x",
        "/etc/passwd",
        "a\nb",
        "\x1b[31m",
        "\ud800",
        "A552C58E",
        *["HOLE"] * 8,
    ]
    if rng.random() < 0.3:
        del owner[key]
    else:
        owner[key] = rng.choice([one for one in odd if one != where])
    holes = ["NaN", "-Infinity", "[" * 5000, "[" * 900 + "]" * 900, "9" * 5000, "1e999", "{", '{"a": 1, "a": 2}']
    return json.dumps(value, indent=rng.choice([None, 1])).replace('"HOLE"', rng.choice(holes))


@contextmanager
def aside(path: Path) -> Iterator[None]:
    """A file or folder put aside, and back with its times when all is over."""
    kept = Path(f"aside-{path.name}")
    path.rename(kept)
    try:
        yield
    finally:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        kept.rename(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results folder that is damaged and mended again and again; the working folder is its parent."""
    place = tmp_path_factory.mktemp("fuzz")
    found = world().copy(place)
    before = Path.cwd()
    os.chdir(place)
    try:
        yield found
    finally:
        os.chdir(before)


class Said(dict[tuple[str, ...], str]):
    """What commands say; without a text of its own, which would fill every failure's page."""

    __repr__ = object.__repr__


def said(root: Path, kind: str) -> Said:
    """What is told of a results folder; nothing of it depends on anything but the runs."""
    one = world().one("scores/kedmi-*").name
    found = Said()
    for words in (("show", one, "--json"), ("cite", one)):
        done = law(kind, *words)
        found[words] = done.out + done.err
    warnings: list[str] = []
    results = load.results(root, warnings)
    each = [result.per_image.to_csv() for result in results]
    found[("report",)] = "\n".join([frame.scores(results).to_csv(), *each, *warnings])
    told = law(kind, "checks").err
    assert all(line.replace(str(root), "results") in told for line in warnings)
    return found


@pytest.fixture(scope="module")
def sound(root: Path) -> Said:
    """That of the undamaged folder."""
    return said(root, "sound")


def files(root: Path) -> list[Path]:
    """Every file of every run."""
    return sorted(path for path in root.glob("*/[!.]*/*") if path.is_file() and path.parts[-3] in runs.KINDS)


def told(root: Path, kind: str, sound: Said, *names: str) -> None:
    """All that is told of a damaged folder names one of these, or is what was told before."""
    for words, now in said(root, kind).items():
        assert now == sound[words] or any(name in now for name in names), (words, names, now)


@examples(16)
@given(SEEDS)
def test_a_damaged_file_is_named_or_makes_no_difference(root: Path, sound: Said, seed: int) -> None:
    rng = random.Random(seed)
    path = rng.choice([one for one in files(root) if one.suffix != ".png"])
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.5:
        new = rewritten(content.decode(), rng).encode("utf-8", "surrogatepass")
    else:
        new = damaged(content, rng)
    with aside(path):
        path.write_bytes(new)
        if new != content:
            told(root, "run files", sound, path.parent.name)


@examples(8)
@given(SEEDS)
def test_a_file_that_is_something_else_is_named(root: Path, sound: Said, seed: int) -> None:
    """Gone, a folder, a loop of links, another run's file of the same name."""
    rng = random.Random(seed)
    path = rng.choice([one for one in files(root) if one.suffix != ".png"])
    twins = [one for one in files(root) if one.name == path.name and one.read_bytes() != path.read_bytes()]
    what = rng.choice(["gone", "folder", "loop", "dangling", *(["twin"] if twins else [])])
    with aside(path):
        if what == "folder":
            path.mkdir()
        elif what == "twin":
            shutil.copy(rng.choice(twins), path)
        elif what != "gone":
            path.symlink_to(path.name if what == "loop" else "nowhere")
        told(root, "run files", sound, path.parent.name, path.parent.name.rpartition("-")[2])


@examples(4)
@given(SEEDS)
def test_swapped_and_renamed_directories_are_named(root: Path, sound: Said, seed: int) -> None:
    rng = random.Random(seed)
    places = sorted(path.parent for path in root.glob("*/[!.]*/done"))
    one, other = rng.sample(places, 2)
    with aside(one):
        shutil.copytree(other, one)
        told(root, "run files", sound, one.name, one.name.rpartition("-")[2])
    with aside(one):
        name = rng.choice(
            [
                f"{one.name.rpartition('-')[0]}-000000000000",
                one.name.upper(),
                "x",
                "a\nb-000000000000",
                "\x1b[31m-000000000001",
            ]
        )
        place = one.with_name(name)
        try:
            shutil.copytree(f"aside-{one.name}", place)
            told(root, "run files", sound, one.name.rpartition("-")[2], ascii(name)[1:-1])
        finally:
            shutil.rmtree(place)


def test_runs_that_build_on_themselves_are_named(tmp_path: Path) -> None:
    """Also where every digest fits: a chain of parents has an end."""

    def forged(kind: str, name: str, id: str, parents: dict[str, Any]) -> Path:
        path = tmp_path / kind / f"{name}-{id}"
        path.mkdir(parents=True)
        card = {
            "id": id,
            "inputs": {},
            "kind": kind,
            "name": name,
            "parents": parents,
            "protocol": runs.PROTOCOL,
            "spec": {},
        }
        (path / "run.json").write_text(json.dumps(card))
        (path / "done").write_text("{}")
        return path

    forged("targets", "self", "000000000001", {"backbone": "000000000001"})
    forged("targets", "a", "00000000000a", {"backbone": "00000000000b"})
    forged("targets", "b", "00000000000b", {"backbone": ["00000000000a", "00000000000a"]})
    for number in range(1200):
        forged("scores", "c", f"c{number:011}", {"inversion": f"c{number + 1:011}"})
    for parents in ({"x": 3}, {"x": [3]}, {"x": None}, {"x": {}}, {"x": [[]]}, [], "x", None, {"x": ""}, {"x": "0"}):
        forged("priors", "odd", f"d{len(list(tmp_path.glob('priors/*'))):011}", parents)  # type: ignore[arg-type]
    library = Library(tmp_path)
    for path in library.paths.values():
        found = refused("cycles", lambda path=path: library.load(path))
        assert isinstance(found, UserError) and path.name in str(found)


@examples(60)
@given(WORDS | st.binary(max_size=8).map(os.fsdecode))
def test_any_reference_finds_a_run_or_is_refused(root: Path, word: str) -> None:
    refused("references", lambda: runs.find(root, word))


# --- stages on damaged runs -----------------------------------------------------------------------------------------


def stages(root: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Commands that do work on finished runs, and what they make."""
    inversion = world().one("inversions/kedmi-*").name
    return {
        "score": (("score", "--inversion", inversion, *JUDGES), "scores/kedmi-*"),
        "invert": (
            ("invert", "--method", "prior_sample", "--prior", "public", *SMALL, *sets(images=1)),
            "inversions/prior_sample-*",
        ),
        "features": (("features", inversion, "--json"), "report/features-*"),
        "judge": (("judge", inversion, "--export", "pairs"), ""),
    }


def fresh(root: Path, made: str) -> None:
    """Without what a stage makes."""
    shutil.rmtree("pairs", ignore_errors=True)
    for path in root.glob(made) if made else ():
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def worked(root: Path) -> dict[str, tuple[dict[str, bytes], str]]:
    """What the stages make of the undamaged folder."""
    found = {}
    for name, (words, made) in stages(root).items():
        with saved(root, made):
            fresh(root, made)
            done = law("sound", *words)
            assert done.code == 0, done.err
            found[name] = (outcome(root, made), done.out)
    return found


@contextmanager
def saved(root: Path, made: str) -> Iterator[None]:
    kept = root.parent / "kept"
    found = list(root.glob(made)) if made else []
    for path in found:
        shutil.copytree(path, kept / path.relative_to(root), copy_function=shutil.copy2)
    try:
        yield
    finally:
        fresh(root, made)
        for path in found:
            (kept / path.relative_to(root)).rename(path)
        shutil.rmtree(kept, ignore_errors=True)


def outcome(root: Path, made: str) -> dict[str, bytes]:
    found = {key: value for path in root.glob(made) for key, value in results(path).items()} if made else {}
    return found | {path.name: path.read_bytes() for path in Path("pairs").rglob("*.png")}


USED = (
    "model.safetensors",
    "prior.safetensors",
    "images.safetensors",
    "features.safetensors",
    "metrics.json",
    "run.json",
    "done",
)


@examples(12)
@given(SEEDS)
def test_a_stage_on_a_damaged_run_names_it_or_ends_with_the_same_bytes(
    root: Path, worked: dict[str, tuple[dict[str, bytes], str]], seed: int
) -> None:
    rng = random.Random(seed)
    stage = rng.choice(sorted(worked))
    words, made = stages(root)[stage]
    path = rng.choice([one for one in files(root) if one.name in USED and not one.match(f"{made}/*")])
    new = (
        tampered(path, rng) if path.suffix == ".safetensors" and rng.random() < 0.5 else damaged(path.read_bytes(), rng)
    )
    with saved(root, made):
        fresh(root, made)
        with aside(path):
            path.write_bytes(new)
            done = law(stage, *words)
            if done.code == 0:
                assert (outcome(root, made), done.out) == worked[stage]
            else:
                assert path.parent.name in done.err, (path, done.err)
                assert not made or not [one for one in root.glob(f"{made}/done") if "features" not in str(one)]


def tampered(path: Path, rng: random.Random) -> bytes:
    """A whole safetensors file with the wrong tensors: swapped, of another type or shape, NaN, one gone, one more."""
    header, tensors = artifacts.read_header(path), load_file(path)
    name = rng.choice(sorted(tensors))
    one = tensors[name]
    twins = [key for key in tensors if tensors[key].shape == one.shape and key != name]
    what = rng.choice(["nan", "type", "shape", "gone", "more", "nudge", *(["swap"] if twins else [])])
    if what == "nan" and one.is_floating_point():
        tensors[name] = torch.full_like(one, math.nan)
    elif what == "type":
        tensors[name] = one.to(torch.float64)
    elif what == "shape":
        tensors[name] = one.reshape(1, -1, 1)
    elif what == "gone":
        del tensors[name]
    elif what == "more":
        tensors["more"] = torch.zeros(2)
    elif what == "swap":
        tensors[name], tensors[twins[0]] = tensors[twins[0]], one
    else:
        tensors[name] = one.logical_not() if one.dtype == torch.bool else one + 1
    scratch = Path("tampered.safetensors")
    save_file(
        {key: value.contiguous().clone() for key, value in tensors.items()}, scratch, {"mibench": canonical(header)}
    )
    found = scratch.read_bytes()
    return found if found != path.read_bytes() else tampered(path, rng)


def declared(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


@pytest.mark.parametrize(
    "content",
    [
        declared(b"", 2**64 - 1),
        declared(b"{}", 2**40),
        declared(b"{" * 100_000),
        declared(b"[" * 100_000),
        declared(b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (2**50, 2**52)),
        declared(b'{"a":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,4]}}' % (2**62, 2**62), body=b"\0" * 4),
        declared(b'{"a":{"dtype":"F32","shape":[0,%d],"data_offsets":[0,0]}}' % 2**62),
        declared(b'{"__metadata__":{"mibench":"' + b"[" * 50_000 + b'"}}'),
        declared(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
    ],
    ids=range(9),
)
def test_sizes_that_a_header_claims_are_not_allocated(root: Path, content: bytes) -> None:
    import resource

    for path in (
        world().one("targets/*", root) / "model.safetensors",
        world().one("inversions/kedmi-*", root) / "images.safetensors",
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with aside(path):
            path.write_bytes(content)
            words, _ = stages(root)["features"]
            assert path.parent.name in law("headers", *words).error
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# --- pickles --------------------------------------------------------------------------------------------------------


class Calls:
    """Unpickling it calls something."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


def hostile(witness: Path) -> dict[str, bytes]:
    """Files that run code if they are unpickled, by kind."""
    calls = {
        "system": Calls(os.system, f"touch {witness}"),
        "eval": Calls(eval, f"open({str(witness)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(witness)!r}, 'w')"),
        "method": Calls(Path.write_text, witness, "x"),
        "open": Calls(open, str(witness), "w"),
    }
    found = {}
    for name, call in calls.items():
        found[f"plain-{name}"] = pickle.dumps(call)
        for new in (True, False):
            file = io.BytesIO()
            torch.save({"model": [{"deep": (call,)}]}, file, _use_new_zipfile_serialization=new)
            found[f"{'zip' if new else 'legacy'}-{name}"] = file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:  # torch's oldest format
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(calls["eval"])
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found["tar"] = file.getvalue()
    for name in ("constants.pkl", "code/x.py"):  # TorchScript
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(calls["eval"]))
            archive.writestr("a/version", "3\n")
            archive.writestr(f"a/{name}", pickle.dumps(calls["exec"]))
        found[f"script-{name[:4]}"] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # 100 MB in 100 kB
        archive.writestr("a/data.pkl", pickle.dumps({"a": 1}) + bytes(100_000_000))
        archive.writestr("a/version", "3\n")
    found["bomb"] = file.getvalue()
    return found


def test_pickles_in_the_place_of_tensors_are_named_and_never_executed(root: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for name, content in hostile(witness).items():
        for path in files(root):
            if path.suffix == ".safetensors":
                with aside(path):
                    path.write_bytes(content)
                    found = refused("pickles", lambda path=path: artifacts.read_tensors(path, "prior"))
                    assert isinstance(found, UserError) and str(path) in str(found), name
                    found = refused("pickles", lambda path=path: artifacts.read_header(path))
                    assert isinstance(found, UserError) and str(path) in str(found), name
    assert not witness.exists()


# --- checkpoints ----------------------------------------------------------------------------------------------------

PARTIAL = {
    "target": ("train-target", "--defense", "re", *SMALL, *sets(training__epochs=3)),
    "prior": ("train-prior", *SMALL, *(word.replace("prior.", "") for word in GAN), *sets(steps=4)),
}


@pytest.fixture(scope="module")
def partial(root: Path) -> dict[str, tuple[Path, dict[str, bytes]]]:
    """Runs that a full disk stopped after their first checkpoint, and what they would have ended with."""
    found = {}
    for name, words in PARTIAL.items():
        whole = results(command(*words, "--results", f"whole-{name}").last)
        with full_disk(2):
            assert "No space left" in command(*words, "--results", f"partial-{name}").error
        (place,) = Path(f"partial-{name}").glob("*/.*.partial")
        assert (place / "checkpoint.pt").exists()
        found[name] = (place, whole)
    return found


def resumed(name: str, place: Path, whole: dict[str, bytes], content: bytes) -> Outcome:
    """A partial run taken up with another checkpoint: refused by name, or the same final bytes."""
    copy = Path(f"copy-{name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place.parent.parent, copy)
    (copy / place.relative_to(place.parent.parent) / "checkpoint.pt").write_bytes(content)
    done = law("checkpoints", *PARTIAL[name], "--results", str(copy))
    if done.code == 0:
        assert results(done.last) == whole
    else:
        assert "checkpoint.pt is damaged" in done.error and not list(copy.glob("*/*/done"))
    return done


@examples(14)
@given(SEEDS)
def test_a_damaged_checkpoint_is_named_or_makes_no_difference(
    partial: dict[str, tuple[Path, dict[str, bytes]]], seed: int
) -> None:
    rng = random.Random(seed)
    name = rng.choice(sorted(partial))
    place, whole = partial[name]
    resumed(name, place, whole, damaged((place / "checkpoint.pt").read_bytes(), rng))


def test_an_undamaged_checkpoint_is_taken_up(partial: dict[str, tuple[Path, dict[str, bytes]]]) -> None:
    for name, (place, whole) in partial.items():
        assert resumed(name, place, whole, (place / "checkpoint.pt").read_bytes()).code == 0


def test_pickles_in_the_place_of_checkpoints_are_named_and_never_executed(
    partial: dict[str, tuple[Path, dict[str, bytes]]], tmp_path: Path
) -> None:
    witness, path = tmp_path / "witness", tmp_path / "checkpoint.pt"
    place, whole = partial["target"]
    for name, content in hostile(witness).items():
        path.write_bytes(content)
        found = refused("pickles", lambda: read_checkpoint(path, torch.device("cpu")))
        assert isinstance(found, UserError) and str(path) in str(found), name
        if name.startswith("zip-e"):
            assert resumed("target", place, whole, content).code == 2
    assert not witness.exists()
    pickle.loads(hostile(witness)["plain-system"])
    assert witness.exists()  # it would have been


def test_the_checkpoint_of_another_run_is_named(partial: dict[str, tuple[Path, dict[str, bytes]]]) -> None:
    """Also where its tensors would fit: the same command with another seed."""
    words = [*PARTIAL["target"], "--seed", "7", "--results", "other"]
    with full_disk(2):
        assert "No space left" in command(*words).error
    (theirs,) = Path("other").glob("*/.*.partial")
    place, _ = partial["target"]
    copy = Path("copy-another")
    shutil.copytree(place.parent.parent, copy)
    shutil.copy(theirs / "checkpoint.pt", copy / place.relative_to(place.parent.parent) / "checkpoint.pt")
    told = law("checkpoints", *PARTIAL["target"], "--results", str(copy)).error
    assert f"checkpoint.pt is that of {theirs.name}/checkpoint.pt" in told and not list(copy.glob("*/*/done"))


@examples(100)
@given(SEEDS)
def test_a_checkpoint_of_any_bytes_is_read_or_named(seed: int) -> None:
    """Flips in what is stored are seen, though torch compares no checksums."""
    rng = random.Random(seed)
    kept = torch.arange(4096.0)
    path = Path("/tmp") / f"mibench-fuzz-{os.getpid()}.pt"
    write_checkpoint(path, {"model": kept, "log": [1.0, "a"]})
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = refused("checkpoints", lambda: read_checkpoint(path, torch.device("cpu")))
    if isinstance(found, UserError):
        assert str(path) in str(found)
    else:
        assert found.keys() == {"model", "log", "of"}
        assert torch.equal(found["model"], kept) and found["log"] == [1.0, "a"]
    path.unlink()


@pytest.mark.parametrize("value", [[1], 3, None, "x", torch.zeros(2)])
def test_a_checkpoint_that_is_no_dictionary(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt is damaged"):
        read_checkpoint(tmp_path / "a.pt", torch.device("cpu"))


# --- pictures -------------------------------------------------------------------------------------------------------


def picture(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format=kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


SHOTS = [
    picture("PNG"),
    picture("JPEG"),
    picture("PNG", mode="P"),
    picture("PNG", mode="LA"),
    picture("PNG", mode="1"),
    picture("JPEG", mode="CMYK"),
    picture("PNG", (1, 500)),
    picture("PNG", (500, 1)),
]


def read(name: str, contents: dict[str, bytes]) -> Any:
    """Pictures read as a data set or an inversion reads them."""
    folder = Path("/tmp") / f"mibench-fuzz-pictures-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    try:
        return refused(name, lambda: decoding.decode_all(sorted(folder.iterdir()), 16, True, Silent()))
    finally:
        shutil.rmtree(folder)


@examples(150)
@given(SEEDS)
def test_a_damaged_picture_is_read_or_named(seed: int) -> None:
    """Compressed pixels have few checksums: a flip may go unseen, but nothing else may happen."""
    rng = random.Random(seed)
    content = damaged(rng.choice(SHOTS), rng)
    suffix = rng.choice([".png", ".jpg", ".webp", ".tif", ".bmp"])
    found = read("pictures", {f"a{suffix}": content})
    if isinstance(found, UserError):
        assert f"a{suffix}" in str(found)
    else:
        assert found[0].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (10_000, 10_000), (2**31, 1), (0, 5)]
)
def test_pictures_that_claim_too_many_pixels_are_named(width: int, height: int) -> None:
    found = read("pictures", {"good.png": picture("PNG"), "huge.png": bomb(width, height)})
    assert isinstance(found, UserError) and "1 of 2" in str(found) and "huge.png" in str(found)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 1)])
def test_thin_pictures_are_read(size: tuple[int, int]) -> None:
    assert read("pictures", {"thin.png": picture("PNG", size)})[0].shape == (1, 3, 16, 16)


NAMES = [
    "a\nb.png",
    "\x1b[31mred.png",
    "é😀.png",
    "\u202egnp.exe.png",
    "a;touch x.png",
    "$(x).png",
    " .png",
    "%s{0}.png",
    "[red]a.png",
]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff\xfe.png")], ids=ascii)
def test_files_of_any_name_are_judged_or_named(root: Path, name: str) -> None:
    target = world().one("targets/*").name
    person = artifacts.open_dataset(runs.find(root, target).inputs["dataset"]).classes[0]
    for content in (picture("PNG"), b"", b"text", picture("PNG")[:60], bomb(60_000, 60_000)):
        place = Path("theirs") / person
        shutil.rmtree("theirs", ignore_errors=True)
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        done = law("pictures", "score", "--images", "theirs", "--target", target, *JUDGES)
        assert done.code == (0 if content == picture("PNG") else 2), done
        if done.code:
            assert ascii(name)[1:-1].replace("\\\\", "\\") in done.error or name in done.error
        for kind in ("inversions", "scores"):
            for path in [*root.glob(f"{kind}/theirs-*"), *root.glob(f"{kind}/.theirs-*")]:
                shutil.rmtree(path)


def test_folders_of_images_that_are_no_folders(root: Path) -> None:
    Path("loop").symlink_to("loop")
    Path("plain").write_text("x")
    target = world().one("targets/*").name
    for name in ("loop", "plain", "~nobody/x", "x" * 5000, "", "\udcff", "results"):
        told = law("pictures", "score", "--images", name, "--name", "a", "--target", target)
        assert told.code == 2, told


@examples(10)
@given(SEEDS)
def test_a_data_set_of_damaged_pictures_is_named(seed: int) -> None:
    rng = random.Random(seed)
    folder = Path("/tmp") / f"mibench-fuzz-data-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    for person in range(4):
        place = folder / ("private" if person < 2 else "public") / f"p{person}"
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"{number}.png").write_bytes(picture("PNG", (12, 12), seed=10 * person + number))
    path = rng.choice(sorted(folder.rglob("*.png")))
    path.write_bytes(damaged(path.read_bytes(), rng))
    if rng.random() < 0.5:
        (folder / "groups.csv").write_bytes(damaged(b"identity,group\np0,a\np1,b\n", rng))
    done = law("pictures", "data", "prepare", "folder", "--set", f"path={folder}", "--set", "image_size=8")
    assert (
        done.code == 0
        or path.name in done.err
        or "groups.csv" in done.err
        or "differ" in done.err
        or "pictures" in done.err
    )
    shutil.rmtree(folder)
