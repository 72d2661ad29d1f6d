"""What a model wants is found out: every way of asking has one right answer here, by construction."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import Access
from mibench.models.imported.network import Gallery, Wanted, as_logits, assemble, cut
from mibench.models.imported.normalisations import NORMALISATIONS, normalisation
from mibench.models.imported.opened import Opened, Plain
from mibench.models.imported.probe import find
from mibench.models.imported.ways import Given, Pictures
from mibench.runtime.errors import UserError

NAMES = tuple(f"p{place}" for place in range(6))
EACH = 8


def pictures(channels: int = 3, names: tuple[str, ...] = NAMES) -> Pictures:
    """People who differ in the colours of four quarters."""
    noise = torch.Generator().manual_seed(0)
    looks = torch.rand(len(names), 3, 2, 2, generator=noise)
    labels = torch.arange(len(names)).repeat_interleave(EACH)
    coarse = (looks[labels] + 0.05 * torch.randn(len(labels), 3, 2, 2, generator=noise)).clamp(0, 1)

    def at(size: int, wanted: int) -> Tensor:
        x = F.interpolate(coarse, (size, size), mode="nearest")
        x = x if wanted == 3 else x.mean(dim=1, keepdim=True)
        return (x * 255).round().to(torch.uint8)

    return Pictures(at, labels, names, torch.arange(EACH).repeat(len(names)) < 6)


class Nearest(nn.Module):
    """Knows its people by the colours of their quarters, in its own units: logits are minus squared distances."""

    def __init__(self, shown: Pictures, mean: float, std: float, size: int = 32, reverse: bool = False) -> None:
        super().__init__()
        self.size, self.reverse = size, reverse
        self.stem = nn.Conv2d(3, 3, 1, bias=False)
        self.stem.weight.data = torch.eye(3)[:, :, None, None]
        x = (self.quarters(shown.at(size, 3).float() / 255) - mean) / std
        x = torch.stack([x[shown.labels == person].mean(dim=0) for person in range(len(shown.names))])
        self.head = nn.Linear(x.shape[1], len(x))
        self.head.weight.data, self.head.bias.data = 2 * x, -x.square().sum(dim=1)

    def quarters(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.flip(1) if self.reverse else x, 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size:
            raise RuntimeError(f"wants {self.size} px")
        return self.head(F.adaptive_avg_pool2d(self.stem(x), 2).flatten(1))


def opened(module: nn.Module, **declared: Any) -> Opened:
    from mibench.models.imported.declared import Declared

    return Opened(Plain(module).eval(), "unknown", Declared(**({"channels": 3, "size": 32} | declared)))


def test_the_range_is_found_by_accuracy() -> None:
    shown = pictures()
    mean, std = NORMALISATIONS["bytes"]
    found = find(opened(Nearest(shown, mean[0], std[0])), shown)
    assert found.way.accuracy == 1
    assert (found.wanted.mean[0], found.wanted.std[0]) == (mean[0], std[0])
    assert found.grants is Access.WHITE_BOX


@pytest.mark.parametrize("name", ["half", "unit", "imagenet"])
def test_a_batch_norm_remembers_its_normalisation(name: str) -> None:
    """Where several ways name everybody rightly, the remembered mean and variance decide."""
    shown = pictures()
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in NORMALISATIONS[name])

    class Normed(Nearest):
        def __init__(self) -> None:
            super().__init__(shown, 0.5, 0.5)
            self.norm = nn.BatchNorm2d(3, affine=False)
            x = (shown.at(32, 3).float() / 255 - mean) / std
            self.norm.running_mean, self.norm.running_var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            z = self.norm(x) * (self.norm.running_var.sqrt() * std.flatten()).view(-1, 1, 1)
            z = z + (self.norm.running_mean * std.flatten() + mean.flatten()).view(-1, 1, 1)
            return super().forward((z - 0.5) / 0.5)

    found = find(opened(Normed()), shown)
    assert found.wanted.mean[0] == pytest.approx(float(mean[0]))
    assert found.wanted.std[0] == pytest.approx(float(std[0]))


def test_the_size_is_found_where_the_model_takes_one_only() -> None:
    shown = pictures()
    assert find(opened(Nearest(shown, 0.5, 0.5, size=28), size=None), shown).wanted.size == 28


def test_another_size_than_the_published_one_is_found_by_accuracy() -> None:
    """A network that takes pictures of any size and was trained at 48 px: of larger ones it sees a corner."""
    shown = pictures()._replace(side=64)

    class Corner(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            whole = F.pad(x, (0, max(0, 48 - x.shape[-1]), 0, max(0, 48 - x.shape[-1])))
            return self.head(self.quarters(self.stem(whole[..., :48, :48]))) / 5  # unsure enough to tell

    found = find(opened(Corner(shown, 0.5, 0.5, size=48), size=None, usual=224), shown, Given(normalise="half"))
    assert found.wanted.size == 48
    assert found.way.accuracy == 1
    told = " ".join(found.told)
    assert "size: 48 px of 5 tried" in told and "224 px is the published size" in told


def test_sizes_that_do_as_well_are_told_and_the_published_one_is_taken() -> None:
    shown = pictures()._replace(side=64)

    class Any(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.quarters(self.stem(x)))

    found = find(opened(Any(shown, 0.5, 0.5, size=64), size=None, usual=64), shown, Given(normalise="half"))
    assert found.wanted.size == 64
    told = " ".join(found.told)
    assert "the published size" in told and "not told apart by accuracy: 28, 32, 48 px; say --size" in told


def test_blue_first_is_found() -> None:
    shown = pictures()
    found = find(opened(Nearest(shown, 0.5, 0.5, reverse=True)), shown)
    assert found.wanted.reverse
    assert found.way.accuracy == 1


def through(function: Any, shown: Pictures) -> nn.Module:
    class Then(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return function(super().forward(x))

    return Then(shown, 0.5, 0.5)


@pytest.mark.parametrize(
    ("output", "function"),
    [
        ("logits", lambda z: z),
        ("probabilities", lambda z: z.softmax(dim=1)),
        ("log-probabilities", lambda z: z.log_softmax(dim=1)),
        ("sigmoid", lambda z: z.sigmoid()),
    ],
)
def test_what_comes_out_is_told_apart_and_undone(output: str, function: Any) -> None:
    shown = pictures()
    found = find(opened(through(function, shown)), shown, Given(normalise="half"))
    assert found.wanted.output == output
    x = shown.at(32, 3).float() / 255
    model = assemble(opened(through(function, shown)), found.wanted, (3, 32, 32))
    plain = assemble(opened(Nearest(shown, 0.5, 0.5)), replace(found.wanted, output="logits"), (3, 32, 32))
    if output == "sigmoid":
        assert torch.equal(model(x).argmax(1), plain(x).argmax(1))
        return
    torch.testing.assert_close(model(x).softmax(1), plain(x).softmax(1), atol=1e-5, rtol=0)


def test_as_logits_inverts() -> None:
    z = torch.tensor([[2.0, -1.0, 0.5]])
    torch.testing.assert_close(as_logits(z.softmax(1), "probabilities").softmax(1), z.softmax(1))
    torch.testing.assert_close(as_logits(z.sigmoid(), "sigmoid"), z, atol=1e-5, rtol=0)
    assert as_logits(torch.tensor([[0.0, 1.0]]), "probabilities").isfinite().all()


def test_natural_order_is_found_where_alphabetical_is_wrong() -> None:
    names = ("p1", "p10", "p11", "p2", "p3", "p4")  # folders, as they are sorted
    shown = pictures(names=names)
    net = Nearest(shown, 0.5, 0.5)
    natural = [0, 3, 4, 5, 1, 2]  # outputs p1 p2 p3 p4 p10 p11
    net.head.weight.data, net.head.bias.data = net.head.weight.data[natural], net.head.bias.data[natural]
    found = find(opened(net), shown, Given(normalise="half"))
    assert found.way.order == "folders in natural order (2 before 10)"
    assert found.way.accuracy == 1
    logits = assemble(opened(net), found.wanted, (3, 32, 32))(shown.at(32, 3).float() / 255)
    assert torch.equal(logits.argmax(1), shown.labels)


def shuffled(shown: Pictures) -> tuple[Nearest, list[int]]:
    net = Nearest(shown, 0.5, 0.5)
    order = list(range(len(NAMES)))
    random.Random(3).shuffle(order)
    net.head.weight.data, net.head.bias.data = net.head.weight.data[order], net.head.bias.data[order]
    return net, order


def test_an_order_that_nobody_would_guess_is_diagnosed_and_may_be_given_or_accepted() -> None:
    shown = pictures()
    net, order = shuffled(shown)
    with pytest.raises(UserError, match=r"one output is each person's own.*--classes matched"):
        find(opened(net), shown, Given(normalise="half"))
    names = tuple(NAMES[place] for place in order)
    assert find(opened(net), shown, Given(normalise="half", classes=names)).way.accuracy == 1
    assert find(opened(net), shown, Given(normalise="half", matched=True)).way.accuracy == 1
    assert find(opened(net, classes=names), shown, Given(normalise="half")).way.order.startswith("by the names")


def test_fewer_people_than_classes_needs_names_and_keeps_the_others_behind() -> None:
    shown = pictures()
    few = Pictures(
        lambda size, channels: shown.at(size, channels)[shown.labels < 4],
        shown.labels[shown.labels < 4],
        NAMES[:4],
        shown.learnt[shown.labels < 4],
    )
    net = Nearest(shown, 0.5, 0.5)
    with pytest.raises(UserError, match="6 classes and the folder has 4 people; say which is which with --classes"):
        find(opened(net), few)
    found = find(opened(net), few, Given(normalise="half", classes=NAMES))
    assert found.way.accuracy == 1
    assert found.wanted.order == (0, 1, 2, 3, 4, 5)
    assert "it knows 2 classes besides" in " ".join(found.notes)
    with pytest.raises(UserError, match="does not name 1 of the folder's people \\('p3'\\)"):
        find(opened(net), few, Given(classes=("p0", "p1", "p2", "x", "y", "z")))


def test_more_people_than_classes_is_refused() -> None:
    net = Nearest(pictures(names=NAMES[:4]), 0.5, 0.5)
    with pytest.raises(UserError, match="answers 4 numbers and the folder has 6 people"):
        find(opened(net), pictures())


def test_an_untrained_network_is_refused_with_what_was_seen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    net[-1].bias.data[2] += 100
    with pytest.raises(UserError, match=r"no way of asking the model fits.*one class to 100% of them"):
        find(opened(net), pictures())


def test_dropout_that_stays_on_is_noticed() -> None:
    shown = pictures()
    net = through(lambda z: F.dropout(z, 0.3, training=True), shown)
    assert "its answers are random" in " ".join(find(opened(net), shown, Given(normalise="half")).notes)


def test_batch_norms_left_in_train_mode_are_refused() -> None:
    shown = pictures()

    class Batch(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return 3 * (z - z.mean(dim=0)) / (z.std(dim=0, unbiased=False) + 1e-5)

    with pytest.raises(UserError, match=r"otherwise alone than among others.*model.eval"):
        find(opened(Batch(shown, 0.5, 0.5)), shown, Given(normalise="half"))


def test_a_model_without_gradients_is_a_black_box() -> None:
    shown = pictures()
    found = find(opened(through(lambda z: z.detach(), shown)), shown, Given(normalise="half"))
    assert found.grants is Access.BLACK_BOX
    assert "no gradient flows" in " ".join(found.notes)


def test_an_embedder_is_identified_by_a_gallery() -> None:
    shown = pictures()

    class Embedder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(F.adaptive_avg_pool2d(x, 2).flatten(1) - 0.5, dim=1)

    found = find(opened(Embedder()), shown)
    assert found.gallery
    assert found.way.accuracy > 0.9
    x = shown.at(32, 3).float() / 255
    raw = Embedder()((x - found.wanted.mean[0]) / found.wanted.std[0])
    gallery = Gallery.of(raw, shown.labels, len(NAMES))
    model = assemble(opened(Embedder()), found.wanted, (3, 32, 32), gallery)
    unit = F.normalize(torch.stack([F.normalize(raw[shown.labels == k], dim=1).sum(0) for k in range(6)]), dim=1)
    torch.testing.assert_close(model.features(x).softmax(1).shape, torch.Size([48, 12]))
    assert model(x).shape == (48, 6)
    torch.testing.assert_close(gallery.templates, unit)


def test_grey_models_get_the_luma_of_colour_images() -> None:
    wanted = Wanted(32, 1, False, False, False, (0.0,), (1.0,), "logits", (0, 1))

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (1, 32, 32)
            return torch.cat([x.mean(dim=(2, 3)), -x.mean(dim=(2, 3))], dim=1)

    x = torch.rand(2, 3, 32, 32)
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1).mean(dim=(1, 2))
    torch.testing.assert_close(assemble(opened(Mean()), wanted, (3, 32, 32))(x)[:, 0], luma, atol=1e-5, rtol=0)


def test_the_cut_before_the_last_layer_changes_nothing() -> None:
    net = Plain(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)))
    x = torch.rand(4, 3, 2, 2)
    halves = cut(net, x)
    assert halves is not None
    trunk, last = halves
    torch.testing.assert_close(last(trunk(x)), net(x))
    assert trunk(x).shape == (4, 5)
    assert cut(Plain(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1))), x) is None


@pytest.mark.parametrize("text", ["imagenett", "0.5", "0.5/0", "a/b", "0.5,0.5/0.5,0.5", "nan/1"])
def test_a_normalisation_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--normalise"):
        normalisation(text)


def test_pictures_stay_where_they_are(tmp_path: Path) -> None:
    """The sample is every person's first pictures, the last of them held out."""
    from drawn import tree

    from mibench.experiments.audit import pictures as sampled

    private, _ = tree(tmp_path, private=3, public=1, each=5, size=16)
    shown = sampled(private, most=9)
    assert shown.names == ("thing000", "thing001", "thing002")
    assert shown.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert shown.learnt.tolist() == [True, True, False] * 3
