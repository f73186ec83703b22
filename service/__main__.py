"""`python -m service` is the command line."""

import sys
import traceback

from service.cli import app
from service.collector import spared


def main() -> None:
    """Run the command line. A traceback of what nobody has foreseen has no secrets."""
    try:
        with spared():
            app(prog_name="headrace")
    except Exception as error:  # noqa: BLE001 - the last one to hear of it
        from service.known_secrets import redactor_of_this_process

        said = "".join(traceback.format_exception(error))
        sys.stderr.write(redactor_of_this_process().text(said))
        sys.exit(1)


# A process that folds for a rebuild imports what its parent ran as `__main__`.
if __name__ == "__main__":
    main()
