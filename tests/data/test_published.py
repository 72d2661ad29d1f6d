"""Published data sets: crops and splits to the pixel, decoded once, one line for whatever is wrong with the files."""

import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from typer.testing import CliRunner

from mibench.cli.app import app
from mibench.core import Dataset
from mibench.data import standin
from mibench.data.published import align, celeba_files, crops, packs, splits
from mibench.data.published.needs import MARKER
from mibench.plugins import registry
from mibench.runtime.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins that are small to write; never changed by a test."""
    top = tmp_path_factory.mktemp("data")
    for name in ("celeba", "facescrub", "stanford_dogs", "pubfig83", "vggface2", "afhq"):
        standin.write(name, top)
    return top


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one data set's tree that a test may damage; its root is tmp_path."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(root / name, tmp_path / name))

    return copy


def source(name: str, root: Path, **fields: Any) -> Any:
    return registry.configure("data", name, settings={"root": str(root), **fields}).plugin


def prepared(name: str, root: Path, **fields: Any) -> Dataset:
    plugin = source(name, root, **fields)
    plugin.prepare()
    return plugin.load()


def people(root: Path) -> dict[str, str]:
    lines = (root / "celeba" / "identity_CelebA.txt").read_text().splitlines()
    return {line.split()[0].removesuffix(".jpg"): line.split()[1] for line in lines}


def celeba_picture(root: Path, key: str) -> Image.Image:
    with zipfile.ZipFile(root / "celeba" / "img_align_celeba.zip") as archive:
        return Image.open(io.BytesIO(archive.read(f"img_align_celeba/{key}.jpg"))).convert("RGB")


# --- crops -----------------------------------------------------------------------------------------------------------


def authors(offset_height: int, offset_width: int, side: int, size: int) -> Callable[[Image.Image], torch.Tensor]:
    """The low-resolution papers' loader, written from its description: tensor, slice, 8 bits, resize, tensor."""

    def cut(image: Image.Image) -> torch.Tensor:
        part = T.functional.to_tensor(image)[
            :, offset_height : offset_height + side, offset_width : offset_width + side
        ]
        return T.functional.to_tensor(T.Resize((size, size))(T.functional.to_pil_image(part)))

    return cut


