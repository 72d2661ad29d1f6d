"""Laws of `--isolate`: the same bytes as without, and nothing for an attack that looks for more than answers."""

import io
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from attacking import same
from interruptions import Interruption
from torch import nn
from worlds import ACCESS, World, quick, workspace

from mibench.core import Access, AttackContext, Oracle, Reconstructions, Trace
from mibench.core.steps import Held
from mibench.isolation import guard
from mibench.isolation.cell import Cell, Distant
from mibench.plugins import registry
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.wire import Wire

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")

ENGINE = Engine(torch.device("cpu"), "fp32")
SHORT: dict[str, dict[str, Any]] = {
    "label_search": {"queries": 40, "candidates": 4},
    "cma_es": {"population": 8, "generations": 4},
}


def isolated(
    name: str, oracle: Oracle, folder: Path, settings: dict[str, Any], attacked: int, hidden: list[Path], world: World
) -> tuple[Reconstructions | None, list[str], str]:
    """Run an attack in a cell against an oracle outside."""
    fields = {
        "access": oracle.access.name,
        "attacked": attacked,
        "batch": 7,
        "budget": oracle.budget,
        "classes": oracle.num_classes,
        "seed": 3,
    }
    with guard.guarded(hidden) as cell:
        attack = {"name": name, "settings": settings}
        cell.give(attack, world.prior_for(name), world.public(), [], ENGINE, fields)
        with oracle.watched():
            made, generators = guard.serve(cell.wire, oracle, folder)
    return made, generators, cell.isolation


