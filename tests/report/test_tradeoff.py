"""Laws of the trade-off: hand-made points, closed forms, no extrapolation."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mibench.core import Access
from mibench.report import combinations, figures, matched_figure, tables, tradeoff, tradeoff_tables
from mibench.report import curves as curving
from mibench.report.curves import Curve, curves, hypervolume, matched, pareto, state
from mibench.report.pairing import Attacked, compare
from mibench.report.points import Point, heldout
from mibench.report.tradeoff import delta
from mibench.runs import Run
from mibench.stages import artifacts
from mibench.stats.pairing import Hits, combined
from mibench.stats.significance import adjusted, paired_test

PEOPLE = 20
EACH = 50


def hits(rate: float, seed: int = 0) -> Hits:
    """Exactly this share of hits, 50 images of each of 20 people."""
    n = PEOPLE * EACH
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    found = torch.zeros(n, dtype=torch.bool)
    found[order[: round(rate * n)]] = True
    return Hits(torch.arange(PEOPLE).repeat_interleave(EACH), found)


@dataclass(frozen=True)
class Told(Run):
    """A target whose files are given."""

    files: dict[str, Any] = field(default_factory=dict)

    def read(self, file: str) -> dict[str, Any]:
        return self.files[file]


def target(natural: float, seconds: float, effects: dict[str, Any], fit: float) -> Run:
    value = hits(natural).rate._asdict()
    return Told(
        Path(),
        "targets",
        "toy",
        {},
        files={
            "metrics.json": {"natural_accuracy": value, "side_effects": effects, "fit": {"value": fit}},
            "run.json": {"provenance": {"training_cpu_seconds": seconds}},
        },
    )


def point(
    defense: str,
    natural: float,
    strength: float = math.nan,
    seconds: float = 10.0,
    base: str = "cnn",
    effects: dict[str, Any] | None = None,
    fit: float = 1.0,
    **attacks: float,
) -> Point:
    judged = {Access.of(access): Attacked(f"best {access}", hits(rate, 1)) for access, rate in attacks.items()}
    label = defense if math.isnan(strength) else f"{defense} s={strength:g}"
    run = target(natural, seconds, effects or {}, fit)
    best = max(judged.values(), key=lambda one: one.rate.value, default=None)
    return Point("p", base, defense, label, strength, (run,), judged, hits(natural, 2), best)


NONE = point("none", 0.9, white_box=0.8, black_box=0.4)
WEAK = point("re", 0.8, 0.2, white_box=0.6, black_box=0.4, seconds=20.0)
STRONG = point("re", 0.7, 0.8, white_box=0.1, black_box=0.5)
BAD = point("mid", 0.6, 0.1, white_box=0.7)
ALL = [NONE, WEAK, STRONG, BAD]


def test_hypervolume_of_rectangles() -> None:
    assert hypervolume([(0.5, 0.0)]) == pytest.approx(0.5)
    assert hypervolume([(1.0, 1.0)]) == 0.0 and hypervolume([]) == 0.0
    # (.9, .8) covers .9 x .2; (.8, .6) adds .8 x .2; (.7, .1) adds .7 x .5.
    assert hypervolume([(0.7, 0.1), (0.9, 0.8), (0.8, 0.6)]) == pytest.approx(0.18 + 0.16 + 0.35)
    # A dominated point adds nothing, and neither does a copy.
    assert hypervolume([(0.7, 0.1), (0.9, 0.8), (0.8, 0.6), (0.6, 0.7), (0.8, 0.6)]) == pytest.approx(0.69)


def test_hypervolume_against_counting() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        xy = draw.random((6, 2))
        u, p = np.meshgrid(*[(np.arange(1000) + 0.5) / 1000] * 2)
        inside = np.zeros_like(u, dtype=bool)
        for x, y in xy:
            inside |= (u <= x) & (p <= 1 - y)
        assert hypervolume([tuple(one) for one in xy]) == pytest.approx(inside.mean(), abs=2e-3)


def test_pareto_front() -> None:
    assert pareto(ALL, Access.WHITE_BOX) == [NONE, WEAK, STRONG]
    assert pareto(ALL, Access.BLACK_BOX) == [NONE]  # equal privacy at more accuracy beats; STRONG leaks even more
    assert pareto(ALL, Access.LABEL_ONLY) == []
    twin = point("bido", 0.7, 1.0, white_box=0.1)
    assert pareto([*ALL, twin], Access.WHITE_BOX) == [NONE, WEAK, STRONG, twin]  # equals do not beat each other


def test_curves_begin_at_no_defense() -> None:
    found = {curve.defense: curve for curve in curves(ALL, Access.WHITE_BOX)}
    assert found["re"].points == (NONE, WEAK, STRONG) and found["mid"].points == (NONE, BAD)
    elsewhere = point("re", 0.5, 0.5, base="resnet", white_box=0.2)
    assert [curve.points for curve in curves([NONE, elsewhere], Access.WHITE_BOX)] == [(elsewhere,)]


@pytest.mark.parametrize(
    ("below", "expected"), [(0.0, 0.8), (0.05, 0.7), (0.1, 0.6), (0.15, 0.35), (0.2, 0.1), (-0.01, None), (0.21, None)]
)
def test_matched_accuracy_is_linear_between_points_and_nothing_beyond(below: float, expected: float | None) -> None:
    found = matched(Curve("re", Access.WHITE_BOX, (NONE, WEAK, STRONG)), below)
    if expected is None:
        assert found is None
        return
    assert found is not None and found.rate.value == pytest.approx(expected)
    assert found.rate.low <= expected <= found.rate.high and 0 < found.rate.high - found.rate.low < 0.4
    assert found.difference.value == pytest.approx(expected - 0.8)


def test_a_reading_at_matched_accuracy_is_of_all_seeds(tmp_path: Path) -> None:
    """Held-out verdicts carry their target's seed: with others, only the seed that both share would be read."""

    def trained(name: str, seed: int, natural: float) -> Run:
        made = hits(natural, seed)
        run = Told(tmp_path, "targets", name, {"seed": seed})
        run.path.mkdir(parents=True)
        tensors = {"labels": made.people, "hits": made.hits}
        artifacts.write_tensors(run.path / "heldout.safetensors", tensors, {"role": "held-out verdicts"})
        return run

    def measured(name: str, natural: float, attack: tuple[float, float]) -> Point:
        verdicts = heldout([trained(name, seed, natural) for seed in (0, 1)])
        seeds = [replace(hits(rate), seeds=torch.full((PEOPLE * EACH,), seed)) for seed, rate in enumerate(attack)]
        ran = {Access.WHITE_BOX: Attacked("ppa", combined(seeds))}
        return replace(WEAK if name == "re" else NONE, attacks=ran, heldout=verdicts)

    curve = Curve("re", Access.WHITE_BOX, (measured("none", 0.9, (0.8, 0.6)), measured("re", 0.8, (0.4, 0.6))))
    found = matched(curve, 0.1)
    assert found is not None and found.rate.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(-0.2), "of both seeds; of seed 0 alone it is -.4"


