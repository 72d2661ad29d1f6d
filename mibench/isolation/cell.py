"""The inside of `--isolate`: a sealed process that has an attack, a prior and public images, and asks over a pipe.

The attack finds the oracle and the workspace that it knows. Both ask the process outside, which counts, answers and
keeps; see `isolation.guard`.
"""

import io
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.core import Access, Attack, AttackContext, BudgetExhausted, Oracle, Prior, checked, shown_by
from mibench.core.attack import Kept
from mibench.core.ledger import Ledger
from mibench.core.meter import Meter
from mibench.core.steps import Part, begun
from mibench.plugins import capabilities, registry
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.rng import seeded_globals
from mibench.runtime.wire import BODY, Message, Wire

__all__ = ["Cell", "Distant", "main"]


class Distant(Oracle):
    """The oracle inside: it refuses and counts as the one outside does, whose word is the last, and asks that one.

    Args:
        wire: To the process that has the target.
        access: What it grants; white box is never had from here.
        num_classes: How many classes the target has.
        budget: Most image queries per identity.
        device: Where the attack computes.
        attacked: The identities under attack.
    """

    def __init__(
        self,
        wire: Wire,
        access: Access,
        num_classes: int,
        budget: int | None,
        device: torch.device,
        attacked: Iterable[int],
    ) -> None:
        self._wire, self._access, self.device = wire, access, device
        self._ledger = Ledger(num_classes, budget, attacked, lambda count: None)
        self._meter = Meter(nn.Identity())

    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Black box: served scores."""
        self._admit(Access.BLACK_BOX, "scores", x, labels)
        return self._ask("probs", x, labels)

    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """Label only: the predicted class."""
        self._admit(Access.LABEL_ONLY, "labels", x, labels)
        return self._ask("labels", x, labels)

    def _ask(self, question: str, x: Tensor, labels: Tensor | None) -> Tensor:
        tensors = {"x": x} if labels is None else {"x": x, "y": labels}
        return call(self._wire, "ask", {"question": question}, tensors).tensors["answer"].to(self.device)


@dataclass(frozen=True)
class Outside:
    """The steps of an unfinished part, kept by the process outside as bytes that it does not read.

    Args:
        wire: To that process.
        place: The part's name and scope.
    """

    wire: Wire
    place: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where nothing was."""
        known = call(self.wire, "recall steps", self.place)
        if known.what != "steps":
            return None
        content = io.BytesIO(known.tensors["content"].numpy().tobytes())
        return cast(dict[str, Any], torch.load(content, map_location="cpu", weights_only=True))

    def write(self, state: dict[str, Any]) -> None:
        """In place of what was there; a state that is too long for the wire is not kept."""
        content = io.BytesIO()
        torch.save(state, content)
        if content.tell() < BODY - 4096:
            plain = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
            call(self.wire, "keep steps", self.place, {"content": plain})

    def passed(self) -> None:
        """The loop that comes next has been taken from what was read."""
        call(self.wire, "passed", self.place)

    def ended(self) -> None:
        """A loop has ended."""
        call(self.wire, "ended", self.place)


@dataclass(frozen=True)
class Cell(AttackContext):
    """The workspace inside: what it keeps lies outside, in the run's folder, and is the same as without isolation."""

    wire: Wire | None = None
    scope: tuple[str, ...] = field(default=())

    def once(self, name: str, oracle: Oracle, compute: Callable[[], Kept]) -> Kept:
        """As in `AttackContext`."""
        self._claim(name)
        assert self.wire is not None
        place = {"scope": list(self.scope), "name": name}
        known = call(self.wire, "recall", place)
        if known.what == "value":
            named = {key: tensor.to(oracle.device) for key, tensor in known.tensors.items()}
            counts = [key for key in named if key.startswith("count.")]
            oracle.add({key.removeprefix("count."): named.pop(key).cpu() for key in counts})
            return cast(Kept, unpacked(named))
        with begun(Part(oracle, Outside(self.wire, place), self.seconds)):
            value = compute()
        call(self.wire, "keep", place, packed(value))
        return value

    def below(self, name: str) -> "Cell":
        """As in `AttackContext`."""
        self._claim(name)
        return replace(self, scope=(*self.scope, name), names=set())


def packed(value: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """What a part of an attack found, as tensors by name."""
    return {"tensor": value} if isinstance(value, Tensor) else {f"named.{key}": one for key, one in value.items()}


def unpacked(named: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """What was `packed`."""
    return named["tensor"] if "tensor" in named else {key.removeprefix("named."): one for key, one in named.items()}


def call(wire: Wire, what: str, fields: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Message:
    """Ask the process outside and wait for its answer.

    Raises:
        BudgetExhausted: If the budget is spent.
        UserError: If it refuses.
    """
    wire.send(what, fields, tensors)
    answer = wire.receive()
    if answer.what == "exhausted":
        raise BudgetExhausted(answer.fields["text"])
    if answer.what == "refused":
        raise UserError(answer.fields["text"])
    return answer


def main(reads: int, writes: int, held: list[str]) -> None:
    """Say how this process is sealed, be given a job, do it, say what came out."""
    wire = Wire(os.fdopen(reads, "rb"), os.fdopen(writes, "wb"), trusts=True)
    wire.send("sealed", {"held": held})
    try:
        _work(wire, wire.receive())
    except (EOFError, BrokenPipeError):
        return
    except UserError as error:
        wire.send("stopped", {"text": str(error)})
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: an attack ends by returning
        traceback.print_exc()
        said = str(error).splitlines()[0] if str(error) else ""
        wire.send("stopped", {"text": f"{type(error).__name__}: {said}"})


def _work(wire: Wire, job: Message) -> None:
    asked = job.fields
    engine = Engine(torch.device(asked["device"]), asked["precision"])
    torch.set_num_threads(asked["threads"])
    content = io.BytesIO(job.tensors["content"].numpy().tobytes())
    given, public, defenses = torch.load(content, weights_only=False)  # written by the process outside, for this one
    prior: Prior = cast(Prior, engine.place(given))
    attack: Attack = registry.configure("attacks", asked["attack"], settings=asked["settings"]).plugin
    capabilities.require(attack, prior)
    cost = attack.cost(prior, len(public))
    call(wire, "cost", dict(cost._asdict()))
    labels = torch.arange(asked["attacked"], device=engine.device)
    oracle = Distant(
        wire, Access[asked["access"]], asked["classes"], asked["budget"], engine.device, range(asked["attacked"])
    )
    shown = shown_by(defenses)
    work = Cell(asked["batch"], None, public.on(engine), shown, registry.shown_under, wire=wire)
    with seeded_globals(asked["seed"], "attack") as used:
        try:
            with engine.autocast(), capabilities.naming_others():
                made = attack(oracle, prior, labels, asked["seed"], work)
            checked(made, asked["attack"], labels, public.images.shape[1:])  # here too: only tensors leave
            tensors = {key: value.cpu() for key, value in vars(made).items()}
        except BudgetExhausted:
            tensors = {}
    oracle.check()
    wire.send("done", {"generators": used}, tensors)
