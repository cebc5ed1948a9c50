"""Requests over HTTP, and the same put to the assistant: what the server adds to an answer."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.harness.comparison import Comparison
from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.models import TOY, Widths, missing_package, speeds

ANSWERS, FIRST = "served answers", "time to the first piece"
ASSISTANT, SERVER = "ours assistant", "ours server"
PROVIDERS = (Provider(ASSISTANT, False), Provider(SERVER, True))  # the method: over HTTP
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "httpx")
CHAT = "/v1/chat/completions"
SECONDS = 300.0  # that a request may take


@dataclass(frozen=True)
class Case(Widths):
    """So many requests at the same moment, each a prompt of its own that nobody has put before."""

    requests: int
    words: int = 200  # of a prompt, about a token each
    answer: int = 64  # tokens of text
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False

    @property
    def name(self) -> str:
        return f"serving-{self.requests}"

    def __str__(self) -> str:
        return (
            f"{self.requests} requests at once, prompts of {self.words} words, {self.answer} "
            f"tokens, {self.layers} layers of {self.hidden}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify that the server's texts are the assistant's, then time both."""
        absence = missing_package(*PACKAGES)
        if absence is None:
            with _Trial(self, device) as trial:
                return self._compare(device, trial, None)
        return self._compare(device, None, absence)

    def _compare(self, device: torch.device, trial: "_Trial | None", absence) -> list[Result]:
        found = []
        for operation in (ANSWERS, FIRST):
            comparison = Comparison(operation, str(self))
            for provider in PROVIDERS:
                make = partial(_Trial.candidate, trial, operation, provider.method)
                comparison.add(provider.name, make, absence)
            results = comparison.results(device)
            tokens = self.requests * self.answer
            found += results + (speeds(results, tokens, "tokens") if operation == ANSWERS else [])
        return found


def cases(device_type: str) -> list[Case]:
    """A toy on the CPU, where it is overhead that is seen."""
    if device_type == "cpu":
        toy = TOY | {"words": 50, "answer": 32, "dtype": torch.float32}
        return [Case(1, **toy), Case(16, **toy)]
    return [Case(1), Case(4), Case(16)]


class _Trial:
    """One model, an assistant over it, and a server with an assistant of its own."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.generation.assistant import Assistant
        from metamorph.generation.engine import EngineOptions
        from metamorph.generation.settings import AnswerSettings

        self.case = case
        options = EngineOptions(slots=case.requests, context=1024)
        model, tokenizer = self._model(device)
        precision = "bf16" if case.dtype == torch.bfloat16 else "fp32"
        make = partial(Assistant, model, tokenizer, precision=precision, options=options)
        self.assistant, self.served = make(), make()
        self.settings = AnswerSettings(max_new_tokens=case.answer, max_images=0)
        self.open = contextlib.ExitStack()
        self.asked = 0

    def __enter__(self) -> "_Trial":
        import httpx

        address = self.open.enter_context(_serving(self.served))
        self.clients = [
            self.open.enter_context(httpx.Client(base_url=address, timeout=SECONDS))
            for _ in range(self.case.requests)
        ]
        self.threads = self.open.enter_context(ThreadPoolExecutor(self.case.requests))
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()

    def _model(self, device: torch.device):
        """Random weights, and the toy's tokenizer, whose vocabulary is small for a large model."""
        from dataclasses import replace

        from metamorph.data.toy.tokenizer import build_toy_tokenizer
        from metamorph.model.opening import add_image_tokens
        from metamorph.model.unified import MetaMorph

        tokenizer = build_toy_tokenizer()
        ids = add_image_tokens(tokenizer)
        config = replace(self.case, vocabulary=len(tokenizer)).config()
        torch.manual_seed(0)
        with torch.device(device):
            model = MetaMorph(replace(config, **ids))
        # No token ends an answer: all are of one length.
        model.language.lm_head.weight.data[config.eos_ids] = 0
        return model.to(self.case.dtype).requires_grad_(False), tokenizer

    def candidate(self, operation: str, over_http: bool) -> Candidate:
        ways: dict[tuple[str, bool], Callable[[Sequence[str]], list[str]]] = {
            (ANSWERS, False): self._answers,
            (ANSWERS, True): partial(self._at_once, self._answer_over_http),
            (FIRST, False): self._first_pieces,
            (FIRST, True): partial(self._at_once, self._first_over_http),
        }
        prompts, run = self._prompts(), ways[operation, over_http]
        whole = self._answers(prompts)
        # How many tokens a first piece holds depends on who else is being answered.
        right = str.startswith if operation == FIRST else str.__eq__
        wrong = sum(
            not found or not right(answer, found)
            for answer, found in zip(whole, run(prompts), strict=True)
        )
        return Candidate(run, lambda _: (self._prompts(),), wrong, 0, by_the_wall=True)

    def _prompts(self) -> list[str]:
        """New ones: what was asked before may be known from the cache."""
        first = self.asked
        self.asked += self.case.requests
        return [
            f"Question {number}. " + "Is the circle red? " * (self.case.words // 4)
            for number in range(first, self.asked)
        ]

    def _answers(self, prompts: Sequence[str]) -> list[str]:
        conversations = [_conversation(prompt) for prompt in prompts]
        replies = self.assistant.generate(conversations, self.settings)
        return ["".join(reply.parts) for reply in replies]

    def _first_pieces(self, prompts: Sequence[str]) -> list[str]:
        """Of each, until the last one has a piece; then nobody wants more."""
        from metamorph.generation.events import TextPiece

        answers = [self.assistant.submit(_conversation(p), self.settings) for p in prompts]
        while not all(answer.events for answer in answers):
            self.assistant.advance()
        firsts = [answer.events[0] for answer in answers]
        for answer in answers:
            self.assistant.cancel(answer)
        while self.assistant.advance():
            pass
        return [piece.text if isinstance(piece, TextPiece) else "" for piece in firsts]

    def _at_once(self, ask: Callable[[Any, str], str], prompts: Sequence[str]) -> list[str]:
        return list(self.threads.map(ask, self.clients, prompts))

    def _answer_over_http(self, client, prompt: str) -> str:
        response = client.post(CHAT, json=self._body(prompt)).raise_for_status()
        return response.json()["choices"][0]["message"]["content"]

    def _first_over_http(self, client, prompt: str) -> str:
        import json

        with client.stream("POST", CHAT, json=self._body(prompt) | {"stream": True}) as response:
            for line in response.raise_for_status().iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    if text := chunk["choices"][0]["delta"].get("content"):
                        return text
        return ""

    def _body(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"messages": messages, "max_tokens": self.case.answer, "max_images": 0}


def _conversation(prompt: str):
    from metamorph.generation.messages import USER, Message

    return [Message(USER, prompt)]


@contextlib.contextmanager
def _serving(assistant) -> Iterator[str]:
    """The address of a server in a thread."""
    from metamorph.pixels import Square
    from metamorph.serving.app import create_app
    from metamorph.serving.served import Served
    from metamorph.serving.server import Server, bound

    config = assistant.model.config
    served = Served(  # nobody sends a picture, and the model has no encoder
        name="bench", created=0, tokens=config.tokens_per_image, width=config.visual_width,
        shrink=Square(64), see=lambda image: torch.zeros(0), context=assistant.engine.context,
        drawing_steps=None,
    )  # fmt: skip
    listener, ready = bound("127.0.0.1", 0), threading.Event()
    app = create_app(assistant, served)
    server = Server(app, grace=0, ready=ready.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        if not ready.wait(SECONDS):
            raise TimeoutError("the server did not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        thread.join()
