"""Laws of the classifiers: what they compute, how they start, and that folding changes nothing."""

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.models import build, family, names
from mibench.models.base import Classifier, Prepare, unfilled
from mibench.models.fold import fold
from mibench.runtime.errors import UserError

SMALL = ["cnn", "resnet", "ir"]
SHAPE = (3, 64, 64)


def images(n: int = 4, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def make(name: str, shape: tuple[int, int, int] = SHAPE, classes: int = 10, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build(name, classes, shape)


def shake_norms(model: nn.Module) -> None:
    """Random statistics, scales and shifts, as after training: a fresh batch norm would fold trivially."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def test_ir3_is_ir_with_three_units_in_the_last_stage() -> None:
    small, deep = make("ir"), make("ir3")
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (small, deep)]
    added = {key for key in shapes[1] if key.startswith(("trunk.stage4.1.", "trunk.stage4.2."))}
    assert shapes[0] == {key: shape for key, shape in shapes[1].items() if key not in added} and added
    assert len(deep.trunk.stage4) == 3 and len(small.trunk.stage4) == 1
    identities = [unit for unit in deep.trunk.stage4 if isinstance(unit.shortcut, nn.Identity)]
    assert len(identities) == 2, "and two of their skip connections are no projections"
    assert family("ir3") == family("ir"), "so that `ir` does not judge it"


# --- every classifier -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, "vgg16_bn64", "facenet64"])
@torch.no_grad()
def test_forward_is_head_of_features_and_rows_are_independent(name: str) -> None:
    model = make(name).eval()
    shake_norms(model)
    x = images()
    features = model.features(x)
    assert features.shape == (4, model.feature_dim)
    assert torch.equal(model.head(features), model(x))
    assert relative(model(x[2:3]), model(x)[2:3]) < 1e-4
    assert not torch.allclose(model(x)[0], model(x)[1])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 112, 92), (3, 50, 57), (3, 16, 17)])
def test_small_nets_take_any_size_and_every_pixel_has_a_finite_gradient(name: str, shape: tuple[int, int, int]) -> None:
    model = make(name, shape)
    x = images(8, shape).requires_grad_()
    # In eval mode, because batch statistics would let a gradient reach the pixels that no layer reads.
    (pixels,) = torch.autograd.grad(F.cross_entropy(model.eval()(x), torch.arange(8)), x)
    assert torch.isfinite(pixels).all()
    assert (pixels.abs().amax((0, 1)) > 0).all()
    F.cross_entropy(model.train()(x), torch.arange(8)).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_start(name: str) -> None:
    first, again, other = (make(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_channels_last_agrees_with_float32(name: str) -> None:
    model, x = make(name), images(16)
    exact = model(x)
    fast = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fast(x.contiguous(memory_format=torch.channels_last))
    assert rough.dtype == torch.bfloat16
    assert F.cosine_similarity(rough.float().flatten(), exact.flatten(), dim=0) > 0.995
    rough.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_the_start_keeps_the_signal(name: str) -> None:
    model = make(name)
    deviation = float(model.features(images(32)).detach().std())
    assert 0.1 < deviation < 5.0


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_the_mean_image_becomes_zero_and_one_std_becomes_one() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    prepare = Prepare((3, 8, 8), mean, std)
    x = torch.tensor(mean).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert torch.equal(prepare(x), torch.zeros(2, 3, 8, 8))
    assert torch.allclose(prepare(x + torch.tensor(std).view(3, 1, 1)), torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize("name", [*SMALL, "mobilenet_v3_small"])
def test_a_mid_grey_image_enters_as_zeros(name: str) -> None:
    seen = []
    model = make(name).eval()
    model.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.full((1, *SHAPE), 0.5))
    assert seen[0].shape[1] == 3
    # The rows of a resize add up to one only up to rounding.
    assert seen[0].abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 112), (112, 92, 64), (28, 40, 33)])
def test_the_resize_is_torchs_antialiased_bilinear(height: int, width: int, size: int) -> None:
    x = images(2, (3, height, width)).requires_grad_()
    y = images(2, (3, size, size))
    ours = Prepare((3, height, width), [0.0], [1.0], size)(x)
    theirs = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    assert torch.allclose(ours, theirs, atol=1e-6)
    (ours_grad,) = torch.autograd.grad((ours * y).sum(), x)
    (theirs_grad,) = torch.autograd.grad((theirs * y).sum(), x)
    assert torch.allclose(ours_grad, theirs_grad, atol=1e-5)


def test_autocast_does_not_round_the_pixels() -> None:
    x = images(2)
    prepare = Prepare(SHAPE, [0.5], [0.5], 112)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepare(x), Prepare(SHAPE, [0.5], [0.5], 112)(x.clone()).float())
        assert prepare(x).dtype == torch.float32
        rounded = prepare(x)
    assert torch.equal(rounded, prepare(x))


@torch.no_grad()
def test_a_grey_image_equals_its_three_equal_channels() -> None:
    grey, colour = make("vgg16_bn64", (1, 64, 64)).eval(), make("vgg16_bn64").eval()
    x = images(2, (1, 64, 64))
    assert relative(grey(x), colour(x.expand(-1, 3, -1, -1))) < 1e-5


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"built for images of shape \(3, 64, 64\), got \(3, 32, 32\)"):
        make("cnn")(images(2, (3, 32, 32)))


# --- sizes ------------------------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def improved_residual_count(units: tuple[int, ...], flat: int) -> int:
    """Parameters by layer: BN 2c, PReLU c, conv k k i o without bias, linear with bias."""
    total = 27 * 64 + 2 * 64 + 64
    inputs = 64
    for width, repeats in zip((64, 128, 256, 512), units, strict=True):
        for _ in range(repeats):
            total += 2 * inputs + 9 * inputs * width + width + 9 * width * width + 2 * width
            total += inputs * width + 2 * width if inputs != width else 0
            inputs = width
    return total + 2 * 512 + (flat + 1) * 512 + 2 * 512


@pytest.mark.parametrize(
    ("name", "units", "flat"),
    [
        ("facenet64", (3, 4, 14, 3), 512 * 4 * 4),
        ("ir152", (3, 8, 36, 3), 512 * 4 * 4),
        ("facenet112", (3, 4, 14, 3), 512 * 7 * 7),
    ],
)
def test_face_nets_have_the_published_sizes(name: str, units: tuple[int, ...], flat: int) -> None:
    with torch.device("meta"):
        model = build(name, 1000, SHAPE)
        features = model.features(torch.rand(2, *SHAPE))
    assert features.shape == (2, 512)
    assert count(model.trunk) == improved_residual_count(units, flat)
    assert count(model.head) == 513 * 1000


def test_ir50_at_112_px_has_the_43_6_million_of_the_literature() -> None:
    assert round(improved_residual_count((3, 4, 14, 3), 25088) / 1e6, 1) == 43.6


def test_vgg_has_the_published_size_and_frozen_bias() -> None:
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * i * o + o + 2 * o for i, o in zip([3, *widths], widths, strict=False))
    with torch.device("meta"):
        model = build("vgg16_bn64", 1000, SHAPE)
    assert count(model) == convolutions + 2 * 2048 + 2049 * 1000
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["trunk.norm.bias"]


@torch.no_grad()
def test_vgg_features_are_normalised_over_the_batch() -> None:
    model = make("vgg16_bn64")
    features = model.features(images(16))
    alive = features.std(0) > 0.5
    assert alive.float().mean() > 0.9
    assert features.mean(0).abs().max() < 1e-3
    assert torch.allclose(features.var(0, correction=0)[alive], torch.ones(int(alive.sum())), atol=0.05)


# --- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cnn", 0),
        ("resnet", 0),
        ("ir", 4 + 1),  # the BN that opens each unit and the head stands before a padded convolution or the flatten
        ("facenet64", 24 + 1),
        ("vgg16_bn64", 1),  # the features themselves
        ("resnet18", 0),
        ("mobilenet_v3_small", 0),
        ("shufflenet_v2_x0_5", 0),
        ("densenet121", 121 - 58 - 1),  # of 121 BNs, one a dense layer and the stem's follow a convolution
    ],
)
@torch.no_grad()
def test_folded_equals_unfolded(name: str, left: int) -> None:
    model = make(name)
    shake_norms(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    x = images(2)
    model.eval()
    assert relative(folded.features(x), model.features(x)) < 1e-4
    assert relative(folded(x), model(x)) < 1e-4
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules()) == left
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert folded.feature_dim == model.feature_dim


def test_folded_gradients_equal_unfolded() -> None:
    model = make("ir").eval()
    shake_norms(model)
    x = images(4).requires_grad_()
    labels = torch.arange(4)
    (ours,) = torch.autograd.grad(F.cross_entropy(fold(model)(x), labels), x)
    (theirs,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    assert relative(ours, theirs) < 1e-3


def chain(*layers: nn.Module) -> Classifier:
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(Prepare((3, 8, 8), [0.5], [0.5]), trunk, nn.Linear(3, 2), 3)
    shake_norms(model)
    return model.eval()


class ReadTwice(nn.Module):
    """conv feeds its BN and the sum: folding the pair would change the other reader."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        between = self.conv(x)
        return (self.norm(between) + between).mean((2, 3))


ReadTwice.__module__ = "torchvision.models.made_up"


def test_what_cannot_be_folded_is_left_alone() -> None:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(3, 3, 3, padding=1)

    shared, watched, own = conv(), conv(), nn.BatchNorm2d(3, track_running_stats=False)
    watched.register_forward_hook(lambda module, args, out: 2 * out)
    twice = Classifier(Prepare((3, 8, 8), [0.5], [0.5]), ReadTwice(), nn.Linear(3, 2), 3)
    shake_norms(twice)
    nets = [
        chain(shared, nn.BatchNorm2d(3), nn.ReLU(), shared, nn.BatchNorm2d(3)),
        chain(watched, nn.BatchNorm2d(3)),
        chain(nn.BatchNorm2d(3), conv()),
        chain(nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(3)),
        twice.eval(),
    ]
    x = images(4, (3, 8, 8))
    for model in nets:
        norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, fold(model))]
        assert norms[0] == norms[1]
        assert relative(fold(model)(x), model(x)) < 1e-5
    batchwise = Classifier(
        Prepare((3, 8, 8), [0.5], [0.5]), nn.Sequential(conv(), own, nn.Flatten()), nn.Linear(192, 2), 192
    )
    assert relative(fold(batchwise)(x), batchwise.eval()(x)) < 1e-5


