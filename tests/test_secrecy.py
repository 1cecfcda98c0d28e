"""No token and no image in a core file, of the daemon, a command or a reader; and of a header only what is needed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.builders import element, instance_bytes, write_instance
from tests.http_server import Conversation, ScriptedServer
from tests.ledgers import contents_of, url_of
from tests.running import PROJECT, Site, wait_until

# Python runs this at its start; at SIGUSR1 the process then writes down what the kernel has noted of it.
ASKED = """
import ctypes, os, signal

def tell(*_):
    with open(f"{os.path.dirname(__file__)}/{os.getpid()}", "w") as file:
        file.write(f"dumpable {ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)}")

signal.signal(signal.SIGUSR1, tell)
"""


def hang(conversation: Conversation) -> None:
    conversation.read_body()
    conversation.wait_for_end()


def ready_readers(pid: int) -> list[int]:
    """The readers that have set their limits, and so are ready for work."""
    return [child for child in children_of(pid) if resource.prlimit(child, resource.RLIMIT_AS)[0] > 0]


def children_of(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").glob("*/children") for word in task.read_text().split()]


@pytest.mark.parametrize(
    "words",
    ["run", "run --once", "send file.dcm", "check", "reconcile --full", "dicomweb latest"],
)
def test_whoever_holds_the_token_or_an_image_is_never_dumped(tmp_path, words):
    told = tmp_path / "told"
    for folder in (told, tmp_path / "drop"):
        folder.mkdir()
    (told / "sitecustomize.py").write_text(ASKED)
    path = os.pathsep.join([str(told), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": path, "TOKEN": "canary", "INGESTD_CONFIG": "config.yaml"}
    write_instance(tmp_path / "file.dcm")
    write_instance(tmp_path / "drop" / "file.dcm")

    with ScriptedServer(hang) as server:
        (tmp_path / "config.yaml").write_text(
            f"inboxes: [{{path: drop}}]\nspool: {{path: spool, low_water: 1MB}}\nledger: {url_of(tmp_path)}\n"
            f"destination: {{url: '{server.url}', auth: {{kind: bearer, token_env: TOKEN}}}}\n"
        )
        if words == "reconcile --full":
            once = [sys.executable, "-m", "ingestd", "run", "--once", "--timeout", "1ms"]
            subprocess.run(once, cwd=tmp_path, env=environment, check=False, capture_output=True)
            server.requests.clear()
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestd", *words.split()], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: server.requests, what="a request with the token")
            if words.startswith(("run", "send")):
                wait_until(lambda: len(ready_readers(process.pid)) == 2, what="readers")
            pids = [process.pid, *ready_readers(process.pid)]
            for pid in pids:
                wait_until(lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0), what="no core files")
                os.kill(pid, signal.SIGUSR1)
                wait_until(lambda pid=pid: (told / str(pid)).exists() and (told / str(pid)).read_text(), what="words")

            assert [(told / str(pid)).read_text() for pid in pids] == ["dumpable 0"] * len(pids)
            assert server.requests[0].headers["authorization"] == "Bearer canary"
        finally:
            process.kill()
            process.wait()


def test_what_rules_match_reaches_neither_the_ledger_nor_a_log(tmp_path):
    texts = {0x00080080: "INSTITUTION", 0x00081030: "DESCRIPTION", 0x00081040: "DEPARTMENT"}
    station = element(0x00081010, "SH", "STATION")
    around = b"".join(element(tag, "LO", f"CANARY {text}") for tag, text in texts.items())
    content = instance_bytes()
    title = element(0x00020016, "AE", "CANARY AE")
    head = content.index(element(0x00080005, "CS", "ISO_IR 100"))
    content = content[:head] + title + content[head:].replace(station, around)

    with Emulator() as server:
        site = Site(tmp_path / "site", server.url, logging={"level": "debug"})
        (site.drop / "file.dcm").write_bytes(content)
        said = site.command("run", "--once")
        shown = site.command("explain", str(site.drop / "file.dcm"), "--json")

    assert site.states() == {"CONFIRMED": 1}
    assert not any(b"CANARY" in text for text in contents_of(site.ledger_url).values())
    assert "CANARY" not in said.stdout + said.stderr + shown.stdout + shown.stderr
