"""The images that can't be read: said once each, up to a limit."""

from __future__ import annotations

import logging

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_logger = logging.getLogger(__name__)


class BadImages:
    """The unreadable images that this process has met, and how many it puts up with."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def report(self, image: str, reason: str, *, replaced: bool, reporter: Reporter | None = None) -> None:
        """Warn of one image, the first time that it is met.

        Raises:
            VitcodError: when there are more than ``limit``.
        """
        if image in self.reasons:
            return
        self.reasons[image] = reason
        if len(self.reasons) > self.limit:
            listed = "; ".join(f"{name} ({why})" for name, why in list(self.reasons.items())[:5])
            more = f"; and {len(self.reasons) - 5} more" if len(self.reasons) > 5 else ""
            raise VitcodError(
                f"More than --max-bad-images {self.limit} images can't be read: {listed}{more}. "
                "Mend or remove them, or raise --max-bad-images."
            )
        fate = "another takes its place" if replaced else "it is left out"
        # Each process reads other images, and the reporters of all but the first are silent.
        warn(f"Can't read {image} ({reason}); {fate}.", reporter if distributed.is_main() else None)


def warn(text: str, reporter: Reporter | None) -> None:
    """Warn through ``reporter``, or through logging where there is none."""
    if reporter is None:
        _logger.warning(text)
    else:
        reporter.warn(text)