@pytest.mark.parametrize(
    ("name", "size", "given", "reference"),
    [
        ("celeba-108", 64, (178, 218), authors(55, 35, 108, 64)),
        ("celeba-108", 112, (178, 218), authors(55, 35, 108, 112)),
        ("ffhq-88", 64, (128, 128), authors(20, 20, 88, 64)),
        ("pubfig-67", 64, (100, 100), authors(16, 16, 67, 64)),
        ("pubfig-176", 64, (256, 256), authors(40, 40, 176, 64)),
        ("facescrub-54", 64, (64, 64), authors(5, 5, 54, 64)),
        ("facescrub-54", 64, (91, 77), T.Compose([T.Resize((64, 64)), authors(5, 5, 54, 64)])),
        ("ffhq-800", 224, (1024, 1024), T.Compose([T.CenterCrop(800), T.Resize(224), T.ToTensor()])),
        ("facescrub-224", 96, (131, 90), T.Compose([T.Resize(96), T.CenterCrop(96), T.ToTensor()])),
        ("dogs-224", 96, (131, 90), T.Compose([T.Resize((96, 96)), T.ToTensor()])),
        ("afhq-512", 224, (512, 512), T.Compose([T.Resize(224), T.ToTensor()])),
        ("celeba-128", 64, (178, 218), T.Compose([T.CenterCrop(128), T.Resize(64), T.ToTensor()])),
    ],
)
def test_a_crop_is_the_authors_to_the_pixel(
    name: str, size: int, given: tuple[int, int], reference: Callable[[Image.Image], torch.Tensor]
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (given[1], given[0], 3), dtype=np.uint8))
    crop = crops.Crop(**{**vars(crops.CROPS[name][1]), "size": size})
    own = torch.from_numpy(crops.cut(image, crop).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(own, reference(image), atol=0, rtol=0)


def test_a_crop_refuses_a_picture_of_another_size() -> None:
    with pytest.raises(ValueError, match="it has 224 x 224 pixels; this crop is for 178 x 218"):
        crops.cut(Image.new("RGB", (224, 224)), crops.CROPS["celeba-108"][1])


def test_the_similarity_is_found_again_and_maps_the_standard_face_onto_the_landmarks() -> None:
    standard = np.random.default_rng(0).normal(0, 0.25, (68, 2))
    a, b, u, v = 0.7, 0.3, 21.0, 34.0
    true = np.array([[a, -b, u], [b, a, v]])
    target = (standard + np.array([0, 0.25])) * 224 * 0.65 + 112
    points = target @ true[:, :2].T + true[:, 2]
    np.testing.assert_allclose(align.hd_matrix(points, standard, 224), true, atol=1e-10)


def test_the_warp_moves_whole_pixels_exactly_repeats_edges_and_keeps_flat_pictures() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    moved = align.warp(pixels, np.array([[1.0, 0, 3], [0, 1.0, 5]]), 20)
    np.testing.assert_array_equal(moved, pixels[5:25, 3:23])
    outside = align.warp(pixels, np.array([[1.0, 0, -50], [0, 1.0, -50]]), 20)
    assert (outside == pixels[0, 0]).all()
    flat = np.full((40, 30, 3), 77, np.uint8)
    assert (align.warp(flat, np.array([[0.37, 0.11, 2.3], [-0.11, 0.37, 9.7]]), 32) == 77).all()
    assert (align._weights().sum((2, 3)) == 1 << 15).all()


def test_the_warp_is_that_of_opencv() -> None:
    # cv2.warpAffine of opencv-python-headless 4.10.0.84, INTER_CUBIC | WARP_INVERSE_MAP, BORDER_REPLICATE.
    y, x = np.mgrid[0:24, 0:20]
    pixels = np.stack([(x * 37 + y * 91) % 256, (x * y * 7) % 256, (x * x + 3 * y) % 256], -1).astype(np.uint8)
    warped = align.warp(pixels, np.array([[0.83, -0.41, 6.25], [0.41, 0.83, -2.5]]), 16)
    assert warped[[0, 5, 9, 15], [3, 8, 1, 15]].tolist() == GOLDEN_WARP
    assert int(warped.astype(np.int64).sum()) == GOLDEN_SUM


GOLDEN_WARP = [[66, 0, 76], [80, 114, 131], [94, 129, 28], [145, 125, 206]]
GOLDEN_SUM = 89_052


# --- splits ----------------------------------------------------------------------------------------------------------


def test_ninety_ten_is_numpy_s_legacy_shuffle() -> None:
    train, heldout = splits.ninety_ten(30_038)
    assert (len(train), len(heldout)) == (27_034, 3004)
    assert sorted(train + heldout) == list(range(30_038))
    rows = list(range(50))
    np.random.RandomState(42).shuffle(rows)
    assert splits.ninety_ten(50) == (rows[:45], rows[45:])
    assert splits.ninety_ten(10)[1] == [6]


def test_everybody_has_pictures_that_are_held_out() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 30)).tolist()
    train, heldout = splits.everybody(labels)
    usual, rest = splits.ninety_ten(len(labels))
    alone = Counter(labels[row] for row in rest)
    assert sum(alone[label] == 0 for label in range(1000)) > 30, "whom the authors' shuffle alone would leave without"
    assert heldout[: len(rest)] == rest and sorted(train + heldout) == list(range(30_000))
    assert train == [row for row in usual if row not in set(heldout)] and len(heldout) - len(rest) < 0.01 * 30_000
    count = Counter(labels[row] for row in heldout)
    assert min(count[label] for label in range(1000)) == splits.HELD_OUT
    assert all(count[label] == max(alone[label], 2) for label in range(1000)), "of nobody more than that"
    assert set(splits.everybody([0, 1, 1])[0]) >= {0}, "who has one picture is trained on"


