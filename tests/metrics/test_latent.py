"""Ground truth by latents: the anchors of digiface are found again, in closed form where there is one."""

import math

import pytest
import torch
from features import normal

from mibench.data.digiface import Digiface, mixed_latents
from mibench.metrics.latent import latent_cosine, latent_rank1


def test_an_anchor_is_itself_its_mirror_is_the_worst_and_length_does_not_matter() -> None:
    anchors, who = normal(6, 100), torch.arange(6)
    torch.testing.assert_close(latent_cosine(3 * anchors, who, anchors), torch.ones(6).double())
    torch.testing.assert_close(latent_cosine(-anchors, who, anchors), -torch.ones(6).double())
    assert bool(latent_rank1(0.1 * anchors, who, anchors).all()) and not bool(
        latent_rank1(-anchors, who, anchors).any()
    )
    assert not bool(latent_rank1(anchors, (who + 1) % 6, anchors).any())


def test_rank1_is_the_nearest_anchor_by_angle() -> None:
    z, anchors, labels = normal(50, 5), normal(7, 5, seed=1), torch.arange(50) % 7
    for i in range(50):
        each = [float(z[i] @ a / z[i].norm() / a.norm()) for a in anchors]
        assert bool(latent_rank1(z, labels, anchors)[i]) is (each.index(max(each)) == int(labels[i]))
        assert float(latent_cosine(z, labels, anchors)[i]) == pytest.approx(each[int(labels[i])])


@pytest.mark.parametrize("spread", [0.45, 0.65])
def test_a_real_image_of_digiface_has_the_stated_cosine_and_is_always_its_person(spread: float) -> None:
    """Latents of 40 people's images against what the data set says of its people."""
    source = Digiface(identities=40, spread=spread, seed=3)
    anchors = source.anchors("dcgan")
    assert anchors is not None and anchors.shape == (40, 100) and source.anchors("wgan_gp") is None
    labels = torch.arange(40).repeat_interleave(20)
    z = mixed_latents(torch.arange(40), 20, spread, 3, "private", "train").flatten(0, 1)
    cosine = latent_cosine(z, labels, anchors)
    assert float(cosine.mean()) == pytest.approx(math.sqrt(1 - spread**2), abs=0.01)
    assert float(latent_rank1(z, labels, anchors).double().mean()) == 1.0


def test_random_latents_are_at_chance_and_people_of_another_seed_too() -> None:
    anchors = Digiface(identities=10).anchors("dcgan")
    others = Digiface(identities=10, seed=1).anchors("dcgan")
    assert anchors is not None and others is not None
    labels = torch.arange(4000) % 10
    rate = float(latent_rank1(normal(4000, 100), labels, anchors).double().mean())
    assert rate == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / 4000))
    assert float(latent_cosine(others, torch.arange(10), anchors).abs().mean()) < 0.3


def test_broken_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="latent: 1 of 2 latents"):
        latent_rank1(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), torch.eye(2))
