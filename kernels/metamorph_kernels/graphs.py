"""What graphs of torch.compile have to know of our functions."""

from collections.abc import Callable


def constant_in_graphs(function: Callable) -> Callable:
    """Marks a function whose result is a constant of the graph that calls it.

    What `torch.compiler.assume_constant_result` does, but that one first imports all of
    torch.compile: as long as importing torch itself, for programs that compile nothing.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
