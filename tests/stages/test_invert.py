"""Whatever another package's attack does, its run is whole and true, or it has failed with a message."""

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from mistakes import rows
from shell import JUDGES, SMALL, command, sets, world

from mibench.core import Access, Oracle
from mibench.plugins import registry
from mibench.stages import artifacts
from mibench.stages import invert as stages_invert

ODD = """
import os, sys
from dataclasses import dataclass
from mibench.core import Attack, Cost, Reconstructions
from mibench.runtime.rng import Noise
CARD = {"summary": "does what it is told", "access": "black_box", "prior": "dcgan", "role": "attack", "contract": 1}

@dataclass(frozen=True)
class Odd(Attack):
    mode: str = ""

    def cost(self, prior, public=0):
        return Cost(0, 0, 0)

    def __call__(self, oracle, prior, labels, seed, work):
        images = prior.decode(prior.sample(Noise(seed, labels)))
        if self.mode == "none":
            return None
        if self.mode == "exits":
            sys.exit(0)
        if self.mode == "leaves":
            os._exit(0)
        if self.mode == "forks":
            child = os.fork()
            if child == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        if self.mode == "litters":
            (work.folder / "metrics.json").write_text("{}")
            (work.folder / "notes.txt").write_text("mine")
            (work.folder / "more").mkdir(exist_ok=True)
            (work.folder / "more" / "x.npy").write_text("mine")
        if self.mode == "fewer":
            return Reconstructions(images[1:].detach() * 255, labels[1:], range="byte")
        return Reconstructions(images, labels)
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An attack of another package, beside a target of four people."""
    (tmp_path / "odd_attack.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_attack", raising=False)  # of another test, in a folder of its own
    points = [EntryPoint("odd", "odd_attack", "mibench.attacks")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "mibench.attacks" else [])
    registry._modules.cache_clear()
    registry._source.cache_clear()
    monkeypatch.chdir(tmp_path)
    world().copy(tmp_path)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    registry._modules.cache_clear()


def invert(mode: str) -> tuple[str, ...]:
    return ("invert", "--method", "odd", "--preset", "default", *SMALL, *sets(mode=mode))


def test_nothing_is_one_line_that_names_the_attack() -> None:
    assert command(*invert("none")).error.startswith("the attack odd returned NoneType; return mibench.core.Recon")


@pytest.mark.parametrize(("mode", "call"), [("exits", r"sys.exit(0)"), ("leaves", "os._exit(0)")])
def test_who_ends_the_process_has_failed(mode: str, call: str, tmp_path: Path) -> None:
    said = command(*invert(mode)).error
    assert " failed: odd_attack.py, line " in said and f"called {call}; a plug-in returns or raises" in said
    assert not list((tmp_path / "results" / "inversions").glob("odd-*"))


def test_a_child_of_an_attack_may_end_itself() -> None:
    assert command(*invert("forks")).code == 0


def test_what_it_leaves_in_the_runs_folder_is_said_and_not_kept() -> None:
    told = command(*invert("litters"))
    for file in ("metrics.json", "more", "notes.txt"):
        assert f"ignored {file}, which the attack left in the run's folder" in " ".join(told.err.split())
    kept = {path.name for path in told.last.iterdir()}
    assert kept == {"images.safetensors", "metrics.json", "grid.png", "run.json", "done"}
    assert json.loads((told.last / "metrics.json").read_text())["images"] == 4
    assert set(json.loads((told.last / "done").read_text())) == kept - {"done"}


def test_the_page_of_mistakes_says_what_is_said(tmp_path: Path) -> None:
    page = dict(rows("What a plug-in does to the run"))
    assert page.pop("it calls `sys.exit`") in command(*invert("exits")).error
    assert page.pop("it calls `os._exit`") in command(*invert("leaves")).error
    assert page.pop("it leaves a file in the run's folder") in " ".join(command(*invert("litters")).err.split())
    for version, which in ((2, "newer"), (0, "older")):
        (tmp_path / "odd_attack.py").write_text(ODD.replace('"contract": 1', f'"contract": {version}'))
        registry.literals.cache_clear()
        said = command(*invert("none")).error
        assert page.pop(f"its card names an {which} contract".replace("an n", "a n")).replace(" old,", " odd,") in said
    (tmp_path / "odd_attack.py").write_text(ODD.replace("CARD =", "CARDS ="))
    registry.literals.cache_clear()
    assert page.pop("its file has no literal card") in command(*invert("none")).error
    assert not page


