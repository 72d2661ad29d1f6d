"""Laws of students: what they minimise, that they learn it, and that nothing but their seed decides the outcome."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import World, workspace

from mibench.attacks.parts.surrogates import (
    Distillation,
    build_surrogates,
    distil,
    restore,
    soft_cross_entropy,
    train_surrogates,
    weights,
)
from mibench.core import AttackContext, to_float
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

SHAPE = (3, 16, 16)


def lesson_data(count: int = 40, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Stored images and soft answers."""
    noise = Noise(3, torch.arange(count))
    images = (255 * noise.uniform(*SHAPE)).to(torch.uint8)
    return images, noise.of("answers").normal(classes).softmax(dim=1)


def taught(seed: int = 0, **settings: object) -> dict[str, Tensor]:
    student = build_surrogates(("cnn",), 4, SHAPE, 0)[0]
    distil(student, *lesson_data(), Distillation(epochs=2, batch=16, lr=0.05), seed, **settings)  # type: ignore[arg-type]
    return weights(student)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_soft_cross_entropy_is_kl_plus_the_answers_entropy() -> None:
    logits, answers = (Noise(1, torch.arange(9)).of(part).normal(5) for part in "ab")
    answers = (2 * answers).softmax(dim=1)
    kl = F.kl_div(logits.log_softmax(1), answers, reduction="none").sum(dim=1)
    entropy = torch.distributions.Categorical(answers).entropy()
    torch.testing.assert_close(soft_cross_entropy(logits, answers), kl + entropy)
    y = torch.arange(9) % 5
    torch.testing.assert_close(
        soft_cross_entropy(logits, F.one_hot(y, 5).float()), F.cross_entropy(logits, y, reduction="none")
    )


def test_the_published_value() -> None:
    """By hand: logits [.5, 0, -.5, 1] against softmax([2, 1, 0, -1])."""
    found = soft_cross_entropy(torch.tensor([[0.5, 0.0, -0.5, 1.0]]), torch.tensor([[2.0, 1.0, 0.0, -1.0]]).softmax(1))
    assert float(found) == pytest.approx(1.476895, abs=1e-5)


@pytest.mark.parametrize(
    ("lesson", "torchs"),
    [
        (
            Distillation(lr=0.1, epochs=12, schedule="cosine"),
            lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 12),
        ),
        (
            Distillation(lr=0.1, epochs=12, step_epochs=5, gamma=0.5),
            lambda sgd: torch.optim.lr_scheduler.StepLR(sgd, 5, 0.5),
        ),
    ],
)
def test_rates_are_those_of_torch(lesson: Distillation, torchs) -> None:
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torchs(sgd)
    for epoch in range(12):
        assert lesson.rate(epoch) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-9)
        sgd.step()
        schedule.step()


def test_one_step_is_sgd_on_the_mean_loss() -> None:
    images, answers = lesson_data(12)
    one, other = (build_surrogates(("cnn",), 4, SHAPE, 0)[0] for _ in range(2))
    distil(one, images, answers, Distillation(lr=0.1, batch=12, epochs=1, weight_decay=0.01), 0)
    other.train()
    soft_cross_entropy(other(to_float(images)), answers).mean().backward()
    for name, after in one.named_parameters():
        before = other.get_parameter(name)
        assert before.grad is not None
        expected = before - 0.1 * (before.grad + 0.01 * before)
        torch.testing.assert_close(after, expected, rtol=0, atol=2e-6)
    assert not one.training and not any(part.requires_grad or part.grad is not None for part in one.parameters())


def test_augmented_copies_weigh_half() -> None:
    """A linear student: the update is half that of the images and half that of their copies."""
    images, answers = lesson_data(8)

    def update(change) -> Tensor:
        student = build_surrogates(("cnn",), 4, SHAPE, 0)[0]
        student.trunk = nn.Flatten()
        student.head = nn.Linear(3 * 16 * 16, 4)
        with torch.no_grad():
            student.head.weight.zero_()
            student.head.bias.zero_()
        distil(
            student, images, answers, Distillation(lr=0.1, batch=8, epochs=1, weight_decay=0.0, momentum=0.0), 0, change
        )
        return student.head.weight

    mirrored = lambda x, noise: x.flip(3)  # noqa: E731
    plain, both, twice = update(None), update(mirrored), update(lambda x, noise: x)
    torch.testing.assert_close(twice, plain)
    seen = plain.reshape(4, *SHAPE)
    torch.testing.assert_close(both.reshape(4, *SHAPE), (seen + seen.flip(3)) / 2)


