"""Laws of streaming: where pixels lie changes how much memory a run takes, and nothing that it writes."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from shell import ENVIRONMENT, JUDGES, command, results, sets
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import SmallNet, World, colours, quick, workspace

from mibench import models
from mibench.attacks.parts.surrogates import Distillation, distil
from mibench.core import Split, TrainingContext
from mibench.data import cache
from mibench.metrics.facenet_distance import facenet_distance
from mibench.metrics.lpips_distance import lpips_distance
from mibench.priors.gan import Loop
from mibench.priors.public import PublicImages
from mibench.priors.unet import Eigenspace
from mibench.runtime import pixels
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.stages import artifacts
from mibench.training import Training, fit, predict

CPU = Engine(torch.device("cpu"), "fp32")
BAD = ["", "-1", "nan", "inf", "1e3", "much", " 4", "4 GB", "٣", "1.", "0x2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MIBENCH_MEMORY", raising=False)
    artifacts._opened.clear()


def pictures(root: Path, people: dict[str, int], size: int = 20) -> list[str]:
    """A tree of noise, `side/person` to how many pictures, and the options to use it."""
    rng = np.random.default_rng(0)
    for person, count in people.items():
        (root / person).mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / person / f"{number:04}.png")
    return ["--dataset", "folder", *sets(data__path=root)]


def in_file(x: Tensor) -> bool:
    """Whether a tensor lies in a mapped file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        first, last = (int(end, 16) for end in words[0].split("-"))
        if first <= x.data_ptr() < last:
            return len(words) > 5 and words[5].startswith("/")
    raise AssertionError("a tensor lies nowhere")


# --- the same results


