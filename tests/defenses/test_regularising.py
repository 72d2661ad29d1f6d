"""Laws of the defenses that change the loss or the head: ls, nls, mid, bido and loft."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import colours

from mibench import models
from mibench.core import Access, Batch, Defense, Oracle, Step
from mibench.defenses.bido import BilateralDependency, centred, coco, gaussian, hsic, linear, shrunk, stages
from mibench.defenses.loft import LowRank, adapted
from mibench.defenses.ls import LabelSmoothing, smoothed
from mibench.defenses.mid import Bottleneck, MutualInformation, divergence
from mibench.defenses.nls import NegativeLabelSmoothing
from mibench.models.base import Classifier
from mibench.models.fold import fold
from mibench.plugins import registry
from mibench.runtime.engine import resolve
from mibench.runtime.errors import UserError
from mibench.runtime.progress import Silent
from mibench.runtime.rng import Noise
from mibench.training import Training, empty_memories, fit, loss_of

SIDE = 16
NAN = float("nan")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(b: int = 6, k: int = 4, clean: int = 6, seed: int = 0) -> Batch:
    """One-hot targets, uneven weights; the rows after `clean` belong to other defenses."""
    t = F.one_hot(torch.arange(b) % k, k).float()
    return Batch(drawn(b, 3, 8, 8, seed=seed).sigmoid(), t, torch.linspace(0.5, 1.5, b), clean)


def at(epoch: int = 0, epochs: int = 1) -> Step:
    """A step of which only the time matters."""
    nothing = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(nothing.parameters(), 0.1)
    noise = Noise(0, torch.arange(1))
    return Step(nothing, nn.Module(), optimizer, noise, epoch, epochs, resolve("cpu", "fp32"))


def cnn(*defenses: Defense, seed: int = 0, name: str = "cnn") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = models.build(name, 3, (3, SIDE, SIDE))
        for defense in defenses:
            model = defense.surgery(model)
    assert isinstance(model, Classifier)
    return model


def deployed(defense: Defense, model: Classifier, seed: int = 0) -> Classifier:
    (memory,) = empty_memories([defense], 3, (3, SIDE, SIDE), seed)
    served = defense.deploy(model, memory)
    assert isinstance(served, Classifier)
    return served.eval()


def trained(*defenses: Defense, epochs: int = 6) -> Classifier:
    model = cnn(*defenses)
    recipe = Training(epochs=epochs, batch=20, lr=0.01)
    fit(model, colours(60, SIDE), 3, recipe, resolve("cpu", "fp32"), 3, Silent(), "toy", defenses)
    return model.eval()


def pixels() -> Tensor:
    return colours(60, SIDE).images / 255.0


def labels() -> Tensor:
    return colours(60, SIDE).labels


# --- label smoothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.1, -0.05, 0.0, 0.2, 1.0])
def test_smoothed_targets_give_the_closed_form(alpha: float) -> None:
    """CE with (1 - a) t + a/k is (1 - a) NLL + a mean_k(-ln p_k), and its logit gradient p - t'."""
    batch, logits = replace(rows(), w=torch.ones(6)), drawn(6, 4).requires_grad_()
    log_p = F.log_softmax(logits, 1)
    wanted = (1 - alpha) * F.cross_entropy(logits, batch.t.argmax(1)) + alpha * -log_p.mean(1).mean()
    loss = loss_of(replace(batch, t=smoothed(batch.t, alpha)), logits)
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient * 6, log_p.exp().detach() - ((1 - alpha) * batch.t + alpha / 4))


def test_positive_smoothing_is_torchs() -> None:
    batch, logits = replace(rows(), w=torch.ones(6)), drawn(6, 4)
    found = loss_of(LabelSmoothing(0.1).batch(batch, at()), logits)
    torch.testing.assert_close(found, F.cross_entropy(logits, batch.t.argmax(1), label_smoothing=0.1))


