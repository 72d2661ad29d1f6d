"""MIRROR in the black box: the genetic operators, against formulas."""

import pytest
import torch
from attacking import Activated
from torch.nn import functional as F
from worlds import World, attack_on, quick

from mibench.attacks.mirror_bb import MirrorBlackBox, first_parents_share, parents
from mibench.attacks.parts.evolution import log_odds
from mibench.core import Access, AttackContext
from mibench.plugins import capabilities
from mibench.priors.public import PublicImages
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def test_the_first_parents_share_of_genes() -> None:
    """.9 against .1 gives the .9 parent's gene with probability .044 in the authors' code."""
    one, other = torch.tensor([0.9]).log(), torch.tensor([0.1]).log()
    assert float(first_parents_share(one, other, "legacy")) == pytest.approx(0.0438, abs=5e-5)
    assert float(first_parents_share(one, other, "fixed")) == pytest.approx(0.9, abs=1e-6)
    assert float(first_parents_share(other, one, "fixed")) == pytest.approx(0.1, abs=1e-6)


def test_parents_are_drawn_by_their_confidence() -> None:
    p = torch.tensor([[0.05, 0.2, 0.15], [0.9, 0.0, 0.9]])
    u = torch.arange(1000).float().add(0.5).div(1000).expand(2, -1)
    drawn = parents(p.log().clamp(min=-80), u)
    shares = torch.stack([row.bincount(minlength=3) for row in drawn]) / 1000
    torch.testing.assert_close(shares, torch.tensor([[0.125, 0.5, 0.375], [0.5, 0.0, 0.5]]), rtol=0, atol=2e-3)


def test_one_generation_by_formula() -> None:
    world, labels = World(6), torch.arange(3)
    prior = Activated(world)
    view = prior.space("w")
    for settings in ({}, {"crossover": "legacy", "mutation_noise": "shared"}):
        attack = MirrorBlackBox(images=2, pool=40, population=5, generations=1, **settings)
        found = attack(world.oracle(Access.BLACK_BOX), prior, labels, 7, AttackContext())
        pool = view.sample(Noise(7, torch.arange(40)).of("pool"))
        p = F.leaky_relu(pool, 5.0)
        mean, std = p.mean(0), p.std(0, correction=0)
        with torch.no_grad():
            scores = world.target(view.decode(pool)).softmax(1)
        for label in range(3):
            own = scores[:, label].topk(5).indices
            confidence = scores[own, label]
            noise = Noise(7, torch.tensor([label])).of("mirror_bb").of("generation", 0)
            chosen = torch.searchsorted((confidence / confidence.sum()).cumsum(0), noise.of("parents").uniform(8)[0])
            u = noise.of("crossover").uniform(4, 8)[0]
            mutates = noise.of("mutates").uniform(4, 8)[0] < 0.1
            rows = 1 if settings else 4
            added = 0.1 * std * (2 * noise.of("mutation").uniform(rows, 8)[0] - 1)
            children = []
            for child in range(4):
                a, b = chosen[child], chosen[child + 4]
                fa, fb = (confidence[a].log(), confidence[b].log()) if settings else (confidence[a], confidence[b])
                gene = torch.where(u[child] < fa / (fa + fb), p[own[a]], p[own[b]])
                gene = gene + mutates[child] * added[child % rows]
                children.append(gene.clamp(mean - std, mean + std))
            whole = torch.stack([p[own[0]], *children])
            with torch.no_grad():
                after = world.target(view.decode(F.leaky_relu(whole, 0.2))).softmax(1)[:, label]
            ranked = F.leaky_relu(whole[after.argsort(descending=True)], 0.2)
            second = next(row for row in ranked if not torch.allclose(row, ranked[0]))  # clones are left out
            wanted = torch.stack([ranked[0], second])
            torch.testing.assert_close(found.latents[2 * label : 2 * label + 2], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"crossover": "legacy", "mutation_noise": "shared"}])
def test_the_elite_is_never_lost(settings: dict[str, str]) -> None:
    world = World(6)
    values = []
    for generations in range(0, 12, 2):
        found = attack_on(world, "mirror_bb", images=1, pool=40, population=8, generations=generations, **settings)
        with torch.no_grad():
            values.append(log_odds(world.target(found.images).softmax(1), found.labels))
    series = torch.stack(values)
    assert (series.diff(dim=0) >= -1e-5).all() and (series[-1] > series[0]).any()


def test_costs_of_the_genetic_algorithm() -> None:
    world = World(6)
    assert MirrorBlackBox().cost(world.prior) == (99_900, 0, 100_000)
    oracle = world.oracle(Access.BLACK_BOX, budget=40 + 17)
    attack_on(world, "mirror_bb", oracle=oracle, pool=40, population=9, generations=5)
    assert oracle.queries.tolist() == [16] * 6 and oracle.shared_queries == 40


@pytest.mark.parametrize("name", ["mirror", "mirror_bb"])
def test_priors_that_cannot_serve_all_identities_are_refused(name: str) -> None:
    world = World(4)
    conditional = World(4).prior
    conditional.conditional = True
    for prior in (PublicImages(world.public().images), conditional):
        with pytest.raises(UserError, match=f"{name} needs an unconditional generator.* dcgan"):
            capabilities.require(quick(name), prior)
    with pytest.raises(UserError, match="has no w space"):
        capabilities.require(quick(name, space="w"), world.prior)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"images": 0, "elite": 0, "population": 0}, {"images": 1001}, {"elite": 1000}, {"elite": -1}):
        with pytest.raises(UserError, match="mirror_bb: 1 <= images <= population <= pool"):
            MirrorBlackBox(**wrong)
    with pytest.raises(UserError, match="mutation is a probability"):
        MirrorBlackBox(mutation=1.5)
