"""`python -m service` is the command line."""

from service.cli import app

app(prog_name="headrace")
