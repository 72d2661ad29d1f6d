"""The judge: blind questions, answers that survive anything, a page for this machine alone, once in a real browser."""

# ruff: noqa: F811 (fixtures are imported)

import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reported import CLASSES, data, noise, root, world  # noqa: F401 (fixtures)
from shell import command, full_disk

from mibench.core import Dataset
from mibench.human_study import exchange
from mibench.human_study.answers import Answers, lines, summary
from mibench.human_study.forms import PAIR
from mibench.human_study.questions import Question, ask
from mibench.human_study.server import MOST, Server
from mibench.runs import Run, find, inversion_of
from mibench.runtime.errors import UserError
from mibench.stats.intervals import proportion


@pytest.fixture
def inversion(root: Path) -> Run:
    return find(root, next((root / "inversions").glob("gmi-*")).name)


@pytest.fixture
def questions(inversion: Run, data: Dataset) -> list[Question]:
    return ask(inversion, data, 8)


def kinds(questions: list[Question]) -> Counter[str]:
    return Counter(question.kind for question in questions)


# --- questions ------------------------------------------------------------------------------------------------------


def test_catch_trials_are_what_they_say(questions: list[Question], data: Dataset) -> None:
    assert kinds(questions) == {"reconstruction": 8, "same": 2, "other": 2}
    held = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(data.heldout.images, data.heldout.labels, strict=True)
    }
    train = {
        image.numpy().tobytes(): int(label) for image, label in zip(data.train.images, data.train.labels, strict=True)
    }
    for question in questions:
        own = held.get(question.image.numpy().tobytes())
        assert {
            "same": own == question.label,
            "other": own not in (None, question.label),
            "reconstruction": own is None,
        }[question.kind]
        shown = [image.numpy().tobytes() for image in question.references]
        # Only two training images each: both are shown, once; what is asked about never stands beside itself.
        assert len(set(shown)) == 2 and {train[one] for one in shown} == {question.label}


def test_more_pairs_are_the_same_ones_and_further_ones(inversion: Run, data: Dataset) -> None:
    few, more, every = (ask(inversion, data, pairs) for pairs in (3, 8, 1000))
    ids = [{question.id: question.kind for question in own} for own in (few, more, every)]
    assert ids[0].items() < ids[1].items() < ids[2].items()
    assert kinds(every)["reconstruction"] == 12
    about = Counter(question.label for question in more if question.kind == "reconstruction")
    assert about == dict.fromkeys(range(4), 2)


def test_the_seed_decides_and_the_order_tells_nothing(inversion: Run, data: Dataset) -> None:
    first, again, other = (ask(inversion, data, 12, seed) for seed in (0, 0, 1))
    assert [one.id for one in first] == [one.id for one in again]
    assert not {one.id for one in first} & {one.id for one in other}
    order = [one.kind for one in first]
    assert order != sorted(order) and [one.id for one in first] == sorted(one.id for one in first)


def test_a_score_means_its_inversion_and_a_target_nothing(root: Path, inversion: Run) -> None:
    score = next(
        find(root, path.name)
        for path in (root / "scores").glob("gmi-*")
        if find(root, path.name).parents["inversion"].id == inversion.id
    )  # type: ignore[union-attr]
    assert inversion_of(score, "judge").id == inversion_of(inversion, "judge").id
    with pytest.raises(UserError, match="has no reconstructions"):
        inversion_of(inversion.parents["target"], "judge")  # type: ignore[arg-type]


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_survive_and_change(inversion: Run) -> None:
    store = Answers(inversion)
    assert store.read() == {}
    assert [store.record("me", {"a": "same"}), store.record("me", {"b": "unsure"})] == [1, 2]
    store.record("you", {"a": "different"})
    assert Answers(inversion).read() == {"me": {"a": "same", "b": "unsure"}, "you": {"a": "different"}}
    store.record("me", {"a": "different"})
    assert store.of("me") == {"a": "different", "b": "unsure"} and store.of("nobody") == {}
    assert store.path == inversion.root / "judge" / f"gmi-{inversion.id}" / "answers.json"