def test_it_commutes_with_mixing_and_leaves_all_but_the_targets() -> None:
    batch = rows(b=9, clean=6)
    for defense in (LabelSmoothing(0.3), NegativeLabelSmoothing(-0.3, begin=0.0, full=0.0)):
        out = defense.batch(batch, at())
        assert out.x is batch.x and out.w is batch.w and out.clean == 6
        torch.testing.assert_close(out.t.sum(1), torch.ones(9))  # of added rows too
        assert not torch.isclose(out.t, batch.t).all(1).any()
        mixed = replace(batch, t=0.7 * batch.t + 0.3 * batch.t.flip(0))
        torch.testing.assert_close(defense.batch(mixed, at()).t, 0.7 * out.t + 0.3 * out.t.flip(0))


@pytest.mark.parametrize(
    ("ramp", "epoch", "expected"),
    [
        ("ref", 0, 0.0),
        ("ref", 49, 0.0),
        ("ref", 50, -0.001),
        ("ref", 74, -0.025),
        ("ref", 75, -0.05),
        ("ref", 99, -0.05),
        ("continuous", 49, 0.0),
        ("continuous", 50, -0.002),
        ("continuous", 74, -0.05),
        ("continuous", 75, -0.05),
    ],
)
def test_golden_values_of_the_schedule(ramp: Any, epoch: int, expected: float) -> None:
    """defenses.md section 4: the reference divides by E - 50, so it reaches half of alpha and jumps."""
    defense = NegativeLabelSmoothing(-0.05, ramp=ramp)
    assert defense.alpha_at(epoch, 100) == pytest.approx(expected, abs=1e-12)
    batch = rows()
    assert torch.equal(defense.batch(batch, at(epoch, 100)).t, smoothed(batch.t, expected) if expected else batch.t)


@pytest.mark.parametrize("ramp", ["ref", "continuous"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 10, 15, 50])
def test_a_schedule_of_any_length_only_grows_and_never_overshoots(ramp: Any, epochs: int) -> None:
    values = [NegativeLabelSmoothing(-0.1, ramp=ramp).alpha_at(epoch, epochs) for epoch in range(epochs)]
    assert all(-0.1 <= later <= earlier <= 0 for earlier, later in pairwise(values))
    assert values[0] == 0 and (epochs < 4 or values[-1] == -0.1)
    assert sum(value == 0 for value in values) == math.ceil(epochs / 2)


def test_what_negative_smoothing_teaches() -> None:
    """Past certainty the loss still falls with the margin, so that logits grow; positive smoothing stops them."""
    plain, negative, positive = (
        trained(*stack)(pixels()).gather(1, labels()[:, None]).mean() - trained(*stack)(pixels()).mean()
        for stack in ((), (NegativeLabelSmoothing(-0.3, begin=0.0, full=0.0),), (LabelSmoothing(0.3),))
    )
    assert negative > plain > positive


# --- mid ------------------------------------------------------------------------------------------------------------


def test_divergence_is_torchs() -> None:
    mu, r = drawn(5, 7), 4 * drawn(5, 7, seed=1) + 3
    wanted = kl_divergence(Normal(mu, F.softplus(r - 5)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(torch.cat([mu, r], 1)), wanted, rtol=1e-5, atol=1e-5)


def test_golden_divergences() -> None:
    """A new head costs 4.50 nats a dimension (mu = 0, r = 0); N(0, 1) itself costs nothing."""
    assert divergence(torch.zeros(1, 2 * 256)).item() == pytest.approx(1153, abs=1)
    unit = torch.cat([torch.zeros(1, 3), torch.full((1, 3), 5 + math.log(math.e - 1))], 1)
    assert divergence(unit).item() == pytest.approx(0.0, abs=1e-6)


def test_divergence_is_finite_where_the_spread_underflows() -> None:
    """ln softplus(u) -> u for u << 0, in value and slope; r shifted by -200 makes softplus 0 in float32."""
    r = (drawn(4, 6) - 200).requires_grad_()
    assert (F.softplus(r - 5) == 0).all()
    code = torch.cat([torch.zeros(4, 6), r], 1)
    torch.testing.assert_close(divergence(code), (-0.5 - (r - 5)).sum(1))
    (gradient,) = torch.autograd.grad(divergence(code).sum(), r)
    torch.testing.assert_close(gradient, -torch.ones_like(r))
    # and across the switch at -15 both sides agree with float64
    near = torch.linspace(-12, -8, 41)[None]
    exact = divergence(torch.cat([torch.zeros_like(near), near], 1))
    wanted = (0.5 * (F.softplus(near.double() - 5) ** 2 - 1) - F.softplus(near.double() - 5).log()).sum(1)
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-6, atol=0)


