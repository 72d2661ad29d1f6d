"""A server that is asked through a real connection: what goes wrong is asked again, what was answered never."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from serving import Service, serving
from torch import Tensor

from mibench.models.imported.answers import Form, Garbled, read_answers
from mibench.models.imported.endpoint import Endpoint, read_endpoint
from mibench.models.imported.journal import Journal, key_of
from mibench.models.imported.server import Asked, waits
from mibench.runtime.errors import UserError

PEOPLE = ("ann", "bob", "cid")


def means(x: Tensor) -> dict[str, list[list[float]]]:
    """Scores that any test can work out: the mean of each channel."""
    return {"scores": x.mean(dim=(2, 3)).tolist()}


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) / 255


def asked(service: Service, journal: Path | None = None, **options: object) -> Asked:
    quick = {"wait": 0.01, "batch": 4, "timeout": 5.0} | options
    return Asked(Endpoint(service.url, **quick), journal, PEOPLE)  # type: ignore[arg-type]


def test_scores_are_those_of_the_pixels_that_were_sent(tmp_path: Path) -> None:
    x = pictures(10)
    with serving(means) as service:
        server = asked(service, tmp_path / "a.sqlite")
        torch.testing.assert_close(server(x), x.mean(dim=(2, 3)), atol=1e-6, rtol=0)
        assert service.requests == 3, "10 images in batches of 4"
        assert server.meter.paid == server.meter.sent == 10


def test_an_answer_is_paid_for_once_within_and_across_processes(tmp_path: Path) -> None:
    x = pictures(6)
    with serving(means) as service:
        first = asked(service, tmp_path / "a.sqlite")
        before = first(torch.cat([x, x[:2]]))
        again = asked(service, tmp_path / "a.sqlite")(x.flip(0))
        assert set(service.images.values()) == {1}
        assert torch.equal(before[:6].flip(0), again)


@pytest.mark.parametrize("fault", ["drop", "garbage", "html", "short", "429", "500"])
def test_what_fails_is_asked_again(tmp_path: Path, fault: str) -> None:
    x = pictures(4)
    with serving(means) as service:
        service.fail(fault, times=2)
        server = asked(service, tmp_path / "a.sqlite")
        torch.testing.assert_close(server(x), x.mean(dim=(2, 3)), atol=1e-6, rtol=0)
        assert server.meter.retries == 2
        assert service.requests == 3


def test_a_slow_server_is_given_up_on_in_time(tmp_path: Path) -> None:
    with serving(means) as service:
        service.fail("slow", times=2)
        server = asked(service, tmp_path / "a.sqlite", timeout=0.15, retries=1)
        with pytest.raises(UserError, match="failed 2 times in a row, last: ReadTimeout"):
            server(pictures(1))


@pytest.mark.parametrize(("status", "told"), [("403", "forbids"), ("401", "token"), ("404", "path")])
def test_a_refusal_is_not_asked_again(tmp_path: Path, status: str, told: str) -> None:
    with serving(means) as service:
        server = asked(service, tmp_path / "a.sqlite")
        server(pictures(4))
        service.fail(status)
        with pytest.raises(UserError, match=f"status {status}: .*{told}.*; 4 answers are kept"):
            server(pictures(8, seed=1))
        assert service.requests == 2


def test_another_format_half_way_is_refused_and_what_came_before_is_kept(tmp_path: Path) -> None:
    with serving(means) as service:
        server = asked(service, tmp_path / "a.sqlite", retries=2)
        known = server(pictures(4))
        service.answer = lambda x: {"scores": ["cat"] * len(x)}
        with pytest.raises(UserError, match=r"'cat' where 3 scores were before.*4 answers are kept"):
            server(pictures(4, seed=1))
        assert torch.equal(asked(service, tmp_path / "a.sqlite")(pictures(4)), known)


def test_a_model_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    with serving(means) as service:
        asked(service, tmp_path / "a.sqlite")(pictures(3))
        asked(service, tmp_path / "a.sqlite").require_unchanged()
        service.answer = lambda x: {"scores": (3 - x.mean(dim=(2, 3))).tolist()}
        with pytest.raises(UserError, match="answers a picture otherwise than before"):
            asked(service, tmp_path / "a.sqlite").require_unchanged()


def test_a_rate_limit_holds(tmp_path: Path) -> None:
    with serving(means) as service:
        started = time.monotonic()
        asked(service, tmp_path / "a.sqlite", rate=40.0, batch=4)(pictures(12))
        assert time.monotonic() - started >= 8 / 40, "three batches of 4, the last two wait for .1 s each"


def test_a_token_is_sent_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "open sesame")
    with serving(means) as service:
        asked(service, tmp_path / "a.sqlite", token="MY_TOKEN")(pictures(1))
        assert service.headers[0]["Authorization"] == "Bearer open sesame"
        assert b"sesame" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_killed_audit_has_lost_nothing_that_was_paid(tmp_path: Path) -> None:
    """Killed by force between two batches: the next process pays for what is missing only."""
    script = textwrap.dedent("""
        import sys, torch
        sys.path[:0] = sys.argv[3].split(":")
        from pathlib import Path
        from mibench.models.imported.endpoint import Endpoint
        from mibench.models.imported.server import Asked
        x = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
        Asked(Endpoint(sys.argv[1], batch=2, wait=0.01, rate=100.0), Path(sys.argv[2]))(x)
    """)
    journal = tmp_path / "a.sqlite"
    with serving(means) as service:
        command = [sys.executable, "-c", script, service.url, str(journal), ":".join(sys.path)]
        killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while service.requests < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
        paid = len(Journal(journal))
        assert 0 < paid < 40
        server = asked(service, journal)
        x = pictures(40)
        torch.testing.assert_close(server(x), x.mean(dim=(2, 3)), atol=1e-6, rtol=0)
        assert server.meter.paid == 40 - paid
        # Only what was under way when the process died may have been answered to nobody: one batch.
        assert sum(service.images.values()) <= 40 + 2


def test_waits_double_up_to_a_minute_and_obey_retry_after() -> None:
    assert [waits(attempt, 1.0, None, 0.5) for attempt in (1, 2, 3, 7, 20)] == [1, 2, 4, 60, 60]
    assert waits(1, 1.0, None, 0.0) == 0.5
    assert waits(1, 1.0, 17.0, 0.5) == 17
    assert waits(1, 1.0, 1e9, 0.5) == 600, "a server may not stop an audit for ever"


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"[[1, 2, 3]]", [[1, 2, 3]]),
        (b'{"predictions": [[1, 2, 3]]}', [[1, 2, 3]]),
        (b'{"scores": [{"bob": 2, "ann": 1, "cid": 3}]}', [[1, 2, 3]]),
        (b'{"scores": [[{"label": "bob", "score": 2}, {"label": "ann", "score": 1}]]}', [[1, 2]]),
        (b'{"labels": ["bob"]}', [[0, 1, 0, 0]]),
        (b'{"labels": ["nobody we know"]}', [[0, 0, 0, 1]]),
        (b'{"labels": [2]}', [[2]]),
    ],
)
def test_answers_are_read_in_the_usual_forms(body: bytes, rows: list[list[float]]) -> None:
    assert read_answers(body, 1, "", None, PEOPLE)[0] == rows


def test_a_path_leads_to_the_answers() -> None:
    assert read_answers(b'{"a": {"b": [[1, 2]]}}', 1, "a.b", None, ())[0] == [[1, 2]]
    with pytest.raises(Garbled, match=r"no field 'a.c'; it has b"):
        read_answers(b'{"a": {"b": [[1, 2]]}}', 1, "a.c", None, ())


@pytest.mark.parametrize("body", [b"[[1, NaN]]", b"[[1, true]]", b"[[1]]", b'[["1", "2"]]', b"[" * 100_000])
def test_what_is_no_answer_is_garbled(body: bytes) -> None:
    with pytest.raises(Garbled):
        read_answers(body, 1, "", Form("list", (), 2), ())


def test_keys_hang_on_pixels_and_shape() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    assert key_of(image) == key_of(image.clone())
    assert key_of(image) != key_of(image.reshape(3, 1, 4))


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"not a database at all, but long enough to be taken for one" * 40)
    with pytest.raises(UserError, match="cannot be used"):
        Journal(tmp_path / "a.sqlite").known(["x"])


@pytest.mark.parametrize(
    ("url", "settings", "told"),
    [
        ("localhost:8000", {}, "give a URL"),
        ("http://a:b@c/", {}, "would be written down"),
        ("http://c/", {"batch": "0"}, "from 1 to 4096"),
        ("http://c/", {"batch": "many"}, "should be int"),
        ("http://c/", {"wiat": "1"}, "did you mean 'wait'"),
        ("http://c/", {"encoding": "gif"}, "png"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(url: str, settings: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_endpoint(url, dict(settings))
