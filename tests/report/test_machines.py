"""Runs that are compared were computed alike, or one line says in what they differ; a shared file is no difference."""

import pytest

from mibench.report.machines import between, unlike
from mibench.report.result import Result
from mibench.runs import Run


class Scored(Result):
    """A score as far as it matters here: what it is compared within, and three runs."""

    protocol, target, inversion = "", None, None

    def __init__(self, protocol: str, target: Run, inversion: Run, run: Run) -> None:
        self.__dict__.update(protocol=protocol, target=target, inversion=inversion, run=run)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path):  # type: ignore[no-untyped-def]
    """A run of a kind whose card says in which precision it was computed."""
    cards: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(Run, "read", lambda self, file: {"provenance": cards[self.label]})

    def one(kind: str, name: str, precision: str = "fp32", **more: object) -> Run:
        run = Run(tmp_path, kind, name, {})
        cards[run.label] = {"device": "cpu", "precision": precision, **more}
        return run

    return one


def scored(made, name: str, target: Run, precision: str, protocol: str = "p") -> Scored:  # type: ignore[no-untyped-def]
    return Scored(protocol, target, *(made(kind, name, precision) for kind in ("inversions", "scores")))


def test_a_target_that_was_trained_elsewhere_is_one_file_for_every_attack(made) -> None:  # type: ignore[no-untyped-def]
    zoo = made("targets", "zoo", "fp32", threads=1)
    assert unlike([scored(made, name, zoo, "bf16") for name in ("gmi", "ppa")]) == ""


def test_attacks_on_it_that_were_not_computed_alike_are_named(made) -> None:  # type: ignore[no-untyped-def]
    zoo = made("targets", "zoo")
    said = unlike([scored(made, "gmi", zoo, "bf16"), scored(made, "ppa", zoo, "fp32")])
    assert said.startswith("note: not all of the 2 inversions that are compared were computed alike: inversions/gmi-")
    assert "precision bf16, fp32" in said


def test_targets_that_are_compared_are_held_to_it_too(made) -> None:  # type: ignore[no-untyped-def]
    zoo, own = made("targets", "zoo", "fp32"), made("targets", "own", "bf16")
    assert "not all of the 2 targets" in unlike(
        [scored(made, name, one, "bf16") for name, one in zip("ab", (zoo, own), strict=True)]
    )


def test_what_two_protocols_measured_is_never_compared(made) -> None:  # type: ignore[no-untyped-def]
    pair = [(made("targets", name, name), name) for name in ("fp32", "bf16")]
    assert unlike([scored(made, name, one, name, protocol=name) for one, name in pair]) == ""
    assert unlike([]) == ""


def test_a_run_and_itself_differ_in_nothing(made) -> None:  # type: ignore[no-untyped-def]
    one, other = made("targets", "one", "fp32"), made("targets", "other", "bf16")
    assert between(one, one) == [] and between(one, other) == ["precision fp32, bf16"]