def test_the_mean_network_is_one_linear_map() -> None:
    head, h = Bottleneck(10, 4, 3).eval(), drawn(6, 10)
    weight = head.decode.weight @ head.encode.weight[:4]
    bias = head.decode.weight @ head.encode.bias[:4] + head.decode.bias
    torch.testing.assert_close(head(h), F.linear(h, weight, bias))
    torch.testing.assert_close(head(h, torch.zeros(6, 4)), head(h))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(h), head(h, torch.zeros(6, 4))) and head(h).dtype == torch.float32
    torch.testing.assert_close(head(h.bfloat16()), F.linear(h.bfloat16().float(), weight, bias))


def test_training_draws_the_code_and_eval_does_not() -> None:
    torch.manual_seed(0)
    head, h = Bottleneck(10, 4, 3), drawn(1, 10).expand(20000, 10)
    with torch.no_grad():
        head.encode.bias[4:] += 6.0  # a spread of about 1
        noise = (head.train()(h) - head.eval()(h))[:, 0]
        s = F.softplus(head.encode(h[:1])[0, 4:] - 5)
        sigma = float((head.decode.weight[0] * s).square().sum().sqrt())
    assert stats.kstest(noise.numpy(), stats.norm(0, sigma).cdf).pvalue > 1e-3


@pytest.mark.parametrize("per_dim", [False, True])
def test_the_penalty_is_beta_times_the_weighted_divergence(per_dim: bool) -> None:
    batch, code = rows(b=9, clean=6), drawn(9, 8)
    found = MutualInformation(0.5, per_dim=per_dim).penalty(batch, drawn(9, 4), [code], at())
    each = torch.stack([divergence(code[i : i + 1])[0] * batch.w[i] for i in range(9)])
    torch.testing.assert_close(found, 0.5 * each.sum() / 6 / (4 if per_dim else 1))


def test_without_a_price_there_is_no_penalty() -> None:
    defense = MutualInformation(0.0)
    model = cnn(defense)
    assert list(defense.taps(model)) == [] and defense.penalty(rows(), drawn(6, 4), [], at()) is None
    assert list(MutualInformation().taps(model)) == [model.head.encode]


@pytest.mark.parametrize(("k", "width"), [(None, 64), (5, 5)])
def test_surgery_keeps_the_features_and_their_width(k: int | None, width: int) -> None:
    plain, model = cnn().eval(), cnn(MutualInformation(k=k)).eval()
    assert model.head.k == width and model.head.decode.out_features == 3 and model.feature_dim == 128
    assert torch.equal(plain.features(pixels()), model.features(pixels()))


def test_a_higher_price_lets_less_through() -> None:
    def nats(beta: float) -> float:
        model = trained(MutualInformation(beta))
        return float(divergence(model.head.encode(model.features(pixels()))).mean().detach())

    cheap, fair, dear = nats(0.0), nats(0.01), nats(1.0)
    assert dear < fair < cheap


