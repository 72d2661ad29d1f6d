"""The contract of every registered defense: what holds for one holds for all that are registered later."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import Stop
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours

from mibench import models
from mibench.core import Defense, Split
from mibench.experiments.reading import read_stack
from mibench.models.base import Classifier
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.progress import Silent
from mibench.runtime.rng import seed_of
from mibench.stages.artifacts import fill_memories, write_memories
from mibench.training import Fitted, Training, empty_memories, fit, predict

SIDE = 16
RECIPE = Training(epochs=3, batch=10, lr=0.01)
NAMES = registry.names("defenses")

MODEL = {"rolss": "resnet", "ssf": "resnet", "tts": "resnet"}
"""The architecture a defense is tried on, where the small plain CNN will not do."""

SHORT: dict[str, dict[str, Any]] = {}
"""Settings that keep a costly defense short; nothing that weakens a law."""

ZERO: dict[str, dict[str, Any]] = {
    "none": {},
    "re": {"a_e": 0.0, "a_min": 0.0},
    "at_at": {"lam": 0.0},
    "pgd_at": {"eps": 0.0},
    "trap": {"beta": 0.0},
    "pixel_drop": {"q": 0.0},
    "cutout": {"side": 0.0},
    "gridmask": {"q": 0.0},
    "has": {"p": 0.0},
    "cutmix": {"p": 0.0},
    "mixup": {"alpha": 0.0},
    "truncate": {"k": 0},
    "rounding": {"digits": 0},
    "temperature": {"temperature": 1.0},
    "noise": {"scale": 0.0},
    "ssd": {"eps": 0.0},
    "ls": {"alpha": 0.0},
    "nls": {"alpha": 0.0},
    "rolss": {"stages": 0},
    "ssf": {"keep": 1.0},
    "tts": {"warm": 1.0},
    "tl": {"freeze": 0.0},
    "bido": {"lambda_x": 0.0},
    "dcd": {"share": 0.0},
}
"""The settings at which a defense does nothing, bit for bit. Every defense has an entry here or in NO_ZERO."""

NO_ZERO: dict[str, str] = {
    "dp_sgd": "its batches are Poisson samples and its batch norms are group norms, even without noise",
    "sca": "its first layers are other layers, even when codes cost nothing",
    "mid": "its head is a bottleneck even when what passes through costs nothing",
    "loft": "its head is two layers, at any rank",
}
"""Why a defense is never none, whatever its settings."""


@dataclass
class Trained:
    """A trained toy target and what its training left."""

    model: Classifier
    fitted: Fitted
    defenses: list[Defense]

    def served(self) -> Classifier:
        model: nn.Module = self.model
        for defense, memory in zip(self.defenses, self.fitted.memories, strict=True):
            model = defense.deploy(model, memory)
        assert isinstance(model, Classifier)
        return model.eval()


def data() -> Split:
    return colours(40, SIDE)


def strangers() -> Split:
    """Public images without identities."""
    return Split(colours(30, SIDE, seed=3).images, torch.full((30,), -1))


def network(architecture: str, defenses: list[Defense], seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "init"))
        model: nn.Module = models.build(architecture, 3, (3, SIDE, SIDE))
        for defense in defenses:
            model = defense.surgery(model)
    assert isinstance(model, Classifier)
    return model


def plugin(name: str, **settings: Any) -> Defense:
    return registry.configure("defenses", name, settings=SHORT.get(name, {}) | settings).plugin


def train(
    architecture: str,
    *defenses: Defense,
    precision: str = "fp32",
    checkpoint: Path | None = None,
    recipe: Training = RECIPE,
    reporter: Any = None,
) -> Trained:
    stack = list(defenses)
    model = network(architecture, stack)
    engine = resolve("cpu", precision)
    fitted = fit(model, data(), 3, recipe, engine, 5, reporter or Silent(), "toy", stack, True, checkpoint, strangers())
    return Trained(model, fitted, stack)


def architecture(name: str) -> str:
    return MODEL.get(name, "cnn")


def finite(trained: Trained) -> bool:
    kept = [value for part in (trained.model, *trained.fitted.memories) for value in part.state_dict().values()]
    return all(bool(value.isfinite().all()) for value in kept if value.is_floating_point())


def scores(model: Classifier, precision: str = "fp32") -> Tensor:
    logits, _ = predict(model, data().images, resolve("cpu", precision))
    return F.softmax(logits, dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_defense_says_what_it_is(name: str) -> None:
    card = registry.card("defenses", name)
    assert {"summary", "title", "authors", "venue", "year", "link", "strength"} <= card.keys()
    settings = registry.defaults("defenses", name)
    if name == "none":
        return
    assert {"grid", "adaptive"} <= card.keys()
    assert card["strength"] in settings
    assert len(card["grid"]) >= 2 and len(set(map(str, card["grid"]))) == len(card["grid"])
    for strength in card["grid"]:
        registry.configure("defenses", name, settings={card["strength"]: strength})
    for change, why in card["adaptive"].items():
        assert (change.startswith("+") or "=" in change.format(**settings)) and why
    for other, why in card.get("conflicts", {}).items():
        assert other in NAMES and why


@cache
def whole(name: str, precision: str = "fp32") -> Trained:
    """The defense's own training, done once for all tests that only look at what came out."""
    return train(architecture(name), plugin(name), precision=precision)


