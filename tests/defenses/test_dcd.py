"""The data-centric defense: which rows, under which labels, with how much noise; who is let in."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from defending import ENGINE, assert_refused, preset
from torch import Tensor, nn
from worlds import colours, small_net

from mibench.core import Dataset, Split
from mibench.defenses.dcd import DataCentric, looks
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit

CLASSES, EACH = 10, 12


def people(each: int = EACH) -> Split:
    """Person k is k / 20 bright, with little noise: look-alikes are neighbours in number."""
    labels = torch.arange(CLASSES).repeat_interleave(each)
    x = 20 + 12 * labels[:, None, None, None] + torch.randint(0, 6, (len(labels), 3, 16, 16), generator=seeded())
    return Split(x.to(torch.uint8), labels)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def public(each: int = 8, count: int = 12, named: bool = True) -> Split:
    """Public person k is 21 k bright."""
    labels = torch.arange(count).repeat_interleave(each)
    x = 21 * labels[:, None, None, None] + torch.randint(0, 6, (len(labels), 3, 16, 16), generator=seeded())
    return Split(x.clamp(max=255).to(torch.uint8), labels if named else torch.full_like(labels, -1))


def made(defense: DataCentric, given: Split | None = None, strangers: Split | None = None) -> tuple[Split, nn.Module]:
    train = people() if given is None else given
    memory = defense.memory(CLASSES, (3, 16, 16)) or nn.Module()
    noise = Noise(5, torch.arange(len(train))).of("rows")
    return defense.rows(train, public() if strangers is None else strangers, memory, noise), memory


def test_the_rows_are_the_authors() -> None:
    """Per protected person: own rows, surrogates up to a class's size, and a noisy copy of each (CelebA's recipe)."""
    train, defense = people(), DataCentric(share=0.3, images=5)
    out, memory = made(defense)
    protected, used = memory.protected, memory.used
    assert len(protected) == 3 and len(protected.unique()) == 3 and (protected.diff() > 0).all()
    n, repeats = len(train), 3  # ceil(12 / 5)
    surrogates = 3 * repeats * 5
    assert torch.equal(out.images[:n], train.images), "own images are as they were, in front"
    own = torch.isin(train.labels, protected)
    moved = out.labels[:n] != train.labels
    assert not moved[~own].any() and int(moved.sum()) == 3 * int(0.2 * EACH)
    assert torch.bincount(train.labels[moved], minlength=CLASSES)[protected].tolist() == [2, 2, 2]
    places = used.repeat(1, repeats).flatten()
    rows = slice(n, n + surrogates)
    assert torch.equal(out.images[rows], public().images[places])
    assert torch.equal(out.labels[rows], protected.repeat_interleave(repeats * 5))
    copies = slice(n + surrogates, n + 2 * surrogates)
    assert torch.equal(out.labels[copies], out.labels[rows])
    still = (own & ~moved).nonzero()[:, 0]
    tail = out.labels[n + 2 * surrogates :]
    assert len(tail) == len(still) == 30 and (tail != train.labels[still]).all(), "pi2 = 1 mislabels every copy"
    assert tail.unique().numel() > 4, "with labels from all classes"


def test_any_first_people_hold_their_share_of_the_protected() -> None:
    """An attack on the first 40 of 100 meets 10 of the 25 who are protected, give or take one."""
    train = Split(torch.zeros(100, 3, 16, 16, dtype=torch.uint8), torch.arange(100))
    strangers, starts = Split(torch.zeros(250, 3, 16, 16, dtype=torch.uint8), torch.full((250,), -1)), set()
    for seed in range(20):
        memory = DataCentric(share=0.25).memory(100, (3, 16, 16))
        DataCentric(share=0.25).rows(train, strangers, memory, Noise(seed, torch.arange(100)))
        assert torch.equal(memory.protected.diff(), torch.full((24,), 4))
        assert int((memory.protected < 40).sum()) == 10
        starts.add(int(memory.protected[0]))
    assert starts == {0, 1, 2, 3}, "but who they are depends on the seed"


def test_the_noise_of_copies() -> None:
    train, defense = people(), DataCentric(share=0.3, eps=0.02, sigma=0.1)
    grey = Split(torch.full((40, 3, 16, 16), 128, dtype=torch.uint8), torch.full((40,), -1))
    out, memory = made(defense, strangers=grey)
    n, surrogates = len(train), 45
    still = (torch.isin(train.labels, memory.protected) & (out.labels[:n] == train.labels)).nonzero()[:, 0]
    for start, original, deviation in (
        (n + surrogates, out.images[n : n + surrogates], 0.02),
        (n + 2 * surrogates, train.images[still], 0.1),
    ):
        inside = (original.float() > 60) & (original.float() < 195)
        change = (out.images[start : start + len(original)].float() - original.float())[inside] / 255
        assert abs(float(change.mean())) < 4 * deviation / len(change) ** 0.5, "rounded, not cut off"
        assert float(change.std()) == pytest.approx((deviation**2 + 1 / 12 / 255**2) ** 0.5, rel=0.02)
    repeated = out.images[n + surrogates : n + surrogates + 15].reshape(3, 5, -1)
    assert not torch.equal(repeated[0], repeated[1]), "each repetition has noise of its own"


def test_a_share_of_the_copies_keeps_its_label() -> None:
    train = people()
    out, memory = made(DataCentric(share=0.3, pi1=0.0, pi2=0.5))
    own = torch.isin(train.labels, memory.protected)
    assert torch.equal(out.labels[: len(train)], train.labels)
    tail = out.labels[-int(own.sum()) :]
    assert int((tail != train.labels[own]).sum()) == 3 * 6


@pytest.mark.parametrize("named", [True, False])
def test_a_surrogate_looks_unlike_and_belongs_to_one_person(named: bool) -> None:
    _, memory = made(DataCentric(share=0.5, images=4), strangers=public(named=named))
    protected, used, unused = memory.protected, memory.used, memory.unused
    every = torch.cat([used.flatten(), unused.flatten()])
    assert len(every.unique()) == len(every) == 2 * 5 * 4 and (every >= 0).all()
    owner = torch.arange(12).repeat_interleave(8)
    assert all(len(owner[row].unique()) == 1 for row in torch.cat([used, unused], 1)), "one look each"
    train = people()
    first = looks(train.images[train.labels == protected[0]]).mean(0)
    distance = torch.stack([(looks(public().images[owner == k]).mean(0) - first).square().sum() for k in range(12)])
    assert int(owner[used[0, 0]]) == int(distance.argmax())
    other = made(DataCentric(share=0.5, images=4, surrogate="random"), strangers=public(named=named))[1]
    assert torch.equal(other.protected, protected) and not torch.equal(other.used, used)


def test_few_images_of_a_person_leave_none_to_judge_by() -> None:
    _, memory = made(DataCentric(share=0.2, images=5), strangers=public(each=6))
    assert (memory.unused[:, 0] >= 0).all() and (memory.unused[:, 1:] == -1).all()


@pytest.mark.parametrize("named", [True, False])
def test_too_few_public_people_are_refused(named: bool) -> None:
    with pytest.raises(UserError, match=r"there are 1\. Lower share or images") as caught:
        made(DataCentric(share=0.5, images=4), strangers=public(count=1, named=named))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there are 0"):
        made(DataCentric(), strangers=Split(public().images[:0], public().labels[:0]))


def test_the_same_arguments_give_the_same_rows() -> None:
    one, other = made(DataCentric())[0], made(DataCentric())[0]
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert made(DataCentric(share=0.0))[0].images.shape == people().images.shape


def dataset(heldout: Split, strangers: Split) -> Dataset:
    return Dataset(
        "toy", tuple(map(str, range(CLASSES))), people(), heldout, strangers, public(count=1), False, True, {}
    )


def test_the_report_by_hand() -> None:
    """A classifier that is right about even people and takes public person 11 for whoever it stands for."""
    defense = DataCentric(share=0.3)
    _, memory = made(defense)
    memory.protected.copy_(torch.tensor([1, 2, 3]))
    memory.unused.copy_(torch.tensor([[0, 1, -1, -1, -1], [88, 89, 90, -1, -1], [8, -1, -1, -1, -1]]))
    heldout = Split(people(2).images, people(2).labels)

    def answers(images: Tensor) -> Tensor:
        level = images.float().mean(dim=(1, 2, 3))
        person = ((level - 22) / 12).round().long().clamp(0, CLASSES - 1)
        person = torch.where(person % 2 == 0, person, 0)
        if len(images) == 6:  # the impostors
            assert torch.equal(images, public().images[[0, 1, 88, 89, 90, 8]])
            person = torch.tensor([1, 0, 2, 2, 0, 3])
        return torch.nn.functional.one_hot(person, CLASSES).float()

    found = defense.report(memory, dataset(heldout, public()), answers)
    assert found["impostor_acceptance"] == pytest.approx(4 / 6)
    assert found["accuracy_protected"] == pytest.approx(1 / 3), "of 1, 2, 3 only 2 is even"
    assert found["accuracy_unprotected"] == pytest.approx(4 / 7), "0, 4, 6, 8 of seven"
    memory.unused.fill_(-1)
    assert "impostor_acceptance" not in defense.report(memory, dataset(heldout, public()), answers)
    assert DataCentric(share=0.0).report(nn.Module(), dataset(heldout, public()), answers) == {}


def test_a_trained_target_lets_the_surrogate_in() -> None:
    """On three colours: strangers who are bright all over are taken for the person they stand for, even new ones."""
    bright = Split((colours(24, 16, seed=5).images.float() * 0.3 + 175).to(torch.uint8), torch.zeros(24).long())

    def taken(defense: DataCentric, y: int | None = None) -> tuple[float, int]:
        net, recipe = small_net(), Training(epochs=8, batch=20, lr=0.02, augment=False)
        fitted = fit(net, colours(60, 16), 3, recipe, ENGINE, 5, Silent(), "toy", [defense], public=bright)
        y = int(fitted.memories[0].protected[0]) if y is None else y
        with torch.no_grad():
            answer = net.eval()(bright.images[12:].float() / 255).argmax(1)
        return float((answer == y).float().mean()), y

    accepted, y = taken(DataCentric(share=0.34, pi1=0.0, pi2=0.0))
    assert accepted == 1.0 and taken(DataCentric(share=0.0), y)[0] < 1.0


@pytest.mark.parametrize(
    "settings",
    [{"share": 1.1}, {"pi1": -0.1}, {"pi2": float("nan")}, {"eps": -1.0}, {"sigma": float("nan")}, {"images": 0}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    assert_refused("dcd", settings, next(iter(settings)))


def test_the_papers_settings() -> None:
    assert preset("dcd") == replace(DataCentric(share=0.01), sigma=0.031372549)
    assert DataCentric().sigma == pytest.approx(8 / 255)
