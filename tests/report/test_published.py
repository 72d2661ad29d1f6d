"""Laws of published numbers: a row where both speak of the same, none elsewhere; and what a suite's file must say."""

# ruff: noqa: F811 (fixtures are imported)

from dataclasses import replace
from pathlib import Path

import pytest
from reported import data, noise, root, world  # noqa: F401 (fixtures)

from mibench.experiments.published import Published, published
from mibench.experiments.suites import read
from mibench.report import frames
from mibench.report.published import frame, section
from mibench.report.tables import rows
from mibench.runtime.errors import UserError

PAGE = "https://arxiv.org/abs/2409.01062"


def test_a_number_stands_beside_what_was_measured_of_the_same_and_nowhere_else(root: Path) -> None:
    results = frames(root).content.results
    gmi = next(one for one in results if one.attack == "gmi" and one.row["defense"] == "re a_e=0.4")
    column = f"closed_top1@{gmi.names[0]}"
    measured, low = gmi.row[column], gmi.row[f"closed_top1_low@{gmi.names[0]}"]
    same = Published(
        "mine", gmi.row["dataset"], gmi.row["model"], "re a_e=0.4", "closed_top1", PAGE, 100 * measured, "gmi"
    )
    others = [
        replace(same, dataset="celeba"),
        replace(same, model="resnet152"),
        replace(same, defense="re a_e=0.5"),
        replace(same, attack="brep"),
        replace(same, attack="gmi steps=7"),
        replace(same, prior="ffhq"),
        replace(same, value=None),
    ]
    prior = gmi.inversion.prior
    assert prior is not None
    assert len(frame(results, [replace(same, prior=prior.name)])) == 1
    table = frame(results, [same, *others])
    assert table["target"].tolist() == [gmi.target.id]
    row = table.iloc[0]
    assert row["measured"] == measured == pytest.approx(row["published"]) and row["within"] == "yes"
    assert row["difference"] == pytest.approx(0) and row["difference_low"] == pytest.approx(low - measured)
    far = frame(results, [replace(same, value=100.0 if measured < 0.5 else 0.0)]).iloc[0]
    assert far["within"] == "no" and far["difference"] == pytest.approx(measured - far["published"])
    text = [column.cell(rows(table)[0], 1) for column in section(table).columns]
    assert "yes" in text and "gmi" in text and PAGE in text


def test_natural_accuracy_stands_there_once_a_target_whatever_attacked_it(root: Path) -> None:
    results = frames(root).content.results
    one = results[0].row
    natural = Published("mine", one["dataset"], one["model"], "none", "natural_accuracy", PAGE, 50.0)
    table = frame(results, [natural])
    undefended = {result.target.id for result in results if result.row["defense"] == "none"}
    assert sorted(table["target"]) == sorted(undefended) and set(table["attack"]) == {""}


def test_without_any_the_report_has_no_such_table(root: Path) -> None:
    content = frames(root).content
    assert content.frames["published"].empty
    assert not [part for part in content.sections() if "published" in part.title]


SUITE = f"""
dataset = "digiface"
defenses = ["none"]
methods = ["gmi"]
[[published]]
model = "cnn"
defense = "none"
attack = "gmi"
metric = "closed_top1"
value = 12.5
source = "{PAGE}"
[[published]]
model = "cnn"
defense = "re a_e=0.4"
metric = "natural_accuracy"
source = "{PAGE}"
"""


ROWS = f"""
dataset = "celeba"
[settings.data]
split = "ppa"
[[published]]
model = "resnet18"
attack = "ppa images=8"
source = "{PAGE}"
rows = [{{defense = "none", natural_accuracy = 90, closed_top1 = nan}}, {{defense = "re a_e=0.4", closed_top1 = 7.5}}]
"""


def test_rows_are_tables_of_one_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ROWS)
    told = [(one.dataset, one.defense, one.metric, one.attack, one.value) for one in published([str(path)])]
    assert told == [
        ("celeba split=ppa", "none", "natural_accuracy", "", 90.0),
        ("celeba split=ppa", "none", "closed_top1", "ppa images=8", None),
        ("celeba split=ppa", "re a_e=0.4", "closed_top1", "ppa images=8", 7.5),
    ]
    path.write_text(ROWS.replace("images=8", "imagez=8"))
    with pytest.raises(UserError, match="did you mean 'images'"):
        published([str(path)])
    path.write_text(ROWS.replace("rows = [", "rows = [3, "))
    with pytest.raises(UserError, match="rows of published numbers are tables"):
        published([str(path)])


def test_a_suite_states_them_and_runs_as_before(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    first, second = published([str(path)])
    assert (first.dataset, first.value, second.value, second.attack) == ("digiface", 12.5, None, "")
    assert len(read(str(path))) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value = 12.5", "value = 112.5", "a percentage in \\[0, 100\\], got 112.5"),
        ("value = 12.5", 'value = "12"', "value is a number, got '12'"),
        ('metric = "closed_top1"', 'metric = "fid"', "fid is no rate"),
        ('metric = "closed_top1"', 'metric = "closd_top1"', "did you mean 'closed_top1'"),
        (f'source = "{PAGE}"', 'source = "table 3"', "is a page \\(https://...\\), got 'table 3'"),
        ('model = "cnn"', "model = 3", "needs model, a text"),
        ("value = 12.5", "valeu = 12.5", "did you mean 'value'"),
    ],
)
def test_what_is_no_published_number_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        published([str(path)])


def test_every_shipped_number_is_sound() -> None:
    shipped = published()
    assert len({replace(one, value=None) for one in shipped}) == len(shipped)