def test_matched_accuracy_needs_a_twin() -> None:
    curve = Curve("re", Access.WHITE_BOX, (WEAK,))
    assert matched(curve, 0.05) is None and state(curve, 0.05, None) == "no twin"


def test_no_number_stands_on_a_target_that_had_not_converged() -> None:
    loose = point("re", 0.7, 0.8, fit=0.95, white_box=0.1)
    line = curving.frame([NONE, WEAK, loose]).iloc[0]
    # At -5 and -10 the line leans on no defense and the weak one alone.
    assert [line[f"at_minus_{drop}_state"] for drop in (2, 5, 10)] == ["", "", ""]
    assert line["at_minus_5_between"] == "none | re s=0.2" and line["at_minus_10_between"] == "re s=0.2"
    line = curving.frame([NONE, loose]).iloc[0]
    assert line["at_minus_5_state"] == "not converged" and math.isnan(line["at_minus_5_difference"])
    assert math.isnan(line["at_minus_5"]) and line["at_minus_5_between"] == "none | re s=0.8"
    (headline, *_) = tradeoff_tables.sections(
        tradeoff.frame([NONE, loose, STRONG]), curving.frame([NONE, loose, STRONG]), pd.DataFrame(), {"p": "toy"}
    )
    column = next(column for column in headline.columns if column.header == "natural -5 difference")
    assert column.cell(tables.rows(headline.rows)[0], 1) == "not converged"


