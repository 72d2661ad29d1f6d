"""A source, opened: a module that answers tensors as the model itself wants them, and what it declares of itself."""

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mibench.models.imported import weights
from mibench.models.imported.declared import NOTHING, Declared, first, from_shape, told
from mibench.models.imported.onnx_session import open_onnx
from mibench.models.imported.server import Asked
from mibench.models.imported.sources import ModelSource, digest_of
from mibench.runtime.errors import UserError

__all__ = ["Opened", "Plain", "Program", "Resizable", "code_digest", "code_of", "family_of", "open_source"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that answers.

    Args:
        module: Tensors as it wants them to its output, a single (n, k) tensor; in eval mode.
        family: Of its architecture, `unknown` where that cannot be told.
        declared: What it says of itself.
        differentiable: Whether gradients may flow through it.
        notes: What the user should know, a sentence each.
    """

    module: nn.Module
    family: str
    declared: Declared = NOTHING
    differentiable: bool = True
    notes: tuple[str, ...] = ()


class Program(nn.Module):
    """A program that takes one number of images, whatever number is asked: in parts, the last one filled up.

    Args:
        inner: The program.
        batch: What it takes; None for any number.
    """

    def __init__(self, inner: nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None:
            return first(self.inner(x))
        parts = []
        for part in x.split(self.batch):
            short = self.batch - len(part)
            whole = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            parts.append(first(self.inner(whole))[: len(part)])
        return torch.cat(parts)


class Plain(nn.Module):
    """A network whose output may be a tuple, a mapping or an object with `.logits`: the scores alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return first(self.inner(x))


def open_source(source: ModelSource) -> Opened:
    """Make a model answer; its own code runs where it has some.

    Raises:
        UserError: It cannot be opened, does not fit its weights, or is too large for this machine.
    """
    opened = _OPENING[source.kind](source)
    trained = getattr(opened.module, "training", False)
    opened.module.eval()
    for parameter in opened.module.parameters():
        parameter.requires_grad_(False)
    said = ("the model came in train mode; it is asked in eval mode",) if trained and source.kind == "object" else ()
    return Opened(opened.module, opened.family, opened.declared, opened.differentiable, (*opened.notes, *said))


# --- weights and an architecture --------------------------------------------------------------------------------------


def _weights(source: ModelSource) -> Opened:
    assert source.file is not None
    state = weights.read_state(source.file)
    tensors = weights.bare(state.tensors)
    if source.model.startswith("timm:"):
        net, declared = _timm(source.model.removeprefix("timm:"), tensors, source)
    elif {"trunk", "head"} <= {name.split(".")[0] for name in tensors}:
        return _ours(source, tensors, state.classes)
    else:
        net, declared = _torchvision(source, tensors)
    _fill(net, tensors, source)
    known = Declared(**{**vars(declared), "classes": state.classes})
    return Opened(Plain(net), family_of(type(one) for one in net.modules()), known)


def _torchvision(source: ModelSource, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, Declared]:
    """torchvision's network with as many outputs as the weights have."""
    from torchvision import models as torchvision_models

    from mibench import models

    name = source.model
    if models.family(name) == name and name not in torchvision_models.list_models(module=torchvision_models):
        raise UserError(
            f"{source.file} has no weights of mibench's own {name} (names that begin with trunk. and head.); its "
            f"first is '{next(iter(tensors), 'none')}': name the network it belongs to with --model"
        )
    options = {"aux_logits": any(key.startswith("AuxLogits") or key.startswith("aux1") for key in tensors)}
    auxiliary = name in ("googlenet", "inception_v3")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inception and googlenet talk about initialisation
        net: nn.Module = torchvision_models.get_model(name, **({**options, "init_weights": False} if auxiliary else {}))
    if name == "googlenet" or name == "inception_v3":
        net.transform_input = False  # type: ignore[assignment]
    path = _last_linear(net)
    net.set_submodule(path, _head(path, net.get_submodule(path), tensors, source))
    _match_stem(net, tensors)
    published = torchvision_models.get_model_weights(name).DEFAULT.transforms()
    size = int(published.crop_size[0])
    means = {"ImageNet's, as torchvision's": (tuple(published.mean), tuple(published.std))}
    return net.to_empty(device="cpu"), Declared(_channels(net), size, means=means)


def _timm(name: str, tensors: Mapping[str, Tensor], source: ModelSource) -> tuple[nn.Module, Declared]:
    timm = _timm_module()
    if name.partition(".")[0] not in timm.list_models():
        from mibench.runtime.errors import unknown

        raise unknown("architecture of timm", name, timm.list_models())
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = timm.create_model(name, pretrained=False)
    config = net.pretrained_cfg
    path = config.get("classifier") or _last_linear(net)  # type: ignore[operator, union-attr]
    path = path if isinstance(path, str) else path[0]
    net.set_submodule(path, _head(path, net.get_submodule(path), tensors, source))
    _match_stem(net, tensors)
    shape = config.get("input_size", (3, 224, 224))  # type: ignore[operator, union-attr]
    means = {f"timm's for {name}": (tuple(config["mean"]), tuple(config["std"]))}  # type: ignore[index]
    fresh = timm.create_model(name, pretrained=False)  # buffers that are not in a state dict cannot come from meta
    fresh.set_submodule(path, net.get_submodule(path).to_empty(device="cpu"))
    _match_stem(fresh, tensors)
    return fresh, Declared(_channels(fresh), int(shape[-1]), means=means)


def _timm_module() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("timm: networks come from timm, which is not installed: pip install 'mibench[timm]'") from None
    return timm


def _ours(source: ModelSource, tensors: Mapping[str, Tensor], classes: tuple[str, ...]) -> Opened:
    """A network of mibench's own, saved by mibench or by `state_dict`: it resizes and normalises by itself, so that it
    is built anew for whatever size is asked."""
    from mibench import models

    outputs = [value.shape[0] for name, value in tensors.items() if name.startswith("head.") and value.ndim == 2]
    if not outputs:
        raise UserError(f"{source.file} has no last layer (head.weight), so that its classes cannot be counted")
    stems = [value.shape[1] for name, value in tensors.items() if name.startswith("trunk.") and value.ndim == 4]
    channels = stems[0] if stems and stems[0] in (1, 3) else 3
    net = Resizable(source.model, outputs[-1], channels, tensors, str(source.file))
    declared = Declared(channels, None, classes=classes, means={"its own": ((0.0,) * channels, (1.0,) * channels)})
    return Opened(net, models.family(source.model), declared)


class Resizable(nn.Module):
    """A network of mibench's, whose image size is part of how it is built; the weights fit all sizes or say not."""

    def __init__(self, name: str, classes: int, channels: int, tensors: Mapping[str, Tensor], file: str) -> None:
        super().__init__()
        self.name, self.classes, self.channels, self.file = name, classes, channels, file
        self.tensors = dict(tensors)
        self.built = nn.ModuleDict()

    def at(self, size: int) -> nn.Module:
        """The network for images of this side."""
        from mibench import models

        if str(size) not in self.built:
            with torch.random.fork_rng():
                net = models.build(self.name, self.classes, (self.channels, size, size))
            own = net.state_dict()
            lacking = [
                key for key, value in own.items() if key not in self.tensors or self.tensors[key].shape != value.shape
            ]
            if lacking or set(self.tensors) - set(own):
                odd = (lacking or sorted(set(self.tensors) - set(own)))[0]
                raise UserError(
                    f"{self.file} does not fit {self.name} at {size} px: {odd}; name its network with --model"
                )
            net.load_state_dict(self.tensors)
            self.built[str(size)] = net.eval().requires_grad_(False)
        return self.built[str(size)]

    def halves(self, example: Tensor) -> tuple[nn.Module, nn.Module]:
        """The network before its last layer, and that layer."""
        net = self.at(example.shape[-1])
        return nn.Sequential(net.prepare, net.trunk), net.head  # type: ignore[arg-type, return-value]

    def forward(self, x: Tensor) -> Tensor:
        return first(self.at(x.shape[-1])(x))


def _last_linear(net: nn.Module) -> str:
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(net).__name__} ends in no linear layer, so that its classes cannot be read off the weights; give "
            "it as code with --model package.module:function"
        )
    return linear[-1]


