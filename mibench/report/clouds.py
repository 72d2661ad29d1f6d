"""The paper's feature-space analysis of one inversion: its features and the numbers of them.

In the target's penultimate features: the private training images, the same images erased as in training, and the
reconstructions. A target whose defenses do not change training images is shown with the erasing of `re` at its
defaults, which it never saw. All numbers are also taken of real images that the target never saw, as many as there are
reconstructions: what an image of the person looks like that is not a training image.

Features are divided by one number, so that the private images' variance (summed over dimensions) is 1: otherwise the
distances of two targets could not be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mibench.core import Dataset, Defense, Split, to_uint8
from mibench.defenses.re import RandomErasing
from mibench.metrics import feature_space as space
from mibench.metrics.fid import frechet_distance
from mibench.models.fold import fold
from mibench.report.naming import defense_label
from mibench.runs import Run
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise
from mibench.stages import artifacts
from mibench.stats.intervals import clustered_interval
from mibench.training import predict, streams

__all__ = ["DRAWS", "Clouds", "erase", "erasing", "extract", "groups", "measure"]

DRAWS = 4
"""Erased versions of each private image. Numbers are means over draws, each of as many images as the private ones."""

# --- features -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clouds:
    """Features of the attacked identities, on the CPU, in units of the private images' spread."""

    private: Float[Tensor, "m d"]
    erased: Float[Tensor, "draws m d"]
    private_labels: Int64[Tensor, " m"]
    reconstructed: Float[Tensor, "n d"]
    reconstructed_labels: Int64[Tensor, " n"]
    unseen: Float[Tensor, "u d"]
    unseen_labels: Int64[Tensor, " u"]
    margins: Float64[Tensor, " m"] | None
    """Of the private images, among all classes of the target; None where a class has a single image."""


def erasing(target: Run) -> tuple[list[Defense], str, bool]:
    """What erases, in words, and whether the target was trained with it."""
    stack = artifacts.defenses(target)
    changes = [(type(one).before, type(one).transform) != (Defense.before, Defense.transform) for one in stack]
    if any(changes):
        return stack, defense_label(target.spec), True
    plain = RandomErasing()
    return [plain], f"re a_e={plain.a_e:g}", False


def erase(split: Split, index: Int64[Tensor, " m"], target: Run, draw: int, engine: Engine) -> Split:
    """Training images as epoch `draw` showed them, but for the base augmentation; the target's own random numbers."""
    stack, _, _ = erasing(target)
    seeds = streams(target.spec["seed"], stack)
    parts = []
    for chosen in index.split(256):
        x = engine.images(split.images[chosen])
        for hook in ("before", "transform"):
            for defense, seed in zip(stack, seeds, strict=True):
                x = getattr(defense, hook)(x, Noise(seed, chosen.to(engine.device)).of(draw).of(hook))
        parts.append(to_uint8(x).cpu())
    return Split(torch.cat(parts), split.labels[index])


def first(labels: Int64[Tensor, " n"], wanted: Int64[Tensor, " k"], count: int) -> Int64[Tensor, " u"]:
    """Places of the first `count` images of each wanted label."""
    return torch.cat([(labels == label).nonzero()[:count, 0] for label in wanted])


def extract(run: Run, data: Dataset, engine: Engine, reporter: Reporter) -> Clouds:
    """All features of an inversion, in float32: in bf16 near neighbours would tie.

    Raises:
        UserError: If files are missing or damaged, or the data have changed.
    """
    target = run.target
    tensors, _ = artifacts.read_tensors(run.path / "images.safetensors", "reconstructions")
    images, labels = tensors["images"], tensors["labels"]
    if "missing" in tensors:  # no image, no features
        made = ~torch.isin(labels, tensors["missing"])
        images, labels = images[made], labels[made]
    attacked, counts = labels.unique(return_counts=True)
    own = torch.isin(data.train.labels, attacked).nonzero()[:, 0]
    unseen = first(data.heldout.labels, attacked, int(counts.min()))
    network = engine.place(fold(artifacts.load_classifier(target, data)))
    with reporter.task(f"features of {run.name} on {target.name}", DRAWS + 3, "sets") as task:

        def features(images: Tensor) -> Tensor:
            _, penultimate = predict(network, images, engine)
            task.advance()
            return penultimate.cpu()

        everyone = features(data.train.images)
        # The trace of the covariance, summed over dimensions: the features' own scale.
        scale = everyone[own].double().var(dim=0).sum().sqrt().float()
        if not scale > 0:
            raise UserError(f"{target.label} gives all private images the same features; it has not learnt")
        erased = [features(erase(data.train, own, target, draw, engine).images) for draw in range(DRAWS)]
        several = len(data.classes) > 1 and int(torch.bincount(data.train.labels).min()) > 1
        return Clouds(
            everyone[own] / scale,
            torch.stack(erased) / scale,
            data.train.labels[own],
            features(images) / scale,
            labels,
            features(data.heldout.images[unseen]) / scale,
            data.heldout.labels[unseen],
            space.margin(everyone / scale, data.train.labels)[own] if several else None,
        )