def test_what_a_target_says_of_its_convergence_counts() -> None:
    assert point("re", 0.8, fit=0.9).converged is False and point("re", 0.8).converged
    said = point("re", 0.8, fit=0.9)
    said.metrics[0]["convergence"] = {"converged": True}
    assert said.converged


def test_a_stack_is_compared_with_its_parts_at_the_same_cost() -> None:
    """re alone reads .6 at -10 points, nls alone .7, both together .3."""
    nls = point("nls", 0.8, 0.05, white_box=0.7)
    stack = [point("re + nls alpha=0.1", 0.8, 0.4, white_box=0.3), point("re + nls alpha=0.1", 0.7, 0.8, white_box=0.1)]
    elsewhere = point("re location=centre", 0.8, 0.4, white_box=0.1)  # another defense, though its name begins alike
    points = [NONE, elsewhere, WEAK, STRONG, nls, *stack]
    rows = combinations.frame(points).set_index(["part", "below"])
    assert sorted(set(rows.index.get_level_values(0))) == ["nls", "re"]
    assert rows.loc[("re", 10.0), "difference"] == pytest.approx(-0.3)
    assert rows.loc[("nls", 10.0), "difference"] == pytest.approx(-0.4)
    assert rows.loc[("nls", 10.0), "with"] == pytest.approx(0.3)
    assert rows.loc[("nls", 10.0), "difference_low"] < -0.4 < rows.loc[("nls", 10.0), "difference_high"] < 0
    # At -5 both lie half way between no defense and their first strength.
    assert rows.loc[("re", 5.0), "difference"] == pytest.approx((0.8 + 0.3) / 2 - (0.8 + 0.6) / 2)
    shown = [
        one.title
        for one in tradeoff_tables.sections(
            tradeoff.frame(points), curving.frame(points), combinations.frame(points), {"p": "toy"}
        )
    ]
    assert any(title.startswith("What a stack adds") for title in shown)
    loose = [NONE, WEAK, nls, point("re + nls alpha=0.1", 0.8, 0.4, fit=0.9, white_box=0.3)]
    assert set(combinations.frame(loose)["state"]) == {"not converged"}
    assert combinations.frame(ALL).empty


def test_the_page_shows_each_difference_with_its_interval_or_says_why_there_is_none(tmp_path: Path) -> None:
    points = [replace(one, track="realistic") for one in ALL if one is not BAD]
    points.append(replace(point("mid", 0.89, 0.1, white_box=0.7), track="realistic"))
    table = curving.frame(points)
    figure = matched_figure.draw(points, table, Access.WHITE_BOX, "toy")
    _, two, five = figure.axes
    elsewhere = [replace(point(name, 0.8, black_box=0.3), track="best case") for name in ("none", "re")]
    with_another = matched_figure.draw([*points, *elsewhere], table, Access.WHITE_BOX, "toy")
    assert len(with_another.axes) == 3, "a track without attacks of this access has no row"
    line = table[table["defense"] == "re"].iloc[0]
    drawn = {round(x, 6) for own in five.lines for x in np.atleast_1d(own.get_xdata())}
    assert round(100 * line["at_minus_5_difference"], 6) in drawn
    ends = {round(x, 6) for one in five.collections for path in one.get_segments() for x, _ in path}
    assert {round(100 * line[f"at_minus_5_difference_{end}"], 6) for end in ("low", "high")} <= ends
    assert [text.get_text().strip() for text in two.texts] == ["not reached"]  # mid costs one point only
    assert [path.name for path in matched_figure.write(tmp_path, points, table, {"p": "toy"})] == ["matched.png"]
    assert matched_figure.write(tmp_path, [NONE], curving.frame([NONE]), {"p": "toy"}) == []


