"""The page: a server for this machine alone, which shows one question at a time and records every answer.

It listens on 127.0.0.1 only, under a path that begins with a random token, and answers requests that name this machine
as their host and come from no other page; every other request gets 404. Bodies, connections and the time of each
are bounded. The page loads nothing from elsewhere and may not (its content security
policy). What a question is about never leaves the server.
"""

import hmac
import io
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from PIL import Image

from mibench.human_study.answers import Answers
from mibench.human_study.forms import PANEL
from mibench.human_study.questions import Question
from mibench.human_study.sheets import panel
from mibench.runtime.errors import UserError

__all__ = ["HOST", "Server"]

HOST = "127.0.0.1"
LONGEST = 1000
"""Bytes of a request's body."""

MOST = 64
"""Connections at a time; one more ends the oldest, which has waited longest without a whole request."""

DEADLINE_S = 10.0
"""A connection ends after this time, whatever it still has to say."""


class Server(ThreadingHTTPServer):
    """Serves the questions; `serve_forever` runs it, `url` is where.

    Args:
        questions: In the order in which they are asked, all of one form.
        answers: Where answers go.
        rater: Whose they are.
        port: 0 takes a free one.

    Raises:
        UserError: If the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, questions: Sequence[Question], answers: Answers, rater: str, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Page)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--port {port}: {why}; choose another, or leave it out for a free one") from None
        self.questions = {question.id: question for question in questions}
        self.form = questions[0].form
        self.answers = answers
        self.rater = rater
        self.token = secrets.token_urlsafe(18)
        self._since: dict[socket.socket, float] = {}
        self._counting = threading.Lock()

    # Connections: few, and none for long. A browser asks one thing in each, in milliseconds.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, in the place of the oldest connection if there are too many."""
        with self._counting:
            while len(self._since) >= MOST:
                self._end(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End what is overdue; called twice a second."""
        with self._counting:
            late = [one for one, since in self._since.items() if time.monotonic() - since > DEADLINE_S]
            for one in late:
                self._end(one)

    def _end(self, connection: socket.socket) -> None:
        """Whoever reads from it or writes to it is told so at once."""
        del self._since[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Answered: it counts no more."""
        with self._counting:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that its other end broke off is nobody's error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Whoever knows it can see the private images and answer."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    @cached_property
    def page(self) -> str:
        """The template."""
        return files("mibench.human_study").joinpath("page.html").read_text(encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """What the page needs to know: the form, ids, how many photographs stand beside, what was answered."""
        given = self.answers.of(self.rater)
        return {
            "form": self.form.name,
            "question": self.form.question,
            "advice": self.form.advice,
            "rater": self.rater,
            "questions": [
                {"id": one.id, "references": len(one.references), "answer": given.get(one.id)}
                for one in self.questions.values()
            ],
        }


class _Page(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the address only."""

    def _wanted(self) -> list[str] | None:
        """The parts of the path behind the token; None if the request is not ours."""
        parts = self.path.split("?")[0].split("/")
        hosts = (f"{HOST}:{self.server.port}", f"localhost:{self.server.port}")
        if len(parts) < 3 or self.headers.get_all("Host", []) not in [[host] for host in hosts]:
            return None  # a page elsewhere may point its own name here
        if self.headers.get("Origin") not in (None, *(f"http://{host}" for host in hosts)):
            return None  # what a browser says of a request that another page makes; another program says nothing
        known = hmac.compare_digest(parts[1].encode("utf-8", "replace"), self.server.token.encode())
        return parts[2:] if known else None

    def do_GET(self) -> None:
        """The page, the state, or an image."""
        wanted = self._wanted()
        if wanted == [""]:
            nonce = secrets.token_urlsafe(12)
            policy = (
                f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'nonce-{nonce}'; "
                f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            self._send(self.server.page.replace("{{nonce}}", nonce).encode(), "text/html; charset=utf-8", policy)
        elif wanted == ["state"]:
            self._answer(self._state)
        elif wanted is not None and len(wanted) == 3 and wanted[0] == "image":
            self._image(wanted[1], wanted[2])
        else:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        """An answer: {"id", "answer"}."""
        if self._wanted() != ["answer"]:
            self._refuse(404, "there is nothing here")
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= LONGEST:
                raise ValueError(length)
            given = json.loads(self.rfile.read(length))
            name, answer = str(given["id"]), str(given["answer"])
        except (ValueError, KeyError, TypeError, RecursionError):  # the last: a thousand brackets
            self._refuse(400, f'expected {{"id": "...", "answer": "{self.server.form.yes}"}}')
            return
        if name not in self.server.questions or answer not in self.server.form.answers:
            self._refuse(400, f"unknown question, or an answer other than {', '.join(self.server.form.answers)}")
            return
        self._answer(lambda: {"answered": self.server.answers.record(self.server.rater, {name: answer})})

    def _state(self) -> dict[str, Any]:
        return self.server.state()

    def _answer(self, make: Any) -> None:
        try:
            state = make()
        except UserError as error:  # the judge must see that an answer was not kept
            self._refuse(500, str(error))
            return
        self._send(json.dumps(state).encode(), "application/json")

    def _image(self, name: str, slot: str) -> None:
        question = self.server.questions.get(name)
        picture = None if question is None else _picture(question, slot)
        if picture is None:
            self._refuse(404, "there is no such image")
            return
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        self._send(buffer.getvalue(), "image/png")

    def _refuse(self, code: int, why: str) -> None:
        self._send(json.dumps({"error": why}).encode(), "application/json", code=code)

    def _send(self, body: bytes, kind: str, policy: str = "default-src 'none'", code: int = 200) -> None:
        self.send_response(code)
        for key, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", policy),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _picture(question: Question, slot: str) -> Image.Image | None:
    """`panel.png`, the sheet that another program sees; of a pair `x.png`, the image in question, and `0.png`, ..."""
    if question.form is PANEL:
        return panel(question) if slot == "panel.png" else None
    images = {"x.png": question.image} | {f"{place}.png": one for place, one in enumerate(question.references)}
    if slot not in images:
        return None
    return Image.fromarray(images[slot].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
