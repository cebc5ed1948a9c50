"""A conversation: what the model is asked, what is said of it, and what a person sees."""

import io
import signal

import pytest
from PIL import Image

from metamorph.errors import ContextFull, UserError
from metamorph.generation.events import ImageStarted, TextPiece
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Drawing, Message
from metamorph.generation.settings import AnswerSettings
from metamorph.terminal.chat import Chat
from metamorph.terminal.conversation import Conversation
from metamorph.terminal.entries import PipedLines
from metamorph.terminal.printer import Screen
from metamorph.terminal.talk import talk_piped, talk_typed
from tests.terminal.scripted import ScriptedAssistant, draw, finish, say

ONE, TWO = [*say("one"), *finish()], [*say("two"), *finish()]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (6, 4), "red").save("red.png")
    Image.new("RGB", (6, 4), "blue").save("the blue one.png")
    return tmp_path


@pytest.fixture
def make(tmp_path):
    """Makes a chat with an assistant that answers so."""

    def make(*answers, decoder: bool = True, **options) -> Chat:
        assistant = ScriptedAssistant(*answers, decoder=decoder)
        screen = Screen(io.StringIO(), tmp_path)
        return Chat(assistant, AnswerSettings(), screen, io.StringIO(), **options)

    return make


def pipe(chat: Chat, *lines: str) -> str:
    """What a chat over a pipe writes to standard output."""
    talk_piped(chat, PipedLines(io.StringIO("\n".join(lines))))
    return chat.screen.out.getvalue()


