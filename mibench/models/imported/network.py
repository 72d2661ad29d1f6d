"""A user's model behind mibench's contract: images in [0, 1] to logits, label i being the i-th person of the data.

    features(x) = trunk(prepare(x)),   logits = order(as_logits(head(features)))

`prepare` makes of an image what the model wants (`Wanted`), `as_logits` undoes what the model made of its scores
(`Output`), `order` puts the outputs of the data's people first, in the data's order, and the others behind them.
A network whose last layer is linear is cut before it; of a program the output itself is all the features there are.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.models.base import Classifier, Prepare
from mibench.models.imported.architectures import Resizable
from mibench.models.imported.opened import Opened, Plain
from mibench.runtime.errors import UserError

__all__ = ["OUTPUTS", "Imported", "Output", "Wanted", "as_logits", "assemble", "cut"]

Output = Literal["logits", "log-probabilities", "probabilities", "sigmoid", "embeddings", "labels"]
OUTPUTS: tuple[Output, ...] = get_args(Output)

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: colour to grey."""

GALLERY_SCALE = 20.0
"""Cosine similarity to logits of a gallery: a factor that changes no ranking."""


@dataclass(frozen=True)
class Wanted:
    """What a model makes of an image.

    Args:
        size: Side of the square; 0 is the image's own.
        channels: 1 or 3.
        reverse: Blue, green, red instead of red, green, blue.
        last: Channels come last.
        bytes: Whole numbers of 0 to 255 as uint8.
        mean: In units of [0, 1], one value a channel, in the order red, green, blue.
        std: As `mean`; (x - 0) / (1/255) is the range 0 to 255.
        output: What it answers.
        order: The output that is the i-th person of the data, then all others.
    """

    size: int
    channels: int
    reverse: bool
    last: bool
    bytes: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output: Output = "logits"
    order: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a run's specification."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "Wanted":
        """The inverse of `to_json`."""
        typed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in known.items()
        }
        return cls(**typed)


class Fitting(Prepare):
    """Images in [0, 1] to what a user's model wants.

    Args:
        image_shape: (channels, height, width) of the incoming images.
        wanted: What the model wants.
    """

    luma: Tensor

    def __init__(self, image_shape: tuple[int, int, int], wanted: Wanted) -> None:
        super().__init__(image_shape, wanted.mean, wanted.std, wanted.size or None)
        self.wanted = wanted
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        wanted = self.wanted
        if x.shape[1] == 3 and wanted.channels == 1 and x.shape[1:] == self.image_shape:
            # After the resize, which is linear and per channel, so that either order gives the same.
            x = (x.float() * self.luma).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
            x = super().forward(x)[:, :1]
        else:
            x = super().forward(x)
        x = x.expand(-1, wanted.channels, -1, -1) if x.shape[1] < wanted.channels else x
        if wanted.reverse:
            x = x.flip(1)
        if wanted.bytes:
            x = x.round().clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1) if wanted.last else x


def as_logits(raw: Float[Tensor, "n k"], output: Output) -> Float[Tensor, "n k"]:
    """Scores to logits whose softmax is what the model meant.

    Probabilities p: log p, a p of 0 being 1e-38. Log-probabilities and logits are logits. Independent (sigmoid) scores
    s:    log(s / (1 - s)), the logits before the sigmoid.
    """
    tiny = torch.finfo(torch.float32).tiny
    if output in ("probabilities", "labels"):
        return raw.clamp(min=tiny).log()
    if output == "sigmoid":
        return raw.clamp(min=tiny).log() - (1 - raw).clamp(min=torch.finfo(torch.float32).eps).log()
    return raw


class Answer(nn.Module):
    """The last step: the last layer (or none), to logits, in the data's order.

    Args:
        last: The model's own last layer, or the gallery; None where the features are the output already.
        output: What comes out of it.
        order: Which output is whom.
    """

    order: Tensor

    def __init__(self, last: nn.Module | None, output: Output, order: Sequence[int]) -> None:
        super().__init__()
        self.last = last if last is not None else nn.Identity()
        self.output = output
        self.register_buffer("order", torch.tensor(list(order), dtype=torch.int64), persistent=False)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        logits = as_logits(self.last(features).float(), self.output)
        return logits[:, self.order] if len(self.order) else logits


class Gallery(nn.Module):
    """Identification by an embedder: cosine similarity to the mean direction of each person's pictures, times a factor.

    Args:
        templates: One unit vector a person.
    """

    templates: Tensor

    def __init__(self, templates: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.register_buffer("templates", templates)

    @classmethod
    def of(cls, embeddings: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], people: int) -> "Gallery":
        """The gallery of some pictures."""
        unit = F.normalize(embeddings, dim=1)
        sums = torch.zeros(people, unit.shape[1], device=unit.device).index_add(0, labels.to(unit.device), unit)
        return cls(F.normalize(sums, dim=1))

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return GALLERY_SCALE * F.normalize(embeddings, dim=1) @ self.templates.T


class Imported(Classifier):
    """A user's model as a target. It runs in float32 whatever the engine's precision: its answers are its own.

    Args:
        prepare: What the model wants.
        trunk: The model up to its features.
        head: The rest.
        feature_dim: Width of the features.
    """

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        kind = x.device.type
        known = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if known else nullcontext():
            out: Tensor = self.trunk(self.prepare(x))
        return out.float()


def cut(module: nn.Module, example: Tensor) -> tuple[nn.Module, nn.Module] | None:
    """The network before its last layer, and that layer; None where the output is not that of a linear layer.

    Args:
        module: Plain tensors to scores.
        example: Any input.
    """
    if isinstance(module, Resizable):
        return module.halves(example)
    if not isinstance(module, Plain) or isinstance(module.inner, torch.jit.ScriptModule):
        return None
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out, path=path: seen.append((path, out)))
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            whole = module(example)
    finally:
        for hook in hooks:
            hook.remove()
    paths = [path for path, _ in seen]
    if not seen or paths.count(paths[-1]) > 1 or seen[-1][1].shape != whole.shape:
        return None
    path, out = seen[-1]
    if not torch.equal(out.float(), whole):
        return None
    try:
        trunk = copy.deepcopy(module)
        last = trunk.get_submodule(path)
        trunk.set_submodule(path, nn.Identity())
        with torch.no_grad():
            again = last(trunk(example))
    except (AttributeError, RuntimeError, TypeError, UserError):  # a forward that reads the layer's weight itself
        return None
    return (trunk, last) if torch.allclose(again.float(), whole, atol=1e-5, rtol=1e-5) else None


def assemble(
    opened: Opened, wanted: Wanted, image_shape: tuple[int, int, int], gallery: Gallery | None = None
) -> Imported:
    """The target: what was opened, behind what it wants.

    Args:
        opened: The model.
        wanted: What it wants, in full.
        image_shape: Of the data's images.
        gallery: Of an embedder.
    """
    prepare = Fitting(image_shape, wanted)
    halves = None
    if opened.differentiable and gallery is None:
        example = prepare(torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)))
        halves = cut(opened.module, example)
    trunk, last = halves if halves is not None else (opened.module, gallery)
    width = len(wanted.order) if gallery is None else gallery.templates.shape[1]
    if halves is not None and isinstance(last, nn.Linear):
        width = last.in_features
    head = Answer(last, "logits", ()) if gallery is not None else Answer(last, wanted.output, wanted.order)
    return Imported(prepare, trunk, head, width).eval().requires_grad_(False)
