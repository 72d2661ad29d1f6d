"""dlib's face recogniser: a small network in the true file format against plain torch, refusals, and the real one."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from dlib_file import Small, convolution, text
from torch.nn import functional as F

from mibench.models import dlib_face
from mibench.runtime.errors import UserError


@pytest.fixture
def small() -> Small:
    return Small()


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "net.dat"
    path.write_bytes(data)
    return path


# --- a small network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [31, 27])  # the mean's map is the smaller of the two, or the larger
def test_a_file_gives_the_network_that_plain_torch_computes(tmp_path: Path, size: int) -> None:
    small = Small(1, size)
    network = dlib_face.build(dlib_face.read(saved(tmp_path, small.bytes())), (3, size, size))
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network.features(x), small.features(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(network(x), network.features(x)) and not any(p.requires_grad for p in network.parameters())


def test_gradients_reach_the_image_as_in_plain_torch(tmp_path: Path, small: Small) -> None:
    network = dlib_face.build(dlib_face.read(saved(tmp_path, small.bytes())), (3, 31, 31))
    x = torch.rand(2, 3, 31, 31, generator=torch.Generator().manual_seed(3)).requires_grad_()
    own, plain = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (network.features, small.features))
    assert float(own.abs().max()) > 0
    torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-5)


def test_grey_images_are_repeated_and_other_sizes_resized(tmp_path: Path, small: Small) -> None:
    read = dlib_face.read(saved(tmp_path, small.bytes()))
    grey = torch.rand(2, 1, 31, 31, generator=torch.Generator().manual_seed(4))
    colour = dlib_face.build(read, (3, 31, 31)).features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(dlib_face.build(read, (1, 31, 31)).features(grey), colour)
    larger = F.interpolate(grey, (62, 62), mode="bilinear", antialias=True)
    again = F.interpolate(larger, (31, 31), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    wanted = dlib_face.build(read, (3, 31, 31)).features(again)
    torch.testing.assert_close(dlib_face.build(read, (1, 62, 62)).features(larger), wanted, rtol=1e-4, atol=1e-5)


def test_newer_versions_of_layers_hold_the_same_network(tmp_path: Path, small: Small) -> None:
    layers = small.layers()
    newer = list(layers)
    w, b, _, _, s, p = small.parts[0]
    newer[0] = convolution(w, b, s, p, version=6)
    newer[1] = layers[1].replace(text("affine_"), text("affine_2")) + b"0"
    newer[2] = text("relu_2") + b"0"
    newer[-1] = layers[-1].replace(text("fc_2"), text("fc_3")) + b"1"
    old, new = (dlib_face.read(saved(tmp_path, small.bytes(layers=one))) for one in (layers, newer))
    x = torch.rand(2, 3, 31, 31)
    one, two = (dlib_face.build(network, (3, 31, 31)).features(x) for network in (old, new))
    assert torch.equal(one, two)


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        dlib_face.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, small: Small) -> None:
    whole_file = small.bytes()
    for end in range(0, len(whole_file), 211):
        assert "not dlib's face recogniser" in refused(saved(tmp_path, whole_file[:end]))
    assert "bytes follow" in refused(saved(tmp_path, whole_file + b"\x01\x00"))


def test_other_networks_and_other_files_are_refused(tmp_path: Path, small: Small) -> None:
    layers = small.layers()
    assert "its loss is 'loss_mmod'" in refused(saved(tmp_path, small.bytes(loss="loss_mmod")))
    assert "'bn_con2'" in refused(saved(tmp_path, small.bytes(layers=[layers[0], text("bn_con2"), *layers[2:]])))
    relu = text("relu_")
    assert "another network" in refused(saved(tmp_path, small.bytes(layers=[*layers[:-1], relu, layers[-1]])))
    assert "no length of an integer" in refused(saved(tmp_path, b"PK\x03\x04" + bytes(100)))
    assert "cannot be read" in refused(tmp_path / "nowhere.dat")


def test_numbers_that_are_none_are_refused(tmp_path: Path, small: Small) -> None:
    small.parts[0][1][0] = torch.nan
    assert "NaN or infinity" in refused(saved(tmp_path, small.bytes()))


# --- the real one ---------------------------------------------------------------------------------------------------


def test_the_published_network_answers_what_dlib_answers() -> None:
    # Golden: face_recognition_model_v1.compute_face_descriptor of dlib 20.0.1 on this drawn image.
    try:
        files = distribution("face-recognition-models").files or []
    except PackageNotFoundError:
        pytest.skip("the extra `faces` is not installed")
    path = next(Path(str(f.locate())) for f in files if f.name == "dlib_face_recognition_resnet_model_v1.dat")
    network = dlib_face.build(dlib_face.read(path), (3, 150, 150))
    y, x = torch.meshgrid(torch.arange(150), torch.arange(150), indexing="ij")
    drawn = torch.stack([x * 255 // 149, y * 255 // 149, (x + y) * 255 // 298])[None] / 255
    golden = torch.tensor(GOLDEN)
    told = network.features(drawn)[0]
    torch.testing.assert_close(told[: len(golden)], golden, rtol=0, atol=2e-6)
    assert told.shape == (128,) and float(told.norm()) == pytest.approx(1.3063282, abs=1e-5)


GOLDEN = [-0.05097774, 0.12098702, 0.06010887, 0.01423589, -0.05570291, -0.0460848]
