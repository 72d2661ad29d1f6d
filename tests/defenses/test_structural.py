"""Defenses that change the network: skip connections, frozen layers, sparse coding."""

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import colours

from mibench import models
from mibench.core import Batch, Defense, Step
from mibench.defenses.parts.skips import Scaled, weaken
from mibench.defenses.rolss import RemovedSkips
from mibench.defenses.sca import SparseCoding, SparseLayer
from mibench.defenses.ssf import WeakSkips
from mibench.defenses.tl import CARD as TL
from mibench.defenses.tl import FrozenPrefix
from mibench.defenses.tts import LaterRemovedSkips
from mibench.models.base import Classifier, Prepare
from mibench.models.fold import fold
from mibench.models.ir import Unit
from mibench.models.resnet import BasicBlock
from mibench.plugins import capabilities
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Fitted, Training, fit

SHAPE = (3, 16, 16)
CPU = resolve("cpu", "fp32")
SKIPS: list[Defense] = [RemovedSkips(), WeakSkips(), LaterRemovedSkips()]


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
    return fit(model, colours(count, SHAPE[1]), 3, recipe, CPU, 1, Silent(), "toy", defenses)


def meta(name: str) -> Classifier:
    with torch.device("meta"):
        return models.build(name, 10, (3, 64, 64))


def at(model: nn.Module, epoch: int, epochs: int) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Step(model, nn.Module(), optimizer, Noise(0, torch.arange(2)), epoch, epochs, CPU)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors are the same bits, whatever a wrapper has made of their names."""
    mine, theirs = (
        {key.replace(".skip.", "."): value for key, value in model.state_dict().items() if not key.endswith(".k")}
        for model in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())


# --- skip connections -------------------------------------------------------------------------------------------------


def torchvision_block(bottleneck: bool, project: bool) -> nn.Module:
    from torchvision.models.resnet import BasicBlock as Basic
    from torchvision.models.resnet import Bottleneck

    kind = Bottleneck if bottleneck else Basic
    width = 8 * kind.expansion
    side = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)) if project else None
    return kind(width, 8, downsample=side)


BLOCKS = {
    "resnet, identity": lambda: BasicBlock(8, 8, 1),
    "resnet, projection": lambda: BasicBlock(8, 12, 2),
    "ir, identity": lambda: Unit(8, 8, 1),
    "ir, subsampling": lambda: Unit(8, 8, 2),
    "ir, projection": lambda: Unit(8, 12, 2),
    "torchvision basic, identity": lambda: torchvision_block(False, False),
    "torchvision basic, projection": lambda: torchvision_block(False, True),
    "torchvision bottleneck, identity": lambda: torchvision_block(True, False),
    "torchvision bottleneck, projection": lambda: torchvision_block(True, True),
}


def parts(block: Any, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """F(x), S(x) and whether a ReLU follows the sum, from the block's own layers."""
    if isinstance(block, BasicBlock | Unit):
        return block.body(x), block.shortcut(x), isinstance(block, BasicBlock)
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(F.relu(out)))
    return out, x if block.downsample is None else block.downsample(x), True


def in_classifier(block: nn.Module) -> Classifier:
    trunk = nn.Sequential(nn.Sequential(block))
    return Classifier(Prepare((3, 8, 8), [0.5], [0.5]), trunk, nn.Linear(1, 2), 1)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_a_block_adds_k_times_its_skip_connection(name: str, k: float) -> None:
    torch.manual_seed(0)
    plain = BLOCKS[name]().eval()
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    weak = copy.deepcopy(plain)
    weaken(in_classifier(weak), "toy", 1, k)
    first = next(layer for layer in plain.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(2, first.in_channels, 8, 8)
    inner, skip, relu = parts(plain, x)
    expected = inner + k * skip
    torch.testing.assert_close(weak(x), F.relu(expected) if relu else expected)
    if k == 1:
        assert torch.equal(weak(x), plain(x))
    else:
        assert not torch.allclose(weak(x), plain(x))


def test_a_block_without_a_body_is_worked_out_by_hand() -> None:
    block = Unit(1, 1, 1).eval()
    nn.init.zeros_(block.body[3].weight)
    weaken(in_classifier(block), "toy", 1, 0.25)
    x = torch.tensor([[[[4.0, -8.0]]]], requires_grad=True)
    assert torch.equal(block(x), torch.tensor([[[[1.0, -2.0]]]]))
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.25))


