"""The report: numbers as scored, protocols apart, damage named, pictures true."""

# ruff: noqa: F811 (fixtures are imported)

import ast
import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from reported import CLASSES, HITS, IMAGES, RE, bits, data, noise, root, score, target, world  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.core import Dataset
from mibench.plugins import registry
from mibench.report import captions, files, frame, grids, load, naming, rows, show, tables, terminal, write
from mibench.report.content import Content
from mibench.report.differences import COLUMNS, differences, notes
from mibench.report.format import probability
from mibench.report.result import Result
from mibench.runs import find
from mibench.runtime.errors import UserError
from mibench.stages import artifacts
from mibench.stats.intervals import paired_interval
from mibench.stats.pairing import Hits
from mibench.stats.significance import adjusted, least_p, paired_test


def rows_of(root: Path, errors: list[str] | None = None) -> pd.DataFrame:
    return frame.scores(load.results(root, errors))


def drawn(found: list[Result], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal.render(Content(found), console))
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- collect --------------------------------------------------------------------------------------------------------


def test_every_number_is_the_scored_one(root: Path) -> None:
    table = rows_of(root)
    made = table[table["score"].notna()]
    assert len(made) == len(HITS)
    for _, row in made.iterrows():
        run = find(root, row["score"])
        scores = run.read("scores.json")
        for name in ("resnet", "ir"):
            for key in (*rows.RATES, "tpir", "own_ball", "closeness"):
                wanted = scores["evaluators"][name][key]
                assert row[f"{key}@{name}"] == wanted["value"]
                assert row[f"{key}_low@{name}"] == wanted["low"] and row[f"{key}_high@{name}"] == wanted["high"]
            assert row[f"fid@{name}"] == scores["evaluators"][name]["fid"]
        assert [row[f"likeness{end}"] for end in ("", "_low", "_high")] == [
            scores["likeness"][key] for key in ("value", "low", "high")
        ]
        assert row["natural_accuracy"] == scores["natural_accuracy"]["value"]
        assert (row["n"], row["identities"], row["seconds"], row["shared_queries"]) == (12, 4, 12.25, 1000)


def test_order_labels_and_reference_rows(root: Path) -> None:
    table = rows_of(root)
    assert list(zip(table["target_label"], table["attack_label"], strict=True)) == [
        ("", "chance"),
        ("none", "prior_search"),
        ("none", "gmi"),
        ("none", "ppa"),
        ("re a_e=0.4", "gmi"),
        ("re a_e=0.4", "ppa"),
        ("re a_e=0.8", "gmi"),
        ("re a_e=0.8", "ppa"),
        ("", "real held-out"),
    ]
    assert table["role"].tolist() == ["floor", "floor", *["attack"] * 6, "ceiling"]
    assert table["open_top1@resnet"].iloc[0] == 1 / 7 and table["closed_top1@ir"].iloc[0] == 0.25
    assert table["open_top1@resnet"].iloc[-1] == 1.0 and table["likeness"].iloc[-1] == 11 / 12
    assert math.isnan(table["likeness"].iloc[0])


def test_defenses_stack_and_show_only_what_is_not_default() -> None:
    other = {"name": "unheard_of", "settings": {"strength": 2.0}}
    spec = {"defenses": [{"name": "re", "settings": RE | {"ratio": [0.5, 2.0]}}, other]}
    assert naming.defense_label(spec) == "re a_e=0.4 ratio=0.5,2 + unheard_of strength=2"
    assert naming.defense_label({"defenses": []}) == "none"


def test_equal_names_are_told_apart(root: Path, data: Dataset) -> None:
    judges = [find(root, run.name) for run in sorted((root / "evaluators").glob("[!.]*"))][::-1]
    again = target(root, [], data, seed=5)
    score(root, "gmi", again, judges, bits("100000000000"), data)
    score(root, "gmi", again, judges, bits("110000000000"), data, seed=3)
    quick = registry.presets("attacks", "gmi")["quick"]
    score(root, "gmi", again, judges, bits("111000000000"), data, settings=quick)
    table = rows_of(root)
    assert table["protocol"].nunique() == 1
    own = table[table["target"] == again.id]
    assert set(own["target_label"]) == {"none seed 5"}
    assert sorted(own["attack_label"]) == ["gmi paper seed 0", "gmi paper seed 3", "gmi quick"]
    assert not table.duplicated(["protocol", "target_label", "attack_label"]).any()


