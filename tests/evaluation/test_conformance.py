"""The metrics against their definitions: the field's 21 traps by name, closed forms, conventions, invariances,
refusals, parity with other packages to 1e-5, and golden values.

The long form of a law stands with its own module (test_metrics, test_statistics, ...); here each is told once.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from PIL import Image
from prdc import compute_prdc
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from worlds import World, attack_on, colours, small_net

from mibench import models
from mibench.core import (
    Access,
    Attack,
    AttackContext,
    Dataset,
    Oracle,
    Split,
    TrainingContext,
    augment,
    to_float,
    to_uint8,
)
from mibench.defenses.mid import Bottleneck, NoisyServed
from mibench.metrics import accuracy, facenet_distance, fid, inception, inputs, kid, knn, lpips_distance, prdc
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.priors.plg import Plg
from mibench.report import collect
from mibench.runs import Run
from mibench.runtime import engine
from mibench.runtime.errors import UserError
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.stages import artifacts, score, train_target
from mibench.stats import intervals as statistics
from mibench.training import Training, fit, predict

CPU = engine.resolve("cpu", "fp32")
NAMES = ("a", "b", "c", "d")
SHAPE = (3, 16, 16)


def normal(seed: int, *shape: int) -> Tensor:
    """The same on every machine, for ever: what golden values are made of."""
    return Noise(seed, torch.arange(shape[0])).normal(*shape[1:]).double()


def pair(n: int = 120, m: int = 90, d: int = 16) -> tuple[Tensor, Tensor]:
    """Real and generated features that overlap in part."""
    return normal(1, n, d), 0.9 * normal(2, m, d) + 0.3


def people(n: int = 30, m: int = 40, d: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reconstructions with labels, references with labels."""
    return normal(3, n, d), torch.arange(n) % 5, normal(4, m, d), torch.arange(m) % 5


