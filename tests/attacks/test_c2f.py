"""C2FMI: what its map reads, the blends, the trial vector and its fading step, greedy replacement, the costs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import World, attack_on, quick, workspace

from mibench.attacks.c2f import C2f, blends, fade, known, trial, trios
from mibench.attacks.parts.embedding import public_classes
from mibench.attacks.parts.evolution import log_odds
from mibench.attacks.parts.score_map import certain, network, vector
from mibench.attacks.parts.surrogates import build_surrogates, restore
from mibench.core import Access, AttackContext, Split
from mibench.plugins import capabilities
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SMALL = {"embedding_epochs": 1, "people": 30, "map_epochs": 1, "width": 16, "steps": 2}


def test_what_the_map_reads() -> None:
    """models/predict2feature.py: log p + 50 of the told, shifted up to 0 where one is below; the untold are 0.

    log(.7, .2, .1) + 50 = 49.6433, 48.3906, 47.6974, of length 84.1496.
    """
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    torch.testing.assert_close(vector(p[:, :3])[0], torch.tensor([0.589942, 0.575054, 0.566817]), rtol=0, atol=2e-6)
    whole = torch.cat([p[0, :3].log() + 50 + 950, torch.zeros(1)])
    torch.testing.assert_close(vector(p)[0], whole / whole.norm())
    # Two of four are told: 49.6433 and 48.3906 of length 69.3261, not shifted by what is hidden.
    told = torch.tensor([0.716084, 0.698014, 0.0, 0.0])
    torch.testing.assert_close(vector(p, 2)[0], told, rtol=0, atol=2e-6)
    assert torch.equal(vector(p[:, :3], 9), vector(p[:, :3]))


def test_a_certain_answer_has_small_scores_and_no_zeros() -> None:
    """main_attack.py: |N(0, 1)| with 1e18 at y, over its length; read as 50 at y, 8.55 + log |n| else."""
    noise = Noise(3, torch.arange(2)).of("certain")
    y, n = torch.tensor([1, 4]), noise.normal(6).abs().double()
    raw = n.clone()
    raw[[0, 1], y] = 1e18
    p = certain(y, 6, noise)
    torch.testing.assert_close(p.double(), F.normalize(raw), rtol=1e-6, atol=0)
    v = 50 + n.log() - 41.446532
    v[[0, 1], y] = 50.0
    assert float(v.min()) > 0  # nothing is shifted in this draw
    torch.testing.assert_close(vector(p).double(), F.normalize(v), rtol=0, atol=1e-6)
    assert float(vector(p).min()) > 0.05
    two = vector(p, 2)
    assert (two > 0).sum(dim=1).tolist() == [2, 2] and torch.equal(two.argmax(dim=1), y)


def test_blends_have_three_different_parents_all_triples_alike() -> None:
    """utils/DE.py draws three places again until they differ: each ordered triple of four has 1 chance in 24."""
    chosen = trios(Noise(0, torch.arange(40)).of("blend"), 60, 4).flatten(0, 1)
    assert all(len(set(one)) == 3 for one in chosen.tolist())
    counts = torch.bincount((chosen * torch.tensor([16, 4, 1])).sum(dim=1), minlength=64)
    seen = counts[counts > 0].double()
    assert len(seen) == 24 and float(((seen - 100) ** 2 / 100).sum()) < 50  # chi^2 with 23 degrees, p = .001 at 49.7


def test_fitness_under_few_told_scores() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.4, 0.35, 0.25]])
    y = torch.full((3,), 2)
    assert torch.equal(known(p, y, 0), log_odds(p, y)) and torch.equal(known(p, y, 3), log_odds(p, y))
    hidden = known(p, y, 2)
    assert hidden.argsort().tolist() == [1, 0, 2]  # the more room the told scores leave for y, the better
    assert (hidden < known(p, torch.zeros_like(y), 1)).all()
    assert torch.equal(known(p, torch.zeros_like(y), 1), log_odds(p, torch.zeros_like(y)))


def test_blends_by_formula() -> None:
    parents, strangers = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    x1, x2, x3 = parents.unbind(2)
    wanted = (
        0.7 * (0.25 * x1 + 0.25 * x2 + 0.5 * x3)
        + 0.3 * (strangers[:, :, 0] + strangers[:, :, 1] + strangers[:, :, 2]) / 3
    )
    torch.testing.assert_close(blends(parents, strangers), wanted)


def test_the_trial_vector_by_formula() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 6, 5, generator=g)
    pairs = torch.randint(6, (2, 6, 4, 2), generator=g)
    crossed = torch.rand(2, 6, 5, generator=g) < 0.5
    best = x[:, 2:3]
    found = trial(x, best, pairs, 0.1, crossed)
    for k in range(2):
        for i in range(6):
            v = x[k, i] + 0.02 * (x[k, 2] - x[k, i])
            for r, s in pairs[k, i].tolist():
                v = v + 0.1 * (x[k, r] - x[k, s])
            torch.testing.assert_close(found[k, i], torch.where(crossed[k, i], v, x[k, i]))


def test_the_step_fades_in_the_last_thirty_generations() -> None:
    assert fade(0, 500) == fade(469, 500) == 0.1
    assert fade(470, 500) == pytest.approx(0.06) and fade(499, 500) == pytest.approx(0.002)


def test_replacement_is_greedy_member_by_member() -> None:
    """The best never gets worse with further generations; the fading of the last ones is switched off to compare."""
    world = World(6)
    values = []
    for generations in (0, 2, 4, 8):
        found = attack_on(world, "c2f", torch.arange(3), generations=generations, fading=0, images=1, **SMALL)
        with torch.no_grad():
            values.append(log_odds(world.target(found.images).softmax(1), found.labels))
    series = torch.stack(values)
    assert (series.diff(dim=0) >= -1e-5).all() and (series[-1] > series[0]).all()


def test_the_coarse_stage_asks_the_target_nothing_and_takes_adam_steps_on_the_embedding() -> None:
    """One Adam step of lr from the mean of two samples moves each coordinate by lr against the gradient's sign."""
    world = World(6)
    oracle = world.oracle(Access.BLACK_BOX, budget=len(world.public()))  # not one query more than the shared ones
    runs = []
    for steps in (0, 1, 2):
        attack = quick("c2f", **SMALL | {"steps": steps, "lr": 0.05, "starts": 3, "kept": 3, "population": 3})
        runs.append(attack(oracle_of(world), world.prior, torch.arange(2), 0, workspace(world)))
    attack_on(world, "c2f", torch.arange(2), oracle=oracle, **SMALL)
    assert int(oracle.queries.sum()) == 0 and oracle.shared_queries == 400
    start, one, two = (run.latents for run in runs)
    assert (start.std() - 0.5**0.5).abs() < 0.2
    # This embedding has learnt little: its smallest gradients are only some 30 times Adam's eps.
    torch.testing.assert_close((one - start).abs(), torch.full_like(start, 0.05), rtol=0, atol=5e-3)
    assert (two - one).abs().max() < 0.0501 and all(run.failed.all() for run in runs)


