"""Image transforms for whole batches, each image with randomness of its own, on the images' device.

torchvision's transforms draw one set of numbers for a batched tensor; these take the numbers as an argument, one row
per image, so that a batch gives what single images would give.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mibench.runtime.rng import Noise

__all__ = ["base", "colour_jitter", "crop", "flip", "grey", "hue", "random_resized_crop", "view"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a colour's grey (ITU-R BT.601), as PIL, torchvision and kornia have them."""


def crop(
    x: Float[Tensor, "n c h w"],
    height: Float[Tensor, " n"],
    width: Float[Tensor, " n"],
    top: Float[Tensor, " n"],
    left: Float[Tensor, " n"],
    mirrored: Float[Tensor, " n"],
    angle: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Cut one box out of each image and stretch it back to the full size (bilinear), mirrored where asked.

    Box sizes are fractions of the image in (0, 1]; `top` and `left` in [0, 1] place the box within the room that is
    left over (0 at the upper or left edge, 1 at the lower or right one). `mirrored` is 1 or 0. Last, the result is
    turned about its centre by `angle` radians; beyond the box the image goes on, beyond the image its edge repeats.
    """
    sign = 1.0 - 2.0 * mirrored
    theta = torch.zeros(len(x), 2, 3, device=x.device, dtype=x.dtype)
    theta[:, 0, 0] = width * sign
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * left - 1) * (1 - width)
    theta[:, 1, 2] = (2 * top - 1) * (1 - height)
    if angle is not None:
        cos, sin, aspect = torch.cos(angle), torch.sin(angle), x.shape[2] / x.shape[3]
        turned = torch.stack([cos, sin * aspect, -sin / aspect, cos], dim=1).reshape(-1, 2, 2)
        theta[:, :, :2] = theta[:, :, :2] @ turned
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_resized_crop(
    x: Float[Tensor, "n c h w"],
    noise: Noise,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (1.0, 1.0),
    mirror: float = 0.0,
    degrees: float = 0.0,
) -> Float[Tensor, "n c h w"]:
    """RandomResizedCrop back to the same size, a mirror image with probability `mirror`, a turn, in one resampling.

    Area fraction ~ U(scale), aspect ratio log-uniform in `ratio`, position uniform, angle ~ U(-degrees, degrees).
    Differs: torchvision draws whole-pixel boxes; these are continuous. A box that would stick out is cut to the image.
    """
    u = noise.uniform(6)
    area = scale[0] + (scale[1] - scale[0]) * u[:, 0]
    stretch = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[:, 1])
    height = (area / stretch).sqrt().clamp(max=1.0)
    width = (area * stretch).sqrt().clamp(max=1.0)
    angle = math.radians(degrees) * (2.0 * u[:, 5] - 1.0) if degrees else None
    return crop(x, height, width, u[:, 2], u[:, 3], (u[:, 4] < mirror).to(x.dtype), angle)


def flip(x: Float[Tensor, "n c h w"], noise: Noise, probability: float = 0.5) -> Float[Tensor, "n c h w"]:
    """Mirror each image left to right with the given probability."""
    chosen = noise.uniform(1)[:, 0] < probability
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def grey(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """A colour's luma; images of other than three channels are their channels' mean."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return (x * torch.tensor(LUMA, device=x.device, dtype=x.dtype)[:, None, None]).sum(dim=1, keepdim=True)


def colour_jitter(
    x: Float[Tensor, "n c h w"], noise: Noise, brightness: float, contrast: float, saturation: float
) -> Float[Tensor, "n c h w"]:
    """Brightness, contrast, then saturation, each by a factor ~ U(1 - a, 1 + a); clamped to [0, 1].

    Brightness scales towards black, contrast towards the image's mean `grey`, saturation towards each pixel's.
    Source: ColorJitter of torchvision, and of kornia 0.6.6. Differs: theirs take the three in random order, one for
    a whole batch, and clamp after each; brightness and contrast commute until something is clamped.
    """
    factor = 1.0 + (2.0 * noise.uniform(3) - 1.0) * torch.tensor([brightness, contrast, saturation], device=x.device)
    b, c, s = (factor[:, i, None, None, None] for i in range(3))
    x = x * b
    middle = grey(x).mean(dim=(2, 3), keepdim=True)
    x = middle + (x - middle) * c
    if x.shape[1] == 3:
        plain = grey(x)
        x = plain + (x - plain) * s
    return x.clamp(0.0, 1.0)


def hue(x: Float[Tensor, "n c h w"], noise: Noise, most: float) -> Float[Tensor, "n c h w"]:
    """Turn each image's hue by U(-most, most) of the circle, as torchvision's ColorJitter; grey images stay.

    With v = max(r, g, b), c = v - min(r, g, b) and the hue h in [0, 1), a colour is v - c max(0, min(k, 4 - k, 1)),
    k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green and blue: saturation and value do not change.
    """
    if x.shape[1] != 3:
        return x
    turn = (2.0 * noise.uniform(1)[:, 0] - 1.0) * most
    value, place = x.max(dim=1)
    chroma = value - x.min(dim=1).values
    red, green, blue = x.unbind(1)
    sixths = torch.stack([green - blue, blue - red, red - green]) / chroma.clamp(min=1e-12)
    sixth = sixths.gather(0, place[None])[0] + 2.0 * place + 6.0 * turn[:, None, None]
    k = (torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype)[:, None, None] + sixth[:, None]) % 6.0
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def base(x: Float[Tensor, "n c h w"], noise: Noise, mirror: bool) -> Float[Tensor, "n c h w"]:
    """The augmentation every target gets, defended or not: crop of area .85-1, jitter .2/.2/.1, mirror image.

    It is `random_resized_crop`, then `colour_jitter`, to within 1e-5, in a third of the time: a box without a turn is
    stretched along rows and along columns apart, and the jitter is two passes over the pixels.

    Source: the recipe of Plug & Play Attacks' targets. Differs: no hue jitter (`hue`; their recipe by name has it).
    """
    u = noise.of("crop").uniform(6)
    side = (0.85 + 0.15 * u[:, 0]).sqrt()
    mirrored = (u[:, 4] < (0.5 if mirror else 0.0)).to(x.dtype)
    x = _stretched(x, side, u[:, 2], u[:, 3], mirrored)
    return _jittered(x, noise.of("jitter"), 0.2, 0.2, 0.1).contiguous(memory_format=torch.channels_last)


