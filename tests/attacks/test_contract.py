"""Laws of every attack, on worlds so simple that failing there is a mistake."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import COMPOSED, PLANNED, ROUNDING, accuracy, erased, run, same, world_of
from interruptions import Interruption
from torch import Tensor
from worlds import ACCESS, ToldPrior, World, attack_on, quick, workspace

from mibench.core import Access, AttackContext, BudgetExhausted, Cost, Oracle, Reconstructions
from mibench.plugins import capabilities, registry
from mibench.priors.public import PublicImages
from mibench.runtime.engine import Engine
from mibench.runtime.errors import UserError

ALONE = [name for name, card in registry.cards("attacks").items() if card["role"] != "wrapper"]
NAMES = [*ALONE, *COMPOSED]
FEWER = [*ALONE, *PLANNED]
"""For laws that take many runs."""


SHORT: dict[str, dict[str, Any]] = {
    "if_gmi": {"steps": (4, 2, 2), "pool": 60},
    "mi_face": {"steps": 8},
    "gmi": {"steps": 12},
    "kedmi": {"steps": 12},
    "ppa": {"steps": 8, "pool": 60, "selection_views": 4},
    "prior_search": {"pool": 60},
    "lomma_gmi": {"steps": 12, "students": ("cnn",), "student_epochs": 1},
    "lomma_kedmi": {"steps": 12, "students": ("cnn",), "student_epochs": 1},
    "vmi": {"steps": 6, "flow_steps": 2, "flow_hidden": 8},
    "plg": {"steps": 8},
    "lokt": {"steps": 8, "samples": 60, "surrogates": ("cnn",), "epochs": 1},
    "diff_mi": {"steps": 4, "pgd_steps": 2},
    "sfmi": {"steps": 8},
    "rlb": {"episodes": 40, "hidden": 8, "batch": 16},
    "brep": {"init_pool": 60, "iterations": 5, "points": 4, "radius": 0.5},
    "random_search": {"queries": 40},
    "label_search": {"queries": 40, "candidates": 4},
    "mirror": {"steps": 12, "pool": 60, "candidates": 3},
    "mirror_bb": {"pool": 60, "population": 8, "generations": 4},
    "cma_es": {"population": 8, "generations": 4},
    "smile": {"pool": 60, "people": 30, "embedding_epochs": 1, "width": 16, "epochs": 2, "steps": 8, "queries": 12},
    "c2f": {
        "embedding_epochs": 1,
        "people": 30,
        "map_epochs": 1,
        "width": 16,
        "steps": 3,
        "generations": 4,
        "fading": 0,  # the last generations' steps are so small that rounding decides between a child and its parent
    },
}
"""Enough steps to see a law, for tests that do not ask for success; an attack without an entry runs in full."""


INSIDE: set[str] = {
    "if_gmi",  # its images come from optimised features
    "diff_mi",  # searches pixels; the prior's latents are its sampler's noise
    "sfmi",  # bends the prior's flow; its latents are where the flow ends
}
"""Attacks that search inside the prior or change it, so that their latents alone do not give the images."""


def short(world: World, name: str, labels: Tensor | None = None, **given: Any) -> Reconstructions:
    if name in COMPOSED:
        return run(COMPOSED[name], world, labels, **given)
    return attack_on(world, name, labels, **(SHORT.get(name, {}) | given))


def inner(name: str) -> str:
    """The attack inside the wrappers."""
    return name.split("+")[0]


def cost_of(name: str, world: World) -> Cost:
    attack = COMPOSED[name] if name in COMPOSED else quick(name, **SHORT.get(name, {}))
    return attack.cost(world.prior_for(inner(name)), len(world.public()))


def work_of(name: str, world: World, batch: int, folder: Path | None = None) -> AttackContext:
    return (erased if name in COMPOSED else workspace)(world, batch, folder)


@cache
def whole(name: str) -> tuple[Reconstructions, Oracle]:
    """What comes out of a run of all identities of the shared world, for all tests that only look at it."""
    world = world_of()
    oracle = world.oracle(access_of(name))
    return short(world, name, oracle=oracle), oracle


def access_of(name: str) -> Access:
    return ACCESS[registry.card("attacks", inner(name))["access"]]


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out(name: str) -> None:
    world, labels = world_of(), torch.tensor([4, 0, 3])
    found = short(world, name, labels)
    images = 2 if name in COMPOSED else quick(name).images  # type: ignore[attr-defined]
    assert found.images.shape == (3 * images, *world.prior.image_shape) and found.images.dtype == torch.float32
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert torch.equal(found.labels, labels.repeat_interleave(images))  # grouped, in the order asked for
    assert len(found.latents) == len(found.failed) == len(found.images)
    for part in asdict(found).values():
        assert not part.requires_grad and (part.dtype == torch.bool or part.isfinite().all())
    if name not in INSIDE and "ppdg" not in name:
        torch.testing.assert_close(world.prior_for(inner(name)).decode(found.latents, found.labels), found.images)


@pytest.mark.parametrize("name", NAMES)
def test_target_and_prior_are_untouched(name: str) -> None:
    world = World(4)
    before = {key: value.clone() for model in (world.target, world.prior) for key, value in model.state_dict().items()}
    short(world, name)
    after = {key: value for model in (world.target, world.prior) for key, value in model.state_dict().items()}
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    parameters = [*world.target.parameters(), *world.prior.parameters()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert not world.target.training and not world.prior.training


@pytest.mark.parametrize("name", NAMES)
def test_access_is_what_the_card_says_and_no_less_would_do(name: str) -> None:
    world = world_of()
    whole(name)
    for access in Access:
        if access < access_of(name):
            with pytest.raises(UserError, match=f"was granted {access.name.lower()}"):
                short(world, name, oracle=world.oracle(access))


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_exact(name: str) -> None:
    world, labels = world_of(), torch.tensor([4, 0, 3])
    told: list[int] = []
    oracle = Oracle(world.target, access_of(name), world.classes, tick=told.append)
    short(world, name, labels, oracle=oracle, work=work_of(name, world, 5))
    cost = cost_of(name, world)
    attacked = torch.zeros(world.classes, dtype=torch.int64)
    attacked[labels] = 1
    assert torch.equal(oracle.queries, attacked * cost.queries)
    assert torch.equal(oracle.gradient_images, attacked * cost.gradient_images)
    assert oracle.shared_queries == cost.shared_queries
    assert sum(told) == cost.queries * 3 + cost.shared_queries  # what the progress bar expects
    if registry.card("attacks", inner(name))["access"] == "none":
        assert cost == Cost(0, 0, 0)


@pytest.mark.parametrize("name", ALONE)
def test_the_published_costs(name: str) -> None:
    """What `mibench list attacks` shows of the paper's preset, else the defaults; None: public images."""
    world, public = world_of(), 12_345
    preset = "paper" if "paper" in registry.presets("attacks", name) else "default"
    cost = registry.configure("attacks", name, preset).plugin.cost(world.prior_for(name), public)
    shown = registry.card("attacks", name)["cost"]
    assert tuple(public if part is None else part for part in shown) == cost


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_another_seed_differs(name: str) -> None:
    world = world_of()
    torch.manual_seed(0)
    first = short(world, name, seed=1)
    torch.manual_seed(99)
    assert same(first, short(world, name, seed=1))
    if world.prior_for(inner(name)).differentiable:  # public_search has nothing to draw
        other = short(world, name, seed=2)
        assert not torch.isclose(first.latents, other.latents).all(dim=1).any()


