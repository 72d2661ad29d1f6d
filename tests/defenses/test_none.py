"""No defense: each hook gives back what it was given."""

import torch
from defending import batch_of, inner_images, linear_net, step_of

from mibench.defenses.none import NoDefense


def test_every_hook_gives_back_what_it_was_given() -> None:
    defense, net, x = NoDefense(), linear_net(), inner_images(5)
    batch, step = batch_of(x, torch.arange(5) % 3), step_of(net, 5)
    assert defense.transform(x, step.noise) is x
    assert defense.batch(batch, step) is batch
    assert defense.surgery(net) is net
    assert defense.memory(3, (3, 4, 4)) is None
