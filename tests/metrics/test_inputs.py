"""Images that no judging network takes."""

import math

import pytest
import torch
from features import uniform

from mibench.metrics import inputs
from mibench.runtime.errors import UserError


def test_images_must_lie_in_the_unit_range() -> None:
    good = uniform(2, 3, 4, 4)
    assert torch.equal(inputs.images("fid", good), good)
    assert torch.equal(inputs.images("fid", good[:, :1]), good[:, :1].repeat(1, 3, 1, 1))
    for bad in (2 * good - 1, 255 * good, good + 1e-3):
        with pytest.raises(UserError, match=r"fid: pixels lie in .* allowed: \[0, 1\]"):
            inputs.images("fid", bad.index_fill(0, torch.tensor([1]), float(bad.max()) + 0.1))
    with pytest.raises(ValueError, match="fid: 48 of 96 pixels"):
        inputs.images("fid", good.index_fill(0, torch.tensor([1]), math.nan))
    with pytest.raises(UserError, match="4 channels"):
        inputs.images("fid", uniform(1, 4, 2, 2))
