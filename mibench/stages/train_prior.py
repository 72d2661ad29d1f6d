"""Learn an image prior on the public images, with the target's help where the prior asks for it."""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.core import Oracle, Prior, PriorTrainer, Split, TrainingContext
from mibench.models.fold import fold
from mibench.plugins import capabilities, registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, clock, provenance
from mibench.runtime.engine import Engine, describe
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_json
from mibench.runtime.pictures import tile
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import Noise, seed_of
from mibench.stages import artifacts, import_prior

__all__ = ["domain_of", "plan", "preflight", "samples", "work"]

SAMPLES = 64


def plan(root: Path, data: Choice, prior: Choice, target: Run | None, seed: int, precision: str) -> Run:
    """The run that trains a prior; a prior that needs the target is one per target, an imported one is one for all.

    Raises:
        UserError: If the prior needs a target and none is given, or was imported and does not draw such images.
    """
    if prior.plugin.imported:
        prior.plugin.require_shape(data.shape.image_shape)
        return import_prior.plan(root, prior)
    wants = prior.plugin.target_access is not None
    if wants and target is None:
        raise UserError(f"the prior '{prior.name}' learns from a target's answers; name one with --target RUN")
    spec, inputs = artifacts.dataset_spec(data)
    parents: dict[str, Run | list[Run]] = {"target": target} if wants and target is not None else {}
    return Run(
        root,
        "priors",
        f"{data.name}-{prior.name}",
        {"dataset": spec, "precision": precision, "prior": prior.spec(), "seed": seed},
        parents,
        inputs={"dataset": inputs},
    )


def domain_of(prior: str, data: str) -> str:
    """What a prior draws, in words: `public images of orl`, `digiface`, `none`."""
    domain = capabilities.domain(prior)
    return f"public images of {data}" if domain == "public" else domain


def preflight(run: Run) -> None:
    """Build a prior without weights, so that images it cannot draw are told before anything is trained.

    Raises:
        UserError: What does not fit.
    """
    choice, wanted = run.spec["prior"], run.inputs["dataset"]
    recipe = registry.configure("priors", choice["name"], settings=choice["settings"]).plugin
    if type(recipe).train is PriorTrainer.train:  # a shipped one draws every size
        return
    shape = registry.configure("data", wanted["name"], settings=wanted["settings"]).shape
    # Sizes only; a prior that cannot be built in this way is tried when its turn comes.
    with torch.device("meta"), suppress(NotImplementedError):
        images = torch.empty((shape.public, *shape.image_shape), dtype=torch.uint8)
        recipe.build(shape.image_shape, shape.classes, Split(images, torch.empty(shape.public, dtype=torch.int64)))


@torch.no_grad()
def samples(prior: Prior, seed: int, classes: int, engine: Engine) -> Float[Tensor, "n c h w"]:
    """What samples.png shows: `SAMPLES` draws, of each identity in turn where the prior is told whom to draw."""
    place = torch.arange(SAMPLES, device=engine.device)
    return prior.decode(prior.sample(Noise(seed, place).of("samples")), place % classes)


def work(run: Run, engine: Engine, reporter: Reporter) -> None:
    """Build, train, write the weights and a grid of samples (also while training)."""
    started = clock()
    choice = run.spec["prior"]
    recipe = registry.configure("priors", choice["name"], settings=choice["settings"]).plugin
    data, oracle = artifacts.open_dataset(run.inputs["dataset"]), None
    if "target" in run.parents:
        data = artifacts.dataset(run.target)
        network = engine.place(fold(artifacts.load_classifier(run.target, data)))
        oracle = Oracle(network, recipe.target_access, len(data.classes))
    with run.writing(describe(engine), reporter.say) as folder:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(run.spec["seed"], "init"))
            prior: Prior = recipe.build(data.image_shape, len(data.classes), data.public)
        prior = engine.place(prior)  # type: ignore[assignment]

        def picture(current: Prior) -> None:
            tile(samples(current, run.spec["seed"], len(data.classes), engine), folder / "samples.png", columns=8)

        session = TrainingContext(
            engine, run.spec["seed"], reporter, f"train prior {run.name}", folder / "checkpoint.pt", picture
        )
        # What training still initialises (an encoder) must not depend on what this process did before.
        watched = oracle.watched() if oracle is not None else nullcontext()
        with torch.random.fork_rng(), watched:
            torch.manual_seed(seed_of(run.spec["seed"], "train"))
            log = recipe.train(prior, data.public, oracle, session)
        for file in run.clear(keep=("samples.png",)):
            reporter.say(f"{run.label}: ignored {file}, which the prior left in the run's folder")
        prior.requires_grad_(False).eval()
        picture(prior)
        header = {"role": "prior", "prior": choice["name"], "dataset": data.name}
        artifacts.write_tensors(folder / "prior.safetensors", prior.state_dict(), header)
        metrics: dict[str, Any] = {
            "critic": prior.critic_kind,
            "domain": domain_of(choice["name"], data.name),
            "latent_dim": prior.latent_dim,
            "parameters": sum(parameter.numel() for parameter in prior.parameters()),
            "public_images": len(data.public),
            "target_queries": oracle.shared_queries if oracle is not None else 0,
            "target_gradients": oracle.shared_gradients if oracle is not None else 0,
        }
        write_json(folder / "metrics.json", metrics)
        artifacts.write_log(folder / "log.jsonl", log)
        run.finish(provenance(started, describe(engine)))
