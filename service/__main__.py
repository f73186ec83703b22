"""`python -m service` is the command line."""

from service.cli import app

# A process that folds for a rebuild imports what its parent ran as `__main__`.
if __name__ == "__main__":
    app(prog_name="headrace")
