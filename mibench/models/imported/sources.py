"""What was given: weights with an architecture, code, a program in a file, or a server."""

import hashlib
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mibench.core.access import Access
from mibench.models.imported.endpoint import Endpoint
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file, unreadable

__all__ = ["PROGRAMS", "Kind", "ModelSource", "companions", "digest_of", "digest_of_program", "read_source", "regular"]

Kind = Literal["weights", "code", "exported", "torchscript", "onnx", "endpoint", "object"]

PROGRAMS: dict[str, Kind] = {".pt2": "exported", ".ts": "torchscript", ".torchscript": "torchscript", ".onnx": "onnx"}
"""Endings of files that hold a whole program, not only weights."""

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")

FORMS = (
    "--weights FILE --model ARCHITECTURE, --model package.module:function, --model FILE.pt2 (or .ts, .onnx), or "
    "--endpoint URL"
)


@dataclass(frozen=True)
class ModelSource:
    """A user's model, named but not opened.

    Args:
        kind: What it is.
        model: The architecture's name, `package.module:function`, or empty.
        file: Weights or program; None where there is none.
        endpoint: The server.
        digest: sha256 of the file; of an object its own.
    """

    kind: Kind
    model: str = ""
    file: Path | None = None
    endpoint: Endpoint | None = None
    digest: str = ""
    objects: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What a person calls it, made of letters that a directory may have."""
        if self.endpoint is not None:
            text = self.endpoint.url.partition("://")[2]
        elif self.file is not None:
            text = self.file.stem
        else:
            text = self.model
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)
        return plain.strip("-.")[:40] or "model"

    @property
    def told(self) -> str:
        """What it is, in words."""
        return {
            "weights": f"weights {self.file} of {self.model}",
            "code": f"your code {self.model}" + (f" with weights {self.file}" if self.file else ""),
            "exported": f"exported program {self.file}",
            "torchscript": f"TorchScript {self.file}",
            "onnx": f"ONNX model {self.file}",
            "endpoint": f"server {self.endpoint.url if self.endpoint else ''}",
            "object": f"a {self.model} of this Python process",
        }[self.kind]

    @property
    def runs_code(self) -> bool:
        """Whether opening it runs code that came with it."""
        return self.kind in ("code", "exported", "torchscript")

    @property
    def most(self) -> Access:
        """The strongest access that a source of this kind can give."""
        return Access.BLACK_BOX if self.kind in ("onnx", "endpoint") else Access.WHITE_BOX

    def identity(self) -> dict[str, Any]:
        """What decides its answers, for run ids: bytes, not places."""
        known: dict[str, Any] = {"kind": self.kind}
        if self.kind in ("weights", "code"):
            known["model"] = self.model
        if self.digest:
            known["sha256"] = self.digest
        if self.endpoint is not None:
            known["endpoint"] = self.endpoint.identity()
        return known


def regular(path: Path, what: str) -> Path:
    """The path, if it is a file that can be read to its end.

    Raises:
        UserError: It does not exist, or is a folder, a pipe or a device.
    """
    try:
        known = path.expanduser()
        mode = known.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {path}: {reason}; give a file") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISSOCK: "a socket"}
        is_a = next((name for test, name in kinds.items() if test(mode)), "no regular file")
        raise UserError(f"{what} {path} is {is_a}; give a file")
    return known


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def companions(path: Path) -> list[Path]:
    """Files beside an ONNX model that hold its weights (ONNX calls them external data); none of other programs.

    A model names each by a pair of strings, "location" and the file's name, in protobuf's encoding.

    Raises:
        UserError: One lies elsewhere, or is no file.

    References:
        | ONNX, External Data
        | https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    if path.suffix != ".onnx":
        return []
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise unreadable(path, error) from None
    known: dict[str, Path] = {}
    for place in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content):
        name = content[place.end() : place.end() + place[1][0]].decode("utf-8", "replace")
        if name != Path(name).name or name in (".", ".."):
            raise UserError(f"{path} keeps its weights in {name!r}; they should lie in a file beside it")
        known[name] = path.parent / name
    return [regular(known[name], f"the weights of {path.name},") for name in sorted(known)]


def digest_of_program(path: Path) -> str:
    """sha256 of a program's bytes, and of the files that hold its weights beside it where there are any.

    Raises:
        UserError: If one cannot be read.
    """
    own, others = digest_of(path), companions(path)
    if not others:
        return own
    told = "".join([own, *(f"{one.name} {digest_of(one)}" for one in others)])
    return hashlib.sha256(told.encode()).hexdigest()


def read_source(model: str | None, weights: Path | None, endpoint: Endpoint | None) -> ModelSource:
    """What three options together mean.

    Raises:
        UserError: Nothing, too much, or something that is no file.
    """
    if endpoint is not None:
        if model is not None or weights is not None:
            raise UserError(f"--endpoint is a model by itself, without --model and --weights; give one of: {FORMS}")
        return ModelSource("endpoint", endpoint=endpoint)
    if model is None:
        if weights is None:
            raise UserError(f"which model? give {FORMS}")
        if weights.suffix.lower() in PROGRAMS:
            raise UserError(f"{weights} is a program, not weights; give it as --model {weights}")
        raise UserError(
            f"--weights {weights} are numbers without a network; name it with --model: resnet18 or another of "
            "torchvision's, timm:NAME, one of `mibench list models`, or package.module:function of your own"
        )
    path = Path(model)
    if path.suffix.lower() in PROGRAMS and ":" not in model:
        if weights is not None:
            raise UserError(f"{model} has its weights inside; leave --weights out")
        file = regular(path, "--model")
        return ModelSource(PROGRAMS[path.suffix.lower()], file=file, digest=digest_of_program(file))
    if path.suffix.lower() in WEIGHTS and ":" not in model:
        raise UserError(
            f"--model {model} looks like a file of weights; give it as --weights {model} and name its network with "
            "--model (resnet18, timm:NAME, package.module:function)"
        )
    tensors = regular(weights, "--weights") if weights is not None else None
    digest = digest_of(tensors) if tensors is not None else ""
    if ":" in model and not model.startswith("timm:"):
        return ModelSource("code", model, tensors, digest=digest)
    if tensors is None:
        raise UserError(f"--model {model} is a network without weights; give yours with --weights FILE")
    return ModelSource("weights", model, tensors, digest=digest)
