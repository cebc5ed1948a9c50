"""What waits for a slow reader is bounded, and is the same answer."""

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metamorph.generation.events import (
    DrawingProgress,
    Finished,
    ImageDrawn,
    ImageProgress,
    ImageStarted,
    TextPiece,
    Usage,
)
from metamorph.serving.inbox import ROOM, Inbox, joined

PICTURE = Image.new("1", (1, 1))
PREVIEW = Image.new("1", (2, 2))
EVENTS = st.lists(
    st.builds(TextPiece, st.text(max_size=3))
    | st.builds(ImageStarted, st.integers(0, 2), st.just(4))
    | st.builds(ImageProgress, st.integers(0, 2), st.integers(1, 4), st.just(4))
    | st.builds(
        DrawingProgress, st.integers(0, 2), st.integers(1, 9), st.just(9),
        st.sampled_from([None, PREVIEW]),
    )
    | st.builds(ImageDrawn, st.integers(0, 2), st.just(PICTURE)),
    max_size=40,
)  # fmt: skip


def told(events) -> list:
    """What a reader has in the end: the text before, between and after pictures, in order."""
    found = [""]
    for event in events:
        if isinstance(event, TextPiece):
            found[-1] += event.text
        elif isinstance(event, ImageStarted | ImageDrawn):
            found += [event, ""]
    return found


@given(EVENTS)
def test_joined_events_tell_the_same(events):
    shorter = joined(events)
    assert told(shorter) == told(events)
    for number in range(3):
        for kind in (ImageProgress, DrawingProgress):
            own = [e for e in events if isinstance(e, kind) and e.number == number]
            kept = [e for e in shorter if isinstance(e, kind) and e.number == number]
            assert len(kept) == bool(own)
            if kind is ImageProgress:
                assert kept == own[-1:]
            elif own:
                assert kept[0].step == own[-1].step
                assert (kept[0].preview is None) == all(e.preview is None for e in own)
    marks = sum(isinstance(event, ImageStarted | ImageDrawn) for event in events)
    assert len(shorter) <= 2 * marks + 1 + 6


def test_a_reader_that_sleeps_costs_no_more_than_an_answer():
    async def scenario():
        inbox = Inbox(1)
        for number in range(5000):
            inbox.put(0, [TextPiece("ab"), ImageProgress(0, number, 5000)])
            assert len(inbox._waiting[0]) <= ROOM
        inbox.put(0, [Finished("stop", Usage())])
        come = [event for _, event in await inbox.take()]
        assert "".join(e.text for e in come if isinstance(e, TextPiece)) == "ab" * 5000
        assert [e.done for e in come if isinstance(e, ImageProgress)][-1] == 4999
        assert inbox.unfinished == 0

    asyncio.run(scenario())


def test_a_quick_reader_gets_every_event_as_it_came():
    async def scenario():
        inbox = Inbox(2)
        inbox.put(1, [TextPiece("a")])
        inbox.put(0, [TextPiece("b"), TextPiece("c")])
        inbox.put(1, [TextPiece("d")])
        come = await inbox.take()
        assert [e.text for n, e in come if n == 0] == ["b", "c"]
        assert [e.text for n, e in come if n == 1] == ["a", "d"]

    asyncio.run(scenario())


def test_a_quick_engine_leaves_the_event_loop_to_others():
    async def scenario():
        inbox, others = Inbox(1), []
        inbox.put(0, [TextPiece("a")])
        await asyncio.sleep(0)  # now it need not wait
        asyncio.get_running_loop().call_soon(others.append, "another request")
        await inbox.take()
        assert others

    asyncio.run(scenario())


def test_another_thread_wakes_the_reader():
    async def scenario():
        inbox = Inbox(1)
        thread = threading.Timer(0.01, inbox.put, (0, [TextPiece("a")]))
        thread.start()
        assert await asyncio.wait_for(inbox.take(), 10) == [(0, TextPiece("a"))]

    asyncio.run(scenario())


def test_the_first_error_counts():
    async def scenario():
        inbox = Inbox(1)
        inbox.fail(ValueError("first"))
        inbox.fail(ValueError("second"))
        for waiting in (inbox.accepted, inbox.take()):
            try:
                await waiting
            except ValueError as error:
                assert str(error) == "first"
            else:
                raise AssertionError("no error came")

    asyncio.run(scenario())
