"""The page: one file that says what the report says, loads nothing, shows no more than it may, and stays small."""

# ruff: noqa: F811 (fixtures are imported)
import base64
import dataclasses
import hashlib
import io
import json
import re
import shlex
import time
from functools import cached_property
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from reported import HITS, IMAGES, bits, data, finish, judge, noise, root, score, target, world  # noqa: F401 (fixtures)
from rich.console import Console

from mibench.core import Dataset
from mibench.metrics import Unit
from mibench.report import files, grids, load, page, tables, write
from mibench.report.content import Content
from mibench.report.page import document, pictures, provenance, svg, views
from mibench.report.result import Result
from mibench.report.verdict import verdict
from mibench.runs import Run, find
from mibench.stages import artifacts

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Parsed(HTMLParser):
    """Every element with its attributes and own text, in order; raises where a tag is left open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str], tuple[int, ...]]] = []
        self.stack: list[int] = []
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {[self.elements[place][0] for place in self.stack]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}, [], tuple(self.stack)))
        if tag not in VOID:
            self.stack.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.stack.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.elements[self.stack[-1]][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[int]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            place
            for place, (own, known, _, _) in enumerate(self.elements)
            if own == tag and all(known.get(name) == value for name, value in wanted.items())
        ]

    def within(self, owner: int, tag: str) -> list[int]:
        return [place for place, one in enumerate(self.elements) if one[0] == tag and owner in one[3]]

    def text(self, place: int) -> str:
        inside = [one[2] for at, one in enumerate(self.elements) if at == place or place in one[3]]
        return re.sub(r"\s+", " ", "".join("".join(own) for own in inside)).strip()

    @cached_property
    def ids(self) -> list[str]:
        return [known["id"] for _, known, _, _ in self.elements if "id" in known]


def rendered(root: Path, names: bool = True, errors: list[str] | None = None) -> str:
    errors = [] if errors is None else errors
    return page.render(Content(load.results(root, errors), names), errors)


def embedded(text: str) -> list[Image.Image]:
    """Every image of the page, decoded: those in attributes, and the sheets."""
    sources = re.findall(r"data:image/(?:png|jpeg|webp|gif);base64,([A-Za-z0-9+/=]+)", text)
    sources += re.findall(r'<script type="text/plain" id="sheet-\d+">([^<]*)</script>', text)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in sources]


def gallery_of(text: str) -> dict:
    return json.loads(Parsed(text).elements[Parsed(text).all("script", id="gallery-data")[0]][2][0])


@pytest.fixture(scope="module")
def text(world: Path, noise: Dataset) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "open_dataset", lambda inputs: noise)
        return rendered(world)


# --- structure ------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_can_be_walked_through(text: str) -> None:
    parsed = Parsed(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    for tag in ("main", "header", "footer", "nav", "h1"):
        assert len(parsed.all(tag)) == 1, tag
    for _, known, _, _ in parsed.elements:
        if known.get("href", "").startswith("#"):
            assert known["href"][1:] in parsed.ids, known["href"]
        for name in ("aria-labelledby", "for"):
            assert name not in known or known[name] in parsed.ids
    for place in parsed.all("table"):
        assert parsed.within(place, "caption"), "a table without a caption"
        heads = parsed.within(place, "th")
        assert heads and all(parsed.elements[head][1].get("scope") for head in heads)
    for place in parsed.all("img"):
        assert parsed.elements[place][1]["alt"]
    for place in parsed.all("svg"):
        assert parsed.elements[place][1]["role"] == "img" and parsed.within(place, "title")
    levels = [int(tag[1]) for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_nothing_is_loaded_and_only_our_script_may_run(text: str) -> None:
    parsed = Parsed(text)
    for tag, known, _, _ in parsed.elements:
        for name, value in known.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:40]}>"
        assert "style" not in known, f"<{tag}> has a style that the policy would refuse"
    (policy,) = [parsed.elements[place][1] for place in parsed.all("meta") if "http-equiv" in parsed.elements[place][1]]
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:"
    assert "unsafe" not in policy["content"] and "http" not in policy["content"].lower()
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        ours = [place for place in parsed.all(tag) if "type" not in parsed.elements[place][1]]
        assert len(ours) == 1
        body = "".join(parsed.elements[ours[0]][2])
        assert document.allowed(body) == rules[rule], "the policy refuses our own text"
        assert "http" not in body and "url(" not in body.replace('url("${url}")', "") and "@import" not in body


# --- numbers --------------------------------------------------------------------------------------------------------


def test_every_number_of_every_table_is_the_reports(text: str, world: Path, data: Dataset) -> None:
    content, parsed = Content(load.results(world)), Parsed(text)
    sections = [*content.sections(), *content.people()]
    for place, section in enumerate(sections):
        (table,) = parsed.all("table", id=f"table-{place + 1}")
        rows = [[parsed.text(cell) for cell in parsed.within(row, "td")] for row in parsed.within(table, "tr")][1:]
        printed = files._cells(section.rows, section.columns, lambda cell, most: cell)
        assert len(rows) == len(printed) == len(section.rows)
        for line, cells, wanted in zip(tables.rows(section.rows), rows, printed, strict=True):
            assert cells == [" ".join(column.cell(line, 1).split()) for column in section.columns]
            # tables.md says the same, but for what it does not say twice.
            assert all(one == other or other == "" for one, other in zip(cells, wanted, strict=True))
    scored = content.table[content.table["score"].notna()].set_index("score")
    headers = [parsed.text(one) for one in parsed.within(parsed.all("table", id="table-1")[0], "th")]
    seen = set()
    for place, (tag, known, _, _) in enumerate(parsed.elements):
        if tag == "tr" and "data-score" in known:
            row = scored.loc[known["data-score"]]
            cells = dict(zip(headers, (parsed.elements[cell] for cell in parsed.within(place, "td")), strict=False))
            value = float(cells["likeness"][1]["data-key"])
            assert value == pytest.approx(100 * row["likeness"], abs=0.05)
            seen.add(known["data-score"])
    assert seen == set(scored.index)


def test_the_heat_map_is_the_frames(text: str, world: Path, data: Dataset) -> None:
    parsed, frame = Parsed(text), Content(load.results(world)).table
    (heat,) = [place for place in parsed.all("table") if parsed.elements[place][1].get("class") == "heat"]
    head, *body = parsed.within(heat, "tr")
    targets = [parsed.text(one) for one in parsed.within(head, "th")][1:]
    shown = 0
    for row in body[:-1]:
        (name,) = parsed.within(row, "th")
        for target_, cell in zip(targets, parsed.within(row, "td"), strict=True):
            label = "none" if target_ == "no defense" else target_
            known = frame[(frame["target_label"] == label) & (frame["attack_label"] == parsed.text(name))]
            if known.empty:
                assert parsed.text(cell) == ""
                continue
            (value,) = known["likeness"]
            assert parsed.text(cell).split(" ")[0] == Unit.SHARE.show(value)
            assert parsed.elements[cell][1]["class"] == f"q{round(20 * value)}"
            shown += 1
    assert shown == len(HITS)
    natural = [parsed.text(one) for one in parsed.within(body[-1], "td")]
    assert natural == [
        Unit.SHARE.show(value) for value in frame.dropna(subset="target").drop_duplicates("target")["natural_accuracy"]
    ]


def test_the_gallery_says_what_each_judge_said(text: str, world: Path, data: Dataset) -> None:
    shown = gallery_of(text)
    results = {result.run.id: result for result in load.results(world)}
    assert {run["score"] for run in shown["runs"]} == set(results)
    (group,) = shown["groups"]
    assert group["judges"][0] == "likeness" and group["judges"][-1] == "the target itself"
    for run in shown["runs"]:
        table = results[run["score"]].per_image
        hits = [bit & 1 for bit in run["bits"]]
        assert hits == table["likeness"].astype(int).tolist() and run["labels"] == table["label"].tolist()
        other = group["judges"].index("open-set ir")
        assert [bit >> other & 1 for bit in run["bits"]] == table["open_top1@ir"].astype(int).tolist()


def test_a_tile_of_a_sheet_is_its_picture(text: str, world: Path, data: Dataset) -> None:
    shown = gallery_of(text)
    sheets = re.findall(r'id="sheet-\d+">([^<]*)<', text)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheets[0]))).convert("RGB")).astype(int)
    (high, wide), across = shown["tile"], shown["across"]

    def tile(number: int) -> np.ndarray:
        row, column = divmod(number, across)
        return sheet[row * high : row * high + high, column * wide : column * wide + wide]

    results = {result.run.id: result for result in load.results(world)}
    for run in shown["runs"]:
        path = results[run["score"]].inversion.path / "images.safetensors"
        images = artifacts.read_tensors(path, "reconstructions")[0]["images"]
        for place in (0, len(images) - 1):
            wanted = images[place].permute(1, 2, 0).numpy().astype(int)
            assert (
                np.abs(tile(run["tile"] + place) - wanted).mean() < 10
            )  # noise, as JPEG has it; two of them differ by 85
    private, _ = grids.real(next(iter(results.values())), data, shown["groups"][0]["labels"])
    assert np.abs(tile(shown["groups"][0]["private"]) - private[0].permute(1, 2, 0).numpy()).mean() < 10


def test_words_follow_from_the_tests(world: Path, root: Path, data: Dataset) -> None:
    (said,) = Content(load.results(world)).headlines
    undefended = said.standings[0]
    assert (
        not undefended.point.defended
        and undefended.floor is not None
        and undefended.floor.attack.startswith("prior_search")
    )
    assert not undefended.above and "No attack is shown to be above its floor" in said.title
    assert "nothing follows about inversion" in " ".join(undefended.sentences)
    frame = Content(load.results(world)).differences
    for row, line in zip(tables.rows(frame[frame["judged_by"]]), said.changes, strict=True):
        clear = row["verdict"] in ("lower", "higher")
        assert line.startswith(row["defense"] if clear else f"Whether {row['defense']} leaks less is not clear")
        assert Unit.POINTS.show(row["difference"]) in line
    # Against a floor that reaches nothing the same attack is above it, and the first line says so.
    for path in (root / "scores").glob("prior_search-*"):
        files_ = json.loads((path / "scores.json").read_text())
        assert files_["likeness"]["value"] == 1
    judges = [find(root, run.name) for run in sorted((root / "evaluators").glob("[!.]*"), reverse=True)]
    victim = find(root, next((root / "targets").glob("*-none-*")).name)
    for path in list((root / "scores").glob("prior_search-*")):
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    bare = Content(load.results(root)).headlines[0]
    assert (
        bare.standings[0].floor is None
        and "no floor was run" in bare.title
        and "may have inverted nothing" in " ".join(bare.standings[0].sentences)
    )
    score(root, "prior_search", victim, judges, bits("000000000000"), data, seed=7)
    (above,) = Content(load.results(root)).headlines
    assert above.standings[0].above and re.match(r"\d+\.\d% of reconstructions by ppa pass as the person", above.title)
    # Of two floors of one name the better one counts, whichever came first.
    for better, worse in ((500, 600), (600, 500)):
        for pool, hits in ((better, "1" * 12), (worse, "0" * 12)):
            score(root, "prior_search", victim, judges, bits(hits), data, settings={"pool": pool}, seed=better)
        of_both = [one for one in load.results(root) if one.role == "attack" or one.inversion.spec["seed"] == better]
        (said,) = Content(of_both).headlines
        floor = said.standings[0].floor
        assert floor is not None and floor.rate.value == 1 and not said.standings[0].above


# --- what may not be shown ------------------------------------------------------------------------------------------


def test_a_target_that_was_trained_elsewhere_has_its_verdict_first(
    text: str, tmp_path: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Verdict on" not in text, "nothing was audited"
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: noise)
    victim, judges = (
        target(tmp_path, [], noise, origin="imported"),
        [judge(tmp_path, name, noise) for name in ("resnet", "ir")],
    )
    for (area, attack), hits in HITS.items():
        if area is None:
            score(tmp_path, attack, victim, judges, bits(hits), noise)
    content = Content(load.results(tmp_path, []))
    said = verdict(content.results, victim.id)
    parsed = Parsed(page.render(content, []))
    (block,) = parsed.all("div", aria_label=f"Verdict on {said.target}")
    assert said.headline in parsed.text(block)
    assert all(line in parsed.text(block) for _, line in said.lines)
    assert block < parsed.all("ul", class_="sentences")[0]


def flat(image: np.ndarray) -> bool:
    return bool((np.abs(image.astype(int) - grids.WITHHELD) <= 2).all())


def test_without_private_images_no_private_pixel_is_in_the_file(root: Path, data: Dataset) -> None:
    # One attack hands back a private photograph as it is.
    inversion = next(root.glob("inversions/gmi-*"))
    tensors, header = artifacts.read_tensors(inversion / "images.safetensors", "reconstructions")
    tensors["images"][0] = data.train.images[1]
    run = load.results(root)[0].run
    run = next(result.inversion for result in load.results(root) if result.inversion.path == inversion)
    artifacts.write_tensors(inversion / "images.safetensors", tensors, header)
    done = json.loads((inversion / "done").read_text())
    import hashlib

    done["images.safetensors"] = hashlib.sha256((inversion / "images.safetensors").read_bytes()).hexdigest()
    (inversion / "done").write_text(json.dumps(done))
    real = torch.cat([data.train.images, data.heldout.images]).permute(0, 2, 3, 1).numpy().astype(float)

    def nearest(text: str) -> float:
        """The least mean difference of any 8 x 8 tile of any embedded image to any real photograph."""
        least = 255.0
        for image in embedded(text):
            pixels = np.asarray(image).astype(float)
            high, wide = pixels.shape[0] // 8 * 8, pixels.shape[1] // 8 * 8
            tiles = pixels[:high, :wide].reshape(high // 8, 8, wide // 8, 8, 3).swapaxes(1, 2).reshape(-1, 8, 8, 3)
            for one in real:
                least = min(least, float(np.abs(tiles - one).mean(axis=(1, 2, 3)).min()))
        return least

    whole, redacted = rendered(root), rendered(root, names=False)
    assert nearest(whole) < 4, "the test must see a photograph where there is one"
    assert nearest(redacted) > 30
    assert any(flat(np.asarray(image)[:8, :8]) for image in embedded(redacted)), "the copy is grey"
    assert "person_" in whole and "person_" not in redacted and "identity 0" in redacted
    (group,) = gallery_of(redacted)["groups"]
    assert group["private"] is None and group["withheld"]
    assert run.id in redacted


def test_commands_of_a_page_that_is_handed_on_show_no_folders() -> None:
    assert provenance._short("data.root=/home/me/faces") == "data.root=faces"
    assert provenance._short("/home/me/faces") == "faces" and provenance._short("--method") == "--method"
    assert document.unnamed("left out /home/me/results/x: gone") == "left out …/x: gone"


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        (
            "/venv/bin/mibench attack --set 'name=my set' --method gmi",
            "mibench attack --set 'name=my set' --method gmi",
        ),
        ("/x/mibench/__main__.py demo", "mibench demo"),
        ("mibench attack --set name=it's", "mibench attack --set 'name=it'\"'\"'s'"),  # recorded before it was quoted
        ("", ""),
    ],
)
def test_a_command_can_be_pasted(recorded: str, shown: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load.results(world)[0].run
    monkeypatch.setattr(Run, "read", lambda self, file: {"provenance": {"command": recorded}})
    assert provenance.command(run) == shown
    assert shlex.split(provenance.command(run))[1:] == shlex.split(shown)[1:]


def told(run: Run, lines: list[dict[str, float]]) -> None:
    """Give a finished run a log."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.path / "log.jsonl").write_text(text)
    done = json.loads((run.path / "done").read_text())
    (run.path / "done").write_text(json.dumps(done | {"log.jsonl": hashlib.sha256(text.encode()).hexdigest()}))


