"""The picture of a question: a sheet of white paper with the image in question and the photographs beside it."""

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mibench.human_study.forms import PANEL
from mibench.human_study.questions import Question

__all__ = ["draw", "pair", "panel"]

SIDE = 256
"""Images of a pair are enlarged to this many pixels."""

GAP, FRAME = 16, 4

PANEL_SIDE, PANEL_GAP = 224, 100
"""Side of a panel's images, and the white between Image A and Set B."""

LINE = 50
"""Height of a panel's two lines of text."""

SINK = 25
"""Both lines are centred this far below the upper edge of their strip."""

LABEL_SIZE, QUESTION_SIZE = 30, 35


def _picture(image: UInt8[Tensor, "c h w"], width: int, height: int) -> Image.Image:
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def pair(question: Question) -> Image.Image:
    """The image in question in a dark frame, to the right of it the photographs."""
    images = [question.image, *question.references]
    edge = GAP + FRAME
    high = round(SIDE * question.image.shape[1] / question.image.shape[2])
    sheet = Image.new("RGB", (len(images) * (SIDE + GAP) + 2 * edge + GAP, high + 2 * edge), "white")
    sheet.paste("#1b1f24", (GAP, GAP, GAP + SIDE + 2 * FRAME, GAP + high + 2 * FRAME))
    for place, image in enumerate(images):
        left = edge + place * (SIDE + GAP) + (2 * GAP if place else 0)
        sheet.paste(_picture(image, SIDE, high), (left, edge))
    return sheet


def panel(question: Question) -> Image.Image:
    """Image A, 100 px of white and Set B without gaps, each image 224 x 224; captions below, then the question in red.

    With four photographs 1220 x 324 px; the layout of `create_concatenated_images_with_labels` (Ho et al., 2025).

    Differs:
        the typeface is Pillow's own in place of Arial, which not every machine has: one machine's panels are
        another's. All images are enlarged bicubically, where theirs of 64 px attacks have bilinear photographs.

    References:
        | https://github.com/hosytuyen/MI-Eval-MLLM/blob/89010bc/utility.py
    """
    start = PANEL_SIDE + PANEL_GAP
    wide = start + len(question.references) * PANEL_SIDE
    sheet = Image.new("RGB", (wide, PANEL_SIDE + 2 * LINE), "white")
    sheet.paste(_picture(question.image, PANEL_SIDE, PANEL_SIDE), (0, 0))
    for place, image in enumerate(question.references):
        sheet.paste(_picture(image, PANEL_SIDE, PANEL_SIDE), (start + place * PANEL_SIDE, 0))
    pen, small, large = ImageDraw.Draw(sheet), *map(ImageFont.load_default, (LABEL_SIZE, QUESTION_SIZE))
    caption = PANEL_SIDE + SINK
    pen.text((PANEL_SIDE / 2, caption), "Image A", "black", small, anchor="mm")
    pen.text(((start + wide) / 2, caption), "Set of Images B", "black", small, anchor="mm")
    pen.text((wide / 2, caption + LINE), question.form.question, "red", large, anchor="mm")
    return sheet


def draw(question: Question) -> Image.Image:
    """The picture in the question's own form."""
    return panel(question) if question.form is PANEL else pair(question)