def oracle_of(world: World):
    """Pays for the public images and nothing else."""
    return world.oracle(Access.BLACK_BOX, budget=len(world.public()))


def test_costs_and_what_a_budget_leaves() -> None:
    world = World(6)
    assert C2f().cost(world.prior, 150_000) == (16_038, 0, 150_000)
    settings = SMALL | {"starts": 4, "kept": 3, "population": 7, "generations": 5}
    assert quick("c2f", **settings).cost(world.prior, 400) == (4 + 4 + 35, 0, 400)
    for budget, spent in ((3, 0), (4, 4), (7, 4), (8, 8), (14, 8), (15, 15), (43, 43), (99, 43)):
        oracle = world.oracle(Access.BLACK_BOX, budget=400 + budget)
        found = attack_on(world, "c2f", torch.arange(2), oracle=oracle, **settings)
        assert oracle.queries.tolist() == [spent, spent, 0, 0, 0, 0] and found.images.isfinite().all()


def test_the_embedding_knows_people_where_they_are_known() -> None:
    def split(labels: list[int]) -> Split:
        return Split(torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.tensor(labels))

    def classes(labels: list[int], people: int) -> tuple[list[int], list[int]]:
        images, found = public_classes(split(labels), people)
        return images.flatten().tolist(), found.tolist()

    assert classes([7, 3, 3, 9, 7], 10) == ([0, 1, 2, 3, 4], [1, 0, 0, 2, 1])
    assert classes([7, 3, 3, 9, 7], 2) == ([0, 1, 2, 4], [1, 0, 0, 1])
    assert classes([-1] * 5, 3) == ([0, 1, 2], [0, 1, 2])  # unknown: every image is a class of its own
    assert classes([4, 4, 4], 9) == ([0, 1, 2], [0, 1, 2])  # one person alone teaches nothing


def test_the_map_learns_the_embedding_from_the_targets_scores() -> None:
    """On the toy world the scores say nearly all there is: the fitted map beats the best constant."""
    world = World(6)
    attack = quick("c2f", **SMALL | {"embedding_epochs": 60, "map_epochs": 60, "map_batch": 10, "width": 64})
    public, oracle = world.public(), world.oracle(Access.BLACK_BOX)
    kept: dict[str, object] = {}

    class Listening(AttackContext):
        def once(self, name, oracle, compute):
            kept[name] = compute()
            return kept[name]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    attack(oracle, world.prior, torch.arange(2), 0, Listening(256, None, public))
    assert torch.equal(before, torch.random.get_rng_state())
    embedding = restore(
        build_surrogates(("cnn",), 30, world.prior.image_shape, 0)[0], kept["c2f-student-0"], torch.device("cpu")
    )
    fitted = network(6, 64, 30)
    fitted.load_state_dict(kept["c2f-map"])
    with torch.no_grad():
        wanted: Tensor = embedding(public.images.float() / 255)
        error = F.mse_loss(fitted.eval()(vector(kept["c2f-answers"])), wanted)
    assert float(error) < 0.9 * float(wanted.var(dim=0).mean())


def test_what_is_refused() -> None:
    world = World(4)
    with pytest.raises(UserError, match="c2f needs a generator"):
        capabilities.require(quick("c2f"), PublicImages(world.public().images))
    with pytest.raises(UserError, match="learns from public images"):
        quick("c2f", **SMALL)(world.oracle(), world.prior, torch.arange(2), 0, AttackContext())
    for wrong in ({"images": 11}, {"kept": 17}, {"population": 9}):
        with pytest.raises(UserError, match="c2f: 1 <= images <= kept"):
            C2f(**wrong)
    with pytest.raises(UserError, match="kept must be at least 3, got 2"):
        C2f(kept=2)
    with pytest.raises(UserError, match="people must be at least 2"):
        C2f(people=1)
