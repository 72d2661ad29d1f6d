"""The published crops: which box of a picture, and how it becomes a square of so many pixels.

All resizing is Pillow's antialiased bilinear filter on 8-bit pixels, which is what `torchvision.transforms.Resize` does
to a picture; the authors' loaders crop tensors and go back to 8 bits before they resize, which loses nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

__all__ = ["CROPS", "Crop", "cut"]


@dataclass(frozen=True)
class Crop:
    """One published way from a picture to a square.

    Args:
        size: Side of the square in pixels.
        first: The picture is resized to `first` x `first` before anything else; 0 is not.
        centre: Side of the centre box that is cut out; 0 is none.
        expects: (width, height) that the picture must have, after `first`; (0, 0) is any.
        fit: What is done with what is not square: its `shorter` side becomes `size` and the centre is cut out, or it is
            `squash`ed.
        align: `hd` turns the face by its landmarks (`align.hd_matrix`), `mtcnn` looks for it; empty does neither.
        colour: RGB; if not, grey.
    """

    size: int
    first: int = 0
    centre: int = 0
    expects: tuple[int, int] = (0, 0)
    fit: str = "shorter"
    align: str = ""
    colour: bool = True

    def spec(self) -> dict[str, object]:
        """The fields as JSON values."""
        return asdict(self) | {"expects": list(self.expects)}


CROPS: Mapping[str, tuple[str, Crop, str]] = {
    "celeba-108": ("CelebA, aligned 178 x 218", Crop(64, centre=108, expects=(178, 218)), "GMI, KEDMI, LOMMA, PLG-MI"),
    "celeba-128": ("CelebA, aligned 178 x 218", Crop(64, centre=128, expects=(178, 218)), "VMI"),
    "celeba-hd": ("CelebA in the wild, by 68 landmarks, face factor .65", Crop(224, align="hd"), "PPA, IF-GMI, MIDRE"),
    "facescrub-54": ("FaceScrub faces, first 64 x 64", Crop(64, first=64, centre=54), "KEDMI, PLG-MI"),
    "facescrub-224": ("FaceScrub faces", Crop(224), "PPA, RoLSS, MIDRE"),
    "dogs-224": ("Stanford Dogs, whole or in the bounding box", Crop(224, fit="squash"), "PPA"),
    "pubfig-67": ("PubFig83, 100 x 100", Crop(64, centre=67, expects=(100, 100)), "GMI"),
    "pubfig-176": ("PubFig83, 256 x 256", Crop(64, centre=176, expects=(256, 256)), "a comment in KEDMI's loader"),
    "vggface2-mtcnn": ("VGGFace2 photographs, the face that MTCNN finds", Crop(64, align="mtcnn"), "here"),
    "ffhq-88": ("FFHQ thumbnails 128 x 128", Crop(64, centre=88, expects=(128, 128)), "KEDMI, PLG-MI, LOKT"),
    "ffhq-800": ("FFHQ 1024 x 1024", Crop(224, centre=800, expects=(1024, 1024)), "PPA"),
    "metfaces-800": ("MetFaces 1024 x 1024", Crop(224, centre=800, expects=(1024, 1024)), "PPA"),
    "afhq-512": ("AFHQ dogs 512 x 512", Crop(224, expects=(512, 512)), "PPA"),
}
"""Name -> what it is for, the crop at its published size, who uses it. Another size changes the last resize alone."""


def cut(image: Image.Image, crop: Crop, box: tuple[int, int, int, int] | None = None) -> UInt8[np.ndarray, "h w c"]:
    """A picture's pixels as `crop` says; of a box (left, upper, right, lower) first, where there is one.

    The centre box of side c lies at floor((side - c) / 2), as in the authors' loaders; that of a resized picture at the
    rounded half, to even, as torchvision's `CenterCrop` has it.

    Raises:
        ValueError: The picture has another size than the crop is for.
    """
    image = image.convert("RGB" if crop.colour else "L")
    if box is not None:
        image = image.crop(box)
    if crop.first:
        image = image.resize((crop.first, crop.first), Image.Resampling.BILINEAR)
    if crop.expects != (0, 0) and image.size != crop.expects:
        (width, height), (wide, high) = image.size, crop.expects
        raise ValueError(f"it has {width} x {height} pixels; this crop is for {wide} x {high}")
    if crop.centre:
        left, upper = (image.width - crop.centre) // 2, (image.height - crop.centre) // 2
        image = image.crop((left, upper, left + crop.centre, upper + crop.centre))
    if crop.fit == "shorter" and image.width != image.height:
        # torchvision: the shorter side becomes `size`, the longer int(size * longer / shorter)
        shorter, longer = min(image.size), max(image.size)
        other = int(crop.size * longer / shorter)
        image = image.resize(
            (crop.size, other) if image.width == shorter else (other, crop.size), Image.Resampling.BILINEAR
        )
        left, upper = round((image.width - crop.size) / 2), round((image.height - crop.size) / 2)
        image = image.crop((left, upper, left + crop.size, upper + crop.size))
    if image.size != (crop.size, crop.size):
        image = image.resize((crop.size, crop.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
