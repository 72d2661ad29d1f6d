"""ONNX through onnxruntime: scores without gradients.

References:
    | ONNX Runtime, Python API: InferenceSession
    | https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mibench.models.imported.declared import Declared, from_shape, told
from mibench.runtime.errors import UserError

__all__ = ["OnnxSession", "open_onnx"]


class OnnxSession(nn.Module):
    """A session, made when it is first asked; copies share it, and another process makes its own.

    Args:
        path: The model.
        batch: How many images it takes at once; None for any number.
        bytes: It takes uint8.
    """

    anchor: Tensor

    def __init__(self, path: Path, batch: int | None, bytes: bool) -> None:
        super().__init__()
        self.path, self.batch, self.bytes = path, batch, bytes
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells the oracle a device
        self._session: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxSession":
        return self

    @property
    def session(self) -> Any:
        """onnxruntime's own, on the CPU, with torch's number of threads."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(str(self.path), options, ["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors have no common base
                raise UserError(f"{self.path} is no ONNX model that onnxruntime runs ({told(error)})") from None
        return self._session

    def forward(self, x: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        given = x.detach().cpu().contiguous()
        parts = []
        for part in given.split(self.batch or max(1, len(given))):
            short = (self.batch or len(part)) - len(part)
            whole = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            said = self.session.run(None, {name: whole.numpy()})
            scores = next((one for one in said if getattr(one, "ndim", 0) >= 2), None)
            if scores is None:
                raise UserError(f"{self.path} returns no row of scores for each image")
            parts.append(torch.from_numpy(scores).float().flatten(1)[: len(part)])
        return torch.cat(parts).to(x.device)


def open_onnx(path: Path) -> tuple[OnnxSession, Declared, list[str]]:
    """A session, what it declares, and the classes of the network that it was exported from, where it tells them.

    Raises:
        UserError: onnxruntime is not installed, or the file is no model of one image input.
    """
    if find_spec("onnxruntime") is None:
        raise UserError("ONNX models run in onnxruntime, which is not installed: pip install 'mibench[onnx]'")
    session = OnnxSession(path, None, False)
    inputs = session.session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        told = ", ".join(f"{one.name} {one.shape}" for one in inputs)
        raise UserError(
            f"{path} takes {told}; a classifier should take one batch of images (n, c, h, w) or (n, h, w, c)"
        )
    batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
    session.batch, session.bytes = batch, "uint8" in inputs[0].type
    shaped = from_shape(tuple(inputs[0].shape), batch)
    declared = Declared(shaped.channels, shaped.size, shaped.last, session.bytes, batch=batch)
    return session, declared, _classes(path)


def _classes(path: Path) -> list[str]:
    """torch's exporter writes the classes of the modules beside each node; read only if the package onnx is there."""
    try:
        import onnx
    except ImportError:
        return []
    model = onnx.load(path, load_external_data=False)
    return [prop.value for node in model.graph.node for prop in node.metadata_props if "class_hierarchy" in prop.key]
