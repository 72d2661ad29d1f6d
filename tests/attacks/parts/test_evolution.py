"""Parts of genetic searches: fitness, log odds, distinct members."""

import torch
from worlds import World, workspace

from mibench.attacks.parts.evolution import Fitness, best_distinct, log_odds
from mibench.core import Access
from mibench.runtime.rng import Noise


def test_log_odds_order_as_p_does_and_do_not_saturate() -> None:
    logits = torch.tensor([[30.0, 0, 1], [40.0, 0, 1], [0.0, 0, 0], [2.0, 0, 0]])
    p, y = logits.softmax(1), torch.zeros(4, dtype=torch.int64)
    assert p[0, 0] == p[1, 0] == 1.0
    wanted = logits[:, 0] - logits[:, 1:].logsumexp(1)
    torch.testing.assert_close(log_odds(p, y), wanted, rtol=1e-5, atol=1e-5)
    assert log_odds(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), y[:2]).isfinite().all()


def test_the_best_distinct_members() -> None:
    z = torch.tensor([[[1.0], [1.0], [2.0], [3.0]], [[4.0], [4.0], [4.0], [4.0]]])
    fitness = torch.tensor([[5.0, 5.0, 1.0, 2.0], [1.0, 3.0, 2.0, 0.0]])
    found, values = best_distinct(z, fitness, 2)
    assert found[0, :, 0].tolist() == [1.0, 3.0] and values[0].tolist() == [5.0, 2.0]
    assert found[1, :, 0].tolist() == [4.0, 4.0] and values[1, 0] == 3.0


def test_fitness_asks_once_for_each_member_in_batches_of_the_workspace() -> None:
    world, y = World(6), torch.tensor([4, 1])
    oracle = world.oracle(Access.BLACK_BOX)
    z = world.prior.sample(Noise(0, torch.arange(10))).reshape(2, 5, -1)
    narrow = Fitness(oracle, world.prior, y, 5, workspace(world, 3))(z)
    torch.testing.assert_close(narrow, Fitness(oracle, world.prior, y, 5, workspace(world))(z))
    assert oracle.queries.tolist() == [0, 10, 0, 0, 10, 0]
    with torch.no_grad():
        p = world.target(world.prior.decode(z[0])).softmax(1)[:, 4]
    torch.testing.assert_close(narrow[0].sigmoid(), p)