def test_noise_is_served_by_content_and_only_served() -> None:
    defense = MutualInformation(serve="noise")
    model = cnn(defense).eval()
    with torch.no_grad():
        model.head.encode.bias[64:] += 6.0
        served = deployed(defense, model)
        x = pixels()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(served(x)[order], served(x[order]))  # asking again, elsewhere in a batch
        assert torch.equal(served.features(x), model.features(x))
        assert torch.equal(served.head(served.features(x)), model(x))  # the white box holds the mean network
        # Many images with the same features: N(mean logits, W s^2 W').
        h = model.features(x[:1])
        others = torch.rand(5000, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        noise = (served.serve(h.expand(5000, -1), others) - model.head(h))[:, 0]
        s = F.softplus(model.head.encode(h)[0, 64:] - 5)
        sigma = float((model.head.decode.weight[0] * s).square().sum().sqrt())
    assert stats.kstest(noise.numpy(), stats.norm(0, sigma).cdf).pvalue > 1e-3
    assert not torch.allclose(served(x), deployed(defense, model, seed=1)(x))  # another target, another key
    assert deployed(MutualInformation(serve="mean"), model) is model


# --- bido -----------------------------------------------------------------------------------------------------------


def naive_gaussian(z: Tensor, sigma: float) -> Tensor:
    m, d = z.shape
    k = torch.zeros(m, m, dtype=torch.float64)
    for i in range(m):
        for j in range(m):
            k[i, j] = math.exp(
                -sum((float(a) - float(b)) ** 2 for a, b in zip(z[i], z[j], strict=True)) / (2 * sigma**2 * d)
            )
    return k


def naive_hsic(k: Tensor, other: Tensor) -> float:
    """As published: kernels centred on one side only, inverted as they are, multiplied and traced."""
    m = len(k)
    h = torch.eye(m, dtype=torch.float64) - 1.0 / m
    r = [a.double() @ h @ torch.linalg.inv(a.double() @ h + 1e-5 * m * torch.eye(m)) for a in (k, other)]
    return sum(float(r[0][i, j] * r[1][j, i]) for i in range(m) for j in range(m))


@pytest.mark.parametrize("sigma", [0.5, 5.0])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_hsic_is_its_definition(sigma: float, scale: float) -> None:
    m = 14
    x, z = drawn(m, 6).sigmoid(), scale * drawn(m, 5, seed=1) + 2
    y = F.one_hot(torch.arange(m) % 4, 4)
    forms = [shrunk(centred(gram)) for gram in (gaussian(x, sigma), gaussian(z, sigma), linear(y.float()))]
    kernels = [naive_gaussian(x, sigma), naive_gaussian(z, sigma), (y @ y.T).double()]
    for i, j in ((0, 1), (1, 2), (1, 1)):
        assert float(hsic(forms[i], forms[j])) == pytest.approx(naive_hsic(kernels[i], kernels[j]), rel=2e-3)
    # Several layers at once are each alone.
    stack = shrunk(centred(torch.stack([gaussian(x, sigma), gaussian(z, sigma)])))
    torch.testing.assert_close(hsic(stack, forms[2]), torch.stack([hsic(forms[0], forms[2]), hsic(forms[1], forms[2])]))


def test_hsic_of_a_layer_with_itself_is_its_rank() -> None:
    """Golden: a linear kernel of rank 10 gives 10.000; a Gaussian of any layer less than m - 1."""
    gram = linear(drawn(64, 10))
    form, exact = shrunk(centred(gram)), shrunk(centred(drawn(64, 10).double() @ drawn(64, 10).double().T))
    assert float(hsic(exact, exact)) == pytest.approx(10.0, abs=5e-4)
    assert float(hsic(form, form)) == pytest.approx(10.0, abs=2e-3)  # what float32 rounds beside the ridge
    full = shrunk(centred(gaussian(drawn(64, 30), 5.0)))
    assert 0 < float(hsic(full, full)) < 63


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_dependence_does_not_know_the_order_of_the_batch(measure: str) -> None:
    x, z = drawn(20, 12), drawn(20, 7, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))

    def dependence(a: Tensor, b: Tensor) -> Tensor:
        grams = centred(torch.stack([gaussian(a, 1.0), gaussian(b, 1.0)]))
        return hsic(*shrunk(grams)) if measure == "hsic" else coco(*grams)

    torch.testing.assert_close(dependence(x, z), dependence(x[order], z[order]), rtol=1e-4, atol=0)
    torch.testing.assert_close(dependence(x, z), dependence(z, x), rtol=1e-5, atol=0)
    torch.testing.assert_close(dependence(x, z), dependence(x + 100, z), rtol=1e-2, atol=0)  # nor an offset
    assert dependence(x, torch.cat([x[:, :6], z[:, :1]], 1)) > dependence(x, z)