def _sequel(kept: list[int], rows: list[int]) -> list[int]:
    """Places of rows that give `kept` in order."""
    places, place = [], 0
    for label in kept:
        place = rows.index(label, place)
        places.append(place)
        place += 1
    return places


def test_the_most_frequent_keep_the_order_of_first_appearance() -> None:
    assert splits.most_frequent([5, 9, 9, 5, 7, 2, 7, 2, 1], 3) == [5, 9, 7]


def test_celeba_kedmi_is_the_authors_lists_and_its_parts_share_nobody(root: Path) -> None:
    data = prepared("celeba", root)
    who = people(root)
    lists = {
        part: [line.split() for line in (root / "celeba" / f"celeba_{kind}set.txt").read_text().splitlines()]
        for part, kind in (("train", "train"), ("heldout", "test"), ("public", "gan"))
    }
    for part, rows in lists.items():
        split = getattr(data, part)
        assert split.labels.tolist() == [int(row[1]) if len(row) > 1 else -1 for row in rows]
        for row in (0, len(rows) - 1):
            image = celeba_picture(root, rows[row][0].removesuffix(".jpg"))
            expected = (authors(55, 35, 108, 64)(image) * 255).round().to(torch.uint8)
            assert torch.equal(split.images[row], expected)
    assert data.classes == tuple(dict(sorted((int(r[1]), who[r[0][:-4]]) for r in lists["train"])).values())
    assert data.distractor_count == 3 and not data.distractors_are_public and "429" in data.card["splits"]
    plugin = source("celeba", root)
    assert plugin.shape() == (6, (3, 64, 64), len(data.public)) and plugin.shows_faces and plugin.heldout_count == 2
    everyone = [data.train, data.heldout, data.public, data.distractors, plugin.load_bystanders()]
    hashes = [set(split.hashes()) for split in everyone]
    assert sum(map(len, hashes)) == len(set().union(*hashes)) == sum(map(len, everyone))
    assert data.card["standin"] and plugin.identity()["standin"]
    assert str(root) not in json.dumps(plugin.identity())


def test_celeba_ppa_is_the_rule_and_other_people_than_kedmi(root: Path) -> None:
    data = prepared("celeba", root, split="ppa", cropped="centre108", image_size=32, public="own")
    who = people(root)
    count = Counter(who.values())
    frequent = sorted(count, key=lambda person: -count[person])[:6]
    assert data.classes == tuple(frequent)
    private = [key for key, person in who.items() if person in frequent]
    order = np.arange(len(private))
    np.random.RandomState(42).shuffle(order)
    rows = [frequent.index(who[private[row]]) for row in order[: int(0.9 * len(private))]]
    kept = data.train.labels.tolist()
    assert kept == [rows[place] for place in _sequel(kept, rows)] and len(rows) - len(kept) < 12, "but for a few"
    assert data.heldout.labels.bincount(minlength=6).min() >= 2
    kedmi = prepared("celeba", root)
    assert 0 < len(set(kedmi.classes) & set(data.classes)) < 6, "some people are in both, not all"


def test_celeba_hd_is_the_warp_by_landmarks(root: Path) -> None:
    data = prepared("celeba", root, split="ppa", cropped="hd", image_size=48, public="own", distractors=0, bystanders=0)
    home, who = root / "celeba", people(root)
    key = next(key for key, person in who.items() if person == data.classes[0])
    line = next(line for line in (home / "landmark.txt").read_text().splitlines() if line.startswith(key))
    points = np.array([float(cell) for cell in line.split()[1:]]).reshape(-1, 2)
    standard = np.loadtxt(home / "standard_landmark_68pts.txt")
    pixels = np.asarray(Image.open(home / "img_celeba" / f"{key}.jpg").convert("RGB"))
    expected = align.warp(pixels, align.hd_matrix(points, standard, 48), 48)
    both = torch.cat([data.train.images, data.heldout.images])
    assert (both == torch.from_numpy(expected.copy()).permute(2, 0, 1)).flatten(1).all(1).sum() == 1
    assert data.distractors_are_public


