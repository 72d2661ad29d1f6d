"""Questions for another program, such as a vision-language model, and its answers.

    FOLDER/questions.jsonl      {"id", "image", "question", "answers"}, one question a line
    FOLDER/pairs/<id>.png       left the image in question, then the photographs of the claimed person

Answers come back as JSON lines {"id", "answer"}, the answer one of same, different, unsure. Ids, file names and order
do not tell catch trials from reconstructions.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mibench.human_study.questions import ANSWERS, Question
from mibench.runtime.errors import UserError
from mibench.runtime.files import write_atomic

__all__ = ["PROMPT", "export", "read_answers"]

PROMPT = (
    "The leftmost picture, in the frame, shows a face. The {count} picture(s) to the right of it show one person. "
    "Does the leftmost picture show the same person? Answer with one word: same, different or unsure."
)

SIDE = 256
"""Images are enlarged to this many pixels."""

GAP, FRAME = 16, 4


def pair(question: Question) -> Image.Image:
    """The picture of a question, on white; the image in question has a dark frame."""
    images = [question.image, *question.references]
    edge = GAP + FRAME
    high = round(SIDE * question.image.shape[1] / question.image.shape[2])
    sheet = Image.new("RGB", (len(images) * (SIDE + GAP) + 2 * edge + GAP, high + 2 * edge), "white")
    sheet.paste("#1b1f24", (GAP, GAP, GAP + SIDE + 2 * FRAME, GAP + high + 2 * FRAME))
    for place, image in enumerate(images):
        small = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        left = edge + place * (SIDE + GAP) + (2 * GAP if place else 0)
        sheet.paste(small.resize((SIDE, high), Image.Resampling.BICUBIC), (left, edge))
    return sheet


def export(questions: Sequence[Question], folder: Path) -> Path:
    """Write the pictures and questions.jsonl, last; returns its path. The pictures hold private images.

    Raises:
        UserError: If the folder cannot be written.
    """
    lines = []
    try:
        (folder / "pairs").mkdir(parents=True, exist_ok=True)
        for question in questions:
            sheet = pair(question)
            name = f"pairs/{question.id}.png"
            write_atomic(folder / name, lambda scratch, sheet=sheet: sheet.save(scratch, format="PNG"))  # type: ignore[misc]
            text = PROMPT.format(count=len(question.references))
            lines.append(json.dumps({"id": question.id, "image": name, "question": text, "answers": list(ANSWERS)}))
        path = folder / "questions.jsonl"
        write_atomic(path, lambda scratch: scratch.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another with --export") from None
    return path


def read_answers(path: Path, questions: Sequence[Question]) -> dict[str, str]:
    """Question -> answer; the whole file is good or nothing of it is taken.

    Raises:
        UserError: The first line that is no answer to one of the questions, or answers one twice.
    """
    known = {question.id for question in questions}
    answers: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; give a file of JSON lines") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
            name, answer = str(given["id"]), str(given["answer"]).strip().strip(".").lower()
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{where}: expected {{"id": "...", "answer": "same"}}, got {line[:60]}') from None
        if name not in known:
            raise UserError(f"{where}: no question has the id '{name}'; export again with the same --pairs and --seed")
        if answer not in ANSWERS:
            raise UserError(f"{where}: the answer must be {', '.join(ANSWERS)}; got '{answer[:40]}'")
        if answers.setdefault(name, answer) != answer:
            raise UserError(f"{where}: question '{name}' is answered twice, and differently; keep one of the lines")
    if not answers:
        raise UserError(f"{path} holds no answers; give JSON lines with id and answer")
    return answers
