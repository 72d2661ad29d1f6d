"""Laws of the doubling: when it ends and by which clause, and that a killed one ends with the same bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import Stop
from torch import Tensor
from worlds import colours, small_net

from mibench.core import Split
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.training import Candidate, Converged, Training, as_trained, converge, fit, predict
from mibench.training.convergence import verdict

ENGINE = resolve("cpu", "fp32")
RECIPE = Training(epochs=1, batch=12, lr=0.1, weight_decay=0.05, optimizer="muon", schedule="linear", doublings=2)


def tried(*fits: float) -> list[Candidate]:
    return [Candidate(15 * 2**place, fit, 0.1) for place, fit in enumerate(fits)]


@pytest.mark.parametrize(
    ("fits", "doublings", "clause"),
    [
        ((0.99,), 2, "fit"),
        ((0.989,), 2, None),
        ((0.989,), 0, "budget"),
        ((0.9, 0.92), 2, None),
        ((0.9, 0.914), 2, "plateau"),
        ((0.9, 0.88), 2, "plateau"),
        ((0.97, 0.991), 2, "fit"),
        ((0.5, 0.7, 0.9), 2, "budget"),
        ((0.5, 0.7, 0.71), 2, "plateau"),
        ((0.5, 0.7, 0.9), 3, None),
    ],
)
def test_the_rule(fits: tuple[float, ...], doublings: int, clause: str | None) -> None:
    assert verdict(tried(*fits), doublings) == clause


def noisy() -> Split:
    """Half of the labels are wrong: a small network cannot learn 99% of them."""
    data = colours(48)
    wrong = torch.arange(48) % 2 == 0
    return Split(data.images, torch.where(wrong, (data.labels + 1) % 3, data.labels))


def run(data: Split, recipe: Training = RECIPE, **given: Any) -> Converged:
    given = {"reporter": Silent(), "label": "toy"} | given
    return converge(lambda: small_net(dropout=0.3), data, 3, recipe, ENGINE, 3, **given)


def state(found: Converged) -> dict[str, Tensor]:
    return found.model.state_dict()


def equal(one: Converged, other: Converged) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_an_easy_problem_ends_by_its_fit_and_the_last_candidate_is_a_training_of_its_own() -> None:
    found = run(colours(48), replace(RECIPE, epochs=8))
    assert found.clause == "fit" and [candidate.epochs for candidate in found.candidates] == [8]
    hard = run(noisy())
    assert [candidate.epochs for candidate in hard.candidates] == [1, 2, 4][: len(hard.candidates)]
    assert hard.clause in ("plateau", "budget") and len(hard.candidates) > 1
    alone, recipe = small_net(dropout=0.3), replace(RECIPE, epochs=hard.candidates[-1].epochs)
    log = fit(alone, noisy(), 3, recipe, ENGINE, 3, Silent(), "toy").log
    assert all(torch.equal(value, state(hard)[name]) for name, value in alone.state_dict().items())
    assert hard.recipe == recipe and hard.candidates[-1].loss == log[-1]["loss"]
    shown = as_trained(noisy(), recipe, [], ENGINE, 3)
    right = (predict(alone, shown, ENGINE)[0].argmax(1) == noisy().labels).double().mean()
    assert hard.candidates[-1].fit == hard.fit.value == pytest.approx(float(right))
    record = hard.record()
    assert record["convergence"]["converged"] == (hard.clause == "plateau") and record["fit"]["value"] == hard.fit.value
    assert record["convergence"]["candidates"][0].keys() == {"epochs", "fit", "loss"}


def test_killed_in_any_candidate_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, doublings=2)
    whole = run(noisy(), recipe)
    epochs = [candidate.epochs for candidate in whole.candidates]
    assert len(epochs) > 1
    total = 4 * sum(epochs)
    for stop in (2, 5, 9, 14, 4 * epochs[0] + 4 * epochs[1] - 1, total - 2):  # 4 steps an epoch
        path = tmp_path / f"{stop}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(noisy(), recipe, reporter=Stop(stop), checkpoint=path)
        again = run(noisy(), recipe, reporter=Silent(), checkpoint=path)
        assert equal(whole, again) and again.candidates == whole.candidates, stop


def test_a_resumed_candidate_is_not_begun_again(tmp_path: Path) -> None:
    recipe, path = replace(RECIPE, epochs=2), tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(noisy(), recipe, reporter=Stop(8 + 5), checkpoint=path)  # in the second epoch of the second candidate
    reporter = Stop(10_000)
    found = run(noisy(), recipe, reporter=reporter, checkpoint=path)
    assert reporter.seen == sum(4 * candidate.epochs for candidate in found.candidates[1:])