def test_answers_from_many_at_once_are_all_kept(inversion: Run) -> None:
    def give(rater: int) -> None:
        for place in range(10):
            Answers(inversion).record(f"rater {rater}", {f"{place}": PAIR.answers[place % 3]})

    threads = [threading.Thread(target=give, args=(rater,)) for rater in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(own) for own in Answers(inversion).read().values()] == [10] * 4
    assert not list(Answers(inversion).folder.glob("*.tmp"))


@pytest.mark.parametrize(
    "text",
    [
        '{"inversion"',
        "[]",
        '{"inversion": "x", "answers": {}}',
        '{"answers": {}}',
        '{"inversion": "ID", "answers": {"me": {"a": "perhaps"}}}',
    ],
)
def test_damaged_answers_are_named_and_never_overwritten(inversion: Run, text: str) -> None:
    store = Answers(inversion)
    store.folder.mkdir(parents=True)
    store.path.write_text(text.replace("ID", inversion.id))
    with pytest.raises(UserError, match="move it away"):
        store.record("me", {"a": "same"})
    assert store.path.read_text() == text.replace("ID", inversion.id)


def test_the_summary_in_closed_form(questions: list[Question]) -> None:
    """A judge who is always right, and says 'same' of the first two people's reconstructions."""
    given = {
        one.id: {"same": "same", "other": "different"}.get(one.kind, "same" if one.label < 2 else "unsure")
        for one in questions
    }
    found = summary(questions, given | {"of another seed": "same"})
    own = [one for one in questions if one.kind == "reconstruction"]
    wanted = proportion(torch.tensor([one.label < 2 for one in own]), torch.tensor([one.label for one in own]))
    assert found["reconstructions"]["called_same"] == wanted._asdict() and wanted.value == 0.5 and wanted.clusters == 4
    assert found["reconstructions"]["unsure"]["value"] == 0.5
    assert found["catch_accuracy"]["value"] == 1.0 and found["other"]["called_same"]["value"] == 0.0
    assert (found["answered"], found["elsewhere"]) == (12, 1)
    assert summary(questions, {})["catch_accuracy"] is None


def test_who_always_says_same_is_not_believed(questions: list[Question]) -> None:
    """The mistake it must see: 100% success that is only a habit."""
    found = summary(questions, {one.id: "same" for one in questions})
    assert found["reconstructions"]["called_same"]["value"] == 1.0 and found["catch_accuracy"]["value"] == 0.5
    assert "do not trust what is said of reconstructions" in "\n".join(lines("me", found))
    unsure = summary(questions, {one.id: "unsure" for one in questions})
    assert unsure["catch_accuracy"]["value"] == 0.0  # not to know is not to be right


# --- for another program --------------------------------------------------------------------------------------------


