"""Which facts behind the puzzles of metamorph/evaluation/puzzles.py a language model knows.

    python examples/english/known_facts.py models/SmolLM2-135M-Instruct

Of each: what is right, what the model says, and what the subject makes likelier than usual.
"""

import sys

from metamorph.evaluation.knowledge import knowledge_of
from metamorph.evaluation.puzzles import VALUES, puzzles
from metamorph.model import Llama
from metamorph.model.weights import read_tokenizer

if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    language, tokenizer = Llama.from_pretrained(sys.argv[1]), read_tokenizer(sys.argv[1])
    kinds = {}
    for found in knowledge_of(language, tokenizer, puzzles()):
        kinds.setdefault(found.puzzle.knowledge, []).append(found)
        right = found.puzzle.right
        marks = f"{'known' * found.known:7}{'associated' * found.is_associated}".rstrip()
        print(f"{found.puzzle.subject:50}{right:10}{found.said:10}{found.associated:10}{marks}")
    for kind, facts in kinds.items():
        known = sum(fact.known for fact in facts)
        associated = sum(fact.is_associated for fact in facts)
        chance = len(facts) / len(VALUES[facts[0].puzzle.attribute])
        print(
            f"{kind}: {known} known, {associated} associated of {len(facts)}; chance {chance:.1f}"
        )
