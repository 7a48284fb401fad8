"""Whether a finished model goes to the Hugging Face Hub. Imports nothing of its client."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class HubSettings(Settings, panel="Output"):
    """Whether, and where to, a finished model is uploaded."""

    push_to_hub: str | None = setting(
        None,
        "Upload the finished model and its card to this repository of the Hugging Face Hub; needs a token.",
        metavar="OWNER/NAME",
        show_default=False,
    )
    hub_private: bool = setting(False, "Make a repository that isn't there yet private.")
