"""Laws of the registry: cards are literals, names and settings are checked, errors name what would be right."""

import ast
import inspect
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mibench
from mibench.plugins import registry
from mibench.plugins.settings import parse_settings, resolve_settings
from mibench.runtime.errors import UserError

ROOT = Path(mibench.__file__).parent
KEYS = {
    "attacks": {"summary", "title", "authors", "venue", "year", "link", "access", "prior", "cost", "role"},
    "defenses": {"summary", "title", "authors", "venue", "year", "link", "strength"},
    "priors": {"summary", "title", "authors", "venue", "year", "link", "critic"},
    "data": {"summary"},
}
FILES = [
    (kind, path.stem)
    for kind in registry.BASES
    for path in sorted((ROOT / kind).glob("*.py"))
    if not path.stem.startswith("_") and "CARD" in path.read_text(encoding="utf-8")
]
PLUGINS = [(kind, name) for kind in registry.BASES for name in registry.names(kind)]
WRAPPERS = [name for name, card in registry.cards("attacks").items() if card["role"] == "wrapper"]


def whole(kind: str, name: str) -> tuple[str, str]:
    """What a user types to get a plug-in: a wrapper stands around something; and what is before its settings."""
    return (f"gmi+{name}", f"{name}.") if kind == "attacks" and name in WRAPPERS else (name, "")


@dataclass(frozen=True)
class Toy:
    steps: int = 10
    lr: float = 0.1
    deep: bool = False
    mode: Literal["a", "bee"] = "a"
    range: tuple[float, float] = (0.0, 1.0)
    marks: tuple[float, ...] = (0.5,)
    budget: int | None = None
    label: str = ""
    shift: float = field(default=0.0, metadata={"signed": True})


def build(**settings: object) -> Toy:
    return resolve_settings(Toy, "toy", settings)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_file_is_a_plugin(kind: str, name: str) -> None:
    card = registry.cards(kind)[name]
    assert KEYS[kind] <= set(card)
    assert card["summary"] and "\n" not in card["summary"] and len(card["summary"]) <= 100
    json.dumps(card, allow_nan=False)
    plugin = registry.load(kind, name)
    assert is_dataclass(plugin) and plugin.__dataclass_params__.frozen  # type: ignore[attr-defined]
    module = import_module(plugin.__module__)
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and is_dataclass(value)
    ]
    assert own == [plugin]


def test_every_file_that_is_not_shared_code_has_a_card() -> None:
    for kind in ("attacks", "defenses"):
        stems = {path.stem for path in (ROOT / kind).glob("*.py") if not path.stem.startswith("_")}
        assert stems == {name for where, name in FILES if where == kind}


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_cards_refer_to_what_exists(kind: str, name: str) -> None:
    card = registry.card(kind, name)
    if kind == "attacks":
        assert card["access"] in ("none", "label_only", "black_box", "white_box")
        assert card["role"] in ("attack", "floor", "wrapper")
        assert (card["prior"] is None) == (card["role"] == "wrapper")
    if kind == "defenses" and card["strength"] is not None:
        assert card["strength"] in {item.name for item in fields(registry.load(kind, name))}
    if kind == "priors":
        assert card["critic"] in ("none", "wgan", "kp1")


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_presets_build_and_specs_are_json(kind: str, name: str) -> None:
    if kind == "data" and name not in ("digiface", "mnist", "orl"):
        return  # needs a path, or the authors' files
    name, _ = whole(kind, name)
    for preset in registry.presets(kind, name):
        choice = registry.configure(kind, name, preset)
        spec = json.loads(json.dumps(choice.spec(), allow_nan=False))
        assert spec["name"] == name
        if kind != "data":
            # What a run recorded rebuilds the same plug-in.
            assert registry.configure(kind, name, settings=spec["settings"]).plugin == choice.plugin


def test_attacks_have_quick_and_what_is_in_a_paper_has_paper() -> None:
    """The floors are nobody's method, CMA-ES's paper is about an optimiser, and untrap is ours."""
    for name in registry.names("attacks"):
        offered = set(registry.presets("attacks", name))
        assert {"quick", "default"} <= offered
        published = registry.card("attacks", name)["role"] != "floor" and name not in ("cma_es", "untrap")
        assert published == any(preset.startswith("paper") for preset in offered)


def test_a_wrapper_says_what_its_authors_changed_around_one_attack() -> None:
    """AROUND lies over both; what the attack calls its own is the attack's."""
    around = registry.presets("attacks", "gmi+align")
    assert around["paper_taa"]["realism"] == 0.0 and around["paper_taa"]["align.copies"] == 30
    assert around["quick"] == registry.presets("attacks", "gmi")["quick"] | {"align.copies": 4, "realism": 0.0}
    assert "paper_taa" not in registry.presets("attacks", "plg+align")
    both = registry.configure("attacks", "gmi+align+eot", "paper_taa").plugin
    assert (both.wrapped.mode, both.wrapped.wrapped.realism, both.copies) == ("transform", 0.0, 30)


