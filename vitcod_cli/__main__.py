"""``vitcod`` and ``python -m vitcod_cli``."""

import sys

from vitcod_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
