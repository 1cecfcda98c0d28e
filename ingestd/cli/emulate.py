"""``ingestd emulate``: the embedded Azure DICOM service, in front, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import ExitCode

if TYPE_CHECKING:
    from ingestd.emulator import Emulator

_EPILOG = """\b
Examples:
  ingestd emulate --data ./server              keep everything in ./server
  ingestd emulate --fault drop_after_store=3   cut the connection after the next three stores
  ingestd emulate --fault throttle=10%         answer every tenth request with 429
  ingestd emulate --fault latency=seconds:2,method:POST,seed:7,probability:0.5
  ingestd emulate --list-faults                explain every fault

\b
With --data every request and every instance is a line of requests.jsonl there:
what came, its SHA-256, and what became of it, written before the answer leaves.
"""


_YOUNG_OBJECTS = 700  # as CPython has it


@click.command("emulate", short_help="Run the embedded server, a stand-in for the Azure DICOM service.", epilog=_EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep everything in this folder. Without it: a temporary one that goes away.",
)
@click.option("--reset", is_flag=True, help="First remove what an earlier emulator left in --data.")
@click.option(
    "--flavour",
    type=click.Choice(["managed", "oss"]),
    default="managed",
    show_default=True,
    help="The managed service (PUT, expiry, zeroed preamble, 4 GB) or the open-source server (none of these, 2 GB).",
)
@click.option("--fsync/--no-fsync", default=True, show_default=True, help="Survive a power cut, not only kill -9.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME[=SPEC]",
    help="Misbehave: NAME, NAME=3 (three times), NAME=10%, or NAME=key:value,key:value. May be repeated.",
)
@click.option("--list-faults", is_flag=True, help="Explain the faults and end.")
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    help="Switch faults on this port while it runs, with the header X-Ingestd-Control. 0: any free port.",
)
@click.option("--auth", is_flag=True, help="Ask for tokens; clients owner/owner and reader/reader can fetch them.")
@click.option("--token-lifetime", default=3600, show_default=True, help="Seconds a token is good for.")
@click.option("--partitions", is_flag=True, help="Switch data partitions on: every DICOMweb path then needs one.")
@click.option("--cors", is_flag=True, help="Let pages from anywhere use it.")
@click.option(
    "--viewer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Serve this unpacked OHIF build (package/dist of `npm pack @ohif/app`) at /.",
)
def command(
    *,
    host: str,
    port: int,
    data: Path | None,
    reset: bool,
    faults: tuple[str, ...],
    list_faults: bool,
    viewer: Path | None,
    **settings: Any,
) -> int:
    """Run an Azure DICOM service on this machine: no account, no database, nothing to set up.

    It speaks versions 1 and 2 of the service: store, retrieve, search, delete, change feed, extended query tags, bulk
    update and workitems. It is for trying things out and for tests, never for patients' data. Open its address in a
    browser to see what is stored.
    """
    from ingestd.emulator import Emulator, EmulatorFailed, FaultName, UnknownFault
    from ingestd.emulator import reset as remove_all

    if list_faults:
        for name in FaultName:
            click.echo(f"{name:20} {name.description}")
        return ExitCode.DONE
    expect_viewer(viewer)
    if reset:
        if data is None:
            raise click.UsageError("--reset needs --data: a temporary folder is always new")
        remove_all(data)
    try:
        # Bodies may be large: what of them is garbage must not wait for as many objects as a short command may make.
        gc.set_threshold(_YOUNG_OBJECTS)
        Emulator(data, host=host, port=port, faults=faults, viewer=viewer, **settings).serve(_announce)
    except UnknownFault as error:
        raise click.UsageError(str(error)) from error
    except EmulatorFailed as error:
        raise click.ClickException(str(error)) from error
    return ExitCode.DONE


def expect_viewer(folder: Path | None) -> None:
    """Stop where what is to be served as the viewer is none."""
    if folder is not None and not (folder / "index.html").is_file():
        raise click.UsageError(f"--viewer: there is no index.html in {folder}; it is package/dist in the OHIF package")


def _announce(server: Emulator) -> None:
    from ingestd.emulator import CONTROL_HEADER

    click.echo(f"listening on {server.url}  (data in {server.data}; Ctrl-C ends it)")
    if server.control_url is not None:
        click.echo(f"control port {server.control_url}  (changes need the header {CONTROL_HEADER}: 1)")
    click.echo(f"in a browser: {server.root}/")
