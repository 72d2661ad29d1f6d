"""Are the numbers right on this machine? Closed forms, conventions and parity with other packages, in seconds.

Each check computes one number with mibench's own metrics, on the device and in the precision that a run would use, and
compares it with what is known: a value worked out by hand, another package's, or how many inputs must be refused. It
passes if |measured - expected| <= tolerance max(1, |expected|).
"""

import json
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from io import StringIO
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from mibench import core, models, training
from mibench.core import augment
from mibench.metrics import accuracy, facenet_distance, fid, inception, inputs, kid, knn, prdc
from mibench.runtime import engine
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise
from mibench.stats import intervals as statistics

__all__ = ["CHECKS", "OPTIONAL", "Measured", "Result", "examine", "run", "table"]

OPTIONAL = ("prdc", "sklearn", "torch_fidelity")
"""Packages that some checks compare with; where one is not installed its checks say so and do not fail."""


class Measured(NamedTuple):
    """What should come out, what did, and how far they may be apart, as a share of the larger of 1 and expected."""

    expected: float
    measured: float
    tolerance: float = 0.0


@dataclass(frozen=True)
class Result:
    """One check: its name, what it says, what came out, and why if nothing did."""

    check: str
    about: str
    expected: float | None
    measured: float | None
    tolerance: float | None
    verdict: Literal["ok", "failed", "not installed"]
    why: str = ""


# --- what checks are made of ----------------------------------------------------------------------------------------


class _Seen(nn.Module):
    """Stands in for a network and remembers what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.images = width, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.images = x.detach().cpu()
        return x.new_zeros(len(x), self.width)


def _shown(judge: type[nn.Module], width: int, x: Tensor) -> Tensor:
    """What a judging model hands to the network inside it, which need not be built for that."""
    model = judge.__new__(judge)
    nn.Module.__init__(model)
    model.net = _Seen(width)
    model(x)
    return model.net.images


def _place(at: engine.Engine) -> torch.device:
    """Where metrics are taken: they need float64."""
    return at.device if at.device.type != "mps" else torch.device("cpu")


def _normal(at: engine.Engine, seed: int, *shape: int) -> Tensor:
    """The same normal numbers on every device, in float64."""
    return Noise(seed, torch.arange(shape[0])).normal(*shape[1:]).double().to(_place(at))


def _numbers(at: engine.Engine, *values: float | int) -> Tensor:
    """Features of one dimension."""
    return torch.tensor(values, dtype=torch.float64, device=_place(at))[:, None]


def _labels(at: engine.Engine, *values: int) -> Tensor:
    return torch.tensor(values, device=_place(at))


def _pair(at: engine.Engine) -> tuple[Tensor, Tensor]:
    """Real and generated features that overlap in part."""
    return _normal(at, 1, 120, 16), 0.9 * _normal(at, 2, 90, 16) + 0.3


def _people(at: engine.Engine) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of reconstructions, and of references."""
    y, z = torch.arange(30, device=_place(at)) % 5, torch.arange(40, device=_place(at)) % 5
    return _normal(at, 3, 30, 8), y, _normal(at, 4, 40, 8), z


def _refused(metric: Callable[[Any], Any], given: list[Any]) -> int:
    """For how many of the inputs the metric gives no number."""
    count = 0
    for one in given:
        try:
            metric(one)
        except (UserError, ValueError):
            count += 1
    return count


def _host(features: Tensor) -> Any:
    return features.cpu().numpy()


# --- accuracy -------------------------------------------------------------------------------------------------------


def constant_model_never_hits(at: engine.Engine) -> Measured:
    """An evaluation model that gives everyone the same score recognises nobody: ties count against the attack."""
    labels = _labels(at, *range(8))
    return Measured(0.0, float(accuracy.top_k(torch.zeros(8, 8, device=labels.device), labels, 1).double().mean()))


def open_set_hit_beats_strangers(at: engine.Engine) -> Measured:
    """Open-set: of two images that a private class wins among its own kind, one is taken for someone else."""
    logits = torch.tensor([[3.0, 1.0, 9.0], [3.0, 1.0, 2.0]], device=_place(at))
    return Measured(0.5, float(accuracy.top_k(logits, _labels(at, 0, 0), 1).double().mean()))