def test_what_the_target_answered_is_drawn_by_queries(root: Path, data: Dataset) -> None:
    assert "No run of this folder logged its progress" in rendered(root) and "Query success" not in rendered(root)
    (result,) = [one for one in load.results(root) if one.attack == "ppa" and not one.target.spec["defenses"]]
    log = [{"step": step, "of": 100, "images": 4, "reached": step / 200} for step in (1, 10, 100)]
    told(result.inversion, [line | {"confidence": line["reached"], "loss": 1.0} for line in log])
    text = rendered(root)
    assert "No run of this folder logged" not in text
    for name in ("reached-none", "confidence-none", "loss-none"):
        assert text.count(f'data-name="{name}') == 1, name
    figure = next(one for one in re.findall(r"<svg.*?</svg>", text, re.S) if "no defense: people the target" in one)
    (places,) = re.findall(r'<polyline points="([^"]*)"', figure)
    across, up = zip(*(map(float, place.split(",")) for place in places.split()), strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.02), "a power of ten is one step"
    shares = [(y - up[0]) / (up[2] - up[0]) for y in up]
    assert shares[1] == pytest.approx((10 - 1) / (100 - 1), abs=0.01) and up[2] < up[0]
    assert "ppa: 50.0% after 100 queries for one person" in figure


