"""A source, opened: a module that answers tensors as the model itself wants them, and what it declares of itself."""

from collections.abc import Callable
from dataclasses import replace

from mibench.models.imported.architectures import open_weights
from mibench.models.imported.declared import NOTHING, Declared
from mibench.models.imported.opened import Opened, Plain, channels_of, family_of
from mibench.models.imported.own_code import open_code
from mibench.models.imported.programs import open_exported, open_onnx_file, open_torchscript
from mibench.models.imported.server import Asked
from mibench.models.imported.sources import Kind, ModelSource

__all__ = ["open_source"]


def open_source(source: ModelSource) -> Opened:
    """Make a model answer; its own code runs where it has some.

    Raises:
        UserError: It cannot be opened, does not fit its weights, or is too large for this machine.
    """
    opened = _OPENING[source.kind](source)
    trained = getattr(opened.module, "training", False)
    opened.module.eval()
    for parameter in opened.module.parameters():
        parameter.requires_grad_(False)
    said = ("the model came in train mode; it is asked in eval mode",) if trained and source.kind == "object" else ()
    return replace(opened, notes=(*opened.notes, *said))


def _endpoint(source: ModelSource) -> Opened:
    assert source.endpoint is not None
    asked = Asked(source.endpoint, source.objects.get("journal"), source.objects.get("people", ()))
    said = f"asks {source.endpoint.url} over the network; answers are paid for once and kept"
    return Opened(asked, "unknown", NOTHING, differentiable=False, notes=(said,))


def _object(source: ModelSource) -> Opened:
    net = source.objects["module"]
    declared = Declared(channels_of(net))
    trained = net.training
    opened = Opened(Plain(net), family_of(type(one) for one in net.modules()), declared)
    opened.module.training = trained
    return opened


_OPENING: dict[Kind, Callable[[ModelSource], Opened]] = {
    "weights": open_weights,
    "code": open_code,
    "exported": open_exported,
    "torchscript": open_torchscript,
    "onnx": open_onnx_file,
    "endpoint": _endpoint,
    "object": _object,
}
