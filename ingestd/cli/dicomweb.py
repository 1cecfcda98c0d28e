"""``ingestd dicomweb``: every operation of a DICOMweb server by hand, for administrators who would else reach for curl.

Results go to stdout, words and progress to stderr. What a server says about one's own request is shown: here a person
asked for it, and nothing of it goes to a log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import dicomweb_asking as asking
from . import dicomweb_files as files
from . import dicomweb_service as service
from .common import config_option, destination_option
from .dicomweb_common import OperationGroup, ServerOptions

CODES = """\b
Exit codes:
  0   done
  1   not there, nothing matches, or not every instance was stored
  2   the command line is wrong, or the server refuses the request
  3   no answer, or one that cannot be read; try later
  77  no token, or the token or role does not suffice
"""


@click.group(
    "dicomweb",
    cls=OperationGroup,
    short_help="Speak to a DICOMweb server by hand, one operation at a time.",
    epilog=CODES,
)
@config_option
@destination_option
@click.option("--url", metavar="URL", help="The server, with its version: https://host/v2. Else the configuration's.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A bearer token, in a file.")
@click.option("--token-env", metavar="NAME", help="A bearer token, in an environment variable.")
@click.option(
    "--azure",
    metavar="KIND",
    type=click.Choice(["default", "managed_identity", "workload", "cli"]),
    help="A token from azure-identity: default, managed_identity, workload, cli (after `az login`).",
)
@click.option("--user", metavar="NAME", help="Basic authentication, with --password-file.")
@click.option("--password-file", type=click.Path(path_type=Path), help="The password, in a file.")
@click.option("--connection-info", is_flag=True, help="The older SDK's AUTH_CONNECTION_INFO, from the environment.")
@click.option("--ca", type=click.Path(path_type=Path), help="A private certificate authority (PEM).")
@click.option("--cert", type=click.Path(path_type=Path), help="Our certificate (PEM), where the server asks for one.")
@click.option("--key", type=click.Path(path_type=Path), help="Its key, if that is another file.")
@click.option("--partition", metavar="NAME", help="A data partition of the server.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Speak to a DICOMweb server by hand, one operation at a time.

    The server is that of the configuration, or --url. UIDs are given as STUDY [SERIES [INSTANCE]]. Tables by default,
    JSON with --json; results go to stdout, words to stderr, so that everything can be piped.

    \b
    ingestd dicomweb store FOLDER
    ingestd dicomweb search studies PatientID=4711
    ingestd dicomweb retrieve STUDY -o copies
    ingestd dicomweb --url https://host/v2 --azure cli changes --follow
    """  # noqa: D301 - \b is the sign that click wants, not a backslash
    ctx.obj = ServerOptions(**options)


for _operation in (
    *(files.store, files.retrieve, files.metadata, files.frames, files.rendered, files.delete),
    *(asking.search, asking.patient_studies, asking.changes, asking.latest),
    *(service.tags, service.show_operation, service.bulk_update, service.export, service.partitions),
    *(service.workitems, service.probe),
):
    command.add_command(_operation)
