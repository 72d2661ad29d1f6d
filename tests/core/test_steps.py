"""A killed attack goes on in the middle of a loop: every step is taken once, every question counted once, same bits."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import COMPOSED
from torch import Tensor

from mibench.core import Access, AttackContext, Oracle, Trace, steps
from mibench.core.steps import Held, Part, Stateful
from mibench.plugins import registry
from mibench.testing.attacks import AttackTrial, Interruption, same
from mibench.testing.worlds import World

SHORT = {"prior_sample", "prior_search", "public_search"}
"""Floors that ask once: they have no loop within a part."""

WRAPPERS = ["gmi+align", "gmi+untrap", "ppa+eot", "ppa+ppdg"]
NAMES = sorted({*registry.names("attacks")} - SHORT - {"eot", "align", "untrap", "ppdg"}) + WRAPPERS


SIZES = {"random_search": 6, "label_search": 40}
"""A batch that leaves such a search more than one step."""

SHORTER = {"c2f": {"embedding_epochs": 1, "map_epochs": 3}}
"""Where a toy search is long for other laws' sake."""


class Killed(KeyboardInterrupt):
    """When a checkpoint has been written."""


def taken(monkeypatch: pytest.MonkeyPatch, kill: int | None) -> list[int]:
    """Every step that is begun from now on. After `kill` steps that a checkpoint may follow one is written, and there
    is an end."""
    begun: list[int] = []
    run, keep = Part.steps, Part._keep
    passed = itertools.count(1)

    def counted(self: Part, count: int, states: Sequence[Stateful], batch: int) -> Iterator[int]:
        outer = not self.inside
        for step in run(self, count, states, batch):
            begun.extend([step] if outer else [])
            yield step

    def kept(self: Part, *given: Any) -> None:
        if next(passed) == kill:
            keep(self, *given)
            raise Killed

    monkeypatch.setattr(Part, "steps", counted)
    monkeypatch.setattr(Part, "_keep", kept)
    return begun


@pytest.mark.parametrize("name", NAMES)
def test_killed_within_a_part_it_goes_on_from_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, labels = AttackTrial(name, SHORTER.get(name), attack=COMPOSED.get(name)), torch.arange(3)

    def run(folder: Path, kill: int | None) -> tuple[Any, dict[str, torch.Tensor], list[int]]:
        folder.mkdir(exist_ok=True)
        oracle = trial.world.oracle(trial.access)
        with monkeypatch.context() as patch:
            begun = taken(patch, kill)
            try:
                found = trial.run(labels, oracle=oracle, work=trial.work(SIZES.get(name, 1000), folder, seconds=0.0))
            except Killed:
                return None, {}, begun
        return found, oracle.counts(), begun

    whole, counts, every = run(tmp_path / "undisturbed", None)
    kill = max(1, (len(every) - every.count(0)) * 3 // 4)  # no checkpoint follows a loop's last step
    nothing, _, before = run(tmp_path, kill)
    assert nothing is None and len(list(tmp_path.rglob("*@steps.pt"))) == 1
    found, again, after = run(tmp_path, None)
    assert same(found, whole), "it ends with other bits"
    assert before + after == every, "a step was taken twice or left out"
    assert all(torch.equal(again[key], count) for key, count in counts.items())
    assert not list(tmp_path.rglob("*@*")), "a finished part leaves no steps"


class Walk:
    """A part with three loops, and questions between them; it is told where to be killed."""

    def __init__(self, folder: Path | None, kill: int | None = None, seconds: float = 0.0, batch: int = 2) -> None:
        self.world = World(3)
        self.trace = Trace(3, 3, 40, torch.device("cpu"))
        self.oracle = Oracle(self.world.target, Access.BLACK_BOX, 3, trace=self.trace)
        self.work = AttackContext(batch, folder, seconds=seconds)
        self.left = Interruption(10**6 if kill is None else kill)
        self.begun: list[tuple[int, int]] = []

    def ask(self, z: Tensor) -> Tensor:
        """One question for each of two identities."""
        y = torch.tensor([0, 2])
        return self.oracle.probs(self.world.prior.decode(z), y).gather(1, y[:, None])

    def __call__(self) -> Tensor:
        """What the part finds."""
        return self.work.once("walk", self.oracle, self._walk)

    def _walk(self) -> Tensor:
        z = torch.linspace(-1, 1, 2 * self.world.prior.latent_dim).reshape(2, -1)
        moved = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=0.1)
        held = Held(total=torch.zeros(2, 1), seen=[])
        for number, states in enumerate(([held], [held, Held(moved=[moved]), optimizer], [held])):
            held.total = held.total + self.ask(moved.detach())
            for step in self.work.steps(4, *states):
                self.left()
                self.begun.append((number, step))
                held.total = held.total * 1.1 + self.ask(moved.detach() + step)
                held.seen = [*held.seen, held.total.sum()]
                if number == 1:
                    moved.grad = held.total * moved.detach()
                    optimizer.step()
                for _ in self.work.steps(2):  # a loop inside of a loop is a part of its step
                    pass
        return torch.cat([held.total, torch.stack(held.seen)[:, None], moved.detach().reshape(-1, 1)])


