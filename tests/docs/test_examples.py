"""The examples of docs/extend are complete plug-ins: each is found by the registry and does what its page says."""

import math
import runpy
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from worlds import World, colours, small_net, workspace

from mibench import testing
from mibench.core import Access, PriorTrainer, Source, Split, TrainingContext
from mibench.metrics import glossary
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit, predict

EXAMPLES = Path(testing.__file__).parent / "templates"
DOCS = Path(__file__).parent.parent.parent / "docs"
KINDS = {"attacks": "attack", "defenses": "defense", "priors": "prior", "data": "data"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if another package had registered the examples, as docs/extend/index.md says."""
    monkeypatch.syspath_prepend(EXAMPLES)
    points = {f"mibench.{kind}": EntryPoint(f"my_{file}", file, f"mibench.{kind}") for kind, file in KINDS.items()}
    monkeypatch.setattr(registry, "entry_points", lambda group: [points[group]] if group in points else [])
    registry._modules.cache_clear()
    yield
    registry._modules.cache_clear()


def test_the_registry_lists_them() -> None:
    for kind, file in KINDS.items():
        card = registry.cards(kind)[f"my_{file}"]
        assert card["summary"] and registry.load(kind, f"my_{file}").__doc__


def test_the_attack_finds_everybody_at_the_cost_it_says() -> None:
    world = World()
    oracle = world.oracle(Access.WHITE_BOX)
    labels = torch.arange(world.classes)
    attack = registry.configure("attacks", "my_attack", "quick").plugin
    made = attack(oracle, world.prior, labels, 0, workspace(world))
    assert torch.equal(world.truth(made.images), made.labels)
    cost = attack.cost(world.prior)
    assert oracle.queries.tolist() == [cost.queries] * world.classes
    assert oracle.gradient_images.tolist() == [cost.gradient_images] * world.classes
    some = attack(world.oracle(), world.prior, labels[3:5], 0, workspace(world))
    torch.testing.assert_close(some.images, made.images[6:10], rtol=0, atol=1e-4)  # batches round differently


def _trained(beta: float | None) -> tuple[dict[str, torch.Tensor], float]:
    model, split = small_net(), colours()
    defenses = [] if beta is None else [registry.configure("defenses", "my_defense", settings={"beta": beta}).plugin]
    recipe, engine = Training(epochs=6, batch=12, lr=0.05), resolve("cpu", "fp32")
    fit(model, split, 3, recipe, engine, 0, Silent(), "toy", defenses, mirror=False)
    log_p = predict(model, split.images, engine)[0].log_softmax(dim=1)
    return model.state_dict(), float(-(log_p.exp() * log_p).sum(dim=1).mean())


def test_the_defense_raises_entropy_and_at_zero_does_nothing() -> None:
    plain, before = _trained(None)
    zero, _ = _trained(0.0)
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    _, after = _trained(2.0)
    assert before < after <= math.log(3) + 1e-6


def test_the_prior_has_the_public_images_mean_and_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, 3, generator=generator) @ torch.randn(3, 192, generator=generator)
    images = (128 + 12 * mixed).clamp(0, 255).to(torch.uint8).reshape(200, 3, 8, 8)
    public = Split(images, torch.full((200,), -1))
    trainer: PriorTrainer = registry.configure("priors", "my_prior", settings={"components": 3}).plugin
    prior = trainer.build((3, 8, 8), 4, public)
    log = trainer.train(prior, public, None, TrainingContext(resolve("cpu", "fp32"), 0, Silent(), "toy"))
    assert log[0]["variance_kept"] > 0.99  # the images have three directions
    x = images.float().flatten(1) / 255
    assert torch.allclose(prior.decode(torch.zeros(1, 3)).flatten(), x.mean(dim=0), atol=1e-6)
    drawn = prior.decode(prior.sample(Noise(0, torch.arange(5000)))).flatten(1)
    assert torch.allclose(drawn.std(dim=0), x.std(dim=0), rtol=0.1, atol=0.02)


def test_the_data_set_is_the_same_every_time_and_can_be_learnt() -> None:
    source: Source = registry.configure("data", "my_data", settings={"identities": 3, "image_size": 16}).plugin
    data = source.load()
    assert data.fingerprint() == source.load().fingerprint()
    assert len(data.train) == 30 and len(data.heldout) == 15 and data.image_shape == (1, 16, 16)
    # A person's held-out images are nearest, in power spectrum (phases vary), to that person's training images.
    spectra = [
        torch.fft.fft2(split.images.float()[:, 0] - 128).abs().flatten(1) for split in (data.train, data.heldout)
    ]
    nearest = torch.cdist(spectra[1], spectra[0]).argmin(dim=1)
    assert (data.train.labels[nearest] == data.heldout.labels).float().mean() > 0.9


def test_the_metric_is_its_closed_form_and_declares_itself() -> None:
    metric = import_module("metric")
    x = torch.full((2, 3, 8, 8), 0.5)
    references, labels = torch.stack([x[0] + 0.1, x[0] + 0.01, x[0], x[0]]), torch.tensor([0, 0, 1, 2])
    found = metric.psnr(x, torch.tensor([0, 1]), references, labels)
    assert found.tolist() == pytest.approx([40.0, 100.0], abs=1e-3)
    with pytest.raises(UserError, match=r"\[3\]"):
        metric.psnr(x, torch.tensor([0, 3]), references, labels)
    (declared,) = glossary._read(EXAMPLES / "metric.py")
    assert (declared.name, declared.direction) == ("psnr", metric.METRICS[0].direction)


def test_your_own_network_can_be_attacked(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "examples" / "your_model.py"))
    out = capsys.readouterr().out
    assert out.startswith("(10, 3, 32, 32) images") and "asked for 220 images" in out
