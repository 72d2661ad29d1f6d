"""The floor that asks nothing stays at chance."""

import pytest
from attacking import accuracy, assert_refused
from worlds import World, attack_on


def test_prior_samples_stay_at_chance() -> None:
    world = World(10)
    found = attack_on(world, "prior_sample", images=100)
    assert abs(accuracy(world, found) - 0.1) < 4 * (0.09 / 1000) ** 0.5
    assert abs(float(found.latents.mean())) < 0.04 and float(found.latents.std()) == pytest.approx(1.0, abs=0.03)


def test_settings_that_make_no_sense_are_refused() -> None:
    assert_refused("prior_sample", {"images": 0})
