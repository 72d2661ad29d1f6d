"""Laws of per-person leakage: closed forms, coverage, who is named, and groups from groups.csv to the report."""

# ruff: noqa: F811 (fixtures are imported)

import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import CLASSES, bits, judge, noise, score, target  # noqa: F401 (fixtures)
from rich.console import Console
from scipy.stats import betabinom
from worlds import folder, tree

from mibench.core import Dataset
from mibench.report import frame, leakage, leakage_tables, load, write
from mibench.report.leakage import gini, gini_by_luck, gini_interval
from mibench.runtime.errors import UserError
from mibench.stages import artifacts

# --- Gini -----------------------------------------------------------------------------------------------------------


def test_gini_in_closed_form() -> None:
    assert float(gini(torch.tensor([0.4, 0.4, 0.4]))) == pytest.approx(0)
    assert float(gini(torch.tensor([0.0, 0.0, 0.0, 0.8]))) == pytest.approx(1)
    assert float(gini(torch.tensor([0.0, 1.0]))) == pytest.approx(1)
    # 1 2 3: mean |difference| of two people (1 + 2 + 1) / 3, by twice the mean 2.
    assert float(gini(torch.tensor([3.0, 1.0, 2.0]))) == pytest.approx(1 / 3)
    assert math.isnan(float(gini(torch.zeros(4))))


@given(st.lists(st.integers(0, 8), min_size=2, max_size=15).filter(any), st.randoms())
@settings(max_examples=60, deadline=None)
def test_gini_is_half_the_relative_mean_difference_of_two_people(values: list[int], random: object) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    pairs = (x[:, None] - x).abs().sum() / (len(x) * (len(x) - 1))
    assert float(gini(x)) == pytest.approx(float(pairs / (2 * x.mean())))
    assert 0 <= float(gini(x)) <= 1 + 1e-12
    assert float(gini(x / 8)) == pytest.approx(float(gini(x.flip(0))))


def test_gini_by_luck_is_that_of_equal_people() -> None:
    rng = np.random.default_rng(0)
    for rate, n in ((0.5, 5), (0.1, 2), (0.9, 8)):
        drawn = gini(torch.from_numpy(rng.binomial(n, rate, (500, 400)) / n)).mean()
        assert gini_by_luck(rate, n) == pytest.approx(float(drawn), rel=0.02)
    assert gini_by_luck(1.0, 5) == pytest.approx(0) and math.isnan(gini_by_luck(0.0, 5))
    assert gini_by_luck(0.3, 1) == pytest.approx(0.7)  # one image each: who was hit has everything


@pytest.mark.parametrize(("people", "a", "b"), [(20, 1.0, 1.0), (20, 8.0, 2.0), (60, 0.3, 2.0)])
def test_its_interval_covers(people: int, a: float, b: float) -> None:
    below = betabinom.cdf(np.arange(5), 5, a, b)
    true = (below * (1 - below)).sum() / (5 * a / (a + b))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = gini_interval(torch.from_numpy(rng.binomial(5, rng.beta(a, b, people)) / 5))
        covered += low <= true <= high
    assert 0.9 <= covered / 400 <= 0.99


def test_its_interval_leaves_out_one_person_at_a_time() -> None:
    x = torch.tensor([0.2, 0.0, 1.0, 0.4, 0.4, 0.8], dtype=torch.float64)
    each = torch.stack([gini(torch.cat([x[:i], x[i + 1 :]])) for i in range(6)])
    error = float((5 / 6 * (each - each.mean()).square().sum()).sqrt())
    value = float(gini(x))
    half = 2.570582 * error / (value * (1 - value))  # t of 5 degrees of freedom
    wanted = [1 / (1 + math.exp(-(math.log(value / (1 - value)) + side * half))) for side in (-1, 1)]
    assert list(gini_interval(x)) == pytest.approx(wanted, rel=1e-5)
    for nothing in (torch.zeros(5), torch.full((5,), 0.4), torch.tensor([0.0, 0.0, 0.2]), torch.tensor([0.2, 0.4])):
        assert all(map(math.isnan, gini_interval(nothing)))


# --- people ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two targets; the attack of the first that is weaker on either half of the people would name others."""
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: noise)
    judges = [judge(tmp_path, name, noise) for name in ("resnet", "ir")]
    bare = target(tmp_path, [], noise)
    score(tmp_path, "ppa", bare, judges, bits("000110111110"), noise)
    score(tmp_path, "gmi", bare, judges, bits("100000000000"), noise)
    score(
        tmp_path,
        "gmi",
        target(tmp_path, [{"name": "re", "settings": {"a_e": 0.5}}], noise),
        judges,
        bits("000000000000"),
        noise,
    )
    return tmp_path


