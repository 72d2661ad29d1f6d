"""A model behind a URL: where it is, and the form of question and answer."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from mibench.runtime.errors import UserError, unknown

__all__ = ["Endpoint", "read_endpoint"]

Encoding = Literal["png", "jpeg", "array"]


@dataclass(frozen=True)
class Endpoint:
    """A server of scores or labels.

    Args:
        url: Where questions are posted.
        request: The field that holds the images, a list.
        answer: The field that holds the answers, one an image; a path with dots. Empty: `scores`, `probabilities`,
            `logits`, `predictions`, `outputs` or `labels`, whichever is there, or the list itself.
        encoding: Of each image: `png` or `jpeg` as base64 text, or `array`: nested lists of whole numbers, (h, w, c).
        batch: Images a question.
        rate: Most images a second; 0 is no limit.
        timeout: Seconds to wait for an answer.
        retries: How often a question is asked again before the audit stops; it resumes from there.
        wait: Seconds before the first retry; each further one waits twice as long, at most 60 s, times 0.5 to 1.5 at
            random. A server's Retry-After counts where it is longer.
        size: Side of the images that are sent; 0 sends them as the data have them.
        token: Name of the environment variable whose value is sent as `Authorization: Bearer ...`; never written down.
    """

    url: str
    request: str = "images"
    answer: str = ""
    encoding: Encoding = "png"
    batch: int = 16
    rate: float = 0.0
    timeout: float = 30.0
    retries: int = 8
    wait: float = 1.0
    size: int = 0
    token: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--endpoint {self.url}: give a URL such as http://localhost:8000/predict")
        if parts.password is not None:
            raise UserError(
                "--endpoint: a password in the URL would be written down; use --set endpoint.token=VARIABLE"
            )
        for name, least, most in (
            ("batch", 1, 4096),
            ("retries", 0, 100),
            ("timeout", 0.1, 3600),
            ("wait", 0.0, 60),
            ("rate", 0.0, 1e6),
            ("size", 0, 4096),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"endpoint.{name} must be from {least:g} to {most:g}, got {value:g}")

    @property
    def digest(self) -> str:
        """12 hex digits of what decides the answers."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        """What decides the answers: not how patiently they are waited for."""
        kept = ("url", "request", "answer", "encoding", "size")
        return {key: value for key, value in asdict(self).items() if key in kept}


def read_endpoint(url: str, settings: dict[str, Any]) -> Endpoint:
    """A server with `--set endpoint.FIELD=VALUE`.

    Raises:
        UserError: An unknown field, or a value out of range.
    """
    known = {one.name: one.type for one in fields(Endpoint) if one.name != "url"}
    typed: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise unknown("setting of endpoint", key, known)
        kind = next((one for one in (int, float) if known[key] is one), str)
        try:
            typed[key] = kind(value)
        except ValueError:
            raise UserError(f"endpoint.{key} should be {kind.__name__}, got '{value}'") from None
    if typed.get("encoding", "png") not in get_args(Encoding):
        raise unknown("endpoint.encoding", typed["encoding"], get_args(Encoding))
    return Endpoint(url, **typed)