def test_runs_and_results_are_the_same_with_no_pixel_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = {f"{side}/{side}{person}": 4 for side in ("private", "public") for person in range(3)}
    words = [*pictures(tmp_path / "pics", people), *sets(data__image_size=32), *JUDGES]
    found = []
    for memory in (None, "0"):
        artifacts._opened.clear()
        where = tmp_path / f"with-{memory}"
        where.mkdir()
        monkeypatch.chdir(where)
        if memory:
            monkeypatch.setenv("MIBENCH_MEMORY", memory)
        with patch.object(np, "memmap", wraps=np.memmap) as files:
            assert command("train", *words, *sets(training__epochs=1)).code == 0
            told = command("attack", "--method", "prior_sample", "--prior", "public", *words)
            assert told.code == 0, told.err
        assert bool(files.call_count) == (memory == "0")
        found.append(results(where / "results"))
    assert found[0] == found[1]  # names of folders too, and so the run ids
    assert {Path(name).parts[0] for name in found[0]} == {"targets", "evaluators", "priors", "inversions", "scores"}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_rows_and_joins_are_copies_wherever_they_lie(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    shape = data.draw(st.sampled_from([(3, 2, 2), (1, 5, 7)]))
    parts = [torch.randint(0, 256, (count, *shape), dtype=torch.uint8) for count in counts]
    rows = torch.tensor(data.draw(st.lists(st.integers(0, max(0, sum(counts) - 1)), max_size=12)), dtype=torch.int64)
    with patch.dict(os.environ, MIBENCH_MEMORY=data.draw(st.sampled_from(["0", "0.00000005", "1"]))):
        whole = pixels.concatenate(parts)
        assert torch.equal(whole, torch.cat(parts))
        if len(whole):
            part = pixels.take_rows(whole, rows)
            assert torch.equal(part, whole[rows])
            part.fill_(7)
            assert torch.equal(whole, torch.cat(parts))


def test_hashes_and_fingerprint_are_those_of_the_whole_at_once() -> None:
    for count in (0, 1, 63, 64, 65, 130):
        images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
        for stored in (images, images.contiguous(memory_format=torch.channels_last), images.transpose(2, 3)):
            split = Split(stored, torch.arange(count))
            plain = stored.contiguous().numpy()
            whole = repr(tuple(stored.shape)).encode() + plain.tobytes() + split.labels.numpy().tobytes()
            assert split.fingerprint() == hashlib.sha256(whole).hexdigest()
            assert split.hashes() == [hashlib.sha256(image.tobytes()).hexdigest() for image in plain]


def test_eigenfaces_need_only_the_images_that_are_shown() -> None:
    x = torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
    shown = torch.tensor([[3, 9, 4], [9, 20, 3]])
    places, among = shown.unique(return_inverse=True)
    every, few = Eigenspace(12, 2, 2), Eigenspace(12, 2, 2)
    every.fit(x, shown)
    few.fit(x[places], among)
    for name, value in every.state_dict().items():
        assert torch.equal(value, few.state_dict()[name]), name


def test_mi_face_starts_from_the_mean_of_all_public_images() -> None:
    world = World(3)
    work = workspace(world, batch=7)
    found = quick("mi_face", start="mean", steps=0, images=1, jitter=0.0)(
        world.oracle(), world.prior_for("mi_face"), torch.arange(1), 0, work
    )
    assert work.public is not None
    public = work.public.images
    assert torch.equal(found.latents[0], (public.sum(dim=0) / (255.0 * len(public))).flatten())


# --- the limit


def test_live_pixels_never_exceed_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixels.memory_limit() - pixels.memory_left()  # of other tests
    monkeypatch.setenv("MIBENCH_MEMORY", f"{(before + 100) / 1e9:.9f}")
    first, second = pixels.empty((60,)), pixels.empty((60,))
    assert not in_file(first) and in_file(second)
    view = first[:1]
    del first
    assert pixels.memory_left() == 40  # a view still holds all of it
    del view
    assert pixels.memory_left() == 100 and not in_file(pixels.empty((100,)))


@pytest.mark.parametrize("value", BAD)
def test_a_limit_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIBENCH_MEMORY", value)
    with pytest.raises(UserError, match="MIBENCH_MEMORY must be a number of GB"):
        pixels.memory_limit()


def test_it_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIBENCH_MEMORY", "much")
    for words in (["train"], ["attack", "--method", "gmi"]):
        assert "number of GB such as 0.5 or 16 (0 holds no pixels in memory), got 'much'" in command(*words).error
    assert list(tmp_path.iterdir()) == []


def test_a_container_has_what_it_is_given(tmp_path: Path) -> None:
    whole = pixels.machine_memory()
    for text, expected in (("4000000\n", 4_000_000), ("max\n", whole), (str(10**18), whole)):
        (tmp_path / "given").write_text(text)
        with patch.object(pixels, "_CGROUP", (str(tmp_path / "given"), str(tmp_path / "absent"))):
            assert pixels.machine_memory() == min(expected, whole)


CHILD = """
import resource, sys, threading
from pathlib import Path
import torch
from mibench.data.folder import Folder
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Silent
from mibench.stages.train_target import with_distractors
from mibench.training import Training, fit, predict
from worlds import SmallNet

class Pooled(SmallNet):
    def features(self, x):
        return super().features(torch.nn.functional.avg_pool2d(x, 8))

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

threading.stack_size(1 << 20)
allowance = int(sys.argv[2])
engine, recipe = Engine(torch.device("cpu"), "fp32"), Training(epochs=1, batch=4)
warm = Pooled(2)
warm(torch.rand(4, 3, 256, 256)).sum().backward()
torch.optim.AdamW(warm.parameters()).step()
base = kilobytes("VmData") * 1024
resource.setrlimit(resource.RLIMIT_DATA, (base + allowance, base + allowance))
data = Folder(path=sys.argv[1], image_size=256).load()
print(data.fingerprint())
split = with_distractors(data)
model = Pooled(3)
fit(model, split, 3, recipe, engine, 0, Silent(), "small")
logits, _ = predict(model, data.public.images, engine, batch=128)  # eight at once, as they are so large
print(len(logits), sum(one.images.nbytes for one in (data.train, data.heldout, data.public, data.distractors)))
"""


def test_three_times_the_memory_there_is(tmp_path: Path) -> None:
    """And the same without streaming fails, so that the limit is one."""
    allowance = 40 << 20
    people = {"private/a": 4, "private/b": 4, "public/c": 40, "public/d": 600}
    pictures(tmp_path / "pics", people, 8)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    found = {}
    for memory in ("0.01", "1000"):
        found[memory] = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "pics"), str(allowance)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "MIBENCH_MEMORY": memory,
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
                "MALLOC_MMAP_THRESHOLD_": "100000",  # what is freed goes back at once
                "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[1])]),
            },
        )
    assert found["0.01"].returncode == 0, found["0.01"].stderr
    count, size = (int(word) for word in found["0.01"].stdout.splitlines()[-1].split())
    assert count == 600 and size > 3 * allowance
    assert found["1000"].returncode == 1
    assert "MemoryError" in found["1000"].stderr or "memory" in found["1000"].stderr
    assert list((tmp_path / "cache" / "mibench").glob("tmp*")) == []


