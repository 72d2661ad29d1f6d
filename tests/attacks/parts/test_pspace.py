"""The P-space undoes its activation exactly."""

import pytest
import torch
from attacking import Activated
from torch.nn import functional as F
from worlds import World

from mibench.attacks.parts.pspace import PSpace, searched
from mibench.runtime.errors import UserError


def test_p_space_undoes_leaky_relu_exactly() -> None:
    z = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = F.leaky_relu(z, 0.2)
    space = PSpace.around(w, 0.2)
    torch.testing.assert_close(space.features_at(w), z, rtol=1e-15, atol=0)
    torch.testing.assert_close(space.leave(z), w, rtol=0, atol=0)
    torch.testing.assert_close(space.mean, z.mean(0))
    torch.testing.assert_close(space.std, z.std(0, correction=0))
    assert torch.equal(PSpace.around(z, 1.0).features_at(z), z)
    # Clipping in w is clipping in p, mapped back.
    torch.testing.assert_close(space.clip_w(w), space.leave(space.clip(z)))
    assert not torch.equal(space.clip_w(w), w)


def test_auto_is_w_where_there_is_one() -> None:
    world = World(4)
    prior = Activated(world)
    assert searched(prior, "auto").slope == 0.2 and searched(prior, "z") is prior
    assert searched(world.prior, "auto") is world.prior
    with pytest.raises(UserError, match="has no w space"):
        searched(world.prior, "w")