def closed_set_hit_ignores_strangers(at: engine.Engine) -> Measured:
    """Closed-set: the same two images are both hits."""
    logits = accuracy.closed_set(torch.tensor([[3.0, 1.0, 9.0], [3.0, 1.0, 2.0]], device=_place(at)), 2)
    return Measured(1.0, float(accuracy.top_k(logits, _labels(at, 0, 0), 1).double().mean()))


def accuracy_of_scikit_learn(at: engine.Engine) -> Measured:
    """Top-2 accuracy of random logits is scikit-learn's."""
    logits, labels = _normal(at, 5, 200, 6), torch.arange(200, device=_place(at)) % 6
    wanted = import_module("sklearn.metrics").top_k_accuracy_score(_host(labels), _host(logits), k=2)
    return Measured(float(wanted), float(accuracy.top_k(logits, labels, 2).double().mean()), 1e-9)


# --- distances to the nearest ---------------------------------------------------------------------------------------


def knn_is_squared_and_within_the_label(at: engine.Engine) -> Measured:
    """A point at (3, 4) of the same person counts 25; a nearer one of somebody else does not count."""
    g = torch.tensor([[0.1, 0.0], [3.0, 4.0]], dtype=torch.float64, device=_place(at))
    return Measured(25.0, float(knn.knn_distance(torch.zeros_like(g[:1]), _labels(at, 1), g, _labels(at, 0, 1))[0]))


def knn_takes_reconstructions_first(at: engine.Engine) -> Measured:
    """Each reconstruction looks for its nearest real image, not the other way round: mean of 1 and 81."""
    distances = knn.knn_distance(_numbers(at, 0, 10), _labels(at, 0, 0), _numbers(at, 1), _labels(at, 0))
    return Measured(41.0, float(distances.mean()))


def knn_by_brute_force(at: engine.Engine) -> Measured:
    """The mean over all reconstructions is that of two plain loops."""
    f, y, g, z = _people(at)
    a, b = _host(f), _host(g)
    wanted = [min(float(((a[i] - b[j]) ** 2).sum()) for j in range(len(b)) if z[j] == y[i]) for i in range(len(a))]
    return Measured(float(np.mean(wanted)), float(knn.knn_distance(f, y, g, z).mean()), 1e-9)


def knn_of_scikit_learn(at: engine.Engine) -> Measured:
    """The mean over one person's reconstructions is that of scikit-learn's nearest neighbours, squared."""
    f, y, g, z = _people(at)
    search = import_module("sklearn.neighbors").NearestNeighbors(n_neighbors=1).fit(_host(g[z == 2]))
    near, _ = search.kneighbors(_host(f[y == 2]))
    distances = knn.knn_distance(f[y == 2], y[y == 2], g, z)
    return Measured(float((near**2).mean()), float(distances.mean()), 1e-5)


def leave_one_out_skips_the_image_itself(at: engine.Engine) -> Measured:
    """Real images at 0, 1 and 5 are 1, 1 and 16 from their nearest other one; with themselves all would be 0."""
    return Measured(6.0, float(knn.leave_one_out(_numbers(at, 0, 1, 5), _labels(at, 0, 0, 0)).mean()))


# --- distances between sets -----------------------------------------------------------------------------------------


def fid_covariance_is_unbiased(at: engine.Engine) -> Measured:
    """Means 1 and 2, variances 2 and 8 over n - 1: 1 + 2 + 8 - 2 sqrt(16) = 3; over n it would be 2."""
    return Measured(3.0, fid.frechet_distance(_numbers(at, 0, 2), _numbers(at, 0, 4)), 1e-9)


def fid_of_gaussians(at: engine.Engine) -> Measured:
    """|m|^2 + sum (a - b)^2 for samples whose means are 0 and m, whose covariances are diag(a^2) and diag(b^2)."""

    def sample(seed: int, n: int, mean: Tensor, spread: Tensor) -> Tensor:
        x = _normal(at, seed, n, 4).cpu()
        white = torch.linalg.qr(x - x.mean(dim=0)).Q * math.sqrt(n - 1)
        return (white * spread + mean).to(_place(at))

    a, b, m = (torch.tensor(v).double() for v in ([1.0, 2.0, 0.5, 4.0], [3.0, 0.25, 2.0, 1.0], [1.0, -2.0, 0.0, 0.5]))
    distance = fid.frechet_distance(sample(6, 40, torch.zeros_like(m), a), sample(7, 60, m, b))
    return Measured(float(m.square().sum() + (a - b).square().sum()), distance, 1e-6)


