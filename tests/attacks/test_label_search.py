"""Laws of the floor label_search: what it draws, what it looks at again, how it ranks, what it costs."""

import pytest
import torch
from torch import Tensor
from worlds import ToldPrior, World, attack_on, quick, workspace

from mibench.attacks.label_search import LabelSearch, hits_first
from mibench.core import Access, AttackContext, BudgetExhausted, Cost, augment
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def test_hits_come_first_each_part_in_order() -> None:
    for rank, first in (([1, 0, 1, 0, 0], [1, 3, 4]), ([2, 1, 2, 1, 0], [4, 1, 3]), ([1, 1, 1, 1, 1], [0, 1, 2])):
        assert hits_first(torch.tensor(rank), 3).tolist() == first


def test_a_quarter_of_the_queries_are_looks_and_none_is_lost() -> None:
    for queries in range(2, 400):
        draws, candidates, looks = LabelSearch(images=2, queries=queries, candidates=16).split(queries)
        assert draws + candidates * looks == queries and draws >= candidates >= 2
        assert queries // 4 - candidates < candidates * looks <= queries // 4
    assert LabelSearch().cost(World(3).prior) == Cost(480, 0, 1520)  # 32 candidates x 15 looks
    assert LabelSearch().cost(ToldPrior(World(3).prior)) == Cost(480, 0, 1520)


@pytest.mark.parametrize("told", [False, True])
def test_the_samples_with_most_votes_are_kept_best_first(told: bool) -> None:
    """Counted again one image at a time: [T(x) = y] + sum over looks of [T(view) = y]."""
    world, labels = World(6), torch.tensor([4, 1])
    prior = ToldPrior(world.prior) if told else world.prior
    floor = quick("label_search", images=3, queries=240, candidates=5)
    assert isinstance(floor, LabelSearch)
    draws, candidates, looks = floor.split(240)
    found = floor(world.oracle(Access.LABEL_ONLY), prior, labels, 7, AttackContext())
    for place, label in enumerate(labels):
        key = (label << 32) + torch.arange(draws)
        z, own = prior.sample(Noise(7, torch.arange(draws)).of("pool")), label.expand(draws)
        mine = (torch.arange(draws) % 6 == label) if told else torch.ones(draws, dtype=torch.bool)

        def named(x: Tensor, label: Tensor = label) -> Tensor:
            with torch.no_grad():
                return world.target(x).argmax(dim=1) == label

        x = prior.decode(z, own)
        hit = named(x) & mine
        assert 0 < int(hit.sum()) < draws
        others = mine & ~hit  # then what was drawn for somebody else and got whatever label
        chosen = [place for part in (hit, others) for place in part.nonzero()[:, 0].tolist()][:candidates]
        assert len(chosen) == candidates
        votes = {}
        for one in chosen:
            noise = Noise(7, key[one : one + 1]).of("label_search")
            views = [augment.view(x[one : one + 1], noise.of("look", look), True, 0.5) for look in range(looks)]
            votes[one] = int(hit[one]) + sum(int(named(view)) for view in views)
        ranked = sorted(chosen, key=lambda one: -votes[one])[:3]  # stable: equals as they were drawn
        torch.testing.assert_close(found.latents[3 * place : 3 * place + 3], z[ranked])


def test_whom_no_answer_named_has_failed() -> None:
    """A target that only ever says 0."""
    world = World(4)
    with torch.no_grad():
        world.target.head.bias[0] = 1e3
    found = attack_on(world, "label_search", queries=60, candidates=4)
    assert found.failed.tolist() == [False] * 2 + [True] * 6


def test_looks_find_samples_further_from_the_boundary_than_the_first_hits() -> None:
    world, labels = World(10), torch.arange(10)

    def share(candidates: int) -> float:
        found = [attack_on(world, "label_search", seed=seed, queries=2000, candidates=candidates) for seed in range(4)]
        with torch.no_grad():
            p = world.target(torch.cat([one.images for one in found])).softmax(1)
        return float(p.gather(1, labels.repeat_interleave(2).repeat(4)[:, None]).mean())

    assert share(32) > share(2) + 0.05  # of two candidates both are kept


def test_a_budget_is_spent_to_the_last_label() -> None:
    world = World(4)
    for budget in (2, 3, 17, 50):
        oracle = world.oracle(Access.LABEL_ONLY, budget)
        attack_on(world, "label_search", oracle=oracle, queries=100, candidates=4, work=workspace(world, 7))
        assert int(oracle.queries.max()) + oracle.shared_queries == budget
    with pytest.raises(BudgetExhausted):
        attack_on(world, "label_search", oracle=world.oracle(Access.LABEL_ONLY, 1), queries=100)


@pytest.mark.parametrize("settings", [{"images": 0}, {"images": 33}, {"queries": 1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="label_search: images must be at least 1"):
        quick("label_search", **settings)
