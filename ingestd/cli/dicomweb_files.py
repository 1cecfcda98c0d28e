"""The operations of ``ingestd dicomweb`` that move instances: store, retrieve, pictures, deletion."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import ExitCode, expect_yes, json_option
from .dicomweb_common import Progress, operation, pairs, print_dataset, uids
from .output import end_if_unread, in_bytes, in_files, plain, print_json
from .run import DurationType

if TYPE_CHECKING:
    from ingestd.dicomweb import DicomWebClient, Retrieval, StoreResult

ALREADY_THERE = 0xB00E


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--study", metavar="UID", help="Refuse instances of any other study.")
@click.option("--single", is_flag=True, help="Each file in a request of its own, as application/dicom.")
@click.option("--upsert", is_flag=True, help="PUT: replace what is there (Azure's managed service).")
@click.option("--expire-after", type=DurationType(), help="Let the server delete the study later (Azure).")
@click.option("--meta", multiple=True, metavar="VR-TAG=VALUE", help="External metadata (Azure). Repeatable.")
@json_option
@operation
def store(
    client: DicomWebClient,
    *,
    paths: tuple[Path, ...],
    study: str | None,
    single: bool,
    upsert: bool,
    expire_after: timedelta | None,
    meta: tuple[str, ...],
    as_json: bool,
) -> int:
    """Store files and folders.

    Says what became of each instance. Nothing is remembered and nothing is tried again: `ingestd send` does that.
    What the daemon would reject, such as a file that was cut off, is told in the same words and left. An instance that
    is there already is no failure; whether it is the same is not looked at.
    """
    from ingestd.dicomweb import batches

    skipped: list[tuple[str, str]] = []
    rows: list[tuple[str, str, str]] = []
    is_told = False
    try:
        with Progress("storing", lambda: sum(map(_bytes_below, paths))) as progress:
            found = batches(
                paths, max_instances=1 if single else 200, on_skip=lambda path, why: skipped.append((str(path), why))
            )
            for batch in found:
                result = client.store(
                    batch,
                    study_uid=study,
                    single=single,
                    upsert=upsert,
                    expire_after=expire_after,
                    meta=pairs(meta),
                    on_bytes=progress.advance,
                )
                rows.extend(_verdicts(result))
        is_told = True
    finally:
        # Where a request fails, what was answered before it is told all the same.
        if is_told or rows or skipped:
            _tell_stored(rows, skipped, as_json=as_json)
    is_good = bool(rows) and all(outcome in {"stored", "already there"} for _, outcome, _ in rows) and not skipped
    return ExitCode.DONE if is_good else ExitCode.NEEDS_PERSON


def _tell_stored(rows: list[tuple[str, str, str]], skipped: list[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "instances": [{"sop_uid": uid, "outcome": outcome, "note": note} for uid, outcome, note in rows],
                "skipped": [{"path": path, "why": why} for path, why in skipped],
            }
        )
        return
    from .tables import show, table

    if rows:
        show(table(["SOP instance", "outcome", "note"], rows))
    for path, why in skipped:
        click.echo(f"skipped: {plain(path)}: {why}", err=True)


def _bytes_below(path: Path) -> int:
    """What the bar counts to; what cannot be looked at is told when it is its turn."""
    size = 0
    for place in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with suppress(OSError):
            found = place.stat() if place == path else place.lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def _verdicts(result: StoreResult) -> Iterator[tuple[str, str, str]]:
    for uid, stored in result.stored.items():
        note = "; ".join([stored.meaning if stored.warning_reason is not None else "", *stored.failed_attributes])
        yield uid, "stored", note.strip("; ")
    for uid, failed in result.failed.items():
        outcome = "already there" if failed.reason == ALREADY_THERE else "refused"
        yield uid, outcome, "; ".join([f"{failed.meaning} ({failed.reason})", *failed.failed_attributes])
    for reason in result.anonymous_failures:
        yield "?", "refused", f"reason {reason}, for a file that the server does not name"
    for uid in (*result.unnamed, *result.contradicted):
        yield uid, "unknown", "the server's answer has no verdict on it; look with `search`"


@click.command()
@uids()
@click.option("-o", "--output", default=".", metavar="FOLDER", help="Where to; - writes one instance to stdout.")
@click.option("--transfer-syntax", default="*", help="As stored (*, the default), or a UID to transcode to.")
@click.option("--original", is_flag=True, help="As it was before any bulk update (Azure).")
@json_option
@operation
def retrieve(
    client: DicomWebClient,
    *,
    study: str,
    series: str | None,
    instance: str | None,
    output: str,
    transfer_syntax: str,
    original: bool,
    as_json: bool,
) -> None:
    """Retrieve a study, series or instance.

    Files are named FOLDER/STUDY/SERIES/INSTANCE.dcm. Each file appears whole or not at all. Run it again after a
    break: what is there already is not fetched anew.
    """
    options: Any = {"transfer_syntax": transfer_syntax, "original": original}

    def ask() -> Retrieval:
        if series is None:
            return client.retrieve_study(study, **options)
        if instance is None:
            return client.retrieve_series(study, series, **options)
        return client.retrieve_instance(study, series, instance, **options)

    if output == "-":
        if instance is None:
            raise click.UsageError("only one instance can be written to stdout")
        with ask() as retrieval:
            _to_stdout(retrieval.only_part()[1])
        return
    with Progress("retrieving") as progress:
        if original or transfer_syntax != "*":
            retrieval = ask()
            retrieval.on_bytes = progress.advance
            saved = retrieval.save_to(Path(output))
        else:
            saved = client.download(Path(output), study, series, instance, on_bytes=progress.advance)
    if as_json:
        print_json({name: [str(path) for path in getattr(saved, name)] for name in ("written", "replaced", "kept")})
        return
    for path in (*saved.written, *saved.replaced):
        click.echo(str(path))
    click.echo(
        f"{in_files(len(saved.written) + len(saved.replaced))} ({in_bytes(saved.size_bytes)}) written, "
        f"{len(saved.kept)} were there already",
        err=True,
    )


def _to_stdout(part: Any) -> None:
    with _binary_stdout() as out:
        while chunk := part.next_chunk():
            out.write(chunk)
            end_if_unread()


@contextmanager
def _binary_stdout() -> Iterator[Any]:
    if sys.stdout.isatty():
        raise click.UsageError("this is binary; send it to a file or a pipe")
    out = sys.stdout.buffer
    yield out
    out.flush()


@click.command()
@uids()
@click.option("--etag", help="Say only whether it has changed since this version.")
@click.option("--original", is_flag=True, help="As it was before any bulk update (Azure).")
@click.option("--external", is_flag=True, help="With the external metadata (Azure).")
@json_option
@operation
def metadata(
    client: DicomWebClient,
    *,
    study: str,
    series: str | None,
    instance: str | None,
    etag: str | None,
    original: bool,
    external: bool,
    as_json: bool,
) -> None:
    """Show attributes; DICOM JSON with --json."""
    found = client.retrieve_metadata(study, series, instance, etag=etag, original=original, external=external)
    if found is None:
        click.echo("not changed", err=True)
        return
    if as_json:
        print_json(list(found.items))
        return
    for item in found.items:
        print_dataset(item)
    if found.etag:
        click.echo(f"ETag {plain(found.etag)}", err=True)


@click.command()
@uids(least=3)
@click.argument("numbers", metavar="FRAMES")
@click.option("-o", "--output", default=".", metavar="FOLDER", help="Where to; - writes the frames to stdout.")
@click.option("--transfer-syntax", default="*", help="As stored (*, the default), or a UID to transcode to.")
@json_option
@operation
def frames(
    client: DicomWebClient,
    *,
    study: str,
    series: str,
    instance: str,
    numbers: str,
    output: str,
    transfer_syntax: str,
    as_json: bool,
) -> None:
    """Retrieve frames as raw pixel data.

    FRAMES is 1, or 1,3,4. Each becomes a file INSTANCE.FRAME.bin.
    """
    try:
        wanted = [int(number) for number in numbers.split(",")]
        retrieval = client.retrieve_frames(study, series, instance, wanted, transfer_syntax=transfer_syntax)
    except ValueError:
        raise click.UsageError("frames are numbers from 1, joined by commas") from None
    written: list[str] = []
    with retrieval:
        for number, (_, part) in zip(wanted, retrieval, strict=False):
            if output == "-":
                _to_stdout(part)
                continue
            path = Path(output) / f"{_file_name(instance)}.{number}.bin"
            _write_new(path, part)
            written.append(str(path))
    _tell_written(written, as_json=as_json)


def _tell_written(paths: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"written": paths})
    else:
        for path in paths:
            click.echo(path)


def _file_name(uid: str) -> str:
    return "".join(char if char.isalnum() or char == "." else "_" for char in uid).lstrip(".")


def _write_new(path: Path, part: Any) -> None:
    """Write a part whole or not at all; a file that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can have taken: the folder may be one in which others write.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            while chunk := part.next_chunk():
                file.write(chunk)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@click.command()
