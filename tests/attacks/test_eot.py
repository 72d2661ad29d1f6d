"""EOT: copies of one view change nothing but the price."""

import torch
from attacking import PPA_SHORT, ROUNDING, run
from worlds import World, workspace

from mibench.attacks.eot import EOT


def test_copies_of_one_view_change_nothing_but_the_price() -> None:
    world, oracles = World(5), [World(5).oracle() for _ in range(2)]
    plain = run(PPA_SHORT, world, oracle=oracles[0], work=workspace(world))
    found = run(EOT(PPA_SHORT, copies=4), world, oracle=oracles[1], work=workspace(world))
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=ROUNDING)
    for count, several in zip(oracles[0].counts().values(), oracles[1].counts().values(), strict=True):
        assert torch.equal(4 * count, several)
