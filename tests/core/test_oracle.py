"""Laws of the oracle: what it takes, what it gives away, and that nothing is asked of the target uncounted."""

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import World, workspace

from mibench.core import Access, BudgetExhausted, Oracle
from mibench.core.losses import cross_entropy, on_logits
from mibench.models.fold import fold
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch.func's own import

QUESTIONS: dict[str, tuple[Access, Callable[[Oracle, Any, Any], Any]]] = {
    "answers": (Access.WHITE_BOX, lambda oracle, x, y: oracle.answers(x, y)),
    "logits": (Access.WHITE_BOX, lambda oracle, x, y: oracle.logits(x, y)),
    "loss": (Access.WHITE_BOX, lambda oracle, x, y: oracle.loss(x, y, on_logits(cross_entropy), Noise(0, y))),
    "probs": (Access.BLACK_BOX, lambda oracle, x, y: oracle.probs(x, y)),
    "labels": (Access.LABEL_ONLY, lambda oracle, x, y: oracle.labels(x, y)),
}


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def refused(question: str, x: Any, y: Any, words: str) -> Oracle:
    """Both images and labels of every kind are refused in one line, and nothing is counted."""
    access, ask = QUESTIONS[question]
    oracle = World(4).oracle(access)
    with pytest.raises(UserError, match=words) as caught:
        ask(oracle, x, y)
    assert "\n" not in str(caught.value) and int(oracle.queries.sum()) + oracle.shared_queries == 0
    return oracle


class Spy(Tensor):
    """Sees every operation that it takes part in, the target's weights among the arguments."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(args)
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(Tensor):
    """The same one floor below, through `__torch_dispatch__`."""

    @staticmethod
    def __new__(cls, inside: Tensor) -> "Wrapped":
        made: Wrapped = Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)
        made.inside = inside  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("the target was reached")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_subclass_of_tensor_is_refused(question: str) -> None:
    y = torch.arange(4)
    for kind in (lambda t: t.as_subclass(Spy), Wrapped):
        refused(question, kind(images()), y, "the images are a .*, a subclass of Tensor: pass x.as_subclass")
        refused(question, images(), kind(y), "the labels are a .*, a subclass of Tensor")
    Spy.seen.clear()


def test_a_parameter_is_plain() -> None:
    """An attack that optimises pixels may hold them as one."""
    oracle = World(4).oracle()
    oracle.loss(
        nn.Parameter(images()), torch.arange(4), on_logits(cross_entropy), Noise(0, torch.arange(4))
    ).sum().backward()
    assert oracle.gradient_images.tolist() == [1] * 4


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class WatchFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_mode_around_the_call_is_refused(question: str) -> None:
    for mode in (Watch(), WatchFunctions()):
        with mode:
            refused(question, images(), torch.arange(4), "called inside the mode .*: leave the mode")
    with torch.device("cpu"):  # the mode behind torch.set_default_device sees nothing of the target's
        QUESTIONS[question][1](World(4).oracle(), images(), torch.arange(4))


@pytest.mark.parametrize("question", QUESTIONS)
def test_torch_func_is_refused(question: str) -> None:
    """vmap over labels got 4,000 answers for 4 counted ones; jvp a directional derivative for none."""
    access, ask = QUESTIONS[question]
    oracle = World(4).oracle(access)
    x, y = images(), torch.arange(4)
    transforms: list[Callable[[], object]] = [
        lambda: torch.func.vmap(lambda each: ask(oracle, x, each))(y.expand(10, 4)),
        lambda: torch.func.vmap(lambda each: ask(oracle, each, y))(x.expand(10, 4, 3, 8, 8)),
        lambda: torch.func.vmap(lambda each: ask(oracle, x, y))(torch.zeros(10)),
        lambda: torch.func.grad(lambda each: ask(oracle, each, y).sum())(x),
        lambda: torch.func.jvp(lambda each: ask(oracle, each, y), (x,), (x,)),
        lambda: torch.func.vjp(lambda each: ask(oracle, each, y), x),
        lambda: torch.func.jacfwd(lambda each: ask(oracle, each, y))(x),
    ]
    for transform in transforms:
        with pytest.raises(UserError, match="inside a transform of torch") as caught:
            transform()
        assert "\n" not in str(caught.value)
    assert int(oracle.queries.sum()) == 0


@pytest.mark.parametrize("question", QUESTIONS)
def test_dual_numbers_are_refused_and_answers_have_no_tangents(question: str) -> None:
    access, ask = QUESTIONS[question]
    y = torch.arange(4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(images(), torch.ones_like(images()))
        refused(question, dual, y, "the images are a dual number of forward-mode")
        answer = ask(World(4).oracle(access), images(), y)  # a level alone, without a tangent, does no harm
        for part in answer if isinstance(answer, tuple) else (answer,):
            assert forward_ad.unpack_dual(part).tangent is None


@pytest.mark.parametrize(("question", "access"), [("probs", Access.BLACK_BOX), ("labels", Access.LABEL_ONLY)])
def test_below_white_box_nothing_hangs_on_an_answer(question: str, access: Access) -> None:
    """No graph, no gradient, no tangent, whatever the caller does around it; and not a byte of the target's."""
    world = World(4)
    oracle = world.oracle(access)
    x, y = images().requires_grad_(), torch.arange(4)
    with torch.enable_grad():
        answer = QUESTIONS[question][1](oracle, x, y)
    assert not answer.requires_grad and answer.grad_fn is None and answer._base is None
    stored = {one.untyped_storage().data_ptr() for one in [*world.target.parameters(), *world.target.buffers(), x]}
    assert answer.untyped_storage().data_ptr() not in stored
    with pytest.raises(UserError, match="needs white_box access; it was granted"):
        oracle.answers(x, y)


