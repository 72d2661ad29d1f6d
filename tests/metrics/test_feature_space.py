"""Laws of the feature-space analysis: closed forms, hand-made points and polygons."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import qmc
from worlds import colours, small_net

from mibench.defenses.re import RandomErasing
from mibench.metrics import feature_space as space
from mibench.metrics.fid import frechet_distance
from mibench.report import clouds
from mibench.runs import Run
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, fit


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def box(x: float, y: float, width: float = 1.0, height: float = 1.0) -> torch.Tensor:
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    return torch.tensor(corners, dtype=torch.float64)


# --- all dimensions


def test_frechet_distance_of_shifted_features_is_the_squared_shift() -> None:
    x, shift = normal(50, 6), torch.tensor([3.0, 0, 0, 4, 0, 0])
    assert frechet_distance(x, x + shift) == pytest.approx(25, rel=1e-5)


def test_the_width_is_the_median_over_pairs() -> None:
    x = normal(7, 3)
    pairs = sorted(float((x[i] - x[j]).double().norm()) for i in range(7) for j in range(i))
    assert space.median_distance(x) == pytest.approx(pairs[10])  # the middle of 21
    assert space.median_distance(5 * x) == pytest.approx(5 * pairs[10])


def naive(x: torch.Tensor, y: torch.Tensor, width: float) -> float:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-float((a.double() - b.double()).square().sum()) / (2 * width**2))

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_discrepancy_is_the_double_loop_far_from_the_origin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(9, 4), normal(7, 4, seed=1) + 0.5
    assert space.discrepancy(x, y, 1.3) == pytest.approx(naive(x, y, 1.3), abs=1e-12)
    assert space.discrepancy(x + 1024, y + 1024, 1.3) == pytest.approx(naive(x + 1024, y + 1024, 1.3), abs=1e-9)
    monkeypatch.setattr(space, "_CHUNK", 8)
    assert space.discrepancy(x, y, 1.3) == pytest.approx(naive(x, y, 1.3), abs=1e-12)


def test_discrepancy_of_one_distribution_is_zero_on_average_and_of_two_is_not() -> None:
    pairs = [(normal(10, 3, seed=k), normal(10, 3, seed=k + 500)) for k in range(200)]
    same = torch.tensor([space.discrepancy(x, y, 2.0) for x, y in pairs])
    assert float(same.min()) < 0 < float(same.max())
    assert abs(float(same.mean())) < 3 * float(same.std()) / 200**0.5
    # k(0, 0) = 1 and k far away = 0: the largest value there is.
    assert space.discrepancy(torch.zeros(5, 2), torch.full((4, 2), 100.0), 1.0) == pytest.approx(2.0)


def test_discrepancy_of_normals_is_the_closed_form() -> None:
    """E k = (1 + 2 / s^2)^(-d/2) exp(-|shift|^2 / (2 (s^2 + 2))) for x, y of unit variance."""
    s, shift, d = 1.5, 1.0, 2
    base = (1 + 2 / s**2) ** (-d / 2)
    wanted = 2 * base * (1 - math.exp(-(shift**2) / (2 * (s**2 + 2))))
    quasi = torch.from_numpy(qmc.MultivariateNormalQMC([0.0] * d, rng=3).random(2048))
    moved = torch.from_numpy(qmc.MultivariateNormalQMC([shift, 0.0], rng=4).random(2048))
    assert space.discrepancy(quasi, moved, s) == pytest.approx(wanted, abs=2e-3)


def test_nearest_neighbour_of_the_same_identity_by_hand() -> None:
    private = torch.tensor([[0.0, 0], [10, 0], [100, 0], [104, 0]])
    erased = torch.tensor([[4.0, 0], [30, 0], [102, 0], [90, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([[1.0, 0], [3.5, 0], [2, 0], [103, 0], [101.5, 0], [0, 0]])
    owner = torch.tensor([0, 0, 0, 1, 1, 1])
    # The last lies on a private image of identity 0 but belongs to 1, whose nearest is erased (at 90).
    found = space.nearer_erased(x, owner, private, erased, labels)
    assert found.tolist() == [0, 1, 0.5, 0.5, 1, 1]
    assert space.nearer_erased(x, owner, private, private, labels).tolist() == [0.5] * 6


def test_the_share_counts_ties_by_half_and_images_not_draws() -> None:
    values = torch.tensor([[0.0, 0.5, 1, 1], [0, 1, 1, 0]], dtype=torch.float64)
    found = space.share(values, torch.tensor([0, 0, 1, 1]))
    assert (found.value, found.n, found.clusters) == (pytest.approx(4.5 / 8), 4, 2)
    never = space.share(torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1]))
    assert never.value == never.low == 0 and never.high > 0.5  # two identities say little


def test_as_many_of_both_leaves_chance_at_one_half_and_more_erased_would_not() -> None:
    n, m = 300, 8
    labels, owner = torch.arange(n).repeat_interleave(m), torch.arange(n)
    x, private, erased = normal(n, 5), normal(n * m, 5, seed=1), normal(n * m, 5, seed=2)
    fair = space.share(space.nearer_erased(x, owner, private, erased, labels)[None], owner)
    assert fair.low < 0.5 < fair.high
    few = torch.arange(n * m) % m == 0  # one private image against eight erased ones, each compared m times
    rare = private[few].repeat_interleave(m, dim=0)
    assert space.share(space.nearer_erased(x, owner, rare, erased, labels)[None], owner).low > 0.8


def test_margin_by_hand() -> None:
    x = torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 4]])
    labels = torch.tensor([0, 0, 1, 1])
    # Class means (1, 0) and (10, 2); without itself each image's own class is the other image.
    wanted = [math.hypot(10, 2) - 2, math.hypot(8, 2) - 2, 9 - 4, math.hypot(9, 4) - 4]
    torch.testing.assert_close(space.margin(x, labels), torch.tensor(wanted, dtype=torch.float64))
    swapped = space.margin(x, torch.tensor([0, 1, 0, 1]))
    assert float(swapped.max()) < 0


def test_order_and_names_of_identities_do_not_matter() -> None:
    x, labels = normal(30, 6) + 0.1, torch.arange(30) % 3
    private, erased = normal(24, 6, seed=1), normal(24, 6, seed=2)
    owner = torch.arange(24) % 3
    mixed = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    other = torch.randperm(24, generator=torch.Generator().manual_seed(6))
    names = torch.tensor([7, 4, 9])
    assert space.median_distance(x[mixed]) == pytest.approx(space.median_distance(x))
    assert space.discrepancy(x[mixed], private[other], 2.0) == pytest.approx(space.discrepancy(x, private, 2.0))
    torch.testing.assert_close(space.margin(x[mixed], names[labels[mixed]]), space.margin(x, labels)[mixed])
    again = space.nearer_erased(x[mixed], names[labels[mixed]], private[other], erased[other], names[owner[other]])
    assert torch.equal(again, space.nearer_erased(x, labels, private, erased, owner)[mixed])
    one, two = space.projection(x, labels), space.projection(x[mixed], names[labels[mixed]])
    torch.testing.assert_close(one(x[mixed]), two(x[mixed]))
    square = normal(12, 2).double()
    assert space.area(space.hull(square)) == pytest.approx(space.area(space.hull(square.flip(0))))


# --- two dimensions


def test_overlap_of_known_polygons() -> None:
    one = box(0, 0)
    assert space.overlap(one, box(0.5, 0)) == pytest.approx(0.5)
    assert space.overlap(one, box(0.5, 0.5)) == pytest.approx(0.25)
    assert space.overlap(one, box(-1, -1, 3, 3)) == 1 and space.overlap(box(-1, -1, 3, 3), one) == pytest.approx(1 / 9)
    assert space.overlap(one, one) == pytest.approx(1)
    assert space.overlap(one, box(2, 0)) == 0 and space.overlap(one, box(1, 0)) == 0  # apart; sharing an edge
    # A unit square and itself turned by 45 degrees meet in a regular octagon of area 2 (sqrt 2 - 1).
    to_corner = math.sqrt(0.5) * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    turned = 0.5 + to_corner
    assert space.overlap(one, turned) == pytest.approx(2 * (math.sqrt(2) - 1))
    assert len(space.clip(one, turned)) == 8


def test_overlap_agrees_with_counting_points() -> None:
    a, b = space.hull(normal(9, 2, seed=3).double()), space.hull(normal(8, 2, seed=4).double() + 0.7)
    grid = torch.cartesian_prod(*[torch.linspace(-4, 4, 500, dtype=torch.float64)] * 2)
    within = space.inside(grid, a)
    assert space.overlap(a, b) == pytest.approx(float(space.inside(grid[within], b).double().mean()), abs=0.01)
    assert space.area(a) == pytest.approx(float(within.double().mean()) * 64, rel=0.02)


def test_hulls_need_three_points_not_on_a_line() -> None:
    line = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 3]], dtype=torch.float64)
    assert space.hull(line) is None and space.hull(line[:2]) is None
    points = torch.cat([box(0, 0), torch.tensor([[0.5, 0.5]], dtype=torch.float64)])
    found = space.hull(points)
    assert found is not None and len(found) == 4 and space.area(found) == pytest.approx(1)
    assert space.inside(points, found).all()  # corners and edges belong to it
    assert space.inside(torch.tensor([[1.0, 0.3], [1.01, 0.3]], dtype=torch.float64), found).tolist() == [True, False]


def test_the_plane_is_where_the_class_means_differ() -> None:
    """Means vary along e_0 and e_1 alone; the images vary most along e_2."""
    means = torch.zeros(4, 5)
    means[:, 0], means[:, 1] = torch.tensor([-4.0, 4, -4, 4]), torch.tensor([-2.0, -2, 2, 2])
    noise = normal(10, 5) * torch.tensor([0.1, 0.1, 20, 0.1, 0.1])
    noise = torch.cat([noise, -noise])  # leaves the means where they are
    x = (means[:, None] + noise).flatten(0, 1)
    found = space.projection(x, torch.arange(4).repeat_interleave(20))
    wanted = torch.zeros(5, 2, dtype=torch.float64)
    wanted[0, 0] = wanted[1, 1] = 1  # signs are fixed: positive
    torch.testing.assert_close(found.axes, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found(x), x[:, :2].double(), atol=1e-4, rtol=0)
    total = float(x.double().var(dim=0).sum())
    assert found.kept == pytest.approx(float(x[:, :2].double().var(dim=0).sum()) / total, rel=1e-4) and found.kept < 0.2


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes_leave_room_for_where_images_vary_most(classes: int) -> None:
    x = normal(40, 4) * torch.tensor([0.1, 5, 0.1, 1.0])
    x[:, 0] += 50 * (torch.arange(40) % classes)
    found = space.projection(x, torch.arange(40) % classes)
    torch.testing.assert_close(found.axes.T @ found.axes, torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=0)
    strongest = [0, 1] if classes == 2 else [1, 3]
    assert found.axes.abs().argmax(dim=0).tolist() == strongest


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="same features"):
        space.median_distance(torch.ones(5, 2))
    with pytest.raises(UserError, match="1 image"):
        space.median_distance(torch.ones(1, 2))
    with pytest.raises(UserError, match="span no plane"):
        space.projection(normal(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="give 2 of each"):
        space.discrepancy(normal(1, 2), normal(4, 2), 1.0)
    with pytest.raises(ValueError, match="give 2 of each"):
        space.discrepancy(normal(4, 2), normal(4, 2), math.nan)
    with pytest.raises(ValueError, match="NaN"):
        space.discrepancy(normal(4, 2) * math.nan, normal(4, 2), 1.0)
    with pytest.raises(ValueError, match="give 2 of 2"):
        space.margin(normal(3, 2), torch.tensor([0, 0, 1]))


# --- the analysis


def toy(found: torch.Tensor, owner: torch.Tensor) -> clouds.Clouds:
    """Three people at the corners of a triangle; erasing moves everyone by +1 in the first dimension."""
    labels = torch.arange(3).repeat_interleave(12)
    corners = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, 20, 0]])
    private = corners[labels] + normal(36, 3).clamp(-0.8, 0.8)
    erased = (private + torch.tensor([3.0, 0, 0])).expand(clouds.DRAWS, -1, -1).contiguous()
    unseen = corners[labels] + 0.5 * normal(36, 3, seed=9).clamp(-0.8, 0.8)
    return clouds.Clouds(private, erased, labels, found, owner, unseen, labels, space.margin(private, labels))


def test_reconstructions_among_the_erased_images_are_told_from_those_among_the_private_ones() -> None:
    plain = toy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    order = torch.arange(36).reshape(3, 12)[:, :5].flatten()
    owner = plain.private_labels[order]
    at_home = clouds.measure(toy(plain.private[order], owner), 6)
    moved = clouds.measure(toy(plain.erased[0][order], owner), 6)
    for report, near, far, share in ((at_home, "private", "erased", 0), (moved, "erased", "private", 1)):
        side = report["reconstructions"]
        assert side["nearest_is_erased"]["value"] == share and side["n"] == 15
        assert side[f"inside_{near}"]["value"] == 1 and side[f"inside_{far}"]["value"] == 0
        assert side[f"overlap_{near}"]["value"] == pytest.approx(1) and side[f"overlap_{far}"]["value"] == 0
        assert side[f"overlap_{near}"]["n"] == 3
        assert side[f"frechet_{near}"] < side[f"frechet_{far}"] and side[f"mmd_{near}"] < side[f"mmd_{far}"]
        assert report["unseen"]["nearest_is_erased"]["value"] < 0.1
        assert report["class_margin"]["value"] == pytest.approx(float(plain.margins.mean()))
    json.dumps(moved, allow_nan=False)


def test_two_reconstructions_of_a_person_have_no_hull_and_everything_else() -> None:
    plain = toy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    order = torch.tensor([0, 1, 12, 13, 24, 25])
    report = clouds.measure(toy(plain.private[order], plain.private_labels[order]), 6)["reconstructions"]
    assert report["overlap_private"] is None and report["overlap_erased"] is None
    assert report["inside_private"]["value"] == 1 and report["inside_private"]["n"] == 6


def test_every_identity_counts_once_in_a_full_group() -> None:
    labels = torch.arange(8).repeat(3)
    assert list(clouds.groups(labels, 3)) == [([0, 1, 2], [0, 1, 2]), ([3, 4, 5], [3, 4, 5]), ([5, 6, 7], [6, 7])]
    assert list(clouds.groups(torch.tensor([4, 2, 4]), 6)) == [([2, 4], [2, 4])]


def target(tmp_path: Path, *defenses: str) -> Run:
    spec = {"seed": 3, "defenses": [{"name": name, "settings": {"a_e": 0.4}} for name in defenses]}
    return Run(tmp_path, "targets", "toy", spec)


def test_erased_images_are_those_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, engine = colours(12), resolve("cpu", "fp32")
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    transform = RandomErasing.transform

    def record(self: RandomErasing, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        out = transform(self, x, noise)
        shown.append((noise.keys, out))
        return out

    with monkeypatch.context() as patched:
        patched.setattr(RandomErasing, "transform", record)
        recipe = Training(epochs=2, batch=12, augment=False, least_steps=0)
        fit(small_net(), data, 3, recipe, engine, 3, Silent(), "toy", [RandomErasing()])
    assert len(shown) == 2
    for epoch, (keys, images) in enumerate(shown):
        mine = clouds.erase(data, torch.arange(12), target(tmp_path, "re"), epoch, engine)
        assert torch.equal(mine.images[keys], (images * 255).round().to(torch.uint8))
    some = torch.tensor([2, 7])
    assert torch.equal(clouds.erase(data, some, target(tmp_path, "re"), 1, engine).images, mine.images[some])


def test_a_target_without_erasing_is_shown_that_of_the_paper(tmp_path: Path) -> None:
    data, engine = colours(6), resolve("cpu", "fp32")
    _, words, trained = clouds.erasing(target(tmp_path))
    assert (words, trained) == ("re a_e=0.4", False)
    assert clouds.erasing(target(tmp_path, "re"))[1:] == ("re a_e=0.4", True)
    plain = clouds.erase(data, torch.arange(6), target(tmp_path), 0, engine)
    assert torch.equal(plain.images, clouds.erase(data, torch.arange(6), target(tmp_path, "re"), 0, engine).images)
