"""The imported StyleGAN2 draws what the originals drew, also where only its middle is drawn, and is a prior as others.

`stylegan2_originals.safetensors` was drawn by NVlabs/stylegan2-ada-pytorch (commit d72cc7d) and
rosinality/stylegan2-pytorch (bef283a) with the weights of `generators.value`.
"""

from pathlib import Path

import generators
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mibench.priors.imported.opening import read_generator
from mibench.priors.stylegan2_ada import AdaPrior, AdaSpace, StyleGan2Ada
from mibench.priors.stylegan2_ada_network import Generator, doubled, windows
from mibench.priors.stylegan2_ada_view import View
from mibench.runtime.rng import Noise
from mibench.stages.artifacts import nothing
from mibench.stages.import_prior import choose
from mibench.testing.laws import report
from mibench.testing.priors import LAWS, PriorTrial

GOLDEN = load_file(Path(__file__).parent / "stylegan2_originals.safetensors")
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "plain": generators.nvidia(folder / "plain.pkl"),
        "classes": generators.nvidia(folder / "classes.pkl", 16, 3),
        "rosinality": generators.rosinality(folder / "rosinality.pt"),
    }


def opened(path: Path, size: int = 0, **settings: object) -> AdaPrior:
    recipe = choose(path, settings).plugin
    side = size or recipe.crop or recipe.resolution
    shape = (3, side, side)
    prior = recipe.build(shape, 1, nothing(shape))
    prior.load_state_dict(read_generator(path).tensors)
    placed = prior.requires_grad_(False).eval()
    assert isinstance(placed, AdaPrior) and isinstance(placed.generator, Generator)
    return placed


def network(prior: AdaPrior) -> Generator:
    assert isinstance(prior.generator, Generator)
    return prior.generator


def drawn(prior: AdaPrior, z: Tensor, psi: float, cutoff: int) -> Tensor:
    own = network(prior)
    w = own.mapping(z)
    truncated = own.centre + psi * (w - own.centre)
    return own.synthesise(torch.stack([truncated if i < cutoff else w for i in range(own.layers)], dim=1))


def free(layers: int) -> Tensor:
    return generators.value("ws", 1, layers, 8)


@pytest.mark.parametrize(("file", "classes"), [("plain", 0), ("classes", 3)])
def test_images_are_those_of_nvidias_network(file: str, classes: int, files: dict[str, Path]) -> None:
    """Truncated and not, one w for all layers and one for each, with and without noise images, with classes."""
    prior = opened(files[file])
    z = torch.cat([GOLDEN["z"], torch.eye(3)[[2, 0]]], dim=1) if classes else GOLDEN["z"]
    assert torch.allclose(drawn(prior, z, 0.7, 4), GOLDEN[f"truncated{classes}"], **CLOSE)
    assert torch.allclose(network(prior).synthesise(free(network(prior).layers)), GOLDEN[f"free{classes}"], **CLOSE)
    bare = opened(files[file], noise="none")
    assert torch.allclose(network(bare).synthesise(free(network(bare).layers)), GOLDEN[f"bare{classes}"], **CLOSE)


def test_images_are_those_of_rosinalitys_network(files: dict[str, Path]) -> None:
    prior = opened(files["rosinality"])
    assert torch.allclose(drawn(prior, GOLDEN["z"], 0.7, 99), GOLDEN["rosinality"], **CLOSE)
    assert prior.critic_kind == "none" and "wgan" not in prior.offers()


def test_scores_are_those_of_nvidias_discriminator_on_one_image(files: dict[str, Path]) -> None:
    prior = opened(files["plain"])
    x = generators.value("x", 2, 3, 32, 32).tanh()
    assert torch.allclose(prior.critic((x + 1) / 2), GOLDEN["scores"], **CLOSE)


@pytest.mark.parametrize("crop", [10, 17, 31])
def test_the_middle_alone_is_the_middle_of_the_whole(crop: int, files: dict[str, Path]) -> None:
    whole, middle = network(opened(files["plain"])), network(opened(files["plain"], crop=crop))
    styles = free(whole.layers).requires_grad_()
    top = round((32 - crop) / 2)
    wanted, given = whole.synthesise(styles)[:, :, top : top + crop, top : top + crop], middle.synthesise(styles)
    assert torch.allclose(given, wanted, **CLOSE)
    slopes = [torch.autograd.grad(image.square().sum(), styles)[0] for image in (wanted, given)]
    assert torch.allclose(slopes[1], slopes[0], rtol=1e-4, atol=1e-4 * float(slopes[0].abs().max()))


def test_windows_of_the_published_crop() -> None:
    """By hand at the top: 800 of 1024 begin at 112; 3 x 3 needs 111; doubling needs ceil((111 - 3) / 2) = 54."""
    sides = [2**power for power in range(2, 11)]
    found = windows(sides, 800)
    assert found[-1] == ((54, 458), (111, 913), (112, 912))
    assert found[-2].outside == (54, 458) and found[0].outside == (0, 4)
    assert all(window.outside == (0, side) for window, side in zip(windows(sides, 1024), sides, strict=True))