# --- files


def test_files_have_no_name_and_leave_nothing_behind(tmp_path: Path) -> None:
    code = "from mibench.runtime.pixels import empty\nx = empty((1 << 22,))\n"
    code += "x.fill_(7)\nprint('filled', flush=True)\ninput()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "MIBENCH_MEMORY": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "filled\n"
    assert "deleted" in Path(f"/proc/{child.pid}/maps").read_text()
    assert list((tmp_path / "cache" / "mibench").iterdir()) == []
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache" / "mibench").iterdir()) == []


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, errno.EEXIST])
def test_a_folder_that_cannot_take_them_is_told_in_one_line(fault: int, tmp_path: Path) -> None:
    people = {f"{side}/{side}{person}": 2 for side in ("private", "public") for person in range(2)}
    words = [*pictures(tmp_path / "pics", people), *sets(data__image_size=32)]
    cache_home = tmp_path / "cache"
    if fault == errno.EEXIST:
        cache_home.mkdir()
        (cache_home / "mibench").write_text("in the way")
    with (
        patch.dict(ENVIRONMENT, XDG_CACHE_HOME=str(cache_home), MIBENCH_MEMORY="0"),
        patch.object(os, "posix_fallocate", side_effect=OSError(fault, os.strerror(fault))),
    ):
        told = command("train", *words).error
    for word in (str(cache_home / "mibench"), "XDG_CACHE_HOME", "MIBENCH_MEMORY", os.strerror(fault)):
        assert word in told
    assert not list(tmp_path.glob("results/*/[!.]*")) and not list(cache_home.rglob("*.*"))


def test_the_cache_is_its_own_memory_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        made.append(1)
        x = torch.arange(240, dtype=torch.uint8)
        return {"a": x.reshape(10, 24), "empty": x[:0].clone(), "b": x[:7].clone()}, {"note": "kept"}

    monkeypatch.setattr(cache, "_SLOW_S", -1.0)
    expected, notes = cache.cached("key", make)
    for memory in ("1", "0"):
        monkeypatch.setenv("MIBENCH_MEMORY", memory)
        found, told = cache.cached("key", make)
        assert told == notes and found.keys() == expected.keys() and len(made) == 1
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert in_file(found["a"])
    file = cache.cache_folder() / "key.safetensors"
    whole = file.read_bytes()
    for count, damaged in enumerate((whole[:-1], whole[:50], b"", whole.replace(b'"U8"', b'"I9"')), start=2):
        file.write_bytes(damaged)
        assert torch.equal(cache.cached("key", make)[0]["a"], expected["a"]) and len(made) == count
    save_file({"a": torch.ones(3)}, file)  # no pixels: read as before
    assert torch.equal(cache.cached("key", make)[0]["a"], torch.ones(3))


# --- the public images as a prior


def test_a_loaded_prior_leaves_the_data_set_alone() -> None:
    """It once wrote the images it was trained on over those of the data set it is used with."""
    data, other = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.ones(4, 1, 8, 8, dtype=torch.uint8)
    prior = PublicImages(data)
    prior.load_state_dict({"public": other})
    assert int(data.sum()) == 0
    assert torch.equal(prior.decode(torch.zeros(1, 1)), torch.full((1, 1, 8, 8), 1 / 255))
    with pytest.raises(RuntimeError, match="size mismatch"):
        prior.load_state_dict({"public": other[:3]})


def test_placing_it_copies_no_image() -> None:
    data = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    prior = PublicImages(data)
    CPU.place(prior)
    assert prior.state_dict()["public"].data_ptr() == data.data_ptr() and prior.state_dict()["public"].is_contiguous()


# --- metrics take stored images


def embed(x: Tensor) -> Tensor:
    return x.float().flatten(1)[:, :5] / 255


