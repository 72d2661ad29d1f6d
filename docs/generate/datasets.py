"""The page on the papers' data sets: what to fetch, how it is cut and split, from the code that does it."""

from typing import Any

from docstrings import cell

from mibench.data.published.celeba_files import IN_COMMON, LANDMARKS, PUBLISHED
from mibench.data.published.crops import CROPS, Crop
from mibench.data.published.publics import PUBLICS
from mibench.plugins import registry

__all__ = ["page"]

LEAD = """# The papers' data sets

    mibench data prepare celeba --root DIR --dry-run      # what to fetch, from where, on which terms; what is there
    mibench data prepare celeba --root DIR                # check it, decode it once
    mibench train --dataset celeba --set data.root=DIR    # then a data set like any other

mibench fetches none of these pictures, apart from those that torchvision fetches (`mnist`, `emnist`, `cifar10`):
their licences are between you and their owners. `DIR` holds a folder for each data set; `MIBENCH_DATA=DIR` saves
`--root` and `--set data.root`. Everything is checked before anything is decoded: files that are missing (all of them
are listed in one go), web pages and partial downloads in the place of archives, lists of another split, fewer classes
than the protocol has, pictures of another size, too little disk. Corrupt pictures are counted and named, and the
others are kept.

Pictures are decoded once, with all cores, into `DIR/prepared/<name>-<choices>-<content>/`: one memory-mapped file of
uint8 pixels, named by a hash of what it holds. A preparation that is killed goes on where it was; one that is
repeated does nothing unless a file has changed; `--verify` reads the pixels and compares their checksums. Run ids
contain the hash of the pixels, never the path. The prepared folder is all that training and attacks need.
"""
SPLITS = f"""## The two splits of CelebA

| | `data.split=kedmi` | `data.split=ppa` |
|:---|:---|:---|
| used by | GMI, KEDMI, LOMMA, PLG-MI, LOKT, BiDO, RLB-MI, BREP-MI | PPA, IF-GMI, RoLSS, MIDRE at 224 px |
| 1,000 people | those of the authors' list files | the most frequent; ties in the order of the identity file |
| training | {PUBLISHED["kedmi_train"]:,}, by the list | 27,034: 90%, numpy's legacy shuffle, seed 42, not stratified |
| held out | {PUBLISHED["kedmi_heldout"]:,}, by the list | 3,004: the other 10% |
| public | {PUBLISHED["kedmi_public"]:,} of 6,453 other people | FFHQ or MetFaces; `data.public=own` for other people |

!!! warning "Never compare numbers of the two"
    2,343 people have exactly 30 pictures, so ties decide who is among the most frequent: only {IN_COMMON} of the 1,000
    people are in both splits. Classes are named by CelebA's identity numbers, so that a model of one split is not taken
    for one of the other.

VMI's split depends on the version of numpy (an unstable sort) and is not offered. The high-resolution faces are aligned
by [HD-CelebA-Cropper's landmarks](data/celeba.md) in our own code, which gives the pixels of OpenCV 4.10's
`warpAffine`; OpenCV 5 rounds differently. Faces that the authors' program has cut already are taken as they are.
"""
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "celeba": ({}, {"cropped": "hd"}),
    "facescrub": ({}, {"cropped": "box"}),
    "stanford_dogs": ({"boxes": True},),
    "pubfig83": ({},),
    "vggface2": ({},),
}
"""Data sets, with the choices that want other files."""

CROP_LEAD = """## Crops

All resizing is Pillow's antialiased bilinear filter on 8-bit pixels, which is torchvision's `Resize` of a picture.
`data.image_size` changes the last resize alone. Evaluation models that want another size resize the stored pixels; the
authors cut anew from the files.
"""
FILES_LEAD = """## What to fetch

Any one of several names will do; archives are read as they are, without unpacking, where a zip is named.
"""


def page() -> str:
    """The page."""
    return "\n".join([LEAD, SPLITS, CROP_LEAD, _crops(), "", FILES_LEAD, _files(), ""])


def _crops() -> str:
    rows = ["| crop | of | rule | used by |", "|:---|:---|:---|:---|"]
    rows += [f"| `{name}` | {what} | {_rule(crop)} | {who} |" for name, (what, crop, who) in CROPS.items()]
    return "\n".join(rows)


def _rule(crop: Crop) -> str:
    """A crop in words."""
    steps = [f"resize to {crop.first} x {crop.first}"] if crop.first else []
    if crop.align:
        steps.append({"hd": "similarity of 68 landmarks, bicubic", "mtcnn": "square around MTCNN's box"}[crop.align])
    if crop.centre:
        if crop.expects != (0, 0):
            left, upper = ((side - crop.centre) // 2 for side in crop.expects)
            steps.append(f"centre {crop.centre} x {crop.centre} (left {left}, top {upper})")
        else:
            steps.append(f"centre {crop.centre} x {crop.centre}")
    squash = "squash to" if crop.fit == "squash" else "resize to"
    return ", ".join([*steps, f"{squash} {crop.size}"]) if crop.align != "hd" else f"{steps[0]}, at {crop.size}"


def _files() -> str:
    rows = ["| file below `DIR` | what | from | licence |", "|:---|:---|:---|:---|"]
    for name, variants in VARIANTS.items():
        plugins = [registry.configure("data", name, settings=fields).plugin for fields in variants]
        wanted = [need for plugin in plugins for need in plugin.needs()]
        rows += [_row(name, need) for need in dict.fromkeys(wanted)]
        rows += [_row(name, need) for need in LANDMARKS if name == "celeba"]
    for name, public in PUBLICS.items():
        rows += [_row(name, need) for need in dict.fromkeys((public.small[0], public.large[0]))]
    return "\n".join(rows)


def _row(folder: str, need: Any) -> str:
    names = " or ".join(f"`{folder}/{name}`" for name in need.names)
    return f"| {names} | {cell(need.what)} | {cell(need.source)} | {cell(need.licence)} |"
