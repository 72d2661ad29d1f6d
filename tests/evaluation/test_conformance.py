"""The field's 21 traps by name, golden values, and what is written of both.

A metric's own laws stand in tests/metrics/test_<metric>.py, and those that every machine should check in
`mibench.evaluation.verify`.
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
from features import fixed, pair, people
from PIL import Image
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
from mibench.evaluation.absent import means
from mibench.evaluation.judgement import Answers, PrivateAnswers, distances, reference, verdicts
from mibench.evaluation.model import accuracy as accuracy_of
from mibench.evaluation.model import real_to_real
from mibench.evaluation.perceptual import perceptual
from mibench.evaluation.records import Judgement
from mibench.metrics import (
    Unit,
    accuracy,
    facenet_distance,
    fid,
    inception,
    inputs,
    kid,
    knn,
    lpips_distance,
    metric,
    prdc,
)
from mibench.models.base import Classifier, Prepare
from mibench.plugins import registry
from mibench.priors.plg import Plg
from mibench.report import rows
from mibench.runs import Run
from mibench.runtime import engine
from mibench.runtime.errors import UserError
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.stages import artifacts, score, train_target
from mibench.stats import intervals as statistics
from mibench.stats.intervals import clustered_interval
from mibench.training import Training, fit, predict

CPU = engine.resolve("cpu", "fp32")
NAMES = ("a", "b", "c", "d")
SHAPE = (3, 16, 16)


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
    good = fixed(5, 10, 4)
    for bad in (good[:1], good[:0], good * math.nan, good * 1e200):
        with pytest.raises(ValueError, match="fid"):
            fid.frechet_distance(good, bad)
    found = distances(good, good[:1])
    assert (found.fid, found.kid, found.prdc, found.n) == (None, None, None, 1)


def test_trap_03_few_or_selected_images() -> None:
    values, real = {}, reference(fixed(6, 1000, 16))
    for n in (20, 200, 1000):
        found = distances(real, fixed(7, n, 16))
        assert (found.n, found.n_real) == (n, 1000)
        values[n] = found.fid
        assert abs(found.kid) < 4 * found.kid_error  # unbiased, with its error beside it
    assert values[20] > 4 * values[200] > 8 * values[1000]  # FID grows as images get fewer; hence n
    # Nothing is conditioned on success, and no last batch is dropped.
    model = Classifier(Prepare(SHAPE, [0.0], [1.0]), nn.Flatten(), nn.Linear(768, 4), 768).eval()
    logits, features = predict(model, pixels(8, 7), CPU, batch=3)
    assert len(logits) == len(features) == 7
    labels = (logits.argmax(1) + torch.tensor([0, 1, 1, 1, 1, 1, 1])) % 4  # one hit
    real = Answers(logits.repeat(4, 1), features.repeat(4, 1), torch.arange(4).repeat_interleave(7))
    columns = verdicts(Answers(logits, features, labels), PrivateAnswers(real, real), 4)
    assert all(len(column) == 7 for column in columns.values()) and int(columns["open_top1"].sum()) == 1


def test_trap_04_resolution_mismatch() -> None:
    small, large, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 112, 112), torch.tensor([0, 1])
    with pytest.raises(UserError, match="resize the references to the reconstructions' size"):
        lpips_distance.lpips_distance(judge(lpips_distance.Lpips, 4), small, y, large, y)
    with pytest.raises(UserError, match=r"built for images of shape \(3, 16, 16\), got \(3, 64, 64\)"):
        Prepare(SHAPE, [0.5], [0.5])(small)
    with pytest.raises(UserError, match=r"images to score are of shape \(3, 64, 64\), those of 'toy' of \(3, 16, 16\)"):
        perceptual(data(), to_uint8(small), y, torch.device("cpu"))


def test_trap_05_knn_is_not_one_number() -> None:
    f, y, g, z = people()
    whole = knn.knn_distance(f, y, g, z)
    torch.testing.assert_close(knn.knn_distance(3 * f, y, 3 * g, z), 9 * whole)  # squared, and not normalised
    assert metric("knn_train").unit is Unit.SQUARED_L2 and "of the person" in metric("knn_train").summary
    floor = real_to_real(g, z)  # the yardstick, beside every number
    assert floor == pytest.approx(float(knn.leave_one_out(g, z).mean())) and floor > 0


def test_trap_06_the_face_net_gets_its_own_scale() -> None:
    model, x = judge(facenet_distance.FaceNet, 512), torch.linspace(0, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)
    model(x)
    torch.testing.assert_close(model.net.images, (255 * x - 127.5) / 128)
    with pytest.raises(UserError, match="facenet: pixels lie in"):
        model(2 * x - 1)


def test_trap_07_training_images_and_held_out_ones_are_two_references() -> None:
    f, y, g, z = people(d=6)
    logits = fixed(9, 30, 5)
    real = fixed(10, 40, 5)
    private = PrivateAnswers(Answers(real, g, z), Answers(real, g + 1, z))
    columns = verdicts(Answers(logits, f, y), private, 5)
    torch.testing.assert_close(columns["knn_train"], knn.knn_distance(f, y, g, z))
    torch.testing.assert_close(columns["knn_heldout"], knn.knn_distance(f, y, g + 1, z))
    memorised = verdicts(Answers(logits[:5], g[:5], z[:5]), private, 5)
    assert float(memorised["knn_train"].max()) == 0 < float(memorised["knn_heldout"].min())


def test_people_without_held_out_images_are_left_out_of_distances_to_them() -> None:
    """PPA's split of CelebA takes nine in ten pictures at random: of some people it takes all."""
    f, y, g, z = people(d=6)
    logits, real = fixed(9, 30, 5), fixed(10, 40, 5)
    whole = verdicts(Answers(logits, f, y), PrivateAnswers(Answers(real, g, z), Answers(real, g, z)), 5)
    rest = z != 3
    private = PrivateAnswers(Answers(real, g, z), Answers(real[rest], g[rest], z[rest]))
    columns = verdicts(Answers(logits, f, y), private, 5)
    assert columns["knn_heldout"][y == 3].isnan().all()
    for name, values in columns.items():
        known = torch.ones_like(y, dtype=torch.bool) if name != "knn_heldout" else y != 3
        assert torch.equal(values[known], whole[name][known])
    assert means({"knn": columns["knn_heldout"]}, y)["knn"].clusters == 4
    few = data()
    few = dataclasses.replace(few, heldout=few.heldout.take(torch.tensor([0, 1, 2, 4])))
    assert score.without_heldout(few, torch.arange(4)) == [NAMES[3]]
    with pytest.raises(UserError, match="have no reference image"):
        verdicts(Answers(logits[y == 3], f[y == 3], y[y == 3]), private, 5)


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
    plain = accuracy_of(logits, torch.tensor([0, 0, 1, 1, 1]), 3)
    assert plain.value == pytest.approx(3 / 5)  # over images, not a mean of batches' means