def test_coco_is_the_frobenius_norm_and_bounds_constrained_covariance() -> None:
    m = 24
    x, z = drawn(m, 6), drawn(m, 5, seed=1)
    h = torch.eye(m, dtype=torch.float64) - 1.0 / m
    product = h @ naive_gaussian(x, 5.0) @ h @ h @ naive_gaussian(z, 5.0) @ h
    singular = torch.linalg.svdvals(product)
    found = float(coco(centred(gaussian(x, 5.0)), centred(gaussian(z, 5.0))))
    assert found == pytest.approx(float(singular.square().sum().sqrt().sqrt() / m), rel=1e-3)
    spectral = float(singular[0].sqrt() / m)
    assert spectral * 1.05 < found <= spectral * m**0.25


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_a_constant_layer_has_no_dependence_and_a_finite_gradient(measure: Any) -> None:
    dead, live = torch.ones(6, 5, requires_grad=True), drawn(6, 5).requires_grad_()
    found = BilateralDependency(1.0, 3.0, measure).penalty(rows(), drawn(6, 4), [dead], at())
    assert found is not None and abs(float(found.detach())) < 1e-6
    both = BilateralDependency(1.0, 3.0, measure).penalty(rows(), drawn(6, 4), [dead, live], at())
    assert both is not None
    gradients = torch.autograd.grad(both, [dead, live])
    assert torch.equal(gradients[0], torch.zeros(6, 5)) and gradients[1].isfinite().all() and gradients[1].any()


def test_the_penalty_adds_up_from_its_terms_on_the_batchs_own_images() -> None:
    batch, logits = rows(b=12, clean=8), drawn(12, 4)
    taps = [drawn(12, 5, 4, 4, seed=1), drawn(12, 7, seed=2).bfloat16()]
    x, y = centred(gaussian(batch.x[:8].flatten(1), 5.0)), centred(linear(batch.t[:8]))
    z = [centred(gaussian(tap[:8].flatten(1), 5.0)) for tap in taps]
    on_image, on_label = (sum(hsic(shrunk(one), shrunk(other)) for one in z) for other in (x, y))
    for normalise, scale in ((True, 1 / 7), (False, 1.0)):
        found = BilateralDependency(0.2, 3.0, normalise=normalise).penalty(batch, logits, taps, at())
        torch.testing.assert_close(found, scale * 0.2 * (on_image - 3.0 * on_label))
    found = BilateralDependency(0.2, 3.0, "coco").penalty(batch, logits, taps, at())
    torch.testing.assert_close(found, 0.2 * sum(coco(one, x) - 3.0 * coco(one, y) for one in z))
    # Rows of other defenses do not count.
    own = Batch(batch.x[:8], batch.t[:8], batch.w[:8], 8)
    alone = BilateralDependency(0.2, 3.0).penalty(own, logits[:8], [tap[:8] for tap in taps], at())
    torch.testing.assert_close(alone, BilateralDependency(0.2, 3.0).penalty(batch, logits, taps, at()))
    assert BilateralDependency(0.0).penalty(batch, logits, [], at()) is None


@pytest.mark.parametrize(("pool_to", "side"), [(2, 2), (3, 3), (4, 3), (6, 6), (9, 6)])
def test_pooling_averages_wide_maps_only(pool_to: int, side: int) -> None:
    """6 pixels in windows of ceil(6 / pool_to): never more than pool_to a side; vectors stay."""
    wide, vector = drawn(6, 2, 6, 6), drawn(6, 5)
    window = 6 // side
    means = wide.reshape(6, 2, side, window, side, window).mean(dim=(3, 5))
    by_hand = BilateralDependency().penalty(rows(), drawn(6, 4), [means, vector], at())
    pooled = BilateralDependency(pool_to=pool_to).penalty(rows(), drawn(6, 4), [wide, vector], at())
    torch.testing.assert_close(pooled, by_hand)


