"""A trace adds up what the target answered by queries, whatever the batches, and changes no answer."""

import pytest
import torch
from torch import Tensor, nn

from mibench.core import Access, Oracle, Trace

CPU = torch.device("cpu")


class Told(nn.Module):
    """A target whose logits for three classes are the first pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Flatten(), nn.Linear(12, 3)
        with torch.no_grad():
            self.head.weight.zero_()[:, :3] = torch.eye(3)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def image(*pixels: float) -> Tensor:
    """Whose logits are `pixels`."""
    flat = torch.zeros(12)
    flat[:3] = torch.tensor(pixels)
    return flat.reshape(1, 3, 2, 2)


def asked(access: Access, questions: list[tuple[Tensor, list[int]]], per_person: int = 4, people: int = 2) -> Trace:
    trace = Trace(3, people, per_person, CPU)
    oracle = Oracle(Told(), access, 3, trace=trace)
    question = {Access.WHITE_BOX: oracle.logits, Access.BLACK_BOX: oracle.probs, Access.LABEL_ONLY: oracle.labels}
    for x, labels in questions:
        question[access](x, torch.tensor(labels))
    return trace


FIRST = (torch.cat([image(1.0, 0.0, 0.0), image(0.9, 0.1, 0.0)]), [0, 1])
SECOND = (torch.cat([image(0.2, 0.9, 0.0), image(0.1, 0.8, 0.3)]), [0, 1])


@pytest.mark.parametrize("access", [Access.WHITE_BOX, Access.BLACK_BOX])
def test_means_are_those_of_the_answers(access: Access) -> None:
    first, second = asked(access, [FIRST, SECOND]).moments()
    p = torch.softmax(torch.cat([FIRST[0], SECOND[0]]).flatten(1)[:, :3], dim=1)
    own = p.gather(1, torch.tensor([[0], [1], [0], [1]]))[:, 0]
    assert first.confidence == pytest.approx(float(own[:2].mean()), abs=1e-5)
    assert second.confidence == pytest.approx(float(own[2:].mean()), abs=1e-5)
    assert first.loss == pytest.approx(float(-own[:2].log().mean()), abs=1e-5)
    assert (first.step, second.step, first.of, first.images) == (1, 2, 4, 2)
    assert (first.agreement, second.agreement) == (0.5, 0.5)  # person 0 is named at first, person 1 then
    assert (first.reached, second.reached) == (0.5, 1.0)


def test_who_is_told_labels_alone_leaves_no_probabilities() -> None:
    first, second = asked(Access.LABEL_ONLY, [FIRST, SECOND]).moments()
    assert (first.agreement, second.reached) == (0.5, 1.0) and first.confidence is first.loss is None
    assert set(first.line()) == {"step", "of", "images", "agreement", "reached"}


def test_batches_and_views_change_nothing_that_is_summed() -> None:
    whole = asked(Access.BLACK_BOX, [FIRST, SECOND]).counts()
    rows = [(x[[place]], [labels[place]]) for x, labels in (FIRST, SECOND) for place in (0, 1)]
    for name, count in asked(Access.BLACK_BOX, rows).counts().items():
        assert torch.equal(count, whole[name]), name
    views = torch.cat([FIRST[0], FIRST[0]])  # two views of each image count as two images
    (first,) = asked(Access.BLACK_BOX, [(views, FIRST[1])]).moments()
    assert first.images == 4 and first.agreement == 0.5


def test_an_interrupted_trace_goes_on_where_it_stopped() -> None:
    whole = asked(Access.BLACK_BOX, [FIRST, SECOND])
    again = Trace(3, 2, 4, CPU)
    again.add(asked(Access.BLACK_BOX, [FIRST]).counts())
    Oracle(Told(), Access.BLACK_BOX, 3, trace=again).probs(SECOND[0], torch.tensor(SECOND[1]))
    assert again.moments() == whole.moments()
    again.add({})  # a checkpoint of a mibench that kept no trace
    assert again.moments() == whole.moments()


def test_intervals_are_at_most_fifty_and_the_last_takes_what_is_beyond() -> None:
    once = (image(1.0, 0.0, 0.0), [0])
    trace = asked(Access.LABEL_ONLY, [once] * 130, per_person=120, people=1)
    moments = trace.moments()
    assert len(moments) == 50 and sum(one.images for one in moments) == 130
    assert [one.step for one in moments[:5]] == [3, 5, 8, 10, 12] and moments[-1].step == 120
    assert moments[-1].images == 2 + 10


def test_images_for_all_people_and_oracles_without_a_trace_note_nothing() -> None:
    trace = Trace(3, 2, 4, CPU)
    oracle, plain = Oracle(Told(), Access.BLACK_BOX, 3, trace=trace), Oracle(Told(), Access.BLACK_BOX, 3)
    oracle.probs(FIRST[0], None)
    assert trace.moments() == [] and not any(name.startswith("trace") for name in plain.counts())
    y = torch.tensor(FIRST[1])
    assert torch.equal(oracle.probs(FIRST[0], y), plain.probs(FIRST[0], y)), "to be noted changes no answer"


def test_gradients_are_those_without_a_trace() -> None:
    gradients = []
    for trace in (None, Trace(3, 2, 4, CPU)):
        x = FIRST[0].clone().requires_grad_()
        oracle = Oracle(Told(), Access.WHITE_BOX, 3, trace=trace)
        gradients.append(torch.autograd.grad(oracle.logits(x, torch.tensor(FIRST[1])).square().sum(), x)[0])
    assert torch.equal(*gradients)