def fid_of_scipy(at: engine.Engine) -> Measured:
    """The textbook formula with SciPy's square root of the product of covariances."""
    real, generated = _pair(at)
    a, b = _host(real), _host(generated)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(scipy.linalg.sqrtm(ca @ cb)).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    return Measured(float(wanted), fid.frechet_distance(real, generated), 1e-5)


def fid_of_torch_fidelity(at: engine.Engine) -> Measured:
    """The number of torch-fidelity for the same features."""
    theirs = import_module("torch_fidelity.metric_fid")
    real, generated = _pair(at)
    known = [theirs.fid_features_to_statistics(side.cpu()) for side in (real, generated)]
    wanted = theirs.fid_statistics_to_metric(*known, verbose=False)[theirs.KEY_METRIC_FID]
    return Measured(float(wanted), fid.frechet_distance(real, generated), 1e-5)


def fid_never_answers_0_when_it_fails(at: engine.Engine) -> Measured:
    """One image, none, NaN, overflow: refused, all four."""
    good = _normal(at, 8, 10, 4)
    bad = [good[:1], good[:0], good.index_fill(0, torch.tensor([2], device=good.device), math.nan), 1e200 * good]
    return Measured(4.0, _refused(lambda one: fid.frechet_distance(good, one), bad))


def kid_by_hand(at: engine.Engine) -> Measured:
    """Pairs of {0, 1, 2} give 29/3, of {1, 2, 3} 434/3, across 597/9: 65/3, without an image's pair with itself."""
    return Measured(65 / 3, kid.kernel_distance(_numbers(at, 0, 1, 2), _numbers(at, 1, 2, 3)).value, 1e-9)


def kid_of_scikit_learn(at: engine.Engine) -> Measured:
    """The unbiased discrepancy with scikit-learn's polynomial kernel."""
    polynomial_kernel = import_module("sklearn.metrics.pairwise").polynomial_kernel
    real, generated = _pair(at)
    a, b = _host(real), _host(generated)
    xx, yy, xy = polynomial_kernel(a), polynomial_kernel(b), polynomial_kernel(a, b)
    n, m = len(a), len(b)
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return Measured(float(own - 2 * xy.mean()), kid.kernel_distance(real, generated).value, 1e-5)


# --- precision, recall, density, coverage ---------------------------------------------------------------------------


def _by_hand(at: engine.Engine) -> prdc.PRDC:
    """Real {0, 1, 3} with radii 1, 1, 2; generated {.5, 2, 100, 101} with radii 1.5, 1.5, 1, 1."""
    return prdc.prdc(_numbers(at, 0, 1, 3), _numbers(at, 0.5, 2, 100, 101), k=1)


def precision_takes_real_first(at: engine.Engine) -> Measured:
    """Of .5, 2, 100, 101 the first two lie in a ball of the real images 0, 1, 3; the other way round it would be 1."""
    return Measured(0.5, _by_hand(at).precision)


def density_is_divided_by_the_generated(at: engine.Engine) -> Measured:
    """3 times a generated image lies in a real one's ball; over 4 generated images, not over 3 real ones."""
    return Measured(0.75, _by_hand(at).density)


def radius_skips_the_image_itself(at: engine.Engine) -> Measured:
    """Balls reach to the nearest other image and so cover all; with itself as the nearest, nothing is covered."""
    return Measured(1.0, _by_hand(at).coverage)


def prdc_of_the_package_prdc(at: engine.Engine) -> Measured:
    """The largest difference of the four numbers from those of the package `prdc`."""
    real, generated = _pair(at)
    wanted = import_module("prdc").compute_prdc(_host(real), _host(generated), nearest_k=5)
    scores = prdc.prdc(real, generated, k=5)._asdict()
    return Measured(0.0, max(abs(float(wanted[name]) - value) for name, value in scores.items()), 1e-5)


def prdc_refuses_few_images(at: engine.Engine) -> Measured:
    """5 neighbours among 5 images, among 1, and no neighbour at all: refused, all three."""
    good = _normal(at, 9, 12, 3)
    given = [(good[:5], 5), (good[:1], 5), (good, 0)]
    return Measured(3.0, _refused(lambda one: prdc.prdc(good, one[0], k=one[1]), given))