EVIL = (
    "</script><script>alert(1)</script>",
    '" onload="x',
    "a\u202egnp.exe",
    "<!--",
    "{{ 7 * 7 }}",
    "&lt;",
    "line\nend",
)


def test_names_are_text_whatever_they_say(root: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = dataclasses.replace(noise, classes=EVIL[:4])
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: evil)
    original = Result.per_image.func  # type: ignore[attr-defined]

    def renamed(self: Result) -> pd.DataFrame:
        table = original(self)
        return table.assign(identity=[EVIL[label] for label in table["label"]])

    patched = cached_property(renamed)
    patched.__set_name__(Result, "per_image")
    monkeypatch.setattr(Result, "per_image", patched)
    monkeypatch.setattr(Result, "identities", property(lambda self: tuple(EVIL[one] for one in self.columns["label"])))
    text = rendered(root, errors=list(EVIL))
    parsed = Parsed(text)
    assert len([place for place in parsed.all("script") if "type" not in parsed.elements[place][1]]) == 1
    assert not any(name.startswith("on") for _, known, _, _ in parsed.elements for name in known)
    assert "alert(1)" in text and "<script>alert" not in text and "\u202e" not in text and "<!--" not in text
    assert {parsed.text(cell) for cell in parsed.all("td")} >= {EVIL[0], EVIL[1], "<!--"}
    assert "a\\u202egnp.exe" in text
    assert gallery_of(text)["groups"][0]["names"] == list(EVIL[:4])
    assert "{{ 7 * 7 }}" in text and "line\\nend" in text


