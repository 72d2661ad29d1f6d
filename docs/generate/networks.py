"""The page of networks, recipes and published checkpoints: its tables are read from the code."""

import inspect
import textwrap

from docstrings import cell

from mibench.models import published
from mibench.plugins import registry
from mibench.training.recipes import RECIPES, Recipe

__all__ = ["page"]

TOP = """# Networks, recipes, published weights

## Networks

{networks}

Every classifier of torchvision works by its own name (`resnet152`, `densenet121`, `inception_v3`, `vit_b_16`,
`maxvit_t`), every network of timm as `timm:NAME` (`timm:resnest101e`), with `--pretrained imagenet` where the hub can
be reached; where it cannot, the error says which file belongs where. Inception-v3 learns with its second head.

## Training recipes

`mibench train-target --model ir152 --recipe kedmi-2021` trains as the authors' own files say; so does `mibench train`,
whose evaluation models take the recipe where it was published for them. Without `--recipe` mibench trains until a
network has converged, by its own recipe. `--set training.epochs=5` changes a field; the recipe's name and what was
changed stand in the run's specification, in `mibench show` and in the report's tables.
"""

BOTTOM = """## Published checkpoints

`mibench train-target --weights VGG16_88.26.tar --dataset celeba` brings a file of the authors in as a target, with
`--evaluator` as an evaluation model, which `--evaluators evaluators/NAME,ir` then names. Its network is recognised by
the names and shapes in the file; `DataParallel`'s and `torch.compile`'s prefixes, `state_dict`, `model_state_dict` and
tuples around it are taken off:

{layouts}

Said and kept: what was mapped, what was left and what is missing; the normalisation that fits, found by asking; natural
accuracy on the data set's held-out images, with its interval; and the **label order**, which is verified: people are
matched one-to-one with outputs on learnt pictures, and if that names significantly more (two standard errors) of the
held-out pictures rightly than the order as given, the order is called permuted, with the people it moves. A wholly
wrong order is refused. `--classes matched` takes the matched order, `--classes FILE` your own: one name a line.

Nothing in a file is executed: safetensors, or torch's files read as tensors alone.

### What cannot be brought in

- Targets of the defense MID, whose bottleneck is random, and networks of depths that were not published: refused.
- RoLSS, SSF and TTS: their ResNets have the names and shapes of plain ones, so that a file of theirs opens as a plain
  network, whose accuracy then says that it is none. Train them here with `--defense rolss`.
- The MS1M face weights that KEDMI's networks start from are not classifiers of private people: refused as targets.
- An evaluation model that was brought in has learnt no distractors: it cannot answer "someone else", and its open-set
  accuracy is its closed-set accuracy.

Tested with files in the authors' formats and numbers of our own, against the outputs of their own modules; the
published files themselves are behind sites that these tests cannot reach.
"""


def page() -> str:
    """The whole page."""
    networks = ["| name | what it is |", "|:---|:---|"]
    for name, card in registry.cards("models").items():
        offered = ", ".join(f"`{one}`" for one in card.get("architectures", ())) or "any of its library"
        networks.append(f"| {offered} | [{cell(card['summary'])}](models/{name}.md) |")
    parts = [TOP.format(networks="\n".join(networks)), *(_recipe(name, one) for name, one in RECIPES.items())]
    top = inspect.getdoc(published) or ""
    listed = textwrap.dedent(top.partition("alone:\n\n")[2].partition("\n\n")[0])
    return "\n".join([*parts, BOTTOM.format(layouts=textwrap.indent(listed, "    "))])


def _recipe(name: str, recipe: Recipe) -> str:
    """One recipe: its fields with their sources, what is another for single networks, what differs."""
    rows = ["| field | value | source |", "|:---|:---|:---|"]
    for field, one in recipe.common.items():
        rows.append(f"| `{field}` | {one.value} | {_link(one.source)} |")
    for key, own in recipe.each.items():
        what, _, data = key.partition("@")
        where = f"`{what}` on {data}" if data else f"`{what}`"
        rows += [f"| `{field}` of {where} | {one.value} | {_link(one.source)} |" for field, one in own.items()]
    for what, one in recipe.start.items():
        of = "" if what == "*" else f" of `{what}`"
        rows.append(f"| starts from{of} | {one.value} | {_link(one.source)} |")
    differs = [f"- {one}" for one in recipe.differs]
    head = [f"### {name}", "", f"[{recipe.title}]({recipe.link}); for {recipe.published_for}.", ""]
    return "\n".join([*head, *rows, "", "What the authors do and mibench does not:", "", *differs, ""])


def _link(source: str) -> str:
    return f"[{source.rpartition('/')[2]}]({source})"
