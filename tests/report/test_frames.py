"""Frames that a Python user gets, and the dictionary that explains them."""

# ruff: noqa: F811 (fixtures are imported)

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from reported import HITS, IMAGES, bits, data, noise, root, world  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.metrics import metric
from mibench.report import dictionary, frames, write
from mibench.runs import find
from mibench.runtime.errors import UserError


def test_one_row_a_score_one_a_number_and_one_an_image(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = frames(root)
    scored = made.scores[made.scores["score"].notna()]
    assert len(scored) == len(HITS) and made.errors == []
    long = made.metrics
    for _, row in scored.iterrows():
        own = find(root, row["score"]).read("scores.json")["evaluators"]["ir"]["knn_train"]
        (line,) = long.query("score == @row.score and metric == 'knn_train' and evaluator == 'ir'").to_dict("records")
        assert (line["value"], line["low"], line["high"]) == (own["value"], own["low"], own["high"])
    assert not long.duplicated(["protocol", "score", "role", "attack_label", "metric", "evaluator"]).any()
    assert long["value"].notna().all()
    images = made.reconstructions
    assert len(images) == sum(len(hits) for hits in HITS.values()) and images["order"].max() == IMAGES - 1
    gmi = images.query("defense == 're a_e=0.4' and attack == 'gmi'")["likeness"]
    assert gmi.tolist() == bits(HITS[0.4, "gmi"])
    assert len(made.differences) and len(made.tradeoff) == 3
    assert "7 scores of 84 reconstructions" in repr(made)
    assert capsys.readouterr() == ("", "")  # a library does not talk


def test_a_damaged_run_stands_beside_the_data(root: Path) -> None:
    path = next((root / "scores").glob("gmi-*"))
    (path / "scores.json").write_text("{")
    made = frames(str(root))
    assert len(made.errors) == 1 and str(path) in made.errors[0] and "1 runs left out" in repr(made)
    assert made.scores["score"].notna().sum() == len(HITS) - 1
    with pytest.raises(UserError, match="is no folder; give the results folder"):
        frames(root / "nowhere")
    empty = frames(path)
    assert empty.scores.empty and empty.metrics.empty and empty.reconstructions.empty


def test_every_column_of_every_file_is_described(root: Path) -> None:
    made = frames(root).content
    described = dictionary.describe(made.frames)
    assert list(described) == ["file", "column", "unit", "direction", "meaning", "source"]
    for name, frame in made.frames.items():
        assert described[described["file"] == f"{name}.csv"]["column"].tolist() == list(frame)
    assert (described["meaning"].str.len() > 5).all() and (described["unit"] != "").all()
    known = described.set_index(["file", "column"])
    own = metric("open_top1")
    assert known.loc[("tables.csv", "open_top1@ir"), "direction"] == own.direction.words
    assert known.loc[("tables.csv", "open_top1_low@ir"), "meaning"].startswith("lower bound of the 95% interval")
    assert own.unit.words in known.loc[("tables.csv", "open_top1@ir"), "unit"]
    with pytest.raises(UserError, match="unknown column 'clever'"):
        dictionary.describe({"tables": pd.DataFrame({"clever": [1]})})


def test_the_dictionary_lies_beside_the_files(root: Path) -> None:
    folder = write(root, Console(file=StringIO(), width=120))
    told = pd.read_csv(folder / "dictionary.csv")
    for path in folder.glob("*.csv"):
        if path.name != "dictionary.csv":
            assert told[told["file"] == path.name]["column"].tolist() == list(pd.read_csv(path))
    assert {"rows", "differences", "tradeoff", "curves"} <= set(json.loads((folder / "tables.json").read_text()))
