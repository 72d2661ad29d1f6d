"""Toy networks, batches and steps that the tests of defenses share."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours, small_net

from mibench import models
from mibench.core import Batch, Defense, Step
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Fitted, Training, empty_memories, fit

ENGINE = resolve("cpu", "fp32")
CLASSES, SIDE = 6, 16
SHAPE = (3, SIDE, SIDE)


def linear_net(classes: int = 3, seed: int = 0) -> Classifier:
    """l = W (pixels), on images of 3 x 4 x 4."""
    torch.manual_seed(seed)
    return Classifier(Prepare((3, 4, 4), [0.0], [1.0]), nn.Flatten(), nn.Linear(48, classes), 48)


def inner_images(n: int, *shape: int) -> Tensor:
    """Images whose pixels are far from 0 and 1."""
    return 0.3 + 0.4 * torch.rand(n, *(shape or (3, 4, 4)), generator=torch.Generator().manual_seed(1))


def batch_noise(n: int) -> Noise:
    return Noise(3, torch.arange(n)).of("batch")


def step_of(model: nn.Module, n: int, memory: nn.Module | None = None, epoch: int = 0) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Step(model, memory or nn.Module(), optimizer, batch_noise(n), epoch, 3, ENGINE)


def batch_of(x: Tensor, y: Tensor, classes: int = 3) -> Batch:
    return Batch(x, F.one_hot(y, classes).float(), torch.ones(len(x)), len(x))


def cutout_share(side: float) -> float:
    return (side - side**2 / 4) ** 2


def masks(defense: Any, n: int = 4000, height: int = 32, width: int = 32) -> Tensor:
    return defense.mask(Noise(7, torch.arange(n)), height, width).double()


def mean_is(shares: Tensor, expected: float, rounding: float = 0.0) -> None:
    """A mean of independent images lies within 4 of its standard errors, plus what whole pixels round off."""
    error = float(shares.std() / len(shares) ** 0.5)
    assert abs(float(shares.mean()) - expected) < 4 * error + rounding + 1e-12


def mixing_step(count: int, *purpose: object) -> Step:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    noise = Noise(5, torch.arange(count) + 100).of(*purpose)
    return Step(model, nn.Module(), optimizer, noise, 0, 1, ENGINE)


def numbered(count: int, side: int = 16) -> Batch:
    """Image i is i + 1 everywhere and class i: who stands where can be read off the pixels."""
    x = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, side, side).clone()
    return Batch(x, torch.eye(count), torch.ones(count), count)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weighted_rows(b: int = 6, k: int = 4, clean: int = 6, seed: int = 0) -> Batch:
    """One-hot targets, uneven weights; the rows after `clean` belong to other defenses."""
    t = F.one_hot(torch.arange(b) % k, k).float()
    return Batch(drawn(b, 3, 8, 8, seed=seed).sigmoid(), t, torch.linspace(0.5, 1.5, b), clean)


def at_epoch(epoch: int = 0, epochs: int = 1) -> Step:
    """A step of which only the time matters."""
    nothing = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(nothing.parameters(), 0.1)
    noise = Noise(0, torch.arange(1))
    return Step(nothing, nn.Module(), optimizer, noise, epoch, epochs, ENGINE)


def cnn(*defenses: Defense, seed: int = 0) -> Classifier:
    return build("cnn", *defenses, seed=seed)


def deployed(defense: Defense, model: Classifier, seed: int = 0) -> Classifier:
    (memory,) = empty_memories([defense], 3, SHAPE, seed)
    served = defense.deploy(model, memory)
    assert isinstance(served, Classifier)
    return served.eval()


def trained(*defenses: Defense, epochs: int = 6) -> Classifier:
    model = cnn(*defenses)
    recipe = Training(epochs=epochs, batch=20, lr=0.01)
    fit(model, colours(60, SIDE), 3, recipe, ENGINE, 3, Silent(), "toy", defenses)
    return model.eval()


def pixels() -> Tensor:
    return colours(60, SIDE).images / 255.0


def labels() -> Tensor:
    return colours(60, SIDE).labels


def probs(n: int = 400, k: int = CLASSES, sharp: float = 2.0, seed: int = 0) -> Tensor:
    return torch.softmax(sharp * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)), dim=1)


def noise(n: int = 400, seed: int = 3) -> Noise:
    return Noise(seed, torch.arange(n))


def network(k: int = 3) -> Classifier:
    torch.manual_seed(0)
    model = models.build("cnn", k, SHAPE).eval()
    nn.init.normal_(model.head.weight)
    return model


def build(name: str, *defenses: Defense, seed: int = 0) -> Classifier:
    """A network after surgery; torchvision's at 32 px, which its pooling allows, to be quick."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = models.build(name, 3, SHAPE)
        for defense in defenses:
            model = defense.surgery(model)
    assert isinstance(model, Classifier)
    if name.startswith("resnet") and name != "resnet":
        model.prepare = Prepare(SHAPE, [0.5] * 3, [0.5] * 3, 32)
    return model


def train(model: Classifier, *defenses: Defense, epochs: int = 2, count: int = 24) -> Fitted:
    recipe = Training(epochs=epochs, batch=8, lr=0.01, optimizer="sgd")
    return fit(model, colours(count, SIDE), 3, recipe, ENGINE, 1, Silent(), "toy", defenses)


def meta(name: str) -> Classifier:
    with torch.device("meta"):
        return models.build(name, 10, (3, 64, 64))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors are the same bits, whatever a wrapper has made of their names."""
    mine, theirs = (
        {key.replace(".skip.", "."): value for key, value in model.state_dict().items() if not key.endswith(".k")}
        for model in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())


def assert_trains_like_none(name: str, defense: Defense) -> None:
    """A training under this defense leaves the network that a training without one leaves."""
    plain, model = build(name), build(name, defense)
    train(plain, epochs=1, count=8)
    train(model, defense, epochs=1, count=8)
    assert same_state(plain, model)
    assert torch.equal(plain.eval()(images()), model.eval()(images()))


def assert_refused(name: str, settings: dict[str, Any], message: str = "") -> None:
    """Settings out of range are one line that begins with the defense's name, typed or given to its class."""
    with pytest.raises(UserError, match=f"^{name}: {message}") as caught:
        registry.load("defenses", name)(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", name, settings=settings)


def preset(name: str, which: str = "paper") -> Any:
    return registry.configure("defenses", name, which).plugin