def measured(root: Path) -> leakage.Leakage:
    found = load.results(root)
    return leakage.leakage(found, frame.scores(found))


def test_people_are_ranked_by_hits_and_then_by_distance(root: Path) -> None:
    people = measured(root).people
    own = people[people["defense"] == "none"]
    assert own["attack"].unique().tolist() == ["ppa"]  # the strongest
    assert own["hits"].tolist() == [3, 2, 2, 0] and own["rank"].tolist() == [1, 2, 3, 4]
    assert own["identity"].iloc[0] == "person_2" and own["identity"].iloc[-1] == "person_0"
    assert own["nearest"].iloc[1] <= own["nearest"].iloc[2]
    found = next(one for one in load.results(root) if one.inversion.spec["attack"]["name"] == "ppa")
    for _, row in own.iterrows():
        images = found.per_image[found.per_image["label"] == row["label"]]
        assert row["nearest"] == images["knn_train@resnet"].min() and row["n"] == 3
        assert row["target_confidence"] == pytest.approx(images["target_confidence"].mean())
        assert CLASSES[row["label"]] == row["identity"]
    assert own.sort_values("nearest")["distance_rank"].tolist() == [1, 2, 3, 4]
    none = people[people["defense"] != "none"]
    assert none["hits"].sum() == 0 and none["nearest"].is_monotonic_increasing


def test_how_unequal(root: Path) -> None:
    first, second = (row for _, row in measured(root).targets.iterrows())
    assert first["gini"] == pytest.approx(float(gini(torch.tensor([3.0, 2, 2, 0]))))
    assert (first["never"], first["always"], first["identities"]) == (0.25, 0.25, 4)
    assert 0 <= first["never_low"] < 0.25 < first["never_high"] <= 1
    assert first["rate"] == pytest.approx(7 / 12) and first["gini_by_luck"] == pytest.approx(gini_by_luck(7 / 12, 3))
    assert math.isnan(second["gini"]) and second["never"] == 1 and second["always"] == 0