def pixels(seed: int, n: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return to_uint8(Noise(seed, torch.arange(n)).uniform(*shape))


def data(classes: tuple[str, ...] = NAMES, public: Tensor | None = None) -> Dataset:
    labels = torch.arange(8) % 4
    strangers = pixels(3, 6) if public is None else public
    return Dataset(
        "toy",
        classes,
        Split(pixels(1, 8), labels),
        Split(pixels(2, 8), labels),
        Split(strangers, torch.full((len(strangers),), -1)),
        Split(pixels(4, 4), torch.arange(4) % 2),
        False,
        True,
        {},
    )


class Seen(nn.Module):
    """Stands in for a network and remembers what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.images = width, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.images = x
        return x.new_zeros(len(x), self.width)


def judge(kind: type[nn.Module], width: int) -> Any:
    """A judging model around such a network."""
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.net = Seen(width)
    return model


def target_run(root: Path, name: str = "cnn", seed: int = 0, kind: str = "targets") -> Run:
    spec = {"dataset": {"name": "toy", "settings": {}}, "model": name, "pretrained": False, "seed": seed}
    return Run(root, kind, f"toy-{name}", spec)


# --- what other tools got wrong, 21 traps --------------------------------------------------------------------------


def test_trap_01_fid_input_range() -> None:
    model = judge(inception.Inception, 2048)
    x = torch.linspace(0, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    model(x)
    seen = model.net.images
    assert seen.shape[2:] == (299, 299) and float(seen.min()) == -1.0 and float(seen.max()) == pytest.approx(1.0)
    for wrong in (2 * x - 1, 255 * x, x - 1e-3):
        with pytest.raises(UserError, match=r"inception: pixels lie in .*allowed: \[0, 1\]"):
            model(wrong)


def test_trap_02_a_failed_fid_is_not_the_best_score() -> None:
    good = normal(5, 10, 4)
    for bad in (good[:1], good[:0], good * math.nan, good * 1e200):
        with pytest.raises(ValueError, match="fid"):
            fid.frechet_distance(good, bad)
    found = score.distances(good, good[:1])
    assert (found["fid"], found["kid"], found["prdc"], found["n"]) == (None, None, None, 1)


def test_trap_03_few_or_selected_images() -> None:
    values, real = {}, score.reference(normal(6, 1000, 16))
    for n in (20, 200, 1000):
        found = score.distances(real, normal(7, n, 16))
        assert (found["n"], found["n_real"]) == (n, 1000)
        values[n] = found["fid"]
        assert abs(found["kid"]) < 4 * found["kid_error"]  # unbiased, with its error beside it
    assert values[20] > 4 * values[200] > 8 * values[1000]  # FID grows as images get fewer; hence n
    # Nothing is conditioned on success, and no last batch is dropped.
    model = Classifier(Prepare(SHAPE, [0.0], [1.0]), nn.Flatten(), nn.Linear(768, 4), 768).eval()
    logits, features = predict(model, pixels(8, 7), CPU, batch=3)
    assert len(logits) == len(features) == 7
    labels = (logits.argmax(1) + torch.tensor([0, 1, 1, 1, 1, 1, 1])) % 4  # one hit
    private = {"train_features": features.repeat(4, 1), "heldout_features": features.repeat(4, 1)}
    private |= {f"{part}_labels": torch.arange(4).repeat_interleave(7) for part in ("train", "heldout")}
    columns = score.judge(logits, features, labels, private, 4)
    assert all(len(column) == 7 for column in columns.values()) and int(columns["open_top1"].sum()) == 1


def test_trap_04_resolution_mismatch() -> None:
    small, large, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 112, 112), torch.tensor([0, 1])
    with pytest.raises(UserError, match="resize the references to the reconstructions' size"):
        lpips_distance.lpips_distance(judge(lpips_distance.Lpips, 4), small, y, large, y)
    with pytest.raises(UserError, match=r"built for images of shape \(3, 16, 16\), got \(3, 64, 64\)"):
        Prepare(SHAPE, [0.5], [0.5])(small)
    with pytest.raises(UserError, match=r"images to score are of shape \(3, 64, 64\), those of 'toy' of \(3, 16, 16\)"):
        score.perceptual(data(), to_uint8(small), y, torch.device("cpu"))


def test_trap_05_knn_is_not_one_number() -> None:
    f, y, g, z = people()
    whole = knn.knn_distance(f, y, g, z)
    torch.testing.assert_close(knn.knn_distance(3 * f, y, 3 * g, z), 9 * whole)  # squared, and not normalised
    assert "squared L2" in knn.CARD["summary"] and "same identity" in knn.CARD["summary"]
    floor = train_target.real_to_real(g, z)  # the yardstick, beside every number
    assert floor == pytest.approx(float(knn.leave_one_out(g, z).mean())) and floor > 0


def test_trap_06_the_face_net_gets_its_own_scale() -> None:
    model, x = judge(facenet_distance.FaceNet, 512), torch.linspace(0, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)
    model(x)
    torch.testing.assert_close(model.net.images, (255 * x - 127.5) / 128)
    with pytest.raises(UserError, match="facenet: pixels lie in"):
        model(2 * x - 1)


def test_trap_07_training_images_and_held_out_ones_are_two_references() -> None:
    f, y, g, z = people(d=6)
    logits = normal(9, 30, 5)
    private = {"train_features": g, "train_labels": z, "heldout_features": g + 1, "heldout_labels": z}
    columns = score.judge(logits, f, y, private, 5)
    torch.testing.assert_close(columns["knn_train"], knn.knn_distance(f, y, g, z))
    torch.testing.assert_close(columns["knn_heldout"], knn.knn_distance(f, y, g + 1, z))
    memorised = score.judge(logits[:5], g[:5], z[:5], private, 5)
    assert float(memorised["knn_train"].max()) == 0 < float(memorised["knn_heldout"].min())


def test_trap_08_a_prior_cannot_learn_from_private_images() -> None:
    private = pixels(1, 8)
    for leaked in (private[3:4], pixels(2, 8)[5:6]):  # a training image, a held-out one
        with pytest.raises(UserError, match=r"1 private image\(s\) of data set 'toy' also lie in its public images"):
            data(public=torch.cat([pixels(3, 6), leaked]))
    assert set(inspect.signature(Plg.train).parameters) == {"self", "prior", "public", "oracle", "session"}


def test_trap_09_one_seed_is_for_one_thing(tmp_path: Path) -> None:
    source = registry.configure("data", "digiface")
    runs = [train_target.plan(tmp_path, source, "cnn", [], seed, "fp32") for seed in (0, 1)]
    assert runs[0].id != runs[1].id and runs[0].spec["dataset"] == runs[1].spec["dataset"]
    # What is judged against comes from the evaluation model, whose seed is nobody else's and cannot be given.
    assert "seed" not in inspect.signature(train_target.plan_evaluator).parameters
    assert train_target.plan_evaluator(tmp_path, source, "ir", "fp32").spec["seed"] == train_target.EVALUATOR_SEED


def test_trap_10_no_model_is_selected_on_the_test_set() -> None:
    split = colours(12)
    assert not {"heldout", "validation", "test"} & set(inspect.signature(fit).parameters)
    model = small_net(3)
    fitted = fit(model, split, 3, Training(epochs=2, batch=4), CPU, 0, Silent(), "toy")
    assert [set(line) for line in fitted.log] == [{"epoch", "loss"}] * 2  # the last epoch is kept, whatever it is worth
    logits = torch.eye(3)[[0, 0, 0, 1, 2]]
    plain = train_target.accuracy(logits, Split(split.images[:5], torch.tensor([0, 0, 1, 1, 1])), 3)
    assert plain["value"] == pytest.approx(3 / 5)  # over images, not a mean of batches' means


def test_trap_11_no_attack_can_select_by_an_evaluation_model() -> None:
    assert set(inspect.signature(Attack.__call__).parameters) == {"self", "oracle", "prior", "labels", "seed", "work"}
    assert {item.name for item in dataclasses.fields(AttackContext)} == {"batch", "folder", "public", "transform"}
    folder = Path(inspect.getfile(World)).parent.parent / "mibench" / "attacks"
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(f"mibench.{part}" in text for part in ("stages", "metrics", "report", "training")), path


def test_trap_12_the_target_does_not_judge_itself(tmp_path: Path) -> None:
    inversion = Run(tmp_path, "inversions", "ppa", {}, {"target": target_run(tmp_path, "resnet18", 3)})
    ir = target_run(tmp_path, "ir", 1000, "evaluators")
    assert score.plan(tmp_path, inversion, [ir], "fp32").kind == "scores"
    for wrong, why in (
        (target_run(tmp_path, "resnet50", 1000, "evaluators"), "target's own family"),
        (target_run(tmp_path, "cnn", 3, "evaluators"), "share the seed 3"),
    ):
        with pytest.raises(UserError, match=why):
            score.plan(tmp_path, inversion, [ir, wrong], "fp32")


def saved(root: Path, classes: tuple[str, ...]) -> Run:
    """A trained target on disk."""
    run = target_run(root)
    run.path.mkdir(parents=True)
    header = {"role": "target model", "classes": list(classes), "classes_count": 4, "dataset": "toy"}
    artifacts.write_tensors(run.path / "model.safetensors", models.build("cnn", 4, SHAPE).state_dict(), header)
    return run


def test_trap_13_label_maps_are_compared(tmp_path: Path) -> None:
    run = saved(tmp_path, NAMES)
    artifacts.load_classifier(run, data())
    with pytest.raises(UserError, match="would compare different people"):
        artifacts.load_classifier(run, data(classes=("a", "c", "b", "d")))


def test_trap_14_saved_pixels_are_the_scored_ones(tmp_path: Path) -> None:
    stored = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(stored)), stored)
    assert to_uint8(torch.tensor([[[[-0.2, 0.4999 / 255, 1.7]]]])).flatten().tolist() == [0, 0, 255]  # clamped, rounded
    dull = (100 + pixels(10, 1) // 16).expand(1, 3, 16, 16)  # would be stretched to black and white
    tile(dull, tmp_path / "one.png", columns=1)
    shown = torch.from_numpy(np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).copy()).permute(2, 0, 1)
    assert torch.equal(shown[:, 2:66:4, 2:66:4], dull[0])  # enlarged four times, with a white edge of 2
    assert torch.equal(CPU.images(dull), to_float(dull))  # what evaluation models are given


def test_trap_15_an_interval_is_over_identities() -> None:
    labels = torch.arange(2).repeat_interleave(5)
    found = statistics.proportion(labels == 0, labels)  # class A 5/5, class B 0/5
    assert found.value == 0.5 and found.low < 0.05 and found.high > 0.95 and found.clusters == 2


def test_trap_16_identities_do_not_share_starting_points() -> None:
    world = World(classes=5)
    found = attack_on(world, "prior_sample", images=3)
    assert len(found.latents.unique(dim=0)) == 15
    alone = attack_on(world, "prior_sample", labels=torch.tensor([3]), images=3)
    assert torch.equal(alone.latents, found.latents[found.labels == 3])  # and do not shift one another's


def test_trap_17_an_identity_that_was_not_reached_counts_as_0() -> None:
    world = World(classes=4)
    with torch.no_grad():
        world.target.head.bias[2] = -1e4  # nobody is ever taken for the third
    found = attack_on(world, "brep", init_pool=200, iterations=3)
    assert found.labels.unique().tolist() == [0, 1, 2, 3]
    assert bool(found.failed[found.labels == 2].all())
    with torch.no_grad():
        hits = accuracy.top_k(world.target(found.images), found.labels)
    kept = score.summary(hits, found.labels)
    assert torch.equal(hits, found.labels != 2)
    assert (kept["clusters"], kept["n"], kept["value"]) == (4, len(found.labels), 0.75)


def test_trap_18_a_target_is_left_as_it_is_while_a_prior_asks_it(tmp_path: Path) -> None:
    model = artifacts.load_classifier(saved(tmp_path, NAMES), data())
    assert not any(part.training for part in model.modules()) and not any(p.requires_grad for p in model.parameters())
    target = small_net(4, dropout=0.5).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    recipe = Plg(width=2, latent_dim=4, batch=4, critic_steps=1, steps=1, top=2)
    public = data().public
    prior = recipe.build(SHAPE, 4, public)
    assert recipe.target_access is not None
    recipe.train(prior, public, Oracle(target, Access.WHITE_BOX, 4), TrainingContext(CPU, 0, Silent(), "toy"))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert not any(part.training for part in target.modules()) and all(p.grad is None for p in target.parameters())


def test_trap_19_a_random_defense_gives_one_number() -> None:
    torch.manual_seed(0)
    inner = Classifier(Prepare(SHAPE, [0.5], [1.0]), nn.Flatten(), Bottleneck(768, 6, 4), 768).eval()
    with torch.no_grad():
        inner.head.encode.bias[6:] = 6.0  # much noise
    served, images = NoisyServed(inner, 7).eval(), pixels(11, 6)
    logits, features = predict(served, images, CPU)
    assert torch.equal(predict(served, images, CPU)[0], logits)
    torch.testing.assert_close(predict(served, images.flip(0), CPU, batch=1)[0].flip(0), logits)
    still, same = predict(inner, images, CPU)
    assert float((logits - still).abs().min(dim=0).values.max()) > 1e-3 and torch.equal(features, same)


def test_trap_20_each_image_has_its_own_crop() -> None:
    x, noise = torch.rand(1, 3, 16, 16).repeat(5, 1, 1, 1), Noise(0, torch.arange(5))
    for transform in (
        lambda x, noise: augment.random_resized_crop(x, noise, (0.5, 1.0)),
        lambda x, noise: augment.base(x, noise, True),
    ):
        made = transform(x, noise)
        assert len(made.flatten(1).unique(dim=0)) == 5
        torch.testing.assert_close(transform(x[:1], noise.rows(torch.tensor([3]))), made[3:4])


def test_trap_21_prdc_of_a_handful_of_images() -> None:
    real, generated = pair()
    for few, k in ((5, 5), (1, 5), (0, 5), (3, 4)):
        for sides in ((real[:few], generated), (real, generated[:few])):
            with pytest.raises(UserError, match=f"prdc: {k} nearest neighbours asked for among {few} image"):
                prdc.prdc(*sides, k=k)
    with pytest.raises(UserError, match="k from 1 to 119"):
        prdc.prdc(real, generated, k=0)
    assert score.distances(real, generated[:5])["prdc"] is None and score.distances(real[:5], generated)["prdc"] is None
    assert score.distances(real[:6], generated[:6])["prdc"] is not None
    assert prdc.prdc(real, 0.1 * generated).density > 1  # it is no share


def test_every_trap_has_its_test() -> None:
    numbers = [name.split("_")[2] for name in globals() if name.startswith("test_trap_")]
    assert numbers == [f"{place:02d}" for place in range(1, 22)]


# --- closed forms ---------------------------------------------------------------------------------------------------


def exactly(seed: int, n: int, mean: Tensor, root: Tensor) -> Tensor:
    """n points with this sample mean and the sample covariance root^T root."""
    x = normal(seed, n, len(mean))
    return torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1) @ root + mean


@pytest.mark.parametrize("n, m", [(40, 60), (9, 60), (60, 9)])
def test_fid_of_gaussians_with_commuting_covariances(n: int, m: int) -> None:
    a, b, shift = normal(12, 6).abs() + 0.1, normal(13, 6).abs() + 0.1, normal(14, 6)
    turn = torch.linalg.qr(normal(15, 6, 6)).Q
    real, generated = exactly(16, n, torch.zeros_like(a), a.diag()) @ turn, exactly(17, m, shift, b.diag()) @ turn
    expected = float(shift.square().sum() + (a - b).square().sum())
    assert fid.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-8)
    assert fid.frechet_distance(real, real + shift) == pytest.approx(float(shift.square().sum()), rel=1e-8)


def loops(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision, recall, density, coverage, from their definitions."""
    x, y = real.tolist(), generated.tolist()

    def radius(points: list[list[float]], i: int) -> float:
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    r, g = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    inside = [[math.dist(p, q) < r[i] for q in y] for i, p in enumerate(x)]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(y))) / len(y),
        "recall": sum(any(math.dist(p, q) < g[j] for j, q in enumerate(y)) for p in x) / len(x),
        "density": sum(map(sum, inside)) / (k * len(y)),
        "coverage": sum(map(any, inside)) / len(x),
    }