@pytest.mark.parametrize(
    ("name", "stages", "blocks", "place"),
    [
        ("resnet", 1, 1, "trunk.stage3."),
        ("ir", 1, 1, "trunk.stage4."),
        ("facenet64", 1, 3, "trunk.stage4."),
        ("ir152", 2, 39, "trunk.stage"),
        ("resnet18", 1, 2, "trunk.layer4."),
        ("resnet50", 1, 3, "trunk.layer4."),
        ("resnet152", 2, 39, "trunk.layer"),
        ("wide_resnet50_2", 1, 3, "trunk.layer4."),
        ("resnet", 3, 3, "trunk.stage"),
        ("resnet18", 0, 0, ""),
    ],
)
def test_every_block_of_the_last_stages_is_changed(name: str, stages: int, blocks: int, place: str) -> None:
    model = RemovedSkips(stages).surgery(meta(name))
    found = [path for path, module in model.named_modules() if isinstance(module, Scaled)]
    assert len(found) == blocks and all(path.startswith(place) for path in found)
    assert isinstance(model, Classifier)


@pytest.mark.parametrize(
    ("name", "defense"),
    [
        ("resnet", WeakSkips(1.0)),
        ("resnet", LaterRemovedSkips(1.0)),
        ("resnet", RemovedSkips(0)),
        ("ir", WeakSkips(1.0)),
        ("ir", LaterRemovedSkips(1.0)),
        ("resnet18", WeakSkips(1.0)),
    ],
)
def test_k_of_one_is_no_defense_bit_for_bit(name: str, defense: Defense) -> None:
    plain, model = build(name), build(name, defense)
    train(plain, epochs=1, count=8)
    train(model, defense, epochs=1, count=8)
    assert same_state(plain, model)
    assert torch.equal(plain.eval()(images()), model.eval()(images()))


def test_removed_projections_learn_nothing_and_the_rest_does() -> None:
    model = build("resnet", RemovedSkips())
    F.cross_entropy(model(images()), torch.arange(6) % 3).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad == 0).all()) == (".skip." in path), path


class Watch(Defense):
    """Notes k at every step."""

    seen: ClassVar[list[set[float]]] = []

    def batch(self, batch: Batch, step: Step) -> Batch:
        self.seen.append({float(module.k) for module in step.model.modules() if isinstance(module, Scaled)})
        return batch


@pytest.mark.parametrize(
    ("warm", "epochs", "full"), [(0.5, 4, 2), (0.05, 20, 1), (0.15, 20, 3), (0.0, 3, 0), (1.0, 3, 3)]
)
def test_skip_connections_go_when_their_share_of_the_epochs_is_over(warm: float, epochs: int, full: int) -> None:
    defense, watch = LaterRemovedSkips(warm), Watch()
    watch.seen.clear()
    model = build("resnet", defense)
    train(model, defense, watch, epochs=epochs, count=8)
    assert watch.seen == [{1.0}] * full + [{0.0}] * (epochs - full)


def test_the_clock_does_not_depend_on_earlier_calls() -> None:
    defense = LaterRemovedSkips(0.5)
    model = build("resnet", defense)
    (skip,) = (module for module in model.modules() if isinstance(module, Scaled))
    for epoch, k in [(3, 0.0), (1, 1.0), (1, 1.0), (2, 0.0), (0, 1.0)]:
        defense.epoch(at(model, epoch, 4))
        assert float(skip.k) == k


