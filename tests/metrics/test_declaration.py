"""Declarations: every metric once, read without importing; how units show; a data dictionary of every column."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from mibench import metrics
from mibench.metrics import Direction, Field, Need, Per, Unit, glossary
from mibench.plugins import registry
from mibench.runtime.errors import UserError
from mibench.testing.laws import report
from mibench.testing.metrics import LAWS, MetricTrial


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_it_keeps_the_contract(name: str) -> None:
    """The laws that other packages' metrics are held to: `mibench.testing.metrics`."""
    report(MetricTrial(name), LAWS)


def test_nothing_heavy_is_imported_to_know_the_metrics() -> None:
    code = "import sys; from mibench import metrics; assert metrics.declared(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_are_taken_apart_and_put_together_again() -> None:
    for column in ("fid", "fid@resnet", "open_top1_low@ir", "both_high@resnet+ir", "heldout_accuracy_open_low@ir"):
        found = metrics.parse(column)
        assert found is not None and found.metric.column(found.at, found.bound) == column
    opened = metrics.parse("heldout_accuracy_open@ir")
    assert opened is not None and opened.metric.name == "heldout_accuracy_open"
    assert metrics.parse("fid_low") is None and metrics.parse("open") is None  # fid has no interval


def test_a_name_that_nobody_declares_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown metric 'open_top2'; did you mean 'open_top"):
        metrics.metric("open_top2")
    with pytest.raises(UserError, match="unknown column 'clever'"):
        metrics.dictionary(["clever"])


def test_a_name_declared_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(glossary.__file__).parent / "fid.py"
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(glossary, "__file__", str(tmp_path / "glossary.py"))
    with pytest.raises(ValueError, match="the metric fid is declared in one and in two"):
        glossary.declared.__wrapped__()
    (tmp_path / "two.py").write_text("x = 1\nMETRICS = (Metric('a', range(2)),)\n", encoding="utf-8")
    with pytest.raises(ValueError, match="literal arguments"):
        glossary.declared.__wrapped__()


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        (Unit.SHARE, 0.825, "82.5"),
        (Unit.SHARE, 1, "100"),
        (Unit.SHARE, 0.0, "0"),
        (Unit.POINTS, -0.071, "-7.1"),
        (Unit.SQUARED_L2, 206.89, "207"),
        (Unit.DISTANCE, 0.022426, "0.0224"),
        (Unit.RATIO, 1.0133, "1.01"),
        (Unit.COUNT, 12_600, "12,600"),
        (Unit.SECONDS, 14.58, "14.6"),
        (Unit.NUMBER, 0, "0"),
        (Unit.SHARE, None, ""),
        (Unit.RATIO, math.nan, ""),
    ],
)
def test_a_unit_shows_its_values(unit: Unit, value: float | None, shown: str) -> None:
    assert unit.show(value) == shown


def test_a_unit_shows_intervals() -> None:
    assert Unit.SHARE.interval(0.82, 0.741, 0.882, 0) == "82.0 [74,88]"
    assert Unit.POINTS.interval(0.05, -0.052, 0.147) == "+5.0 [-5.2,+14.7]"
    assert Unit.RATIO.interval(1.05, 0.95, 1.21) == "1.05 [0.950,1.21]"
    assert Unit.SHARE.interval(0.82, None, None) == "82.0"
    assert Unit.COUNT.show(12_600, 0) == "12.6k" and Unit.COUNT.show(3_400_000) == "3,400,000"


def test_a_direction_turns_values_so_that_more_leaks_more() -> None:
    assert [one.factor for one in (Direction.HIGHER, Direction.LOWER, Direction.NEITHER)] == [1, -1, 0]


def test_the_dictionary_says_what_a_column_is() -> None:
    fields = [
        Field("card.split.*", Unit.TEXT, "what was attacked", "the protocol card"),
        Field("n", Unit.COUNT, "a", "b"),
    ]
    names = ["knn_train@ir", "knn_train_low@ir", "evaluators.ir.knn_train.n", "card.split.dataset", "n"]
    rate, low, counted, split, own = metrics.dictionary(names, fields)
    assert rate.name == "knn_train@ir" and rate.direction == "lower leaks more" and rate.unit.startswith("squared L2")
    assert rate.meaning.endswith(", by ir") and "https://arxiv.org/abs/2304.01669" in rate.source
    assert low.meaning == f"lower bound of the 95% interval, clustered by identity: {rate.meaning}"
    assert counted.unit == "count" and counted.direction == ""
    assert split.meaning == "what was attacked" and own.source == "b"


def test_the_listing_has_the_words_of_each_declaration() -> None:
    found = metrics.listing()
    assert list(found) == list(metrics.declared())
    assert found["facenet"]["needs"] == [Need.WEIGHTS.words, Need.TRAIN.words]
    assert found["fid"]["per"] == Per.SET.words and found["fid"]["range"] == "[0, inf)"