@pytest.mark.parametrize("n, m, k", [(23, 31, 5), (31, 12, 3), (8, 40, 1), (6, 6, 5)])
def test_prdc_is_its_definition(n: int, m: int, k: int) -> None:
    real, generated = pair(n, m, 3)
    assert prdc.prdc(real, generated, k)._asdict() == pytest.approx(loops(real, generated, k), abs=1e-12)


def test_prdc_of_a_set_with_itself_and_of_sets_far_apart() -> None:
    real, _ = pair()
    assert prdc.prdc(real, real) == (1.0, 1.0, 1.0, 1.0)  # k points strictly inside each ball, its centre included
    assert prdc.prdc(real, real + 1e3) == (0.0, 0.0, 0.0, 0.0)


def test_knn_is_two_loops() -> None:
    f, y, g, z = people()
    pairs = zip(f.tolist(), y, strict=True)
    expected = [min(math.dist(p, q) ** 2 for q in g[z == label].tolist()) for p, label in pairs]
    torch.testing.assert_close(knn.knn_distance(f, y, g, z), torch.tensor(expected, dtype=torch.float64))


def test_no_hit_has_the_exact_binomial_bound() -> None:
    labels = torch.arange(12).repeat_interleave(4)
    found = statistics.proportion(torch.zeros(48, dtype=torch.bool), labels)
    exact = scipy.stats.binomtest(0, 12).proportion_ci(0.95, method="exact").high
    assert (found.low, found.high) == pytest.approx((0, exact))


