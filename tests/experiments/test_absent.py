"""Laws of what is not on this machine: refused unless it may count as published, which never looks like the real thing.

`mibench list suites` and the plans of shipped suites must work anywhere; what is here is always taken as it is.
"""

from pathlib import Path

import generators
import pytest
from shell import command

from mibench.data import standin
from mibench.experiments import suites
from mibench.experiments.plan import plan
from mibench.plugins import registry
from mibench.runs import Run
from mibench.runtime.absent import STATED, Absent, as_published, located, taken_as_published
from mibench.runtime.errors import UserError
from mibench.stages import import_prior

SUITE = """
title = "dogs"
dataset = "stanford_dogs"
model = "resnet18"
evaluators = "inception_v3,densenet121"
prior = "afhqdog.pkl"
defenses = ["none"]
floors = []
[settings.data]
image_size = 16
"""


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIBENCH_DATA", raising=False)


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "dogs.toml"
    path.write_text(SUITE)
    return str(path)


def planned(suite: str, folder: Path) -> list[Run]:
    return [run for one in suites.read(suite) for run in plan(one, folder)]


PLANS = [
    ("facescrub", {}, 530, 224, 70_000),
    ("celeba", {"split": "kedmi"}, 1000, 64, 30_000),
    ("celeba", {"split": "ppa"}, 1000, 224, 70_000),
    ("celeba", {"split": "ppa", "public": "metfaces"}, 1000, 224, 1336),
    ("stanford_dogs", {}, 120, 224, 4739),
    ("pubfig83", {}, 50, 64, 5502),
]


@pytest.mark.parametrize(("name", "fields", "classes", "side", "public"), PLANS)
@pytest.mark.usefixtures("nothing_here")
def test_what_is_absent_counts_as_published_only_where_that_is_asked_for(
    name: str, fields: dict[str, str], classes: int, side: int, public: int
) -> None:
    source = registry.configure("data", name, settings=dict(fields)).plugin
    with as_published():
        assert source.shape() == (classes, (3, side, side), public)
        assert source.identity()["content"] == STATED and source.heldout_count is None
    for asked in (source.shape, source.identity, source.load, lambda: source.heldout_count):
        with pytest.raises(Absent, match="mibench data prepare"):
            asked()


def test_it_ends_with_its_block_however_that_ends() -> None:
    with pytest.raises(KeyError), as_published():
        with as_published():
            pass
        assert taken_as_published()
        raise KeyError
    assert not taken_as_published()


@pytest.mark.usefixtures("nothing_here")
def test_what_is_here_is_taken_as_it_is(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First nothing, then the data, then the generator too: from then on both ways plan the same runs."""
    with as_published():
        stated = {run.id for run in planned(suite, tmp_path)}
    with pytest.raises(Absent, match=r"no generator afhqdog\.pkl: fetch it, from https://.*MIBENCH_DATA/weights/"):
        planned(suite, tmp_path)
    top = tmp_path / "data"
    for name in ("stanford_dogs", "afhq"):
        standin.write(name, top)
    monkeypatch.setenv("MIBENCH_DATA", str(top))
    registry.configure("data", "stanford_dogs", settings={"image_size": 16}).plugin.prepare()
    (top / "weights").mkdir()
    file = generators.nvidia(top / "weights" / "afhqdog.pkl", 16)
    real = [run.id for run in planned(suite, tmp_path)]
    with as_published():
        assert [run.id for run in planned(suite, tmp_path)] == real
    assert not stated & set(real)
    by_path = import_prior.plan(tmp_path, import_prior.choose(file, {}))
    assert by_path.id == import_prior.plan(tmp_path, import_prior.choose(Path("afhqdog.pkl"), {})).id


def test_a_file_is_looked_for_as_given_and_then_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "weights").mkdir(parents=True)
    assert located(Path("g.pkl")) is None
    (tmp_path / "data" / "weights" / "g.pkl").touch()
    assert located(Path("g.pkl")) == tmp_path / "data" / "weights" / "g.pkl"
    (tmp_path / "g.pkl").touch()
    assert located(Path("g.pkl")) == Path("g.pkl")
    assert located(Path("~nobody-of-this-name/g.pkl")) is None


@pytest.mark.usefixtures("nothing_here")
def test_a_suite_without_its_data_says_how_to_see_all_that_is_missing(suite: str, tmp_path: Path) -> None:
    told = command("run", suite, "--results", str(tmp_path / "results"))
    assert told.code == 2 and f"`mibench run {suite} --check` lists everything" in told.err
    assert len([line for line in told.err.splitlines() if "error:" in line]) == 1
    dry = command("run", suite, "--dry-run", "--results", str(tmp_path / "results"))
    assert dry.code == 0 and "inversions/ppa" in dry.out
    assert "not on this machine, so counted as published: afhqdog, stanford_dogs" in dry.err
    assert not (tmp_path / "results").exists()


def test_files_that_a_suite_states(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    need = {"source": "https://example.org/x.pth", "licence": "MIT", "size": "1 GB"}
    path.write_text("[needs]\n\"x.pth\" = {source = 'https://example.org/x.pth', licence = 'MIT', size = '1 GB'}\n")
    assert suites.needs(str(path)) == {"x.pth": need} and suites.read(str(path))
    for wrong in ("needs = 3", "[needs]\nx = 3", "[needs]\nx = {source = 'a'}", "[needs]\nx = {source = 1}"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="names files, each with texts"):
            suites.needs(str(path))