def _head(path: str, usual: nn.Module, tensors: Mapping[str, Tensor], source: ModelSource) -> nn.Module:
    """The last layer as the weights have it: the usual one with as many outputs, or one behind layers without weights.

    Raises:
        UserError: There is none, or several layers between which nobody knows what stands.
    """
    own = {name.removeprefix(path).lstrip("."): value for name, value in tensors.items() if name.startswith(f"{path}.")}
    matrices = {name.removesuffix("weight").rstrip("."): value for name, value in own.items() if value.ndim == 2}
    if not matrices:
        raise UserError(
            f"{source.file} has no last layer '{path}' of {source.model}; its names go on like "
            f"'{next(reversed(tensors), 'nothing')}': name the network it belongs to with --model"  # type: ignore[arg-type]
        )
    inside = getattr(usual, "in_features", None)
    if len(matrices) > 1 or len(own) > 2:
        raise UserError(
            f"{source.file} has a head of {len(own)} tensors under '{path}', and what stands between its layers is not "
            "in the file; give your code with --model package.module:function --weights FILE"
        )
    name, matrix = next(iter(matrices.items()))
    if inside is not None and matrix.shape[1] != inside:
        raise UserError(
            f"{source.file} does not fit {source.model}: the last layer '{path}' takes {matrix.shape[1]} features "
            f"there and {inside} in the network; name the network it belongs to with --model"
        )
    biased = any(key.endswith("bias") for key in own)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biased, device="meta")
    return _nested(name, layer) if name else layer


