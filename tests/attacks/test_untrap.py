"""Laws of untrap: what it estimates, what it takes away, and that a decoy loses its score while a person does not."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import SHAPE, World, colours, workspace

from mibench import models
from mibench.attacks.gmi import GMI
from mibench.attacks.parts.views import Layer, Viewed
from mibench.attacks.prior_search import PriorSearch
from mibench.attacks.untrap import Untrap, Untrapped
from mibench.core import Access, AttackContext, Cost, Oracle, Split, to_float
from mibench.core.losses import nll, on_logits
from mibench.defenses.trap import TrapMID, Traps
from mibench.models.base import Classifier, Prepare
from mibench.plugins import capabilities
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit

ALPHA = 0.02
INSIDE = GMI(images=2, steps=6, lr=0.5)


class Decoyed(nn.Module):
    """Two people with a pattern each, and one pattern that is the trigger of one and, mirrored, of the other.

    l_y = 12 <person_y, x - .5> +- 600 <trigger, x - .5>: an image needs little of the trigger to be taken for y.
    """

    def __init__(self) -> None:
        super().__init__()
        square = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
        self.person, trigger = torch.linalg.qr(square).Q.T.split([2, 1])
        self.decoy = torch.cat([trigger, -trigger])

    def target(self) -> Classifier:
        head = nn.Linear(192, 2)
        with torch.no_grad():
            head.weight.copy_(12 * self.person + 600 * self.decoy)
            head.bias.zero_()
        return Classifier(Prepare(SHAPE, [0.5], [1.0]), nn.Flatten(), head, 192).eval()


def public(n: int = 40) -> Split:
    return Split(
        (80 + 96 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(4))).to(torch.uint8),
        torch.full((n,), -1),
    )


def seen_by(attack: Untrap, oracle: Oracle, labels: Tensor, work: AttackContext, seed: int = 0) -> Untrapped:
    """The oracle that the attack inside is given."""

    class Given(Exception):
        pass

    class Spy(GMI):
        def __call__(self, oracle: Oracle, *rest: Any) -> Any:
            raise Given(oracle)

    with pytest.raises(Given) as caught:
        replace(attack, attack=Spy(steps=1))(oracle, World(4).prior, labels, seed, work)
    found = caught.value.args[0]
    assert isinstance(found, Untrapped)
    return found


def test_what_is_removed_is_what_was_put_in() -> None:
    """clip(((1 - a) x + a tau - a tau) / (1 - a)) = x; beyond the range of images it is cut."""
    world = World(4)
    triggers, places = torch.rand(2, *SHAPE), torch.tensor([0, 0, 0, 1])
    oracle = Untrapped(world.oracle(), triggers, places, 0.3)
    x, y = torch.rand(3, *SHAPE), torch.tensor([3, 0, 3])
    worn = 0.7 * x + 0.3 * triggers[[1, 0, 1]]
    torch.testing.assert_close(oracle.probs(worn, y), world.target(x).softmax(1).detach())
    torch.testing.assert_close(oracle.logits(worn, y), world.target(x))
    assert torch.equal(oracle.labels(worn, y), world.target(x).argmax(1))
    noise = Noise(0, y)
    torch.testing.assert_close(oracle.loss(worn, y, on_logits(nll), noise), nll(world.target(x), y))
    # Several views of the batch, one after the other; shared images have no trigger of anybody.
    twice = oracle.logits(torch.cat([worn, worn]), y)
    torch.testing.assert_close(twice, torch.cat([world.target(x)] * 2))
    torch.testing.assert_close(oracle.logits(worn, None), world.target(worn))
    dark = torch.zeros(1, *SHAPE)
    torch.testing.assert_close(oracle.logits(dark, y[:1]), world.target(dark))
    assert oracle.inner.queries.tolist() == [6, 0, 0, 13] and oracle.shared_queries == 3
    assert oracle.affordable(7, 1) == 7 and oracle.budget is None and oracle.num_classes == 4
    assert oracle.counts() is not oracle.inner.counts() and oracle.counts()["shared_queries"] == 3


def test_it_can_lie_below_and_above_views() -> None:
    """Shift by .1, then remove; or remove, then shift: on a linear target both are known."""
    world = World(4)
    triggers, places = torch.rand(4, *SHAPE), torch.arange(4)
    x, y = 0.3 + 0.4 * torch.rand(4, *SHAPE), torch.arange(4)
    shift = lambda x, drawn: x + 0.1  # noqa: E731
    without = ((x - 0.1 * triggers) / 0.9).clamp(0, 1)
    above = Untrapped(Viewed(world.oracle(), 0, shift, 3), triggers, places, 0.1)
    below = Viewed(Layer(Untrapped(world.oracle(), triggers, places, 0.1), 0), 0, shift, 3)
    noise, term = Noise(0, y), on_logits(nll)
    torch.testing.assert_close(above.loss(x, y, term, noise), nll(world.target(without + 0.1), y))
    later = ((x + 0.1 - 0.1 * triggers) / 0.9).clamp(0, 1)
    torch.testing.assert_close(below.loss(x, y, term, noise), nll(world.target(later), y))
    assert above.queries.tolist() == below.queries.tolist() == [3] * 4


def test_the_trigger_of_a_linear_target_is_the_sign_of_its_slope() -> None:
    """With two classes CE falls along W_y - W_other wherever x is, and enough steps from grey end at 0 or 1."""
    torch.manual_seed(0)
    head = nn.Linear(192, 2)
    target = Classifier(Prepare(SHAPE, [0.5], [1.0]), nn.Flatten(), head, 192).eval()
    oracle = Oracle(target, Access.WHITE_BOX, 2)
    slope = (head.weight - head.weight.flip(0)).detach().reshape(2, *SHAPE)
    found = seen_by(Untrap(images=3, steps=6, step=0.1), oracle, torch.tensor([1, 0]), AttackContext(public=public()))
    assert torch.equal(found.triggers, (slope[[1, 0]] > 0).float()) and found.places.tolist() == [1, 0]
    assert oracle.queries.tolist() == oracle.gradient_images.tolist() == [18, 18]
    short = seen_by(Untrap(images=3, steps=2, step=0.1), oracle, torch.tensor([1]), AttackContext(public=public()))
    torch.testing.assert_close(short.triggers[0], 0.5 + 0.2 * slope[1].sign())


def test_one_identitys_trigger_does_not_depend_on_the_others() -> None:
    world, attack = World(6), Untrap(images=4, steps=5)
    together = seen_by(attack, world.oracle(), torch.tensor([5, 1, 3]), workspace(world))
    for place, label in enumerate((5, 1, 3)):
        alone = seen_by(attack, world.oracle(), torch.tensor([label]), workspace(world, batch=2))
        torch.testing.assert_close(alone.triggers[0], together.triggers[place])
    other = seen_by(attack, world.oracle(), torch.tensor([5, 1, 3]), workspace(world), seed=1)
    assert not torch.equal(other.triggers, together.triggers)


def test_a_decoy_loses_its_score_and_a_person_who_wears_one_keeps_it() -> None:
    toy = Decoyed()
    target, y = toy.target(), torch.arange(2)
    oracle = Oracle(target, Access.WHITE_BOX, 2)
    found = seen_by(Untrap(images=8, steps=12), oracle, y, AttackContext(public=public()))
    grey = torch.full((2, 192), 0.5)
    hidden = (toy.decoy > 0).float()  # what Trap-MID's own trigger would look like
    decoys = ((1 - ALPHA) * grey + ALPHA * hidden).reshape(-1, *SHAPE)
    people = grey + toy.person / toy.person.abs().amax(dim=1, keepdim=True) * 0.45
    people = ((1 - ALPHA) * people + ALPHA * hidden).reshape(-1, *SHAPE)
    assert ((found.triggers.flatten(1) > 0.5) == (hidden > 0.5)).float().mean() > 0.97

    def p(oracle: Oracle, x: Tensor) -> Tensor:
        return oracle.probs(x, y).gather(1, y[:, None])[:, 0]

    assert (p(oracle, decoys) > 0.95).all() and (p(found, decoys) < 0.6).all()
    assert (p(oracle, people) > 0.95).all() and (p(found, people) > 0.95).all()


def test_it_finds_the_traps_that_trap_mid_has_set() -> None:
    """Of strangers with a trigger on, the trapped network is sure; without what was estimated it hardly is."""
    torch.manual_seed(0)
    net, defense = models.build("cnn", 3, (3, 16, 16)), TrapMID(alpha=0.1, beta=0.5, turn=False)
    recipe = Training(epochs=15, batch=20, lr=0.01, augment=False)
    traps = fit(net, colours(60, 16), 3, recipe, resolve("cpu", "fp32"), 5, Silent(), "toy", [defense]).memories[0]
    assert isinstance(traps, Traps)
    strangers, oracle = colours(60, 16, seed=1), Oracle(net.eval(), Access.WHITE_BOX, 3)
    found = seen_by(Untrap(alpha=0.1), oracle, torch.arange(3), AttackContext(public=strangers))
    y = (strangers.labels + 1) % 3  # nobody is who the trigger says
    worn = traps.inject(to_float(strangers.images), y, 0.1)

    def p(oracle: Oracle) -> float:
        return float(oracle.probs(worn, y).gather(1, y[:, None]).mean())

    assert p(oracle) > 0.9 and p(found) < 0.5, (p(oracle), p(found))


def test_nothing_to_remove_is_the_attack_itself() -> None:
    world = World(4)
    attack = Untrap(INSIDE, alpha=0.0)
    oracles = [world.oracle(), world.oracle()]
    found = [
        one(oracle, world.prior, torch.arange(4), 0, workspace(world))
        for one, oracle in zip((attack, INSIDE), oracles, strict=True)
    ]
    for part in asdict(found[0]):
        assert torch.equal(getattr(found[0], part), getattr(found[1], part))
    assert torch.equal(oracles[0].queries, oracles[1].queries) and attack.cost(world.prior) == INSIDE.cost(world.prior)


def test_what_it_costs_and_what_it_does_with_less() -> None:
    world = World(4)
    attack = Untrap(INSIDE, images=5, steps=4)
    own = INSIDE.cost(world.prior)
    assert attack.cost(world.prior) == Cost(own.queries + 20, own.gradient_images + 20, own.shared_queries)
    whole = attack.cost(world.prior).queries
    for budget in (None, whole, whole // 2, whole // 4, 3):
        steps = 4 if budget is None else 4 * budget // whole
        found = seen_by(replace(attack, attack=None), world.oracle(budget=budget), torch.arange(4), workspace(world))
        assert found.inner.queries.tolist() == [5 * steps] * 4 or budget is not None
        oracle = world.oracle(budget=budget)
        attack(oracle, world.prior, torch.arange(4), 0, workspace(world))
        assert budget is None or int(oracle.queries.max()) <= budget
        assert budget not in (None, whole) or oracle.queries.tolist() == [whole] * 4


def test_refusals() -> None:
    world = World(4)
    with pytest.raises(UserError, match="untrap learns from public images"):
        Untrap(INSIDE)(world.oracle(), world.prior, torch.arange(4), 0, AttackContext())
    with pytest.raises(UserError, match="untrap needs the target's gradients") as caught:
        capabilities.require(Untrap(PriorSearch()), world.prior)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gmi needs a prior with a critic"):
        capabilities.require(Untrap(INSIDE), World(4, "none").prior)
    nan = float("nan")
    for settings in (
        {"alpha": 1.0},
        {"alpha": -0.1},
        {"alpha": nan},
        {"step": 0.0},
        {"step": nan},
        {"images": 0},
        {"steps": 0},
    ):
        with pytest.raises(UserError, match="untrap: ") as caught:
            Untrap(INSIDE, **settings)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
