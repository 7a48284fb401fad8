"""The one error type that a user's mistake or a broken input raises."""


class VitcodError(Exception):
    """A problem the user can mend, told in one sentence.

    The message names the option (or file) at fault and what to do next. The command line prints
    it without a traceback and exits with code 1; anything else that escapes is a defect of ours
    and keeps its traceback.
    """


class Interrupted(SystemExit):
    """A signal stopped the run after its state was saved; the process ends with ``code`` (130, 143)."""
