"""Checkpoints of the authors' repositories: recognised by content, mapped to the same answers, refused in one line."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from torch import Tensor

from mibench import models
from mibench.models.imported.opening import open_source
from mibench.models.imported.sources import read_source
from mibench.models.imported.weights import bare, read_state
from mibench.models.published import named, recognise
from mibench.runtime.errors import UserError

CLASSES = 3

GOLDEN: dict[str, tuple[Callable[[], dict[str, Tensor]], str, int, list[list[float]]]] = {
    "vgg": (lambda: published.vgg(3), "vgg16_bn64", 64, [[0.792, 0.19693, 0.02001], [0.72088, 0.19191, 0.08244]]),
    "bido": (
        lambda: published.bido(3),
        "vgg16_bn64",
        64,
        [[-0.5812, -0.03121, -0.09742], [-0.55635, 0.00546, -0.15012]],
    ),
    "facenet64": (
        lambda: published.ir((3, 4, 14, 3), 4, 3),
        "facenet64",
        64,
        [[-2.31527, 1.76307, 2.17995], [-3.49391, 0.01224, 2.7906]],
    ),
    "ir152": (
        lambda: published.ir((3, 8, 36, 3), 4, 3),
        "ir152",
        64,
        [[5.53277, 1.2817, 2.08885], [4.14624, -3.20661, 0.97346]],
    ),
    "facenet112": (
        lambda: published.ir((3, 4, 14, 3), 7, 3, inside=True),
        "facenet112",
        112,
        [[2.30876, 1.83499, 2.19449], [3.69316, 0.17773, 2.38732]],
    ),
    "inception_resnet": (
        lambda: published.facenet(3),
        "inception_resnet_v1",
        160,
        [[-0.69542, -1.90842, 0.34672], [-0.53403, -1.99428, 0.14161]],
    ),
}
"""Logits that the authors' own modules gave to `published.image` when filled with these weights."""


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    return published.vgg(CLASSES)


@pytest.mark.parametrize("kind", GOLDEN)
@torch.no_grad()
def test_mapped_weights_answer_as_the_authors_network(kind: str) -> None:
    make, architecture, side, golden = GOLDEN[kind]
    tensors = make()
    known = recognise(tensors)
    assert known is not None and known.architecture == architecture
    assert (known.renamed, known.left, known.missing) == (len(tensors), (), ())
    with torch.device("meta"):
        net = models.build(architecture, CLASSES, (3, side, side))
    net.load_state_dict(known.tensors, assign=True)
    assert net.prepare.rows is None, "the golden images are of the network's own size"
    torch.testing.assert_close(net.eval()(published.image(side)), torch.tensor(golden), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "inception_v3", "maxvit_t"])
def test_networks_of_torchvision_are_recognised_with_any_number_of_people(name: str) -> None:
    import torchvision

    options: dict[str, Any] = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        state = torchvision.models.get_model(name, num_classes=530, **options).state_dict()
    known = recognise(bare({f"model._orig_mod.{key}": value for key, value in state.items()}))  # compiled, in a wrapper
    assert known is not None and (known.architecture, known.renamed) == (name, 0)


def test_resnest_is_timms(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("resnest50d", num_classes=9).state_dict()
    known = recognise(state)
    assert known is not None and known.architecture == "timm:resnest50d"


def _data_parallel(tensors: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"module.{name}": value for name, value in tensors.items()}}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "DataParallel under state_dict": _data_parallel,
    "under model_state_dict, with an optimiser": lambda one: {
        "epoch": 100,
        "model_state_dict": {f"model.{name}": value for name, value in one.items()},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-3}]},
    },
    "a tuple": lambda one: (_data_parallel(one), 50, 0.8826),
    "alone": dict,
}


@pytest.mark.parametrize("how", WRAPPED)
def test_whatever_wraps_them_they_are_the_same_weights(how: str, tmp_path: Path) -> None:
    small = {
        name: value[:1] for name, value in published.filled({"fc_layer.weight": (3, 8), "bn.weight": (8,)}).items()
    }
    torch.save(WRAPPED[how](small), tmp_path / "VGG16_88.26.tar")
    read = bare(read_state(tmp_path / "VGG16_88.26.tar").tensors)
    assert read.keys() == small.keys() and all(torch.equal(read[name], small[name]) for name in small)