def test_damaged_runs_are_named_and_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((root / "scores").glob("[!.]*"))
    torn, lost, edited, orphan, older = paths[:5]
    (torn / "scores.json").write_text('{"n": 12, "iden')
    (lost / "per_image.csv").unlink()
    text = (edited / "scores.json").read_text()
    (edited / "scores.json").write_text(text.replace('"identities": 4', '"identities": 5'))
    card = json.loads((orphan / "run.json").read_text())
    (orphan / "run.json").write_text(json.dumps(card | {"parents": card["parents"] | {"inversion": "deadbeef"}}))
    card = json.loads((older / "run.json").read_text())
    (older / "run.json").write_text(json.dumps(card | {"protocol": 0}))
    (root / "scores" / ".ppa-00000000.partial").mkdir()
    warnings: list[str] = []
    table = rows_of(root, warnings)
    assert table["score"].notna().sum() == len(HITS) - 5
    assert len(warnings) == 5
    for path, line in zip((torn, lost, edited, orphan, older), warnings, strict=True):
        assert str(path) in line and "\n" not in line
    write(root, Console(file=io.StringIO(), width=120))
    assert capsys.readouterr().err.splitlines() == warnings
    assert json.loads((root / "report" / "tables.json").read_text())["warnings"] == warnings
    assert len((root / "report" / "tables.md").read_text().split("## Left out")[1].strip().splitlines()) == 5


def test_two_protocols_never_share_a_table(root: Path, data: Dataset) -> None:
    judges = [
        find(root, f"digiface-{name}-" + run.name.rpartition("-")[2])
        for name in ("resnet", "ir")
        for run in (root / "evaluators").glob(f"digiface-{name}-*")
    ]
    victim = find(root, next((root / "targets").glob("*-none-*")).name)
    score(root, "ppa", victim, judges, bits("110"), data, identities=1)  # fewer people
    score(root, "ppa", victim, judges[::-1], bits("111111111111"), data)  # another headline
    table = rows_of(root)
    assert table["protocol"].nunique() == 3
    assert [len(group) for group in tables.protocols(table)].count(3) == 2  # chance, one score, ceiling
    text = drawn(load.results(root), 120)
    assert sum(line.strip().startswith("real held-out") and "=" not in line for line in text.splitlines()) == 3
    for group in tables.protocols(table):
        assert group["identities"].nunique() == group["evaluators"].nunique() == group["fingerprint"].nunique() == 1
    markdown = files.to_markdown(Content(load.results(root)).sections())
    assert markdown.count("| chance |") == 3 and markdown.count("## digiface: ") == 3
    assert "1 of 4 identities" in markdown
    # None of the three has a twin under another protocol.
    assert set(differences(load.results(root), table).differences["identities"]) == {4}


# --- tables ---------------------------------------------------------------------------------------------------------


def test_floors_take_no_part_in_best_and_worst(root: Path) -> None:
    group = next(tables.protocols(rows_of(root)))
    found = {(group["target_label"][i], group["attack_label"][i]): mark for i, mark in tables.marks(group).items()}
    assert group["likeness"][1] == 1.0  # the floor is above every attack
    assert found == {
        ("none", "ppa"): tables.BEST,
        ("none", "gmi"): tables.WORST,
        ("re a_e=0.4", "ppa"): tables.BEST,
        ("re a_e=0.4", "gmi"): tables.WORST,
    }


