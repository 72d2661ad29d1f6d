"""The options of all commands, each said once; a command names them in this order."""

from pathlib import Path
from typing import Annotated

import typer


def _folder(text: str | Path) -> Path:
    """A folder as it is; of a store the folder that stands for it, once the store has been looked at."""
    if "://" not in str(text):
        return Path(text)
    from mibench.runs.store import folder_of

    return folder_of(text)


# --- what a command is about

Defense = Annotated[
    str, typer.Option("--defense", help="none, re, or several joined by +; see: mibench list defenses.")
]
Defenses = Annotated[
    list[str] | None, typer.Option("--defense", help="As often as you like: none, re, 're location=torus', all.")
]
Strengths = Annotated[str, typer.Option("--strengths", help="grid, default, or values: 0.2,0.4.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Targets of each kind: seeds --seed, --seed + 1, ...")]
Model = Annotated[str, typer.Option("--model", help="Architecture of the target model.")]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", hidden=True, help="A model of your own: see mibench audit.")
]
OwnModel = Annotated[
    str | None, typer.Option("--model", help="Architecture; cnn if absent, with --weights what the file holds.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Bring in trained weights, such as a published checkpoint.")
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", help="Of --weights: a file, one name a line in the order of the outputs, or matched."),
]
AsEvaluator = Annotated[
    bool, typer.Option("--evaluator", help="Bring --weights in as an evaluation model, not as a target.")
]
Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="What the target starts from: none, imagenet or public.")
]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="Published training recipe: ppa-2022, kedmi-2021, midre-2025.")
]
Method = Annotated[
    str, typer.Option("--method", help="Attacks: ppa, ppa+eot, gmi,kedmi or all; see: mibench list attacks.")
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="As often as you like: ppa, 'ppa steps=100'.")]
Preset = Annotated[str, typer.Option("--preset", help="Settings of the attack: quick, paper or legacy.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="Trained target (id, directory, zoo:NAME); if absent all of the data set."),
]
Helper = Annotated[str | None, typer.Option("--target", help="Whom a prior such as kedmi learns from (id, zoo:NAME).")]
AttackPrior = Annotated[
    str | None, typer.Option("--prior", help="Prior; if absent the attack's own, or one learnt on your public images.")
]
LearntPrior = Annotated[str, typer.Option("--prior", help="Prior; see: mibench list priors.")]
Adaptive = Annotated[
    bool, typer.Option("--adaptive", help="Add what attackers try who know the defense, at the attack's own budget.")
]
Identities = Annotated[int | None, typer.Option("--identities", min=1, help="Attack only the first so many.")]
Budget = Annotated[int | None, typer.Option("--budget", min=1, help="Most target queries per identity.")]
Isolate = Annotated[
    bool,
    typer.Option(
        "--isolate",
        help="Black box and label only: the attack searches in a sealed process, the target behind a pipe. Importing a "
        "plug-in is not sealed.",
    ),
]
Shards = Annotated[
    int, typer.Option("--shards", min=1, help="Split each attack by identity into so many runs, for several workers.")
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Attack only the I-th of N parts; who does the last puts it together."),
]
Evaluators = Annotated[
    str | None,
    typer.Option("--evaluators", help="Evaluation models, comma-separated; two of other families, or evaluators/NAME."),
]
Inversions = Annotated[
    list[str] | None, typer.Option("--inversion", help="Inversion (id or directory); all if absent.")
]
Images = Annotated[Path | None, typer.Option("--images", help="Score another program's images: FOLDER/<person>/*.png.")]
ImagesTarget = Annotated[str | None, typer.Option("--target", help="The target that --images were made from.")]
ImagesName = Annotated[str | None, typer.Option("--name", help="What to call --images; the folder's if absent.")]
Suite = Annotated[str, typer.Argument(help="A TOML file, or a suite's name, or one sweep of it: midre:location.")]
AnyRun = Annotated[str, typer.Argument(help="A run: its id, the beginning of it, or its directory.")]
Reconstructed = Annotated[str, typer.Argument(help="An inversion or a score: its id, its beginning, or its directory.")]
Folder = Annotated[
    Path, typer.Argument(parser=_folder, metavar="RESULTS", help="Folder of all runs, or s3://BUCKET/....")
]
Shared = Annotated[
    Path,
    typer.Argument(parser=_folder, metavar="RESULTS", help="Folder or store of all runs, which all workers share."),
]
OwnFolder = Annotated[
    Path | None,
    typer.Argument(parser=_folder, metavar="[RESULTS]", help="Where your own runs are; results, if it is there."),
]
DataName = Annotated[str, typer.Argument(help="Data set.")]
PreparedName = Annotated[str, typer.Argument(help="Data set, or an attacker's image set: ffhq, metfaces, afhq.")]
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder of all data sets (data.root); if absent, MIBENCH_DATA.")
]
Processes = Annotated[int, typer.Option("--processes", min=0, help="How many decode; 0: one for each core.")]
DataDryRun = Annotated[bool, typer.Option("--dry-run", help="List what is needed, from where, and what is missing.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read what was prepared and compare its checksums.")]

# --- what all of them share

Dataset = Annotated[str, typer.Option("--dataset", help="Data set; see: mibench data list.")]
OtherDataset = Annotated[str | None, typer.Option("--dataset", help="Data set, in the place of the suite's own.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Everything random is derived from it.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps; cuda:0,1 trains on both.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Results = Annotated[
    Path, typer.Option("--results", parser=_folder, metavar="PATH", help="Folder of all runs, or s3://BUCKET/....")
]
On = Annotated[
    str | None,
    typer.Option("--on", help="ray (this machine), ray://HOST:PORT; with ?cpus=1&gpus=.5&memory=8e9 for each run."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a setting; prefix data., training., prior. as needed."),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Record what each run's time goes to: RESULTS/profiles, a trace and a table.")
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="WHERE",
        envvar="MIBENCH_LOG",
        help="Copy each finished run's numbers to tensorboard:DIR or wandb:PROJECT; as often as you like.",
    ),
]
Check = Annotated[
    bool, typer.Option("--check", help="List all that it needs and lacks, and how long it takes here; and stop.")
]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="With --check: time every step and decode every picture, however long that takes."),
]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="Do its every step once, small, on stand-in data; say what fails; and stop.")
]
Keep = Annotated[
    Path | None, typer.Option("--keep", metavar="DIR", help="With --rehearse: leave it in a new folder, to look at.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan it, show the runs, and stop.")]
NoZoo = Annotated[
    bool, typer.Option("--no-zoo", "--train", help="Train here what the zoo has ready; see: mibench zoo list.")
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if it is done.")]
PrivateImages = Annotated[
    bool, typer.Option("--private-images/--no-private-images", help="Show real photographs, and people's names.")
]
Full = Annotated[bool, typer.Option("--full", help="Print the tables in place of the first screen.")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]

RESULTS = Path("results")