@pytest.mark.parametrize("name", ALONE)
def test_identities_and_restarts_do_not_share_their_randomness(name: str) -> None:
    if registry.card("attacks", inner(name))["role"] == "floor" and name != "prior_sample":
        return  # a shared pool may hold one image for two identities
    found, _ = whole(name)
    assert len(found.latents.unique(dim=0)) == len(found.latents)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_identities_gets_what_each_would_get_alone(name: str) -> None:
    world, labels = world_of(), torch.tensor([5, 1, 0, 3])
    together = short(world, name, labels)
    images = len(together.labels) // 4
    for place, label in enumerate(labels):
        alone = short(world, name, label[None])
        own = slice(place * images, (place + 1) * images)
        torch.testing.assert_close(together.latents[own], alone.latents, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(together.images[own], alone.images, rtol=0, atol=ROUNDING)


def test_a_hundred_identities_by_five_in_one_batch() -> None:
    world = World(100)
    settings: dict[str, Any] = {"images": 5, "steps": 6}
    together = attack_on(world, "gmi", work=AttackContext(batch=500), **settings)
    alone = [attack_on(world, "gmi", torch.tensor([label]), **settings).latents for label in range(100)]
    torch.testing.assert_close(together.latents, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_workspaces_batch_does_not_matter(name: str, batch: int) -> None:
    world, (wide, asked) = world_of(), whole(name)
    oracle = world.oracle(access_of(name))
    narrow = short(world, name, oracle=oracle, work=work_of(name, world, batch))
    torch.testing.assert_close(wide.latents, narrow.latents, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(wide.images, narrow.images, rtol=0, atol=ROUNDING)
    assert torch.equal(oracle.queries, asked.queries)


def budgets(name: str, world: World) -> list[int]:
    """From one query below the full cost down to what is left after the shared images."""
    cost = cost_of(name, world)
    full = cost.queries + cost.shared_queries
    return sorted({max(full - 1, 0), cost.shared_queries + cost.gradient_images // 2, cost.shared_queries // 2, 1})


@pytest.mark.parametrize("name", FEWER)
def test_a_budget_is_never_exceeded(name: str) -> None:
    world = world_of()
    cost = cost_of(name, world)
    for budget in budgets(name, world):
        oracle = world.oracle(access_of(name), budget)
        try:
            found = short(world, name, oracle=oracle)
            assert found.images.isfinite().all()
        except BudgetExhausted:
            assert budget < cost.shared_queries  # only a shared pool may fail as a whole
        assert int(oracle.queries.max()) + oracle.shared_queries <= budget
    exact = world.oracle(access_of(name), cost.queries + cost.shared_queries)
    assert same(short(world, name, oracle=exact), whole(name)[0])


@pytest.mark.parametrize("name", [name for name in FEWER if registry.card("attacks", inner(name))["role"] == "attack"])
def test_under_a_budget_too_identities_and_batches_do_not_matter(name: str) -> None:
    world = world_of()
    cost = cost_of(name, world)
    for budget in (cost.shared_queries + cost.gradient_images // 2, cost.shared_queries + cost.queries - 2):
        results = [
            short(world, name, oracle=world.oracle(access_of(name), budget), work=work_of(name, world, batch))
            for batch in (1000, 5, 1)
        ]
        for other in results[1:]:
            torch.testing.assert_close(results[0].latents, other.latents, rtol=0, atol=ROUNDING)
        alone = short(world, name, torch.tensor([3]), oracle=world.oracle(access_of(name), budget))
        own = results[0].labels == 3
        torch.testing.assert_close(results[0].latents[own], alone.latents, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("budgeted", [False, True])
def test_interrupted_anywhere_it_resumes_to_the_same_result_and_counts(
    name: str, budgeted: bool, tmp_path: Path
) -> None:
    world, labels = world_of(), torch.arange(4)
    cost = cost_of(name, world)
    budget = cost.shared_queries + cost.queries // 2 if budgeted else None
    whole_oracle = world.oracle(access_of(name), budget)
    whole = short(world, name, labels, oracle=whole_oracle, work=work_of(name, world, 3))
    total = int(whole_oracle.queries.sum()) + whole_oracle.shared_queries
    for share in (0.1, 0.5, 0.8, 0.99):
        folder = tmp_path / str(share)
        folder.mkdir()
        stopped = Oracle(world.target, access_of(name), world.classes, budget, Interruption(int(share * total)))
        if total:
            with pytest.raises(KeyboardInterrupt):
                short(world, name, labels, oracle=stopped, work=work_of(name, world, 3, folder))
        told: list[int] = []
        oracle = Oracle(world.target, access_of(name), world.classes, budget, told.append)
        assert same(short(world, name, labels, oracle=oracle, work=work_of(name, world, 3, folder)), whole)
        for count, wanted in zip(oracle.counts().values(), whole_oracle.counts().values(), strict=True):
            assert torch.equal(count, wanted)
        assert sum(told) == total


@pytest.mark.parametrize("name", [name for name in ALONE if registry.card("attacks", name)["role"] == "attack"])
def test_a_finished_search_is_not_searched_again(name: str, tmp_path: Path) -> None:
    world = world_of()
    first = short(world, name, work=work_of(name, world, 3, tmp_path))
    asked: list[int] = []
    world_again = World(6)
    world_again.target.register_forward_hook(lambda *given: asked.append(1))
    features = world_again.target.features
    differentiated: list[int] = []

    def watched(x: Tensor) -> Tensor:
        differentiated.append(int(x.requires_grad and torch.is_grad_enabled()))
        return features(x)

    world_again.target.features = watched  # type: ignore[method-assign]
    assert same(short(world_again, name, work=work_of(name, world, 3, tmp_path)), first)
    assert sum(differentiated) == 0


BAR: dict[str, float] = {}
"""Attack accuracy that must be reached in the toy world; 90% where nothing is said."""


ENOUGH: dict[str, dict[str, Any]] = {
    "lokt": {"samples": 1000, "surrogates": ("cnn",)},
    "sfmi": {"strength": 0.6},  # steers by a share of |v|, which for 192 pixels is small beside a class's direction
}
"""Settings that suffice for success: less than the quick preset, or what a world this small asks for."""


@pytest.mark.parametrize("name", [name for name in ALONE if name != "prior_sample"])
def test_every_attack_succeeds_where_it_must(name: str) -> None:
    world = World(10)
    assert accuracy(world, attack_on(world, name, **ENOUGH.get(name, {}))) >= BAR.get(name, 0.9)


@pytest.mark.parametrize("name", ["gmi", "kedmi"])
def test_both_kinds_of_critic_lead_to_success(name: str) -> None:
    world = World(10, "kp1")
    assert accuracy(world, attack_on(world, name)) >= 0.9


@pytest.mark.parametrize("name", [name for name in ALONE if access_of(name) == Access.WHITE_BOX])
def test_every_attack_succeeds_in_bf16_too(name: str) -> None:
    """autocast's cache once kept the bf16 copy of the first latents, so that every later step saw those."""
    world = World(10)
    with Engine(torch.device("cpu"), "bf16").autocast():
        found = attack_on(world, name, **ENOUGH.get(name, {}))
    assert accuracy(world, found) >= BAR.get(name, 0.9)


@pytest.mark.parametrize("name", ["gmi", "kedmi"])
def test_a_prior_without_a_critic_is_refused_in_one_line(name: str) -> None:
    world = World(4, "none")
    for prior in (world.prior, PublicImages(world.public().images)):
        with pytest.raises(UserError, match=f"{name} needs a prior with a critic") as caught:
            capabilities.require(quick(name), prior)
        assert "--prior" in str(caught.value) and "\n" not in str(caught.value)
    for critic in ("wgan", "kp1"):
        capabilities.require(quick(name), World(4, critic).prior)  # type: ignore[arg-type]


def test_priors_of_the_wrong_kind_are_refused() -> None:
    world = world_of()
    with pytest.raises(UserError, match="ppa needs a generator"):
        capabilities.require(quick("ppa"), PublicImages(world.public().images))
    for name in ("ppa", "mirror", "mirror_bb", "brep", "if_gmi"):
        with pytest.raises(UserError, match=f"{name} .*--prior.* dcgan"):
            capabilities.require(quick(name), ToldPrior(world.prior))
    for name in ("plg", "lokt"):
        with pytest.raises(UserError, match="told whom to draw; choose with --prior"):
            capabilities.require(quick(name), world.prior)
    with pytest.raises(UserError, match="--prior one that has: public"):
        capabilities.require(quick("public_search"), world.prior)


def test_a_learning_rate_that_breaks_the_search_names_the_step() -> None:
    world = World(4, sharpness=float("nan"))
    with pytest.raises(UserError, match=r"stopped being finite at step 0 of 12"):
        short(world, "gmi")


def test_checkpoints_hold_the_counts(tmp_path: Path) -> None:
    oracle = world_of().oracle()
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])

    def kept() -> Tensor:
        """A process of its own: what an earlier one has kept is not computed again."""
        return AttackContext(folder=tmp_path).once("part", oracle, lambda: oracle.logits(x, y))

    value = kept()
    assert oracle.queries.tolist()[:2] == [1, 1]
    assert torch.equal(kept(), value) and oracle.queries.tolist()[:2] == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-part.pt"]


def test_a_name_is_kept_once(tmp_path: Path) -> None:
    """A second part of the same name would be given what the first one kept, by a resumed run at the latest."""
    oracle = world_of().oracle()
    for folder in (tmp_path, None):
        work = AttackContext(folder=folder)
        assert work.once("part", oracle, lambda: torch.zeros(1)) == 0
        with pytest.raises(UserError, match=r"kept two things as work\.once\('part'\)") as caught:
            replace(work, batch=3).once("part", oracle, lambda: torch.ones(1))
        assert "\n" not in str(caught.value)
        assert work.below("round").once("part", oracle, lambda: torch.ones(1)) == 1
        with pytest.raises(UserError, match=r"'round'"):
            work.below("round")
        for name in ("../part", "", "a/b", ".part"):
            with pytest.raises(UserError, match="a name is 1 to 100 letters"):
                work.once(name, oracle, lambda: torch.ones(1))
    assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["checkpoint-part.pt"] * 2
