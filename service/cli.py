"""The command line: which commands there are."""

import typer

from service.commands import instance, jobs, replay, workshop
from service.commands.doctor import doctor

app = typer.Typer(
    name="headrace",
    help="A goal comes in; a running app with a preview URL and a build number comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (instance.demo, instance.up, instance.env, jobs.submit, jobs.watch, jobs.jobs):
    app.command()(command)
app.command()(jobs.cancel)

replay_app = typer.Typer(no_args_is_help=True, help="Prove and remake the read model.")
for command in (replay.rebuild, replay.verify, replay.show):
    replay_app.command()(command)
app.add_typer(replay_app, name="replay")

app.command()(doctor)
app.command()(instance.migrate)
app.command()(workshop.bench)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    workshop.test
)
