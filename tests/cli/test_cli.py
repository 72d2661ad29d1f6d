"""Laws of the command line: the three commands of the issue, and what every command promises."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
from shell import ATTACK, ENVIRONMENT, GAN, JUDGES, SMALL, TRAIN, command, files, results, sets, start, world

from mibench import __version__, cli
from mibench.runs import KINDS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own: commands write to ./results."""
    monkeypatch.chdir(tmp_path)


# --- the three commands


def test_train_then_attack_then_report(tmp_path: Path) -> None:
    made = world()
    assert made.train.last == made.one("targets/*").relative_to(made.folder)
    assert made.attack.last == made.one("scores/kedmi-*").relative_to(made.folder)
    found = {
        kind: sorted(path.name.rpartition("-")[0] for path in (made.results / kind).glob("[!.]*")) for kind in KINDS
    }
    attacks = ["kedmi", "prior_sample", "prior_search", "public_search"]
    assert found == {
        "targets": ["digiface-cnn-re"],
        "evaluators": ["digiface-ir", "digiface-resnet"],
        "priors": ["digiface-kedmi", "digiface-public"],
        "inversions": attacks,
        "scores": attacks,
        "backbones": [],
        "shards": [],
        "verifiers": [],  # four people are too few to verify
    }
    assert "re" in made.train.out and "kedmi" in made.attack.out and "prior_search" in made.attack.out
    made.copy(tmp_path)
    told = command("report", "results/")
    assert told.last == Path("results/report") and "kedmi" in told.out
    assert {".csv", ".md", ".tex", ".json", ".png"} <= {path.suffix for path in told.last.iterdir()}


def test_again_skips_everything_and_changes_no_file(tmp_path: Path) -> None:
    world().copy(tmp_path)
    before = files(tmp_path)
    assert command("train", "--defense", "re", *TRAIN).out == world().train.out
    assert command("attack", "--method", "kedmi", *ATTACK).last == world().attack.last
    assert files(tmp_path) == before


def test_force_redoes_what_is_named_and_only_that(tmp_path: Path) -> None:
    root = world().copy(tmp_path)
    before = files(root)
    told = command("train-target", "--defense", "re", "--force", *SMALL, *sets(training__epochs=1))
    after = files(root)
    target = f"targets/{told.last.name}/"
    assert before.keys() == after.keys()
    assert {name for name in after if after[name][0] != before[name][0]} == {n for n in after if n.startswith(target)}
    same = f"{target}model.safetensors"
    assert after[same][1] == before[same][1]


def test_the_stages_one_by_one_are_the_attack(tmp_path: Path) -> None:
    """Also the same seed in two folders: every byte but times and machine."""
    target = command("train-target", "--defense", "re", *SMALL, *sets(training__epochs=1))
    prior = command("train-prior", "--prior", "kedmi", *SMALL, *[word.replace("prior.", "") for word in GAN])
    assert prior.err == f"done priors/{prior.last.name}\n"
    inversion = command("invert", "--method", "kedmi", *SMALL, *GAN, *sets(steps=3))
    assert inversion.err == f"done inversions/{inversion.last.name}\n"
    score = command("score", *JUDGES)
    mine = results(tmp_path / "results")
    assert {Path(name).parent for name in mine} > {
        Path(*out.last.parts[1:]) for out in (target, prior, inversion, score)
    }
    theirs = results(world().results)
    for name, held in mine.items():
        assert held == theirs[name], name
    assert len(mine) > 15


def test_a_part_of_the_identities_is_another_run(tmp_path: Path) -> None:
    world().copy(tmp_path)
    words = ("invert", "--method", "prior_sample", "--prior", "public", *SMALL)
    all_of_them, some = command(*words), command(*words, "--identities", "2")
    counts = [json.loads((out.last / "metrics.json").read_text())["identities"] for out in (all_of_them, some)]
    assert counts == [4, 2]


# --- promises of every command


def commands(group: object, *path: str) -> Iterator[tuple[str, ...]]:
    for name, found in group.commands.items():  # type: ignore[attr-defined]
        yield from commands(found, *path, name) if hasattr(found, "commands") else [(*path, name)]


COMMANDS = sorted(commands(typer.main.get_command(cli.app)))


def test_the_commands_of_the_issue_exist() -> None:
    wanted = "train attack report demo train-target train-prior invert score list show doctor cite"
    wanted += " sweep run features verify checks judge diff leaderboard"
    looks = {("data", name) for name in ("list", "show", "prepare")}
    assert {(name,) for name in wanted.split()} | looks <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    told = command(*path, "--help")
    assert told.code == 0 and told.err == "" and "Usage" in told.out
    found = typer.main.get_command(cli.app)
    for name in path:
        found = found.commands[name]  # type: ignore[attr-defined]
    assert found.help
    for parameter in found.params:
        assert parameter.name == "help" or getattr(parameter, "help", None), f"{parameter.name} has no help"


