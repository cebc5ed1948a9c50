"""Time against size: which cases of an operation differ in one size only, and what power fits.

A case is a sentence with its sizes, each before what it counts: "spans, 8192 tokens, 32:8 heads".
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.harness.results import Result
from bench.harness.timing import Timing

LEAST_SIZES = 3
NUMBER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")  # not that of bfloat16
NO_NOUNS = ("of", "to", "x")


@dataclass(frozen=True)
class Series:
    """Cases that differ in the number of `axis`: "spans, N tokens, 32:8 heads".

    `lines` holds each provider's times, by size.
    """

    operation: str
    case: str
    axis: str
    lines: dict[str, list[tuple[int, Timing]]]


@dataclass(frozen=True)
class Fit:
    """time = a constant * size^exponent; `deviation` is that of the worst time, as a share."""

    exponent: float
    deviation: float


def kind(case: str) -> str:
    """A case without its sizes."""
    return NUMBER.sub("#", case)


def series(results: Iterable[Result]) -> list[Series]:
    """All in which a size takes at least three values; sizes that change together are one.

    What was timed once is no part of one.
    """
    groups = {}
    for result in results:
        if result.timing is not None and len(result.timing.samples) > 1:
            cases = groups.setdefault((result.operation, kind(result.case)), {})
            cases.setdefault(result.case, []).append(result)
    return [found for cases in groups.values() for found in _of_one_kind(cases)]


def fit(points: Sequence[tuple[int, Timing]]) -> Fit | None:
    """By least squares of the logarithms; None for too few points."""
    if len(points) < LEAST_SIZES:
        return None
    sizes = [math.log(size) for size, _ in points]
    times = [math.log(timing.milliseconds) for _, timing in points]
    slope, intercept = statistics.linear_regression(sizes, times)
    errors = [time - slope * size - intercept for size, time in zip(sizes, times, strict=True)]
    return Fit(slope, math.expm1(max(map(abs, errors))))


def _of_one_kind(cases: dict[str, list[Result]]) -> Iterable[Series]:
    numbers = {case: [int(number) for number in NUMBER.findall(case)] for case in cases}
    columns = list(zip(*numbers.values(), strict=True))
    for index, column in enumerate(columns):
        together = [j for j, other in enumerate(columns) if _change_together(column, other)]
        if index != together[0]:
            continue  # met before
        runs = {}
        for case, sizes in numbers.items():
            others = tuple(size for j, size in enumerate(sizes) if j not in together)
            runs.setdefault(others, []).append(case)
        for members in runs.values():
            if len(members) >= LEAST_SIZES:
                yield _series({case: (numbers[case], cases[case]) for case in members}, together)


def _change_together(column: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Does either say what the other is?"""
    return len(set(zip(column, other, strict=True))) == len(set(column)) == len(set(other))


def _series(cases: dict[str, tuple[list[int], list[Result]]], together: list[int]) -> Series:
    """Of the first number, of those that change together, that stands before a noun."""
    parts = NUMBER.split(next(iter(cases)))  # words, number, words, number, ...
    nouns = {j: re.match(r" ([a-z]+)", parts[2 * j + 2]) for j in together}
    nouns = {j: noun[1] for j, noun in nouns.items() if noun and noun[1] not in NO_NOUNS}
    chosen, axis = next(iter(nouns.items()), (together[0], "size"))
    for j in together:
        parts[2 * j + 1] = "N" if j == chosen else "..."
    lines = {}
    for sizes, results in sorted(cases.values(), key=lambda each: each[0][chosen]):
        for result in results:
            lines.setdefault(result.provider, []).append((sizes[chosen], result.timing))
    return Series(results[0].operation, "".join(parts), axis, lines)
