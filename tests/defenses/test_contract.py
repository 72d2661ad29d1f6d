"""The contract of every registered defense: what holds for one holds for all that are registered later."""

import pytest

from mibench.plugins import registry
from mibench.testing.defenses import LAWS, DefenseTrial
from mibench.testing.laws import report

NAMES = registry.names("defenses")


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name: str) -> None:
    """The laws that other packages' defenses are held to: `mibench.testing.defenses`."""
    report(DefenseTrial(name), LAWS)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_where_it_is_none_or_why_it_never_is(name: str) -> None:
    assert registry.card("defenses", name)["zero"] or name == "none"