def test_export_is_blind_whole_and_the_same_again(questions: list[Question], tmp_path: Path) -> None:
    questions = questions[:5]
    first, again = (exchange.export(questions, tmp_path / name) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    asked = [json.loads(line) for line in first.read_text().splitlines()]
    assert [one["id"] for one in asked] == [one.id for one in questions]
    assert {path.name for path in (tmp_path / "a/pairs").iterdir()} == {f"{one.id}.png" for one in questions}
    text = first.read_text()
    assert not any(word in text for word in ("reconstruction", "catch", "other", "held", *CLASSES))
    for one, question in zip(asked, questions, strict=True):
        assert one["answers"] == list(PAIR.answers) and "2 picture(s)" in one["question"]
        with Image.open(tmp_path / "a" / one["image"]) as sheet:
            assert not sheet.info and (tmp_path / "b" / one["image"]).read_bytes() == Path(sheet.filename).read_bytes()
            left = sheet.crop((20, 20, 276, 276)).resize((8, 8), Image.Resampling.BOX)
        wanted = question.image.permute(1, 2, 0).float()
        got = torch.frombuffer(bytearray(left.tobytes()), dtype=torch.uint8).view(8, 8, 3).float()
        # Bicubic there and box back blurs noise, but a neighbour in its place would differ by 85 on average.
        assert float((wanted - got).abs().mean()) < 30


def test_answers_come_back(questions: list[Question], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": one.id, "answer": " Same.", "why": "x"}) + "\n\n" for one in questions))
    assert exchange.read_answers(path, questions) == {one.id: "same" for one in questions}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "ID", "answer": "same"}\n{"id": "nobody", "answer": "same"}', "line 2: no question has the id"),
        ('{"id": "ID", "answer": "yes"}', "line 1: the answer must be same, different, unsure"),
        ("same", "line 1: expected"),
        ('["ID"]', "line 1: expected"),
        ("", "holds no answers"),
        ('{"id": "ID", "answer": "same"}\n{"id": "ID", "answer": "unsure"}', "line 2: question"),
    ],
)
def test_a_bad_file_is_refused_whole(questions: list[Question], tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text.replace("ID", questions[0].id))
    with pytest.raises(UserError, match=said):
        exchange.read_answers(path, questions)


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(questions: list[Question], inversion: Run) -> Iterator[Server]:
    with Server(questions, Answers(inversion), "me") as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def request(
    server: Server, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        text = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, text, headers)
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def test_only_this_machine_with_the_token_gets_in(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and len(server.token) >= 24
    own = f"/{server.token}/"
    assert request(server, "GET", own)[0] == 200
    for path in ("/", "/state", "//state", f"/{server.token[:-1]}/", f"/{server.token}x/state", "/%00/", "/%C3%BC/"):
        status, _, body = request(server, "GET", path)
        assert status == 404 and server.token.encode() not in body
    assert request(server, "GET", own, Host="evil.example")[0] == 404  # a name that points here
    assert request(server, "POST", "/answer", {"id": "x", "answer": "same"})[0] == 404
    assert request(server, "POST", own + "answer", {"id": "x", "answer": "same"}, Host="evil.example")[0] == 404


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    status, headers, body = request(server, "GET", f"/{server.token}/")
    text, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and "http:" not in text and "https:" not in text and "{{" not in text
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert policy.startswith("default-src 'none'") and text.count(f'nonce="{nonce}"') == 2
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert nonce not in request(server, "GET", f"/{server.token}/")[1]["Content-Security-Policy"]


def test_the_state_tells_no_secrets(server: Server, questions: list[Question]) -> None:
    told = request(server, "GET", f"/{server.token}/state")[2]
    found = json.loads(told)
    assert found["questions"] == [{"id": one.id, "references": 2, "answer": None} for one in questions]
    assert not any(word in told.decode() for word in ("kind", "label", "reconstruction", *CLASSES))


def test_images_are_the_pixels(server: Server, questions: list[Question], tmp_path: Path) -> None:
    one = questions[0]
    for slot, wanted in (("x", one.image), ("0", one.references[0]), ("1", one.references[1])):
        status, headers, body = request(server, "GET", f"/{server.token}/image/{one.id}/{slot}.png")
        assert status == 200 and headers["Content-Type"] == "image/png"
        (tmp_path / "x.png").write_bytes(body)
        with Image.open(tmp_path / "x.png") as image:
            got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(8, 8, 3).permute(2, 0, 1)
        assert torch.equal(got, wanted)
    for path in (f"{one.id}/2.png", f"{one.id}/../x.png", "nobody/x.png", f"{one.id}/"):
        assert request(server, "GET", f"/{server.token}/image/{path}")[0] == 404


def test_answers_are_kept_at_once_and_resumed(server: Server, questions: list[Question], inversion: Run) -> None:
    path = f"/{server.token}/answer"
    for count, one in enumerate(questions[:3], start=1):
        status, _, body = request(server, "POST", path, {"id": one.id, "answer": "same"})
        assert status == 200 and json.loads(body) == {"answered": count}
        assert len(Answers(inversion).of("me")) == count
    request(server, "POST", path, {"id": questions[0].id, "answer": "unsure"})
    found = json.loads(request(server, "GET", f"/{server.token}/state")[2])["questions"]
    assert [one["answer"] for one in found] == ["unsure", "same", "same"] + [None] * 9
    with Server(questions, Answers(inversion), "me") as later:
        assert [one["answer"] for one in later.state()["questions"]][:3] == ["unsure", "same", "same"]


@pytest.mark.parametrize(
    "body",
    [
        "same",
        "[]",
        "{}",
        '{"id": "nobody", "answer": "same"}',
        '{"id": "ID", "answer": "yes"}',
        '{"id": ["ID"]}',
        "",
        '{"id": "ID", "answer": "' + "x" * 2000 + '"}',
    ],
)
def test_what_is_no_answer_is_refused(server: Server, questions: list[Question], inversion: Run, body: str) -> None:
    status, _, told = request(server, "POST", f"/{server.token}/answer", body.replace("ID", questions[0].id))
    assert status == 400 and "error" in json.loads(told) and Answers(inversion).read() == {}


def test_a_thousand_brackets_are_no_answer(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor a traceback."""
    for body in ("[" * 999, '{"a":' * 190):
        status, _, told = request(server, "POST", f"/{server.token}/answer", body)
        assert status == 400 and "expected" in json.loads(told)["error"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_another_page_gets_nothing_though_it_knows_the_address(
    server: Server, questions: list[Question], inversion: Run, origin: str
) -> None:
    answer = {"id": questions[0].id, "answer": "same"}
    assert request(server, "POST", f"/{server.token}/answer", answer, Origin=origin)[0] == 404
    assert request(server, "GET", f"/{server.token}/state", Origin=origin)[0] == 404
    assert Answers(inversion).read() == {}
    own = f"http://127.0.0.1:{server.port}"
    assert request(server, "POST", f"/{server.token}/answer", answer, Origin=own)[0] == 200


def test_forty_answers_at_once_are_all_kept(server: Server, questions: list[Question], inversion: Run) -> None:
    ready = threading.Barrier(40)
    codes: list[int] = []

    def post(place: int) -> None:
        ready.wait()
        answer = {"id": questions[place % len(questions)].id, "answer": "same"}
        codes.append(request(server, "POST", f"/{server.token}/answer", answer)[0])

    threads = [threading.Thread(target=post, args=(place,)) for place in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 40 and len(Answers(inversion).of("me")) == len(questions)


def test_three_hundred_stalled_connections_keep_nobody_out(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """They get the threads of no more than `MOST`, and the page is there at once."""
    before = threading.active_count()
    stalled = []
    try:
        for number in range(300):
            one = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            one.sendall(b"POST /" if number % 2 else b"")
            stalled.append(one)
        since = time.monotonic()
        assert request(server, "GET", f"/{server.token}/state")[0] == 200
        assert time.monotonic() - since < 5
        assert threading.active_count() - before <= MOST + 8  # those that are about to end
    finally:
        for one in stalled:
            one.close()
    assert "Traceback" not in capfd.readouterr().err


def test_who_sends_a_letter_a_second_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single wait is long, all of them together are."""
    monkeypatch.setattr("mibench.human_study.server.DEADLINE_S", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
        slow.sendall(f"POST /{server.token}/answer HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n".encode())
        since = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - since < 5:
                slow.sendall(b"X-Slow: 1\r\n")
                time.sleep(0.1)
        assert time.monotonic() - since < 5
    assert request(server, "GET", f"/{server.token}/state")[0] == 200


def test_a_full_disk_is_told_to_the_page(server: Server, questions: list[Question]) -> None:
    with full_disk(0):
        status, _, told = request(server, "POST", f"/{server.token}/answer", {"id": questions[0].id, "answer": "same"})
    assert status == 500 and "No space left" in json.loads(told)["error"]


def test_a_taken_port_is_refused(server: Server, questions: list[Question], inversion: Run) -> None:
    with pytest.raises(UserError, match="choose another, or leave it out"):
        Server(questions, Answers(inversion), "me", server.port)


# --- the command ----------------------------------------------------------------------------------------------------


def test_out_to_a_program_and_back(root: Path, inversion: Run, data: Dataset, tmp_path: Path) -> None:
    own = ("--results", str(root))
    error = command("judge", inversion.id, "--summary", *own).error
    assert "nobody has judged" in error
    told = command("judge", inversion.id, "--export", str(tmp_path / "out"), "--pairs", "8", *own)
    assert told.last == tmp_path / "out" / "questions.jsonl" and "private images" in told.err
    truth = {one.id: one.kind for one in ask(inversion, data, 8)}
    lines = [json.loads(line)["id"] for line in told.last.read_text().splitlines()]
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "\n".join(json.dumps({"id": one, "answer": "different" if truth[one] == "other" else "same"}) for one in lines)
    )
    said = command("judge", inversion.id, "--import", str(answers), "--rater", "vlm", *own)
    assert said.code == 0 and "vlm: 12 answered" in said.out
    assert "catch trials answered rightly          100.0%" in said.out
    found = json.loads(command("judge", inversion.id, "--summary", "--json", *own).out)
    assert found["vlm"]["reconstructions"]["called_same"]["value"] == 1.0 and found["vlm"]["elsewhere"] == 0
    assert "exclude each other" in command("judge", inversion.id, "--summary", "--import", str(answers), *own).error


# --- in a browser ---------------------------------------------------------------------------------------------------

BROWSER, DRIVER = (shutil.which("chromium") or shutil.which("google-chrome")), shutil.which("chromedriver")


class Browser:
    """The few words of W3C WebDriver that the test needs, spoken to chromedriver."""

    def __init__(self, port: int) -> None:
        self.port, self.session = port, ""

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, self.session + path, None if body is None else json.dumps(body))
            found = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(found, dict) and "error" in found:
            raise RuntimeError(found["message"])
        return found

    def run(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        steps = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": steps}]})

    def wait(self, script: str) -> None:
        until = time.monotonic() + 30
        while not self.run(f"return Boolean({script})"):
            assert time.monotonic() < until, f"{script}: {self.run('return document.body.innerText')}"
            time.sleep(0.02)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with (tmp_path / "driver.log").open("w") as log:
        driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while "successfully on port" not in (text := (tmp_path / "driver.log").read_text()):
            assert time.monotonic() < until and driver.poll() is None, text
            time.sleep(0.05)
        found = Browser(int(text.split("successfully on port ")[1].split(".")[0]))
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--window-size=1200,760",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        asked = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": BROWSER, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = found.ask("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        found.session = f"/session/{made['sessionId']}"
        yield found
        found.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver binaries on this machine")
def test_a_whole_session_in_a_browser(
    browser: Browser, server: Server, questions: list[Question], inversion: Run
) -> None:
    browser.ask("POST", "/url", {"url": server.url})
    browser.wait("document.querySelectorAll('#ask:not([hidden]) img').length === 3")
    browser.wait("[...document.images].every(one => one.complete && one.naturalWidth === 8)")
    assert browser.run("return $('place').textContent") == "question 1 of 12, 0 answered"
    keys = {"1": "same", "2": "different", "3": "unsure"}
    for count, one in enumerate(questions[:6], start=1):
        assert one.id in browser.run("return $('x').src")
        browser.press("123"[count % 3])
        browser.wait(f"$('place').textContent.includes('{count} answered')")
        assert Answers(inversion).of("me")[one.id] == keys["123"[count % 3]]
    browser.press("\ue012")  # left: the answer given is marked, and can be changed
    browser.wait("document.querySelector('button.given')?.dataset.answer === 'same'")
    browser.press("2")
    browser.wait("$('place').textContent.startsWith('question 7')")
    assert Answers(inversion).of("me")[questions[5].id] == "different"
    browser.ask("POST", "/refresh", {})  # resumed where it was
    browser.wait("typeof $ === 'function' && $('place').textContent === 'question 7 of 12, 6 answered'")
    for count in range(7, 13):
        browser.run("document.querySelector('button[data-answer=unsure]').click()")
        browser.wait(f"$('place').textContent.includes('{count}{' of' if count == 12 else ' answered'}')")
    browser.wait("!$('done').hidden && $('ask').hidden")
    assert set(Answers(inversion).of("me")) == {one.id for one in questions}
    told = browser.ask("POST", "/se/log", {"type": "browser"})
    assert [line for line in told if "favicon" not in line["message"]] == []  # nothing refused by the policy
