"""Messages between two processes that do not trust each other: JSON and safetensors, never pickle.

A message is two lengths (8 bytes each, big-endian), a header and a body. The header is JSON: what is said, with its
fields, and in which order in memory each tensor's axes lie; the body holds the tensors as safetensors.
"""

import io
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mibench.runtime.errors import UserError

__all__ = ["Broken", "Message", "Wire"]

HEADER = 1 << 20
BODY = 1 << 31
"""The longest that is read from a process that is not trusted."""


class Broken(UserError):
    """What came over the wire is no message."""


@dataclass(frozen=True)
class Message:
    """One thing said.

    Args:
        what: Which.
        fields: JSON values.
        tensors: Plain, dense, on the CPU.
    """

    what: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Wire:
    """One end of a pair of pipes.

    Args:
        reads: What the other end writes to.
        writes: What the other end reads from.
        trusts: Whether the other end may send any length.
    """

    def __init__(self, reads: io.BufferedIOBase, writes: io.BufferedIOBase, trusts: bool = False) -> None:
        self.reads, self.writes, self.trusts = reads, writes, trusts

    def send(self, what: str, fields: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> None:
        """Say something.

        Raises:
            OSError: If nobody listens any more.
        """
        orders, plain = {}, {}
        for name, tensor in (tensors or {}).items():
            strides = tensor.stride()
            order = sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], axis))
            laid = tensor.detach().permute(order)
            # Axes lie as they did: a convolution on channels-last images rounds otherwise than on others.
            if laid.is_contiguous():
                orders[name] = order
            else:
                orders[name], laid = list(range(tensor.ndim)), tensor.detach().contiguous()
            plain[name] = laid.cpu().contiguous().clone()
        header = json.dumps({"what": what, "fields": fields or {}, "orders": orders}).encode()
        body = safetensors.torch.save(plain)
        self.writes.write(struct.pack(">QQ", len(header), len(body)) + header)
        self.writes.write(body)
        self.writes.flush()

    def receive(self) -> Message:
        """What the other end says next.

        Raises:
            EOFError: If it has closed.
            Broken: If that is no message; where it is not trusted also if it is too long.
        """
        lengths = struct.unpack(">QQ", self._exactly(16))
        if not self.trusts and (lengths[0] > HEADER or lengths[1] > BODY):
            raise Broken(f"a message of {lengths[0] + lengths[1]} bytes; at most {BODY} are read")
        header, body = (self._exactly(length) for length in lengths)
        try:
            said = json.loads(header.decode("utf-8"))
            tensors = safetensors.torch.load(body)
            orders = said["orders"]
            if set(orders) != set(tensors) or not isinstance(said["fields"], dict) or not isinstance(said["what"], str):
                raise Broken("a message whose parts do not belong together")
            laid = {name: _restored(tensor, orders[name]) for name, tensor in tensors.items()}
            return Message(said["what"], said["fields"], laid)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
            raise Broken(f"no message ({str(error).splitlines()[0][:200] if str(error) else 'empty'})") from None

    def _exactly(self, length: int) -> bytes:
        content = self.reads.read(length)
        if len(content) < length:
            raise EOFError
        return content


def _restored(tensor: Tensor, order: list[int]) -> Tensor:
    back = [0] * len(order)
    for place, axis in enumerate(order):
        back[axis] = place
    return tensor.clone().permute(back)  # a copy lies where kernels like it, whatever its place in the message