def test_who_is_left_out_is_listed_and_counts_as_a_miss() -> None:
    told = command("attack", *invert("fewer")[1:], *JUDGES)
    assert told.code == 0, told.err
    assert "1 of 4 identities failed, no image came back: " in " ".join(told.err.split())
    inversion = next(Path("results/inversions").glob("odd-*"))
    tensors, _ = artifacts.read_tensors(inversion / "images.safetensors", "reconstructions")
    assert tensors["missing"].tolist() == [0] and len(tensors["images"]) == 4
    assert json.loads((inversion / "metrics.json").read_text())["missing"] == [0]
    score = json.loads((next(Path("results/scores").glob("odd-*")) / "scores.json").read_text())
    assert len(score["missing"]) == 1 and (score["n"], score["likeness"]["n"], score["identities"]) == (4, 4, 4)
    assert score["evaluators"]["resnet"]["open_top1"]["n"] == 4
    assert score["evaluators"]["resnet"]["knn_train"]["n"] == score["evaluators"]["resnet"]["n"] == 3
    with (next(Path("results/scores").glob("odd-*")) / "per_image.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["likeness"], first["knn_train@resnet"]) == ("0", "nan")
    reported = command("report", "results")
    assert reported.code == 0, reported.err
    assert "no image of 1 of 4 people" in " ".join(command("checks", "results").out.split())
    assert command("judge", inversion.name, "--export", "asked", "--pairs", "40").code == 0
    lines = Path("asked/questions.jsonl").read_text().splitlines()
    assert len(lines) > 3


def test_a_search_logs_what_the_target_answered() -> None:
    (run,) = (path for path in Path("results/inversions").iterdir() if path.name.startswith("kedmi-"))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    asked, metrics = lines[-1]["of"], json.loads((run / "metrics.json").read_text())
    assert asked == metrics["queries_per_identity"] and lines[-1]["step"] == asked
    assert sum(line["images"] for line in lines) == asked * metrics["identities"]
    reached = [line["reached"] for line in lines]
    assert reached == sorted(reached) and all(0 <= line["confidence"] <= 1 <= math.exp(line["loss"]) for line in lines)
    assert not (run / ".progress.json").exists() and "log.jsonl" in json.loads((run / "done").read_text())


def test_out_of_memory_it_searches_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bytes of a run that was planned with so many; killed after that, it begins again with so many."""
    words = ("invert", "--method", "ppa", *SMALL, *sets(images=2, pool=40, candidates=3, steps=3, selection_views=2))
    with monkeypatch.context() as patch:
        patch.setitem(stages_invert.BATCH, "cpu", 4)
        world().copy(tmp_path / "fewer")
        wanted = command(*words, "--results", "fewer/results").last
    admit, refused, asked = Oracle._admit, [], itertools.count()
    kill: list[int] = [25]

    def limited(self: Oracle, access: Access, what: str, x: Any, labels: Any) -> Any:
        if len(x) > 5:
            refused.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if kill and next(asked) == kill[0]:
            raise KeyboardInterrupt
        return admit(self, access, what, x, labels)

    monkeypatch.setattr(Oracle, "_admit", limited)
    assert command(*words).code not in (0, 2) and refused
    assert len(list(Path("results/inversions").glob(".ppa-*/checkpoint@batch.pt"))) == 1
    kill.clear()
    refused.clear()
    done = command(*words)
    assert not refused
    for name in ("images.safetensors", "metrics.json"):
        assert (done.last / name).read_bytes() == (wanted / name).read_bytes()
    assert not list(done.last.glob("checkpoint*"))
    assert json.loads((done.last / "run.json").read_text())["provenance"]["batch"] == 4