def _nested(path: str, layer: nn.Module) -> nn.Module:
    """`1` -> Sequential whose second module is the layer: dropout and such before it change nothing in eval mode."""
    outer, _, rest = path.partition(".")
    inner = _nested(rest, layer) if rest else layer
    whole = nn.Sequential()
    whole.add_module(outer, inner)
    return whole


def _match_stem(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the first convolution as many input channels as the weights have, as who trains on grey images does."""
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            given = tensors.get(f"{path}.weight")
            if (
                given is not None
                and given.ndim == 4
                and given.shape[1] in (1, 3)
                and given.shape != module.weight.shape
            ):
                kernel = tuple(given.shape[2:])
                same = kernel == tuple(module.kernel_size)
                stem = nn.Conv2d(
                    given.shape[1],
                    given.shape[0],
                    kernel,  # type: ignore[arg-type]
                    stride=module.stride if same else 1,  # type: ignore[arg-type]
                    padding=module.padding if same else kernel[0] // 2,  # type: ignore[arg-type]
                    bias=module.bias is not None,
                    device=module.weight.device,
                )
                net.set_submodule(path, stem)
            return


def _channels(net: nn.Module) -> int | None:
    """What the first convolution takes."""
    stem = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return stem.in_channels if stem is not None and stem.in_channels in (1, 3) else None


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], source: ModelSource) -> None:
    """Weights that must fit exactly; counters of batch norms may be absent.

    Raises:
        UserError: The first name or shape that does not fit.
    """
    try:
        said = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{source.file} does not fit {source.model}: {reason}; name its network with --model") from None
    missing = [name for name in said.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or said.unexpected_keys:
        lacks = f"the file lacks {len(missing)} of its tensors, the first is '{missing[0]}'" if missing else ""
        more = said.unexpected_keys
        has = f"the file has {len(more)} more, the first is '{more[0]}'" if more else ""
        told = "; ".join(part for part in (lacks, has) if part)
        raise UserError(
            f"{source.file} does not fit {source.model}: {told}; name the network it belongs to with --model"
        )


# --- code -------------------------------------------------------------------------------------------------------------


def code_of(reference: str, where: str = "") -> tuple[Callable[..., Any], Path]:
    """A function or class named as `package.module:name` or `file.py:name`, and the file that defines it.

    Args:
        reference: What the user gave.
        where: The folder that imports start from, beside what Python knows already.

    Raises:
        UserError: There is no such module or name, or its import fails.
    """
    module_name, _, name = reference.rpartition(":")
    if not module_name or not name.isidentifier():
        raise UserError(f"--model {reference} should be package.module:function or file.py:function")
    with _importing_from(where):
        try:
            if module_name.endswith(".py"):
                path = (Path(where) / module_name).resolve() if where else Path(module_name).resolve()
                spec = importlib.util.spec_from_file_location(path.stem, path)
                if spec is None or spec.loader is None or not path.is_file():
                    raise UserError(f"--model {reference}: there is no file {path}")
                module = importlib.util.module_from_spec(spec)
                sys.modules.setdefault(path.stem, module)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(module_name)
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise UserError(
                f"--model {reference}: importing {module_name} failed: {type(error).__name__}: {error}; it is imported "
                f"from {where or Path.cwd()} and from what this Python has installed"
            ) from None
    known = getattr(module, name, None)
    if not callable(known):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"--model {reference}: {module_name} has no function {name}; it has {', '.join(offered[:8])}")
    file = inspect.getsourcefile(known) or getattr(module, "__file__", None)
    return known, Path(file) if file else Path(module_name)


@contextmanager
def _importing_from(where: str) -> Iterator[None]:
    """The user's folder first in the search for modules, as when Python runs a script that lies there."""
    sys.path.insert(0, where or str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)


def _code(source: ModelSource) -> Opened:
    build, file = code_of(source.model, source.objects.get("where", ""))
    try:
        net = build()
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"--model {source.model}: it raised {type(error).__name__}: {error}; it takes no argument"
        ) from None
    if not isinstance(net, nn.Module):
        raise UserError(f"--model {source.model} returns {type(net).__name__}; it should return a torch.nn.Module")
    notes = [f"runs your code: {source.model} ({file.name})"]
    classes: tuple[str, ...] = ()
    if source.file is not None:
        state = weights.read_state(source.file)
        names = set(net.state_dict())
        tensors = state.tensors if names & set(state.tensors) else weights.bare(state.tensors)
        _fill(net, tensors, source)
        classes = state.classes
    if net.training:
        notes.append("the code returns a network in train mode; it is asked in eval mode")
    declared = Declared(_channels(net), classes=classes)
    return Opened(Plain(net), family_of(type(one) for one in net.modules()), declared, notes=tuple(notes))