def test_a_preset_that_is_not_the_whole_method_says_so() -> None:
    assert "not tuned" in registry.partial("diff_mi", "quick")
    assert registry.partial("diff_mi+eot", "quick") == registry.partial("diff_mi", "quick")
    assert not registry.partial("diff_mi", "paper") and not registry.partial("ppa", "quick")
    assert not registry.partial("a program that nobody registered", "quick")
    for name, card in registry.cards("attacks").items():
        for preset, what in card.get("partial", {}).items():
            assert preset in registry.presets("attacks", name) and "\n" not in what and not what.endswith(".")


def test_reading_literals_alone_is_reading_the_whole_file(tmp_path: Path) -> None:
    odd = tmp_path / "odd.py"
    odd.write_text(
        'CARD = {"summary": """a\nb}\nc""", "n": (1,\n2)}\n'
        'PRESETS = {"a": {}}  # why\nARCHITECTURES = (\n    "x",\n)\nf()\n'
    )
    for path in [odd, *ROOT.rglob("*.py")]:
        whole = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
            if name in registry.LITERALS:
                whole[name] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        assert registry.literals(path) == whole, path
    assert registry.literals(odd)["PRESETS"] == {"a": {}}


def test_cards_load_without_torch() -> None:
    code = (
        "import sys\nfrom mibench.plugins import registry\n"
        "found = [registry.cards(kind) for kind in registry.BASES]\n"
        "found += [registry.presets('attacks', name) for name in registry.names('attacks')]\n"
        "assert all(found), found\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'jaxtyping'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    if not registry.names("data"):
        code = code.replace("registry.BASES]", "registry.BASES if registry.names(kind)]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("attacks", "kedim", "kedmi"),
        ("attacks", "ppaa", "ppa"),
        ("priors", "dcgann", "dcgan"),
        ("defenses", "non", "none"),
    ],
)
def test_unknown_names_suggest_the_nearest_and_list_all(kind: str, wrong: str, right: str) -> None:
    for ask in (registry.card, registry.load, registry.presets, registry.configure):
        with pytest.raises(UserError) as caught:
            ask(kind, wrong)
        text = str(caught.value)
        assert f"did you mean '{right}'?" in text and "\n" not in text
        assert all(name in text for name in registry.names(kind))


def test_a_name_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        registry.configure("attacks", "zzzzzz")
    assert "did you mean" not in str(caught.value) and "kedmi" in str(caught.value)


def test_unknown_preset_and_setting() -> None:
    with pytest.raises(UserError, match="preset of gmi 'papper'; did you mean 'paper'"):
        registry.configure("attacks", "gmi", "papper")
    with pytest.raises(UserError, match="setting of gmi 'stepps'; did you mean 'steps'"):
        registry.configure("attacks", "gmi", settings={"stepps": "3"})


def test_settings_lie_over_presets_over_defaults() -> None:
    gmi = registry.configure("attacks", "gmi", "quick", {"lr": "0.5"}).plugin
    assert (gmi.lr, gmi.steps, gmi.momentum) == (0.5, registry.presets("attacks", "gmi")["quick"]["steps"], 0.9)
    assert registry.configure("attacks", "gmi").plugin == registry.configure("attacks", "gmi", "default").plugin


def test_parse_sets() -> None:
    assert parse_settings(["steps=60", " lr = 1e-3 ", "path=a=b"]) == {"steps": "60", "lr": "1e-3", "path": "a=b"}
    assert parse_settings([]) == {}


@pytest.mark.parametrize("item", ["steps", "=3", "steps=", " =3", "steps= ", ""])
def test_sets_that_are_not_assignments(item: str) -> None:
    with pytest.raises(UserError, match="--set takes field=value") as caught:
        parse_settings([item])
    assert f"'{item}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("steps", "60", 60),
        ("steps", 60, 60),
        ("steps", 60.0, 60),
        ("lr", "1e-3", 1e-3),
        ("lr", 2, 2.0),
        ("deep", "true", True),
        ("deep", "No", False),
        ("deep", "0", False),
        ("deep", True, True),
        ("mode", "bee", "bee"),
        ("range", "0.2,0.4", (0.2, 0.4)),
        ("range", "(0.2, 0.4)", (0.2, 0.4)),
        ("range", [0, 1], (0.0, 1.0)),
        ("marks", "0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        ("marks", "0.1", (0.1,)),
        ("budget", "none", None),
        ("budget", "5", 5),
        ("budget", None, None),
        ("shift", "-2", -2.0),
        ("label", "x=y", "x=y"),
    ],
)
def test_values_become_the_fields_type(name: str, given: object, expected: object) -> None:
    value = getattr(build(**{name: given}), name)
    assert value == expected and type(value) is type(expected)
    if isinstance(value, tuple):
        assert all(type(item) is float for item in value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("steps", "x"),
        ("steps", "1.5"),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("steps", "nan"),
        ("steps", float("nan")),
        ("steps", float("inf")),
        ("steps", -1),
        ("steps", "-1"),
        ("lr", "fast"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("lr", "-inf"),
        ("lr", "-0.1"),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", True),
        ("lr", [1.0]),
        ("deep", "maybe"),
        ("deep", 2),
        ("mode", "c"),
        ("mode", 1),
        ("range", "0.1"),
        ("range", "1,2,3"),
        ("range", "0,nan"),
        ("range", "0,-1"),
        ("range", "a,b"),
        ("range", 3),
        ("range", None),
        ("marks", "1,inf"),
        ("marks", ""),
        ("budget", "-1"),
        ("budget", "some"),
        ("shift", "nan"),
        ("shift", "inf"),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_the_field(name: str, given: object) -> None:
    with pytest.raises(UserError) as caught:
        build(**{name: given})
    text = str(caught.value)
    assert "toy" in text and name in text and "\n" not in text


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(item.name for item in fields(Toy))),
    value=st.text(max_size=12) | st.floats() | st.integers(),
)
def test_no_value_ends_in_anything_but_a_toy_or_a_user_error(name: str, value: object) -> None:
    try:
        toy = build(**{name: value})
    except UserError:
        return
    numbers = [item for item in vars(toy).values() if isinstance(item, float)]
    assert all(math.isfinite(number) for number in [*numbers, *toy.range, *toy.marks])
    assert toy.steps >= 0 and toy.lr >= 0 and min(toy.range) >= 0