@torch.no_grad()
def test_a_file_of_the_old_format_opens_for_an_audit_and_says_what_was_mapped(
    vgg: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "VGG16_88.26_allclass.tar"
    torch.save(_data_parallel(vgg), file, _use_new_zipfile_serialization=False)  # torch before 1.6 wrote these
    opened = open_source(read_source("vgg16_bn64", file, None))
    golden = torch.tensor(GOLDEN["vgg"][3])
    torch.testing.assert_close(opened.module(published.image(64)), golden, atol=2e-5, rtol=1e-5)
    assert opened.family == "vgg"
    (note,) = opened.notes
    assert note.startswith(
        "recognised by its names and shapes as vgg16_bn64 (names of KEDMI, LOMMA, PLG-MI and TL-DMI)"
    )
    assert note.endswith(": 98 tensors mapped")


# --- what is refused --------------------------------------------------------------------------------------------------


class Hostile:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("hostile-was-here"),))  # type: ignore[return-value]


@pytest.mark.parametrize("ending", [".tar", ".pth"])
def test_a_hostile_pickle_does_nothing_and_says_how_to_save_instead(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"w{ending}"
    file.write_bytes(pickle.dumps({"state_dict": Hostile()})) if ending == ".tar" else torch.save(Hostile(), file)
    with pytest.raises(UserError, match=r"save model\.state_dict"):
        read_state(file)
    assert not Path("hostile-was-here").exists()


def test_a_truncated_file_is_named(vgg: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "VGG16.tar"
    torch.save({"fc_layer.weight": vgg["fc_layer.weight"]}, file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"VGG16.tar is no file of weights .*save model.state_dict\(\) with torch.save"):
        read_state(file)


def test_another_architecture_is_named_with_the_one_that_it_is(vgg: dict[str, Tensor], tmp_path: Path) -> None:
    known = recognise(vgg)
    with pytest.raises(UserError, match=r"w\.tar holds vgg16_bn64 .* --model says ir152: leave --model out"):
        named("ir152", known, "w.tar")
    assert named(None, known, "w.tar") == named("vgg16_bn64", known, "w.tar") == "vgg16_bn64"
    with pytest.raises(UserError, match=r"none of the published networks .* name its network with --model"):
        named(None, recognise({"stem.weight": torch.zeros(3, 3)}), "w.tar")


def test_what_has_no_place_and_what_is_missing_is_told(vgg: dict[str, Tensor]) -> None:
    odd = {name: value for name, value in vgg.items() if name != "bn.running_mean"} | {
        "feature.99.weight": vgg["bn.bias"]
    }
    known = recognise(odd)
    assert known is not None
    assert (known.left, known.missing) == (("feature.99.weight",), ("trunk.norm.running_mean",))
    assert known.told.endswith(
        "97 tensors mapped; 1 left, the first is 'feature.99.weight'; 1 missing, the first is 'trunk.norm.running_mean'"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: {**one, "st_layer.weight": torch.zeros(2, 2)}, "defense MID"),
        (lambda one: {name: v for name, v in one.items() if "body.23." not in name}, "23 units .* none of those"),
    ],
)
def test_published_networks_that_are_not_offered(change: Callable[[Any], Any], said: str) -> None:
    one = {f"feature.body.{place}.res_layer.1.weight": torch.zeros(1) for place in range(24)}
    one |= {"feature.input_layer.0.weight": torch.zeros(1), "fc_layer.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=said):
        recognise(change({**one, "output_layer.3.weight": torch.zeros(1, 8192)}))


def test_a_face_recogniser_without_classes_is_no_classifier() -> None:
    with pytest.raises(UserError, match="without its last layer: an embedder"):
        recognise({name: value for name, value in published.facenet(2).items() if not name.startswith("logits.")})
