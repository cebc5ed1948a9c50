"""One thread, many requests: nothing is lost, crossed or waited for in vain."""

import asyncio
import time

import pytest

from metamorph.errors import UserError
from metamorph.generation.events import Finished, ImageDrawn, TextPiece
from metamorph.generation.messages import USER, Message
from metamorph.generation.settings import AnswerSettings, DrawingSettings
from metamorph.serving.engine import EngineThread, Question
from metamorph.serving.refusals import Refused
from tests.serving.scripted import (
    CRASH,
    FAIL,
    HOLD,
    REFUSE,
    TRIP,
    ScriptedAssistant,
    ScriptedDecoder,
    features_of,
)


def with_engine(scenario, slots: int = 2) -> None:
    """Runs `scenario(engine, assistant)` on an event loop."""

    async def run():
        assistant = ScriptedAssistant(slots)
        engine = EngineThread(assistant, ScriptedDecoder())
        engine.start()
        try:
            await asyncio.wait_for(scenario(engine, assistant), 20)
        finally:
            engine.stop()

    asyncio.run(run())


def question(text: str, tokens: int = 50) -> Question:
    return Question([Message(USER, text)], AnswerSettings(max_new_tokens=tokens))


async def read(inbox) -> list:
    """All events of all answers, by answer."""
    await inbox.accepted
    found = [[] for _ in range(inbox.unfinished)]
    while inbox.unfinished:
        for number, event in await inbox.take():
            found[number].append(event)
    return found


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextPiece))


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_each_answer_goes_to_who_asked():
    async def scenario(engine, assistant):
        inboxes = [engine.ask([question(f"{n} a"), question(f"{n} b c")]) for n in range(20)]
        for n, inbox in enumerate(inboxes):
            first, second = await read(inbox)
            assert (text_of(first), text_of(second)) == (f"You said: {n} a ", f"You said: {n} b c ")
            assert isinstance(first[-1], Finished) and isinstance(second[-1], Finished)

    with_engine(scenario)


def test_who_goes_away_gives_the_slot_to_the_next():
    async def scenario(engine, assistant):
        held = [engine.ask([question(HOLD)]) for _ in range(2)]
        await until(lambda: engine.status.active == 2)
        waiting = engine.ask([question("hello")])
        await waiting.accepted
        await until(lambda: engine.waiting == 1)
        engine.close(held[0])
        [events] = await read(waiting)
        assert text_of(events) == "You said: hello "
        engine.close(held[1])
        await until(lambda: engine.status.active == 0)

    with_engine(scenario)


def test_a_question_that_cannot_be_answered_concerns_its_request_alone():
    async def scenario(engine, assistant):
        good = engine.ask([question("hello")])
        for order, error in ((REFUSE, UserError), (TRIP, RuntimeError)):
            with pytest.raises(error):
                await engine.ask([question("fine"), question(order)]).accepted
        [events] = await read(good)
        assert text_of(events) == "You said: hello "
        [events] = await read(engine.ask([question("still here")]))
        assert text_of(events) == "You said: still here "
        await until(lambda: engine.status.active == 0 and engine.waiting == 0)

    with_engine(scenario)


def test_an_answer_that_fails_says_so():
    async def scenario(engine, assistant):
        [events] = await read(engine.ask([question(FAIL)]))
        assert events[-1].reason == "error" and events[-1].error

    with_engine(scenario)


def test_pictures_apart_from_answers_are_drawn_between_rounds():
    async def scenario(engine, assistant):
        held = engine.ask([question(HOLD)])
        drawn = [
            engine.draw(
                lambda: features_of(0), seed=seed, settings=DrawingSettings(num_inference_steps=3)
            )
            for seed in (1, 2)
        ]
        pictures = []
        for inbox in drawn:
            [events] = await read(inbox)
            pictures += [e.picture.tobytes() for e in events if isinstance(e, ImageDrawn)]
        assert len(set(pictures)) == 2
        assert engine.drawings == 0
        engine.close(held)
        with pytest.raises(ValueError, match="features"):
            await engine.draw(
                lambda: features_of(0)[:, :2], seed=0, settings=DrawingSettings()
            ).accepted

    with_engine(scenario)


def test_a_crash_fails_what_is_at_hand_and_what_comes_later():
    async def scenario(engine, assistant):
        inboxes = [engine.ask([question(HOLD)]), engine.ask([question(CRASH)])]
        inboxes.append(engine.ask([question("waits")]))
        for inbox in inboxes:
            with pytest.raises(Refused) as refused:
                await read(inbox)
            assert refused.value.status_code == 500
        assert engine.broken
        with pytest.raises(Refused) as refused:
            await engine.ask([question("later")]).accepted
        assert refused.value.status_code == 503
        engine.close(inboxes[0])

    with_engine(scenario)


def test_an_idle_engine_sleeps():
    async def scenario(engine, assistant):
        await read(engine.ask([question("hello")]))
        rounds = []
        advance = assistant.advance
        assistant.advance = lambda: rounds.append(1) or advance()
        began = time.process_time()
        await asyncio.sleep(0.1)
        assert len(rounds) <= 1 and time.process_time() - began < 0.08

    with_engine(scenario)


def test_a_stopped_engine_fails_what_is_at_hand():
    async def run():
        engine = EngineThread(ScriptedAssistant())
        engine.start()
        inbox = engine.ask([question(HOLD)])
        await inbox.accepted
        engine.stop()
        with pytest.raises(Refused) as refused:
            await read(inbox)
        assert refused.value.status_code == 503

    asyncio.run(run())
