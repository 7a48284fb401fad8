"""``vitcod push``: a finished model to the Hugging Face Hub."""

from __future__ import annotations

from vitcod_cli.cli.console import print_result
from vitcod_cli.export.push_settings import PushOptions


def push(options: PushOptions) -> None:
    """Upload a finished model and its card to the Hugging Face Hub, as --push-to-hub does at the end of a run.

    Needs a token: HF_TOKEN, or hf auth login. vitcod_cli.load("hf-hub:OWNER/NAME") brings the model back, and so
    does --checkpoint hf-hub:OWNER/NAME.
    """
    from vitcod_cli.export.push import push as run

    print_result(run(options))
