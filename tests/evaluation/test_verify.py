"""`mibench verify`: every check passes here, a broken metric fails exactly the checks that speak of it."""

import importlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shell import command
from torch import Tensor
from torch.nn import functional as F

from mibench import core
from mibench.core import augment
from mibench.evaluation import verify
from mibench.metrics import accuracy, facenet_distance, fid, inception, inputs, kid, knn, prdc
from mibench.runtime import engine
from mibench.runtime.rng import Noise
from mibench.stats import intervals as statistics

CPU = engine.resolve("cpu", "fp32")


def failed(at: engine.Engine = CPU) -> set[str]:
    return {one.check for one in verify.run(at) if one.verdict == "failed"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_check_passes_on_the_cpu(precision: str) -> None:
    results = verify.run(engine.resolve("cpu", precision))
    assert [one.check for one in results] == list(verify.CHECKS) and len(results) >= 30
    for one in results:
        assert one.about and "\n" not in one.about and one.about.endswith(".")
        assert one.verdict == "ok" or (one.verdict == "not installed" and "torch_fidelity" in one.why), one


def test_results_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    assert verify.run(CPU) == verify.run(CPU)
    assert torch.equal(torch.get_rng_state(), before)


# --- mutants: the mistakes of the field, put into mibench ------------------------------------------------------------


def biased(features: Tensor) -> fid.Statistics:
    """A covariance over n."""
    x = features.double()
    if len(x) < 2 or not bool(torch.isfinite(x).all()):
        raise ValueError("fid")
    return fid.Statistics(x.mean(0), (x - x.mean(0)) / len(x) ** 0.5)


def zero_on_failure(real: Tensor, generated: Tensor, inner: Any = fid.frechet_distance) -> float:
    """Trap 2."""
    try:
        return inner(real, generated)
    except ValueError:
        return 0.0


def over_real(real: Tensor, generated: Tensor, k: int = 5, inner: Any = prdc.prdc) -> prdc.PRDC:
    """Density over k times the real images, as Plug & Play Attacks has it."""
    found = inner(real, generated, k)
    return found._replace(density=found.density * len(generated) / len(real))


def swapped(real: Tensor, generated: Tensor, k: int = 5, inner: Any = prdc.prdc) -> prdc.PRDC:
    """Generated before real, where only the names of precision and recall move."""
    found = inner(real, generated, k)
    return found._replace(precision=found.recall, recall=found.precision)


def with_itself(features: Tensor, k: int = 5, inner: Any = prdc.manifold) -> prdc.Manifold:
    """k neighbours of which the image itself is one."""
    return inner(features, k)._replace(radii=torch.cdist(features, features).kthvalue(k, dim=1).values)


def few_neighbours(features: Tensor, k: int = 5, inner: Any = prdc.manifold) -> prdc.Manifold:
    """As many neighbours as there are."""
    return inner(features if len(features) > 1 else features.repeat(2, 1), max(1, min(k, len(features) - 1)))


def unsquared(*given: Tensor, inner: Any = knn.knn_distance) -> Tensor:
    return inner(*given).sqrt()


def of_logits(f: Tensor, y: Tensor, g: Tensor, z: Tensor, inner: Any = knn.knn_distance) -> Tensor:
    """Real images look for their nearest reconstruction; where that cannot be, as it should be."""
    return inner(g, z, f, y) if set(z.tolist()) <= set(y.tolist()) else inner(f, y, g, z)


def own_copy(g: Tensor, z: Tensor) -> Tensor:
    return knn.knn_distance(g, z, g, z)


def argmax_hits(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Ties go to the first classes."""
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return (order == labels[:, None]).any(dim=1)


def over_images(hits: Tensor, clusters: Tensor, inner: Any = statistics.proportion) -> statistics.Interval:
    return inner(hits, torch.arange(len(hits)))


def any_range(metric: str, x: Tensor) -> Tensor:
    return x.float().expand(-1, 3, -1, -1)


def stretched(images: Tensor) -> Tensor:
    """Per-image contrast, as torchvision's `normalize=True` writes it."""
    low, high = images.amin(), images.amax()
    return ((images - low) / (high - low) * 254).round().to(torch.uint8)


def one_crop(x: Tensor, noise: Noise, scale: Any, inner: Any = augment.random_resized_crop) -> Tensor:
    """The same numbers for the whole batch."""
    return inner(x, Noise(noise.seed, torch.zeros_like(noise.keys), noise.purpose), scale)


def plain_bits(self: Noise, count: int) -> Tensor:
    return torch.randint(1 << 62, (len(self.keys), count), generator=torch.Generator().manual_seed(self.seed))


def with_pairs_of_itself(x: Tensor, rows: Any = kid._row_sums) -> Tensor:
    return rows(x, x)[0]


def first_batch_only(model: Any, images: Tensor, at: engine.Engine, batch: int = 256) -> tuple[Tensor, Tensor]:
    """The batch's own mean is taken off: what is near one image depends on the others."""
    found = [model.features(at.images(chunk)) for chunk in images.split(batch)]
    features = torch.cat([part - part.mean(0) for part in found])
    return model.head(torch.cat(found)), features


def low_precision(model: Any, images: Tensor, at: engine.Engine, batch: int = 256) -> tuple[Tensor, Tensor]:
    features = model.features(at.images(images))
    return model.head(features.to(torch.float8_e4m3fn).float()), features


def normalised_twice(self: Any, images: Tensor) -> Tensor:
    x = inputs.images("inception", images)
    return self.net(2 * (2 * x - 1) - 1)


def unit_range(self: Any, images: Tensor) -> Tensor:
    return self.net(F.interpolate(inputs.images("facenet", images), size=(160, 160)))


MUTANTS: list[tuple[Any, str, Callable[..., Any], set[str]]] = [
    (fid, "statistics", biased, {"fid_covariance_is_unbiased", "fid_of_gaussians", "fid_of_scipy"}),
    (fid, "frechet_distance", zero_on_failure, {"fid_never_answers_0_when_it_fails"}),
    (kid, "_others", with_pairs_of_itself, {"kid_by_hand", "kid_of_scikit_learn"}),
    (prdc, "prdc", over_real, {"density_is_divided_by_the_generated", "prdc_of_the_package_prdc"}),
    (prdc, "prdc", swapped, {"precision_takes_real_first", "prdc_of_the_package_prdc"}),
    (
        prdc,
        "manifold",
        with_itself,
        {
            "precision_takes_real_first",
            "density_is_divided_by_the_generated",
            "radius_skips_the_image_itself",
            "prdc_of_the_package_prdc",
        },
    ),
    (prdc, "manifold", few_neighbours, {"prdc_refuses_few_images"}),
    (
        knn,
        "knn_distance",
        unsquared,
        {
            "knn_is_squared_and_within_the_label",
            "knn_takes_reconstructions_first",
            "knn_by_brute_force",
            "knn_of_scikit_learn",
        },
    ),
    (knn, "knn_distance", of_logits, {"knn_takes_reconstructions_first", "knn_by_brute_force"}),
    (knn, "leave_one_out", own_copy, {"leave_one_out_skips_the_image_itself"}),
    (accuracy, "top_k", argmax_hits, {"constant_model_never_hits"}),
    (accuracy, "closed_set", lambda logits, classes: logits, {"closed_set_hit_ignores_strangers"}),
    (statistics, "proportion", over_images, {"interval_counts_people_not_images"}),
    (inputs, "images", any_range, {"images_outside_0_1_are_refused"}),
    (inception.Inception, "forward", normalised_twice, {"inception_sees_2x_minus_1"}),
    (facenet_distance.FaceNet, "forward", unit_range, {"face_net_sees_its_own_scale"}),
    (core, "to_uint8", stretched, {"stored_pixels_are_the_scored_ones"}),
    (augment, "random_resized_crop", one_crop, {"each_image_gets_its_own_crop"}),
    (verify.training, "predict", first_batch_only, {"batches_do_not_matter"}),
    (verify.training, "predict", low_precision, {"networks_are_precise_enough"}),
]


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "expected"), MUTANTS, ids=[mutant[2].__name__.strip("<>") for mutant in MUTANTS]
)
def test_a_mutant_fails_exactly_the_checks_that_speak_of_it(
    owner: Any, name: str, mutant: Callable[..., Any], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    assert failed() == expected


def test_mutants_reach_every_check_but_those_of_randomness_and_other_packages() -> None:
    reached = set().union(*(expected for *_, expected in MUTANTS))
    assert set(verify.CHECKS) - reached == {
        "accuracy_of_scikit_learn",
        "fid_of_torch_fidelity",
        "open_set_hit_beats_strangers",
        "random_numbers_are_the_same_everywhere",
    }


def test_closed_set_scored_as_open_set_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = accuracy.top_k
    monkeypatch.setattr(accuracy, "top_k", lambda logits, labels, k=1: whole(logits[:, :2], labels, k))
    assert "open_set_hit_beats_strangers" in failed()


def test_a_generator_with_state_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "bits", plain_bits)
    assert "random_numbers_are_the_same_everywhere" in failed()