@pytest.mark.parametrize("evil", EVIL)
def test_json_and_svg_let_no_markup_through(evil: str) -> None:
    told = views.json_text({evil: [evil, 1]})
    assert json.loads(told) == {evil: [evil, 1]} and not set("<>&") & set(told)
    drawn = Parsed(f"<div>{svg.el('text', evil, aria_label=evil, x=1.0)}</div>")
    assert [tag for tag, *_ in drawn.elements] == ["div", "text"] and set(drawn.elements[1][1]) == {"aria-label", "x"}


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_page_with_damaged_runs_says_which(root: Path, data: Dataset) -> None:
    torn, lost, *_ = sorted((root / "scores").glob("[!.]*"))
    (torn / "scores.json").write_text('{"n": 12, "iden')
    gone = next(result for result in load.results(root) if result.run.path == lost)
    (gone.inversion.path / "images.safetensors").write_bytes(b"torn")
    folder = write(root, Console(file=io.StringIO(), width=120))
    parsed = Parsed((folder / "index.html").read_text(encoding="utf-8"))
    (left,) = parsed.all("section", id="left-out")
    told = [parsed.text(line) for line in parsed.within(left, "li")]
    assert any(f"scores/{torn.name}" in line and "cut short" in line for line in told)
    assert any("images.safetensors" in line for line in told)
    assert not any(str(root) in line for line in told), "a path of this machine"
    assert len(gallery_of((folder / "index.html").read_text())["runs"]) == len(HITS) - 2
    rows = [one for one in parsed.elements if one[0] == "tr" and "data-score" in one[1]]
    assert {row[1]["data-score"] for row in rows} == {
        path.name.rpartition("-")[2] for path in (root / "scores").glob("[!.]*")
    } - {torn.name.rpartition("-")[2]}


