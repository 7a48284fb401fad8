"""``vitcod models``: which of timm's models can be treated."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.inspection.models_settings import ModelsOptions


def models(options: ModelsOptions) -> None:
    """List the models of the installed timm that can be treated, and say of others why not.

    Nothing is downloaded.
    """
    from vitcod_cli.inspection.models import lines
    from vitcod_cli.inspection.models import models as look

    found = look(options, console())
    if options.result.json:
        print_json(found.to_dict())
        return
    for line in lines(found):
        print_result(line)
