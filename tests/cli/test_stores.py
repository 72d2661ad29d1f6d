"""`--results` with the URL of a store: the commands of two hosts, and what is refused."""

from pathlib import Path

import pytest
from shell import ATTACK, TRAIN, command, results, world

import mibench
from mibench.runs import store
from mibench.runs.run import ELSEWHERE


def test_what_one_host_has_made_is_everything_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"memory://{tmp_path.name}/results"
    folder = tmp_path / "one"

    def folder_of(url: str, fs: object) -> Path:
        return folder

    monkeypatch.setattr(store, "_folder", folder_of)
    try:
        world().copy(tmp_path).rename(folder)  # as if the store had been away while all of it was made
        again = command("attack", "--method", "kedmi", "--results", url, *ATTACK)
        assert again.last.parent == folder / "scores" and "published scores/kedmi" in again.err
        made = results(folder)

        ELSEWHERE.clear()
        folder = tmp_path / "other"
        id = again.last.name
        assert '"finished": {\n  "targets": 1' in command("status", url, "--json").out and not folder.exists()
        assert command("show", id, "--results", url).last == folder / "scores" / id
        brought = results(folder)
        assert brought.items() < made.items()  # this score and what it builds on
        assert command("report", url).last == folder / "report"
        both = {name: content for name, content in results(folder).items() if not name.startswith("report/")}
        assert {name for name in made if name.startswith("scores/")} <= both.keys() and both.items() <= made.items()
        assert "of 4 scores" in repr(mibench.load_results(url))
        assert "kedmi" in command("cite", id, "--results", url).out
        assert command("train", "--defense", "re", "--results", url, *TRAIN).last.parent == folder / "targets"
        assert results(folder).keys() >= made.keys()

        assert "--force is not done in the store" in command("train", "--results", url, "--force", *TRAIN).error
        assert "give that folder" in command("judge", id, "--results", url, "--summary").error
        assert "start a mibench worker on each" in command("run", "demo", "--results", url, "--on", "ray").error
        assert "an audit is not done in the store" in command("audit", "--results", url).error
        ELSEWHERE.clear()
        assert "nobody has judged" in command("judge", id, "--results", str(folder), "--summary").error
    finally:
        ELSEWHERE.clear()
