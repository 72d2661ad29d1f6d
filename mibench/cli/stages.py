"""The stages, one by one: train-target, train-prior, invert, score."""

from mibench.cli import options

__all__ = ["invert", "score", "train_prior", "train_target"]


def train_target(
    defense: options.Defense = "none",
    model: options.OwnModel = None,
    weights: options.Weights = None,
    classes: options.Classes = None,
    evaluator: options.AsEvaluator = False,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained = None,
    recipe: options.Recipe = None,
    dataset: options.Dataset = "digiface",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Stage 1: train one target, or bring in published weights as a target or an evaluation model."""
    if checkpoint is not None:
        from mibench.runtime.errors import UserError

        raise UserError(
            f"--checkpoint {checkpoint}: a trained model is audited, not trained: mibench audit --weights {checkpoint} "
            f"--model {model or 'cnn'} --private DIR --public DIR, or brought in: --weights {checkpoint}"
        )
    from mibench.cli import conduct, printing
    from mibench.experiments import options as experiments

    device, precision = conduct.machine(device, precision)
    if weights is not None:
        from mibench.runtime.terminal import say

        experiment, lines = experiments.brought(
            weights,
            model=model,
            classes=classes,
            evaluator=evaluator,
            given={"--defense": defense != "none", "--recipe": recipe, "--pretrained": pretrained, "--seed": seed},
            dataset=dataset,
            results=results,
            sets=sets,
            precision=precision,
        )
        say(*lines, to_stderr=True)
        conduct.conduct(
            [experiment], results, device, dry_run=dry_run, force=force, as_json=as_json, show=printing.print_training
        )
        return
    experiments.require_weights({"--classes": classes, "--evaluator": evaluator})
    experiment = experiments.training(
        "target",
        defense=defense,
        model=model or "cnn",
        pretrained=pretrained,
        recipe=recipe,
        dataset=dataset,
        seed=seed,
        sets=sets,
        precision=precision,
    )
    conduct.conduct(
        [experiment], results, device, dry_run=dry_run, force=force, as_json=as_json, show=printing.print_training
    )


def train_prior(
    prior: options.LearntPrior = "wgan_gp",
    preset: options.Preset = "quick",
    target: options.Helper = None,
    dataset: options.Dataset = "digiface",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Stage 2: learn an image prior on the public images."""
    from mibench.cli import conduct
    from mibench.experiments import options as experiments

    device, precision = conduct.machine(device, precision)
    experiment = experiments.prior(
        prior=prior, preset=preset, target=target, dataset=dataset, seed=seed, sets=sets, precision=precision
    )
    conduct.conduct([experiment], results, device, dry_run=dry_run, force=force, as_json=as_json)


def invert(
    method: options.Method = "ppa",
    preset: options.Preset = "quick",
    target: options.Targets = None,
    prior: options.AttackPrior = None,
    identities: options.Identities = None,
    budget: options.Budget = None,
    isolate: options.Isolate = False,
    shard: options.Shard = None,
    dataset: options.Dataset = "digiface",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Stage 3: attack targets, keep the reconstructions, score nothing."""
    from mibench.cli import conduct
    from mibench.experiments import options as experiments

    device, precision = conduct.machine(device, precision)
    own, shards = conduct.read_shard(shard)
    experiment = experiments.attack(
        "inversions",
        method=method,
        preset=preset,
        target=target,
        prior=prior,
        identities=identities,
        budget=budget,
        isolate=isolate,
        shards=shards,
        dataset=dataset,
        seed=seed,
        sets=sets,
        precision=precision,
    )
    conduct.conduct(
        [experiment], results, device, zoo=conduct.zoo(no_zoo), dry_run=dry_run, force=force, as_json=as_json, shard=own
    )


def score(
    inversion: options.Inversions = None,
    images: options.Images = None,
    target: options.ImagesTarget = None,
    name: options.ImagesName = None,
    evaluators: options.Evaluators = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    results: options.Results = options.RESULTS,
    sets: options.Sets = None,
    no_zoo: options.NoZoo = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Stage 4: score reconstructions, your own or another program's, by evaluation models the attack never saw."""
    from mibench.cli import conduct, printing
    from mibench.experiments import options as experiments
    from mibench.runs import Run

    def show(scores: list[Run]) -> None:
        if images is not None:
            printing.show_scores(results, scores, full)

    device, precision = conduct.machine(device, precision)
    experiment = experiments.scoring(
        inversion=inversion,
        images=images,
        target=target,
        name=name,
        evaluators=evaluators,
        sets=sets,
        precision=precision,
    )
    conduct.conduct(
        [experiment], results, device, zoo=conduct.zoo(no_zoo), dry_run=dry_run, force=force, as_json=as_json, show=show
    )
