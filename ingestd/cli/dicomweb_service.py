"""The operations of ``ingestd dicomweb`` for what the Azure service has beyond DICOMweb, and the probe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .common import ExitCode, expect_yes, json_option
from .dicomweb_common import operation, pairs, print_dataset, print_lines, print_results, tell_found
from .output import plain, print_json
from .run import DurationType

if TYPE_CHECKING:
    from ingestd.dicomweb import DicomWebClient, Operation, QueryTagEntry

NONE = "there are none"


@click.group()
def tags() -> None:
    """Further attributes to search by (Azure)."""


@tags.command("list")
@json_option
@operation
def tags_list(client: DicomWebClient, *, as_json: bool) -> None:
    """List all tags."""
    _tell_tags(client.tags.all(), as_json=as_json)


@tags.command("add")
@click.argument("path", metavar="TAG")
@click.option("--level", type=click.Choice(["study", "series", "instance"]), required=True)
@click.option("--vr", help="Needed for private attributes.")
@click.option("--private-creator", help="Only for private attributes.")
@click.option("--wait", is_flag=True, help="Until what is stored is indexed.")
@json_option
@operation
def tags_add(
    client: DicomWebClient,
    *,
    path: str,
    level: str,
    vr: str | None,
    private_creator: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Add a tag, by keyword or eight hex digits; prints the operation that indexes what is stored."""
    from ingestd.dicomweb import QueryTag

    tag = QueryTag(path=path, level=level, vr=vr, private_creator=private_creator)
    return _started(client, client.tags.add([tag]), wait=wait, as_json=as_json)


@tags.command("get")
@click.argument("path", metavar="TAG")
@json_option
@operation
def tags_get(client: DicomWebClient, *, path: str, as_json: bool) -> None:
    """Show one tag."""
    _tell_tags([client.tags.get(path)], as_json=as_json)


@tags.command("update")
@click.argument("path", metavar="TAG")
@click.option("--enable/--disable", "enabled", required=True, help="Whether searches may use it.")
@json_option
@operation
def tags_update(client: DicomWebClient, *, path: str, enabled: bool, as_json: bool) -> None:
    """Let searches use a tag, or not."""
    _tell_tags([client.tags.set_query_status(path, enabled=enabled)], as_json=as_json)


@tags.command("delete")
@click.argument("path", metavar="TAG")
@click.option("--yes", is_flag=True, help="Do not ask.")
@operation
def tags_delete(client: DicomWebClient, *, path: str, yes: bool) -> None:
    """Delete a tag and its index. Asks first, unless --yes."""
    if not yes:
        expect_yes(f"Delete the tag {path} and its index on {client.base_url}?")
    client.tags.delete(path)
    click.echo("deleted", err=True)


@tags.command("errors")
@click.argument("path", metavar="TAG")
@json_option
@operation
def tags_errors(client: DicomWebClient, *, path: str, as_json: bool) -> None:
    """List the instances that cannot be found by a tag, and why."""
    found = [
        {"sop_uid": error.sop_uid, "study_uid": error.study_uid, "message": error.message}
        for error in client.tags.all_errors(path)
    ]
    tell_found(found, _print_errors, as_json=as_json, nothing=NONE)


def _print_errors(found: list[dict[str, str]]) -> None:
    from .tables import show, table

    show(table(["instance", "why"], [(error["sop_uid"], error["message"]) for error in found]))


def _tell_tags(found: Iterable[QueryTagEntry], *, as_json: bool) -> None:
    tell_found([asdict(tag) for tag in found], _print_tags, as_json=as_json, nothing=NONE)


def _print_tags(found: list[dict[str, Any]]) -> None:
    from .tables import show, table

    rows = [
        (
            *(tag[name] for name in ("path", "vr", "level", "status")),
            "on" if tag["is_query_enabled"] else "off",
            tag["error_count"],
        )
        for tag in found
    ]
    show(table(["tag", "VR", "level", "status", "search", "errors>"], rows))


def _started(client: DicomWebClient, identifier: str, *, wait: bool, as_json: bool) -> int:
    if wait:
        return _show(_wait(client, identifier, None), as_json=as_json)
    if as_json:
        print_json({"operation": identifier})
    else:
        click.echo(identifier)
    return ExitCode.DONE


def _wait(client: DicomWebClient, identifier: str, timeout: timedelta | None) -> Operation:
    def tell(operation: Operation) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{operation.status} {operation.percent} %  ", err=True, nl=not operation.is_running)

    return client.operations.wait(identifier, give_up_after=timeout, on_progress=tell)


def _show(found: Operation, *, as_json: bool) -> int:
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(f"{found.type} {found.status} {found.percent} %")
        for name, value in found.results.items():
            click.echo(plain(f"{name}: {value}"))
    return ExitCode.DONE if found.is_running or found.has_succeeded else ExitCode.NEEDS_PERSON


@click.command("operation")
@click.argument("identifier", metavar="ID")
@click.option("--wait", is_flag=True, help="Until it has ended.")
@click.option("--timeout", type=DurationType(), help="With --wait: give up after this long.")
@json_option
@operation
def show_operation(
    client: DicomWebClient, *, identifier: str, wait: bool, timeout: timedelta | None, as_json: bool
) -> int:
    """Show a long-running operation; code 1 if it failed."""
    found = _wait(client, identifier, timeout) if wait else client.operations.get(identifier)
    return _show(found, as_json=as_json)


