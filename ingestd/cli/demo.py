"""``ingestd demo``: the main job end to end on this machine - embedded server, real daemon, real files, and the sum.

Everything happens in a temporary folder: the embedded server and the daemon run as processes of their own, as they
would anywhere else, and the ledger is read as ``ingestd status`` reads it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestd.clocks import boottime
from ingestd.lifecycle import ENDED

from .advice import words_of
from .asker import as_typed
from .common import ExitCode, Stop, json_option, ledger_for_reading, load_config, pages
from .emulate import expect_viewer
from .output import plain, print_json

if TYPE_CHECKING:
    from ingestd.ledger import Entry

# Short times: nobody else writes into the demo's folder, so there is little to wait for.
_CONFIG = """\
inboxes:
  - path: ./drop
    settle: 200ms
    incomplete_after: 2s
spool: {{path: ./spool, low_water: 50MB}}
batch: {{quiet_period: 500ms, max_wait: 5s}}
destination: {{url: "{url}", auth: none}}
reconcile: {{interval: 500ms, lag: 1s, absence_wait: 1s}}
retry: {{base: 500ms, cap: 5s}}
ledger: sqlite:///ledger.db
"""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of one dropped file."""

    file: str
    state: str
    reason: str
    note: str
    delivery_id: int | None
    remark: str = ""  # the server's own words, where it refused the file


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave server and daemon running, and print where they are.")
@click.option(
    "--viewer",
    envvar="INGESTD_OHIF",
    show_envvar=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="See the images too: an unpacked OHIF build (package/dist of `npm pack @ohif/app`). For --keep.",
)
@click.option("--timeout", default=180, show_default=True, help="Give up after so many seconds.")
@json_option
def command(folder: Path | None, *, keep: bool, viewer: Path | None, timeout: int, as_json: bool) -> int:
    """See it work: real files, an embedded server, and what became of each file.

    Copies the real DICOM files that come with pydicom (or those of FOLDER, which is left as it is) into a drop
    folder, runs the daemon on it against an embedded server, and prints what became of every file and why. Among
    pydicom's files are broken ones, which must end REJECTED; one pair is dropped to show DUPLICATE and one CONFLICT.

    Exit code 0 only if every file is accounted for.
    """
    expect_viewer(viewer)
    place = Path(tempfile.mkdtemp(prefix="ingestd-demo-"))
    with contextlib.ExitStack() as cleanup:
        if not keep:
            cleanup.callback(shutil.rmtree, place, ignore_errors=True)
        return _run(place, folder, keep=keep, viewer=viewer, timeout=timeout, as_json=as_json)


def _run(place: Path, folder: Path | None, *, keep: bool, viewer: Path | None, timeout: int, as_json: bool) -> int:
    from .demo_files import drop_bundled, drop_folder

    deadline = boottime() + timeout
    drop = place / "drop"
    drop.mkdir()
    port = _free_port()
    url = f"http://127.0.0.1:{port}/v2"
    config = place / "config.yaml"
    config.write_text(_CONFIG.format(url=url), encoding="utf-8")
    say = (lambda _line: None) if as_json else click.echo
    say(f"ingestd demo in {place}")
    words = () if viewer is None else ("--viewer", str(viewer.resolve()))
    server = _spawn(place, "server.log", "emulate", "--port", str(port), "--data", str(place / "server"), *words)
    processes = [server]
    try:
        _wait_for_port(port, server, place / "server.log", deadline)
        say(f"  embedded server   {url}")
        daemon = _spawn(place, "daemon.log", "-c", str(config), "run")
        processes.append(daemon)
        say(f"  daemon            watches {drop}")
        dropped = drop_folder(folder, drop) if folder is not None else drop_bundled(drop)
        say(f"  dropped           {len(dropped)} files\n")
        fates = _watch(config, drop, dropped, daemon=daemon, deadline=deadline, quiet=as_json)
        page = f"http://127.0.0.1:{port}/"
        addresses: dict[str, str | int] = {}
        if keep:
            addresses = {"folder": str(place), "url": url, "drop": str(drop), "config": str(config)}
            addresses |= {"server_pid": server.pid, "daemon_pid": daemon.pid}
            if viewer is not None:
                addresses["viewer"] = page
        accounted = _report(fates, as_json=as_json, addresses=addresses)
        if keep:
            processes.clear()
            say(f"\nstill running: server {url} (pid {server.pid}), daemon on {drop} (pid {daemon.pid})")
            say(f"{'what is stored' if viewer is None else 'see the images'}  {page}")
            say(as_typed(f"ask it: `ingestd -c {config} status`; stop both: `kill {daemon.pid} {server.pid}`"))
        else:
            also = "" if viewer is None else " and the images can be looked at"
            say(f"\nserver and ledger ended with it; with --keep both stay, each file can be asked about{also}")
        return ExitCode.DONE if accounted else ExitCode.NEEDS_PERSON
    finally:
        for process in reversed(processes):
            _stop(process)


