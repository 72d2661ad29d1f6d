"""What every metric of images refuses: numbers that are not finite, images that are not in [0, 1]."""

from jaxtyping import Float
from torch import Tensor

from mibench.runtime.errors import UserError
from mibench.stats.inputs import require_finite

__all__ = ["images"]


def images(metric: str, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images in [0, 1] as RGB in float32; grey images get three equal channels.

    Raises:
        ValueError: NaN or infinity. UserError: values outside [0, 1] (a network fed [-1, 1] gives a
            number that is not the metric), or
            neither 1 nor 3 channels.
    """
    require_finite(metric, "pixels", x)
    if x.shape[1] not in (1, 3):
        raise UserError(f"{metric}: images have {x.shape[1]} channels; allowed: 1 (grey) or 3 (RGB)")
    if x.numel():
        low, high = x.aminmax()
        if float(low) < 0 or float(high) > 1:
            raise UserError(
                f"{metric}: pixels lie in [{float(low):.3g}, {float(high):.3g}]; allowed: [0, 1]; undo any "
                "normalisation, and divide uint8 images by 255"
            )
    return x.float().expand(-1, 3, -1, -1)
