"""Laws of a training on several devices: one device's network, whoever dies; here two processes on a CPU."""

import multiprocessing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from spreading import CASES, RECIPE, SPLIT, Dies, several, trained
from torch import Tensor, nn
from worlds import small_net

from mibench.defenses.dp_sgd import DPSGD
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.training import fit, parallel, processes
from mibench.training.parallel import Ranks

ENGINE = resolve("cpu", "fp32")
TWO = Engine(torch.device("cpu"), "fp32", (torch.device("cpu"),))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_two_processes_train_one_processs_network(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    given: dict[str, Any] = {"folder": tmp_path}
    with processes.spread(TWO, "toy", several, given) as ranks:
        spread = several(TWO, Silent(), ranks, **given)
    alone = several(ENGINE, Silent(), None, **given)
    assert [*spread] == [*alone] == [*CASES, "resumed"]
    differences = {name: apart(spread[name][0], alone[name][0]) for name in alone}
    assert max(differences.values()) < 1e-4, differences
    for name, (_, log) in alone.items():
        assert [one["loss"] for one in spread[name][1]] == pytest.approx([one["loss"] for one in log], rel=1e-4)
    assert apart(spread["resumed"][0], spread["none"][0]) == 0.0  # the same devices: the same bits
    assert min(apart(alone["none"][0], alone[name][0]) for name in CASES[1:5]) > 1e-3  # each does something


def test_a_process_that_dies_ends_the_run_which_goes_on_on_any_number(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    checkpoint, before = tmp_path / "checkpoint.pt", dict(processes.os.environ)
    with pytest.raises(UserError, match=r"toy: the process of device 2 of 2 was killed \(SIGKILL\); run the same") as e:
        fit(small_net(), SPLIT, 3, RECIPE, TWO, 3, Silent(), "toy", [Dies()], checkpoint=checkpoint)
    assert "\n" not in str(e.value) and checkpoint.exists()
    assert not multiprocessing.active_children() and not torch.distributed.is_initialized()
    assert dict(processes.os.environ) == before
    resumed, whole = small_net(), small_net()
    for net, kept in ((resumed, checkpoint), (whole, None)):
        fit(net, SPLIT, 3, RECIPE, ENGINE, 3, Silent(), "toy", [Dies()], checkpoint=kept)
    assert 0.0 < apart(resumed.state_dict(), whole.state_dict()) < 1e-4


# --- what one process can see of it: rows and refusals


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """The only process of a group of one."""
    monkeypatch.setattr(parallel.distributed, "all_reduce", lambda x: None)
    return Ranks(0, 1)


@pytest.mark.parametrize(("total", "count"), [(10, 2), (9, 2), (7, 3), (3, 3)])
def test_every_row_is_somebodys(total: int, count: int) -> None:
    rows = [row for rank in range(count) for row in range(total)[Ranks(rank, count).own(total)]]
    assert rows == list(range(total))


def test_batch_norm_and_its_gradients_are_torchs(lonely: Ranks) -> None:
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100.0
    made = []
    for spread in (False, True):
        net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).double()
        own = x.clone().requires_grad_()
        out = (lonely.network(net) if spread else net)(own)
        gradients = torch.autograd.grad(out.pow(3).sum(), [own, *net.parameters()])
        made.append([out.detach(), *gradients, *net.state_dict().values()])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


class Mixes(nn.Module):
    """Answers depend on the batch, and not by a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) - x.mean(dim=(0, 2, 3)) * len(x)


def test_networks_that_cannot_be_spread_are_refused_and_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(6, 3, 12, 12)
    monkeypatch.setattr(parallel.distributed, "all_reduce", lambda x: None)
    net = small_net(dropout=0.2).train()
    before, drawn = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(UserError, match="toy: the network draws random numbers in training"):
        Ranks(0, 1).require_same(net, x, "toy")
    assert apart(before, net.state_dict()) == 0.0 and torch.equal(torch.get_rng_state(), drawn)
    Ranks(0, 1).require_same(small_net().train(), x, "toy")
    with pytest.raises(UserError, match="other than a batch norm, mixes the images of a batch"):
        Ranks(0, 2).require_same(Mixes(), x, "toy")
    with pytest.raises(UserError, match=r"1 image\(s\) cannot be spread over 2 devices"):
        Ranks(0, 2).network(net)(x[:1])


def test_what_wraps_the_network_is_refused_before_a_process_starts() -> None:
    with pytest.raises(UserError, match="toy: the defense dp_sgd wraps the network") as e:
        fit(small_net(), SPLIT, 3, RECIPE, TWO, 3, Silent(), "toy", [DPSGD()])
    assert "\n" not in str(e.value)


def test_the_loop_and_one_process_of_a_group_of_one_agree(lonely: Ranks) -> None:
    assert apart(trained("nls", ENGINE, lonely)[0], trained("nls", ENGINE, None)[0]) < 1e-5


class Partner(SpawnProcess):
    """Another process that has ended, as the first one sees it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    @property
    def exitcode(self) -> int:
        return self.code


def test_a_mistake_is_told_before_a_death_and_a_death_before_its_consequences() -> None:
    def told(*words: tuple[bool, str] | int) -> Exception:
        others: list[Any] = []
        for word in words:
            ours, theirs = multiprocessing.Pipe()
            others.append((Partner(word if isinstance(word, int) else 1), ours))
            if not isinstance(word, int):
                theirs.send(word)
        with pytest.raises((UserError, RuntimeError)) as caught:
            processes._tell("toy", others)
        return caught.value

    assert str(told((False, "lost a partner"), -9, (True, "lower the rate"))) == "lower the rate"
    assert "device 3 of 3 was killed (SIGKILL)" in str(told((False, "lost a partner"), -9))
    assert isinstance(told((False, "a fault")), RuntimeError)