@pytest.mark.parametrize("kill", range(12))
def test_every_step_is_one_from_which_a_part_goes_on(kill: int, tmp_path: Path) -> None:
    whole = Walk(None)
    wanted = whole()
    killed = Walk(tmp_path, kill)
    with pytest.raises(KeyboardInterrupt):
        killed()
    again = Walk(tmp_path)
    assert torch.equal(again(), wanted)
    # The last step of a loop is kept with the first of the next: if that is not reached it is taken again.
    repeated = len(killed.begun) + len(again.begun) - len(whole.begun)
    assert repeated == (kill > 0 and kill % 4 == 0)
    assert all(torch.equal(again.oracle.counts()[key], count) for key, count in whole.oracle.counts().items())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-walk.pt"]


def test_a_loop_that_is_cut_otherwise_begins_anew(tmp_path: Path) -> None:
    """On another machine a batch has another size: so many batches done there are not so many done here."""
    with pytest.raises(KeyboardInterrupt):
        Walk(tmp_path, 7)()
    again = Walk(tmp_path, batch=3)
    assert torch.equal(again(), Walk(None)()) and len(again.begun) == 12


def test_checkpoints_are_as_seldom_as_they_are_expensive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every minute where they cost nothing; where one takes 2 s, after 200 s."""
    now, written, cost = [0.0], [], [0.0]

    def write(path: Path, state: object) -> None:
        written.append(now[0])
        now[0] += cost[0]

    monkeypatch.setattr(steps, "write_checkpoint", write)
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    work, oracle = AttackContext(folder=tmp_path), World(3).oracle()

    def search() -> Tensor:
        for _ in work.steps(1000, Held(z=torch.zeros(1))):
            now[0] += 1.0
        return torch.zeros(1)

    work.once("cheap", oracle, search)
    assert written[:3] == [60.0, 120.0, 180.0]
    written.clear()
    now[0], cost[0] = 0.0, 2.0
    work.once("dear", oracle, search)
    assert written == [60.0, 262.0, 464.0, 666.0, 868.0]
    assert 2.0 * len(written) <= 0.01 * now[0]


def test_a_state_is_kept_without_what_it_is_a_part_of(tmp_path: Path) -> None:
    """torch keeps the whole memory of a view."""
    large = torch.zeros(1000, 1000)
    kept = steps.to({"view": large[:, :1], "all": large, "list": [large[0]]}, torch.device("cpu"))
    assert kept["view"].untyped_storage().nbytes() == kept["list"][0].untyped_storage().nbytes() == 4000
    assert kept["all"].data_ptr() == large.data_ptr()