def test_images_and_their_copies_have_batch_statistics_of_their_own() -> None:
    """Dark copies of bright images: one batch of both would be normalised by what neither has. Source: LOKT's code."""
    images, answers = lesson_data(8)
    student = build_surrogates(("cnn",), 4, SHAPE, 0)[0]
    norm = next(part for part in student.modules() if isinstance(part, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda part, given: seen.append(given[0].detach()))
    distil(student, images, answers, Distillation(batch=8, epochs=1), 0, lambda x, noise: 0.1 * x)
    plain, dark = seen
    assert len(plain) == len(dark) == 8 and not torch.equal(plain, dark)


def test_only_the_seed_decides() -> None:
    torch.manual_seed(1)
    first = taught()
    state = torch.get_rng_state()
    jitter = lambda x, noise: x + 0.1 * noise.normal(*SHAPE)  # noqa: E731
    assert equal(first, taught()) and torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    assert not equal(first, taught(seed=1)) and not equal(first, taught(augment=jitter))
    assert equal(taught(augment=jitter), taught(augment=jitter))
    same, others = build_surrogates(("cnn", "cnn"), 4, SHAPE, 5), build_surrogates(("cnn", "cnn"), 4, SHAPE, 6)
    assert equal(weights(same[0]), weights(build_surrogates(("cnn", "resnet"), 4, SHAPE, 5)[0]))
    assert not equal(weights(same[0]), weights(same[1])) and not equal(weights(same[0]), weights(others[0]))


def test_a_student_agrees_with_its_teacher() -> None:
    world = World(10)
    images = world.public(600).images
    with torch.no_grad():
        teacher = world.target(to_float(images))
        (student,) = train_surrogates(
            "test",
            ("cnn",),
            images[:400],
            teacher[:400].softmax(1),
            Distillation(lr=0.05, epochs=10, schedule="cosine"),
            0,
            world.oracle(),
            workspace(world),
        )
        unseen = student(to_float(images[400:])).argmax(1) == teacher[400:].argmax(1)
        untaught = build_surrogates(("cnn",), 10, (3, 8, 8), 0)[0].eval()(to_float(images[400:])).argmax(1)
    assert unseen.float().mean() > 0.8
    assert (untaught == teacher[400:].argmax(1)).float().mean() < 0.4


def test_restoring_folds_but_answers_the_same() -> None:
    student = build_surrogates(("resnet",), 4, SHAPE, 0)[0]
    images, answers = lesson_data()
    distil(student, images, answers, Distillation(epochs=1, lr=0.05), 0)
    kept = weights(student)
    back = restore(build_surrogates(("resnet",), 4, SHAPE, 9)[0], kept, torch.device("cpu"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in back.modules())
    x = to_float(images)
    torch.testing.assert_close(back(x), student(x), rtol=1e-4, atol=1e-4)
    assert not any(part.requires_grad for part in back.parameters()) and not back.training


def test_a_school_is_kept_and_asks_nothing(tmp_path: Path) -> None:
    world = World(4)
    images = world.public(30).images
    answers = torch.full((30, 4), 0.25)
    oracle = world.oracle(budget=0)

    def run(folder: Path | None, lr: float = 0.05) -> list[dict[str, Tensor]]:
        found = train_surrogates(
            "test",
            ("cnn", "cnn"),
            images,
            answers,
            Distillation(epochs=1, batch=10, lr=lr),
            0,
            oracle,
            AttackContext(8, folder),
        )
        return [weights(student) for student in found]

    first = run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-test-student-0.pt",
        "checkpoint-test-student-1.pt",
    ]
    again = run(tmp_path, lr=0.5)  # taken from the folder, not taught anew
    assert all(equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(equal(one, other) for one, other in zip(first, run(None), strict=True))
    assert not equal(first[0], first[1]) and oracle.shared_queries == 0


def test_what_makes_no_sense_is_refused() -> None:
    images, answers = lesson_data(2)
    student = build_surrogates(("cnn",), 4, SHAPE, 0)[0]
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        distil(student, images[:1], answers[:1], Distillation(), 0)
    with pytest.raises(UserError, match="stopped being finite"):
        distil(student, images, answers / 0.0, Distillation(epochs=1), 0)
    with pytest.raises(UserError, match="batch of at least 2"):
        Distillation(batch=1)
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        build_surrogates(("cnnn",), 4, SHAPE, 0)
