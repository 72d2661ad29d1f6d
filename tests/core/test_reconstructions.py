"""What an attack returns is taken as it is, put in order, or refused in a line that names it and says what to do."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from mistakes import rows

from mibench.core import Reconstructions, checked
from mibench.runtime.errors import UserError

SHAPE = (3, 4, 4)
LABELS = torch.tensor([4, 0, 3])


@pytest.fixture(autouse=True)
def as_installed() -> Iterator[None]:
    """A plug-in's author runs mibench without the type checks of its tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def images(labels: torch.Tensor) -> torch.Tensor:
    """Image i is (i + 1) / 10 everywhere."""
    return ((torch.arange(len(labels)) + 1.0) / 10)[:, None, None, None].expand(-1, *SHAPE).clone()


def returned(labels: torch.Tensor, **more: Any) -> Reconstructions:
    return Reconstructions(images(labels), labels, torch.arange(len(labels))[:, None].float(), **more)


def test_what_is_right_is_not_touched() -> None:
    made = returned(LABELS.repeat_interleave(2))
    found, missing = checked(made, "mine", LABELS, SHAPE)
    assert found is made and len(missing) == 0


def test_images_and_labels_are_enough() -> None:
    found, _ = checked(Reconstructions(images(LABELS), LABELS), "mine", LABELS, SHAPE)
    assert found.latents.shape == (3, 0) and not found.failed.any()


def test_another_order_is_put_into_the_one_that_was_asked_for() -> None:
    found, missing = checked(returned(torch.tensor([0, 3, 4, 3, 0, 4])), "mine", LABELS, SHAPE)
    assert found.labels.tolist() == [4, 4, 0, 0, 3, 3] and len(missing) == 0
    assert found.latents[:, 0].tolist() == [2, 5, 0, 4, 1, 3]
    assert found.images[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.6, 0.1, 0.5, 0.2, 0.4])


def test_who_is_left_out_has_failed() -> None:
    found, missing = checked(returned(torch.tensor([3, 3, 4, 4])), "mine", LABELS, SHAPE)
    assert missing.tolist() == [0] and found.labels.tolist() == [4, 4, 0, 0, 3, 3]
    assert found.failed.tolist() == [False, False, True, True, False, False]
    assert (found.images[2:4] == 0.5).all() and found.latents[:, 0].tolist() == [2, 3, 0, 0, 0, 1]


def test_ranges_by_name_are_brought_to_one() -> None:
    unit = images(LABELS)
    byte = (unit * 255).round().to(torch.uint8)
    for made in (
        Reconstructions(unit * 255, LABELS, range="byte"),
        Reconstructions(byte, LABELS, range="byte"),
        Reconstructions(unit * 2 - 1, LABELS, range="signed"),
    ):
        found, _ = checked(made, "mine", LABELS, SHAPE)
        assert found.images.dtype == torch.float32
        torch.testing.assert_close(found.images, unit, atol=0.5 / 255, rtol=0)


def test_what_storing_rounds_off_is_let_through() -> None:
    checked(Reconstructions(images(LABELS) - 0.1001, LABELS), "mine", LABELS, SHAPE)


NAN = images(LABELS)
NAN[1, 0, 0, 0] = torch.nan
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "NoneType; return mibench.core.Reconstructions"),
    "a tensor": (lambda: images(LABELS), "Tensor; return mibench.core.Reconstructions"),
    "bytes without a word": (
        lambda: Reconstructions(images(LABELS).to(torch.uint8), LABELS),
        "images of uint8; make it a float tensor; .* add range='byte'",
    ),
    "labels of floats": (
        lambda: Reconstructions(images(LABELS), LABELS.float()),
        "labels of float32; make it an int64",
    ),
    "a list of labels": (lambda: Reconstructions(images(LABELS), [4, 0, 3]), "labels of type list"),  # type: ignore[arg-type]
    "too few labels": (lambda: Reconstructions(images(LABELS), LABELS[:2]), r"3 images and labels of shape \(2,\)"),
    "too few latents": (
        lambda: Reconstructions(images(LABELS), LABELS, torch.zeros(2, 5)),
        r"3 images and latents of shape \(2, 5\); make it \(n, d\) with n = 3",
    ),
    "marks that are no bool": (
        lambda: Reconstructions(images(LABELS), LABELS, failed=torch.zeros(3)),  # type: ignore[arg-type]
        "failed of float32; make it a bool tensor",
    ),
    "another size": (
        lambda: Reconstructions(torch.rand(3, 3, 8, 8), LABELS),
        r"images of shape \(3, 3, 8, 8\); the target's are \(n, 3, 4, 4\)",
    ),
    "one image without a batch": (lambda: Reconstructions(torch.rand(3, 4, 4), LABELS), r"images of shape \(3, 4, 4\)"),
    "NaN": (lambda: Reconstructions(NAN, LABELS), "NaN or infinity in 1 of 3 images"),
    "bytes as floats": (
        lambda: Reconstructions(images(LABELS) * 255, LABELS),
        r"pixels in \[25.5, 76.5\]; images lie in \[0, 1\]: say .*range='byte'.*range='signed'",
    ),
    "signed without a word": (lambda: Reconstructions(images(LABELS) * 2 - 1, LABELS), r"pixels in \[-0.8, -0.4\]"),
    "signed that are bytes": (
        lambda: Reconstructions(images(LABELS) * 255, LABELS, range="signed"),
        r"pixels in \[13.25, 38.75\]",
    ),
    "somebody else": (
        lambda: Reconstructions(images(LABELS), torch.tensor([4, 0, 2])),
        "images of identity 2, which it was not asked for; it was asked for identities 4, 0, 3",
    ),
    "uneven counts": (
        lambda: returned(torch.tensor([4, 4, 0, 0, 3])),
        r"1 image\(s\) of identity 3 and 2 of 4; return as many of each",
    ),
    "no image at all": (lambda: Reconstructions(torch.rand(0, *SHAPE), LABELS[:0]), "no images at all"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_that_names_the_attack(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(UserError, match=f"^the attack mine returned .*{message}") as caught:
        checked(make(), "mine", LABELS, SHAPE)
    assert "\n" not in str(caught.value)


def test_the_page_of_mistakes_says_what_is_said() -> None:
    page = dict(rows("What an attack returns"))
    assert set(page) == set(WRONG)
    for name, said in page.items():
        with pytest.raises(UserError) as caught:
            checked(WRONG[name][0](), "mine", LABELS, SHAPE)
        assert said in str(caught.value), name


def test_a_range_that_nobody_knows() -> None:
    with pytest.raises(UserError, match="range 'bytes'; allowed: unit, byte, signed"):
        Reconstructions(images(LABELS), LABELS, range="bytes")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="images must be a tensor, got list"):
        Reconstructions([1.0], LABELS)  # type: ignore[arg-type]