# --- conventions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [fid.frechet_distance, kid.kernel_distance, prdc.prdc, score.distances])
def test_real_comes_before_generated(metric: Callable[..., Any]) -> None:
    assert list(inspect.signature(metric).parameters)[:2] == ["real", "generated"]


def test_precision_and_recall_change_places_with_the_sides_and_density_does_not() -> None:
    real, generated = pair(60, 90)
    there, back = prdc.prdc(real, generated), prdc.prdc(generated, real)
    assert (there.precision, there.recall) == (back.recall, back.precision) and there.precision != there.recall
    assert there.density != back.density and there.coverage != back.coverage


def test_k_is_counted_without_the_image_itself() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    for k, radii in ((1, [1, 1, 2, 4]), (2, [3, 2, 3, 6]), (3, [7, 6, 4, 7])):
        assert prdc.manifold(line, k).radii.tolist() == radii
    assert knn.leave_one_out(line, torch.zeros(4, dtype=torch.int64)).tolist() == [1, 1, 4, 16]
    assert prdc.manifold(torch.cat([line, line]), 1).radii.tolist() == [0] * 8  # a second copy is another image


def test_distances_to_images_are_squared() -> None:
    y = torch.tensor([0])
    assert knn.knn_distance(torch.zeros(1, 2), y, torch.tensor([[3.0, 4.0]]), y).tolist() == [25.0]
    a, b = torch.nn.functional.normalize(normal(18, 2, 5), dim=1).float()[:, None]
    cosine = float((a.double() * b.double()).sum())
    assert float(knn.knn_distance(a, y, b, y)) == pytest.approx(2 * (1 - cosine), rel=1e-5)  # as FaceNet's card has it
    assert facenet_distance.CARD["range"] == "[0, 4]"


