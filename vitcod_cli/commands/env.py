"""``vitcod env``: what a bug report should say of the machine."""

from __future__ import annotations

from vitcod_cli.cli.console import print_json, print_result
from vitcod_cli.inspection.env_settings import EnvOptions


def env(options: EnvOptions) -> None:
    """Say what a bug report should: versions, CPU, memory, GPUs. No names of hosts, users or folders."""
    from vitcod_cli.inspection.env import environment, lines

    found = environment()
    if options.result.json:
        print_json(found)
        return
    for line in lines(found):
        print_result(line)