# --- images ---------------------------------------------------------------------------------------------------------


def images_outside_0_1_are_refused(at: engine.Engine) -> Measured:
    """[-1, 1], [0, 255] and NaN: refused, all three."""
    x = torch.linspace(0, 1, 48, device=at.device).reshape(1, 3, 4, 4)
    return Measured(3.0, _refused(lambda one: inputs.images("verify", one), [2 * x - 1, 255 * x, x / 0 * 0]))


def inception_sees_2x_minus_1(at: engine.Engine) -> Measured:
    """Black is -1 to the network of FID; images that were normalised before would give -3."""
    seen = _shown(inception.Inception, 2048, torch.zeros(1, 3, 8, 8, device=at.device))
    return Measured(-1.0, float(seen.min()), 1e-6)


def face_net_sees_its_own_scale(at: engine.Engine) -> Measured:
    """White is (255 - 127.5) / 128 to the face recogniser."""
    seen = _shown(facenet_distance.FaceNet, 512, torch.ones(1, 3, 8, 8, device=at.device))
    return Measured(127.5 / 128, float(seen.max()), 1e-6)


def stored_pixels_are_the_scored_ones(at: engine.Engine) -> Measured:
    """All 256 values of a pixel come back as they were stored."""
    stored = torch.arange(256, dtype=torch.uint8, device=at.device).reshape(1, 1, 16, 16)
    return Measured(256.0, float((core.to_uint8(core.to_float(stored)) == stored).sum()))


def each_image_gets_its_own_crop(at: engine.Engine) -> Measured:
    """Six equal images in one batch are cropped in six ways."""
    x = torch.linspace(0, 1, 192, device=at.device).reshape(1, 3, 8, 8).repeat(6, 1, 1, 1)
    cropped = augment.random_resized_crop(x, Noise(0, torch.arange(6, device=at.device)), (0.5, 1.0))
    return Measured(6.0, len(cropped.flatten(1).cpu().unique(dim=0)))


# --- statistics, randomness, networks -------------------------------------------------------------------------------


def interval_counts_people_not_images(at: engine.Engine) -> Measured:
    """No hit among 10 people of 5 images: the upper bound is 1 - .025^(1/10), as for 10 trials, not for 50."""
    labels = torch.arange(10, device=_place(at)).repeat_interleave(5)
    interval = statistics.proportion(torch.zeros(50, dtype=torch.bool, device=labels.device), labels)
    return Measured(1 - 0.025**0.1, interval.high, 1e-9)


def random_numbers_are_the_same_everywhere(at: engine.Engine) -> Measured:
    """The sum of 12 random integers below 2^16, on this device."""
    bits = Noise(7, torch.arange(4, device=at.device)).of("verify").bits(3)
    return Measured(462_270.0, float((bits & 0xFFFF).sum()))


def _network(at: engine.Engine) -> tuple[nn.Module, Tensor]:
    """A small untrained classifier on the CPU, and stored images for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("cnn", 10, (3, 32, 32)).requires_grad_(False).eval()
    u = Noise(10, torch.arange(12)).uniform(3, 32, 32)
    return model, core.to_uint8(u)


def _rounding(at: engine.Engine) -> float:
    """How far two ways to compute the same network may be apart; CUDA's convolutions keep 10 bits (TF32)."""
    return 0.05 if at.precision == "bf16" else 1e-4 if at.device.type == "cpu" else 5e-3


def batches_do_not_matter(at: engine.Engine) -> Measured:
    """Features of 12 images in one batch and in batches of 5: largest difference, as a share of the largest feature."""
    model, images = _network(at)
    model = at.place(model)
    whole, parts = (training.predict(model, images, at, batch)[1].cpu() for batch in (12, 5))
    return Measured(0.0, float((whole - parts).abs().max() / whole.abs().max()), _rounding(at))


def networks_are_precise_enough(at: engine.Engine) -> Measured:
    """Logits here against float64 on the CPU: largest difference, as a share of the largest logit."""
    model, images = _network(at)
    with torch.no_grad():
        features = model.double().trunk(model.prepare(images / 255).double())  # type: ignore[operator]
        wanted = model.head(features)  # type: ignore[operator]
    logits = training.predict(at.place(_network(at)[0]), images, at)[0].cpu().double()
    return Measured(0.0, float((logits - wanted).abs().max() / wanted.abs().max()), _rounding(at))