def test_density_is_divided_by_the_number_of_generated_images() -> None:
    real, generated = pair(60, 40)
    found, twice = prdc.prdc(real, generated), prdc.prdc(real, generated.repeat(2, 1))
    assert (twice.precision, twice.density, twice.coverage) == (found.precision, found.density, found.coverage)
    inside = torch.cdist(real, generated) < prdc.manifold(real).radii[:, None]
    assert found.density == pytest.approx(float(inside.sum()) / (5 * 40))
    assert abs(found.density - float(inside.sum()) / (5 * 60)) > 0.1  # what the field's code divides by


def test_a_point_on_the_edge_of_a_ball_lies_outside() -> None:
    real = torch.tensor([[0.0], [2.0], [10.0]])
    found = prdc.prdc(real, torch.tensor([[-2.0], [50.0], [90.0]]), k=1)
    assert (found.precision, found.density, found.coverage) == (0, 0, 0)


def test_kid_leaves_out_pairs_of_an_image_with_itself() -> None:
    sides = (torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]]))
    assert kid.kernel_distance(*sides).value == pytest.approx(65 / 3)


# --- invariances ----------------------------------------------------------------------------------------------------


def turned(x: Tensor) -> Tensor:
    return x @ torch.linalg.qr(normal(19, x.shape[1], x.shape[1])).Q


