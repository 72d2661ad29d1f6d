"""The published generators that suites search: what the files are called, where they come from, what they draw."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PUBLISHED", "Generator"]


class Generator(NamedTuple):
    """One file.

    Args:
        resolution: Side of its images in pixels.
        source: Where it is to be fetched.
        licence: On which terms.
        size: A rough size, for people.
    """

    resolution: int
    source: str
    licence: str = "NVIDIA Source Code License: research and evaluation, not commercial use"
    size: str = "0.4 GB"


_FILES = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"

PUBLISHED: Mapping[str, Generator] = {
    "ffhq.pkl": Generator(1024, f"{_FILES}ffhq.pkl"),
    "metfaces.pkl": Generator(1024, f"{_FILES}metfaces.pkl"),
    "afhqdog.pkl": Generator(512, f"{_FILES}afhqdog.pkl"),
}
"""By the name of the file."""
