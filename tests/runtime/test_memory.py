"""Batches follow the memory of the device: planned, halved, and the same results whichever was found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import World, colours, small_net

from mibench.core import Prior
from mibench.runtime import memory
from mibench.runtime.engine import Engine, resolve
from mibench.runtime.errors import UserError
from mibench.runtime.memory import bytes_each, halved, holds
from mibench.runtime.progress import Silent
from mibench.stages.invert import _pass, batch_of
from mibench.training import Training, fit, predict

GPU = Engine(torch.device("cuda"), "fp32")
CPU = resolve("cpu", "fp32")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def limited(call: Callable[..., Any], most: int, asked: list[int]) -> Callable[..., Any]:
    """As a device that holds so many images: `call` is given a tensor of images or latents first."""

    def called(x: Tensor, *more: Any, **named: Any) -> Any:
        asked.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError(FULL)
        return call(x, *more, **named)

    return called


def test_a_batch_is_a_power_of_two_below_the_half_of_memory() -> None:
    assert holds(100, 1, 40) == 40 and holds(100, 1, 50) == 50  # the usual one, where it fits
    assert [holds(memory, 1, 1000) for memory in (100, 128, 127, 2, 1, 0)] == [32, 64, 32, 1, 1, 1]
    # What a measurement is off by changes nothing.
    assert {holds(10**9, each, 2048) for each in range(2_000_000, 2_100_000, 10_000)} == {128}


def test_what_an_image_adds_is_the_slope_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(memory, "peak_memory", lambda device, run: run() or 10**9 + 7 * ran[-1])
    assert bytes_each(GPU.device, ran.append) == 7 and ran == [2, 2, 4]


@pytest.mark.parametrize(("free", "batch", "told"), [(140, 1024, False), (100, 512, True), (1, 8, True), (0, 1, True)])
def test_an_inversion_is_planned_by_what_the_device_has(
    free: int, batch: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """140 GB of which others may use some; an image takes 60 MB."""
    from mibench.stages import invert

    monkeypatch.setattr(invert, "total_memory", lambda device: 140 * 10**9)
    monkeypatch.setattr(invert, "free_memory", lambda device: free * 10**9)
    monkeypatch.setattr(invert, "bytes_each", lambda device, run: 60 * 10**6)
    said: list[str] = []
    world = World(3)
    assert batch_of(GPU, (3, 64, 64), world.prior, world.target, said.append) == batch
    assert len(said) == told and all(f"{batch} images at once instead of 1024" in line for line in said)
    assert batch_of(CPU, (3, 64, 64), world.prior, world.target) == 128  # as ever


@pytest.mark.parametrize("differentiated", [True, False])
def test_what_is_measured_is_a_step_of_a_search(differentiated: bool) -> None:
    world, asked = World(3), []
    decode = world.prior.decode
    world.prior.decode = limited(decode, 10, asked)  # type: ignore[method-assign]
    seen: list[bool] = []
    world.target.register_forward_hook(lambda module, given, answer: seen.append(answer.requires_grad))
    _pass(CPU, world.prior, world.target if differentiated else None, 5)
    assert asked == [5] and seen == [True] * differentiated


def test_halved_until_it_fits_with_other_errors_at_once() -> None:
    told: list[int] = []
    tried: list[int] = []

    def run(batch: int, most: int = 10) -> int:
        tried.append(batch)
        if batch > most:
            raise torch.OutOfMemoryError(FULL)
        return batch

    assert halved(run, 100, lambda batch, said: told.append(batch)) == 6
    assert tried == [100, 50, 25, 12, 6] and told == [50, 25, 12, 6]
    with pytest.raises(torch.OutOfMemoryError):
        halved(lambda batch: run(batch, 0), 4)
    with pytest.raises(RuntimeError, match="a mistake"):
        halved(lambda batch: (_ for _ in ()).throw(RuntimeError("a mistake")), 4)  # type: ignore[arg-type]


def test_answers_do_not_depend_on_what_fits() -> None:
    net, images, asked = small_net(), colours(60).images, []
    whole = predict(net, images, CPU)
    net.features = limited(net.features, 9, asked)  # type: ignore[method-assign,assignment]
    found = predict(net, images, CPU)
    assert asked[:5] == [60, 60, 60, 32, 16] and max(asked[5:]) == 8 and sum(asked[5:]) == 60
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_training_names_the_batch_that_fits(tmp_path: Path) -> None:
    """It is not cut into parts: batch norms would see others."""
    net, asked = small_net(), []
    net.forward = limited(net.forward, 9, asked)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"20 images of \d+ x \d+ at once do not fit .*, 5 do; --set training.batch="):
        fit(net, colours(40), 3, Training(epochs=1, batch=20), CPU, 3, Silent(), "toy")
    assert asked == [20, 10, 5]
    net.forward = limited(net.forward, 0, asked)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not even one does"):
        fit(net, colours(40), 3, Training(epochs=1, batch=20), CPU, 3, Silent(), "toy")


def test_priors_of_every_kind_can_be_measured() -> None:
    for name in ("gmi", "public_search", "diff_mi", "sfmi", "mi_face"):
        world = World(3)
        prior: Prior = world.prior_for(name)
        _pass(CPU, prior, world.target, 2)