# --- torchvision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"]
)
@torch.no_grad()
def test_the_features_are_what_torchvisions_last_layer_gets(name: str) -> None:
    from torchvision import models

    model = make(name).eval()
    torch.manual_seed(0)
    reference = models.get_model(name).eval()
    last = [m for m in reference.modules() if isinstance(m, nn.Linear)][-1]
    x = images(1)
    assert relative(last(model.features(x)), reference(model.prepare(x))) < 1e-5


@pytest.mark.parametrize(
    ("name", "features", "size"),
    [
        ("resnet152", 2048, 224),
        ("vit_b_16", 768, 224),
        ("maxvit_t", 512, 224),
        ("inception_v3", 2048, 299),
        ("googlenet", 1024, 224),
        ("convnext_tiny", 768, 224),
        ("swin_t", 768, 224),
        ("vgg11", 4096, 224),
    ],
)
def test_any_torchvision_classifier_gets_its_head_replaced(name: str, features: int, size: int) -> None:
    with torch.device("meta"):
        model = build(name, 7, (1, 64, 64))
        out = model.train().features(torch.rand(2, 1, 64, 64))
        assert out.shape == (2, features) == (2, model.feature_dim)
        assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)
        assert model.prepare(torch.rand(2, 1, 64, 64)).shape == (2, 3, size, size)
    wide = [m for m in model.trunk.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    assert not wide


@torch.no_grad()
def test_a_network_of_timm_has_timms_features_before_its_head() -> None:
    timm = pytest.importorskip("timm")
    net = make("timm:resnet10t", classes=5).eval()
    x = images(2)
    reference = timm.create_model("resnet10t", num_classes=5).eval()
    reference.load_state_dict({**net.trunk.state_dict(), **{f"fc.{k}": v for k, v in net.head.state_dict().items()}})
    prepared = F.interpolate(x, (224, 224), mode="bilinear", antialias=True) * 2 - 1
    assert relative(net(x), reference(prepared)) < 1e-5
    assert family("timm:resnet10t") == "resnet" and family("timm:resnest50d") == "resnest"
    with pytest.raises(UserError, match="timm has no network called resnet10x"):
        make("timm:resnet10x")


def test_inceptions_second_head_learns_with_weight_one_and_nobody_else_reads_it() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = build("inception_v3", 3, (3, 64, 64))
        assert whole.trunk.AuxLogits.fc.out_features == 3 and whole.auxiliary == "AuxLogits"
        assert whole.train()(torch.rand(2, 3, 64, 64)).shape == (2, 3), "logits alone in train mode too"
    assert build("cnn", 3, SHAPE).auxiliary is None


def test_a_convolutional_head_is_refused() -> None:
    with pytest.raises(UserError, match="ends in a convolution"):
        make("squeezenet1_1")


# --- ImageNet weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights cache and no network."""

    def refuse(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


@pytest.mark.parametrize(
    ("name", "file"), [("resnet18", "resnet18-f37072fd.pth"), ("vgg16_bn64", "vgg16_bn-6c64b313.pth")]
)
def test_without_network_the_error_says_what_to_fetch(hub: Path, name: str, file: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, 5, SHAPE, pretrained=True)
    assert f"https://download.pytorch.org/models/{file}" in str(caught.value)
    assert str(hub / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_or_dangerous_weights_file_is_refused(hub: Path) -> None:
    place = hub / "resnet18-f37072fd.pth"
    place.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not readable as weights"):
        build("resnet18", 5, SHAPE, pretrained=True)
    torch.save({"conv1.weight": subprocess.Popen}, place)
    with pytest.raises(UserError, match="not readable as weights"):
        build("resnet18", 5, SHAPE, pretrained=True)


@torch.no_grad()
def test_cached_imagenet_weights_are_used_with_their_normalisation(hub: Path) -> None:
    from torchvision import models

    torch.manual_seed(5)
    reference = models.get_model("shufflenet_v2_x0_5").eval()
    shake_norms(reference)
    torch.save(reference.state_dict(), hub / "shufflenetv2_x0.5-f707e7126e.pth")
    model = build("shufflenet_v2_x0_5", 5, (3, 224, 224), pretrained=True).eval()
    x = images(1, (3, 224, 224))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = reference((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert relative(reference.fc(model.features(x)), expected) < 1e-5


def test_pretrained_where_no_weights_exist_is_refused() -> None:
    for name in [*SMALL, "facenet64", "ir152", "facenet112"]:
        with pytest.raises(UserError, match="has no ImageNet weights"):
            build(name, 5, SHAPE, pretrained=True)


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_its_nearest() -> None:
    with pytest.raises(UserError, match="unknown architecture 'resnet19'; did you mean 'resnet1"):
        make("resnet19")
    with pytest.raises(UserError, match="did you mean 'facenet64'"):
        family("facenet46")


def test_names_and_families() -> None:
    known = names()
    assert {*SMALL, "vgg16_bn64", "facenet64", "ir152", "facenet112", "vit_b_16", "inception_v3"} <= set(known)
    assert len(known) == len(set(known))
    pairs = {"cnn": "cnn", "ir152": "ir", "facenet112": "ir", "vgg16_bn64": "vgg", "vgg16": "vgg", "resnet": "resnet"}
    pairs |= {"resnet18": "resnet", "wide_resnet50_2": "resnet", "vit_b_16": "vision_transformer"}
    assert {name: family(name) for name in pairs} == pairs


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2 classes, got 1"):
        build("cnn", 1, SHAPE)
    for shape in [(4, 64, 64), (3, 8, 64)]:
        with pytest.raises(UserError, match="1 or 3 channels, at least 16 pixels"):
            build("cnn", 5, shape)


def test_listing_imports_neither_torch_nor_torchvision() -> None:
    code = "import sys, mibench.models as m; m.family('ir152'); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=30).returncode == 0


@pytest.mark.parametrize(
    "name", ["cnn", "facenet64", "vgg16_bn64", "resnet18", "efficientnet_b0", "inception_resnet_v1"]
)
def test_a_network_that_gets_its_weights_from_a_file_draws_none(name: str) -> None:
    before = torch.get_rng_state()
    with unfilled():
        empty = build(name, 3, (3, 32, 32))
        assert torch.equal(torch.get_rng_state(), before)
        drawn = torch.empty(8).normal_()
    assert drawn.abs().sum() > 0 and not torch.equal(torch.get_rng_state(), before), "only parameters stay as they are"
    filled = build(name, 3, (3, 32, 32))
    empty.load_state_dict(filled.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(empty.eval()(x), filled.eval()(x))