# --- numbers --------------------------------------------------------------------------------------------------------


def groups(labels: Int64[Tensor, " n"], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(identities projected together, those of them that are counted): every identity counts once, in a full group
    if there is one. The picture shows the first group."""
    everyone = labels.unique().tolist()
    for start in range(0, len(everyone), size):
        low = max(0, min(start, len(everyone) - size))
        yield everyone[low : low + size], everyone[start : start + size]


def measure(clouds: Clouds, size: int) -> dict[str, Any]:
    """All scalars, of the reconstructions and of unseen real images; null where there are too few images.

    What is counted in the plane is counted for every attacked identity, in the projection of its own group of `size`.
    """
    width = space.median_distance(clouds.private)
    report: dict[str, Any] = {
        "class_margin": None
        if clouds.margins is None
        else clustered_interval(clouds.margins, clouds.private_labels).as_json(),
        "identities": len(clouds.private_labels.unique()),
        "kernel_width": width,
        "private_images": len(clouds.private),
    }
    for name, x, labels in (
        ("reconstructions", clouds.reconstructed, clouds.reconstructed_labels),
        ("unseen", clouds.unseen, clouds.unseen_labels),
    ):
        nearer = [space.nearer_erased(x, labels, clouds.private, one, clouds.private_labels) for one in clouds.erased]
        report[name] = {
            "n": len(x),
            "nearest_is_erased": space.share(torch.stack(nearer), labels).as_json(),
            **_in_the_plane(clouds, x, labels, size),
        }
        for kind, references in (("private", [clouds.private]), ("erased", list(clouds.erased))):
            several = len(x) > 1
            report[name] |= {
                f"frechet_{kind}": fmean(frechet_distance(one, x) for one in references) if several else None,
                f"mmd_{kind}": fmean(space.discrepancy(one, x, width) for one in references) if several else None,
            }
    return report


def _in_the_plane(
    clouds: Clouds, x: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], size: int
) -> dict[str, dict[str, float | None] | None]:
    """How many images lie in the hull of their identity's private and erased images; how much of their own hull."""
    within: dict[str, list[Tensor]] = {"private": [], "erased": []}
    shared: dict[str, list[float]] = {"private": [], "erased": []}
    order, owners = [], []
    for together, counted in groups(clouds.private_labels, size):
        fitted = torch.isin(clouds.private_labels, torch.tensor(together))
        plane = space.projection(clouds.private[fitted], clouds.private_labels[fitted])
        for label in counted:
            mine, own = clouds.private_labels == label, labels == label
            points = plane(x[own])
            hulls = {
                "private": [space.hull(plane(clouds.private[mine]))],
                "erased": [space.hull(plane(one[mine])) for one in clouds.erased],
            }
            if any(each is None for several in hulls.values() for each in several):
                continue
            order.append(labels[own])
            outline = space.hull(points)
            if outline is not None:
                owners.append(label)
            for name, several in hulls.items():
                real = [each for each in several if each is not None]
                within[name].append(torch.stack([space.inside(points, each) for each in real]).double())
                if outline is not None:
                    shared[name].append(fmean(space.overlap(outline, each) for each in real))
    report: dict[str, dict[str, float | None] | None] = {}
    for name in within:
        report[f"inside_{name}"] = report[f"overlap_{name}"] = None
        if order:
            report[f"inside_{name}"] = space.share(torch.cat(within[name], dim=1), torch.cat(order)).as_json()
        if owners:
            values = torch.tensor(shared[name], dtype=torch.float64)
            report[f"overlap_{name}"] = clustered_interval(values, torch.tensor(owners)).as_json()
    return report
