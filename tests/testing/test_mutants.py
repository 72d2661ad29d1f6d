"""Each law catches the plug-in that breaks it, no other law does, and what is said names the law and the remedy."""

from collections.abc import Callable

import pytest
import torch
from mistakes import rows
from mutants import ATTACK, DATA, DEFENSE, METRIC, PRIOR, SEARCH, ZOO

from mibench import testing
from mibench.testing.laws import Law, judge

torch.set_num_threads(1)

SOUND = {"attack": (ATTACK, SEARCH), "defense": (DEFENSE,), "prior": (PRIOR,), "data": (DATA,), "metric": (METRIC,)}
MUTANTS = [(kind, law) for kind, zoo in ZOO.items() for law in zoo]
SAID = {(kind, law): said for kind, _, law, said in rows("What the laws find")}
"""What the page of mistakes says that mibench says."""

SLOW = {"attack": {"fair budget", "resume under a budget"}, "defense": {"stacks"}}
"""Laws that are not tried on every mutant, to save time."""


def tried(kind: str, name: str, but: set[str]) -> list[testing.Verdict]:
    """What the laws say of a plug-in, but some."""
    trial, book = testing.trial(kind, name), testing.book(kind)
    return [judge(trial, one, book) for one in book if one.name not in but]


@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, all_ in SOUND.items() for n in range(len(all_))])
def test_a_sound_plugin_keeps_every_law(kind: str, number: int, install: Callable[[str, str, str], None]) -> None:
    name = f"sound_{kind}_{number}"
    install(kind, name, SOUND[kind][number])
    found = testing.check(kind, name, on_fail=None)
    assert found.passed, [one.line for one in found.broken]
    assert sum(one.outcome == "kept" for one in found.verdicts) >= len(found.verdicts) - 4


@pytest.mark.parametrize(("kind", "law"), MUTANTS)
def test_a_mutant_breaks_its_law_and_no_other(kind: str, law: str, install: Callable[[str, str, str], None]) -> None:
    source, changes = ZOO[kind][law]
    for old, new in changes.items():
        assert old in source, (law, old)
        source = source.replace(old, new)
    name = f"{kind}_{law.replace(' ', '_')}"
    install(kind, name, source)
    broken = [one for one in tried(kind, name, SLOW.get(kind, set()) - {law}) if one.outcome == "broken"]
    assert [one.law for one in broken] == [law]
    assert SAID[kind, law] in broken[0].line and broken[0].do


def test_every_law_has_its_mutant() -> None:
    for kind, zoo in ZOO.items():
        assert {one.name for one in testing.book(kind)} == zoo.keys(), kind
    assert set(SAID) == set(MUTANTS)


def test_a_law_whose_ground_is_broken_is_not_judged(install: Callable[[str, str, str], None]) -> None:
    install("attack", "mutant", ATTACK.replace("Noise(seed, key[rows])", "Noise(seed + next(CALLS), key[rows])"))
    found = testing.check_attack("mutant", on_fail=None)
    by_name = {one.law: one for one in found.verdicts}
    assert by_name["seed"].outcome == "broken" and by_name["company"].outcome == "not judged"
    assert by_name["company"].seen == "it builds on batch" and by_name["batch"].seen == "it builds on seed"
    with pytest.raises(
        testing.ContractBroken, match=r"(?s)attack mutant breaks 1 law of its contract:\n- seed \(The same"
    ):
        testing.check_attack("mutant")
    expected = testing.check_attack("mutant", expected={"seed": "it is a demonstration"})
    assert expected.passed and {one.outcome for one in expected.verdicts if one.law == "seed"} == {"expected"}
    checks = {str(one): one for one in testing.laws("attack", "mutant")}
    with pytest.raises(
        testing.ContractBroken, match=r"^attack mutant breaks seed .* differ by .*; draw all randomness"
    ):
        checks["seed"]()
    with pytest.raises(BaseException, match="not judged: company") as skipped:
        checks["company"]()
    assert type(skipped.value).__name__ in ("SkipTest", "Skipped")


def test_laws_say_themselves() -> None:
    for kind in testing.KINDS:
        book: list[Law] = testing.book(kind)
        assert len({one.name for one in book}) == len(book)
        assert all(len(one.says) > 20 and not one.says.endswith(".") and "\n" not in one.says for one in book)
