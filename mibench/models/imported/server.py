"""Asking a server: in batches, no faster than it may be asked, again after failures, never twice about one image.

A failed question is asked again after wait, 2 wait, 4 wait ... seconds (at most 60), times 0.5 to 1.5 at random, or
after what the server says in Retry-After if that is longer. Timeouts, dropped connections, answers that cannot be read
and the status codes 408, 425, 429 and 5xx are worth another try; 401, 403, 404 and other 4xx are not. Redirects are not
followed: pictures of private people go where the user said, and nowhere else.

References:
    | Exponential Backoff And Jitter (Brooker, 2015)
    | https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    | RFC 9110, HTTP Semantics, section 10.2.3: Retry-After
    | https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
    | The Idempotency-Key HTTP Header Field (Jena and Dalal, IETF draft)
    | https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import base64
import hashlib
import io
import os
import random
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from mibench.models.imported.answers import Form, Garbled, Reformed, read_answers
from mibench.models.imported.endpoint import Endpoint
from mibench.models.imported.journal import Journal, key_of
from mibench.runtime.errors import UserError

__all__ = ["Asked", "Meter", "waits"]

WORTH_A_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST = 60.0
"""Seconds between two tries, unless the server asks for more; then at most ten times as long."""

REFORMED = 2
"""How often a question is asked again whose answer is of another form than those before: each of them is paid for."""

LABELS = 4096
"""Numbers that a label may have, where the user names no classes."""


class Meter:
    """What was asked.

    Args:
        sent: Images that went over the network, retries included.
        paid: Images that were answered.
        kept: Images whose answer was there already.
        retries: Questions that were asked again.
        seconds: That asking took, with waiting.
    """

    def __init__(self) -> None:
        self.sent = self.paid = self.kept = self.retries = 0
        self.seconds = 0.0


def waits(attempt: int, first: float, asked: float | None, draw: float) -> float:
    """Seconds before the next try.

    Args:
        attempt: Tries so far, at least 1.
        first: Of the first wait.
        asked: What the server asked for.
        draw: In [0, 1): the jitter.
    """
    own: float = min(LONGEST, first * 2.0 ** (attempt - 1)) * (0.5 + draw)
    return own if asked is None else max(own, min(asked, 10 * LONGEST))


class Asked(nn.Module):
    """A server as a module: images in [0, 1] to scores, told to 8 bits, without gradients. Copies share it.

    Args:
        endpoint: Where and how to ask.
        journal: Where answers are kept; None keeps them in this process only.
    """

    anchor: Tensor
    asked = True

    def __init__(self, endpoint: Endpoint, journal: Path | None = None, people: Sequence[str] = ()) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.journal = Journal(journal) if journal is not None else None
        self.people = tuple(people)
        self.meter = Meter()
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells the oracle a device
        self._memory: dict[str, Tensor] = {}
        self._form: Form | None = None
        self._client: Any = None
        self._last = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Asked":
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, where the server tells them."""
        return self._form.names if self._form is not None else ()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Scores; of an image that was asked before, those of then.

        Raises:
            UserError: The server refuses, or fails too often; what was answered is kept.
        """
        images = (x.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        keys = [key_of(image) for image in images]
        told = self._known(keys)
        missing = list({key: place for place, key in enumerate(keys) if key not in told}.values())
        self.meter.kept += len(keys) - len(missing)
        if missing and self.journal is not None:
            with self.journal.alone():
                told |= self._known([keys[place] for place in missing])  # asked by another process meanwhile
                missing = [place for place in missing if keys[place] not in told]
                told |= self._ask_all(images, keys, missing)
        else:
            told |= self._ask_all(images, keys, missing)
        scores = torch.stack([told[key] for key in keys])
        return self._spread(scores).to(x.device)

    def _spread(self, scores: Float[Tensor, "n k"]) -> Float[Tensor, "n k2"]:
        """Numbered labels become 1 among 0; scores stay."""
        form = self._form
        if form is None or form.kind != "label" or form.names:
            return scores
        count = len(self.people) or LABELS
        label = scores[:, 0].long()
        if int(label.max()) >= count:
            raise UserError(
                f"the server answers label {int(label.max())} and the folder has {count} people: name its classes with "
                "--classes FILE"
            )
        return torch.nn.functional.one_hot(label, count).float()

    def _known(self, keys: Sequence[str]) -> dict[str, Tensor]:
        if self.journal is None:
            return {key: self._memory[key] for key in keys if key in self._memory}
        told = self.journal.known(keys)
        if self._form is None and (text := self.journal.fact("form")) is not None:
            self._form = Form.from_text(text)
        return told

    def _ask_all(self, images: UInt8[Tensor, "n c h w"], keys: list[str], places: list[int]) -> dict[str, Tensor]:
        told: dict[str, Tensor] = {}
        if places and self.journal is not None and self.journal.fact("canary") is None:
            self.journal.fact("canary", _packed(images[places[0]]))
        for begin in range(0, len(places), self.endpoint.batch):
            some = places[begin : begin + self.endpoint.batch]
            scores = self._ask(images[some])
            new = {keys[place]: row for place, row in zip(some, scores, strict=True)}
            if self.journal is not None:
                self.journal.keep(new)
            else:
                self._memory |= new
            self.meter.paid += len(new)
            told |= new
        return told

    def require_unchanged(self) -> None:
        """Ask the first kept picture again, the only one that is ever paid for twice: a model that was replaced
        meanwhile is noticed.

        Raises:
            UserError: It answers otherwise.
        """
        kept = self.journal.fact("canary") if self.journal is not None else None
        if self.journal is None or kept is None:
            return
        self._known([])  # the form of its answers
        old, shape = _unpacked(kept)
        canary = old.reshape(shape)
        before = self.journal.known([key_of(canary)]).get(key_of(canary))
        if before is None:
            return
        now = self._ask(canary[None], again=True)[0]
        self.journal.count("answered", 1)
        self.meter.paid += 1
        scale = max(1.0, float(before.abs().max()))
        if float((now - before).abs().max()) > 0.05 * scale:
            raise UserError(
                f"{self.endpoint.url} answers a picture otherwise than before ({_brief(before)} then, {_brief(now)} "
                f"now): its model was changed, or answers at random. Kept answers would be mixed with new ones: use "
                "another --results for the new model"
            )

    # --- one question

    def _ask(self, images: UInt8[Tensor, "n c h w"], again: bool = False) -> Float[Tensor, "n k"]:
        """Ask about a batch until it is answered.

        Args:
            images: The batch.
            again: A new answer is wanted, not one that the server may have kept.

        Raises:
            UserError: The server refuses, or fails more often than allowed.
        """
        started = time.monotonic()
        try:
            return self._insist(images, again)
        finally:
            self.meter.seconds += time.monotonic() - started

    def _insist(self, images: UInt8[Tensor, "n c h w"], again: bool) -> Float[Tensor, "n k"]:
        content = {self.endpoint.request: [self._encoded(image) for image in images]}
        # A server that honours it charges a question once, also one that was under way when this process died.
        once = "" if again else hashlib.sha256("".join(key_of(image) for image in images).encode()).hexdigest()
        why, reformed, attempt = "", 0, 0
        for attempt in range(1, self.endpoint.retries + 2):
            self._pace(len(images))
            self.meter.sent += len(images)
            if self.journal is not None:
                self.journal.count("sent", len(images))
            asked: float | None = None
            try:
                said = self._post(content, once)
                if said.status_code == 200:
                    rows, form = read_answers(said.content, len(images), self.endpoint.answer, self._form, self.people)
                    self._remember(form)
                    return torch.tensor(rows)
                why = f"status {said.status_code}"
                if said.status_code not in WORTH_A_TRY:
                    raise UserError(self._refused(said.status_code))
                asked = _retry_after(said.headers.get("Retry-After"))
            except Garbled as error:
                why = str(error)
                reformed += isinstance(error, Reformed)
                if reformed > REFORMED:
                    break
            except OSError as error:
                why = str(error) or type(error).__name__
            if attempt <= self.endpoint.retries:
                self.meter.retries += 1
                time.sleep(waits(attempt, self.endpoint.wait, asked, random.random()))
        kept = f"{len(self.journal)} answers are kept in {self.journal.path}" if self.journal else "nothing is kept"
        raise UserError(
            f"{self.endpoint.url} failed {attempt} times in a row, last: {why}; {kept}: run the same "
            "command again when it is well (--set endpoint.retries=N, endpoint.timeout=SECONDS)"
        )

    @property
    def totals(self) -> tuple[int, int]:
        """Pictures that were sent, retries included, and that were answered, by all processes so far."""
        if self.journal is None:
            return self.meter.sent, self.meter.paid
        return self.journal.count("sent"), self.journal.count("answered")

    def _remember(self, form: Form) -> None:
        if self._form is None:
            self._form = form
            if self.journal is not None:
                self.journal.fact("form", form.to_text())

    def _refused(self, status: int) -> str:
        do = {
            401: "it wants a token: put it into an environment variable and give --set endpoint.token=VARIABLE",
            403: "it forbids these questions; is this address or token blocked?",
            404: "there is nothing at this address; is the path right?",
            405: "it takes no POST at this address; is the path right?",
            413: "the question is too large; give --set endpoint.batch=1",
            415: "it takes no JSON at this address",
            422: "it does not understand the question; see --set endpoint.request=FIELD and endpoint.encoding",
        }.get(status, "mend that and run the same command again")
        if 300 <= status < 400:
            do = "it sends elsewhere, which is not followed: give that address"
        kept = f"; {len(self.journal)} answers are kept" if self.journal is not None else ""
        return f"{self.endpoint.url} refuses with status {status}: {do}{kept}"

    def _pace(self, images: int) -> None:
        """Wait until so many images may be asked."""
        if self.endpoint.rate:
            until = self._last + images / self.endpoint.rate
            time.sleep(max(0.0, until - time.monotonic()))
        self._last = time.monotonic()

    def _post(self, content: dict[str, Any], once: str) -> Any:
        """One request; whatever fails on the way is an OSError."""
        httpx = _httpx()
        if self._client is None:
            headers = {}
            if self.endpoint.token:
                secret = os.environ.get(self.endpoint.token)
                if not secret:
                    raise UserError(f"endpoint.token: the environment variable {self.endpoint.token} is empty")
                headers["Authorization"] = f"Bearer {secret}"
            self._client = httpx.Client(timeout=self.endpoint.timeout, headers=headers, follow_redirects=False)
        try:
            headers = {"Idempotency-Key": once} if once else {}
            return self._client.post(self.endpoint.url, json=content, headers=headers)
        except (httpx.TransportError, httpx.InvalidURL, httpx.DecodingError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from None

    def _encoded(self, image: UInt8[Tensor, "c h w"]) -> Any:
        pixels = image.permute(1, 2, 0).numpy()
        size = self.endpoint.size
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if size and picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        if self.endpoint.encoding == "array":
            import numpy as np

            return np.asarray(picture).reshape(picture.height, picture.width, -1).tolist()
        file = io.BytesIO()
        options = {"quality": 95} if self.endpoint.encoding == "jpeg" else {}
        picture.save(file, self.endpoint.encoding.upper(), **options)
        return base64.b64encode(file.getvalue()).decode()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise UserError("servers are asked through httpx, which is missing: pip install 'mibench[http]'") from None
    return httpx


def _retry_after(text: str | None) -> float | None:
    """Seconds: a number, or a date; None where it says nothing that can be read."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _packed(image: UInt8[Tensor, "c h w"]) -> str:
    shape = ",".join(map(str, image.shape))
    return f"{shape};{base64.b64encode(image.contiguous().numpy().tobytes()).decode()}"


def _unpacked(text: str) -> tuple[UInt8[Tensor, " n"], tuple[int, ...]]:
    shape, _, data = text.partition(";")
    return torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.uint8), tuple(map(int, shape.split(",")))


def _brief(scores: Float[Tensor, " k"]) -> str:
    return "[" + ", ".join(f"{float(one):.3g}" for one in scores[:3]) + (", ...]" if len(scores) > 3 else "]")