def test_trap_11_no_attack_can_select_by_an_evaluation_model() -> None:
    assert set(inspect.signature(Attack.__call__).parameters) == {"self", "oracle", "prior", "labels", "seed", "work"}
    assert {item.name for item in dataclasses.fields(AttackContext)} == {
        "assumed",
        "batch",
        "folder",
        "names",
        "public",
        "seconds",
        "transform",
    }
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
    kept = clustered_interval(hits, found.labels)
    assert torch.equal(hits, found.labels != 2)
    assert (kept.clusters, kept.n, kept.value) == (4, len(found.labels), 0.75)


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
    assert distances(real, generated[:5]).prdc is None and distances(real[:5], generated).prdc is None
    assert distances(real[:6], generated[:6]).prdc is not None
    assert prdc.prdc(real, 0.1 * generated).density > 1  # it is no share


def test_every_trap_has_its_test() -> None:
    numbers = [name.split("_")[2] for name in globals() if name.startswith("test_trap_")]
    assert numbers == [f"{place:02d}" for place in range(1, 22)]


def test_no_hit_has_the_exact_binomial_bound() -> None:
    labels = torch.arange(12).repeat_interleave(4)
    found = statistics.proportion(torch.zeros(48, dtype=torch.bool), labels)
    exact = scipy.stats.binomtest(0, 12).proportion_ci(0.95, method="exact").high
    assert (found.low, found.high) == pytest.approx((0, exact))


@pytest.mark.parametrize("metric", [fid.frechet_distance, kid.kernel_distance, prdc.prdc, distances])
def test_real_comes_before_generated(metric: Callable[..., Any]) -> None:
    assert list(inspect.signature(metric).parameters)[:2] == ["real", "generated"]


def test_duplicates_change_no_nearest_image_and_no_rate() -> None:
    f, y, g, z = people()
    whole = knn.knn_distance(f, y, g, z)
    assert torch.equal(knn.knn_distance(f, y, g.repeat(2, 1), z.repeat(2)), whole)
    hits = whole < whole.median()
    assert statistics.proportion(hits.repeat(3), y.repeat(3))[:3] == pytest.approx(statistics.proportion(hits, y)[:3])


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
    hits = accuracy.top_k(fixed(22, 60, 8), torch.arange(60) % 8)
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
        "top 5": float(accuracy.top_k(fixed(22, 60, 8), torch.arange(60) % 8, 5).double().mean()),
    }


def test_golden_values() -> None:
    assert measured() == pytest.approx(GOLDEN, rel=1e-6)  # the last bit of a float32 may differ between machines


# --- what is written and shown --------------------------------------------------------------------------------------


def test_scores_hold_prdc_and_reuse_the_real_side() -> None:
    real, generated = pair()
    found = distances(real, generated)
    assert found.to_json()["prdc"] == {**prdc.prdc(real, generated)._asdict(), "k": 5}
    assert distances(reference(real), generated) == found
    assert distances(real.float(), generated.float()).prdc is not None
    assert set(found.to_json()) == {"fid", "kid", "kid_error", "n", "n_real", "prdc"}


def test_tables_have_the_four_columns_and_old_scores_leave_them_blank() -> None:
    found = distances(*pair()).to_json()
    flat = rows.judged({"resnet": Judgement.from_json(found)}, ["resnet"])
    assert flat["density@resnet"] == found["prdc"]["density"] and flat["recall@resnet"] == found["prdc"]["recall"]
    old = {key: value for key, value in found.items() if key != "prdc"}
    for one in (old, found | {"prdc": None}):
        flat = rows.judged({"resnet": Judgement.from_json(one)}, ["resnet"])
        assert flat["fid@resnet"] == found["fid"]
        assert all(flat[f"{key}@resnet"] is None for key in ("precision", "recall", "density", "coverage"))