@pytest.mark.parametrize("words", [(), ("data",)])
def test_no_command_shows_the_help_and_no_error(words: tuple[str, ...]) -> None:
    told = command(*words)
    assert told.code == 2 and "Usage" in told.out and told.err == ""


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["list", "metrics"], ["--version"]])
def test_looking_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom mibench.cli import main\n"
        f"sys.argv = ['mibench', *{words!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'torchvision', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert command("--version").out == f"{__version__}\n"


JSON = {
    "train": ["train", "--defense", "re", *TRAIN],
    "train-target": ["train-target", "--defense", "re", *SMALL, *sets(training__epochs=1)],
    "train-prior": ["train-prior", "--prior", "public", *SMALL],
    "invert": ["invert", "--method", "kedmi", *SMALL, *GAN, *sets(steps=3)],
    "score": ["score", *JUDGES],
    "attack": ["attack", "--method", "kedmi", *ATTACK],
    "report": ["report"],
    "checks": ["checks"],
    "leaderboard": ["leaderboard"],
    "verify": ["verify"],
    "list suites": ["list", "suites"],
    "list": ["list"],
    "doctor": ["doctor"],
    "data list": ["data", "list"],
    "data show": ["data", "show", *[word.replace("data.", "") for word in SMALL]],
    "data prepare": ["data", "prepare", *[word.replace("data.", "") for word in SMALL]],
}