def test_without_a_warm_start_tts_is_rolss() -> None:
    ends = []
    for defense in (RemovedSkips(), LaterRemovedSkips(0.0)):
        model = build("resnet", defense)
        train(model, defense)
        ends.append(model)
    assert same_state(*ends)


@pytest.mark.parametrize("name", ["cnn", "vgg16_bn64", "densenet121", "vit_b_16", "mobilenet_v3_small"])
@pytest.mark.parametrize("defense", SKIPS)
def test_nets_without_such_skip_connections_are_refused(name: str, defense: Defense) -> None:
    with pytest.raises(UserError, match="no skip connections that can be weakened"):
        defense.surgery(meta(name))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RemovedSkips(-1), "stages must be >= 0"),
        (lambda: RemovedSkips(4).surgery(meta("resnet")), "stages must be <= 3 for this architecture, got 4"),
        (lambda: WeakSkips(0.0), r"keep must lie in \(0, 1\], got 0.0.*rolss"),
        (lambda: WeakSkips(1.5), "keep must lie in"),
        (lambda: WeakSkips(math.nan), "keep must lie in"),
        (lambda: LaterRemovedSkips(-0.1), "warm must lie in"),
        (lambda: LaterRemovedSkips(1.1), "warm must lie in"),
        (lambda: LaterRemovedSkips(math.nan), "warm must lie in"),
        (lambda: FrozenPrefix(1.01), "freeze must lie in"),
        (lambda: FrozenPrefix(-0.01), "freeze must lie in"),
        (lambda: FrozenPrefix(math.nan), "freeze must lie in"),
        (lambda: SparseCoding(layers=3), "layers must be 1 or 2"),
        (lambda: SparseCoding(lam=math.nan), "lam must be >= 0"),
        (lambda: SparseCoding(lam=math.inf), "lam must be >= 0"),
        (lambda: SparseCoding(iterations=0), "iterations must be >= 1"),
        (lambda: SparseCoding(tau=0.5), "tau must be >= 1"),
        (lambda: SparseCoding(tau=math.nan), "tau must be >= 1"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- frozen layers ----------------------------------------------------------------------------------------------------


def layers(model: Classifier) -> list[tuple[int, bool]]:
    """Size and frozenness of each layer of the trunk, in order."""
    own = [list(module.parameters(recurse=False)) for module in model.trunk.modules()]
    assert all(len({parameter.requires_grad for parameter in part}) == 1 for part in own if part)
    return [(sum(parameter.numel() for parameter in part), not part[0].requires_grad) for part in own if part]


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir", "resnet18", "vit_b_16"])
@pytest.mark.parametrize("freeze", [0.0, 0.02, 0.3, 0.5, 0.8, 1.0])
def test_a_prefix_is_frozen_up_to_the_share_and_no_further(name: str, freeze: float) -> None:
    model = meta(name)
    FrozenPrefix(freeze).surgery(model)
    found = layers(model)
    total = sum(size for size, _ in found)
    frozen = [is_frozen for _, is_frozen in found]
    held = sum(frozen)
    assert frozen == [True] * held + [False] * (len(found) - held), "a prefix"
    assert sum(size for size, _ in found[:held]) <= freeze * total
    assert sum(size for size, _ in found[: held + 1]) > freeze * total or held == len(found)
    assert (held == 0) == (freeze == 0 or found[0][0] > freeze * total)
    assert (held == len(found)) == (freeze == 1)
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_the_paper_preset_freezes_eight_of_the_thirteen_convolutions_of_vgg() -> None:
    with torch.device("meta"):
        model = models.build("vgg16_bn64", 1000, (3, 64, 64))
        FrozenPrefix(0.2).surgery(model)
    frozen = [not layer.weight.requires_grad for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert frozen == [True] * 8 + [False] * 5
    total = sum(parameter.numel() for parameter in model.parameters())
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (round(learnt / 1e6, 2), round(learnt / total, 3)) == (13.86, 0.826)


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir"])
def test_every_strength_of_the_grid_freezes_something_else(name: str) -> None:
    held = [sum(frozen for _, frozen in layers(FrozenPrefix(share).surgery(meta(name)))) for share in TL["grid"]]
    assert held == sorted(set(held)) and held[0] > 0


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_frozen_layers_keep_every_bit_and_the_others_learn(bn: Any) -> None:
    defense = FrozenPrefix(0.3, bn)
    model = build("resnet", defense)
    before = copy.deepcopy(model.state_dict())
    (report,) = train(model, defense).reports
    kinds = {"frozen": 0, "statistics": 0, "learnt": 0}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        frozen = not next(iter(own.values())).requires_grad
        for name, value in own.items():
            assert torch.equal(value, before[f"{path}.{name}"]) == frozen, path
            kinds["frozen" if frozen else "learnt"] += 1
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            held = torch.equal(module.running_mean, before[f"{path}.running_mean"])
            assert held == (frozen and bn == "eval"), path
            kinds["statistics"] += frozen
    assert min(kinds.values()) > 2
    assert report == {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    assert report["trainable_parameters"] < sum(p.numel() for p in model.parameters())


def test_freezing_nothing_is_no_defense_from_the_same_start() -> None:
    start = build("resnet", seed=4)
    plain, held = copy.deepcopy(start), FrozenPrefix(0.0).surgery(copy.deepcopy(start))
    train(plain)
    train(held, FrozenPrefix(0.0))  # type: ignore[arg-type]
    assert same_state(plain, held)


def test_a_network_that_nobody_trained_is_no_start() -> None:
    assert FrozenPrefix.start == "public" and Defense.start == "any"


# --- sparse coding ----------------------------------------------------------------------------------------------------


def layer_of(
    inputs: int = 3, outputs: int = 16, kernel: int = 5, stride: int = 2, learn: bool = False, **settings: Any
) -> SparseLayer:
    torch.manual_seed(2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return SparseLayer(conv, **({"lam": 0.5, "iterations": 2000, "tau": 20.0, "learn": learn} | settings))


def dictionary(layer: SparseLayer, shape: tuple[int, ...]) -> Tensor:
    """The matrix whose columns are the atoms at their places: what `code -> image` is, spelled out."""
    with torch.no_grad():

        def analyse(s: Tensor) -> Tensor:
            return F.conv2d(s, layer.atoms(), None, layer.stride, layer.padding).flatten(1)

        return analyse(torch.eye(math.prod(shape)).view(-1, *shape))  # rows: pixels


def standard(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(("kernel", "stride", "side"), [(5, 2, 8), (3, 1, 6), (3, 2, 9), (7, 4, 12)])
def test_a_long_run_ends_at_the_lasso(kernel: int, stride: int, side: int) -> None:
    layer = layer_of(3, 8, kernel, stride)
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        code = layer(x).flatten(1)
    d, s = dictionary(layer, (3, side, side)), standard(x)
    # The conditions of optimality: the rest correlates by lam with the atoms in use, by no more with any other.
    correlation = (s - code @ d.T) @ d
    used = code > 1e-4
    assert 0 < used.float().mean() < 1
    assert (correlation[used] - layer.lam).abs().max() < 1e-3
    assert correlation.max() < layer.lam + 1e-3
    for row, target in zip(code, s, strict=True):
        # sklearn divides the squared error by the number of pixels.
        lasso = Lasso(layer.lam / len(target), positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
        solved = torch.tensor(lasso.fit(d.double().numpy(), target.double().numpy()).coef_).float()
        value, best = (0.5 * (target - d @ a).square().sum() + layer.lam * a.sum() for a in (row, solved))
        torch.testing.assert_close(value, best, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d @ row, d @ solved, rtol=0, atol=5e-3)


def test_one_atom_is_soft_thresholding_by_hand() -> None:
    """One pixel, stride of its own: atoms +-1, so a = max(|s| - lam, 0) on the atom of the pixel's sign."""
    layer = SparseLayer(nn.Conv2d(1, 2, 1), lam=0.25, iterations=400, tau=10.0, learn=False)
    layer.weight.data = torch.tensor([3.0, -0.5]).view(2, 1, 1, 1)
    x = torch.tensor([[[[0.0, 1.0, 0.5, 0.6]]]])
    s = standard(x).view(4)
    with torch.no_grad():
        code = layer(x).view(2, 4)
    torch.testing.assert_close(code, torch.stack([F.relu(s - 0.25), F.relu(-s - 0.25)]), atol=1e-5, rtol=0)


def test_the_first_steps_by_hand() -> None:
    """u1 = b / tau; u2 = u1 + (b - u1 - (G - I) a1) / tau, a1 = max(u1 - lam, 0)."""
    x = torch.rand(1, 3, 8, 8)
    one, two = layer_of(iterations=1, tau=2.0, lam=0.1), layer_of(iterations=2, tau=2.0, lam=0.1)
    d, s = dictionary(one, (3, 8, 8)), standard(x)
    b = s @ d
    u1 = b / 2
    a1 = F.relu(u1 - 0.1)
    u2 = u1 + (b - u1 - (a1 @ d.T @ d - a1)) / 2
    torch.testing.assert_close(one(x).flatten(1), a1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(two(x).flatten(1), F.relu(u2 - 0.1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("learn", [False, True])
def test_atoms_have_unit_norm_before_and_after_training(learn: bool) -> None:
    defense = SparseCoding(iterations=4, train="backprop" if learn else "random")
    model = build("cnn", defense)
    before = [layer.atoms().detach().clone() for layer in model.modules() if isinstance(layer, SparseLayer)]
    train(model, defense)
    after = [layer.atoms() for layer in model.modules() if isinstance(layer, SparseLayer)]
    assert len(after) == 2
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other.flatten(1).norm(dim=1), torch.ones(len(other)))
        assert torch.equal(one, other) != learn


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_flat_image_has_no_code_and_finite_gradients(level: float) -> None:
    layer = layer_of(iterations=30)
    x = torch.full((2, 3, 8, 8), level, requires_grad=True)
    code = layer(x)
    assert torch.equal(code, torch.zeros_like(code))
    (gradient,) = torch.autograd.grad(code.sum(), x)
    assert gradient.isfinite().all()


def test_codes_ignore_brightness_and_contrast_and_get_sparser_with_lam() -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        codes = [layer_of(iterations=200, lam=lam)(x) for lam in (0.1, 0.5, 1.5)]
        torch.testing.assert_close(layer_of(iterations=200)(0.5 * x + 0.2), codes[1], atol=2e-3, rtol=0)
        used = [(code > 0).float().mean() for code in codes]
    assert used[0] > used[1] > used[2]


@pytest.mark.parametrize("iterations", [1, 2, 7, 20])
def test_recomputing_changes_no_gradient(iterations: int) -> None:
    """Against the same steps kept whole, for the image and for the atoms."""
    layer = layer_of(iterations=iterations, tau=3.0, lam=0.1, learn=True)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    s = F.layer_norm(x, x.shape[1:])
    u = torch.zeros(2, 16, 4, 4)
    plain = F.relu(layer._advance(u, s, layer.atoms(), iterations) - 0.1)
    expected = torch.autograd.grad(plain.square().sum(), [x, layer.weight])
    code = layer(x)
    found = torch.autograd.grad(code.square().sum(), [x, layer.weight])
    torch.testing.assert_close(code, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert other.abs().max() > 0


def test_memory_grows_with_the_root_of_the_iterations() -> None:
    """Tensors kept for the backward pass, counted as autograd saves them."""
    kept = []
    for iterations in (25, 400):
        saved: list[int] = []
        layer = layer_of(iterations=iterations)
        x = torch.rand(1, 3, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            layer(x).sum()
        kept.append(sum(saved))
    assert kept[1] < 6 * kept[0]


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir"])
def test_the_default_time_constant_is_stable_for_the_small_nets(name: str) -> None:
    torch.manual_seed(0)
    model = SparseCoding().surgery(models.build(name, 3, (3, 64, 64)))
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            x = torch.randn(1, layer.weight.shape[1], 32, 32)
            with torch.no_grad():
                for _ in range(40):
                    b = F.conv2d(x, layer.atoms(), None, layer.stride, layer.padding)
                    (back,) = torch.autograd.functional.vjp(
                        lambda s, layer=layer: F.conv2d(s, layer.atoms(), None, layer.stride, layer.padding), x, b
                    )[1:]
                    largest, x = back.norm() / x.norm(), back / back.norm()
            assert largest < 2 * layer.tau


def test_layers_keep_their_shape_and_each_is_followed_by_a_norm() -> None:
    for name in ("cnn", "resnet", "ir", "vgg16_bn64", "resnet18"):
        plain, model = meta(name), SparseCoding().surgery(meta(name))
        convs = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
        leaves = [layer for layer in model.modules() if not list(layer.children())]
        places = [place for place, layer in enumerate(leaves) if isinstance(layer, SparseLayer)]
        assert len(places) == 2 and not any(isinstance(layer, nn.Conv2d) for layer in leaves[: places[0]])
        for place, conv in zip(places, convs, strict=False):
            sparse, norm = leaves[place], leaves[place + 1]
            assert isinstance(sparse, SparseLayer) and isinstance(norm, nn.BatchNorm2d)
            assert sparse.weight.shape == conv.weight.shape and norm.num_features == conv.out_channels
            assert (sparse.stride, sparse.padding) == (conv.stride, conv.padding)


def test_half_precision_outside_changes_no_code() -> None:
    layer, x = layer_of(iterations=20), torch.rand(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.float32 and torch.equal(half, layer(x))


@pytest.mark.parametrize(("name", "count"), [("mobilenet_v3_small", 2), ("vit_b_16", 2), ("convnext_tiny", 2)])
def test_sca_is_refused_where_no_plain_convolutions_begin(name: str, count: int) -> None:
    with pytest.raises(UserError, match=r"sca: with layers=2 .*--model.* cnn, .*resnet"), capabilities.naming_others():
        SparseCoding(layers=count).surgery(meta(name))
    assert any(isinstance(layer, SparseLayer) for layer in SparseCoding(layers=1).surgery(meta(name)).modules())


def test_sca_is_refused_where_there_is_no_convolution() -> None:
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(UserError, match="it has 0"):
        SparseCoding(layers=1).surgery(Classifier(Prepare((3, 2, 2), [0.5], [0.5]), trunk, nn.Linear(4, 2), 4))


# --- served -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "defense"),
    [
        *[(name, defense) for name in ("resnet", "ir") for defense in (*SKIPS, FrozenPrefix(0.3), SparseCoding())],
        ("resnet18", WeakSkips()),
        ("resnet18", SparseCoding(iterations=4)),
    ],
)
def test_folding_what_was_trained_changes_nothing_but_rounding(name: str, defense: Defense) -> None:
    model = build(name, defense)
    train(model, defense, epochs=1, count=12)
    folded = fold(model.eval())
    assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) < sum(
        isinstance(part, nn.BatchNorm2d) for part in model.modules()
    )
    with torch.no_grad():
        for one, other in [(folded.features(images()), model.features(images())), (folded(images()), model(images()))]:
            assert float((one - other).abs().max() / other.abs().max()) < 1e-4


def test_a_torchvision_net_is_folded_right_whatever_k() -> None:
    """Random statistics in every norm, so that a pair folded wrongly would be seen."""
    for k in (0.0, 0.37):
        model = build("resnet18")
        weaken(model, "toy", 2, k)
        torch.manual_seed(1)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, 0.0, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0.0, 0.3)
        folded = fold(model.eval())
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
        with torch.no_grad():
            found, expected = folded.features(images()), model.features(images())
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
