"""Laws of `mibench bench`: the plain loops do the same mathematics as ours, and what is measured is what is said."""

import json
from typing import Any

import pytest
import torch
from shell import command
from torch import Tensor
from torch.nn import functional as F

from mibench import models
from mibench.attacks.gmi import GMI
from mibench.core import Access, AttackContext, Oracle, Split
from mibench.experiments.bench import machine, plain, rows
from mibench.experiments.bench.equal import Equal, reached
from mibench.priors.plg import Plg
from mibench.priors.wgan_gp import WganGp

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
NOTHING = Split(torch.zeros(1, *SHAPE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


def networks(recipe: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    target = models.build("cnn", 5, SHAPE).eval().requires_grad_(False)
    return target, recipe.build(SHAPE, 5, NOTHING).eval().requires_grad_(False)


def test_a_hundred_steps_of_gmi_end_where_the_plain_loop_ends() -> None:
    target, prior = networks(WganGp(width=8))
    target.head.weight.mul_(20)  # an untrained network's gradients are too small to move anything far
    y, oracle = torch.arange(5), Oracle(target, Access.WHITE_BOX, 5)

    def ours(steps: int) -> Tensor:
        attack = GMI(images=1, steps=steps, reference_batch=5)
        return attack(oracle, prior, y, 0, AttackContext(5)).latents

    loop = plain.gmi(target, prior, y, ours(0))
    for _ in range(100):
        loop.step()
    moved = loop.parameters[0].detach()
    assert float((moved - ours(0)).abs().median()) > 0.01
    assert float((moved - ours(100)).abs().median()) < 1e-4


def test_the_plain_plg_draws_the_images_that_the_prior_draws() -> None:
    target, prior = networks(Plg(width=8))
    y, z = torch.arange(5), torch.randn(5, prior.latent_dim)
    torch.testing.assert_close(plain.plg(target, prior, y, z).images(), prior.decode(z, y), rtol=0, atol=1e-5)


def test_arithmetic_is_counted_in_closed_form() -> None:
    a, b = torch.randn(20, 30), torch.randn(30, 40)
    assert machine.floating_point(lambda: a @ b) == 2 * 20 * 30 * 40
    x, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert machine.floating_point(lambda: F.conv2d(x, kernel, padding=1)) == 2 * (2 * 5 * 8 * 8) * (3 * 9)


def test_memory_is_what_the_work_takes() -> None:
    kept: list[Tensor] = []
    taken = machine.memory(lambda: kept.append(torch.ones(16 << 20)), CPU)  # 64 MiB
    assert taken is None or 60 << 20 < taken < 100 << 20


def test_pieces_of_work_take_turns_after_one_that_is_not_timed() -> None:
    order: list[int] = []
    times = machine.by_turns([lambda: order.append(0), lambda: order.append(1)], CPU, 3)
    assert order == [0, 1] * 4 and [len(own) for own in times] == [3, 3]


@pytest.mark.parametrize(
    ("accuracies", "seconds"),
    [((0.1, 0.6, 0.9), 2.0), ((0.6, 0.1, 0.9), 3.0), ((0.9, 0.9, 0.9), 1.0), ((0.9, 0.9, 0.1), None), ((), None)],
)
def test_what_is_lost_again_was_not_reached(accuracies: tuple[float, ...], seconds: float | None) -> None:
    curve = [(place, float(place), value) for place, value in enumerate(accuracies, 1)]
    assert reached(curve, 0.5) == seconds


def test_a_race_that_is_never_won_has_no_ratio() -> None:
    assert Equal("ppa", "fp32", (), (), (10.0, 4.0)).ratio == 2.5
    assert (
        Equal("ppa", "fp32", (), (), (10.0, None)).ratio is None
        and Equal("ppa", "fp32", (), (), (None, 4.0)).ratio is None
    )


def test_the_table_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH", 2)
    monkeypatch.setattr(rows, "peak", lambda device, dtype: 1e12)
    told = command("bench", "--only", "gmi", "--turns", "1", "--json")
    for row in json.loads(told.out):
        assert row["what"].startswith("gmi step, ") and row["images"] == pytest.approx(2 / row["seconds"])
        assert row["share"] == pytest.approx(row["flops"] / 1e12) and row["ratio"][1] <= row["ratio"][0]


def test_an_attack_that_is_not_timed() -> None:
    assert "attack that is timed 'brep'" in command("bench", "--only", "brep").error
    assert "did you mean 'kedmi'" in command("bench", "--accuracy", "--only", "kedm").error