def type_in(chat: Chat, *lines: str) -> str:
    """What a chat at a terminal says of what was typed, beside the answers."""
    typed = iter(lines)

    def read_line(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    talk_typed(chat, read_line)
    return chat.notes.getvalue()


def asked(chat: Chat) -> list[tuple[tuple, ...]]:
    """The parts of the messages of each question."""
    return [tuple(m.parts for m in messages) for messages, _, _ in chat.assistant.asked]


# What the model is given


def test_every_answer_is_part_of_the_next_question(make):
    chat = make(ONE, TWO)
    assert pipe(chat, "first", "", "second") == "one\ntwo\n"
    assert chat.notes.getvalue() == ""
    [(first, _, _), (second, _, _)] = chat.assistant.asked
    assert first == (Message(USER, ("first",)),)
    assert second == (*first, Message(ASSISTANT, ("one",)), Message(USER, ("second",)))


def test_attached_pictures_stand_before_the_question_once(make):
    chat = make(ONE, TWO)
    pipe(chat, "/image red.png 'the blue one.png'", "/image red.png", "Which?", "And now?")
    first, second = asked(chat)
    assert [part.getpixel((0, 0)) for part in first[0][:-1]] == [
        (255, 0, 0), (0, 0, 255), (255, 0, 0),
    ]  # fmt: skip
    assert first[0][-1] == "Which?" and second[2] == ("And now?",)
    assert second[0] == first[0]  # the same pictures, not copies: they are encoded once
    assert chat.notes.getvalue().count("6 x 4 pixels") == 3


def test_attached_pictures_can_be_taken_back(make):
    chat = make(ONE)
    pipe(chat, "/image red.png", "/detach", "Well?")
    assert asked(chat) == [(("Well?",),)]


def test_own_pictures_come_back_as_features(make):
    chat = make([*say("Here: "), *draw(), *finish()], TWO)
    pipe(chat, "Draw.", "Bigger.")
    [_, (messages, _, reencode)] = chat.assistant.asked
    text, drawing = messages[1].parts
    assert text == "Here: " and isinstance(drawing, Drawing) and drawing.picture.size == (6, 4)
    assert not reencode


def test_or_are_read_again_from_pixels(make):
    chat = make(ONE, reencode=True)
    pipe(chat, "Draw.")
    assert chat.assistant.asked[0][2]


def test_a_system_turn_comes_first(make):
    chat = make(ONE, TWO, ONE, conversation=Conversation("Be kind."))
    pipe(chat, "a", "/system Be brief.\\", "Always.", "b", "/system", "c")
    assert [messages[0] for messages, _, _ in chat.assistant.asked[:2]] == [
        Message(SYSTEM, "Be kind."), Message(SYSTEM, "Be brief.\nAlways."),
    ]  # fmt: skip
    assert chat.assistant.asked[2][0][0].role == USER


def test_settings_hold_from_the_next_question_on(make):
    chat = make(ONE, TWO)
    pipe(chat, "a", "/set temperature 0.5", "/seed 7", "/set top-k 3", "b")
    [(_, before, _), (_, after, _)] = chat.assistant.asked
    assert before == AnswerSettings()
    assert (after.sampling.temperature, after.sampling.seed, after.sampling.top_k) == (0.5, 7, 3)
    chat = make()
    pipe(chat, "/seed 7", "/set")
    assert "seed = 7\n" in chat.notes.getvalue() and "top_p = default\n" in chat.notes.getvalue()


def test_a_video_becomes_frames(make, here):
    av = pytest.importorskip("av")
    with av.open("film.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(20):
            picture = Image.new("RGB", (32, 32), (12 * number,) * 3)
            film.mux(stream.encode(av.VideoFrame.from_image(picture)))
        film.mux(stream.encode())
    chat = make(ONE, TWO)
    pipe(chat, "/video film.mp4 4", "What happens?", "/video film.mp4", "And?")
    [(frames, *_), (*_, later)] = asked(chat)
    greys = [frame.getpixel((9, 9))[0] for frame in frames[:-1]]
    assert all(abs(grey - 60 * number) < 8 for number, grey in enumerate(greys))
    assert (len(frames), len(later)) == (5, 9)
    with pytest.raises(UserError, match="/video: expected a whole number, from 1 to 1000"):
        pipe(chat, "/video film.mp4 0")
    with pytest.raises(UserError, match="film.txt"):
        pipe(chat, "/video film.txt")


# What a person can take back


def test_undo_takes_back_the_last_question_and_its_answer(make):
    chat = make(ONE, TWO, ONE)
    pipe(chat, "a", "b", "/undo", "c")
    assert asked(chat)[2] == (("a",), ("one",), ("c",))


def test_retry_asks_again_with_another_seed(make):
    chat = make(ONE, TWO, ONE)
    pipe(chat, "/set temperature 1", "/image red.png", "a", "/retry", "b")
    first, again, after = chat.assistant.asked
    assert first[0] == again[0]
    assert (first[1].sampling.seed, again[1].sampling.seed) == (0, 1)
    assert after[0][1].parts == ("two",)  # the answer that is kept
    chat = make(ONE, TWO)
    pipe(chat, "a", "/retry")
    assert "stays as it is at temperature 0" in chat.notes.getvalue()


def test_clear_keeps_the_system_text_and_settings(make):
    chat = make(ONE, TWO, conversation=Conversation("Be kind."))
    pipe(chat, "a", "/seed 3", "/image red.png", "/clear", "b")
    messages, settings, _ = chat.assistant.asked[1]
    assert messages == (Message(SYSTEM, "Be kind."), Message(USER, ("b",)))
    assert settings.sampling.seed == 3


def test_a_conversation_goes_on_from_a_file(make, here):
    chat = make([*say("See"), *draw(), *finish()], conversation=Conversation("Be kind."))
    pipe(chat, "/image red.png", "Draw.", "/save talk.json", "/save talk.json")
    later = make(ONE)
    pipe(later, "/load talk.json", "More.", "/save talk.json")
    [(messages, _, _)] = later.assistant.asked
    assert messages[0].text == "Be kind." and messages[3].text == "More."
    image, question = messages[1].parts
    assert image.getpixel((0, 0)) == (255, 0, 0) and question == "Draw."
    assert messages[2].parts[0] == "See" and messages[2].parts[1].features.shape == (4, 8)


def test_nothing_is_lost_by_loading_or_saving(make, here):
    (here / "mine.json").write_text("mine")
    chat = make(ONE)
    notes = type_in(chat, "a", "/save mine.json", "/save talk.json", "/load talk.json")
    assert "mine.json exists" in notes and (here / "mine.json").read_text() == "mine"
    assert "this conversation would be lost" in notes
    assert "nothing was said yet" in type_in(make(), "/save new.json")


def test_pictures_without_a_decoder_are_features(make, here):
    drawn = [event for event in draw() if type(event).__name__.startswith("Image")][:-1]
    chat = make([*drawn, *say("there"), *finish()], TWO, decoder=False)
    assert pipe(chat, "a", "/save talk.json", "b") == "[picture: not drawn]\nthere\ntwo\n"
    assert chat.assistant.asked[0][1].drawing is None
    assert chat.assistant.asked[1][0][1].parts[0].features.shape == (4, 8)
    later = make(ONE)
    pipe(later, "/load talk.json", "more")
    assert later.assistant.asked[0][0][1].parts[0].picture is None


# What goes wrong


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", "/imge x"], "line 2: there is no command '/imge', the nearest is '/image'"),
        (["/image gone.png"], "line 1: image gone.png does not exist"),
        (["/image"], "line 1: /image: expected FILE ..."),
        (["", "/video"], "line 2: /video: expected FILE"),
        (["/undo"], "line 1: /undo: nothing was said yet"),
        (["/retry"], "line 1: /retry: nothing was asked yet"),
        (["/seed"], "line 1: /seed: expected N"),
        (["/seed x"], "line 1: /seed: expected a whole number"),
        (["/set temp 1"], "the nearest is 'temperature'"),
        (["/set top_p 1 2"], "/set: expected KEY VALUE, got 3 words"),
        (["/save a b"], "expected one file"),
        (["/load gone.json"], "gone.json: no such file"),
        (['"""', "a"], "line 3: \"\"\" is never closed"),
    ],
)  # fmt: skip
def test_over_a_pipe_the_first_error_ends_it(make, lines, expected):
    chat = make(ONE)
    with pytest.raises(UserError) as error:
        pipe(chat, *lines, "never asked")
    assert expected in str(error.value)