@cache
def undefended(architecture: str) -> Tensor:
    return scores(train(architecture).served())


@pytest.mark.parametrize("name", NAMES)
def test_zero_strength_is_no_defense_bit_for_bit(name: str) -> None:
    assert (name in ZERO) != (name in NO_ZERO), "give it an entry in ZERO or say in NO_ZERO why there is none"
    if name in NO_ZERO:
        return
    kind = architecture(name)
    assert torch.equal(undefended(kind), scores(train(kind, plugin(name, **ZERO[name])).served()))
    if name != "none":
        assert not torch.equal(undefended(kind), scores(whole(name).served())), "and more is more"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_and_serves_probabilities(name: str, precision: str) -> None:
    trained = whole(name, precision)
    assert finite(trained)
    found = scores(trained.served(), precision)
    assert found.shape == (len(data()), 3) and found.isfinite().all() and (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)), atol=1e-5, rtol=0)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in trained.model.parameters())
    # What is served has gradients for a white-box attacker.
    x = (data().images[:4] / 255.0).requires_grad_()
    served = trained.served()
    (gradient,) = torch.autograd.grad(served.head(served.features(x)).square().sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_batch_is_answered_alike(name: str) -> None:
    served, images = whole(name).served(), data().images
    together, _ = predict(served, images, resolve("cpu", "fp32"))
    apart, _ = predict(served, images, resolve("cpu", "fp32"), batch=3)
    torch.testing.assert_close(together.softmax(1), apart.softmax(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """And so, of course, without an interruption: same seed, same bits."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(architecture(name), plugin(name), checkpoint=path, reporter=Stop(10))
    assert path.exists()
    again, once = train(architecture(name), plugin(name), checkpoint=path), whole(name)
    for one, other in zip([once.model, *once.fitted.memories], [again.model, *again.fitted.memories], strict=True):
        mine, theirs = one.state_dict(), other.state_dict()
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key
    assert once.fitted.log == again.fitted.log and once.fitted.reports == again.fitted.reports


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_memory_survive_a_file(name: str, tmp_path: Path) -> None:
    trained = whole(name)
    stack = [plugin(name)]
    again = network(architecture(name), stack, seed=9)
    again.load_state_dict(trained.model.state_dict())
    write_memories(tmp_path / "memories.safetensors", trained.fitted.memories)
    found = empty_memories(stack, 3, (3, SIDE, SIDE), seed=9)
    assert (tmp_path / "memories.safetensors").exists() == any(memory.state_dict() for memory in found)
    fill_memories(tmp_path / "memories.safetensors", found)
    served = Trained(again, trained.fitted._replace(memories=found), stack).served()
    assert torch.equal(scores(served), scores(trained.served()))
    assert not any(module._forward_hooks or module._backward_hooks for module in trained.model.modules())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("none", "re")])
def test_it_composes_with_random_erasing(name: str) -> None:
    settings = {name: {key: str(value) for key, value in SHORT.get(name, {}).items()}}
    for order in (f"re+{name}", f"{name}+re"):
        chosen = read_stack(order, settings)
        both = train(architecture(name), *(choice.plugin for choice in chosen))
        assert finite(both)
        nothing = replace(plugin("re"), p=0.0)
        stack = [nothing if choice.name == "re" else choice.plugin for choice in chosen]
        assert torch.equal(scores(train(architecture(name), *stack).served()), scores(whole(name).served()))
