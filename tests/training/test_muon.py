"""Laws of Muon: its directions are orthogonal, it does not care for bases, and it is torch's where torch has one."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mibench.models import build
from mibench.training.muon import BESIDE, Muon, hidden_weights, orthogonalised


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(drawn(size, size, seed=seed)).Q


@pytest.mark.parametrize("shape", [(16, 75), (32, 144), (128, 64), (5, 5), (1, 9)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    for scale in (1e-4, 1.0, 1e3):
        left, values, right = torch.linalg.svd(scale * drawn(*shape), full_matrices=False)
        update = orthogonalised(scale * drawn(*shape), 6)
        seen = torch.linalg.svdvals(update)
        assert seen.max() < 1.25 and seen.min() > (0.6 if values.min() > 0.02 * values.max() else 0.0)
        # The singular vectors stay.
        inner = left.mT @ update @ right.mT
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-3 and inner.diagonal().min() > 0


def test_it_is_the_published_iteration() -> None:
    """Each singular value goes through s -> a s + b s^3 + c s^5, from its share of the Frobenius norm, and no other."""
    x = drawn(12, 20).double().float()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    values = (values / values.norm()).double()
    for _ in range(4):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalised(x, 4), left @ values.float().diag() @ right, atol=2e-5, rtol=0)


def test_turned_matrices_give_turned_updates() -> None:
    x, left, right = drawn(10, 24), rotation(10, 1), rotation(24, 2)
    torch.testing.assert_close(orthogonalised(left @ x @ right), left @ orthogonalised(x) @ right, atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalised(x.mT), orthogonalised(x).mT, atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonalised(7.0 * x), orthogonalised(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalised(-x), -orthogonalised(x))


def test_a_batch_is_its_matrices_and_nothing_stays_nothing() -> None:
    x = drawn(3, 8, 12)
    for one, other in zip(orthogonalised(x), x, strict=True):
        torch.testing.assert_close(one, orthogonalised(other), atol=1e-5, rtol=0)
    assert not orthogonalised(torch.zeros(4, 6)).any()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    """Up to the bfloat16 in which torch iterates; the scale of a tall matrix included."""
    start = drawn(*shape)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([mine], [], lr=0.1, weight_decay=0.05, momentum=0.9, iterations=5)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.05, momentum=0.9, ns_steps=5)
    for step in range(5):
        mine.grad = drawn(*shape, seed=step + 1)
        theirs.grad = mine.grad.clone()
        ours.step()
        reference.step()
    moved = (theirs - start).detach()
    assert ((mine - theirs).detach().norm() / moved.norm()) < 0.01


def test_what_is_no_hidden_matrix_takes_the_steps_of_adamw() -> None:
    mine, theirs = nn.Parameter(drawn(7)), nn.Parameter(drawn(7))
    ours = Muon([], [mine], lr=0.1, weight_decay=0.05)
    reference = torch.optim.AdamW([theirs], lr=0.1 * BESIDE, weight_decay=0.05)
    for step in range(5):
        mine.grad = drawn(7, seed=step + 1)
        theirs.grad = mine.grad.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_a_kernel_is_the_matrix_of_its_filters_and_shapes_do_not_mix() -> None:
    kernel, matrix, tall = drawn(6, 4, 3, 3), drawn(6, 36), drawn(50, 8)
    parameters = [nn.Parameter(one.clone()) for one in (kernel, matrix, tall)]
    for parameter, seed in zip(parameters, (1, 2, 3), strict=True):
        parameter.grad = drawn(*parameter.shape, seed=seed)
    Muon(parameters, [], lr=0.1).step()
    for parameter, start, seed in zip(parameters, (kernel, matrix, tall), (1, 2, 3), strict=True):
        step = orthogonalised(drawn(*parameter.shape, seed=seed).flatten(1), 4).view(parameter.shape)
        scale = 0.1 * math.sqrt(max(1.0, start.shape[0] / start.flatten(1).shape[1]))
        torch.testing.assert_close(parameter.detach(), start - scale * step, atol=1e-5, rtol=0)


def test_which_weights_are_hidden() -> None:
    net = build("cnn", 5, (3, 64, 64))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = [names[id(weight)] for weight in hidden_weights(net)]
    assert found == [*(f"trunk.stage{stage}.0.weight" for stage in (1, 2, 3, 4)), "trunk.hidden.1.weight"]
    net.trunk.stage2.requires_grad_(False)
    assert len(hidden_weights(net)) == 4


def test_a_state_that_is_loaded_goes_on_with_the_same_bits() -> None:
    def steps(optimizer: Muon, parameters: list[nn.Parameter], first: int) -> None:
        for step in range(first, first + 3):
            for place, parameter in enumerate(parameters):
                parameter.grad = drawn(*parameter.shape, seed=10 * step + place)
            optimizer.step()

    def fresh() -> tuple[Muon, list[nn.Parameter]]:
        parameters = [nn.Parameter(drawn(*shape)) for shape in ((6, 4, 3, 3), (9, 5), (6,))]
        return Muon(parameters[:2], parameters[2:], lr=0.1, weight_decay=0.05), parameters

    optimizer, whole = fresh()
    steps(optimizer, whole, 0)
    kept, values = deepcopy(optimizer.state_dict()), [parameter.detach().clone() for parameter in whole]
    steps(optimizer, whole, 3)
    again, resumed = fresh()
    again.load_state_dict(kept)
    for parameter, value in zip(resumed, values, strict=True):
        parameter.data.copy_(value)
    steps(again, resumed, 3)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