@pytest.mark.parametrize("distance", [lpips_distance, facenet_distance])
def test_metrics_take_stored_images_and_refuse_mixed_sizes(distance: Any) -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = distance(embed, images[:4], labels[:4], images[1:], labels[1:], batch=2)
    assert found[1:].tolist() == [0.0] * 3
    assert float(found[0]) == pytest.approx(float((embed(images)[0] - embed(images)[1]).square().sum()))
    with pytest.raises(UserError, match=r"are \(3, 8, 8\), references \(3, 8, 7\); resize the references"):
        distance(embed, images, labels, images[..., :7], labels)


# --- an accelerator without room


class Rules(TorchDispatchMode):
    """What FakeTensorMode lets pass and a GPU does not: rows of a tensor on the CPU named by a tensor on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            assert all(i is None or i.device.type in ("cpu", args[0].device.type) for i in args[1]), "mixed devices"
        return func(*args, **(kwargs or {}))


GPU = Engine(torch.device("cuda:0"), "fp32")


@pytest.fixture(params=["room", "none"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device that checks where tensors lie and computes nothing, with room for the pixels or without."""
    free = {"room": 10**9, "none": 2 * 36 * 3 * 16 * 16}[request.param]
    with (
        patch.object(torch.cuda, "mem_get_info", return_value=(free, 10**10)),
        patch.object(Tensor, "backward", lambda loss: None),  # autograd looks for the device itself
        FakeTensorMode(),
        Rules(),
    ):
        yield request.param


def stored(count: int = 36, size: int = 16) -> Split:
    return Split(torch.zeros(count, 3, size, size, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


def test_pixels_stay_on_the_host_where_they_would_take_half_of_the_free_memory(gpu: str) -> None:
    on = stored().on(GPU)
    assert on.images.device.type == ("cuda" if gpu == "room" else "cpu") and on.labels.device.type == "cuda"
    assert stored(35).on(GPU).images.device.type == "cuda"
    rows = torch.zeros(4, dtype=torch.int64, device="cuda:0")
    assert on.at(rows).device.type == "cuda"
    assert {part.device.type for part in on.parts(5, GPU.device)} == {"cuda"}
    assert on.take(rows).images.device == on.images.device


def test_the_training_loop_sends_batches(gpu: str) -> None:
    sent, split = [], stored()

    def images(engine: Engine, x: Tensor) -> Tensor:
        sent.append(x.device.type)
        return x.to(engine.device) / 255.0

    with (
        patch.object(Engine, "images", images),
        patch.object(Engine, "place", lambda engine, module: module),  # fake tensors cannot be moved in place
        pytest.raises(DataDependentOutputException),  # after the epoch's steps: is the loss finite?
        GPU.device,
    ):
        fit(SmallNet(3), split, 3, Training(epochs=1, batch=12), GPU, 0, Silent(), "small")
    assert sent == ["cuda" if gpu == "room" else "cpu"] * 3


def test_priors_and_attackers_send_what_they_look_at(gpu: str) -> None:
    device = GPU.device
    loop = Loop(TrainingContext(GPU, 0, Silent(), "prior"), stored(), 5, True, {})
    assert loop.real("real").device.type == "cuda"
    assert loop.ask(lambda x, y: x.mean(dim=(2, 3))).device.type == "cuda"
    prior = PublicImages(stored().images)
    GPU.place(prior)
    z = prior.sample(Noise(0, torch.arange(4, device=device)))
    assert prior.decode(z).device.type == "cuda"
    with device:
        student = models.build("cnn", 3, (3, 16, 16))
    answers = torch.zeros(36, 3, device=device)
    with (
        patch.object(nn.Module, "to", lambda module, *given, **more: module),
        patch.object(torch.random, "fork_rng", lambda **given: nullcontext()),
        pytest.raises(DataDependentOutputException),
    ):
        distil(student, stored().on(GPU).images, answers, Distillation(epochs=1), 0)


def test_predictions_are_those_of_images_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    split = colours()
    model = SmallNet(3)
    plain = predict(model, split.images, CPU, batch=5)
    monkeypatch.setenv("MIBENCH_MEMORY", "0")
    mapped = split.take(torch.arange(len(split)))
    assert in_file(mapped.images)
    found = predict(model, mapped.images, CPU, batch=5)
    assert torch.equal(found[0], plain[0]) and torch.equal(found[1], plain[1])
