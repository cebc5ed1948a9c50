"""The one exception whose message is meant for the person at the command line."""


class UserError(Exception):
    """A problem the user can fix. The message is one sentence: what, where, what was expected."""


class Stopped(Exception):
    """A run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint."""