def test_two_tracks_are_two_tables() -> None:
    """An attack from a prior that drew the private people is no rival of one from public images."""

    def on(track: str, *points: Point) -> list[Point]:
        return [replace(one, track=track) for one in points]

    both = [*on("realistic", NONE, WEAK, STRONG), *on("best case", NONE, BAD)]
    assert [len(curve.points) for curve in curves(both, Access.WHITE_BOX)] == [3, 2]
    assert pareto(both, Access.WHITE_BOX) == both  # BAD is beaten by STRONG, but not on its own track
    titles = [
        one.title
        for one in tradeoff_tables.sections(tradeoff.frame(both), curving.frame(both), pd.DataFrame(), {"p": "toy"})
    ]
    assert sum("realistic: a prior learnt on public images" in title for title in titles) >= 2
    assert any(title.startswith("Attack accuracy at matched natural accuracy, toy, realistic") for title in titles)
    assert not any(title.startswith("Attack accuracy at matched") and "best case" in title for title in titles)


def test_the_papers_delta() -> None:
    assert delta(NONE, WEAK, Access.WHITE_BOX) == pytest.approx(2.0)
    assert delta(NONE, STRONG, Access.WHITE_BOX) == pytest.approx(3.5)
    assert math.isnan(delta(NONE, point("x", 0.9, white_box=0.1), Access.WHITE_BOX))
    assert delta(NONE, point("x", 0.95, white_box=0.7), Access.WHITE_BOX) == pytest.approx(-2.0)


def test_the_table_compares_with_the_twin() -> None:
    rows = tradeoff.frame(ALL).set_index("defense")
    assert rows.loc["re s=0.2", "white_box_difference"] == pytest.approx(-0.2)
    assert rows.loc["re s=0.2", "training_ratio"] == pytest.approx(2.0)
    assert rows.loc["re s=0.8", "judged_by"] == "best black_box"
    assert rows.loc["re s=0.8", "judged"] == pytest.approx(0.5)
    assert math.isnan(rows.loc["none", "white_box_difference"]) and math.isnan(rows.loc["mid s=0.1", "black_box"])
    assert rows.loc["re s=0.8", "white_box_difference_high"] < -0.6


def test_pairs_are_the_same_people_and_seeds() -> None:
    one = Hits(torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False]), torch.tensor([0, 1, 0, 1]))
    other = Hits(torch.tensor([0, 1, 2]), torch.tensor([False, True, True]))
    found = compare(Attacked("a", one), Attacked("b", other))
    # (seed 0, person 0): 1 - 0; (seed 0, person 1): 0 - 1; nothing else is shared.
    assert found is not None and (found.interval.value, found.interval.n) == (0.0, 2)
    assert compare(Attacked("a", one), Attacked("c", Hits(other.people + 10, other.hits))) is None


def test_summary_says_what_no_strength_reaches() -> None:
    rows = curving.frame(ALL).set_index(["defense", "access"])
    line = rows.loc[("re", "white_box")]
    assert line["hypervolume"] == pytest.approx(0.69) and line["hypervolume_none"] == pytest.approx(0.18)
    assert line["at_minus_10"] == pytest.approx(0.6) and line["at_minus_5"] == pytest.approx(0.7)
    short = curving.frame([NONE, point("re", 0.87, 0.1, white_box=0.5)]).iloc[0]
    assert short["at_minus_2"] == pytest.approx(0.6) and math.isnan(short["at_minus_5"])


