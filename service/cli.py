"""The command line: which commands there are, and what each says of itself."""

from service.commands.menu import menu

app = menu(
    {
        "instance:demo": "Build GOAL here and now, from nothing or from --base, and serve its "
        "preview until Ctrl-C.",
        "instance:up": "Run API, worker and projector on this machine until Ctrl-C.",
        "roles:api": "Run one more API, on HEADRACE_HOST and HEADRACE_PORT. `up` runs one itself.",
        "roles:projector": "Run one more projector: it folds, archives and trims the log. `up` "
        "runs one itself.",
        "roles:worker": "Run one more worker for the instance that runs, or for the servers "
        "that the settings name.",
        "roles:reaper": "Run one more reaper: it ends the sandboxes that nobody needs. `up` "
        "runs one itself.",
        "env:env": "Print how to reach the running instance, as lines for a shell to `eval`.",
        "jobs:submit": "Queue a build of GOAL with the running instance; with --base, a change of "
        "that build.",
        "jobs:watch": "Watch a job to its end; exit code 0 only when it became READY.",
        "jobs:jobs": "List jobs, newest first.",
        "jobs:cancel": "Stop a job and everything it runs.",
        "previews:preview": "Let the preview of a build answer: kept alive, woken, or made anew "
        "from its files.",
        "logs:logs": "Show the log of a job: the whole of it once it has ended, and until then "
        "what was shown.",
        "tenants:cap": "Show or set how many jobs of a tenant run at a time; the others wait, "
        "`high` ones first.",
        "tenants:quota": "Show or set what a tenant may use a day; `default` gives it what its "
        "tier has again.",
        "usage:usage": "Show what was used today, what may be, and when the day begins anew.",
        "doctor:doctor": "Say what is wrong, why it matters, and what mends it.",
        "instance:migrate": "Bring the database to the newest revision.",
        "workshop:bench": "Measure something beside a limit of the same machine, in the same run.",
        "workshop:test": "Lint, check types and imports, run the tests; with arguments, pytest "
        "alone with them.",
        "replay": menu(
            {
                "replay:rebuild": "Fold the whole log into fresh tables and put them in place; "
                "readers go on meanwhile.",
                "replay:verify": "Compare the read model with what its events fold to.",
                "replay:backfill": "Fold the archive into the tables of new or changed "
                "projections.",
                "replay_show:show": "Print a job's history: each event, and what it changed.",
                "erase:erase": "Erase goals, files, progress, secrets and whatever names a person; "
                "numbers and order stay.",
                "parked": menu(
                    {
                        "replay_parked:list_": "List the jobs that stand aside, the first parked "
                        "first.",
                        "replay_parked:show": "Show why a job stands aside, and the events around "
                        "the one that was in the way.",
                        "replay_parked:retry": "Fold a job's events again from where it was "
                        "parked; exit code 1 when that fails again.",
                        "replay_parked:discard": "Leave a parked job as it is: its later events "
                        "are never folded. `retry` brings it back.",
                    },
                    help="Jobs that could not be folded any further.",
                ),
            },
            help="Prove and remake the read model.",
        ),
        "builds:builds": "The builds of a project, newest first; and what is in them.",
        "artifacts": menu(
            {
                "artifacts:gc": "Delete the files that no build needs; safe beside running builds.",
            },
            help="Where the files of builds are kept.",
        ),
        "log": menu(
            {
                "log_info:info": "Show what stands in each partition: events, archive, work.",
                "log:tail": "Show the newest events, and with -f those that come.",
                "log:export": "Write all events there are, one CloudEvent a line.",
                "log:import_": "Fill a log without events from an export; nothing else may run "
                "on it.",
                "log_repair:repair": "Make a log that Redis lost, or has another history of, anew "
                "behind its archive.",
            },
            help="Look at the log, move it, mend it.",
        ),
        "secrets": menu(
            {
                "secrets:set_": "Set a secret: what is typed unseen, or comes on standard input.",
                "secrets:list_": "The names of a project's secrets, and when they were set. Nobody "
                "reads a value back.",
                "secrets:unset": "Remove a secret. An app that runs keeps what it was started "
                "with.",
                "secrets:rotate": "Encrypt all secrets of all tenants with the first key of "
                "HEADRACE_SECRETS_KEY.",
            },
            help="What the apps of a project find in their environment.",
        ),
        "sandboxes:sandboxes": "The sandboxes that live for this Headrace, who needs them, and "
        "until when.",
    },
    name="headrace",
    help="A goal comes in; a running app with a preview URL and a build number comes out.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