def test_at_a_terminal_errors_are_said_and_it_goes_on(make):
    chat = make(UserError("no system turns here"), ONE)
    notes = type_in(chat, "/imge", "/image gone.png", "first", "second")
    assert "the nearest is '/image'" in notes and "gone.png" in notes and "no system" in notes
    assert asked(chat)[1] == (("second",),)


def test_some_good_pictures_are_not_attached_without_the_others(make):
    chat = make(ONE)
    type_in(chat, "/image red.png gone.png", "a")
    assert asked(chat) == [(("a",),)]


def test_a_full_context_says_how_to_go_on(make):
    chat = make(ONE, ContextFull("the conversation has 99 tokens, the model holds 90"), TWO)
    notes = type_in(chat, "a", "/image red.png", "b", "/undo", "/retry")
    assert "the model holds 90; /undo takes back the last question" in notes
    [_, full, again] = asked(chat)
    assert len(full) == 3 and len(again) == 1
    assert again[0][-1] == "b" and again[0][0].size == (6, 4)  # with its picture


def test_an_answer_that_fails_is_no_part_of_the_conversation(make):
    failed = [*say("half"), *finish("error", "the model predicts NaN")]
    chat = make(failed, ONE)
    assert "no answer: the model predicts NaN" in type_in(chat, "a", "/retry")
    assert asked(chat) == [(("a",),), (("a",),)]
    with pytest.raises(UserError, match="line 1: no answer: the model predicts NaN"):
        pipe(make(failed), "a")


def test_a_cut_or_empty_answer_is_said(make):
    chat = make([*say("on and on"), *finish("length")], finish())
    assert pipe(chat, "a", "b") == "on and on\n"
    notes = chat.notes.getvalue()
    assert "cut after 7 tokens, see max_new_tokens" in notes and "the answer is empty" in notes


# Ctrl-C


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Where the tests run in the background of a shell, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c(chat: Chat, at: type, times: int = 1) -> None:
    """Ctrl-C comes while an event of this type is made."""

    def press(event):
        if isinstance(event, at):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    chat.assistant.before_event = press


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(make):
    chat = make([*say("one"), *draw(), *say("never"), *finish()], TWO, is_typed=True)
    press_ctrl_c(chat, ImageStarted)
    notes = type_in(chat, "a", "b")
    assert "cancelled; what was said is kept" in notes
    assert asked(chat)[1] == (("a",), ("one",), ("b",))
    assert "never" not in chat.screen.out.getvalue()


def test_ctrl_c_before_anything_was_said_takes_the_question_back(make):
    chat = make([*draw(), *finish()], TWO, is_typed=True)
    press_ctrl_c(chat, ImageStarted)
    assert "cancelled before anything was said" in type_in(chat, "/image red.png", "a", "b")
    [_, (question,)] = asked(chat)
    assert question[-1] == "b" and len(question) == 2  # its picture is still there


def test_a_second_ctrl_c_breaks_into_the_engine(make):
    chat = make([*say("one", "two"), *finish()], TWO, is_typed=True)
    press_ctrl_c(chat, TextPiece, times=2)
    notes = type_in(chat, "a", "/clear", "/quit", "never")
    assert "interrupted; the conversation is as it was" in notes
    assert chat.assistant.current.script[0].reason == "cancelled"
    assert len(chat.assistant.asked) == 1


def test_ctrl_c_at_the_prompt_leaves(make):
    def read_line(prompt):
        raise KeyboardInterrupt

    chat = make(is_typed=True)
    talk_typed(chat, read_line)
    assert chat.notes.getvalue() == "\n"


def test_over_a_pipe_ctrl_c_ends_all(make):
    chat = make(ONE)
    press_ctrl_c(chat, TextPiece)
    with pytest.raises(KeyboardInterrupt):
        pipe(chat, "a")


def test_help_and_quit(make):
    chat = make(ONE)
    pipe(chat, "/help", "/quit", "never asked")
    assert "/image FILE ..." in chat.notes.getvalue() and not chat.assistant.asked