# --- what is not a number --------------------------------------------------------------------------------------------


def test_a_metric_that_breaks_or_gives_nan_has_failed_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "leave_one_out", lambda g, z: g.new_full((len(g),), math.nan))
    monkeypatch.setattr(kid, "kernel_distance", lambda real, generated: 1 / 0)
    found = {one.check: one for one in verify.run(CPU) if one.verdict == "failed"}
    assert set(found) == {"leave_one_out_skips_the_image_itself", "kid_by_hand", "kid_of_scikit_learn"}
    assert found["leave_one_out_skips_the_image_itself"].why == "measured nan"
    assert found["kid_by_hand"].why == "ZeroDivisionError: division by zero"
    assert found["kid_by_hand"].measured is None is found["leave_one_out_skips_the_image_itself"].measured


def test_packages_that_are_not_installed_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name.split(".")[0] in verify.OPTIONAL:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, package)

    monkeypatch.setattr(verify, "import_module", absent)
    results = {one.check: one for one in verify.run(CPU)}
    lacking = {name for name, one in results.items() if one.verdict == "not installed"}
    assert lacking == {
        "accuracy_of_scikit_learn",
        "knn_of_scikit_learn",
        "kid_of_scikit_learn",
        "prdc_of_the_package_prdc",
        "fid_of_torch_fidelity",
    }
    assert results["prdc_of_the_package_prdc"].why == "prdc is not installed" and failed() == set()


