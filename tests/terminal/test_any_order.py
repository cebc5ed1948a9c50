"""Whatever is typed, in whatever order, and whatever becomes of the answers: a conversation stays
one."""

import io

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.errors import ContextFull, UserError
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER
from metamorph.generation.settings import AnswerSettings
from metamorph.terminal.chat import Chat
from metamorph.terminal.printer import Screen
from metamorph.terminal.talk import talk_typed
from tests.terminal.scripted import ScriptedAssistant, draw, finish, say

LINES = [
    "one", "two", "/undo", "/retry", "/image red.png", "/image gone.png", "/detach", "/clear",
    "/save talk.json", "/load talk.json", "/system Be brief.", "/system", "/seed 3", "/seed x",
    "/set top_p 0.5", "/set top_p 5", "/set", "/help", "/nonsense", '"""', "two lines \\", "",
]  # fmt: skip
ANSWERS = [
    [*say("fine"), *finish()],
    [*say("see"), *draw(), *finish("length")],
    finish(),
    finish("cancelled"),
    [*say("half"), *finish("cancelled")],
    [*say("half"), *finish("error", "it broke")],
    ContextFull("it does not fit"),
    UserError("no system turns"),
]
SAME_FOLDER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=40, suppress_health_check=SAME_FOLDER)
@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(ANSWERS)), max_size=25))
def test_the_model_is_always_given_a_conversation(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (6, 4), "red").save("red.png")
    lines = iter([line for line, _ in typed])

    def read_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assistant = ScriptedAssistant(*(answer for _, answer in typed))
    chat = Chat(assistant, AnswerSettings(), Screen(io.StringIO(), tmp_path), io.StringIO())
    talk_typed(chat, read_line)
    for messages, _, _ in assistant.asked:
        roles = [message.role for message in messages]
        turns = roles[roles[0] == SYSTEM :]
        assert turns == [USER, ASSISTANT] * (len(turns) // 2) + [USER]
        assert isinstance(messages[-1].parts[-1], str) and messages[-1].text
    assert chat.conversation.system in ("", "Be brief.")
    for path in tmp_path.iterdir():
        path.unlink()