CHECKS: dict[str, Callable[[engine.Engine], Measured]] = {
    check.__name__: check
    for check in (
        constant_model_never_hits,
        open_set_hit_beats_strangers,
        closed_set_hit_ignores_strangers,
        accuracy_of_scikit_learn,
        knn_is_squared_and_within_the_label,
        knn_takes_reconstructions_first,
        knn_by_brute_force,
        knn_of_scikit_learn,
        leave_one_out_skips_the_image_itself,
        fid_covariance_is_unbiased,
        fid_of_gaussians,
        fid_of_scipy,
        fid_of_torch_fidelity,
        fid_never_answers_0_when_it_fails,
        kid_by_hand,
        kid_of_scikit_learn,
        precision_takes_real_first,
        density_is_divided_by_the_generated,
        radius_skips_the_image_itself,
        prdc_of_the_package_prdc,
        prdc_refuses_few_images,
        images_outside_0_1_are_refused,
        inception_sees_2x_minus_1,
        face_net_sees_its_own_scale,
        stored_pixels_are_the_scored_ones,
        each_image_gets_its_own_crop,
        interval_counts_people_not_images,
        random_numbers_are_the_same_everywhere,
        batches_do_not_matter,
        networks_are_precise_enough,
    )
}
"""Every check, by name."""


# --- running them ---------------------------------------------------------------------------------------------------


def run(at: engine.Engine) -> list[Result]:
    """Every check's result, in order; one that cannot be computed has failed, unless its package is not installed."""
    return [_one(name, check, at) for name, check in CHECKS.items()]


def _one(name: str, check: Callable[[engine.Engine], Measured], at: engine.Engine) -> Result:
    about = (check.__doc__ or "").strip()
    try:
        # Other packages print and warn; stdout is for the result.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            expected, measured, tolerance = check(at)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in OPTIONAL:
            why = f"{error.name.split('.')[0]} is not installed"
            return Result(name, about, None, None, None, "not installed", why)
        return Result(name, about, None, None, None, "failed", f"{type(error).__name__}: {error}")
    except Exception as error:  # a broken installation fails in any way it can
        first = (str(error).splitlines() or [""])[0]
        return Result(name, about, None, None, None, "failed", f"{type(error).__name__}: {first}")
    # NaN compares false, and so fails.
    passed = abs(measured - expected) <= tolerance * max(1.0, abs(expected))
    finite = math.isfinite(measured)
    why = "" if finite else f"measured {measured}"
    shown = float(measured) if finite else None
    return Result(name, about, float(expected), shown, tolerance, "ok" if passed else "failed", why)


def table(results: list[Result]) -> Any:
    """Check, expected, measured, verdict."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    shown.add_column("check", style="cyan", overflow="fold")
    for name in ("expected", "measured"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    colours = {"ok": "green", "failed": "bold red", "not installed": "dim"}
    for one in results:
        numbers = ("" if value is None else f"{value:.6g}" for value in (one.expected, one.measured))
        shown.add_row(one.check.replace("_", " "), *numbers, Text(one.verdict, colours[one.verdict]))
    return shown


def examine(device: str, precision: str, as_json: bool) -> bool:
    """Run the checks, print them, say whether none failed.

    Raises:
        UserError: A device or precision that is not there.
    """
    at = engine.resolve(device, precision)
    results = run(at)
    failed = [one for one in results if one.verdict == "failed"]
    if as_json:
        told = {
            "device": str(at.device),
            "precision": at.precision,
            "passed": not failed,
            "checks": [asdict(one) for one in results],
        }
        print(json.dumps(told, indent=1, allow_nan=False))
        return not failed
    from rich.text import Text

    from mibench.runtime.terminal import SafeConsole

    console = SafeConsole()
    console.print(table(results))
    absent = sum(one.verdict == "not installed" for one in results)
    console.print(
        f"{len(results) - len(failed) - absent} of {len(results)} checks passed on {at.device} in {at.precision}"
        + (f", {absent} had no package to compare with" if absent else "")
        + (f", {len(failed)} FAILED: do not trust numbers made on this machine" if failed else "")
    )
    for one in failed:
        console.print(Text.assemble((one.check.replace("_", " "), "red"), f": {one.about}"))
        if one.why:
            console.print(f"  {one.why}")
    return not failed