class Constant(nn.Module):
    """Answers every image with one of its own buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("kept", torch.eye(3))
        self.head = nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        return self.kept[: len(x)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_an_answer_is_never_a_view_of_the_targets_own_tensors() -> None:
    network = Constant()
    for part in Oracle(network, Access.WHITE_BOX, 3).answers(images(2), None):
        part.zero_()
    assert torch.equal(network.kept, torch.eye(3))


def test_in_white_box_gradients_flow_and_are_exact() -> None:
    world, y = World(4), torch.tensor([3, 0, 1, 1])
    x = images().requires_grad_()
    (through,) = torch.autograd.grad(world.oracle().loss(x, y, on_logits(cross_entropy), Noise(0, y)).sum(), x)
    (direct,) = torch.autograd.grad(cross_entropy(world.target(x), y).sum(), x)
    assert torch.equal(through, direct)


def test_every_backward_pass_is_counted() -> None:
    """The first is part of the query; each further one through the same answer is a query of its own."""
    oracle, y = World(4).oracle(), torch.tensor([0, 0, 2, 3])
    x = images().requires_grad_()
    own = torch.tensor([2, 0, 1, 1])
    logits, features = oracle.answers(x, y)
    assert int(oracle.gradient_images.sum()) == 0 and torch.equal(oracle.queries, own)  # nothing differentiated yet
    for passes in range(1, 21):
        torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
        assert torch.equal(oracle.gradient_images, passes * own) and torch.equal(oracle.queries, passes * own)
    (logits.sum() + features.sum()).backward()  # both answers in one pass: one
    assert torch.equal(oracle.gradient_images, 21 * own)
    oracle.answers(x.detach(), y)
    with torch.no_grad():
        oracle.answers(x, y)
    assert torch.equal(oracle.gradient_images, 21 * own) and torch.equal(oracle.queries, 23 * own)
    shared = oracle.logits(x, None)
    for _ in range(3):
        torch.autograd.grad(shared.sum(), x, retain_graph=True)
    assert oracle.shared_gradients == 12 and oracle.shared_queries == 12


def test_a_gradient_that_is_differentiated_again_is_counted_again() -> None:
    """H v through the graph of a gradient, and J u as the derivative of J' v in v."""
    y = torch.arange(4)
    oracle, x = World(4).oracle(), images().requires_grad_()
    value = oracle.loss(x, y, on_logits(cross_entropy), Noise(0, y)).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    assert oracle.gradient_images.tolist() == [1] * 4
    torch.autograd.grad(gradient.square().sum(), x)
    assert oracle.gradient_images.tolist() == [3] * 4 and oracle.queries.tolist() == [3] * 4

    oracle, v = World(4).oracle(), torch.ones(4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(oracle.logits(x, y), x, v, create_graph=True)
    for passes in (2, 3, 4):
        torch.autograd.grad(gradient, v, torch.ones_like(x), retain_graph=True)
        assert oracle.gradient_images.tolist() == [passes] * 4


def test_many_gradients_in_one_pass_are_refused() -> None:
    oracle, x = World(4).oracle(), images().requires_grad_()
    logits = oracle.logits(x, torch.arange(4))
    with pytest.raises(UserError, match="the gradients are wrapped by torch"):
        torch.autograd.grad(logits, x, torch.eye(4).expand(4, 4, 4), is_grads_batched=True)


def test_no_road_leads_past_the_budget() -> None:
    y = torch.arange(4)
    for access in Access:
        for name, (needed, ask) in QUESTIONS.items():
            if needed > access:
                continue
            oracle = World(4).oracle(access, 20)
            with pytest.raises(BudgetExhausted):
                for number in range(100):
                    ask(oracle, images(4 if name == "loss" else 8), None if number % 3 and name != "loss" else y)
            assert int(oracle.queries.max()) + oracle.shared_queries <= 20
    oracle, x = World(4).oracle(budget=20), images().requires_grad_()
    value = oracle.logits(x, y)
    with pytest.raises(BudgetExhausted):
        for _ in range(100):
            torch.autograd.grad(value[:, 1].sum(), x, retain_graph=True)
    assert oracle.queries.tolist() == oracle.gradient_images.tolist() == [20] * 4
    with pytest.raises(UserError, match="tried to take queries back"):
        oracle.add({name: -count for name, count in oracle.counts().items()})
    oracle.queries.zero_()
    assert oracle.queries.tolist() == [20] * 4


def test_identities_that_are_not_under_attack_are_refused() -> None:
    """800 queries under another label showed 0 for the attacked ones; a budget of 20 gave 400."""
    oracle = Oracle(World(10).target, Access.BLACK_BOX, 10, 20, attacked=range(3))
    with pytest.raises(UserError, match=r"asked under label 7, which is not under attack \(0 to 2 are\)") as caught:
        oracle.probs(images(), torch.tensor([0, 1, 7, 2]))
    assert "\n" not in str(caught.value) and int(oracle.queries.sum()) == 0
    for label in (-1, 10):
        with pytest.raises(UserError, match=f"asked under label {label}; the target knows 0 to 9"):
            oracle.probs(images(1), torch.tensor([label]))
    assert oracle.probs(images(), torch.tensor([0, 1, 2, 2])).shape == (4, 10)  # all classes in one answer
    assert oracle.probs(images(), None).shape == (4, 10)


@pytest.mark.parametrize("silently", [False, True])
def test_labels_that_change_in_place_are_counted_as_they_are(silently: bool) -> None:
    oracle, y = World(4).oracle(), torch.zeros(4, dtype=torch.int64)
    for label in range(4):
        if silently:
            y.numpy()[:] = label  # torch's version counter does not see it
        else:
            y.fill_(label)
        oracle.probs(images(), y)
    assert oracle.queries.tolist() == [4] * 4
    with torch.inference_mode():
        y = torch.zeros(4, dtype=torch.int64)
        oracle.probs(images(), y)
        y.fill_(2)
        oracle.probs(images(), y)
    assert oracle.queries.tolist() == [8, 4, 8, 4]
    oracle.check()


def test_counting_is_safe_under_threads() -> None:
    oracle, x = World(4).oracle(budget=900), images(1)
    y = torch.zeros(1, dtype=torch.int64)
    refusals: list[int] = []

    def ask(count: int) -> None:
        for _ in range(count):
            try:
                oracle.probs(x, y.clone())
            except BudgetExhausted:
                refusals.append(1)

    for count in (200, 50):
        threads = [threading.Thread(target=ask, args=(count,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert int(oracle.queries[0]) == min(900, 800 if count == 200 else 1000)
    assert len(refusals) == 100


@pytest.mark.parametrize("folded", [False, True])
def test_the_second_count_notices_who_goes_past_the_oracle(folded: bool) -> None:
    world, y = World(4), torch.arange(4)
    network = fold(world.target) if folded else world.target
    oracle = Oracle(network, Access.WHITE_BOX, 4)
    with oracle.watched():
        oracle.probs(images(), y)
        oracle.logits(images().requires_grad_(), y).sum().backward()
    roads: list[Callable[[], object]] = [
        lambda: network(images(7)),
        lambda: network.features(images(7)),
        lambda: network.head(network.trunk(network.prepare(images(7)))),
        lambda: oracle._target(images(7)),
    ]
    for road in roads:
        oracle = Oracle(network, Access.WHITE_BOX, 4)
        with pytest.raises(UserError, match=r"was run on 7 .* that no query counted") as caught, oracle.watched():
            oracle.probs(images(), y)
            road()
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="that no query counted"), oracle.watched():
            workspace(world).once("part", oracle, lambda road=road: torch.as_tensor(road()).detach())  # at once
    assert not any(module._forward_pre_hooks for module in network.modules())


class Skipping(nn.Module):
    """Looks at half of what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Flatten()
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x[::2])).repeat_interleave(2, dim=0)


def test_the_second_count_notices_a_network_that_saw_less() -> None:
    oracle = Oracle(Skipping(), Access.BLACK_BOX, 4)
    with pytest.raises(UserError, match=r"counted 4 .* network was run on 2"), oracle.watched():
        oracle.probs(images(), None)


def test_what_is_no_batch_of_images_is_refused() -> None:
    y = torch.arange(4)
    oracle = World(4).oracle()
    wrong: list[tuple[Tensor, Tensor, str]] = [
        (images()[0:0], y, "n at least 1; the images are torch.float32 of shape"),
        (images(6), y, "6 images are no whole number of views of 4"),
    ]
    for x, labels, words in wrong:
        with pytest.raises(UserError, match=words):
            oracle.probs(x, labels)
    assert int(oracle.queries.sum()) == 0
