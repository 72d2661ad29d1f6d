"""The Inception of FID is torchvision's network with the other pools."""

from pathlib import Path

import pytest
import torch
import torchvision
from features import uniform
from torch import Tensor

from mibench.metrics import inception
from mibench.runtime.errors import UserError


class PatchedFunctional:
    """torch.nn.functional as the FID network sees it: the ninth average pool of a pass is a maximum."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(torch.nn.functional, name)

    def avg_pool2d(self, x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        self.calls += 1
        if self.calls == 9:
            return torch.nn.functional.max_pool2d(x, kernel_size, stride, padding)
        return torch.nn.functional.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)


def test_inception_is_torchvisions_network_with_the_other_pools(
    trusting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inception.load()
    assert isinstance(model, inception.Inception)
    images = uniform(2, 3, 299, 299)
    images[1] *= 0.5
    plain = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    state = torch.load(trusting / "hub" / "checkpoints" / inception.WEIGHTS.names[0], weights_only=True)
    counters = {k: v for k, v in plain.state_dict().items() if k.endswith("num_batches_tracked")}
    plain.load_state_dict({**state, **counters})
    plain.fc = torch.nn.Identity()
    plain.eval()
    with torch.no_grad():
        ours = model(images)
        theirs = plain(2 * images - 1)
        patched = PatchedFunctional()
        monkeypatch.setattr(torchvision.models.inception, "F", patched)
        expected = plain(2 * images - 1)
    assert patched.calls == 9
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert float((ours - theirs).abs().max()) > 0.01 * float(theirs.abs().max())


def test_inception_resizes_without_antialiasing_and_takes_grey_images(trusting: Path) -> None:
    model = inception.load()
    assert isinstance(model, inception.Inception)
    small = uniform(1, 1, 40, 32)
    large = torch.nn.functional.interpolate(small, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(model(small), model(large.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match="inception: pixels lie in"):
            model(2 * small - 1)