def test_the_worst_are_named_and_the_files_have_everybody(root: Path) -> None:
    console = Console(width=120, file=io.StringIO(), color_system=None)
    made = write(root, console, full=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    worst = text[text.index("Who leaks most") :]
    assert worst.index("person_2") < worst.index("person_0") and "3 of 3" in worst and "0 of 3" in worst
    everybody = pd.read_csv(made / "leakage.csv")
    assert list(everybody) == leakage.PEOPLE and len(everybody) == 8
    whole = json.loads((made / "tables.json").read_text())
    assert len(whole["leakage"]) == 8 and len(whole["inequality"]) == 2 and whole["groups"] == []
    assert "Who leaks most" in (made / "tables.md").read_text() and "Groups of people" not in text
    assert not (made / "groups.csv").exists() and "3 of 3" in (made / "tables.tex").read_text()


def test_many_targets_name_fewer_people_each() -> None:
    rows = [
        {
            "protocol": "p",
            "defense": f"d{place}",
            "attack": "a",
            "rank": rank,
            "identity": f"i{rank}",
            "label": rank,
            "group": "",
            "hits": 1,
            "n": 2,
            "rate": 0.5,
            "nearest": 1.0,
            "distance_rank": rank,
            "target_confidence": 0.5,
        }
        for place in range(15)
        for rank in range(1, 8)
    ]
    targets = pd.DataFrame([{"protocol": "p", "defense": f"d{place}", "attack": "a"} for place in range(15)])
    table = pd.DataFrame(
        [{"protocol": "p", "dataset": "x", "dataset_settings": "", "identities": 7, "classes": 7, "evaluators": "e"}]
    )
    worst = next(leakage_tables.sections(leakage.Leakage(pd.DataFrame(rows), targets, pd.DataFrame()), table))
    assert len(worst.rows) == 15 * (leakage_tables.ROWS // 15) and worst.notes[0].startswith("The 2 people")


# --- groups ---------------------------------------------------------------------------------------------------------


def regroup(root: Path, groups: dict[str, str]) -> None:
    """Targets whose data card has groups."""
    for path in (root / "targets").glob("[!.]*"):
        text = json.dumps(json.loads((path / "data.json").read_text()) | {"groups": groups})
        (path / "data.json").write_text(text)
        digests = json.loads((path / "done").read_text())
        (path / "done").write_text(json.dumps(digests | {"data.json": hashlib.sha256(text.encode()).hexdigest()}))


def test_groups_of_the_card_are_compared(root: Path) -> None:
    regroup(root, {"person_0": "old", "person_1": "young", "person_2": "young"})
    found = measured(root)
    rows = found.groups[found.groups["defense"] == "none"]
    assert rows["group"].tolist() == ["young", "old"] and rows["identities"].tolist() == [2, 1]
    assert rows["rate"].tolist() == pytest.approx([5 / 6, 0]) and rows["n"].tolist() == [6, 3]
    assert rows["gap"].unique().tolist() == pytest.approx([5 / 6])
    assert rows["gap_most"].iloc[0] == "young" and rows["gap_least"].iloc[0] == "old"
    # One of three people alone has the fewest hits: a third of all shuffles do as much.
    assert rows["gap_p"].iloc[0] == pytest.approx(1 / 3, abs=0.02)
    assert rows["gap_p_adjusted"].iloc[0] == pytest.approx(2 * rows["gap_p"].iloc[0])  # of two targets
    assert ((rows["rate_low"] <= rows["rate"]) & (rows["rate"] <= rows["rate_high"])).all()
    own = found.people[found.people["defense"] == "none"].set_index("identity")["group"]
    assert own.to_dict() == {"person_0": "old", "person_1": "young", "person_2": "young", "person_3": ""}
    console = Console(width=120, file=io.StringIO(), color_system=None)
    made = write(root, console, full=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Groups of people" in text and "1 attacked people are in no group" in " ".join(text.split())
    assert "83.3" in text
    assert len(pd.read_csv(made / "groups.csv")) == 4


def test_one_group_is_no_comparison_and_an_old_target_has_none(root: Path) -> None:
    regroup(root, {name: "all" for name in CLASSES})
    assert measured(root).groups.empty
    for path in (root / "targets").glob("[!.]*"):
        (path / "data.json").unlink()
    assert measured(root).groups.empty and not measured(root).people["group"].any()


def test_groups_csv_goes_into_the_card_and_changes_the_run_but_no_picture(tmp_path: Path) -> None:
    tree(tmp_path, {"ann": 3, "bob": 3, "cy": 3}, 4)
    before, own = folder(tmp_path).load(), folder(tmp_path).identity()
    assert "groups" not in before.card
    (tmp_path / "groups.csv").write_text("\ufeffidentity,group\r\nann,old\r\n\r\n cy , young\r\n", encoding="utf-8")
    after = folder(tmp_path).load()
    assert after.card["groups"] == {"ann": "old", "cy": "young"}
    assert after.fingerprint() == before.fingerprint()
    named = folder(tmp_path).identity()
    assert named != own
    (tmp_path / "groups.csv").write_text("identity,group\ncy,young\nann,old\n")
    assert folder(tmp_path).identity() == named  # the order of lines says nothing
    (tmp_path / "groups.csv").unlink()
    assert folder(tmp_path).identity() == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with 'nothing'; give one line identity,group"),
        ("identity;group\nann;old\n", "begins with 'identity;group'"),
        ("identity,group\n", "names nobody"),
        ("identity,group\nann\n", r"1 line\(s\) without one identity and one group, the first is 'ann'"),
        ("identity,group\nann,\nbob,x,y\n", r"2 line\(s\) without"),
        ("identity,group\nann,a\nzoe,b\n", r"names 1 identity\(ies\) without a folder in private/, the first is 'zoe'"),
        ("identity,group\nann,a\nann,a\n", r"names 1 identity\(ies\) twice, the first is 'ann'"),
    ],
)
def test_a_bad_groups_csv_gets_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    tree(tmp_path, {"ann": 2, "bob": 2}, 4)
    (tmp_path / "groups.csv").write_text(text)
    for what in (folder(tmp_path).load, folder(tmp_path).identity):
        with pytest.raises(UserError, match=message) as caught:
            what()
        assert "\n" not in str(caught.value)


def test_a_groups_csv_that_is_no_text_is_named(tmp_path: Path) -> None:
    tree(tmp_path, {"ann": 2, "bob": 2}, 4)
    (tmp_path / "groups.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"groups\.csv cannot be read"):
        folder(tmp_path).load()
