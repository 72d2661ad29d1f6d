"""docs/extend/mistakes.md tells what mibench says: every row that a test here provokes, in its own words."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import World, workspace

from mibench.core import Access, Oracle, plain
from mibench.evaluation.checks import global_generators_used
from mibench.isolation import guard
from mibench.runtime.errors import UserError

PAGE = Path(__file__).parent.parent.parent / "docs" / "extend" / "mistakes.md"
X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch.func's own import


class Sub(Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def oracle(access: Access = Access.BLACK_BOX) -> Oracle:
    return Oracle(World(4).target, access, 4, attacked=range(3))


def under_a_mode() -> None:
    with Mode():
        oracle().probs(X, Y)


def many_for_one() -> None:
    asked = oracle()
    torch.func.vmap(lambda y: asked.probs(X, y))(Y.expand(3, 4))


def with_tangents() -> None:
    with torch.autograd.forward_ad.dual_level():
        oracle().probs(torch.autograd.forward_ad.make_dual(X, X), Y)


def many_at_once() -> None:
    x = X.clone().requires_grad_()
    logits = oracle(Access.WHITE_BOX).logits(x, Y)
    torch.autograd.grad(logits, x, torch.eye(4).expand(4, 4, 4), is_grads_batched=True)


def past_the_oracle() -> None:
    asked = oracle()
    with asked.watched():
        asked._target(torch.rand(7, 3, 8, 8))


def taken_back() -> None:
    asked = oracle()
    asked.add({name: count - 1 for name, count in asked.counts().items()})


def twice() -> None:
    work = workspace(World(4))
    for _ in range(2):
        work.once("part", oracle(), lambda: torch.zeros(1))


class Drawn:
    generators = ("torch",)


MISTAKES: list[Callable[[], object]] = [
    lambda: oracle().answers(X, Y),
    lambda: oracle().probs(X.as_subclass(Sub), Y),
    under_a_mode,
    many_for_one,
    with_tangents,
    many_at_once,
    lambda: plain.require_images(X.to(torch.uint8)),  # jaxtyping, which watches in tests, refuses these first
    lambda: plain.require_labels(Y.float(), 4),
    lambda: oracle().probs(X.repeat(2, 1, 1, 1)[:6], Y),
    lambda: oracle().probs(X, torch.arange(4)),
    lambda: oracle().probs(X, torch.full((4,), 9)),
    past_the_oracle,
    taken_back,
    twice,
    lambda: workspace(World(4)).once("a/b", oracle(), lambda: torch.zeros(1)),
    lambda: inspect.unwrap(global_generators_used)(Drawn()),  # type: ignore[arg-type]
    lambda: guard.possible(Access.WHITE_BOX),
]
"""In the order of the page's rows."""

OWN = ("Questions to the target", "Work that is kept", "Randomness", "Isolation")
"""Sections whose rows are provoked here."""


def rows() -> list[str]:
    """What mibench says, by the page's tables in the sections above."""
    sections = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    lines = [line for name in OWN for line in texts[name].splitlines() if line.startswith("| ")]
    return [line.split(" | ")[-1].removesuffix(" |") for line in lines if not line.startswith("| what you did")]


def said(mistake: Callable[[], object]) -> str:
    try:
        return str(mistake())
    except UserError as error:
        return str(error)


def test_every_row_is_what_mibench_says() -> None:
    assert len(rows()) == len(MISTAKES)
    for row, mistake in zip(rows(), MISTAKES, strict=True):
        words = said(mistake)
        assert re.fullmatch(".+".join(map(re.escape, row.split("…"))), words), (row, words)
        assert "\n" not in words
