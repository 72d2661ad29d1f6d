"""Whole programs in a file: exported ones, TorchScript, ONNX. The first two are run as they are."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mibench.models.imported import weights
from mibench.models.imported.declared import Declared, from_shape, told
from mibench.models.imported.onnx_session import open_onnx
from mibench.models.imported.opened import Opened, Plain, Program, family_of
from mibench.models.imported.sources import ModelSource
from mibench.runtime.errors import UserError

__all__ = ["open_exported", "open_onnx_file", "open_torchscript"]


def open_exported(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(source.file)
            module: nn.Module = program.module(check_guards=False)
    except Exception as error:  # torch raises nearly anything here
        raise UserError(
            f"{source.file} is no exported program ({told(error)}); save one with torch.export.save"
        ) from None
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.name in program.graph_signature.user_inputs
    ]
    shape = shapes[0] if shapes and len(shapes[0]) == 4 else None
    stacks = (node.meta.get("nn_module_stack") or {} for node in program.graph.nodes)
    family = family_of(str(kind) for stack in stacks for _, kind in stack.values())
    batch = shape[0] if shape and isinstance(shape[0], int) else None
    declared = from_shape(shape, batch)
    notes = (f"runs the program in {source.file.name}",)
    return Opened(Program(_NoModes(module), batch), family, declared, notes=notes)


class _NoModes(nn.Module):
    """An exported program, which has no train or eval mode: asking for one raises."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> "_NoModes":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.contiguous())


def open_torchscript(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; models saved with it are not gone
            script = torch.jit.load(str(source.file), map_location="cpu")
    except Exception as error:
        raise UserError(f"{source.file} is no TorchScript ({told(error)}); save one with torch.jit.save") from None
    trained = bool(getattr(script, "training", False))
    kinds = {str(one._c._type().qualified_name()) for one in script.modules()}
    stem = next((value for value in script.state_dict().values() if value.ndim == 4), None)
    channels = int(stem.shape[1]) if stem is not None and stem.shape[1] in (1, 3) else None
    notes = [f"runs the program in {source.file.name}"]
    if trained:
        notes.append("the program was saved in train mode; it is asked in eval mode")
    return Opened(Plain(script), family_of(kinds), Declared(channels), notes=tuple(notes))


def open_onnx_file(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    session, declared, kinds = open_onnx(source.file)
    return Opened(session, family_of(kinds), declared, differentiable=False)
