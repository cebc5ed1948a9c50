"""The exceptions whose message is meant for the person at the command line."""


class UserError(Exception):
    """A problem the user can fix. The message is one sentence: what, where, what was expected."""


class Stopped(Exception):
    """A run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint."""


class SampleError(Exception):
    """A sample that cannot be used. `cause` is a short name under which skips are counted."""

    def __init__(self, cause: str, message: str):
        super().__init__(cause, message)  # both, else it could not pass between processes
        self.cause = cause

    def __str__(self) -> str:
        return self.args[1]
