"""The estimate of time follows what is asked for."""

import pytest

from mibench.core import Cost
from mibench.experiments.audit.speeds import PRIOR_STEPS, Speeds, prior_steps, target_seconds
from mibench.plugins import registry


@pytest.mark.parametrize("name", ["stylegan2", "wgan_gp", "tacgan"])
def test_a_prior_takes_as_long_as_its_settings_say(name: str) -> None:
    usual = registry.configure("priors", name, "quick").spec()["settings"]
    assert prior_steps(name, usual) == PRIOR_STEPS[name]
    halved = usual | {"steps": usual["steps"] // 2, "warm_up": usual["warm_up"] // 2}
    assert prior_steps(name, halved) == PRIOR_STEPS[name] / 2


def test_a_shipped_prior_takes_no_time() -> None:
    assert prior_steps("dcgan", {}) == 0


def test_an_attack_takes_its_passes_forward_and_back() -> None:
    """Two of the target and the prior for each image, and two more of each for its gradient."""
    assert target_seconds(Cost(10, 0, 5), 3, Speeds(0.1, 0.0)) == pytest.approx(2 * 35 * 0.1)
    assert target_seconds(Cost(10, 10, 5), 3, Speeds(0.1, 0.0)) == pytest.approx(2 * (35 + 2 * 30) * 0.1)