@uids(least=3)
@click.option("--frame", type=click.IntRange(min=1), help="Which frame; else the first.")
@click.option("--png", is_flag=True, help="PNG instead of JPEG.")
@click.option("--quality", type=click.IntRange(1, 100), help="Of a JPEG.")
@click.option("-o", "--output", metavar="FILE", help="Where to; INSTANCE.jpg if not given, - is stdout.")
@json_option
@operation
def rendered(
    client: DicomWebClient,
    *,
    study: str,
    series: str,
    instance: str,
    frame: int | None,
    png: bool,
    quality: int | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Retrieve an instance or frame as a picture."""
    media_type = "image/png" if png else "image/jpeg"
    with client.retrieve_rendered(
        study, series, instance, frame=frame, media_type=media_type, quality=quality
    ) as retrieval:
        _, part = retrieval.only_part()
        if output == "-":
            _to_stdout(part)
            return
        path = Path(output) if output else Path(f"{_file_name(instance)}.{'png' if png else 'jpg'}")
        _write_new(path, part)
    _tell_written([str(path)], as_json=as_json)


@click.command()
@uids()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@operation
def delete(
    client: DicomWebClient, *, study: str, series: str | None, instance: str | None, yes: bool, as_json: bool
) -> None:
    """Delete a study, series or instance.

    Asks first, unless --yes.
    """
    what = "this study with all it holds" if series is None else "this series" if instance is None else "this instance"
    if not yes:
        expect_yes(f"Delete {what} on {client.base_url}?")
    client.delete(study, series, instance)
    if as_json:
        print_json({"deleted": True})
    else:
        click.echo("deleted", err=True)
