"""Documents for the two toy tasks of this folder: scenes that no training has shown.

    python examples/lmms_eval/toy_scenes.py --count 40 --output runs/lmms_eval

Writes `questions.jsonl`, with the pictures that it names, and `drawn.jsonl`, which needs none.
"""

import argparse
import json
from itertools import cycle
from pathlib import Path

from metamorph.data.toy.wording import PLAIN, QUESTIONS
from metamorph.evaluation.toy_tasks import caption_tasks, tasks_of
from metamorph.tokens import IMAGE_PLACEHOLDER


def write(folder: Path, count: int) -> None:
    """`count` documents of each task."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    questions, drawn = [], []
    for number, task in enumerate(tasks_of("question", count)):
        asked, answer = task.sample.turns
        picture = folder / "pictures" / f"{number}.png"
        task.sample.images[0].save(picture)
        questions.append(
            {
                "question": asked.text.removeprefix(IMAGE_PLACEHOLDER),
                "answer": answer.text,
                "pictures": [str(picture)],
            }
        )
    attributes = cycle(("colour", "shape", "size", "place"))
    for task, attribute in zip(caption_tasks(count), attributes, strict=False):
        drawn.append(
            {
                "to_draw": task.sample.turns[0].text,
                "question": QUESTIONS[attribute],
                "answer": PLAIN.answer(attribute, task.scene),
                "pictures": [],
            }
        )
    for name, documents in (("questions", questions), ("drawn", drawn)):
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (folder / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Documents for the two toy tasks of this folder.")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("runs/lmms_eval"))
    arguments = parser.parse_args()
    write(arguments.output, arguments.count)