def _stretched(
    x: Float[Tensor, "n c h w"],
    side: Float[Tensor, " n"],
    top: Float[Tensor, " n"],
    left: Float[Tensor, " n"],
    mirrored: Float[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """`crop` of boxes of the image's own shape, `side` of each side: rows are gathered and blended, columns are a
    matrix product with two weights a column."""
    n, channels, height, width = x.shape
    first, last, weight = _places(height, side, (2 * top - 1) * (1 - side))
    images = torch.arange(n, device=x.device)[:, None]
    rows = x.permute(0, 2, 3, 1)
    rows = torch.lerp(rows[images, first], rows[images, last], weight[:, :, None, None]).permute(0, 3, 1, 2)
    first, last, weight = _places(width, side * (1.0 - 2.0 * mirrored), (2 * left - 1) * (1 - side))
    columns = torch.zeros(n, width, width, device=x.device, dtype=x.dtype)
    columns.scatter_add_(1, first[:, None], (1.0 - weight)[:, None])
    columns.scatter_add_(1, last[:, None], weight[:, None])
    return (rows.reshape(n, channels * height, width) @ columns).view(n, channels, height, width)


def _places(
    length: int, scale: Float[Tensor, " n"], shift: Float[Tensor, " n"]
) -> tuple[Int64[Tensor, "n l"], Int64[Tensor, "n l"], Float[Tensor, "n l"]]:
    """Between which two pixels of an axis each new pixel lies, and how far from the first: scale t + shift, with t the
    middles of the pixels on [-1, 1]; beyond the edge, the edge."""
    middles = (2.0 * torch.arange(length, device=scale.device, dtype=scale.dtype) + 1.0) / length - 1.0
    place = (((scale[:, None] * middles + shift[:, None] + 1.0) * length - 1.0) / 2.0).clamp(0.0, length - 1.0)
    first = place.floor()
    return first.long(), (first + 1.0).clamp(max=length - 1.0).long(), place - first


def _jittered(
    x: Float[Tensor, "n c h w"], noise: Noise, brightness: float, contrast: float, saturation: float
) -> Float[Tensor, "n c h w"]:
    """`colour_jitter`, whose three steps are one affine map of each pixel's colours: b c s x + b c (1 - s) grey(x) +
    (1 - c) b mean(grey(x))."""
    factor = 1.0 + (2.0 * noise.uniform(3) - 1.0) * torch.tensor([brightness, contrast, saturation], device=x.device)
    b, c, s = (factor[:, i, None, None, None] for i in range(3))
    plain = grey(x)
    middle = plain.mean(dim=(2, 3), keepdim=True) * (b * (1.0 - c))
    if x.shape[1] != 3:
        return torch.addcmul(middle, x, b * c).clamp_(0.0, 1.0)
    return torch.addcmul(plain.mul(b * c * (1.0 - s)).add_(middle), x, b * c * s).clamp_(0.0, 1.0)


def view(x: Float[Tensor, "n c h w"], noise: Noise, mirror: bool, jitter: float = 1.0) -> Float[Tensor, "n c h w"]:
    """How PLG-MI, LOKT and Diff-MI look at a generated image: a crop, jitter, a mirror image, a turn.

    The crop has area .8-1 and keeps the aspect ratio; jitter is brightness and contrast by up to .2, with probability
    `jitter`; every other image is mirrored (where `mirror` allows it), every other one turned by U(-5, 5) degrees,
    and what the turn brings in from outside is black.

    Source: the authors' code, kornia 0.6.6: RandomResizedCrop((64, 64), (.8, 1), (1, 1)), ColorJitter(.2, .2),
    RandomHorizontalFlip() and RandomRotation(5), whose probability is .5 like the flip's.
    Differs: crop and turn are one resampling, not two.
    """
    u = noise.of("turn").uniform(2)
    angle = math.radians(5.0) * (2.0 * u[:, 1] - 1.0) * (u[:, 0] < 0.5)
    box = noise.of("crop").uniform(4)
    side = (0.8 + 0.2 * box[:, 0]).sqrt()
    mirrored = (box[:, 3] < (0.5 if mirror else 0.0)).to(x.dtype)
    x = crop(x, side, side, box[:, 1], box[:, 2], mirrored, angle)
    jittered = colour_jitter(x, noise.of("jitter"), 0.2, 0.2, 0.0)
    if jitter < 1.0:
        chosen = noise.of("chosen").uniform(1, 1, 1) < jitter
        jittered = torch.where(chosen, jittered, x)
    # Black where a turn of the cropped image looks beyond its edge.
    cos, sin, nil = angle.cos().to(x.dtype), angle.sin().to(x.dtype), torch.zeros_like(angle, dtype=x.dtype)
    aspect = x.shape[2] / x.shape[3]
    turn = torch.stack([cos, sin * aspect, nil, -sin / aspect, cos, nil], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(turn, [len(x), 1, *x.shape[2:]], align_corners=False)
    return jittered * F.grid_sample(torch.ones_like(x[:, :1]), grid, align_corners=False)
