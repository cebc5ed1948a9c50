"""Random pieces of sequences over a cache, and what each of their tokens sees, counted out."""

from hypothesis import strategies


@strategies.composite
def cache_pieces(draw, longest=7, most=5, sequences=3):
    """(pieces, bidirectional spans in packed coordinates): any order, several of a sequence."""
    pieces, spans = [], []
    first = 0
    for _ in range(draw(strategies.integers(1, most))):
        start = draw(strategies.one_of(strategies.just(0), strategies.integers(0, longest)))
        count = draw(strategies.integers(1, longest))
        pieces.append((draw(strategies.integers(0, sequences - 1)), start, count))
        bounds = strategies.lists(
            strategies.integers(first, first + count), unique=True, max_size=4
        )
        cuts = sorted(draw(bounds))
        spans += zip(cuts[::2], cuts[1::2], strict=False)
        first += count
    return pieces, spans


def tokens_of(pieces, spans):
    """(sequence, position, keys that it sees) of each query, from the words of the definition."""
    tokens = []
    for sequence, start, count in pieces:
        first = len(tokens)
        for place in range(count):
            visible = start + place + 1
            for span_start, span_end in spans:
                if span_start <= first + place < span_end:
                    visible = start + span_end - first
            tokens.append((sequence, start + place, visible))
    return tokens
