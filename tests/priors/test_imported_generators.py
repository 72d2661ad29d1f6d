"""Files of generators that are hostile, cut off, or of something else: named, with what to do, and nothing is run."""

import argparse
import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import generators
import pytest
import torch

from mibench.priors.imported.opening import read_generator
from mibench.priors.stylegan2_ada import StyleGan2Ada
from mibench.runtime.errors import UserError


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        read_generator(path)


def wrote(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class Reduced:
    """A call in a pickle."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_a_hostile_pickle_does_nothing_and_is_named(tmp_path: Path) -> None:
    hostile, made = Hostile(tmp_path / "made"), tmp_path / "made"
    refused(wrote(tmp_path / "a.pkl", {"G_ema": hostile}), r"a\.pkl asks for posix\.mkdir.*nothing of it was run")
    part = generators.part("Generator", {"synthesis": hostile})
    refused(wrote(tmp_path / "b.pkl", {"G_ema": part}), r"posix\.mkdir")
    torch.save({"g_ema": {}, "x": hostile}, tmp_path / "c.pt")
    refused(tmp_path / "c.pt", "nothing of it was run")
    assert not made.exists()


def test_a_hostile_storage_does_nothing_and_is_named(tmp_path: Path) -> None:
    """The numbers of a tensor are a file of torch inside the pickle, which is a pickle too."""
    inner = io.BytesIO()
    torch.save(Hostile(tmp_path / "made"), inner, _use_new_zipfile_serialization=False)
    storage = Reduced(torch.storage._load_from_bytes, inner.getvalue())
    forged = generators.generator(8)
    forged.state["_modules"]["mapping"].state["_buffers"]["w_avg"] = Reduced(
        torch._utils._rebuild_tensor_v2, storage, 0, (8,), (1,), False, OrderedDict()
    )
    refused(wrote(tmp_path / "d.pkl", {"G_ema": forged}), r"a tensor that cannot be read.*nothing of it was run")
    assert not (tmp_path / "made").exists()


def test_the_source_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = generators.nvidia(tmp_path / "plain.pkl", 8)
    assert generators.SOURCE.encode() in path.read_bytes()
    assert read_generator(path).geometry.resolution == 8


def test_a_memo_of_a_billion_places_is_refused(tmp_path: Path) -> None:
    forged = b"\x80\x02]r" + struct.pack("<I", 2**31) + b"."
    refused(wrote(tmp_path / "memo.pkl", forged), "place 2,147,483,648 of a memo")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_files_that_are_cut_off(share: float, tmp_path: Path) -> None:
    for path in (generators.nvidia(tmp_path / "a.pkl", 8), generators.rosinality(tmp_path / "b.pt", 8)):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, r"(not a whole pickle|is cut off|not a whole file).*fetch it again")


def test_files_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pkl", "No such file")
    refused(wrote(tmp_path / "empty.pkl", b""), "is empty: fetch it again")
    refused(wrote(tmp_path / "page.pkl", b"<!DOCTYPE html><html>"), "is a page.*fetch it again")
    only = {"D": generators.discriminator(8)}
    refused(wrote(tmp_path / "d.pkl", only), "only a discriminator.*no generator.*import a network snapshot")
    refused(wrote(tmp_path / "e.pkl", generators.discriminator(8)), "holds a discriminator and no generator")
    refused(wrote(tmp_path / "f.pkl", {"G_ema": [1, 2]}), "holds a list where a network of NVIDIA's code should be")
    torch.save({"d": {"convs.0.0.weight": torch.zeros(1)}}, tmp_path / "g.pt")
    refused(tmp_path / "g.pt", "a discriminator and no generator.*has 'g_ema'")
    torch.save({"generator_smooth": {"synthesis.layer0.epilogue.bias": torch.zeros(1)}}, tmp_path / "h.pt")
    refused(tmp_path / "h.pt", "a StyleGAN1 or a StyleGAN2 of GenForce")


def test_other_stylegans_are_named(tmp_path: Path) -> None:
    synthesis = generators.part("SynthesisNetwork", {"input": generators.part("SynthesisInput")})
    third = generators.part("Generator", {"synthesis": synthesis, "mapping": generators.part("MappingNetwork")})
    refused(wrote(tmp_path / "3.pkl", {"G_ema": third}), "is a StyleGAN3.*take the one that was trained on the same")

    class Network:
        def __init__(self, builder: str) -> None:
            self.build_func_name = builder

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    generators.named("dnnlib.tflib.network", "unused")
    sys.modules["dnnlib.tflib.network"].Network = Network  # type: ignore[attr-defined]
    first = tuple(Network(one) for one in ("G_style", "D_basic", "G_style"))
    refused(wrote(tmp_path / "1.pkl", first), "is a StyleGAN1 of TensorFlow")
    second = tuple(Network(one) for one in ("G_main", "D_stylegan2", "G_main"))
    refused(wrote(tmp_path / "2.pkl", second), r"TensorFlow's StyleGAN2 \(G_main\); convert it with legacy.py")


def test_what_is_not_as_published_is_named(tmp_path: Path) -> None:
    refused(generators.nvidia(tmp_path / "a.pkl", 8, architecture="resnet"), "'resnet'; only 'skip' can be imported")
    path = generators.rosinality(tmp_path / "b.pt", 8)
    content = torch.load(path)
    content["g_ema"]["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    torch.save(content, path)
    refused(path, r"its filter \(1, 1, 1, 1, \.\.\.\) is not the published")
    del content["g_ema"]["conv1.conv.weight"]
    torch.save(content, path)
    refused(path, r"has no tensor conv1\.conv\.weight")


def test_a_training_checkpoint_of_rosinalitys_carries_its_options(tmp_path: Path) -> None:
    path = generators.rosinality(tmp_path / "a.pt", 8, args=argparse.Namespace(size=8), g=OrderedDict())
    found = read_generator(path)
    assert found.geometry.layers == 2 and found.geometry.noisy
    assert found.notes == ("no discriminator in the file, so the prior has no critic",)


def test_images_that_the_generator_does_not_draw() -> None:
    small = {"resolution": 256, "base": 16384}
    with pytest.raises(UserError, match=r"crop of 800 does not fit into the generator's 256 pixels.*crop=200 here"):
        StyleGan2Ada(crop=800, **small)
    with pytest.raises(UserError, match=r"draws 200 pixels of what the target sees in 224.*prior\.enlarge=true"):
        StyleGan2Ada(crop=200, **small).require_shape((3, 224, 224))
    StyleGan2Ada(crop=200, enlarge=True, **small).require_shape((3, 224, 224))
    with pytest.raises(UserError, match=r"squares of 3 channel.*28 x 28 with 1"):
        StyleGan2Ada(**small).require_shape((1, 28, 28))
    with pytest.raises(UserError, match="this generator has no classes; got 2"):
        StyleGan2Ada(label=2, **small)
    with pytest.raises(UserError, match="got a resolution of 48"):
        StyleGan2Ada(resolution=48)
