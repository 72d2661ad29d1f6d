"""What a run is cited with: every paper behind it, once, as BibTeX that a parser accepts."""

import json
import re
from pathlib import Path

import pytest

from mibench.plugins import registry
from mibench.report.cite import bibtex, entry, used
from mibench.runs import Run
from mibench.runtime.errors import UserError

PAPERS = [
    (kind, name) for kind in registry.SINGULAR for name, card in registry.cards(kind).items() if card.get("authors")
]
FIELD = re.compile(r"^  (\w+) = \{(.*)\},$")


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Kind, key and fields of one entry; fails on anything BibTeX would stumble over."""
    head, *lines, end = text.splitlines()
    found = re.fullmatch(r"@(\w+)\{([a-z0-9]+),", head)
    assert found and end == "}"
    fields = {}
    for line in lines:
        matched = FIELD.match(line)
        assert matched, line
        value = matched[2]
        assert value.count("{") == value.count("}") and not re.search(r"(?<!\\)[&%#]", value), value
        fields[matched[1]] = value
    return found[1], found[2], fields


@pytest.mark.parametrize(("kind", "name"), PAPERS)
def test_every_paper_has_an_entry(kind: str, name: str) -> None:
    card = registry.card(kind, name)
    sort, key, fields = parse(entry(card))
    assert sort in ("inproceedings", "article", "misc") and key.isascii() and str(card["year"]) in key
    assert {"title", "author", "year"} <= fields.keys()
    assert len(fields["author"].split(" and ")) == len(re.split(r", | and ", card["authors"]))


def test_two_papers_never_share_a_key() -> None:
    entries = [parse(entry(registry.card(kind, name))) for kind, name in PAPERS]
    titles: dict[str, set[str]] = {}
    for _, key, fields in entries:
        titles.setdefault(key, set()).add(fields["title"])
    assert all(len(found) == 1 for found in titles.values()), titles


def run(root: Path, attack: str = "ppa") -> Run:
    data = {"dataset": {"name": "orl", "settings": {}}}
    re_ = {"name": "re", "settings": {}}
    target = Run(root, "targets", "t", {**data, "model": "cnn", "defenses": [re_], "seed": 0})
    prior = Run(root, "priors", "p", {**data, "prior": {"name": "dcgan", "settings": {}}, "seed": 0})
    spec = {"attack": {"name": attack, "settings": {}}, "seed": 0}
    return Run(root, "inversions", attack, spec, {"target": target, "prior": prior})


def test_a_run_cites_its_ancestors_and_each_paper_once(tmp_path: Path) -> None:
    found = list(used(run(tmp_path)))
    assert found == [("attacks", "ppa"), ("priors", "dcgan"), ("defenses", "re"), ("models", "cnn"), ("data", "orl")]
    text = bibtex(run(tmp_path))
    assert text.startswith("@software{mibench,")
    keys = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    assert keys[1:] == [
        "struppek2022plug",
        "radford2016unsupervised",
        "tran2025random",
        "lecun1998gradient",
        "samaria1994parameterisation",
    ]
    assert "% attack ppa\n@inproceedings{struppek2022plug" in text and r"Plug \& Play" in text


def test_what_is_unknown_or_has_no_paper_is_left_out(tmp_path: Path) -> None:
    assert entry(registry.card("data", "folder")) == "" and entry(registry.card("attacks", "prior_search")) == ""
    with pytest.raises(UserError):
        registry.card("attacks", "gone")
    assert "radford" in bibtex(run(tmp_path, "gone")) and "struppek" not in bibtex(run(tmp_path, "gone"))


def test_a_score_cites_what_was_measured_and_only_that(tmp_path: Path) -> None:
    inversion = run(tmp_path)
    target = inversion.parents["target"]
    assert isinstance(target, Run)
    for one, file, found in (
        (target, "metrics.json", {"side_effects": {"adversarial_accuracy": {}, "ece": {}}}),
        (
            Run(tmp_path, "scores", "s", {}, {"inversion": inversion}),
            "scores.json",
            {"perceptual": {"lpips": {}, "inception": {}}, "evaluators": {"ir": {"prdc": {"k": 5}}}},
        ),
    ):
        with one.writing() as folder:
            (folder / file).write_text(json.dumps(found))
            one.finish({})
    measured = [name for kind, name in used(one) if kind == "metrics"]
    assert measured == ["accuracy", "knn", "fid", "kid", "prdc", "lpips_distance", "robustness", "calibration"]
