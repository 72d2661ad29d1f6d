"""Weight files: found where they are, refused where they are not the published ones, never executed."""

import dataclasses
import hashlib
import pickle
import urllib.request
from pathlib import Path

import pytest
import torch

from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance, weights
from mibench.runtime.errors import UserError


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MIBENCH_WEIGHTS", raising=False)
    return tmp_path / "torch"


def no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("touched the network")


@pytest.mark.parametrize(
    "load, name", [(inception.load, "fid"), (lpips_distance.load, "lpips"), (facenet_distance.load, "facenet")]
)
def test_missing_weights_are_a_value_that_says_where_to_get_them(
    load: object, name: str, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    missing = load()
    assert isinstance(missing, Unavailable) and missing.name == name
    assert "not on this machine" in missing.why
    assert "https://" in missing.how and str(torch_home / "hub" / "checkpoints") in missing.how
    assert not torch_home.exists()


def test_weights_are_found_in_the_users_folder_first_and_in_both_caches(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights.WeightFile(("a.pth", "b.pth"), "https://example.invalid/a.pth", "")
    for folder in (torch_home / "checkpoints", torch_home / "hub" / "checkpoints", tmp_path / "own"):
        folder.mkdir(parents=True)
        (folder / "b.pth").write_bytes(b"")
        if folder.name == "own":
            monkeypatch.setenv("MIBENCH_WEIGHTS", str(folder))
        assert weights.locate("x", file) == folder / "b.pth"
    monkeypatch.setenv("MIBENCH_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere', not a folder"):
        weights.locate("x", file)


def test_a_download_needs_permission_and_leaves_nothing_behind_when_it_fails(torch_home: Path, tmp_path: Path) -> None:
    (tmp_path / "source.pth").write_bytes(b"weights")
    good = weights.WeightFile(("good.pth",), (tmp_path / "source.pth").as_uri(), "")
    bad = weights.WeightFile(("bad.pth",), (tmp_path / "absent.pth").as_uri(), "")
    assert isinstance(weights.locate("x", good), Unavailable)
    failed = weights.locate("x", bad, allow_download=True)
    assert isinstance(failed, Unavailable) and "download of bad.pth failed" in failed.why
    path = weights.locate("x", good, allow_download=True)
    assert isinstance(path, Path) and path.read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == ["good.pth"]


class Hostile:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_damaged_foreign_and_hostile_weight_files_are_refused_and_never_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "executed"
    file = weights.WeightFile(("w.pth",), "https://example.invalid/w.pth", "")
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    assert torch.equal(weights.read(path, file)["a"], torch.zeros(1000))
    right = dataclasses.replace(file, sha256=hashlib.sha256(whole).hexdigest()[:8])
    assert list(weights.read(path, right)) == ["a"]
    flipped = bytes(255 - byte if 200 < i < 400 else byte for i, byte in enumerate(whole))
    for content in (b"", b"<html>404</html>", whole[:500], whole[:-300], flipped):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights"):
            weights.read(path, file)
        with pytest.raises(UserError, match="not the published file"):
            weights.read(path, right)
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(path, file)
    torch.save({"a": Hostile(mark)}, path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(path, file)
    assert not mark.exists()
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="holds a list"):
        weights.read(path, file)


def test_files_with_another_hash_are_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(published))
    with pytest.raises(UserError, match=r"not the published file.*not 6726825d"):
        inception.load()
    with pytest.raises(UserError, match=r"not the published file.*not 7be5be79"):
        lpips_distance.load()


def test_loading_draws_no_random_numbers_and_freezes(trusting: Path) -> None:
    before = torch.get_rng_state()
    for model in (inception.load(), lpips_distance.load(), facenet_distance.load()):
        assert isinstance(model, torch.nn.Module)
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(part.training for part in model.modules())
        assert all(p.device.type == "cpu" for p in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_network_are_named_not_loaded(trusting: Path, tmp_path: Path) -> None:
    path = trusting / "checkpoints" / facenet_distance.WEIGHTS.names[0]
    state = torch.load(path, weights_only=True)
    for change in ({"last_linear.weight": torch.zeros(3, 3)}, {"extra": torch.zeros(1)}):
        with torch.device("meta"):
            net = facenet_distance.FaceNet().net
        kept = {k: v for k, v in state.items() if "logits" not in k}
        with pytest.raises(UserError, match=next(iter(change))):
            weights.fill(net, {**kept, **change}, tmp_path / "w.pt")
    with torch.device("meta"):
        net = facenet_distance.FaceNet().net
    with pytest.raises(UserError, match=r"w.pt does not fit InceptionResnetV1: Missing"):
        weights.fill(net, {}, tmp_path / "w.pt")
