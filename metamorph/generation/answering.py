"""All prompts of a file answered side by side, by one assistant."""

from collections import deque
from dataclasses import dataclass

from tqdm import tqdm

from metamorph.errors import SampleError, Stopped, UserError, one_line
from metamorph.generation.answer import Reply
from metamorph.generation.answer_folder import AnswerFolder
from metamorph.generation.assistant import Assistant
from metamorph.generation.prompt_files import PromptFile, WrittenPrompt
from metamorph.signals import StopSignal

# Answers under way, for each slot of the engine: some are made, some wait for a slot and some for
# their pictures; more would only keep pictures in memory.
UNDER_WAY = 4


@dataclass
class Tally:
    """What became of the prompts of this run."""

    answered: int = 0
    cut: int = 0  # of the answers, by `max_new_tokens`
    failed: int = 0
    first_failure: str = ""  # the prompt and why

    @property
    def summary(self) -> str:
        """What failed, in a sentence."""
        return one_line(
            f"{self.failed} of {self.failed + self.answered} prompts failed, and are tried again "
            f"by the same command (first: {self.first_failure})"
        )


def answer_all(
    assistant: Assistant, file: PromptFile, folder: AnswerFolder, *, reencode: bool = False
) -> Tally:
    """Writes an answer, or why there is none, for each prompt that `folder` has none of, as soon as
    it is there. `reencode`: see `Assistant.submit`. Raises `Stopped` after a signal; what is
    written stays."""
    waiting = deque(prompt for prompt in file.prompts if prompt.id not in folder.answered)
    most = UNDER_WAY * assistant.status().slots
    under_way, tally = [], Tally()
    tokens, width = assistant.model.config.tokens_per_image, assistant.model.config.visual_width
    bar = tqdm(
        total=len(file.prompts), initial=len(file.prompts) - len(waiting), desc="generate",
        unit=" prompts", mininterval=1, smoothing=0,
    )  # fmt: skip
    with StopSignal() as stop, bar:
        while waiting or under_way:
            if stop.requested:
                raise Stopped(
                    f"{len(folder.answered)} of {len(file.prompts)} prompts are answered; the same "
                    f"command goes on with the rest"
                )
            while waiting and len(under_way) < most:
                prompt = waiting.popleft()
                try:
                    messages = prompt.messages(tokens, width)
                    answer = assistant.submit(messages, prompt.settings, reencode=reencode)
                    under_way.append((prompt, answer))
                except (SampleError, UserError) as error:
                    _fail(prompt, str(error), folder, tally)
                    bar.update()
            assistant.advance()
            for prompt, answer in under_way:
                answer.events.clear()
                if answer.finished:
                    _record(prompt, answer.reply, folder, tally)
                    bar.update()
            under_way = [entry for entry in under_way if not entry[1].finished]
    return tally


def _record(prompt: WrittenPrompt, reply: Reply, folder: AnswerFolder, tally: Tally) -> None:
    undrawn = len(reply.drawings) - len(reply.pictures)
    if reply.finish_reason == "error":
        _fail(prompt, reply.error, folder, tally)
    elif undrawn:
        problem = f"the pictures of its answer ({undrawn}) could not be drawn without a decoder"
        _fail(prompt, problem, folder, tally)
    else:
        folder.write(prompt, reply)
        tally.answered += 1
        tally.cut += reply.finish_reason == "length"


def _fail(prompt: WrittenPrompt, error: str, folder: AnswerFolder, tally: Tally) -> None:
    folder.write_failure(prompt, error)
    tally.failed += 1
    tally.first_failure = tally.first_failure or f"{prompt.id}: {error}"
