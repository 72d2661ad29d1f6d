"""Networks on disk: safetensors with a header that says what the file is; and data sets, loaded once a process.

Nothing is ever unpickled from a results folder except mibench's own checkpoints, with `weights_only=True`.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mibench import models
from mibench.core import Dataset, Defense, Prior, Split
from mibench.models.base import Classifier, unfilled
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, canonical, unchanged
from mibench.runtime import pixels
from mibench.runtime.errors import UserError
from mibench.runtime.files import checked, open_file, unreadable, write_atomic
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import seed_of
from mibench.stages import imported
from mibench.training import empty_memories

__all__ = [
    "classifier",
    "dataset",
    "fill_memories",
    "load_classifier",
    "load_memories",
    "load_prior",
    "load_target",
    "load_verifier",
    "nothing",
    "open_dataset",
    "read_header",
    "read_tensors",
    "write_log",
    "write_memories",
    "write_tensors",
]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """A safetensors file with a JSON header under the key `mibench`; the same content gives the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    write_atomic(path, lambda scratch: save_file(plain, scratch, metadata={"mibench": canonical(dict(header))}))


def write_log(path: Path, lines: Sequence[Mapping[str, int | float]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(dict(line)) + "\n" for line in lines)
    write_atomic(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def read_header(path: Path) -> dict[str, Any]:
    """What a safetensors file says it is, without its tensors; empty if it says nothing.

    Raises:
        UserError: If the file is missing or truncated.
    """
    try:
        with checked(path) as name, safe_open(name, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("mibench", "{}")))
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be read: the system's fault, or its own."""
    try:
        open_file(path).close()
    except FileNotFoundError:
        return UserError(f"{path} does not exist; delete its run and train again")
    except OSError as refused:
        return unreadable(path, refused)
    return UserError(f"{path} is not a whole safetensors file ({error}); delete its run and train again")


def read_tensors(path: Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and header of a file that must play `role`.

    Raises:
        UserError: If the file is missing, truncated, or something else (says what it is), or has changed since its run
            was finished.
    """
    content = _claimed(path, role)
    unchanged(path)
    return content


def _claimed(path: Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_tensors`, for files that can tell in which way they are wrong before `_fill` asks for their digest."""
    try:
        tensors, notes = pixels.read(path)
        header = dict(json.loads(notes.get("mibench", "{}")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it should hold a {role}") from None
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:  # RecursionError is a RuntimeError
        raise _broken(path, error) from None
    if header.get("role") != role:
        what = header.get("role", "not a mibench file")
        about = f" of {header.get('classes_count', '?')} classes of {header['dataset']}" if "dataset" in header else ""
        raise UserError(f"{path} should hold a {role}; it is: {what}{about}")
    return {name: as_used(tensor) for name, tensor in tensors.items()}, header


def as_used(tensor: Tensor) -> Tensor:
    """The zoo keeps float16, everything computes in float32."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def dataset_spec(data: Choice) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into a run's specification and into its inputs."""
    return data.spec(), {"name": data.name, "settings": asdict(data.plugin)}


_opened: dict[str, Dataset] = {}


def open_dataset(inputs: Mapping[str, Any], reporter: Reporter | None = None) -> Dataset:
    """The data set a run was asked for; the last few stay in memory."""
    key = canonical(dict(inputs))
    if key not in _opened:
        data = registry.configure("data", inputs["name"], settings=inputs["settings"]).plugin.load(reporter)
        _require_heldout(data)
        while len(_opened) >= 3:
            _opened.pop(next(iter(_opened)))
        _opened[key] = data
    return _opened[key]


def _require_heldout(data: Dataset) -> None:
    """Refuse a data set in which somebody has no image that no model has seen."""
    counts = torch.bincount(data.heldout.labels, minlength=len(data.classes)).tolist()
    without = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    if without:
        raise UserError(
            f"{len(without)} private identity(ies) of data set '{data.name}' have no held-out images, the first is "
            f"'{without[0]}'; natural accuracy and likeness are measured on them: hold at least one of each out"
        )


def dataset(run: Run) -> Dataset:
    """The data set of a target or evaluation model; refused if its images have changed since.

    Raises:
        UserError: If the data are not what the model was trained on.
    """
    data = open_dataset(run.inputs["dataset"])
    trained_on = run.read("metrics.json")["dataset_fingerprint"]
    if data.fingerprint() != trained_on:
        raise UserError(
            f"the images of '{data.name}' are not those that {run.label} was trained on; train again, or restore them"
        )
    return data


def defenses(run: Run) -> list[Defense]:
    """The target's defenses, in order."""
    return [
        registry.configure("defenses", item["name"], settings=item["settings"]).plugin
        for item in run.spec.get("defenses", [])
    ]


def classifier(run: Run, classes: int, image_shape: tuple[int, int, int], to_fill: bool = False) -> Classifier:
    """The untrained network a run asks for, initialised from its seed, after the defenses' surgery.

    Args:
        run: A target or an evaluation model.
        classes: That it tells apart.
        image_shape: (channels, height, width).
        to_fill: It will get all of its weights from a file: none are drawn, and ImageNet's are not read.
    """
    name = run.spec["model"]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(run.spec["seed"], "init"))
        plugin = name in models.own() and not registry.is_own("models", models.family(name))
        imagenet = run.spec["pretrained"] is True and (plugin or not to_fill)
        with unfilled() if to_fill else nullcontext():
            model = models.build(name, classes, image_shape, pretrained=imagenet)
        if "backbone" in run.parents and not to_fill:
            _start_from(model, run)
        for defense in defenses(run):
            model = defense.surgery(model)  # type: ignore[assignment]  # a classifier again
    return model


def _start_from(model: Classifier, run: Run) -> None:
    """Give a new network the trunk that public images have trained; its head is its own."""
    path = run.backbone.path / "model.safetensors"
    tensors, _ = _claimed(path, "backbone")
    trunk = {name.removeprefix("trunk."): value for name, value in tensors.items() if name.startswith("trunk.")}
    _fill(model.trunk, trunk, path, run.spec["model"])


def write_memories(path: Path, memories: list[nn.Module]) -> None:
    """What the defenses keep besides the network; no file if that is nothing."""
    kept = {
        f"{place}.{name}": value.clone()
        for place, memory in enumerate(memories)
        for name, value in memory.state_dict().items()
    }
    if kept:
        write_tensors(path, kept, {"role": "memories"})


def load_memories(run: Run, classes: int, image_shape: tuple[int, int, int]) -> list[nn.Module]:
    """The memories of a target's defenses as they were when its training ended."""
    memories = empty_memories(defenses(run), classes, image_shape, run.spec["seed"])
    fill_memories(run.path / "memories.safetensors", memories)
    return [memory.requires_grad_(False).eval() for memory in memories]


def fill_memories(path: Path, memories: list[nn.Module]) -> None:
    """Memories as `write_memories` left them, in place; where all are empty there is no file."""
    if not any(memory.state_dict() for memory in memories):
        return
    tensors, _ = _claimed(path, "memories")
    for place, memory in enumerate(memories):
        own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{place}.")}
        _fill(memory, own, path, f"of defense {place + 1}")


def load_classifier(run: Run, data: Dataset) -> Classifier:
    """The trained, deployed network of a run, frozen and in eval mode, checked against the data's class names.

    Raises:
        UserError: If the checkpoint is truncated, plays another role or knows other classes.
    """
    role = {"targets": "target model", "evaluators": "evaluation model"}[run.kind]
    path = run.path / "model.safetensors"
    tensors, header = _claimed(path, role)
    if header.get("classes") != list(data.classes):
        raise UserError(
            f"{path} is a {role} of {header.get('classes_count')} classes of {header.get('dataset')} whose names or "
            f"order are not those of '{data.name}'; scores against it would compare different people"
        )
    if imported.is_imported(run):
        unchanged(path)
        return imported.network(run, data)
    extra = data.distractor_count if run.kind == "evaluators" else 0
    return _served(run, tensors, len(data.classes), extra, data.image_shape)


def load_target(run: Run) -> Classifier:
    """As `load_classifier` of a target, without its data set: class names are not compared.

    Raises:
        UserError: If the checkpoint is truncated or plays another role.
    """
    asked = run.inputs["dataset"]
    shape = registry.configure("data", asked["name"], settings=asked["settings"]).shape
    tensors, header = _claimed(run.path / "model.safetensors", "target model")
    return _served(run, tensors, header["classes_count"], 0, shape.image_shape)


def _served(
    run: Run, tensors: Mapping[str, Tensor], classes: int, extra: int, image_shape: tuple[int, int, int]
) -> Classifier:
    """The network of a run with these weights, as it is deployed."""
    model = classifier(run, classes + extra, image_shape, to_fill=True)
    _fill(model, tensors, run.path / "model.safetensors", run.spec["model"])
    memories = load_memories(run, classes, image_shape)
    for defense, memory in zip(defenses(run), memories, strict=True):
        model = defense.deploy(model, memory)  # type: ignore[assignment]  # a classifier again
    return model.requires_grad_(False).eval()


def load_verifier(run: Run) -> Classifier:
    """The trained network of a verifier, frozen and in eval mode.

    Raises:
        UserError: If the file is truncated, plays another role or does not fit.
    """
    path = run.path / "model.safetensors"
    tensors, header = _claimed(path, "verifier")
    shape = tuple(int(size) for size in header["image_shape"])
    with unfilled():
        model = models.build(run.spec["model"], int(header["people"]), shape)  # type: ignore[arg-type]
    _fill(model, tensors, path, run.spec["model"])
    return model.requires_grad_(False).eval()


def nothing(image_shape: tuple[int, int, int]) -> Split:
    """No images of a shape: what a prior is built with that looks at none."""
    return Split(torch.zeros(0, *image_shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))


def load_prior(run: Run, data: Dataset) -> Prior:
    """The trained prior of a run, frozen and in eval mode."""
    path = run.path / "prior.safetensors"
    tensors, header = _claimed(path, "prior")
    name = run.spec["prior"]["name"]
    if header.get("prior") != name:
        raise UserError(f"{path} should hold the prior {name}; it is: {header.get('prior')}")
    recipe = registry.configure("priors", name, settings=run.spec["prior"]["settings"]).plugin
    prior: Prior = recipe.build(data.image_shape, len(data.classes), data.public)
    _fill(prior, tensors, path, name)
    return prior.requires_grad_(False).eval()


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load weights that must fit exactly and be those that the run was finished with."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{path} does not fit the network {name}: {first}; delete its run and train again") from None
    unchanged(path)