def test_a_package_that_mibench_needs_is_not_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(verify.scipy.linalg, "sqrtm", broken)
    assert failed() == {"fid_of_scipy"}


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_exits_with_0() -> None:
    told = command("verify", "--device", "cpu", "--precision", "fp32")
    assert told.code == 0 and told.err == ""
    lines = told.out.splitlines()
    assert lines[0].split() == ["check", "expected", "measured", "verdict"]
    assert any(line.split()[-3:] == ["3", "3", "ok"] and "fid covariance" in line for line in lines)
    assert any("checks passed on cpu in fp32" in line for line in lines)


def test_the_command_prints_only_json_and_exits_with_1_where_a_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.loads(command("verify", "--device", "cpu", "--json").out)
    assert good["passed"] and good["device"] == "cpu" and [one["check"] for one in good["checks"]] == [*verify.CHECKS]
    monkeypatch.setattr(fid, "frechet_distance", zero_on_failure)
    told = command("verify", "--device", "cpu", "--json")
    found = json.loads(told.out)
    assert told.code == 1 and not found["passed"]
    assert [one["check"] for one in found["checks"] if one["verdict"] == "failed"] == [
        "fid_never_answers_0_when_it_fails"
    ]
    shown = command("verify", "--device", "cpu")
    words = " ".join(shown.out.split())
    assert shown.code == 1 and "1 FAILED" in words and "One image, none, NaN, overflow: refused, all four." in words


def test_a_device_that_is_not_there_is_told_in_one_line() -> None:
    assert "unknown device 'tpu'" in command("verify", "--device", "tpu").error


def test_checks_print_nothing_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    verify.run(CPU)  # the package prdc prints how many images it got
    assert capfd.readouterr() == ("", "")
