"""A kit for authors of plug-ins: the laws of the contract, on toy worlds, under a minute on one core.

    from mibench import testing

    testing.check_attack("myattack")            # raises ContractBroken: each broken law, what was seen, what to do

    @pytest.mark.parametrize("law", testing.laws("attack", "myattack"), ids=str)
    def test_it_keeps_the_contract(law):        # a test for each law
        law()

mibench's own plug-ins are held to the same laws by the same functions. `mibench check-plugin NAME` prints them with the
seconds that each takes; `mibench new attack NAME` writes a package with such a test.

References:
    | scikit-learn's check_estimator and parametrize_with_checks, the model of this kit
    | https://scikit-learn.org/stable/developers/develop.html
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from mibench.plugins import registry
from mibench.runtime.errors import UserError, unknown
from mibench.testing.laws import KINDS, Check, ContractBroken, Law, Report, Verdict, checks, report

__all__ = [
    "KINDS",
    "Check",
    "ContractBroken",
    "Law",
    "Report",
    "Verdict",
    "book",
    "check",
    "check_attack",
    "check_data",
    "check_defense",
    "check_metric",
    "check_prior",
    "kind_of",
    "laws",
    "trial",
]


def _place(kind: str) -> tuple[ModuleType, str]:
    if kind not in KINDS:
        raise unknown("kind of plug-in", kind, KINDS)
    return import_module(f"mibench.testing.{KINDS[kind]}"), f"{kind.capitalize()}Trial"


def book(kind: str) -> list[Law[Any]]:
    """The laws of a kind of plug-in, in the order in which they build on one another.

    Raises:
        UserError: If there is no such kind.
    """
    laws_of: list[Law[Any]] = _place(kind)[0].LAWS
    return laws_of


def kind_of(name: str) -> str:
    """The one kind that has a plug-in of this name.

    Raises:
        UserError: If none has one, or several have.
    """
    matching = [kind for kind, kinds in KINDS.items() if name.split("+")[0] in registry.names(kinds)]
    if len(matching) > 1:
        raise UserError(f"'{name}' is the name of {' and of '.join(matching)}; say which with --kind")
    if not matching:
        others = {one for kinds in KINDS.values() for one in registry.names(kinds)}
        raise unknown("plug-in", name, others)
    return matching[0]


def trial(kind: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A plug-in on trial, for `laws` and `check`; made anew, it is tried anew.

    Raises:
        UserError: If there is no such plug-in, or it was written for another version of the contract.
    """
    module, trial_of = _place(kind)
    registry.source_of(KINDS[kind], name.split("+")[0])
    for part in name.split("+"):
        registry.require_contract(KINDS[kind], part)
    return getattr(module, trial_of)(name, settings)


def laws(
    kind: str, name: str, settings: Mapping[str, Any] | None = None, expected: Mapping[str, str] | None = None
) -> list[Check]:
    """Every law of a plug-in as a check of its own, for `pytest.mark.parametrize("law", laws(...), ids=str)`.

    A check raises `ContractBroken` in one line, or skips where a law does not apply or cannot be judged because one
    that it builds on is broken. Checks of one call share their runs: together they take as long as `check`.

    Args:
        kind: attack, defense, prior, data or metric.
        name: The plug-in's; attacks also with wrappers, `ppa+eot`.
        settings: Over the quick preset (of attacks), the defaults (of others) and the card's `toy`.
        expected: Laws that are known to be broken, and why: they are skipped.

    Raises:
        UserError: If there is no such plug-in or law.
    """
    return checks(trial(kind, name, settings), book(kind), expected)


def check(
    kind: str,
    name: str,
    settings: Mapping[str, Any] | None = None,
    on_fail: Literal["raise"] | None = "raise",
    expected: Mapping[str, str] | None = None,
    told: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Try every law of a plug-in.

    Args:
        kind: attack, defense, prior, data or metric.
        name: The plug-in's; attacks also with wrappers, `ppa+eot`.
        settings: Over the quick preset (of attacks), the defaults (of others) and the card's `toy`.
        on_fail: None: broken laws are only in the report.
        expected: Laws that are known to be broken, and why.
        told: Told of each verdict as it falls.

    Raises:
        ContractBroken: One line for each broken law: the law, what was seen, what to do.
        UserError: If there is no such plug-in or law.
    """
    return report(trial(kind, name, settings), book(kind), on_fail, expected, told)


def check_attack(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Report:
    """Try every law of an attack: see `check`."""
    return check("attack", name, settings, **more)


def check_defense(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Report:
    """Try every law of a defense: see `check`."""
    return check("defense", name, settings, **more)


def check_prior(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Report:
    """Try every law of a prior: see `check`."""
    return check("prior", name, settings, **more)


def check_data(name: str, settings: Mapping[str, Any] | None = None, **more: Any) -> Report:
    """Try every law of a data set: see `check`."""
    return check("data", name, settings, **more)


def check_metric(name: str, **more: Any) -> Report:
    """Try every law of a metric: see `check`."""
    return check("metric", name, **more)
