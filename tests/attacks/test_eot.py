"""EOT: copies of one view change nothing but the price."""

from dataclasses import replace

import pytest
import torch
from attacking import PPA_SHORT, ROUNDING, run
from torch import Tensor, nn
from worlds import World, workspace

from mibench.attacks.eot import EOT
from mibench.attacks.parts.views import Viewed
from mibench.core import Access, Oracle, Reconstructions, shown_by
from mibench.core.losses import cross_entropy, on_logits
from mibench.defenses.mid import Bottleneck
from mibench.defenses.re import RandomErasing
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise


def test_copies_of_one_view_change_nothing_but_the_price() -> None:
    world, oracles = World(5), [World(5).oracle() for _ in range(2)]
    plain = run(PPA_SHORT, world, oracle=oracles[0], work=workspace(world))
    found = run(EOT(PPA_SHORT, copies=4), world, oracle=oracles[1], work=workspace(world))
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=ROUNDING)
    for count, several in zip(oracles[0].counts().values(), oracles[1].counts().values(), strict=True):
        assert torch.equal(4 * count, several)


def test_an_assumed_defense_is_drawn_in_place_of_the_targets_own() -> None:
    """On an undefended target, copies erased as random erasing would: what `eot` draws on a target trained so."""
    world = World(5)
    erased = RandomErasing(a_e=0.4, fill="zero")
    own = run(EOT(PPA_SHORT, copies=2), world, work=replace(workspace(world), transform=shown_by([erased])))

    def assuming(defense: str) -> Reconstructions:
        work = replace(workspace(world), assumed=registry.shown_under)
        return run(EOT(PPA_SHORT, copies=2, assumed=defense), world, work=work)

    guessed = assuming("re a_e=0.4 fill=zero")
    torch.testing.assert_close(guessed.latents, own.latents, rtol=0, atol=0)
    other = assuming("re a_e=0.8 fill=zero")
    assert not torch.equal(other.latents, own.latents)
    with pytest.raises(UserError, match="unknown defense 'rr'"):
        assuming("rr")


def bottled() -> Classifier:
    """A target whose code of 3 numbers has a spread of about 1."""
    torch.manual_seed(0)
    head = Bottleneck(4, 3, 5)
    with torch.no_grad():
        head.encode.bias[3:] += 6.0
    return Classifier(Prepare((1, 2, 2), [0.0], [1.0]), nn.Flatten(), head, 4).eval()


def test_a_heads_noise_is_drawn_in_losses_as_in_training() -> None:
    """E over eps of cross_entropy(decode(mu + s eps)): many draws by the oracle are worth as many of the head in train
    mode; the scores stay the mean network's; each draw is a query."""
    target, copies = bottled(), 4000
    oracle, y = Oracle(target, Access.WHITE_BOX, 5), torch.tensor([1, 4])

    def as_it_is(x: Tensor, noise: Noise) -> Tensor:
        return x

    x, noise = torch.rand(2, 1, 2, 2), Noise(3, torch.arange(2))
    viewed = Viewed(oracle, 0, as_it_is, copies, head=True)
    found = viewed.loss(x.requires_grad_(), y, on_logits(cross_entropy), noise)
    with torch.no_grad():
        h = target.features(x.repeat(copies, 1, 1, 1))
        many = cross_entropy(target.head.train()(h), y.repeat(copies)).reshape(copies, 2)
        served = cross_entropy(target.head.eval()(target.features(x)), y)
    wanted, error = many.mean(0), many.std(0) / copies**0.5
    assert ((found - wanted).abs() < 6 * error).all() and ((found - served).abs() > 12 * error).all()
    assert oracle.queries.tolist() == [0, copies, 0, 0, copies]
    torch.testing.assert_close(viewed.probs(x, y), oracle.probs(x, y))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.abs().amin() > 0
    alone = viewed.loss(x[1:], y[1:], on_logits(cross_entropy), noise.rows(torch.tensor([1])))
    torch.testing.assert_close(alone, found[1:])
    plain = Viewed(oracle, 0, as_it_is, 2).loss(x, y, on_logits(cross_entropy), noise)
    torch.testing.assert_close(plain, served)


@pytest.mark.parametrize("outer", [True, False])
def test_a_layer_above_or_below_draws_the_heads_noise_once(outer: bool) -> None:
    oracle, y = Oracle(bottled(), Access.WHITE_BOX, 5), torch.tensor([1, 4])
    inner = Viewed(oracle, 0, lambda x, noise: x, 2, head=not outer)
    both = Viewed(inner, 1, lambda x, noise: x, 3, head=outer)
    x, noise = torch.rand(2, 1, 2, 2, requires_grad=True), Noise(3, torch.arange(2))
    one = Viewed(oracle, 0, lambda x, noise: x, 6, head=True)
    term = on_logits(cross_entropy)
    torch.testing.assert_close(both.loss(x, y, term, noise), one.loss(x, y, term, noise))
    assert both.draws and not Viewed(oracle, 0, lambda x, noise: x, 2).draws