def test_published_numbers_are_those_of_the_papers() -> None:
    facts = celeba_files.PUBLISHED
    assert facts["kedmi_train"] + facts["kedmi_heldout"] == 30_027 and celeba_files.IN_COMMON == 429


def test_facescrub_orders_actors_before_actresses_and_cuts_the_lists_boxes(root: Path) -> None:
    standin.write("metfaces", root)
    faces = prepared("facescrub", root, image_size=24, public="metfaces")
    assert faces.classes == ("Al_Pacino", "Ben_Ames", "Cary_Grant", "Ada_Wong", "Bette_Dee", "Cher_Ray")
    assert len(faces.train) + len(faces.heldout) == 120 and len(faces.public) == 4
    assert 104 <= len(faces.train) <= 108 and faces.heldout.labels.bincount(minlength=6).min() >= 2
    boxes = prepared("facescrub", root, image_size=24, public="metfaces", cropped="box")
    assert torch.equal(boxes.train.labels, faces.train.labels)
    # The boxes frame the very faces; only JPEG stands between the two.
    assert (boxes.train.images.int() - faces.train.images.int()).abs().float().mean() < 3


def test_dogs_take_both_lists_in_order_and_the_first_box(root: Path) -> None:
    whole, cut = (prepared("stanford_dogs", root, image_size=16, boxes=boxes) for boxes in (False, True))
    assert whole.classes[0] == "Chihuahua" and whole.classes[4] == "Shih-Tzu" and len(whole.classes) == 5
    train, _ = splits.ninety_ten(80)
    assert torch.equal(whole.train.labels, cut.train.labels)
    lists = [label for kind in (10, 6) for label in range(5) for _ in range(kind)]
    assert whole.train.labels.tolist() == [lists[row] for row in train]
    breed, number = "n02085620-Chihuahua", 103
    image = Image.open(root / "stanford_dogs" / "Images" / breed / f"n02085620_{number}.jpg").convert("RGB")
    row = train.index(number - 100) if number - 100 in train else None
    assert row is not None
    expected = np.asarray(image.crop((10, 5, 90, 85)).resize((16, 16), Image.Resampling.BILINEAR))
    assert torch.equal(cut.train.images[row], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert (
        not torch.equal(whole.train.images[row], cut.train.images[row])
        and not source("stanford_dogs", root).shows_faces
    )


def test_pubfig_takes_the_listed_people_and_vggface2_the_most_frequent(root: Path) -> None:
    figures = prepared("pubfig83", root)
    assert figures.classes == tuple(f"Person_{letter}" for letter in "BDEFH") and len(figures.public) == 48
    famous = prepared("vggface2", root, aligned=True, image_size=16)
    assert famous.classes == tuple(f"n{number:06d}" for number in range(2, 7))
    assert source("vggface2", root, aligned=True, image_size=16).shape() == (5, (3, 16, 16), 18)


# --- decoded once ----------------------------------------------------------------------------------------------------


def test_preparing_again_decodes_nothing_and_a_changed_file_is_seen(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied("pubfig83")
    first = prepared("pubfig83", tmp_path)
    identity = source("pubfig83", tmp_path).identity()
    with monkeypatch.context() as patch:
        patch.setattr(packs, "decode", lambda job: pytest.fail("decoded again"))
        assert prepared("pubfig83", tmp_path).fingerprint() == first.fingerprint()
    standin.picture("somebody", 1, 100, 100).save(tmp_path / "pubfig83" / "Person_B" / "0000_01.jpg")
    assert prepared("pubfig83", tmp_path).fingerprint() != first.fingerprint()
    assert source("pubfig83", tmp_path).identity() != identity
    assert len(list((tmp_path / "prepared").iterdir())) == 1, "the old pixels are gone"


def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(
    root: Path, tmp_path: Path, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied("pubfig83")
    monkeypatch.setattr(packs, "_JOB", 16)
    true, done = packs.decode, []

    def dies(job: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job)
        return true(job)

    with monkeypatch.context() as patch:
        patch.setattr(packs, "decode", dies)
        with pytest.raises(KeyboardInterrupt):
            source("pubfig83", tmp_path).prepare()
    with pytest.raises(UserError, match=r"is not prepared in this way.*run: mibench data prepare pubfig83 --root"):
        source("pubfig83", tmp_path).load()
    rest: list[Any] = []
    monkeypatch.setattr(packs, "decode", lambda job: (rest.append(job), true(job))[1])
    resumed = prepared("pubfig83", tmp_path)
    assert len(rest) == 9 - 3 and resumed.fingerprint() == prepared("pubfig83", root).fingerprint()


def test_processes_make_the_same_bytes(root: Path, tmp_path: Path, copied: Callable[[str], Path]) -> None:
    copied("pubfig83")
    source("pubfig83", tmp_path).prepare(processes=2)
    assert source("pubfig83", tmp_path).load().fingerprint() == prepared("pubfig83", root).fingerprint()


def test_a_changed_pack_is_found_out(copied: Callable[[str], Path], tmp_path: Path) -> None:
    copied("pubfig83")
    prepared("pubfig83", tmp_path)
    source("pubfig83", tmp_path).verify()
    file = next((tmp_path / "prepared").glob("*/pixels.safetensors"))
    with file.open("r+b") as handle:
        handle.seek(-1000, 2)
        handle.write(b"\0" * 8)
    with pytest.raises(UserError, match="changed since it was made: remove it"):
        source("pubfig83", tmp_path).verify()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        source("pubfig83", tmp_path).load()


# --- bad files -------------------------------------------------------------------------------------------------------


def clip(file: Path, keep: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])


BREAK: dict[str, tuple[str, dict[str, Any], Callable[[Path], object], str]] = {
    "partial zip": ("celeba", {}, lambda h: clip(h / "img_align_celeba.zip", 0.6), "is no whole zip archive"),
    "web page": (
        "celeba",
        {},
        lambda h: (h / "img_align_celeba.zip").write_text("<!DOCTYPE html>quota"),
        "is a web page of 20 bytes, not an archive",
    ),
    "no identities": (
        "celeba",
        {},
        lambda h: (h / "identity_CelebA.txt").unlink(),
        r"1 of 5 things are missing: \(1\)",
    ),
    "two missing": (
        "celeba",
        {},
        lambda h: [(h / f"celeba_{part}set.txt").unlink() for part in ("train", "gan")],
        r"2 of 5 things are missing: .*trainset.*\(2\).*ganset",
    ),
    "cut list": ("celeba", {}, lambda h: clip(h / "celeba_trainset.txt", 0.5), "celeba_trainset.txt"),
    "cut identities": (
        "celeba",
        {"split": "ppa", "public": "own"},
        lambda h: clip(h / "identity_CelebA.txt", 0.5),
        "identity_CelebA.txt",
    ),
    "published file": ("celeba", {}, lambda h: (h / MARKER).unlink(), "is not the published file .md5"),
    "mixed splits": (
        "celeba",
        {},
        lambda h: (h / "celeba_ganset.txt").write_text(
            (h / "celeba_ganset.txt")
            .read_text()
            .replace(
                (h / "celeba_ganset.txt").read_text().split()[0], (h / "celeba_trainset.txt").read_text().split()[0], 1
            )
        ),
        "are of different splits: .* 1 private people are public too.*429",
    ),
    "fewer people": (
        "facescrub",
        {"public": "metfaces"},
        lambda h: shutil.rmtree(h / "actors" / "faces" / "Ben_Ames"),
        r"has 2 people, the protocol has 3 \(without a picture: Ben_Ames\)",
    ),
    "fewer figures": ("pubfig83", {}, lambda h: shutil.rmtree(h / "Person_A"), "has pictures of 7 people, .* has 8"),
    "corrupt": (
        "pubfig83",
        {},
        lambda h: [clip(h / f"Person_{p}" / "0003_01.jpg", 0.3) for p in "AB"],
        r"2 of 128 pictures of 'pubfig83' cannot be decoded: .*Person_[AB]/0003_01.jpg",
    ),
    "other size": (
        "pubfig83",
        {"source_size": "256"},
        lambda h: None,
        "has 100 x 100 pixels, this crop is for 256 x 256",
    ),
    "no mat": (
        "stanford_dogs",
        {},
        lambda h: (h / "test_list.mat").write_text("hello"),
        "is not one of Stanford Dogs'",
    ),
    "no pictures": (
        "stanford_dogs",
        {},
        lambda h: shutil.rmtree(h / "Images" / "n02085936-Maltese_dog"),
        "lacks 1[0-9] of .* pictures of the train part",
    ),
    "no box": (
        "stanford_dogs",
        {"boxes": True},
        lambda h: (h / "Annotation" / "n02085620-Chihuahua" / "n02085620_100").write_text("<annotation/>"),
        "holds no bounding box",
    ),
}


@pytest.mark.parametrize("kind", BREAK)
def test_bad_files_get_one_clear_line_before_anything_is_decoded(
    kind: str, root: Path, copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fields, damage, message = BREAK[kind]
    damage(copied(name))
    for other in ("afhq", "metfaces"):
        if not (root / other).exists():
            standin.write(other, root)
        (tmp_path / other).symlink_to(root / other)
    if kind != "corrupt":
        monkeypatch.setattr(packs, "_decode", lambda *a: pytest.fail("decoded before it was checked"))
    with pytest.raises(UserError, match=message) as caught:
        source(name, tmp_path, image_size=16, **fields).prepare()
    assert "\n" not in str(caught.value)


def test_a_corrupt_picture_that_is_mended_costs_only_its_own_job(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = copied("pubfig83")
    monkeypatch.setattr(packs, "_JOB", 16)
    file = home / "Person_A" / "0003_01.jpg"
    whole, times = file.read_bytes(), file.stat()
    file.write_bytes(whole[:200] + b"\0" * (len(whole) - 200))
    with pytest.raises(UserError, match="1 of 128 pictures"):
        source("pubfig83", tmp_path).prepare()
    file.write_bytes(whole)
    assert times.st_size == file.stat().st_size
    assert len(prepared("pubfig83", tmp_path).train) == 70


def test_too_little_disk_is_told_first(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied("pubfig83")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packs.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB free and the decoded pictures take .* GB; make room"):
        source("pubfig83", tmp_path).prepare()


def test_no_root_and_a_wrong_root_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIBENCH_DATA", raising=False)
    for name in ("celeba", "cifar10", "emnist"):
        with pytest.raises(UserError, match=f"(?s)MIBENCH_DATA=DIR.*mibench data prepare {name} --root DIR"):
            source(name, Path("")).__class__().identity()
    with pytest.raises(UserError, match="is no folder"):
        source("celeba", tmp_path / "nowhere").prepare()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prepares_lists_and_refuses_in_one_line(root: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["data", "prepare", "pubfig83", "--root", str(root), "--verify", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["identities"] == 5
    listed = runner.invoke(app, ["data", "prepare", "celeba", "--root", str(tmp_path), "--dry-run", "--json"])
    assert [row["here"] for row in json.loads(listed.stdout)] == [False] * 5
    assert all(row["licence"] and row["source"].startswith("http") for row in json.loads(listed.stdout))
    public = runner.invoke(app, ["data", "prepare", "afhq", "--root", str(root), "--set", "image_size=16", "--json"])
    assert public.exit_code == 0 and json.loads(public.stdout)["images"] == [24, 3, 16, 16]
    refused = runner.invoke(app, ["data", "prepare", "celeba", "--root", str(tmp_path)])
    assert isinstance(refused.exception, UserError) and "5 of 5 things are missing" in str(refused.exception)