@click.command("bulk-update")
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@click.option("--set", "values", multiple=True, required=True, metavar="KEYWORD=VALUE", help="Repeatable.")
@click.option("--wait", is_flag=True, help="Until it is done.")
@json_option
@operation
def bulk_update(
    client: DicomWebClient, *, studies: tuple[str, ...], values: tuple[str, ...], wait: bool, as_json: bool
) -> int:
    """Change attributes of whole studies (Azure v2).

    Patient and study attributes only; the originals stay retrievable with --original.
    """
    return _started(client, client.bulk_update(studies, _changes(pairs(values))), wait=wait, as_json=as_json)


def _changes(wanted: Mapping[str, str]) -> dict[str, Any]:
    from ingestd.dicomweb import json_of

    try:
        return json_of(wanted)
    except ValueError as error:
        raise click.UsageError(f"--set: {error}") from None


@click.command()
@click.argument("values", nargs=-1, required=True, metavar="STUDY[/SERIES[/INSTANCE]]...")
@click.option("--container", required=True, metavar="URI", help="The blob container.")
@click.option("--managed-identity", is_flag=True, help="Let the service use its managed identity.")
@click.option("--wait", is_flag=True, help="Until it is done.")
@json_option
@operation
def export(
    client: DicomWebClient,
    *,
    values: tuple[str, ...],
    container: str,
    managed_identity: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Export instances to a blob container (Azure)."""
    destination: dict[str, str | bool] = {"blobContainerUri": container, "useManagedIdentity": managed_identity}
    return _started(client, client.export(values, destination), wait=wait, as_json=as_json)


@click.command()
@json_option
@operation
def partitions(client: DicomWebClient, *, as_json: bool) -> None:
    """List the server's data partitions (Azure)."""
    found = [asdict(partition) for partition in client.partitions()]
    tell_found(found, lambda each: print_lines(one["name"] for one in each), as_json=as_json, nothing=NONE)


@click.group()
def workitems() -> None:
    """The server's worklist (UPS-RS). Workitems are DICOM JSON."""


@workitems.command("add")
@click.argument("file", type=click.File("rb"))
@click.option("--uid", help="Its UID, if the file does not have it.")
@operation
def workitems_add(client: DicomWebClient, *, file: Any, uid: str | None) -> None:
    """Create a workitem from a file (- is stdin); prints its UID."""
    click.echo(client.workitems.add(_workitem(file), uid))


@workitems.command("get")
@click.argument("uid")
@json_option
@operation
def workitems_get(client: DicomWebClient, *, uid: str, as_json: bool) -> None:
    """Show a workitem."""
    found = client.workitems.get(uid)
    if as_json:
        print_json(found)
        return
    print_dataset(found)


@workitems.command("update")
@click.argument("uid")
@click.argument("file", type=click.File("rb"))
@click.option("--transaction", metavar="UID", help="Of whoever has it in progress.")
@operation
def workitems_update(client: DicomWebClient, *, uid: str, file: Any, transaction: str | None) -> None:
    """Change attributes, given in a file (- is stdin)."""
    warning = client.workitems.update(uid, _workitem(file), transaction_uid=transaction)
    click.echo(plain(warning) or "changed", err=True)


@workitems.command("state")
@click.argument("uid")
@click.argument("state", type=click.Choice(["IN PROGRESS", "COMPLETED", "CANCELED"]))
@click.option("--transaction", metavar="UID", required=True, help="Of whoever has it in progress.")
@operation
def workitems_state(client: DicomWebClient, *, uid: str, state: str, transaction: str) -> None:
    """Move a workitem on."""
    client.workitems.change_state(uid, state, transaction_uid=transaction)
    click.echo(state.lower(), err=True)


@workitems.command("cancel")
@click.argument("uid")
@operation
def workitems_cancel(client: DicomWebClient, *, uid: str) -> None:
    """Ask for the cancellation of a workitem that nobody has begun."""
    warning = client.workitems.request_cancel(uid)
    click.echo(plain(warning) or "asked for", err=True)


@workitems.command("search")
@click.argument("filters", nargs=-1, metavar="[KEYWORD=VALUE]...")
@json_option
@operation
def workitems_search(client: DicomWebClient, *, filters: tuple[str, ...], as_json: bool) -> int:
    """Search workitems; code 1 if nothing matches."""
    columns = {"00080018": "workitem", "00741000": "state", "00741204": "label", "00100020": "patient id"}
    found = list(client.workitems.search(pairs(filters)))
    return tell_found(found, partial(print_results, columns=columns), as_json=as_json)


def _workitem(file: Any) -> dict[str, Any]:
    try:
        parsed = json.load(file)
    except ValueError:
        raise click.UsageError("the file is not JSON") from None
    item = parsed[0] if isinstance(parsed, list) and len(parsed) == 1 else parsed
    if not isinstance(item, dict):
        raise click.UsageError("the file is not one DICOM JSON data set")
    return item


@click.command()
@click.option("--writes", is_flag=True, help="Also try a store and a deletion that no server can carry out.")
@json_option
@operation
def probe(client: DicomWebClient, *, writes: bool, as_json: bool) -> None:
    """Say what the server is and what it can do."""
    found = client.probe(try_writes=writes)
    if as_json:
        print_json(found.as_dict())
        return
    from .tables import show, table

    words = {True: "yes", False: "no", None: "not known"}
    rows = [
        (name.replace("_", " "), words.get(value, value) if isinstance(value, bool) or value is None else value)
        for name, value in found.as_dict().items()
        if name not in {"accepts", "notes"}
    ]
    rows.append(("accepts", ", ".join(found.accepts)))
    show(table(["", client.base_url], rows))
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