def _spawn(place: Path, log: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "INGESTD_CONFIG")}
    with (place / log).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ingestd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=place,
            # Ctrl-C at the terminal is ours to pass on, in the right order.
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, server: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    while boottime() < deadline:
        if server.poll() is not None:
            raise Stop(ExitCode.INTERNAL, f"the embedded server ended at once: {_last_line(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Stop(ExitCode.TIMEOUT, "the embedded server did not start in time")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _watch(
    config: Path, drop: Path, dropped: list[str], *, daemon: subprocess.Popen[bytes], deadline: float, quiet: bool
) -> list[Fate]:
    """Follow the ledger until every dropped file is settled, or the time is over; show how it goes."""
    fates: list[Fate] = []
    with _progress(len(dropped), quiet=quiet) as show:
        while True:
            fates = _fates(config, drop, dropped)
            show(Counter(fate.state for fate in fates))
            if all(fate.state in ENDED or fate.state == "IGNORED" for fate in fates):
                return fates
            if daemon.poll() is not None:
                raise Stop(ExitCode.INTERNAL, f"the daemon ended: {_last_line(config.parent / 'daemon.log')}")
            if boottime() >= deadline:
                return fates
            time.sleep(0.1)


def _fates(config: Path, drop: Path, dropped: list[str]) -> list[Fate]:
    from ingestd.inbox import Names

    names = Names()
    rows = _rows(config)
    fates = []
    for name in dropped:
        row = rows.get(name)
        if row is not None:
            reason = row.reason.value if row.reason else ""
            note = row.note or ", ".join(row.notes)
            remark = row.failed_attributes[0] if row.state.value == "FAILED" and row.failed_attributes else ""
            fates.append(
                Fate(
                    file=name,
                    state=row.state.value,
                    reason=reason,
                    note=note,
                    delivery_id=row.delivery_id,
                    remark=remark,
                )
            )
        elif names.ignores_path(name):
            note = "its name says that it is not for taking; it stays where it is"
            fates.append(Fate(file=name, state="IGNORED", reason="name", note=note, delivery_id=None))
        else:
            state = "WAITING" if (drop / name).exists() else "MOVING"
            note = "still in the drop folder" if state == "WAITING" else "between drop folder and ledger"
            fates.append(Fate(file=name, state=state, reason="", note=note, delivery_id=None))
    return fates


def _rows(config: Path) -> dict[str, Entry]:
    from ingestd.ledger import LedgerError, queries

    try:
        with ledger_for_reading(load_config(config)) as ledger:
            return {entry.relative_path: entry for page in pages(partial(queries.entries, ledger)) for entry in page}
    except LedgerError:
        # The daemon has not made it yet.
        return {}


@contextlib.contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[Counter[str]], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if quiet:
        yield lambda _counts: None
        return
    console = Console(highlight=False)
    columns = (
        TextColumn("  settled"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def show(counts: Counter[str]) -> None:
            settled = sum(count for state, count in counts.items() if state in ENDED or state == "IGNORED")
            words = "  ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            bar.update(task, completed=settled, description=words)

        yield show


def _report(fates: list[Fate], *, as_json: bool, addresses: dict[str, str | int]) -> bool:
    """Print what became of every file and the sum; say whether the sum holds."""
    counts = Counter(fate.state for fate in fates)
    unsettled = [fate for fate in fates if fate.state not in ENDED and fate.state != "IGNORED"]
    total = sum(counts.values())
    holds = not unsettled and total == len(fates)
    if as_json:
        print_json(
            {
                "files": [asdict(fate) for fate in fates],
                "counts": dict(sorted(counts.items())),
                "dropped": len(fates),
                "accounted_for": total - len(unsettled),
                "holds": holds,
                **addresses,
            }
        )
        return holds
    from .tables import Cell, blank, paragraph, show, styled, table, whole

    order = {state: place for place, state in enumerate(("CONFIRMED", "DUPLICATE", "CONFLICT", "REJECTED", "FAILED"))}
    ranked = sorted(fates, key=lambda fate: (order.get(fate.state, len(order)), fate.reason, fate.file))
    parts = " + ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: -item[1]))
    names = ", ".join(plain(fate.file) for fate in unsettled)
    end = Cell(f"NOT accounted for in time: {names}", "bold red")
    show(
        table(["file", "state", "why"], [(whole(fate.file), styled(fate.state), _why(fate)) for fate in ranked]),
        blank,
        paragraph(f"{len(fates)} files dropped = {parts}"),
        paragraph(Cell("every file is accounted for", "bold green") if holds else end),
    )
    return holds


def _why(fate: Fate) -> str:
    if fate.state == "CONFIRMED":
        return fate.note.removeprefix("confirmed: ")
    words = words_of(fate.reason)
    why = f"{words}: {fate.note}" if words and fate.note else words or fate.note
    # The remark may quote the file: no control characters to the terminal.
    return f"{why}; it said: {plain(fate.remark)}" if fate.remark else why
