"""How the warp-specialised attention kernels cut their work.

Two consumer warp groups have 64 rows each: of queries in the forward and for their gradient, of
keys for theirs. A block is launched with 168 registers a thread, of which the producer hands most
of its own to the consumers.
"""

from dataclasses import dataclass

LAUNCH_REGISTERS = 168  # of a thread: a third of an SM's for each of three warp groups
WARPS, ROWS = 4, 64  # of a consumer


@dataclass(frozen=True)
class GluonTiles:
    """Tokens of a block that consumers share, and how many such blocks a ring holds.

    The blocks are of keys in the forward and for the gradient of queries, of queries for the
    gradient of keys and values. A thread of a consumer takes `consumer_registers`; one of the
    producer keeps what is left, of which 24 are the fewest.
    """

    block: int
    stages: int
    take_turns: bool  # consumers issue their products one after the other
    consumer_registers: int = 240

    @property
    def producer_registers(self) -> int:
        return 3 * LAUNCH_REGISTERS - 2 * self.consumer_registers


# By (direction, head dim).
GLUON_TILES = {
    ("forward", 64): GluonTiles(128, stages=4, take_turns=True),
    ("forward", 128): GluonTiles(128, stages=2, take_turns=True),
    # Gradients give a slot back when the next block has come: with two slots nothing would be on
    # its way under most of a block.
    ("query_gradient", 64): GluonTiles(64, stages=4, take_turns=False, consumer_registers=232),
    ("query_gradient", 128): GluonTiles(64, stages=4, take_turns=False, consumer_registers=232),
    ("key_value_gradient", 64): GluonTiles(64, stages=3, take_turns=False),
    ("key_value_gradient", 128): GluonTiles(64, stages=3, take_turns=False),
}
# What to try beside them on a GPU (`bench.runs.sweep`), by the model of docs/kernels.md: the most
# promising first. A smaller block wastes less of short documents, but its products need all of what
# shared memory gives.
RUNNERS_UP = {
    ("forward", 64): (
        GluonTiles(128, stages=4, take_turns=False),
        GluonTiles(128, stages=3, take_turns=True),
        GluonTiles(64, stages=4, take_turns=True),
        GluonTiles(64, stages=8, take_turns=False),
    ),
    ("forward", 128): (
        GluonTiles(64, stages=4, take_turns=True),
        GluonTiles(128, stages=2, take_turns=False),
        GluonTiles(64, stages=3, take_turns=True),
        GluonTiles(64, stages=4, take_turns=False),
    ),
    ("query_gradient", 64): (
        GluonTiles(128, stages=3, take_turns=False, consumer_registers=232),
        GluonTiles(64, stages=6, take_turns=False, consumer_registers=232),
        GluonTiles(128, stages=2, take_turns=False, consumer_registers=232),
    ),
    ("query_gradient", 128): (
        GluonTiles(64, stages=3, take_turns=False, consumer_registers=232),
        GluonTiles(64, stages=2, take_turns=False, consumer_registers=232),
        GluonTiles(32, stages=4, take_turns=False, consumer_registers=232),
    ),
    ("key_value_gradient", 64): (
        GluonTiles(64, stages=4, take_turns=False),
        GluonTiles(64, stages=2, take_turns=False),
    ),
    ("key_value_gradient", 128): (
        GluonTiles(64, stages=2, take_turns=False),
        GluonTiles(32, stages=3, take_turns=False),
    ),
}
