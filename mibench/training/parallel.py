"""One training spread over several devices of a machine, a process each: the same network as on one, up to rounding.

Every process augments its own rows (all randomness is keyed by the image), sends them through the network, and is given
everybody's images and answers, so that each computes the loss of the whole batch, and a defense sees the batch, the
outputs and the hidden layers that it would see on one device. Batch norms take their statistics over all rows. What a
defense itself computes (erased images, mixtures, adversarial examples, triggers), every process computes in full.

The gradient: process r has its copy theta_r of the parameters, and all losses L_r are the same number L. A sum over the
processes hands back the sum of what all their losses say (`_Sum`), so that each ends with d(sum_s L_s) / d theta_r, and
dL / d theta is the mean over the processes, also of terms that do not go through the sum.

The sums are torch's own, because Fabric's wait for everybody before each. `processes` starts and ends the processes.

References:
    | PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020), mean of gradients
    | https://arxiv.org/abs/2006.15704
    | Batch Normalization (Ioffe and Szegedy, 2015)
    | https://arxiv.org/abs/1502.03167
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mibench.core import Defense
from mibench.runtime.errors import UserError
from mibench.runtime.rng import kept_globals

__all__ = ["Ranks", "refused", "require_spreadable"]

NEARLY = 1e-3
"""By how much, and by how much of its size, an answer may differ between one device and several, in float32."""


class _Sum(torch.autograd.Function):
    """The sum over all processes, the same in each; so is its gradient (see the module)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _WholeBatch(TorchFunctionMode):
    """While it lasts, batch norms in training take mean and variance over the rows of all processes."""

    def __init__(self, ranks: "Ranks") -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = self._normalised if func is F.batch_norm else func
        return call(*args, **(kwargs or {}))

    def _normalised(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `F.batch_norm`. The parts' statistics are joined as Chan et al. do, by one sum over the processes: no
        difference of large numbers, and no wait for the device."""
        if not training:
            return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
        wide, channels = _wide(x), x.shape[1]
        own_var, own_mean = torch.var_mean(wide, [place for place in range(x.ndim) if place != 1], correction=0)
        own = torch.cat([own_mean.new_tensor([x.numel() // channels]), own_mean, own_var])
        table = self.ranks.table(own)
        counts, means, variances = table[:, :1], table[:, 1 : channels + 1], table[:, channels + 1 :]
        count = counts.sum()
        centre = (counts * means).sum(0) / count
        spread = (counts * (variances + (means - centre).square())).sum(0) / count
        with torch.no_grad():
            if mean is not None and var is not None:
                mean.lerp_(centre.to(mean.dtype), momentum)
                var.lerp_((spread * count / (count - 1.0)).to(var.dtype), momentum)
        scale = (spread + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -centre * scale if bias is None else bias - centre * scale
        shape = [1, channels, *[1] * (x.ndim - 2)]
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


class Ranks:
    """The processes of one training, as one of them sees them.

    Args:
        rank: Its own place; 0 is the caller's process.
        count: How many there are.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.total = 0
        """Rows of the pass that is under way."""

    def own(self, total: int) -> slice:
        """Which of so many rows are this process's: nearly equal parts, in order."""
        least, more = divmod(total, self.count)
        begin = self.rank * least + min(self.rank, more)
        return slice(begin, begin + least + (self.rank < more))

    def share(self, total: int) -> slice:
        """Begin a pass of so many rows: this process's."""
        if total < self.count:
            raise UserError(f"a pass of {total} image(s) cannot be spread over {self.count} devices; name fewer")
        self.total = total
        return self.own(total)

    def table(self, row: Float[Tensor, " d"]) -> Float[Tensor, "{self.count} d"]:
        """Everybody's row, one below the other."""
        rows = [row if place == self.rank else torch.zeros_like(row) for place in range(self.count)]
        return _Sum.apply(torch.stack(rows))

    def whole(self, own: Float[Tensor, "_ *d"]) -> Float[Tensor, "n *d"]:
        """Everybody's rows of an output of the pass under way, in order."""
        mine = self.own(self.total)
        if len(own) != mine.stop - mine.start:
            raise UserError("a layer that a defense looks at does not have a row an image; use one device")
        before, after = (own.new_zeros(n, *own.shape[1:]) for n in (mine.start, self.total - mine.stop))
        return _Sum.apply(_wide(torch.cat([before, own, after]))).to(own.dtype)

    def network(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass of the whole batch: own rows in, everybody's answers out."""

        def forward(x: Tensor) -> Tensor:
            rows = self.share(len(x))
            with _WholeBatch(self):
                own = model(x[rows])
            return self.whole(own)

        return forward

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Give each parameter that has a gradient the mean of the processes' gradients, by one sum."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.div_(self.count).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    @torch.no_grad()
    def require_same(self, model: nn.Module, x: Float[Tensor, "n c h w"], label: str) -> None:
        """Try the first batch both ways, in float32: the answers and the buffers that one device would compute.

        Raises:
            UserError: If the network draws random numbers, or a layer other than a batch norm looks at other rows.
        """
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        answers = []
        with kept_globals():
            for forward in (model, self.network(model)):
                before = _drawn(x.device)
                logits = forward(x)
                answers.append([logits, *(one.clone() for one in model.buffers() if one.is_floating_point())])
                model.load_state_dict(kept)
                if not torch.equal(before, _drawn(x.device)):
                    raise refused(label, "the network draws random numbers in training (dropout, a noisy code)")
        for one, other in zip(*answers, strict=True):
            if not torch.allclose(one, other, rtol=NEARLY, atol=NEARLY):
                raise refused(label, "a layer of the network, other than a batch norm, mixes the images of a batch")


def _drawn(device: torch.device) -> Tensor:
    """Changes when a global generator that networks draw from is drawn from."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def refused(label: str, why: str) -> UserError:
    return UserError(f"{label}: {why}, which several devices cannot do as one does; name one with --device")


def require_spreadable(defenses: Sequence[Defense], label: str) -> None:
    """Refuse a defense that runs the network or takes the steps itself (`Defense.wrap`), as private training does.

    Raises:
        UserError: If there is one; names it.
    """
    for defense in defenses:
        if type(defense).wrap is not Defense.wrap:
            name = type(defense).__module__.rpartition(".")[2]
            raise refused(label, f"the defense {name} wraps the network or its optimiser")