@pytest.mark.parametrize("name", JSON)
def test_json_prints_only_json_on_stdout(name: str, tmp_path: Path) -> None:
    world().copy(tmp_path)
    told = command(*JSON[name], "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    if isinstance(found, list) and name != "checks":
        assert all(Path(one["path"], "done").is_file() and one["metrics"] for one in found) and found


@pytest.mark.parametrize("name", ["train", "train-target", "train-prior", "invert", "score", "attack"])
def test_dry_run_prints_the_specification_and_writes_nothing(name: str, tmp_path: Path) -> None:
    root = world().copy(tmp_path)
    shutil.rmtree(root / "scores")
    before = files(tmp_path)
    told = command(*JSON[name], "--dry-run", "--json")
    notes = [line for line in told.err.splitlines() if not line.startswith("note: no verifier judges: ")]
    assert told.code == 0 and notes == [] and files(tmp_path) == before
    plan = {one["id"]: one for one in json.loads(told.out)}
    for one in plan.values():
        path = root / one["kind"] / f"{one['name']}-{one['id']}"
        assert one["done"] == path.exists() == (one["kind"] != "scores")
        if one["done"]:
            card = json.loads((path / "run.json").read_text())
            assert card == {key: one[key] for key in card if key != "provenance"} | {"provenance": card["provenance"]}
        for parents in one["parents"].values():
            assert set(parents if isinstance(parents, list) else [parents]) <= plan.keys()


def test_dry_run_in_an_empty_folder_writes_nothing(tmp_path: Path) -> None:
    plan = json.loads(command("demo", "--dry-run", "--json").out)
    assert not any(one["done"] for one in plan) and list(tmp_path.iterdir()) == []
    settings = next(one for one in plan if one["kind"] == "inversions" and one["name"] == "ppa")["spec"]["attack"]
    assert settings["settings"]["steps"] > 0  # resolved: the preset's values, not its name


def test_people_get_a_table_of_the_plan() -> None:
    told = command("demo", "--identities", "20", "--dry-run")
    lines = told.out.splitlines()
    assert told.code == 0 and "ready in the zoo" in told.err
    assert lines[-1].startswith("40 runs, 40 to do") and len(lines) == 42
    assert lines[0].split() == ["state", "run", "settings"]
    assert all(line.startswith(("to do ", "zoo ")) for line in lines[1:-1])
    assert any(line.startswith("zoo    evaluators/digiface-ir-") for line in lines)


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    for words in (
        ("train", "--defense", "rolss", "--model", "resnet", "--set", "stages=9"),
        ("train", "--defense", "loft", "--set", "rank=100000"),
        ("demo", "--identities", "101"),
        ("sweep", "--method", "gmi", "--set", "prior.width=0"),
    ):
        assert command(*words, "--dry-run").error == command(*words).error
    assert not list(tmp_path.iterdir())


SHARED = [
    *("dataset", "seed", "device", "precision", "results", "sets", "no_zoo"),
    *("profile", "log", "dry_run", "force", "full", "as_json"),
]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_shared_options_stand_last_and_in_one_order(path: tuple[str, ...]) -> None:
    found = typer.main.get_command(cli.app)
    for name in path:
        found = found.commands[name]  # type: ignore[attr-defined]
    names = [parameter.name for parameter in found.params]
    assert [name for name in names if name in SHARED] == [name for name in SHARED if name in names]
    if "dry_run" in names and path != ("data", "prepare"):  # which makes no run
        # What is imported keeps its own precision.
        optional = {"dataset", "seed", "no_zoo", "profile", "log", "full"} | (
            {"precision"} if path == ("prior", "import") else set()
        )
        last = [name for name in SHARED if name not in optional or name in names]
        assert names[-len(last) :] == last


def test_a_renamed_option_says_its_new_name() -> None:
    for name in ("attack", "sweep"):
        assert command(name, "--informed").error == "--informed is now called --adaptive"


# --- looking


def test_show_walks_from_a_number_to_the_data(tmp_path: Path) -> None:
    made = world()
    score = made.one("scores/kedmi-*")
    for reference in (score.name, score.name.rpartition("-")[2], str(score)):
        told = command("show", reference, "--results", str(made.results), "--json")
        chain = json.loads(told.out)
        assert chain[0]["kind"] == "scores"
        assert {one["kind"] for one in chain} == set(KINDS) - {"backbones", "shards", "verifiers"}
        assert {one["spec"]["dataset"]["name"] for one in chain if one["kind"] == "targets"} == {"digiface"}
    told = command("show", score.name, "--results", str(made.results))
    assert told.last == score
    for word in ("kedmi", "digiface", "licence", "resnet"):
        assert word in told.out


def test_features_writes_a_picture_and_its_numbers(tmp_path: Path) -> None:
    root = world().copy(tmp_path)
    inversion, score = world().one("inversions/kedmi-*"), world().one("scores/kedmi-*")
    told = command("features", inversion.name.rpartition("-")[2])
    assert told.last == Path("results/report", f"features-{inversion.name}", "features.png")
    assert "nearest is erased" in told.out and "re a_e=0.4, attack: kedmi" in told.out
    assert told.last.read_bytes()[:4] == b"\x89PNG"
    report = json.loads((told.last.parent / "features.json").read_text())
    assert report["inversion"] == inversion.name.rpartition("-")[2] and report["erased_in_training"]
    assert (report["identities"], len(report["shown"]), report["private_images"]) == (4, 4, 16)
    made = json.loads((inversion / "metrics.json").read_text())["images"]
    assert report["reconstructions"]["n"] == made
    before = {path.name: path.read_bytes() for path in told.last.parent.iterdir()}
    assert json.loads(command("features", str(root / "scores" / score.name), "--json").out) == report
    assert before == {path.name: path.read_bytes() for path in told.last.parent.iterdir()}
    fewer = json.loads(command("features", inversion.name, "--identities", "2", "--json").out)
    assert (fewer["identities"], len(fewer["shown"])) == (4, 2)


def test_features_of_what_has_no_reconstructions_is_refused(tmp_path: Path) -> None:
    root = world().copy(tmp_path)
    assert "takes an inversion or a score" in command("features", world().one("targets/*").name).error
    assert "unknown run" in command("features", "nothing").error
    assert not (root / "report").exists()


def test_list_names_everything() -> None:
    found = json.loads(command("list", "--json").out)
    assert set(found) == {"attacks", "defenses", "priors", "data", "models", "metrics"}
    text = command("list").out
    for cards in found.values():
        assert all(name in text for name in cards)
    assert set(json.loads(command("list", "attacks", "--json").out)) == {"attacks"}
    assert command("data", "list").out == command("list", "data").out


def test_doctor_tells_the_machine() -> None:
    found = json.loads(command("doctor", "--json").out)
    assert found["mibench"] == __version__ and found["workers"] == 1 and found["device"]
    assert str(found["cores"]) in command("doctor").out
    with patch.dict(ENVIRONMENT, MIBENCH_MEMORY="0.5"):
        assert json.loads(command("doctor", "--json").out)["memory for pixels"] == "0.5 GB (MIBENCH_MEMORY)"


def test_data_show_writes_a_picture_and_tells_sizes(tmp_path: Path) -> None:
    small = [word.replace("data.", "") for word in SMALL]
    told = command("data", "show", *small, "--output", "faces.png")
    assert told.last == Path("faces.png") and told.last.read_bytes()[:4] == b"\x89PNG"
    facts = json.loads(command("data", "prepare", *small, "--json").out)
    assert (facts["identities"], facts["train"], facts["heldout"], facts["public"]) == (4, 16, 8, 40)
    assert facts["fingerprint"][:40] in told.out


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    with start("list", "--json", folder=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
