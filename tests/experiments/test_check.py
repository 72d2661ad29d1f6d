"""Laws of `mibench run SUITE --check`: whatever is missing or damaged is named with its remedy, all in one go.

Nothing is written, and exit code 2 says that something is missing. Timing is left out here but for one step of each
kind, whose laws are those of proportions.
"""

import json
import math
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import generators
import pytest
import torch
from shell import command, files

from mibench import zoo
from mibench.cli.printing import hours_of
from mibench.data import standin
from mibench.data.published.needs import MARKER
from mibench.experiments import check, data_needs, listing, needs, room, seconds, suites
from mibench.experiments.plan import cost_of, plan
from mibench.experiments.seconds import costing, timer
from mibench.experiments.seconds.smallest import ASKED, shown_through, smallest
from mibench.plugins import registry
from mibench.plugins.capabilities import declared
from mibench.runs import lineage
from mibench.runs.executor import pending
from mibench.runtime.absent import as_published
from mibench.runtime.engine import resolve
from mibench.zoo import Shelf

SUITE = """
title = "two data sets, small"
floors = []
[[sweep]]
dataset = "celeba"
prior = "pixels"
methods = ["mi_face"]
defenses = ["none", "dp_sgd noise=0.1"]
[sweep.settings.data]
image_size = 16
[[sweep]]
dataset = "stanford_dogs"
model = "shufflenet_v2_x0_5"
pretrained = "imagenet"
evaluators = "cnn,resnet"
prior = "dogs.pkl"
defenses = ["none"]
[sweep.settings.data]
image_size = 32
[needs]
"extra.pth" = { source = "https://example.org/extra.pth", licence = "MIT", size = "1 MB" }
"""
HUB = "shufflenetv2_x0.5-f707e7126e.pth"


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins, not prepared, and the files of weights; never changed by a test."""
    top = tmp_path_factory.mktemp("check")
    for name in ("celeba", "stanford_dogs", "afhq"):
        standin.write(name, top / "data")
    (top / "data" / "weights").mkdir()
    generators.nvidia(top / "data" / "weights" / "dogs.pkl", 32)
    (top / "data" / "weights" / "extra.pth").write_bytes(b"x")
    (top / "hub" / "checkpoints").mkdir(parents=True)
    (top / "hub" / "checkpoints" / HUB).write_bytes(b"as published")
    (top / "suite.toml").write_text(SUITE)
    return top


@pytest.fixture
def here(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may damage, on a machine whose steps are not timed."""
    top = Path(shutil.copytree(trees, tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIBENCH_DATA", str(top / "data"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(top / "hub"))
    monkeypatch.setattr(timer, "peak", lambda device, dtype: 1e11)
    monkeypatch.setattr(costing, "SHARES", dict.fromkeys(costing.KINDS, 0.0))
    monkeypatch.setattr(needs.faces, "present", lambda: (["dlib"], []))
    real = needs.digest_of
    monkeypatch.setattr(needs, "digest_of", lambda file: "f707e7126e" if _published(file) else real(file))
    return top


def _published(file: Path) -> bool:
    return file.name == HUB and file.read_bytes() == b"as published"


def checked(top: Path) -> tuple[int, dict[str, Any]]:
    told = command("run", str(top / "suite.toml"), "--check", "--json", "--precision", "fp32")
    return told.code, json.loads(told.out)


def missing(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["what"]: (one["told"], one["remedy"]) for one in found["things"] if one["state"] == "missing"}


def prepare(top: Path) -> None:
    for name, size in (("celeba", 16), ("stanford_dogs", 32)):
        command("data", "prepare", name, "--root", str(top / "data"), "--set", f"data.image_size={size}")


def test_where_all_is_here_it_is_ready_and_nothing_is_written(here: Path) -> None:
    prepare(here)
    before = files(here.parent)
    code, found = checked(here)
    assert (code, missing(found), found["ready"]) == (0, {}, True)
    assert files(here.parent) == before
    have = {one["what"]: one["told"] for one in found["things"] if one["state"] == "have"}
    assert {"celeba, prepared", "stanford_dogs, prepared", "afhq, prepared", "dogs.pkl", "extra.pth", "opacus"} <= set(
        have
    )
    assert "ImageNet weights of shufflenet_v2_x0_5" in have and "STAND-IN" in have["celeba, prepared"]
    assert found["runs"]["to_do"] > 5 and found["time"]["hours"] > 0
    shown = command("run", str(here / "suite.toml"), "--check", "--precision", "fp32")
    assert shown.code == 0 and "ready: " in shown.out and "processor time" in shown.out


def _gone(*names: str) -> Callable[[Path], None]:
    def damage(top: Path) -> None:
        for name in names:
            place = top / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    return damage


def _cut(name: str) -> Callable[[Path], None]:
    def damage(top: Path) -> None:
        content = (top / name).read_bytes()
        (top / name).write_bytes(content[: len(content) // 2])

    return damage


def _page(top: Path) -> None:
    (top / "data" / "celeba" / "img_align_celeba.zip").write_text("<html>quota exceeded</html>")


def _fewer(top: Path) -> None:
    marker = top / "data" / "celeba" / MARKER
    marker.write_text(marker.read_text().replace('"classes": 6', '"classes": 7'))


def _corrupt(top: Path) -> None:
    folder = top / "data" / "stanford_dogs" / "Images"
    one, two, *_ = sorted(folder.rglob("*.jpg"))
    one.write_bytes(b"")
    two.write_bytes(b"no picture")


def _scattered(top: Path) -> None:
    next(iter(sorted((top / "data" / "afhq").rglob("*.jpg")))).unlink()


def _corrupt_in_zip(top: Path) -> None:
    place = top / "data" / "celeba" / "img_align_celeba.zip"
    with zipfile.ZipFile(place) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(place, "w") as archive:
        for number, (name, content) in enumerate(whole.items()):
            archive.writestr(name, b"" if number == 3 else content)


MMLAB, PLG = "https://mmlab.ie.cuhk.edu.hk", "https://github.com/LetheSec/PLG-MI-Attack"
DAMAGES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "a list": (_gone("data/celeba/celeba_testset.txt"), "celeba/celeba_testset.txt", "KEDMI's test", PLG),
    "an archive": (_gone("data/celeba/img_align_celeba.zip"), "celeba/img_align_celeba", "aligned faces", MMLAB),
    "an archive cut short": (_cut("data/celeba/img_align_celeba.zip"), "img_align_celeba.zip", "stopped early", MMLAB),
    "a page": (_page, "celeba/img_align_celeba.zip", "is a web page", MMLAB),
    "classes": (_fewer, "celeba, as its protocol", "7", "see the files above"),
    "pictures": (_corrupt, "stanford_dogs/Images", "1 of 80 pictures are empty", "replace or remove"),
    "pictures in an archive": (_corrupt_in_zip, "img_align_celeba.zip", "pictures are empty", "replace or remove"),
    "a public picture": (
        _scattered,
        "afhq/train/dog",
        "23 pictures, the protocol has 24",
        "https://github.com/clovaai",
    ),
    "a pickle": (_gone("data/weights/dogs.pkl"), "dogs.pkl", "a generator", "MIBENCH_DATA/weights/dogs.pkl"),
    "a pickle cut short": (_cut("data/weights/dogs.pkl"), "dogs.pkl", "dogs.pkl", "authors"),
    "stated weights": (_gone("data/weights/extra.pth"), "extra.pth", "1 MB", "https://example.org/extra.pth [MIT]"),
    "hub weights": (_gone(f"hub/checkpoints/{HUB}"), "ImageNet weights of shuffle", "not in torch's cache", "curl "),
    "hub weights cut": (_cut(f"hub/checkpoints/{HUB}"), "ImageNet weights of shuffle", "not the published file", "rm "),
    "the folder": (_gone("data"), "MIBENCH_DATA", "no such folder", "export MIBENCH_DATA=DIR"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_missing_is_named_with_its_remedy(name: str, here: Path) -> None:
    damage, what, told, remedy = DAMAGES[name]
    damage(here)
    suite = str(here / "suite.toml")
    with as_published():
        todo = [run for e in suites.read(suite) for run in plan(e, here)] if "hub" in name else []
        found = check.things_of(suites.sweeps(suite), suite, here / "results", lineage(todo))
    named = [one for one in found if one.state == "missing" and what in one.what]
    assert named, [vars(one) for one in found]
    assert told in named[0].told and remedy in named[0].remedy
    # Of the rest only what was never prepared.
    others = {one.what for one in found if one.state == "missing" and one not in named}
    if name != "the folder":
        assert {one for one in others if ", prepared" not in one} <= {"dogs.pkl"} & {what}


def test_asked_to_measure_every_picture_is_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_needs, "PROBED", 8)
    pictures = sorted((here / "data/stanford_dogs/Images").rglob("*.jpg"))
    pictures[1].write_bytes(b"no picture")
    source = registry.configure("data", "stanford_dogs", settings={"image_size": 32})
    told = {whole: {one.what: one for one in data_needs.of_data(source, whole)} for whole in (False, True)}
    sampled, every = (told[whole]["stanford_dogs/Images"] for whole in (False, True))
    assert sampled.state == "have" and sampled.told.endswith("8 of 80 pictures decoded")
    assert (
        every.state == "missing" and f"1 of 80 that were decoded are damaged: {pictures[1].parent.name}/" in every.told
    )


def test_weights_of_timm_are_looked_for_in_hugging_faces_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    gone = needs._imagenet("timm:resnest50d")
    assert gone.state == "missing" and str(tmp_path) in gone.told and "timm/resnest50d.in1k" in gone.remedy
    snapshot = tmp_path / "models--timm--resnest50d.in1k/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    found = needs._imagenet("timm:resnest50d")
    assert (found.state, found.told) == ("have", str(snapshot / "model.safetensors"))


def test_everything_is_named_in_one_go(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a list", "an archive cut short", "a pickle", "hub weights", "stated weights", "pictures"):
        DAMAGES[name][0](here)
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == "opacus" else find_spec(name))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage(1, 1, 1000))
    code, found = checked(here)
    named = missing(found)
    assert code == 2 and not found["ready"]
    for name in ("a list", "an archive cut short", "a pickle", "hub weights", "stated weights", "pictures"):
        _, what, told, remedy = DAMAGES[name]
        assert any(what in one and told in named[one][0] and remedy in named[one][1] for one in named), (name, named)
    assert named["opacus"][1] == "pip install 'mibench[dp]'"
    disk = next(one for one in named if one.startswith("disk"))
    assert "1 kB free" in named[disk][0] and "--results" in named[disk][1]
    assert not (here.parent / "results").exists()


def test_a_suite_that_cannot_be_planned_still_lists_what_it_lacks(here: Path) -> None:
    """A generator that is not one stops planning; the data set is named all the same."""
    (here / "data" / "weights" / "dogs.pkl").write_bytes(b"no pickle")
    _gone("data/celeba/celeba_testset.txt")(here)
    told = command("run", str(here / "suite.toml"), "--check", "--precision", "fp32")
    assert told.code == 2 and "not ready: " in told.out and "no pickle" not in told.err
    assert all(f"missing  {one}" in told.out for one in ("dogs.pkl", "planning", "celeba/celeba_testset.txt"))
    assert "> https://github.com/LetheSec" in told.out and "processor time" not in told.out


def test_the_demo_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timer, "peak", lambda device, dtype: 1e11)
    monkeypatch.setattr(costing, "SHARES", dict.fromkeys(costing.KINDS, 0.0))
    told = command("run", "demo", "--check", "--json")
    found = json.loads(told.out)
    assert told.code == 0 and found["ready"] and files(tmp_path) == {}
    kinds = {one["kind"]: one for one in found["time"]["kinds"]}
    assert kinds["targets"]["known"] == "3 ready" and kinds["inversions"]["hours"] > 0


# --- seconds


def test_seconds_grow_with_steps_and_people(tmp_path: Path) -> None:
    """Twice the epochs, twice the time of training but for its measuring; twice the people, twice the attack."""
    watch = seconds.Stopwatch(resolve("cpu", "fp32"))
    small = "data.image_size=16"

    def taken(epochs: int, people: int) -> dict[str, float]:
        text = f'identities = {people}\ndefenses = ["none"]\nprior = "wgan_gp"\nmethods = ["gmi"]\nfloors = []\n'
        path = tmp_path / "suite.toml"
        path.write_text(f"{text}[settings.training]\nepochs = {epochs}\n")
        runs = [run for one in suites.read(str(path), sets=[small]) for run in plan(one, tmp_path)]
        told = seconds.estimate([one for run in runs for one in [run.inversion, run.inversion.target]], watch)
        return {one.run.kind: one.seconds for one in told.runs}

    one, two = taken(20, 25), taken(40, 50)
    assert two["targets"] / one["targets"] == pytest.approx(2, rel=0.1)
    assert two["inversions"] / one["inversions"] == pytest.approx(2)


@pytest.mark.parametrize("name", ["ppa", "gmi", "kedmi", "plg", "prior_search", "cma_es", "mirror_bb", "ppa+eot"])
def test_an_attack_cut_down_still_asks_for_every_kind_of_picture(name: str) -> None:
    attack = registry.configure("attacks", name, "quick" if name != "prior_search" else "default").plugin
    prior = declared(registry.card("attacks", name)["prior"])
    assert shown_through(attack) == (attack.copies if name == "ppa+eot" else getattr(attack, "views", 1))
    whole, (little, more) = attack.cost(prior, 100), smallest(attack, prior, 100)
    base = little.cost(prior, 100)
    assert sum(base) < sum(whole) / 10
    for kind, count in ASKED.items():
        assert bool(count(whole)) == bool(count(base))
        if kind in more:
            longer, added = more[kind]
            grown = longer.cost(prior, 100)
            assert count(grown) - count(base) == added > 0
            assert all(of(grown) == of(base) for other, of in ASKED.items() if other != kind)


def test_what_is_scaled_is_proportional_to_its_operations() -> None:
    watch = seconds.Stopwatch(resolve("cpu", "fp32"), allowance=0.0)
    watch.reached.append(1e9)
    one, two = (watch.forward("cnn", 10, (3, side, side)) for side in (32, 64))
    assert (one.known, two.known) == ("scaled", "scaled")
    assert two.seconds / one.seconds == pytest.approx(4, rel=0.1)


def test_an_attack_is_costed_by_what_it_declares(tmp_path: Path) -> None:
    """The sum over the kinds of pictures is the attack's own closed form."""
    (tmp_path / "suite.toml").write_text('identities = 5\ndefenses = ["none"]\nprior = "dcgan"\nfloors = []\n')
    (run,) = [one.inversion for e in suites.read(str(tmp_path / "suite.toml")) for one in plan(e, tmp_path)]
    watch = seconds.Stopwatch(resolve("cpu", "fp32"), allowance=0.0)
    rate = timer.Rate(1.0, "measured")
    watch.attack = lambda *given: (rate, rate, rate)  # type: ignore[method-assign]
    (told,) = seconds.estimate([run], watch).runs
    cost = cost_of(costing.attacker_of(run), costing.data_of(run))
    assert told.seconds == cost.queries * 5 + cost.shared_queries and not math.isnan(told.seconds)


# --- what `mibench list suites` says


@pytest.mark.parametrize("name", sorted(suites.suites()))
def test_what_a_suite_says_it_takes_is_what_it_plans(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs and data sets, not hours: those are a machine's."""
    monkeypatch.delenv("MIBENCH_DATA", raising=False)
    stated = listing.read(listing.FOLDER / f"{name}.toml")
    with as_published():
        experiments = suites.read(name)
        todo = pending([run for e in experiments for run in plan(e, tmp_path, Shelf())])
        plugins = [one.dataset.plugin for one in experiments if one.dataset is not None]
    fetched = dict.fromkeys(folder for one in plugins if hasattr(one, "needed") for folder, _ in one.needed())
    assert (stated.runs, stated.fetched) == (len(todo), tuple(fetched))
    own = suites.seconds(name)
    told = hours_of([run for run in todo if not zoo.origin(run)], own)[0] if own else None
    assert stated.title and stated.hours == (pytest.approx(told, rel=0.1) if told else None)
    assert f"{stated.runs:,} runs" in listing.cost_line(name)
