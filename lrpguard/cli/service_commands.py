"""The commands around the service: serve, selftest, audit, recalibrate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lrpguard.cli.commands import app, example
from lrpguard.cli.console import Console, command
from lrpguard.cli.options import DataOption, JsonOption, KeyFileOption, QuietOption
from lrpguard.secret import secret_key

audit_app = typer.Typer(
    name="audit",
    help="Check and replay the audit trail of a service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
recalibrate_app = typer.Typer(
    name="recalibrate",
    help="Propose a new calibration from audited traffic, and approve it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(audit_app)
app.add_typer(recalibrate_app)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", exists=True, dir_okay=False, help="Settings, TOML."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.NAME=VALUE",
        help="One setting, in place of the file's and of LRPGUARD_SECTION__NAME. Repeatable.",
    ),
]
TrailArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The audit trail: audit.folder of the settings.")
]


@app.command(
    short_help="Serve a guarded model over HTTP.",
    epilog=example("lrpguard serve --demo", "lrpguard serve --config guard.toml --port 8080"),
)
@command
def serve(
    config: ConfigOption = None,
    settings: SetOption = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="server.host")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="PORT", help="server.port")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="server.workers")
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Serve the packaged digits model, calibrated on the spot."),
    ] = False,
    defaults: Annotated[
        bool,
        typer.Option("--defaults", help="Print all settings with their defaults, and end."),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Serve a guarded model over HTTP, until SIGTERM or Ctrl-C.

    Open Inference Protocol v2 under /v2, POST /predict for an image file, a page for people at
    GET /, Prometheus metrics at GET /metrics. Logs go to stderr. Needs the extra 'serve'.
    """
    from lrpguard.cli import serve as work

    flags = {"server.host": host, "server.port": port, "server.workers": workers}
    named = [f"{name}={value}" for name, value in flags.items() if value is not None]
    console = Console(json)
    if defaults:
        return work.print_defaults(console)
    assignments = [*(settings or []), *named]
    return work.run(config, assignments, demo=demo, environment=os.environ, console=console)


@app.command(
    short_help="Store a self-test for the service.",
    epilog=example("lrpguard selftest --config guard.toml --data clean/0001.png"),
)
@command
def selftest(
    data: DataOption,
    config: ConfigOption = None,
    settings: SetOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="SCORE",
            min=0,
            help="Largest difference of the score.  [default: 1 % of the calibration's "
            "interquartile range]",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Judge one image, and store its score: a service is ready only where it is reproduced.

    Takes the first image of --data that can be read. Make it where the calibration was made.
    """
    from lrpguard.cli import serve as work

    return work.make_selftest(
        config,
        settings or [],
        data=data,
        tolerance=tolerance,
        environment=os.environ,
        console=Console(json),
    )


@audit_app.command(
    "verify",
    short_help="Find a removed or altered line.",
    epilog=example("lrpguard audit verify audit/ --key-file secret.key"),
)
@command
def audit_verify(
    folder: TrailArgument,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="HASH",
            help="Hash of a line that was written, as the service logs it when it ends: finds a "
            "trail that was cut off or rewritten.",
        ),
    ] = None,
    key_file: KeyFileOption = None,
    json: JsonOption = False,
) -> int:
    """Check the hash chain of an audit trail, from its first line to its last.

    Exit code: 0, 1 where a line was altered, removed, added or moved, or there is no trail.
    """
    from lrpguard.cli import trail as work

    key = secret_key(key_file, os.environ)
    return work.verify_trail(folder, key=key, head=head, console=Console(json))


@audit_app.command(
    "replay",
    short_help="Reproduce the scores of a trail.",
    epilog=example("lrpguard audit replay audit/ --config guard.toml --data images/"),
)
@command
def audit_replay(
    folder: TrailArgument,
    data: DataOption,
    config: ConfigOption = None,
    settings: SetOption = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="SCORE", min=0, help="Largest difference of a score."),
    ] = 0.0,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Judge the images of a trail again, and compare scores, p-values, flags and labels.

    The trail holds hashes, no images: --data holds the images, which are found by their hash.
    Lines of another model, calibration or key are counted and left out.
    Exit code: 0, 1 where an outcome differs or no image was found.
    """
    from lrpguard.cli import trail as work

    return work.replay_trail(
        folder,
        config,
        settings or [],
        data=data,
        tolerance=tolerance,
        environment=os.environ,
        console=Console(json, quiet),
    )


@recalibrate_app.command(
    "propose",
    short_help="Propose a calibration from audited traffic.",
    epilog=example(
        "lrpguard recalibrate propose audit/ --calibration guard.safetensors --out new.proposal"
    ),
)
@command
def recalibrate_propose(
    folder: TrailArgument,
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration", metavar="FILE", exists=True, dir_okay=False, help="That in use."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="Proposal to write.")
    ],
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=1, help="Newest distinct images to take.")
    ] = 5000,
    key_file: KeyFileOption = None,
    json: JsonOption = False,
) -> int:
    """Compare the newest audited traffic with the calibration, and write a proposal.

    Nothing changes yet: a person looks at it, names what is not clean, and approves it with
    'lrpguard recalibrate approve'.
    """
    from lrpguard.cli import recalibrate as work

    return work.propose_from_trail(
        folder,
        calibration,
        out,
        last=last,
        key=secret_key(key_file, os.environ),
        console=Console(json),
    )


@recalibrate_app.command(
    "approve",
    short_help="Turn a proposal into a calibration.",
    epilog=example(
        "lrpguard recalibrate approve new.proposal --calibration guard.safetensors \\",
        '    --by "Ada Lovelace" --exclude 3f2a…/0 --out new.safetensors',
    ),
)
@command
def recalibrate_approve(
    proposal: Annotated[
        Path, typer.Argument(metavar="PROPOSAL", exists=True, dir_okay=False, help="Of 'propose'.")
    ],
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="That from which it was proposed.",
        ),
    ],
    by: Annotated[
        str, typer.Option("--by", metavar="NAME", help="Who has looked at it, and approves.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="Calibration to write.")
    ],
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="REQUEST/ROW",
            help="An image that is not clean, as the proposal names it. Repeatable.",
        ),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="DIGEST",
            help="First 8 digits of the proposal's digest, in place of typing them.",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Write a calibration from a proposal, in a person's name.

    Asks to type the proposal's digest. Who approved, what and when stands in a file beside the
    calibration. The service takes it when it is started anew, with a self-test of its own.
    """
    from lrpguard.cli import recalibrate as work

    return work.approve_proposal(
        proposal,
        calibration,
        out,
        by=by,
        exclude=exclude or [],
        confirm=confirm,
        console=Console(json),
    )