def test_doubling_is_zeros_between_pixels_and_a_filter() -> None:
    x = generators.value("x", 1, 2, 5, 5)
    stuffed = torch.zeros(1, 2, 10, 10)
    stuffed[:, :, ::2, ::2] = x
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4.0
    kernel = (tap[:, None] * tap).expand(2, 1, 4, 4)
    wanted = F.conv2d(F.pad(stuffed, (2, 1, 2, 1)), kernel, groups=2)
    assert torch.allclose(doubled(x), wanted, atol=1e-6)


def test_mixed_precision_stays_within_its_own_error(files: dict[str, Path]) -> None:
    exact, mixed = opened(files["plain"]), opened(files["plain"], half=True, half_levels=2, clamp=256.0)
    styles = free(network(exact).layers)
    assert [block.halved for block in network(mixed).grown] == [False, False, True, True]
    error = (network(mixed).synthesise(styles) - network(exact).synthesise(styles)).abs().max()
    assert 0 < float(error) < 0.03


def test_the_target_sees_the_middle_resized_with_antialiasing(files: dict[str, Path]) -> None:
    prior = opened(files["plain"], size=12, crop=24)
    z = GOLDEN["z"]
    image = opened(files["plain"]).generator(z)[:, :, 4:28, 4:28]
    wanted = (F.interpolate(image, (12, 12), mode="bilinear", antialias=True) + 1) / 2
    assert torch.allclose(prior.decode(z), wanted.clamp(0, 1), **CLOSE)
    plain = F.interpolate(image, (12, 12), mode="bilinear")
    assert torch.allclose(View(12, False)(image), ((plain + 1) / 2).clamp(0, 1), **CLOSE)


def test_the_gradient_passes_the_clamp() -> None:
    x = torch.full((1, 3, 4, 4), 3.0, requires_grad=True)
    seen = View(4, True)(x)
    assert float(seen.detach().max()) == 1.0
    assert torch.equal(torch.autograd.grad(seen.sum(), x)[0], torch.full_like(x, 0.5))


@pytest.mark.parametrize(("name", "crop"), [("z", 0), ("w", 20), ("w+", 20)])
def test_a_search_enters_between_blocks(name: str, crop: int, files: dict[str, Path]) -> None:
    prior = opened(files["plain"], size=16, crop=crop)
    space = prior if name == "z" else prior.space(name)
    assert isinstance(space, AdaPrior | AdaSpace)
    z = space.sample(Noise(0, torch.arange(2)).of("z"))
    wanted = space.decode(z)
    for block in range(1, space.blocks + 1):
        inside = space.features_at(z, block)
        assert torch.allclose(space.decode_from(z, inside, block), wanted, **CLOSE)
        if block < space.blocks:
            assert torch.allclose(space.advance(z, inside, block), space.features_at(z, block + 1), **CLOSE)


def test_truncation_is_towards_the_mean_in_the_first_layers(files: dict[str, Path]) -> None:
    prior = opened(files["plain"], psi=0.5, cutoff=3)
    noise, own = Noise(0, torch.arange(2)).of("z"), network(prior)
    w = own.mapping(prior.sample(noise))
    middle = own.centre + 0.5 * (w - own.centre)
    assert torch.allclose(prior.space("w").sample(noise), middle)
    assert torch.allclose(prior.space("w+").sample(noise), torch.cat([middle] * 3 + [w] * 5, dim=1))


def test_classes_lie_behind_z_or_one_is_chosen(files: dict[str, Path]) -> None:
    any_class, second = opened(files["classes"]), opened(files["classes"], label=1)
    assert (any_class.latent_dim, second.latent_dim) == (11, 8)
    z = any_class.sample(Noise(0, torch.arange(64)).of("z"))
    assert set(z[:, 8:].sum(dim=1).tolist()) == {1.0} and len(z[:, 8:].unique(dim=0)) == 3
    own = torch.cat([z[:2, :8], torch.tensor([[0.0, 1.0, 0.0]] * 2)], dim=1)
    assert torch.allclose(second.decode(z[:2, :8]), any_class.decode(own), **CLOSE)
    assert any_class.critic_kind == "none"


def test_bytes_that_a_gradient_keeps(files: dict[str, Path]) -> None:
    """What autograd saves of features grows as the prior says: the published sizes would not fit into a test."""
    prior, kept = opened(files["plain"]), {}

    def keep(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes() if saved.ndim == 4 else 0
        return saved

    w = free(1)[:, 0].expand(4, -1).clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        image = network(prior).synthesise(network(prior).same(w))
    assert image.requires_grad
    assert 0.5 < sum(kept.values()) / (4 * prior.footprint) < 1.5


def test_it_keeps_the_contract() -> None:
    short = {"resolution": 32, "base": 128, "most": 8, "latent_dim": 8, "style_dim": 8, "layers": 2}
    report(PriorTrial("stylegan2_ada", short), LAWS)


def test_published_sizes() -> None:
    """Parameters of the originals at 1024 pixels, config F."""
    with torch.device("meta"):
        prior = StyleGan2Ada().build((3, 1024, 1024), 1, nothing((3, 1024, 1024)))
    own = [sum(one.numel() for one in part.parameters()) for part in (prior.generator, prior.critic_network)]  # type: ignore[union-attr]
    assert own == [30_370_060, 29_012_513]
    assert StyleGan2Ada().blocks_of((3, 224, 224)) == 8 and network(prior).layers == 18
