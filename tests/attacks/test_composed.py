"""The contract of attacks, for composed ones."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import GMI_SHORT, KEDMI_SHORT, PPA_SHORT, ROUNDING, erased, run, same
from worlds import World, attack_on, workspace

from mibench.attacks.align import Align
from mibench.attacks.eot import EOT
from mibench.attacks.gmi import GMI
from mibench.attacks.ppdg import PPDG
from mibench.attacks.untrap import Untrap
from mibench.core import Access, Attack, BudgetExhausted, Oracle
from mibench.runtime.errors import UserError

PPDG_SHORT: dict[str, Any] = {
    "candidates": 4,
    "keep": 2,
    "views": 3,
    "pivot_steps": 6,
    "pivot_lr": 0.1,
    "steps": 3,
    "lr": 1e-3,
}


WRAPPED: dict[str, Attack] = {
    "gmi+eot": EOT(GMI_SHORT, copies=3),
    "gmi+align": Align(GMI_SHORT, copies=3),
    "ppa+eot": EOT(PPA_SHORT, copies=3),
    "ppa+eot+align": Align(EOT(PPA_SHORT, copies=2), copies=2, mode="transform", select=True),
    "ppa+ppdg": PPDG(PPA_SHORT, **PPDG_SHORT),
    "gmi+untrap": Untrap(GMI_SHORT, images=4, steps=3),
    "ppa+untrap+eot": EOT(Untrap(PPA_SHORT, images=3, steps=2), copies=2),
    "kedmi+ppdg+eot": EOT(PPDG(KEDMI_SHORT, **PPDG_SHORT), copies=2),
}


PLANNED = ["gmi+eot", "ppa+eot+align", "ppa+ppdg", "ppa+untrap+eot"]
"""One of each kind, for the laws that take many runs."""


def test_composed_by_name_they_are_the_same_attack() -> None:
    world = World(4)
    settings = {"steps": 5, "images": 2, "eot.copies": 3, "align.copies": 2, "align.sigma": 0.1}
    found = attack_on(world, "gmi+eot+align", **settings)
    by_hand = Align(EOT(GMI(images=2, steps=5, lr=0.5, realism=0.0), copies=3), copies=2, sigma=0.1)
    assert same(found, run(by_hand, world, work=workspace(world)))


@pytest.mark.parametrize("name", WRAPPED)
def test_what_comes_out_and_what_stays_as_it_was(name: str) -> None:
    world, labels = World(6), torch.tensor([4, 0, 3])
    models = (world.target, world.prior)
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    found = run(WRAPPED[name], world, labels)
    assert found.images.shape == (6, *world.prior.image_shape)
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert torch.equal(found.labels, labels.repeat_interleave(2))
    for part in asdict(found).values():
        assert not part.requires_grad and (part.dtype == torch.bool or part.isfinite().all())
    for model, state in zip(models, before, strict=True):
        after = model.state_dict()
        assert after.keys() == state.keys() and all(torch.equal(state[key], after[key]) for key in state)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not model.training


@pytest.mark.parametrize("name", WRAPPED)
def test_the_cost_is_exact(name: str) -> None:
    world, labels, attack = World(6), torch.tensor([4, 0, 3]), WRAPPED[name]
    told: list[int] = []
    oracle = Oracle(world.target, Access.WHITE_BOX, world.classes, tick=told.append)
    run(attack, world, labels, oracle=oracle, work=erased(world, 9))
    cost = attack.cost(world.prior, len(world.public()))
    attacked = torch.zeros(world.classes, dtype=torch.int64)
    attacked[labels] = 1
    assert torch.equal(oracle.queries, attacked * cost.queries)
    assert torch.equal(oracle.gradient_images, attacked * cost.gradient_images)
    assert oracle.shared_queries == cost.shared_queries
    assert sum(told) == cost.queries * 3 + cost.shared_queries


@pytest.mark.parametrize("name", WRAPPED)
def test_same_seed_same_bits_another_seed_differs(name: str) -> None:
    world = World(4)
    torch.manual_seed(0)
    first = run(WRAPPED[name], world, seed=1)
    torch.manual_seed(99)
    assert same(first, run(WRAPPED[name], world, seed=1))
    assert not torch.isclose(first.latents, run(WRAPPED[name], world, seed=2).latents).all(dim=1).any()


@pytest.mark.parametrize("name", WRAPPED)
def test_a_batch_of_identities_gets_what_each_would_get_alone(name: str) -> None:
    world, labels = World(6), torch.tensor([5, 1, 3])
    together = run(WRAPPED[name], world, labels)
    for place, label in enumerate(labels):
        alone = run(WRAPPED[name], world, label[None])
        own = slice(2 * place, 2 * place + 2)
        torch.testing.assert_close(together.latents[own], alone.latents, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(together.images[own], alone.images, rtol=0, atol=ROUNDING)
    narrow = run(WRAPPED[name], world, labels, work=erased(world, 9))
    torch.testing.assert_close(together.latents, narrow.latents, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(together.images, narrow.images, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", PLANNED)
def test_a_budget_is_never_exceeded_and_serves_all_alike(name: str) -> None:
    world, attack = World(4), WRAPPED[name]
    cost = attack.cost(world.prior)
    full = cost.queries + cost.shared_queries
    for budget in (full - 1, cost.shared_queries + cost.queries // 2, 1):
        oracle = world.oracle(budget=budget)
        try:
            wide = run(attack, world, oracle=oracle)
            alone = run(attack, world, torch.tensor([2]), oracle=world.oracle(budget=budget), work=erased(world, 9))
            torch.testing.assert_close(wide.latents[wide.labels == 2], alone.latents, rtol=0, atol=ROUNDING)
        except BudgetExhausted:
            assert budget < cost.shared_queries
        assert int(oracle.queries.max()) + oracle.shared_queries <= budget
    assert same(run(attack, world, oracle=world.oracle(budget=full)), run(attack, world))


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("budgeted", [False, True])
def test_interrupted_anywhere_it_resumes_to_the_same_result_and_counts(
    name: str, budgeted: bool, tmp_path: Path
) -> None:
    world, labels, attack = World(4), torch.arange(3), WRAPPED[name]
    cost = attack.cost(world.prior)
    budget = cost.shared_queries + cost.queries // 2 if budgeted else None
    whole_oracle = world.oracle(budget=budget)
    whole = run(attack, world, labels, oracle=whole_oracle, work=erased(world, 12))
    total = int(whole_oracle.queries.sum()) + whole_oracle.shared_queries
    for share in (0.3, 0.9):
        folder = tmp_path / str(share)
        folder.mkdir()
        left = int(share * total)

        def tick(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise KeyboardInterrupt

        stopped = Oracle(world.target, Access.WHITE_BOX, world.classes, budget, tick)
        with pytest.raises(KeyboardInterrupt):
            run(attack, world, labels, oracle=stopped, work=erased(world, 12, folder))
        told: list[int] = []
        oracle = Oracle(world.target, Access.WHITE_BOX, world.classes, budget, told.append)
        assert same(run(attack, world, labels, oracle=oracle, work=erased(world, 12, folder)), whole)
        for count, wanted in zip(oracle.counts().values(), whole_oracle.counts().values(), strict=True):
            assert torch.equal(count, wanted)
        assert sum(told) == total


@pytest.mark.parametrize("name", WRAPPED)
def test_less_access_than_the_attack_needs_is_refused(name: str) -> None:
    world = World(4)
    for access in (Access.BLACK_BOX, Access.LABEL_ONLY):
        with pytest.raises(UserError, match=f"was granted {access.name.lower()}"):
            run(WRAPPED[name], world, oracle=world.oracle(access))


@pytest.mark.parametrize("name", ["ppa+eot", "gmi+eot", "ppa+align", "ppa+ppdg", "ppa+untrap"])
def test_composed_attacks_succeed_where_they_must(name: str) -> None:
    world = World(6)
    settings: dict[str, Any] = {"pool": 200, "steps": 30} if name.startswith("ppa") else {}
    found = attack_on(world, name, work=erased(world), **settings)
    assert float((world.truth(found.images) == found.labels).float().mean()) >= 0.9


def test_the_examples_do_differ() -> None:
    """Guards the laws above: no two composed attacks are accidentally the same search."""
    world = World(4)
    found = {name: run(attack, world).latents for name, attack in WRAPPED.items()}
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(found[one], found[other]), (one, other)