def test_floors_are_dim_and_attacks_are_not(root: Path) -> None:
    found = load.results(root)
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(terminal.render(Content(found), console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    floor = next(line for line in lines if "prior_search" in line and "100 [" in line)
    attack = next(line for line in lines if "gmi" in line and "50.0 [" in line)
    assert "\x1b[2m" in floor and "\x1b[2m" not in attack


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_and_drops_columns_in_order(root: Path, width: int) -> None:
    found = load.results(root)
    text = drawn(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "91.7 [" in text  # the headline and its interval stay
    assert ("sec." in text.split("Rates are")[0]) == (width >= 200)
    assert "lpips: no weights" in text and "'unavailable'" in text


def test_paired_difference_in_closed_form(root: Path) -> None:
    found = load.results(root)
    compared = differences(found, frame.scores(found)).differences
    row = compared[(compared["defense"] == "re a_e=0.4") & (compared["attack"] == "gmi")].iloc[0]
    a, b = bits(HITS[0.4, "gmi"]), bits(HITS[None, "gmi"])
    assert row["difference"] == pytest.approx((2 - 6) / 12)
    wanted = paired_interval(torch.tensor(a).bool(), torch.tensor(b).bool(), torch.arange(4).repeat_interleave(3))
    assert (row["difference_low"], row["difference_high"]) == (wanted.low, wanted.high)
    assert row["verdict"] == "no clear difference" and wanted.high > 0
    total = compared[(compared["defense"] == "re a_e=0.8") & (compared["attack"] == "ppa")].iloc[0]
    assert total["difference"] == pytest.approx(-11 / 12) and total["p"] == 2 / 2**4
    assert total["verdict"] == "no clear difference"  # four people cannot show more
    assert total["natural_accuracy_difference"] == pytest.approx(-1 / 8)
    assert compared[compared["judged_by"]]["attack"].tolist()[0] == "ppa"


def crowd(found: list[Result], copies: int = 6) -> list[Result]:
    """The same hits of so many times as many people."""
    for one in found:
        people = torch.cat([one.hits.people + 4 * place for place in range(copies)])
        vars(one)["verdicts"] = {name: Hits(people, own.hits.repeat(copies)) for name, own in one.verdicts.items()}
        vars(one).pop("hits", None)
    return found


def test_the_verdict_follows_the_p_value_corrected_over_the_rows(root: Path) -> None:
    found = crowd(load.results(root))
    compared = differences(found, frame.scores(found)).differences
    assert compared["p_adjusted"].tolist() == adjusted(torch.tensor(compared["p"].to_numpy())).tolist()
    assert (compared["p_adjusted"] > compared["p"]).any() and (compared["verdict"] == "lower").sum() >= 3
    for _, row in compared.iterrows():
        clear = "lower" if row["difference"] < 0 else "higher"
        assert row["verdict"] == (clear if row["p_adjusted"] < 0.05 else "no clear difference")
    row = compared[(compared["defense"] == "re a_e=0.4") & (compared["attack"] == "gmi")].iloc[0]
    a, b = (torch.tensor(bits(HITS[area, "gmi"]) * 6).bool() for area in (0.4, None))
    assert row["p"] == paired_test(a, b, torch.arange(24).repeat_interleave(3)).p


def test_few_identities_are_told_that_nothing_can_be_clear(root: Path) -> None:
    found = load.results(root)
    table = frame.scores(found)
    compared = differences(found, table).differences
    said = notes(compared)
    assert len(compared) == 5 and least_p(4, 5) == 0.625
    assert "With 4 identities and 5 comparisons no p can be below .625" in said[2]
    many = crowd(found)
    assert not any("no p can be" in line for line in notes(differences(many, table).differences))


def test_power_tells_of_the_smallest_and_the_largest_claim(root: Path) -> None:
    found = crowd(load.results(root))
    compared = differences(found, frame.scores(found)).differences
    claimed = compared[compared["verdict"] == "lower"].sort_values("difference")
    note = notes(compared)[-1]
    for end, word in ((claimed.iloc[0], "largest"), (claimed.iloc[-1], "smallest")):
        sign = f"{100 * end['difference']:+.1f} points) takes {end['identities_needed']:.0f} identities"
        assert f"the {word} clear difference (" in note and sign in note
    assert any("These trained networks" in line for line in notes(compared)) and (compared["seeds"] == 1).all()
    means = [torch.tensor(bits(HITS[area, "gmi"])).double().view(4, 3).mean(1).repeat(6) for area in (0.4, None)]
    row = compared[(compared["defense"] == "re a_e=0.4") & (compared["attack"] == "gmi")].iloc[0]
    sd = float((means[0] - means[1]).std())
    assert row["detectable"] == pytest.approx(2.80158 * sd / 24**0.5, rel=1e-4)
    assert row["identities_needed"] == max(6, math.ceil((2.80158 * sd / row["difference"]) ** 2))


def test_seeds_are_counted_where_there_are_several(root: Path, data: Dataset) -> None:
    judges = [find(root, next((root / "evaluators").glob(f"digiface-{name}-*")).name) for name in ("resnet", "ir")]
    for victim, hits in (
        (target(root, [], data, seed=5), "111111100111"),
        (target(root, [{"name": "re", "settings": RE}], data, seed=5), "010000000100"),
    ):
        score(root, "ppa", victim, judges, bits(hits), data)
    found = load.results(root)
    compared = differences(found, frame.scores(found)).differences
    own = compared[compared["defense"].str.startswith("re a_e=0.4") & (compared["attack"] == "ppa")]
    assert own["seeds"].tolist() == [2, 2] and own["seeds_needed"].nunique() == 1
    others = compared.drop(own.index)
    assert (others["seeds"] == 1).all() and others["seeds_needed"].isna().all()


def test_the_adjusted_p_is_shown_where_there_is_room(root: Path) -> None:
    assert [probability(p) for p in (0.0001, 0.0123, 0.5, 0.9999, 1.0, math.nan)] == [
        "<.001",
        ".012",
        ".500",
        "1",
        "1",
        "",
    ]
    first = min((column for column in COLUMNS if column.drop), key=lambda column: column.drop)
    assert first.header == "Holm p"


def test_pairs_follow_label_and_order_not_rows(root: Path) -> None:
    found = load.results(root)
    table = frame.scores(found)
    plain = differences(found, table).differences
    for one in found:
        if one.target.spec["defenses"]:  # people in another order, each one's images in theirs
            path = one.run.path / "per_image.csv"
            head, *lines = path.read_text().splitlines()
            path.write_text(
                "\n".join([head, *(lines[place + 3 * person] for place in range(3) for person in (2, 0, 3, 1)), ""])
            )
            vars(one).pop("verdicts", None), vars(one).pop("hits", None)
    pd.testing.assert_frame_equal(plain, differences(found, table).differences)


def test_strongest_against_strongest_when_they_differ(root: Path, data: Dataset) -> None:
    judges = [find(root, next((root / "evaluators").glob(f"digiface-{name}-*")).name) for name in ("resnet", "ir")]
    victim = target(root, [{"name": "re", "settings": RE | {"a_e": 0.6}}], data)
    score(root, "gmi", victim, judges, bits("110000000000"), data)
    score(root, "ppa", victim, judges, bits("100000000000"), data)
    found = load.results(root)
    compared = differences(found, frame.scores(found)).differences
    last = compared[(compared["defense"] == "re a_e=0.6") & (compared["attack"] == "strongest")].iloc[0]
    assert (last["attack_with"], last["attack_without"]) == ("gmi", "ppa")
    assert last["difference"] == pytest.approx(2 / 12 - 11 / 12) and last["judged_by"]


# --- exports --------------------------------------------------------------------------------------------------------


def test_exports_hold_the_same_numbers(root: Path) -> None:
    folder = write(root, Console(file=io.StringIO(), width=120))
    assert folder == root / "report"
    loose = pd.read_csv(folder / "tables.csv", keep_default_na=False, na_values=[""])
    plain = json.loads((folder / "tables.json").read_text())["rows"]
    markdown, latex = (folder / "tables.md").read_text(), (folder / "tables.tex").read_text()
    assert len(loose) == len(plain) == len(HITS) + 2
    for line, record in zip(loose.to_dict("records"), plain, strict=True):
        if record["score"] is None:
            continue
        wanted = find(root, record["score"]).read("scores.json")["likeness"]
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert record[f"likeness{end}"] == wanted[key] == line[f"likeness{end}"]
        value = f"{100 * wanted['value']:.1f}".replace("100.0", "100")
        value = "0" if value == "0.0" else value
        text = f"{value} [{100 * wanted['low']:.1f},{100 * wanted['high']:.1f}]"
        assert text in markdown and text in latex
    assert not list(folder.glob(".*.tmp"))


def test_json_has_no_nan(root: Path) -> None:
    folder = write(root, Console(file=io.StringIO(), width=120))

    def refuse(text: str) -> float:
        raise AssertionError(text)

    whole = json.loads((folder / "tables.json").read_text(), parse_constant=refuse)
    assert whole["rows"][0]["natural_accuracy"] is None
    made = files.records(pd.DataFrame({"a": [math.nan, 1.0], "b": [math.inf, 2.0], "c": ["x", None]}))
    assert made == [{"a": None, "b": None, "c": "x"}, {"a": 1.0, "b": 2.0, "c": None}]


def test_latex_is_escaped_and_whole(root: Path) -> None:
    assert files._latex("a_b 5% R&D #1 $x {y} ~ ^ \\") == (
        r"a\_b 5\% R\&D \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    text = (write(root, Console(file=io.StringIO(), width=120)) / "tables.tex").read_text()
    assert text.isascii()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert "re a\\_e=0.8" in body
    for sign in "_%#":
        assert body.count(sign) == body.count(f"\\{sign}")
    for part in text.split(r"\begin{tabular}{")[1:]:
        spec, _, rest = part.partition("}")
        rows = [line for line in rest.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") for line in rows} == {len(spec) - 1}


def test_same_runs_give_the_same_bytes(root: Path) -> None:
    folder = write(root, Console(file=io.StringIO(), width=120))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write(root, Console(file=io.StringIO(), width=80))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_markdown_says_how_to_get_what_is_missing(root: Path) -> None:
    text = (write(root, Console(file=io.StringIO(), width=120)) / "tables.md").read_text()
    assert "Not measured: lpips: no weights; fetch them" in text
    heads = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in heads} == {18, 13, 9, 8, 7, 6}


def test_a_row_that_is_not_the_whole_method_is_named(root: Path) -> None:
    group = next(tables.protocols(rows_of(root))).copy()
    assert not any("whole method" in line for line in captions.caption(group))
    group.loc[group["attack"] == "gmi", ["attack", "preset"]] = ["diff_mi", "quick"]
    told = [line for line in captions.caption(group) if "whole method" in line]
    assert len(told) == 1 and told[0].startswith("diff_mi quick is not the whole method: its diffusion model")


def test_nothing_to_report_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mibench demo"):
        write(tmp_path, Console(file=io.StringIO()))


# --- pictures -------------------------------------------------------------------------------------------------------


def test_grid_holds_the_real_pixels(root: Path, data: Dataset) -> None:
    folder = write(root, Console(file=io.StringIO(), width=120))
    (path,) = folder.glob("grid-*.png")
    with Image.open(path) as picture:
        wide, high = picture.size
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    sheet = pixels.view(high, wide, 3).permute(2, 0, 1)
    factor = round(grids.TILE / 8)
    side = 8 * factor
    assert high > 4 * side and wide > 8 * side
    inversion = find(root, rows_of(root)["inversion"].iloc[2])  # gmi, undefended: the first strip
    images, _ = artifacts.read_tensors(inversion.path / "images.safetensors", "reconstructions")
    top = grids.MARGIN + 40 + 2 * grids.LINE + 10
    step = side + 2 * grids.LINE + 20
    third = grids.MARGIN + 2 * side + grids.GAP + grids.GROUP
    for person in range(4):
        y = top + person * step
        private = data.train.images[2 * person].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert torch.equal(sheet[:, y : y + side, grids.MARGIN : grids.MARGIN + side], private)
        first = images["images"][person * IMAGES].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert torch.equal(sheet[:, y : y + side, third : third + side], first)
    assert (sheet[:, : grids.MARGIN // 2] == 255).all()


def test_a_report_to_hand_on_holds_no_private_image(root: Path, data: Dataset) -> None:
    folder = write(root, Console(file=io.StringIO(), width=120), private_images=False)
    (path,) = folder.glob("grid-*.png")
    with Image.open(path) as picture:
        wide, high = picture.size
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    sheet = pixels.view(high, wide, 3).permute(2, 0, 1)
    side = 8 * round(grids.TILE / 8)
    top, step = grids.MARGIN + 40 + 2 * grids.LINE + 10, side + 2 * grids.LINE + 20
    for left in (grids.MARGIN, grids.MARGIN + side + grids.GAP):
        for person in range(4):
            square = sheet[:, top + person * step : top + person * step + side, left : left + side]
            assert (square == grids.WITHHELD).all()
    third = grids.MARGIN + 2 * side + grids.GAP + grids.GROUP
    assert len(sheet[:, top : top + side, third : third + side].unique()) > 50  # the reconstructions are there


@pytest.mark.parametrize("shown", [True, False])
def test_a_report_to_hand_on_names_nobody(root: Path, data: Dataset, shown: bool) -> None:
    console = Console(file=io.StringIO(), width=200)
    folder = write(root, console, private_images=shown, full=True)
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".png"}
    texts["terminal"] = console.file.getvalue()  # type: ignore[attr-defined]
    named = {name for name, text in texts.items() if any(word in text.replace("\\", "") for word in CLASSES)}
    wanted = {"terminal", "index.html", "leakage.csv", "tables.md", "tables.tex", "tables.json"} if shown else set()
    assert named == wanted and ("identity 3" in texts["leakage.csv"]) is not shown


def test_the_nearest_heldout_image_is_of_the_same_person(root: Path, data: Dataset) -> None:
    one = load.results(root)[0]
    features, _ = artifacts.read_tensors(one.evaluators[0].path / "features.safetensors", "private features")
    private, heldout = grids.real(one, data, [0, 3])
    for place, label in enumerate((0, 3)):
        here = features["train_features"][2 * label]
        pair = features["heldout_features"][2 * label : 2 * label + 2]
        wanted = 2 * label + int((pair - here).square().sum(1).argmin())
        assert torch.equal(heldout[place], data.heldout.images[wanted])
        assert torch.equal(private[place], data.train.images[2 * label])


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"likeness": 1, "open_top1@e": 1, "closed_top1@e": 1}, "person_2"),
        ({"likeness": 0, "open_top1@e": 1, "closed_top1@e": 1}, "not alike"),
        ({"open_top1@e": 0, "closed_top1@e": 1}, "someone else"),
        ({"open_top1@e": 0, "closed_top1@e": 0}, "other"),
        ({"open_top1@e": 0, "closed_top1@e": 0, "answer@e": 1}, "person_1"),
        ({"open_top1@e": 0, "closed_top1@e": 0, "answer@e": 6}, "someone else"),
    ],
)
def test_the_verdict_names_whom_the_judge_saw(given: dict[str, int], answer: str) -> None:
    row = pd.Series(
        {"identity": "person_2", "label": 2, "likeness": 0, "target_top1": 1, "target_confidence": 0.5} | given
    )
    found = grids.verdict(row, "e", CLASSES)
    assert found.answer == answer and found.evaluator == bool(given.get("likeness"))


def test_a_missing_data_set_costs_the_picture_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(inputs: object) -> Dataset:
        raise UserError("the folder is gone")

    monkeypatch.setattr(artifacts, "open_dataset", gone)
    folder = write(root, Console(file=io.StringIO(), width=120))
    assert not list(folder.glob("grid*.png")) and (folder / "tables.csv").is_file()
    assert "the folder is gone" in (folder / "tables.md").read_text()


# --- show -----------------------------------------------------------------------------------------------------------


def test_show_walks_from_a_score_to_the_data(root: Path) -> None:
    run = find(root, rows_of(root)["score"].iloc[-2])
    console = Console(width=400, file=io.StringIO(), color_system=None)
    console.print(show.chain(run))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    places = [text.index(word) for word in (run.id, run.parents["inversion"].id, "target digiface", "synthetic people")]  # type: ignore[union-attr]
    assert places == sorted(places)
    assert "defense re a_e=0.8" in text and "scores.json" in text and "12.25 s" in text
    assert str(run.path) in text
    for parent in run.parents["evaluators"]:  # type: ignore[union-attr]
        assert parent.id in text


@pytest.mark.parametrize("path", sorted(Path(grids.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_nothing_heavy_is_imported_before_it_is_needed(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not {name.split(".")[0] for name in found} & {"matplotlib", "PIL"}
        if path.name == "__init__.py":  # the command line imports the package for its name alone
            assert not {name.split(".")[0] for name in found} & {"pandas", "rich", "torch"}
