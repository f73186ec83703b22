"""The command line: which commands there are."""

import typer

from service.commands import (
    artifacts,
    builds,
    instance,
    jobs,
    log,
    log_info,
    log_repair,
    previews,
    replay,
    replay_parked,
    sandboxes,
    secrets,
    tenants,
    workshop,
)
from service.commands.doctor import doctor
from service.commands.erase import erase
from service.commands.logs import logs
from service.commands.usage import usage

app = typer.Typer(
    name="headrace",
    help="A goal comes in; a running app with a preview URL and a build number comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    instance.demo,
    instance.up,
    instance.worker,
    instance.reaper,
    instance.env,
    jobs.submit,
    jobs.watch,
    jobs.jobs,
):
    app.command()(command)
app.command()(jobs.cancel)
app.command()(previews.preview)
app.command()(logs)
app.command()(tenants.cap)
app.command()(tenants.quota)
app.command()(usage)

replay_app = typer.Typer(no_args_is_help=True, help="Prove and remake the read model.")
for command in (replay.rebuild, replay.verify, replay.backfill, replay.show):
    replay_app.command()(command)
replay_app.command()(erase)
parked_app = typer.Typer(no_args_is_help=True, help="Jobs that could not be folded any further.")
parked_app.command("list")(replay_parked.list_)
for command in (replay_parked.show, replay_parked.retry, replay_parked.discard):
    parked_app.command()(command)
replay_app.add_typer(parked_app, name="parked")
app.add_typer(replay_app, name="replay")

builds_app = typer.Typer(invoke_without_command=True)
builds_app.callback()(builds.list_)
builds_app.command()(builds.show)
builds_app.command()(builds.files)
builds_app.command()(builds.diff)
builds_app.command()(builds.download)
builds_app.command()(builds.restore)
app.add_typer(builds_app, name="builds")

artifacts_app = typer.Typer(no_args_is_help=True, help="Where the files of builds are kept.")
artifacts_app.command()(artifacts.gc)
app.add_typer(artifacts_app, name="artifacts")

log_app = typer.Typer(no_args_is_help=True, help="Look at the log, move it, mend it.")
for command in (log_info.info, log.tail, log.export):
    log_app.command()(command)
log_app.command("import")(log.import_)
log_app.command()(log_repair.repair)
app.add_typer(log_app, name="log")

sandboxes_app = typer.Typer(invoke_without_command=True)
sandboxes_app.callback()(sandboxes.list_)
sandboxes_app.command()(sandboxes.end)
app.add_typer(sandboxes_app, name="sandboxes")

secrets_app = typer.Typer(
    no_args_is_help=True, help="What the apps of a project find in their environment."
)
secrets_app.command("set")(secrets.set_)
secrets_app.command("list")(secrets.list_)
secrets_app.command()(secrets.unset)
secrets_app.command()(secrets.rotate)
app.add_typer(secrets_app, name="secrets")

app.command()(doctor)
app.command()(instance.migrate)
app.command()(workshop.bench)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    workshop.test
)