@pytest.mark.parametrize("name", SHORT)
def test_isolated_killed_and_resumed_it_gives_the_same_bytes_and_counts(name: str, tmp_path: Path) -> None:
    """Inside and outside take turns on one folder: they keep the same parts."""
    world, access = World(4), ACCESS[registry.card("attacks", name)["access"]]
    attack, labels = quick(name, **SHORT[name]), torch.arange(3)
    settings = registry.configure("attacks", name, "quick", SHORT[name]).spec()["settings"]
    told: list[int] = []
    outside = Oracle(world.target, access, 4, None, told.append, range(3))
    expected = attack(outside, world.prior_for(name), labels, 3, workspace(world, 7))
    total = sum(told)
    if name == "label_search":  # starting a process takes a while
        stopped = Oracle(world.target, access, 4, None, Interruption(total * 2 // 3), range(3))
        with pytest.raises(KeyboardInterrupt):
            isolated(name, stopped, tmp_path, settings, 3, [], world)
    kept = list(tmp_path.rglob("*.pt"))
    again = Oracle(world.target, access, 4, None, None, range(3))
    made, generators, _ = isolated(name, again, tmp_path, settings, 3, [], world)
    assert made is not None and same(made, expected) and generators == []
    assert all(torch.equal(one, outside.counts()[key]) for key, one in again.counts().items())
    assert set(kept) < set(tmp_path.rglob("*.pt"))
    here = Oracle(world.target, access, 4, None, None, range(3))
    assert same(attack(here, world.prior_for(name), labels, 3, workspace(world, 7, tmp_path)), expected)
    assert torch.equal(here.queries, outside.queries)


@dataclass
class Scene:
    """Everything that an attack would like to have, and the settings by which the hostile one finds it."""

    world: World
    results: Path
    private: Path
    settings: dict[str, Any]

    def run(self, deed: str, budget: int = 20) -> tuple[str, Oracle]:
        """What the hostile attack's end says, and the oracle that it asked."""
        oracle = Oracle(self.world.target, Access.BLACK_BOX, 4, budget, attacked=range(3))
        with pytest.raises(UserError) as caught:
            settings = self.settings | {"deed": deed}
            isolated("hostile", oracle, self.results, settings, 3, [self.results, self.private.parent], self.world)
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
        return str(caught.value), oracle


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The hostile attack is installed as a package of its own: a module and its metadata in a folder of the path."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("site")
    (place / "hostile_plugin.py").write_text(Path(hostile.__file__).read_text())
    (place / "hostile-1.0.dist-info").mkdir()
    (place / "hostile-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (place / "hostile-1.0.dist-info" / "entry_points.txt").write_text("[mibench.attacks]\nhostile = hostile_plugin\n")
    patch.syspath_prepend(place)
    registry._modules.cache_clear()
    patch.setenv("MIBENCH_TEST_SECRET", "s3cret")
    private, results = place / "private" / "alice" / "1.png", place / "results"  # beside the plug-in, on the path
    private.parent.mkdir(parents=True)
    private.write_bytes(b"alice")
    results.mkdir()
    (results / "run.json").write_text("{}")
    world = World(4)
    with torch.no_grad():
        world.target.get_parameter("head.bias")[3] = hostile.MARK
    with socket.create_server(("127.0.0.1", 0)) as server, private.open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        settings = {
            "private": str(private),
            "results": str(results),
            "parent": os.getpid(),
            "port": server.getsockname()[1],
            "secret": "MIBENCH_TEST_SECRET",
        }
        yield Scene(world, results, private, settings)
    patch.undo()
    registry._modules.cache_clear()


def test_a_hostile_attack_gets_nothing(scene: Scene) -> None:
    text, oracle = scene.run("steal")
    assert "taken: []" in text
    assert int(oracle.queries.sum()) == 0
    assert sorted(one.name for one in scene.results.iterdir()) == ["run.json"]


def test_what_the_same_attack_gets_without_isolation(scene: Scene) -> None:
    """The docs say so; and were the attack unable to steal, the law above would say nothing."""
    oracle = Oracle(scene.world.target, Access.BLACK_BOX, 4, 20, attacked=range(3))
    with pytest.raises(UserError) as caught:
        hostile.Hostile(**scene.settings)(oracle, scene.world.prior, torch.arange(3), 0, workspace(scene.world))
    taken = set(json.loads(str(caught.value).removeprefix("taken: ")))
    for one in (scene.results / "planted", Path(hostile.__file__).with_name("planted.py")):
        one.unlink(missing_ok=True)
    assert taken >= {"weights by gc", "weights by frames", "private image", "names of people", "results", "environment"}
    assert taken >= {"memory of the parent", "open files", "signal", "network", "write into results"}


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("exit", r"ended \(exit code 0\); the last it printed: not a word"),
        ("shout", r"ended \(exit code|stopped: SystemExit"),
    ],
)
def test_a_hostile_attack_that_breaks_off_is_one_line(scene: Scene, deed: str, words: str) -> None:
    text, oracle = scene.run(deed)
    assert re.search(words, text)
    assert int(oracle.queries.sum()) + oracle.shared_queries == 0


def conversation(*messages: bytes | tuple[str, dict[str, Any], dict[str, torch.Tensor]]) -> tuple[Wire, io.BytesIO]:
    """What somebody says who keeps to no rule; and what is answered."""
    said = io.BytesIO()
    for one in messages:
        if isinstance(one, bytes):
            said.write(one)
        else:
            Wire(io.BytesIO(), said).send(*one)
    said.seek(0)
    return Wire(said, answers := io.BytesIO()), answers


def test_whoever_does_not_count_is_counted(tmp_path: Path) -> None:
    """Past the counting inside, under other labels, in numbers: the oracle outside has the last word."""
    x = torch.rand(1, 3, 8, 8)
    questions = [
        ("ask", {"question": question}, {"x": x, "y": torch.full((1,), label)})
        for label in (0, 0, 3, 0)
        for question in ("probs", "labels")
        for _ in range(50)
    ]
    oracle = Oracle(World(4).target, Access.BLACK_BOX, 4, 20, attacked=range(3))
    wire, answers = conversation(*questions)
    with pytest.raises(EOFError), oracle.watched():
        guard.serve(wire, oracle, tmp_path)
    answers.seek(0)
    said = [Wire(answers, io.BytesIO(), trusts=True).receive().what for _ in questions]
    assert [said.count(one) for one in ("answer", "exhausted", "refused")] == [20, 280, 100]
    assert oracle.queries.tolist() == [20, 0, 0, 0]


IMAGES = torch.zeros(2, 3, 8, 8)
NONSENSE: list[tuple[Any, str]] = [
    (b"\x00" * 7 + b"\x02" + b"\x00" * 7 + b"\x02" + b"[[[[", "no message"),
    (b"\x00" * 7 + b"\x02" + b"\x00" * 7 + b"\x02" + b"\xff\xff\xff\xff", "no message"),
    (b"\x7f" * 64, "a message of .* bytes; at most"),
    (("ask", {"question": "answers"}, {"x": IMAGES}), "the question 'answers'"),
    (("ask", {"question": ["probs"]}, {"x": IMAGES}), "the question"),
    (("ask", {"question": "probs"}, {}), "the question 'probs'"),
    (("keep", {"scope": [], "name": "part"}, {"tensor": IMAGES}), "a part to keep that was not begun"),
    (("recall", {"scope": [".."], "name": "../../planted"}, {}), "a part to keep without a proper name"),
    (("recall", {"scope": ["a"] * 9, "name": "part"}, {}), "a part to keep without a proper name"),
    (("keep steps", {"scope": [], "name": "part"}, {"content": IMAGES}), "a part to keep that was not begun"),
    (("passed", {"scope": [], "name": "part"}, {}), "a part to keep that was not begun"),
    (("recall", {"name": 3}, {}), "a part to keep without a proper name"),
    (("grant", {}, {}), "'grant'"),
    (("done", {}, {"images": IMAGES}), "parts do not belong together"),
    (
        (
            "done",
            {},
            {"images": IMAGES, "labels": torch.zeros(2), "latents": torch.zeros(2, 1), "failed": torch.zeros(2)},
        ),
        "whose labels are torch.float32 with 1 axes, not torch.int64 with 1",
    ),
    (("stopped", {"text": "\x1b[31mred\x07\nline"}, {}), "stopped: .*red"),
]


@pytest.mark.parametrize(("message", "words"), NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_on_the_pipe_ends_the_run_in_one_line(message: Any, words: str, tmp_path: Path) -> None:
    oracle = World(4).oracle(Access.BLACK_BOX)
    with pytest.raises(UserError, match=words) as caught:
        guard.serve(conversation(message)[0], oracle, tmp_path / "run")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert int(oracle.queries.sum()) + oracle.shared_queries == 0 and not list(tmp_path.iterdir())


def test_odd_images_are_refused_and_the_attack_goes_on(tmp_path: Path) -> None:
    """Shapes and kinds that the target cannot take; jaxtyping, which watches in tests only, is a TypeError here."""
    odd = [
        torch.zeros(2, 3, 9, 9),
        torch.zeros(2, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
    ]
    wire, answers = conversation(*[("ask", {"question": "probs"}, {"x": one}) for one in odd])
    with pytest.raises(EOFError):
        guard.serve(wire, World(4).oracle(Access.BLACK_BOX), tmp_path)
    answers.seek(0)
    assert [Wire(answers, io.BytesIO(), trusts=True).receive().what for _ in odd] == ["refused"] * 4


def test_white_box_is_refused_in_one_line() -> None:
    for access in Access:
        if access < Access.WHITE_BOX:
            guard.possible(access)
    with pytest.raises(UserError, match="no seal is claimed") as caught:
        guard.possible(Access.WHITE_BOX)
    assert "\n" not in str(caught.value)


def test_what_may_be_read_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "module.py").touch()
    (tmp_path / "a" / "__init__.py").touch()
    hidden = [tmp_path / "a" / "b"]
    assert guard.around(tmp_path, hidden) == [tmp_path / one for one in ("a/__init__.py", "a/d", "e", "module.py")]
    assert guard.around(tmp_path / "a" / "b" / "c", hidden) == [] and guard.around(tmp_path / "e", hidden) == [
        tmp_path / "e"
    ]
    own = [one for one in guard.readable([str(tmp_path)], hidden) if tmp_path in one.parents]
    assert own == [tmp_path / one for one in ("a/__init__.py", "a/d", "module.py")]  # `e` is no package


def test_tensors_arrive_as_they_are() -> None:
    """Layout in memory included, on which a convolution's rounding depends."""
    with io.BytesIO() as pipe:
        wire = Wire(pipe, pipe)
        tensors = {
            "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "turned": torch.rand(4, 5).T,
            "spread": torch.rand(1, 5).expand(3, 5),
            "bf16": torch.rand(3).bfloat16(),
            "none": torch.zeros(0, 4),
            "flags": torch.tensor([True, False]),
            "number": torch.tensor(7),
            "weight": nn.Parameter(torch.rand(2)),
        }
        wire.send("all", {"a": [1, None]}, tensors)
        pipe.seek(0)
        said = wire.receive()
        assert said.what == "all" and said.fields == {"a": [1, None]} and said.tensors.keys() == tensors.keys()
        for name, one in tensors.items():
            assert torch.equal(said.tensors[name], one) and said.tensors[name].dtype == one.dtype
            if name != "spread":
                assert said.tensors[name].stride() == one.stride(), name


@pytest.mark.parametrize("kill", [2, 6, None])
def test_killed_in_the_middle_of_a_part_it_goes_on_from_there(kill: int | None, tmp_path: Path) -> None:
    """Inside and outside each count what was asked before, once; a loop that was over is not run again."""
    world = World(3)
    y = torch.tensor([0, 2])

    def oracle_of() -> Oracle:
        return Oracle(world.target, Access.BLACK_BOX, 3, 100, trace=Trace(3, 3, 10, torch.device("cpu")))

    def walk(oracle: Oracle, work: AttackContext, stop: Interruption, begun: list[int]) -> torch.Tensor:
        def part() -> torch.Tensor:
            held = Held(z=torch.ones(2, world.prior.latent_dim))
            for _ in range(2):
                held.z = held.z + oracle.probs(world.prior.decode(held.z), y).gather(1, y[:, None])
                for step in work.steps(4, held):
                    stop()
                    begun.append(step)
                    held.z = held.z * 0.9 + oracle.probs(world.prior.decode(held.z), y).gather(1, y[:, None])
            return torch.as_tensor(held.z)

        return work.once("walk", oracle, part)

    def apart(stop: Interruption, begun: list[int]) -> tuple[torch.Tensor, Oracle, Oracle]:
        """The attack inside, in this thread; the oracle outside, in another."""
        outside = oracle_of()
        (theirs, to), (back, ours) = os.pipe(), os.pipe()
        wire = Wire(os.fdopen(back, "rb"), os.fdopen(to, "wb"), trusts=True)
        outer = Wire(os.fdopen(theirs, "rb"), os.fdopen(ours, "wb"))

        def serving() -> None:
            with suppress(EOFError):
                guard.serve(outer, outside, tmp_path)

        thread = threading.Thread(target=serving)
        thread.start()
        inside = Distant(wire, Access.BLACK_BOX, 3, 100, torch.device("cpu"), range(3))
        try:
            return walk(inside, Cell(4, wire=wire, seconds=0.0), stop, begun), inside, outside
        finally:
            for end in (wire.writes, wire.reads):
                end.close()
            thread.join()
            outer.writes.close()
            outer.reads.close()

    here = oracle_of()
    expected = walk(here, AttackContext(4), Interruption(100), [])
    before: list[int] = []
    after: list[int] = []
    if kill is not None:
        with pytest.raises(KeyboardInterrupt):
            apart(Interruption(kill), before)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-walk@steps.pt"]
        there = tmp_path.parent / f"copy {kill}" / tmp_path.name  # a checkpoint knows the folder it lies in
        shutil.copytree(tmp_path, there)
        assert torch.equal(walk(oracle_of(), AttackContext(4, there), Interruption(100), []), expected)
    found, inside, outside = apart(Interruption(100), after)
    assert torch.equal(found, expected) and before + after == [*range(4), *range(4)]
    assert all(torch.equal(one, outside.counts()[key]) for key, one in here.counts().items())
    assert torch.equal(inside.queries, outside.queries)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-walk.pt"]
    if kill is not None:  # begun here, ended in there: what is kept here is not read there
        (tmp_path / "checkpoint-walk.pt").unlink()
        with pytest.raises(KeyboardInterrupt):
            walk(oracle_of(), AttackContext(4, tmp_path, seconds=0.0), Interruption(kill), [])
        again: list[int] = []
        found, inside, outside = apart(Interruption(100), again)
        assert torch.equal(found, expected) and len(again) == 8
        assert all(torch.equal(one, outside.counts()[key]) for key, one in here.counts().items())
