"""Questions for another program, such as a vision-language model, and its answers.

    FOLDER/questions.jsonl      {"id", "image", "question", "answers"}, one question a line
    FOLDER/pairs/<id>.png       left the image in question, then the photographs of the claimed person
    FOLDER/panels/<id>.png      the same in the published form

Answers come back as JSON lines {"id", "answer"}, the answer one of the question's. Ids, file names and order do not
tell catch trials from reconstructions; an id belongs to one form, whose answers cannot be taken for the other's.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mibench.human_study.questions import Question
from mibench.human_study.sheets import draw
from mibench.runtime.errors import UserError
from mibench.runtime.files import read_text, write_atomic

__all__ = ["export", "read_answers"]


def export(questions: Sequence[Question], folder: Path) -> Path:
    """Write the pictures and questions.jsonl, last; returns its path. The pictures hold private images.

    Raises:
        UserError: If the folder cannot be written.
    """
    lines = []
    try:
        for question in questions:
            sheet = draw(question)
            name = f"{question.form.name}s/{question.id}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, lambda scratch, sheet=sheet: sheet.save(scratch, format="PNG"))  # type: ignore[misc]
            text = question.form.prompt.format(count=len(question.references))
            answers = list(question.form.answers)
            lines.append(json.dumps({"id": question.id, "image": name, "question": text, "answers": answers}))
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
    known = {question.id: question.form for question in questions}
    answers: dict[str, str] = {}
    try:
        text = read_text(path)
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
            yes = next(iter(known.values())).yes
            raise UserError(f'{where}: expected {{"id": "...", "answer": "{yes}"}}, got {line[:60]}') from None
        if name not in known:
            raise UserError(f"{where}: no question has the id '{name}'; give the --form and --seed of the export")
        if answer not in known[name].answers:
            raise UserError(f"{where}: the answer must be {', '.join(known[name].answers)}; got '{answer[:40]}'")
        if answers.setdefault(name, answer) != answer:
            raise UserError(f"{where}: question '{name}' is answered twice, and differently; keep one of the lines")
    if not answers:
        raise UserError(f"{path} holds no answers; give JSON lines with id and answer")
    return answers