class Watch(TorchDispatchMode):
    """Notes whatever would make the host wait for a device, or send it something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device)
        waits = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "lift_fresh", "_linalg_check_errors")
        if moved or name in waits:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_the_penalty_stays_on_the_device(measure: Any) -> None:
    """The reference moves matrices to the CPU; here nothing is read back, as the meta device proves, nor moved."""
    defense = BilateralDependency(1.0, measure=measure, pool_to=2)
    for device in ("cpu", "meta"):
        with torch.device(device):
            batch = Batch(torch.rand(6, 3, 8, 8), torch.eye(6), torch.ones(6), 6)
            tap = torch.rand(6, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
            logits = torch.rand(6, 6)
        with Watch() as watch:
            found = defense.penalty(batch, logits, [tap], at())
            assert found is not None
            found.backward()
        assert found.device.type == device and tap.grad is not None and watch.seen == []
    with Watch() as watch:
        torch.linalg.cholesky(torch.eye(3))
        torch.ones(1).item()
    assert len(watch.seen) == 2  # the watch sees


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", ["stage1", "stage2", "stage3"]),
        ("resnet", ["stem", "stage1", "stage2", "stage3"]),
        ("ir", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("vgg16_bn64", [f"convolutions.{place}" for place in (6, 13, 23, 33, 43)]),
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("vgg16_bn", [f"features.{place}" for place in (6, 13, 23, 33, 43)]),
        (
            "densenet121",
            [
                f"features.{part}"
                for part in (
                    "denseblock1",
                    "transition1",
                    "denseblock2",
                    "transition2",
                    "denseblock3",
                    "transition3",
                    "denseblock4",
                )
            ],
        ),
        ("vit_b_16", []),
    ],
)
def test_hidden_layers_of_every_architecture(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = models.build(name, 10, (3, 64, 64))
    paths = {id(module): path for path, module in model.trunk.named_modules()}
    assert [paths[id(stage)] for stage in stages(model.trunk)] == expected
    assert list(BilateralDependency().taps(model)) == [*stages(model.trunk), model.trunk]
    assert list(BilateralDependency(0.0).taps(model)) == []


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_descending_the_penalty_moves_each_dependence_where_it_should(measure: Any) -> None:
    """Free codes of 12 images: each term alone lowers what they tell of the image, raises what of the label."""
    batch, start = rows(b=12, clean=12), drawn(12, 5)
    image, label = gaussian(batch.x.flatten(1), 5.0), linear(batch.t)

    def dependence(z: Tensor, other: Tensor) -> float:
        grams = centred(torch.stack([gaussian(z, 5.0), other]))
        return float(hsic(*shrunk(grams)) if measure == "hsic" else coco(*grams))

    def moved(defense: BilateralDependency) -> Tensor:
        z = start.clone().requires_grad_()
        descent = torch.optim.Adam([z], lr=0.03)
        for _ in range(30):
            descent.zero_grad()
            defense.penalty(batch, drawn(12, 4), [z], at()).backward()
            descent.step()
        return z.detach()

    assert dependence(moved(BilateralDependency(1.0, 0.0, measure)), image) < 0.9 * dependence(start, image)
    assert dependence(moved(BilateralDependency(1e-6, 1e6, measure)), label) > 1.1 * dependence(start, label)


def test_training_moves_each_dependence_where_it_should() -> None:
    """The same through a whole training: features of the images it saw. HSIC with three labels is 2 of 2 anyway."""

    def dependence(*stack: Defense) -> tuple[float, float]:
        z = centred(gaussian(trained(*stack, epochs=2).features(pixels()).detach(), 5.0))
        x, y = centred(gaussian(pixels().flatten(1), 5.0)), centred(linear(F.one_hot(labels()).float()))
        return float(hsic(shrunk(z), shrunk(x))), float(coco(z, y))

    plain = dependence()
    assert dependence(BilateralDependency(5.0, 0.0))[0] < 0.9 * plain[0]
    assert dependence(BilateralDependency(1e-3, 1e5, "coco"))[1] > 1.1 * plain[1]


# --- loft -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tanh", [False, True])
def test_the_head_is_of_low_rank_and_bounded(tanh: bool) -> None:
    defense = LowRank(rank=2, tanh=tanh)
    model = cnn(defense).eval()
    h = 50 * drawn(30, 128)
    with torch.no_grad():
        logits = model.head(h)
        singular = torch.linalg.svdvals(logits - model.head.up.bias)
        hidden = model.head.down(h)
        wanted = model.head.up(hidden.tanh() if tanh else hidden)
        bound = model.head.up.weight.abs().sum(1) + model.head.up.bias.abs()
    torch.testing.assert_close(logits, wanted)
    assert (singular[2:] < 1e-5 * singular[0]).all() and singular[1] > 1e-3
    assert bool((logits.abs() <= bound).all()) == tanh
    assert torch.equal(model.features(pixels()), cnn().eval().features(pixels()))


@pytest.mark.parametrize("b", [0.5, 2.0, 10.0, 20.0])
def test_the_adapted_loss_is_lowest_where_the_score_is_exp_minus_1_over_b(b: float) -> None:
    """Golden: b = 10 gives .905 and b = 20 .951; the value there is -1 / (b e)."""
    p = torch.linspace(0.01, 0.999, 2000, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], 1).float()
    t = torch.tensor([[1.0, 0.0]]).expand(2000, 2)
    loss = adapted(t, logits, b)
    best = loss.argmin()
    assert float(p[best]) == pytest.approx(math.exp(-1 / b), abs=3e-3)
    assert float(loss[best]) == pytest.approx(-1 / (b * math.e), rel=1e-3)
    assert b != 10 or math.exp(-1 / b) == pytest.approx(0.905, abs=5e-4)
    exact = torch.tensor([[math.log(math.exp(-1 / b)), math.log(1 - math.exp(-1 / b))]], requires_grad=True)
    (gradient,) = torch.autograd.grad(adapted(t[:1], exact, b).sum(), exact)
    torch.testing.assert_close(gradient, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_stage_2_replaces_the_cross_entropy_of_every_row() -> None:
    batch, logits = rows(b=9, clean=6), drawn(9, 4).requires_grad_()
    defense = LowRank(confidence_b=3.0, stage2=0.25)
    assert [defense.penalty(batch, logits, [], at(epoch, 8)) is None for epoch in range(8)] == [True] * 6 + [False] * 2
    total = loss_of(batch, logits) + defense.penalty(batch, logits, [], at(6, 8))
    wanted = (batch.w * adapted(batch.t, logits, 3.0)).sum() / 6
    torch.testing.assert_close(total, wanted)
    found, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (total, wanted))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert LowRank().penalty(batch, logits, [], at(7, 8)) is None
    assert LowRank(confidence_b=3.0, stage2=0.0).penalty(batch, logits, [], at(7, 8)) is None


@pytest.mark.parametrize("b", [1.5, 6.0])
def test_stage_2_sets_the_confidence_on_training_images(b: float) -> None:
    def confidence(defense: Defense) -> float:
        scores = trained(defense, epochs=16)(pixels()).softmax(1)
        return float(scores.gather(1, labels()[:, None]).mean().detach())

    assert confidence(LowRank()) > 0.95
    assert confidence(LowRank(confidence_b=b, stage2=1.0)) == pytest.approx(math.exp(-1 / b), abs=0.02)


# --- what all share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "defense", [LowRank(rank=5), LowRank(rank=5, tanh=False), MutualInformation(), MutualInformation(serve="noise")]
)
@pytest.mark.parametrize("name", ["cnn", "ir"])
def test_changed_heads_fold_and_answer_an_attacker(defense: Defense, name: str) -> None:
    model = cnn(defense, name=name).eval()
    served = deployed(defense, model)
    frozen, x = fold(served), pixels()[:6].requires_grad_()
    torch.testing.assert_close(frozen(x), served(x), atol=1e-4, rtol=1e-4)
    oracle = Oracle(frozen, Access.WHITE_BOX, 3)
    logits, features = oracle.answers(x, None)
    torch.testing.assert_close(logits, model(x), atol=1e-4, rtol=1e-4)  # never noisy
    assert features.shape == (6, model.feature_dim)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels()[:6]), x)
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).all()
    assert all(not parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ls", {"alpha": -0.1}),
        ("ls", {"alpha": 1.5}),
        ("ls", {"alpha": NAN}),
        ("nls", {"alpha": 0.1}),
        ("nls", {"alpha": NAN}),
        ("nls", {"alpha": -math.inf}),
        ("nls", {"begin": 0.8}),
        ("nls", {"full": 1.2}),
        ("nls", {"begin": NAN}),
        ("nls", {"full": NAN}),
        ("mid", {"beta": -1.0}),
        ("mid", {"beta": NAN}),
        ("mid", {"beta": math.inf}),
        ("mid", {"k": 0}),
        ("bido", {"lambda_x": -0.1}),
        ("bido", {"lambda_x": NAN}),
        ("bido", {"ratio": -1.0}),
        ("bido", {"ratio": NAN}),
        ("bido", {"sigma": 0.0}),
        ("bido", {"sigma": NAN}),
        ("bido", {"pool_to": 0}),
        ("loft", {"rank": 0}),
        ("loft", {"confidence_b": -1.0}),
        ("loft", {"confidence_b": NAN}),
        ("loft", {"stage2": 1.5}),
        ("loft", {"stage2": NAN}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{name}: {next(iter(settings))}|^{name}: shares") as caught:
        registry.load("defenses", name)(**settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        registry.configure("defenses", name, settings=settings)


def test_negative_settings_are_allowed_where_they_mean_something() -> None:
    assert registry.configure("defenses", "nls", settings={"alpha": "-0.02"}).plugin == NegativeLabelSmoothing(-0.02)
    with pytest.raises(UserError, match="negative"):
        registry.configure("defenses", "nls", settings={"begin": "-0.5"})


def test_two_heads_and_two_smoothings_are_refused() -> None:
    from mibench.experiments.reading import read_stack

    for stack in ("mid+loft", "loft+mid", "ls+nls", "nls+ls"):
        with pytest.raises(UserError, match="cannot be combined"):
            read_stack(stack, {})
    for first, second in ((LowRank(), MutualInformation()), (MutualInformation(), LowRank())):
        with pytest.raises(UserError, match=r"linear last layer.*such as cnn"):
            cnn(first, second)
    with pytest.raises(UserError, match="rank must be at most the 128"):
        cnn(LowRank(rank=129))


@pytest.mark.parametrize("name", ["cnn", "resnet", "ir", "vgg16_bn64", "resnet18", "vit_b_16"])
@pytest.mark.parametrize("defense", [LowRank(), MutualInformation()])
def test_surgery_on_the_meta_device(name: str, defense: Defense) -> None:
    with torch.device("meta"):
        model = defense.surgery(models.build(name, 10, (3, 64, 64)))
    assert isinstance(model, Classifier) and all(part.is_meta for part in model.head.parameters())


def test_presets() -> None:
    def preset(name: str, which: str = "paper") -> Any:
        return registry.configure("defenses", name, which).plugin

    assert preset("ls") == LabelSmoothing(0.1)
    assert preset("nls") == NegativeLabelSmoothing(-0.05, 0.5, 0.75, "ref")
    assert preset("mid") == MutualInformation(0.003, None, False, "noise")
    assert preset("bido") == BilateralDependency(0.05, 10.0, "hsic", 5.0, normalise=False)
    assert preset("bido", "coco") == BilateralDependency(1.0, 50.0, "coco", 5.0)
    assert preset("loft") == LowRank(30, True, 0.0)