def test_missing_settings_are_named() -> None:
    @dataclass(frozen=True)
    class Needy:
        path: str

    with pytest.raises(UserError, match="needy needs --set path="):
        resolve_settings(Needy, "needy", {})


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_every_number_of_every_plugin_refuses_nan_and_negatives(kind: str, name: str) -> None:
    plugin = registry.load(kind, name)
    name, before = whole(kind, name)
    for item in fields(plugin):
        if item.type in (int, float) and not item.metadata.get("signed"):
            for bad in ("nan", "inf", "-1"):
                with pytest.raises(UserError, match=item.name):
                    registry.configure(kind, name, settings={before + item.name: bad})


def test_wrappers_stand_around_attacks_in_the_order_of_their_names() -> None:
    settings = {"steps": "7", "eot.copies": "3", "align.copies": "5"}
    choice = registry.configure("attacks", "gmi+eot+align", "quick", settings)
    outer = choice.plugin
    assert [type(one).__name__ for one in (outer, outer.wrapped, outer.wrapped.wrapped)] == ["Align", "EOT", "GMI"]
    assert (outer.copies, outer.wrapped.copies, outer.wrapped.wrapped.steps) == (5, 3, 7)
    recorded = choice.spec()["settings"]
    assert recorded["steps"] == 7 and recorded["eot.copies"] == 3 and recorded["align.copies"] == 5
    assert recorded.keys() == registry.defaults("attacks", "gmi+eot+align").keys()
    quick = registry.presets("attacks", "gmi+eot")["quick"]
    assert quick == registry.presets("attacks", "gmi")["quick"] | {"eot.copies": 4}
    assert registry.card("attacks", "gmi+eot")["prior"] == "wgan_gp"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("eot", {}, "eot wraps another attack: --method ATTACK"),
        ("gmi+ppa", {}, "after a . stands a wrapper"),
        ("gmi+eot+eot", {}, "names a wrapper twice"),
        ("gmi+gone", {}, "got 'gone'"),
        ("gmi+eot", {"align.copies": 1}, "setting of gmi.eot"),
        ("gmi", {"eot.copies": 1}, "setting of gmi"),
        ("gmi+eot", {"eot.copys": 1}, "setting of eot"),
        ("gone+eot", {}, "unknown attack 'gone'"),
    ],
)
def test_wrappers_that_make_no_sense(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        registry.configure("attacks", name, settings=settings)
    assert "\n" not in str(caught.value)


def test_other_packages_add_plugins_and_replace_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "third_party_attack.py"
    module.write_text(
        "from dataclasses import dataclass\nfrom mibench.core import Attack, Cost\nCARD = {'summary': 'theirs'}\n"
        "@dataclass(frozen=True)\nclass Theirs(Attack):\n    steps: int = 1\n"
        "    def cost(self, prior): return Cost(0, 0, 0)\n    def __call__(self, *given): raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, "third_party_attack", "mibench.attacks") for name in ("theirs", "gmi")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "mibench.attacks" else [])
    registry._modules.cache_clear()
    try:
        assert registry.configure("attacks", "theirs", settings={"steps": "4"}).plugin.steps == 4
        assert registry.card("attacks", "theirs")["summary"] == "theirs"
        assert registry.load("attacks", "gmi").__module__ == "mibench.attacks.gmi"
    finally:
        registry._modules.cache_clear()


def test_a_module_with_two_plugins_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_defenses.py").write_text(
        "from dataclasses import dataclass\nfrom mibench.core import Defense\nCARD = {'summary': 'two'}\n"
        "@dataclass(frozen=True)\nclass A(Defense):\n    pass\n@dataclass(frozen=True)\nclass B(Defense):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("two", "two_defenses", group)])
    registry._modules.cache_clear()
    try:
        with pytest.raises(UserError, match="exactly one Defense; it defines 2"):
            registry.load("defenses", "two")
    finally:
        registry._modules.cache_clear()