def code_digest(reference: str, where: str = "") -> str:
    """sha256 of the file that defines a user's function."""
    _, file = code_of(reference, where)
    return digest_of(file) if file.is_file() else ""


# --- programs ---------------------------------------------------------------------------------------------------------


def _exported(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(source.file)
            module: nn.Module = program.module(check_guards=False)
    except Exception as error:  # torch raises nearly anything here
        raise UserError(
            f"{source.file} is no exported program ({told(error)}); save one with torch.export.save"
        ) from None
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.name in program.graph_signature.user_inputs
    ]
    shape = shapes[0] if shapes and len(shapes[0]) == 4 else None
    stacks = (node.meta.get("nn_module_stack") or {} for node in program.graph.nodes)
    family = family_of(str(kind) for stack in stacks for _, kind in stack.values())
    batch = shape[0] if shape and isinstance(shape[0], int) else None
    declared = from_shape(shape, batch)
    notes = (f"runs the program in {source.file.name}",)
    return Opened(Program(_NoModes(module), batch), family, declared, notes=notes)


class _NoModes(nn.Module):
    """An exported program, which has no train or eval mode: asking for one raises."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> "_NoModes":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.contiguous())


def _torchscript(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; models saved with it are not gone
            script = torch.jit.load(str(source.file), map_location="cpu")
    except Exception as error:
        raise UserError(f"{source.file} is no TorchScript ({told(error)}); save one with torch.jit.save") from None
    trained = bool(getattr(script, "training", False))
    kinds = {str(one._c._type().qualified_name()) for one in script.modules()}
    stem = next((value for value in script.state_dict().values() if value.ndim == 4), None)
    channels = int(stem.shape[1]) if stem is not None and stem.shape[1] in (1, 3) else None
    notes = [f"runs the program in {source.file.name}"]
    if trained:
        notes.append("the program was saved in train mode; it is asked in eval mode")
    return Opened(Plain(script), family_of(kinds), Declared(channels), notes=tuple(notes))


def _onnx(source: ModelSource) -> Opened:
    assert source.file is not None
    weights.require_memory(source.file)
    session, declared, kinds = open_onnx(source.file)
    return Opened(session, family_of(kinds), declared, differentiable=False)


def _endpoint(source: ModelSource) -> Opened:
    assert source.endpoint is not None
    asked = Asked(source.endpoint, source.objects.get("journal"), source.objects.get("people", ()))
    said = f"asks {source.endpoint.url} over the network; answers are paid for once and kept"
    return Opened(asked, "unknown", NOTHING, differentiable=False, notes=(said,))


def _object(source: ModelSource) -> Opened:
    net = source.objects["module"]
    declared = Declared(_channels(net))
    trained = net.training
    opened = Opened(Plain(net), family_of(type(one) for one in net.modules()), declared)
    opened.module.training = trained
    return opened


_OPENING: dict[str, Callable[[ModelSource], Opened]] = {
    "weights": _weights,
    "code": _code,
    "exported": _exported,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "endpoint": _endpoint,
    "object": _object,
}


def family_of(kinds: Iterable[Any]) -> str:
    """The family that the classes of a network tell: torchvision's or timm's module, or mibench's file."""
    for kind in kinds:
        text = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        known = re.search(r"\b(torchvision|timm|mibench)\.models\.(\w+)\.", text)
        if known and known[2] not in ("base", "_manipulate", "imported", "layers"):
            return known[2]
    return "unknown"
