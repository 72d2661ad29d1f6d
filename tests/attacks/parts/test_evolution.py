"""Parts of genetic searches: fitness, log odds, distinct members."""

import torch
from torch import Tensor
from worlds import World, workspace

from mibench.attacks.parts.evolution import Fitness, best_distinct, log_odds, one_plus_one
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


def test_one_plus_one_steps_by_hand() -> None:
    """Doubled by a better value, x .84 by a worse one, kept by an equal one, which replaces the best all the same."""
    noise = Noise(3, torch.tensor([5])).of("es")
    answers = [1.0, 3.0, 2.0, 3.0, 0.0, 4.0]
    asked: list[Tensor] = []

    def ask(z: Tensor) -> Tensor:
        asked.append(z)
        return torch.tensor([[answers[len(asked) - 1]]])

    start = torch.tensor([[[0.5, -0.5]]])
    unknown = torch.full((1, 1), float("-inf"))
    best, value = one_plus_one(ask, lambda z: z.clamp(-4, 4), start, start, unknown, 6, 0.1, noise)
    draws = [noise.of("query", query).normal(1, 2) for query in range(6)]
    x, wanted = start, [start]
    for query, (sigma, moves) in enumerate([(0.2, True), (0.4, False), (0.336, True), (0.336, False)], start=1):
        wanted.append((x + sigma * draws[query]).clamp(-4, 4))
        x = wanted[-1] if moves else x
    wanted.append((x + 0.336 * 0.84 * draws[5]).clamp(-4, 4))
    for own, other in zip(asked, wanted, strict=True):
        torch.testing.assert_close(own, other)
    assert torch.equal(best, asked[-1]) and value.item() == 4.0


def test_one_plus_one_starts_from_what_is_known_where_it_is_better() -> None:
    noise, start = Noise(3, torch.tensor([5, 6])).of("es"), torch.zeros(2, 1, 3)
    known, value = torch.ones(2, 1, 3), torch.tensor([[-1.0], [-9.0]])
    best, after = one_plus_one(lambda z: -(z + 1).square().sum(2), lambda z: z, start, known, value, 1, 1.0, noise)
    assert torch.equal(best, torch.stack([known[0], start[1]])) and after.tolist() == [[-1.0], [-3.0]]


def test_one_plus_one_descends_a_sphere_row_by_row_and_stays_in_its_box() -> None:
    start = torch.full((4, 2, 10), 2.0)
    unknown = torch.full((4, 2), float("-inf"))

    def run(rows: slice, low: float) -> tuple[Tensor, Tensor]:
        stream = Noise(0, torch.arange(4)[rows]).of("es")
        ask = lambda z: -z.square().sum(2)  # noqa: E731
        begin = start[rows]
        return one_plus_one(ask, lambda z: z.clamp(min=low), begin, begin, unknown[rows], 300, 1.0, stream)

    best, value = run(slice(0, 4), -9.0)
    assert (value > -0.05).all()  # from -40
    alone, own = run(slice(2, 3), -9.0)
    assert torch.equal(alone[0], best[2]) and torch.equal(own[0], value[2])
    assert run(slice(0, 4), 1.0)[0].min() == 1.0
