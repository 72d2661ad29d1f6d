"""An architecture that is the user's own code: `package.module:function` or `file.py:function`; it is run."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mibench.models.imported import weights
from mibench.models.imported.architectures import fill
from mibench.models.imported.declared import Declared
from mibench.models.imported.opened import Opened, Plain, channels_of, family_of
from mibench.models.imported.sources import ModelSource, digest_of
from mibench.runtime.errors import UserError

__all__ = ["code_digest", "code_of", "open_code"]


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


def open_code(source: ModelSource) -> Opened:
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
        fill(net, tensors, source)
        classes = state.classes
    if net.training:
        notes.append("the code returns a network in train mode; it is asked in eval mode")
    declared = Declared(channels_of(net), classes=classes)
    return Opened(Plain(net), family_of(type(one) for one in net.modules()), declared, notes=tuple(notes))


def code_digest(reference: str, where: str = "") -> str:
    """sha256 of the file that defines a user's function."""
    _, file = code_of(reference, where)
    return digest_of(file) if file.is_file() else ""
