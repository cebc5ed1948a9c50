"""What a person is asked in a terminal, where an option did not say it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from metamorph.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Questions:
    """`is_typed`: whether somebody sits there who can be asked."""

    is_typed: bool

    def answer(
        self,
        option: str,
        given: str | None,
        question: str,
        convert: Callable[[str], T],
        default: str | None = None,
    ) -> T:
        """What `convert` makes of what was given for an option; of what somebody types, who is
        asked again until it can be used; or of the default.

        Raises `UserError` if what was given cannot be used, or nothing was given, nobody can be
        asked and there is no default.
        """
        if given is not None:
            return convert(given)
        if not self.is_typed:
            if default is None:
                raise UserError(
                    f"{option}: it is needed where nobody can be asked, for standard input is no "
                    f"terminal: {question[0].lower()}{question[1:]}"
                )
            return convert(default)
        while True:
            typed = self._typed(question, default)
            if not typed and default is None:
                continue
            try:
                return convert(typed or default or "")
            except UserError as error:
                print(f"  {error}")

    def _typed(self, question: str, default: str | None) -> str:
        suggestion = f" [{default}]" if default else ""
        try:
            # As a shell does with what stands on a command line: ~/data is in the home folder.
            return os.path.expanduser(input(f"{question}{suggestion}: ").strip())
        except EOFError:
            print()
            raise UserError("nothing was written: the answers ended before the questions") from None
