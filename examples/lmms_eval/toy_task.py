"""What the toy tasks of this folder need beside their YAML."""

from PIL import Image


def pictures(document: dict) -> list[Image.Image]:
    found = []
    for path in document["pictures"]:
        with Image.open(path) as picture:
            found.append(picture.convert("RGB"))
    return found


def drawn_words(document: dict) -> str:
    """In the form that lmms-eval's tasks with a picture on the way to an answer have."""
    return (
        f"[GEN_PROMPT]{document['to_draw']}[/GEN_PROMPT][QUESTION]{document['question']}[/QUESTION]"
    )


def exact(document: dict, results: list[str]) -> dict[str, float]:
    return {"exact_match": float(results[0] == document["answer"])}
