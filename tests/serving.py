"""A real HTTP server on this machine that answers questions about images, and misbehaves on demand."""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Service:
    """What the server knows: a model, what it was asked, and what goes wrong next.

    `images` counts what was answered, as a bill would, and `received` what came; where `keyed` is a mapping, a question
    with a key that was answered before is answered again from there and costs nothing.

    Args:
        answer: Images (n, c, h, w) in [0, 1] to whatever stands in the JSON.
    """

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        self.answer = answer
        self.images: Counter[bytes] = Counter()
        self.requests = self.received = 0
        self.keyed: dict[str, bytes] | None = None
        self.faults: list[Callable[[BaseHTTPRequestHandler], bool]] = []
        self.url = ""
        self.headers: list[dict[str, str]] = []

    def fail(self, *kinds: str, times: int = 1) -> None:
        """Queue faults: slow, drop, garbage, html, short, 429, 403, 500."""
        for kind in kinds:
            self.faults += [lambda handler, kind=kind: misbehave(handler, kind)] * times


def misbehave(handler: BaseHTTPRequestHandler, kind: str) -> bool:
    """One fault; True if it has answered."""
    if kind == "slow":
        time.sleep(0.5)
        return False
    if kind == "drop":
        handler.close_connection = True
        handler.connection.close()
        return True
    bodies = {"garbage": b"\x00\xff not json", "html": b"<html>busy</html>", "short": b'{"scores": []}'}
    if kind in bodies:
        reply(handler, 200, bodies[kind])
        return True
    reply(handler, int(kind), b"no", {"Retry-After": "0"} if kind == "429" else {})
    return True


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    """An answer."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(answer: Callable[[Tensor], Any]) -> Iterator[Service]:
    """A server that lives as long as the block."""
    service = Service(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                service.requests += 1
                service.headers.append(dict(self.headers))
                sent = [base64.b64decode(one) for one in json.loads(body)["images"]]
                service.received += len(sent)
                if service.faults and service.faults.pop(0)(self):
                    return
                once = self.headers.get("Idempotency-Key", "")
                if service.keyed is not None and once in service.keyed:
                    reply(self, 200, service.keyed[once])
                    return
                service.images.update(sent)
                pixels = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in sent]
                x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
                said = json.dumps(service.answer(x)).encode()
                if service.keyed is not None and once:
                    service.keyed[once] = said
                with suppress(OSError):  # who asked has gone
                    reply(self, 200, said)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}/predict"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
