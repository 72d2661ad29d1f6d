"""Changed heads fold, answer an attacker, and refuse each other."""

import pytest
import torch
from defending import build, cnn, deployed, labels, pixels
from torch.nn import functional as F

from mibench import models
from mibench.core import Access, Defense, Oracle
from mibench.defenses.loft import LowRank
from mibench.defenses.mid import MutualInformation
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.runtime.errors import UserError


@pytest.mark.parametrize(
    "defense", [LowRank(rank=5), LowRank(rank=5, tanh=False), MutualInformation(), MutualInformation(serve="noise")]
)
@pytest.mark.parametrize("name", ["cnn", "ir"])
def test_changed_heads_fold_and_answer_an_attacker(defense: Defense, name: str) -> None:
    model = build(name, defense).eval()
    served = deployed(defense, model)
    frozen, x = fold(served), pixels()[:6].requires_grad_()
    torch.testing.assert_close(frozen(x), served(x), atol=1e-4, rtol=1e-4)
    oracle = Oracle(frozen, Access.WHITE_BOX, 3)
    logits, features = oracle.answers(x, None)
    torch.testing.assert_close(logits, model(x), atol=1e-4, rtol=1e-4)  # never noisy
    assert features.shape == (6, model.feature_dim)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels()[:6]), x)
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).all()
    assert all(not parameter.requires_grad for parameter in frozen.parameters())


def test_two_heads_and_two_smoothings_are_refused() -> None:
    from mibench.experiments.reading import read_stack

    for stack in ("mid+loft", "loft+mid", "ls+nls", "nls+ls"):
        with pytest.raises(UserError, match="cannot be combined"):
            read_stack(stack, {})
    for first, second in ((LowRank(), MutualInformation()), (MutualInformation(), LowRank())):
        with pytest.raises(UserError, match=r"linear last layer.*such as cnn"):
            cnn(first, second)


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir", "vgg16_bn64", "resnet18", "vit_b_16"])
@pytest.mark.parametrize("defense", [LowRank(), MutualInformation()])
def test_surgery_on_the_meta_device(name: str, defense: Defense) -> None:
    with torch.device("meta"):
        model = defense.surgery(models.build(name, 10, (3, 64, 64)))
    assert isinstance(model, Classifier) and all(part.is_meta for part in model.head.parameters())