def test_a_black_box_attack_that_wins_is_a_finding() -> None:
    found = [one.line for one in tradeoff.findings(ALL)]
    assert len(found) == 1 and found[0].startswith("re s=0.8: black-box") and "weaker_access_wins" in found[0]


def test_the_figure_shows_every_point_where_it_is() -> None:
    figure = figures.draw(ALL, "toy")
    white, black = figure.axes
    places = {(round(x), round(y)) for line in white.lines for x, y in zip(*line.get_data(), strict=True) if x == x}
    assert {(90, 80), (80, 60), (70, 10), (60, 70)} <= places
    front = next(line for line in white.lines if line.get_drawstyle() == "steps-pre")
    assert np.allclose(np.array(front.get_data()), [[70, 80, 90], [10, 60, 80]])
    assert not [line for line in black.lines if line.get_drawstyle() == "steps-pre"]  # one point is no front
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no defense", "Pareto front", "re", "mid"]
    assert {text.get_text() for text in white.texts} >= {"re s=0.2", "re s=0.8", "mid s=0.1"}
    many = [point(f"d{place}", 0.8 - place / 50, 0.1, white_box=0.5) for place in range(figures.FEW)]
    crowded = figures.draw([*ALL, *many], "toy")
    assert [text.get_text() for text in crowded.legends[0].get_texts()][2:4] == ["1  re", "2  mid"]
    assert {text.get_text() for text in crowded.axes[0].texts} >= {"1", "2", "5"}


# --- in the trade-off -----------------------------------------------------------------------------------------------


def test_the_tradeoff_corrects_over_the_points_of_an_access() -> None:
    rows = tradeoff.frame(ALL).set_index("defense")
    own = rows["white_box_p"].dropna()
    assert list(own.index) == ["re s=0.2", "re s=0.8", "mid s=0.1"]
    wanted = adjusted(torch.tensor(own.to_numpy(), dtype=torch.float64)).tolist()
    assert rows["white_box_p_adjusted"].dropna().tolist() == wanted
    assert rows.loc["re s=0.2", "black_box_p"] == 1.0 and rows["label_only_p"].isna().all()
    judged, twin = (one.attacks[Access.WHITE_BOX].hits for one in (ALL[1], NONE))
    assert own["re s=0.2"] == paired_test(judged.hits, twin.hits, judged.people).p


def test_another_protocol_is_another_family() -> None:
    def elsewhere(one: Point) -> Point:
        return Point(
            "q",
            *(
                getattr(one, name)
                for name in ("base", "defense", "label", "strength", "targets", "attacks", "heldout", "strongest")
            ),
        )

    alone = tradeoff.frame(ALL)["white_box_p_adjusted"].dropna().tolist()
    both = tradeoff.frame([*ALL, *map(elsewhere, ALL)])["white_box_p_adjusted"].dropna().tolist()
    assert both == alone * 2


def test_only_a_difference_that_is_hardly_chance_is_marked() -> None:
    small = point("mid", 0.85, 0.1, white_box=0.798)  # two hits fewer
    found = [NONE, ALL[2], small]
    (section, *_) = (
        one
        for one in tradeoff_tables.sections(tradeoff.frame(found), curving.frame(found), pd.DataFrame(), {"p": "toy"})
        if one.title.startswith("Privacy")
    )
    column = next(column for column in section.columns if column.top == "difference")
    cells = {row["defense"]: column.cell(row, 1) for row in tables.rows(section.rows)}
    assert cells["re s=0.8"].startswith(f"-70.0{tradeoff_tables.SURE} [") and cells["mid s=0.1"].startswith("-0.2 [")
    assert cells["none"] == "" and "Holm" in section.notes[0] and PEOPLE == 20
