"""What the oracle takes: tensors as they are, and nothing that could see or change what is computed with them.

A subclass of Tensor, or a mode, is called by torch in place of every operation, so that it sees the target's weights,
logits and input gradients whatever the access. torch.func hides a whole batch behind one image (vmap) or a tangent
behind a value (jvp), so that more is answered than is counted; forward-mode differentiation does the same.

References:
    | Extending PyTorch, `__torch_function__` and `__torch_dispatch__`, https://docs.pytorch.org/docs/stable/notes/extending.html
    | torch.func, https://docs.pytorch.org/docs/stable/func.html
    | Forward-mode automatic differentiation, https://docs.pytorch.org/docs/stable/autograd.html#forward-mode-automatic-differentiation
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from mibench.runtime.errors import UserError

__all__ = ["require_images", "require_labels", "require_plain", "without_tangents"]


def without_tangents() -> AbstractContextManager[None]:
    """No operation inside carries forward-mode tangents along; `torch.no_grad` alone lets them through."""
    return forward_ad._set_fwd_grad_enabled(False)


def require_plain(value: object, what: str) -> None:
    """Refuse whatever is no tensor as it is; `what` names it in the sentence (`the images are`).

    Only types and flags are looked at: nothing waits for the device.

    Raises:
        UserError: Says what was given.
    """
    if not isinstance(value, Tensor):
        raise _refused(f"{what} a {_name(value)}", "pass a torch.Tensor")
    functorch = torch._C._functorch
    if functorch.is_functorch_wrapped_tensor(value) or functorch.is_legacy_batchedtensor(value):
        raise _refused(f"{what} wrapped by torch.func (vmap, grad, jvp) or is_grads_batched", "call it on the batch")
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        raise _refused(f"{what} a {_name(value)}, a subclass of Tensor", "pass x.as_subclass(torch.Tensor)")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise _refused(f"{what} a dual number of forward-mode differentiation", "use torch.autograd.grad in white box")


def require_images(x: object) -> None:
    """A plain batch of float images n c h w, asked for outside all modes and transforms of torch.

    Raises:
        UserError: Says what was given.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise _refused("it was called inside a transform of torch.func (vmap, grad, vjp or jvp)", "call it outside")
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        modes = [one for one in _get_current_function_mode_stack() if not isinstance(one, DeviceContext)]
        if modes or torch._C._len_torch_dispatch_stack():
            mode = _name(modes[-1]) if modes else "TorchDispatchMode"
            raise _refused(f"it was called inside the mode {mode}", "leave the mode before you ask")
    require_plain(x, "the images are")
    assert isinstance(x, Tensor)
    if x.ndim != 4 or not x.is_floating_point() or not len(x):
        raise UserError(
            f"the oracle takes float images (n, channels, height, width) in [0, 1], n at least 1; the images are "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )


def require_labels(labels: object, images: int) -> None:
    """Plain labels, one for each image of a view.

    Raises:
        UserError: Says what was given.
    """
    require_plain(labels, "the labels are")
    assert isinstance(labels, Tensor)
    if labels.ndim != 1 or labels.dtype != torch.int64 or not len(labels):
        raise UserError(
            f"the oracle takes labels as a vector of int64, one for each image; the labels are {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if images % len(labels):
        raise UserError(
            f"{images} images are no whole number of views of {len(labels)} labelled ones; give one label for each "
            "image, or whole copies of the batch"
        )


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _refused(given: str, instead: str) -> UserError:
    return UserError(f"the oracle takes plain tensors; {given}: {instead}")