SETS: dict[str, Callable[[Tensor, Tensor], tuple[float, ...]]] = {
    "fid": lambda real, generated: (fid.frechet_distance(real, generated),),
    "kid": kid.kernel_distance,
    "prdc": prdc.prdc,
}


@pytest.mark.parametrize("name", SETS)
def test_sets_have_no_order_and_no_axes(name: str) -> None:
    real, generated = pair(70, 50)
    value = SETS[name](real, generated)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert SETS[name](real[order], generated.flip(0)) == pytest.approx(value, rel=1e-9)
    assert SETS[name](turned(real), turned(generated)) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("module", [kid, knn, prdc], ids=lambda module: module.__name__)
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_batches_do_not_matter(module: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (real, generated), (f, y, g, z) = pair(33, 21), people()

    def values() -> list[float]:
        sets = [*kid.kernel_distance(real, generated), *prdc.prdc(real, generated)]
        return [*sets, *knn.knn_distance(f, y, g, z).tolist()]

    whole = values()
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert values() == pytest.approx(whole, rel=1e-12)


def test_prdc_has_the_same_bits_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = normal(20, 40, 7).float().repeat(2, 1)  # every image twice: distances tie with radii all over
    found = prdc.prdc(real, real[:50], 2)
    for chunk in (1, 77, 500):
        monkeypatch.setattr(prdc, "_CHUNK", chunk)
        assert prdc.prdc(real, real[:50], 2) == found


def test_prdc_ignores_scale_and_place_and_reuses_a_side() -> None:
    real, generated = pair(60, 40)
    found = prdc.prdc(real, generated)
    assert prdc.prdc(4 * real, 4 * generated) == found
    assert prdc.prdc(real + 2, generated + 2) == pytest.approx(found, abs=1e-12)
    assert prdc.prdc(prdc.manifold(real), prdc.manifold(generated)) == found


def test_duplicates_change_no_nearest_image_and_no_rate() -> None:
    f, y, g, z = people()
    whole = knn.knn_distance(f, y, g, z)
    assert torch.equal(knn.knn_distance(f, y, g.repeat(2, 1), z.repeat(2)), whole)
    hits = whole < whole.median()
    assert statistics.proportion(hits.repeat(3), y.repeat(3))[:3] == pytest.approx(statistics.proportion(hits, y)[:3])


def test_duplicating_both_sides_changes_fid_by_the_known_factor() -> None:
    real, generated = pair()
    n, m = len(real), len(generated)
    mean = float((real.mean(0) - generated.mean(0)).square().sum())
    r, g = (
        fid.statistics(side).factor * math.sqrt(factor)
        for side, factor in ((real, (2 * n - 2) / (2 * n - 1)), (generated, (2 * m - 2) / (2 * m - 1)))
    )
    cross = torch.linalg.svdvals(r @ g.T).sum()
    expected = mean + float(r.square().sum() + g.square().sum() - 2 * cross)
    assert fid.frechet_distance(real.repeat(2, 1), generated.repeat(2, 1)) == pytest.approx(expected, rel=1e-9)


# --- refusals -------------------------------------------------------------------------------------------------------

JUDGES = {
    "inception": lambda: judge(inception.Inception, 2048),
    "facenet": lambda: judge(facenet_distance.FaceNet, 512),
    "lpips": lambda: judge(lpips_distance.Lpips, 4),
}


@pytest.mark.parametrize("name", JUDGES)
def test_every_judging_network_refuses_what_is_not_in_0_1(name: str) -> None:
    x = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    for wrong in (2 * x - 1, 255 * x, x + 0.01, -x):
        with pytest.raises(UserError, match=rf"{name}: pixels lie in .*allowed: \[0, 1\]"):
            JUDGES[name]()(wrong)
    with pytest.raises(ValueError, match=f"{name}: 1 of 12288 pixels are NaN"):
        JUDGES[name]()(x.where(x < 1, math.nan))
    assert torch.equal(inputs.images(name, x), x)


def test_prdc_refuses_broken_mixed_and_huge_features() -> None:
    real, generated = pair()
    with pytest.raises(ValueError, match="prdc: 16 of 1440 features are NaN"):
        prdc.prdc(real, generated.index_fill(0, torch.tensor([4]), math.nan))
    with pytest.raises(ValueError, match="real features have 16 dimensions, generated 9"):
        prdc.prdc(real, generated[:, :9])
    with pytest.raises(ValueError, match="prdc: the features are too large"):
        prdc.prdc(1e200 * real, generated)
    with pytest.raises(ValueError, match="k = 3, the others' with 5"):
        prdc.prdc(prdc.manifold(real, 3), generated)


def test_prdc_has_a_card() -> None:
    card = registry.card("metrics", "prdc")
    assert set(card) == {"summary", "title", "authors", "venue", "year", "range", "better", "link"}
    assert card == prdc.CARD and card["better"] == "higher leaks more"


# --- parity with other packages, to 1e-5 ----------------------------------------------------------------------------


@pytest.mark.parametrize("n, m, d, k", [(120, 90, 16, 5), (40, 200, 4, 3), (200, 30, 64, 10), (12, 12, 2, 5)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_prdc_is_that_of_the_package_prdc(n: int, m: int, d: int, k: int, kind: torch.dtype) -> None:
    real, generated = (side.to(kind) for side in pair(n, m, d))
    expected = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    assert prdc.prdc(real, generated, k)._asdict() == pytest.approx(expected, abs=1e-5)


def textbook(real: Tensor, generated: Tensor, root: Callable[[Any], complex]) -> float:
    """FID as pytorch-fid and torch-fidelity define it: np.mean, np.cov (over n - 1), the trace of a root."""
    x, y = real.numpy(), generated.numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.real(root(a @ b)))


@pytest.mark.parametrize("n, m, d", [(120, 90, 16), (300, 40, 32), (40, 300, 32)])
def test_fid_is_scipys_and_that_of_the_fid_packages(n: int, m: int, d: int) -> None:
    real, generated = pair(n, m, d)
    ours = fid.frechet_distance(real, generated)
    assert ours == pytest.approx(textbook(real, generated, lambda c: np.trace(scipy.linalg.sqrtm(c))), rel=1e-5)
    eigenvalues = textbook(real, generated, lambda c: np.sqrt(np.linalg.eigvals(c).astype(complex)).sum())
    assert ours == pytest.approx(eigenvalues, rel=1e-5)


@pytest.mark.parametrize(("size", "theirs"), [((120, 90, 16), 3.4166691583625237), ((300, 40, 32), 11.763616179072535)])
def test_fid_is_what_torch_fidelity_said_of_these_features(size: tuple[int, int, int], theirs: float) -> None:
    # fid_statistics_to_metric of torch-fidelity 0.4.0. `mibench verify` asks it anew where it is installed.
    assert fid.frechet_distance(*pair(*size)) == pytest.approx(theirs, rel=1e-5)


def test_knn_is_that_of_scikit_learn() -> None:
    f, y, g, z = people()
    found = knn.knn_distance(f, y, g, z)
    for label in range(5):
        near, _ = NearestNeighbors(n_neighbors=1).fit(g[z == label].numpy()).kneighbors(f[y == label].numpy())
        np.testing.assert_allclose(found[y == label].numpy(), near[:, 0] ** 2, rtol=1e-5)
    near, _ = NearestNeighbors(n_neighbors=2).fit(g[z == 0].numpy()).kneighbors(g[z == 0].numpy())
    np.testing.assert_allclose(knn.leave_one_out(g, z)[z == 0].numpy(), near[:, 1] ** 2, rtol=1e-5)


def test_kid_is_scikit_learns_kernel_without_the_diagonal() -> None:
    real, generated = pair()
    x, y = real.numpy(), generated.numpy()
    xx, yy, n, m = polynomial_kernel(x), polynomial_kernel(y), len(x), len(y)
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    expected = own - 2 * polynomial_kernel(x, y).mean()
    assert kid.kernel_distance(real, generated).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_accuracy_is_that_of_scikit_learn(k: int) -> None:
    logits, labels = normal(21, 200, 8), torch.arange(200) % 8
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
    assert float(accuracy.top_k(logits, labels, k).double().mean()) == pytest.approx(expected, abs=1e-5)


# --- golden values --------------------------------------------------------------------------------------------------

GOLDEN = {
    "fid": 3.4166691583625237,
    "fid of few": 14.729137129075244,
    "kid": 0.43031194890016433,
    "kid error": 0.09456836649448364,
    "precision": 0.9555555555555556,
    "recall": 0.7,
    "density": 1.2644444444444445,
    "coverage": 0.9333333333333333,
    "knn": 7.285757979528667,
    "leave one out": 8.163651636167401,
    "top 1": 0.15,
    "top 5": 0.6,
    "low": 0.016799238280661787,
    "high": 0.34854377831556116,
}
"""From fixed seeds, on any machine; a change of any of these is a change of what the tool reports."""


def measured() -> dict[str, float]:
    (real, generated), (f, y, g, z) = pair(), people()
    hits = accuracy.top_k(normal(22, 60, 8), torch.arange(60) % 8)
    interval = statistics.proportion(hits, torch.arange(60) % 8)
    distance = kid.kernel_distance(real, generated)
    return {
        "fid": fid.frechet_distance(real, generated),
        "fid of few": fid.frechet_distance(real, generated[:7]),
        "kid": distance.value,
        "kid error": distance.error,
        **prdc.prdc(real, generated)._asdict(),
        "knn": float(knn.knn_distance(f, y, g, z).mean()),
        "leave one out": float(knn.leave_one_out(g, z).mean()),
        "top 1": interval.value,
        "low": interval.low,
        "high": interval.high,
        "top 5": float(accuracy.top_k(normal(22, 60, 8), torch.arange(60) % 8, 5).double().mean()),
    }


def test_golden_values() -> None:
    assert measured() == pytest.approx(GOLDEN, rel=1e-6)  # the last bit of a float32 may differ between machines


# --- what is written and shown --------------------------------------------------------------------------------------


def test_scores_hold_prdc_and_reuse_the_real_side() -> None:
    real, generated = pair()
    found = score.distances(real, generated)
    assert found["prdc"] == {**prdc.prdc(real, generated)._asdict(), "k": 5}
    assert score.distances(score.reference(real), generated) == found
    assert score.distances(real.float(), generated.float())["prdc"] is not None
    assert set(found) == {"fid", "kid", "kid_error", "n", "n_real", "prdc"}


def test_tables_have_the_four_columns_and_old_scores_leave_them_blank() -> None:
    found = score.distances(*pair())
    flat = collect._judged(["resnet"], {"resnet": found})
    assert flat["density@resnet"] == found["prdc"]["density"] and flat["recall@resnet"] == found["prdc"]["recall"]
    old = {key: value for key, value in found.items() if key != "prdc"}
    for one in (old, found | {"prdc": None}):
        flat = collect._judged(["resnet"], {"resnet": one})
        assert flat["fid@resnet"] == found["fid"]
        assert all(flat[f"{key}@resnet"] is None for key in ("precision", "recall", "density", "coverage"))