def test_a_data_set_that_is_gone_takes_no_number_away(
    root: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "open_dataset", lambda inputs: dataclasses.replace(noise, heldout=noise.train))
    text = rendered(root)
    assert "no real photographs" in text and len(gallery_of(text)["runs"]) == len(HITS)
    assert gallery_of(text)["groups"][0]["private"] is None


# --- size -----------------------------------------------------------------------------------------------------------


def test_sheets_stay_within_their_budget_whatever_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    sheets = pictures.Sheets()
    first = sheets.add(torch.randint(256, (300, 1, 40, 28), generator=draw, dtype=torch.uint8))
    second = sheets.add(torch.randint(256, (300, 3, 40, 28), generator=draw, dtype=torch.uint8))
    assert (first, second) == (0, 300)
    monkeypatch.setattr(pictures, "BUDGET", 10_000_000)
    large = sheets.encoded()
    monkeypatch.setattr(pictures, "BUDGET", 400_000)
    small = sheets.encoded()
    assert large.place == ((40, 28), (40, 32)) and len(large.sheets) == 3
    assert sum(map(len, large.sheets)) > 400_000 >= sum(map(len, small.sheets)) and small.place.inner < (40, 28)


class Sized:
    """A score of so many images: what the gallery reads of one."""

    def __init__(self, real: Result, name: str, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.run = dataclasses.replace(real.run, spec={"name": name})
        self.names, self.score, self.target, self.judges = real.names, real.score, real.target, real.judges
        self.evaluators, self.track = real.evaluators, real.track
        self.inversion = dataclasses.replace(real.inversion, root=Path(name))
        self.images, self.hits = images, real.hits
        self.per_image = pd.DataFrame(
            {"label": labels.numpy(), "identity": [f"person {one}" for one in labels.tolist()]}
        )
        self.per_image["order"] = self.per_image.groupby("label").cumcount()
        self.per_image["likeness"] = (labels % 2).numpy()
        self.columns = {name: self.per_image[name].to_numpy() for name in ("label", "order", "likeness")}


def test_twenty_thousand_thumbnails(world: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 scores of 100 images of 64 px: written in seconds, and below 60 MB even though these are noise."""
    (real, *_), draw = load.results(world), torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(25)
    images = torch.randint(256, (100, 3, 64, 64), generator=draw, dtype=torch.uint8)
    results = [Sized(real, f"{place}", images.roll(place, 0), labels) for place in range(200)]
    known = {one.inversion.path: one for one in results}
    read = artifacts.read_tensors
    monkeypatch.setattr(
        artifacts,
        "read_tensors",
        lambda path, role: ({"images": known[path.parent].images}, {}) if path.parent in known else read(path, role),
    )
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what stands in for a score is none
    row = {"protocol": "p", "role": "attack", "dataset": "digiface", "identities": 4, "likeness": 0.5}
    table = pd.DataFrame(
        [
            row | {"score": one.run.id, "attack_label": f"a{place}", "target_label": "none"}
            for place, one in enumerate(results)
        ]
    )
    started = time.process_time()
    made = pictures.gallery(results, table)  # type: ignore[arg-type]
    spent = time.process_time() - started
    text = views.json_text(made.data)
    assert sum(len(run["bits"]) for run in made.data["runs"]) == 20_000
    assert sum(map(len, made.sheets)) + len(text) < 40e6, "of the 60 MB that a page may have"
    assert spent < 30
    assert len(made.sheets) == -(-(20_000 + 2 * 4) // pictures.TILES)


def test_the_command_names_the_page(root: Path, data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from mibench.cli import do

    do.report(root, private_images=False, as_json=False)
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == str(root / "report") and str(root / "report" / "index.html") in last
    assert (root / "report" / "index.html").stat().st_size < 2_000_000
