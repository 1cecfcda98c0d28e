"""An empty Debian 12, made by debootstrap and booted with its own systemd, on which README is carried out as written.

A tree is made once and never changed: each machine runs on a layer of its own above it (overlayfs). The network is the
host's, so that packages come as they come here, and a server in the test is the machine's server, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

SUITE = "bookworm"
# What a machine has on which somebody was given a shell; nothing of Python, and no /etc/sysusers.d.
PACKAGES = ("systemd", "systemd-sysv", "sudo", "procps", "dbus", "ca-certificates")
ADMINISTRATOR = "admin"
CHECKOUT = f"/home/{ADMINISTRATOR}/ingestd"
BOOTED_WITHIN_SECONDS = 60.0
STOPPED_WITHIN_SECONDS = 60.0
_PROJECT = Path(__file__).resolve().parents[1]
_CA_FILE = Path("/etc/ssl/certs/ca-certificates.crt")
_NOT_SHIPPED = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info", "requests.jsonl")


def why_not() -> str:
    """Say what keeps a Debian from being made and booted here; "" where nothing does."""
    if os.geteuid() != 0:
        return "only root can make and boot a Debian"
    for program, package in (
        ("debootstrap", "debootstrap"),
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian package {package})"
    mounts = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False)
    return "" if mounts.returncode == 0 else "mounting is not allowed here"


def chapter(heading: str) -> str:
    """Return the shell commands of a chapter of README, as they stand there."""
    commands: list[str] = []
    inside, fence = False, ""
    for line in (_PROJECT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence:
            commands += [line] if inside and fence == "```sh" else []
        elif line.startswith("#"):
            inside = line.lstrip("# ") == heading
    assert commands, f"README has no chapter {heading!r} with commands"
    return "\n".join(commands)


def make_tree(tree: Path) -> Path:
    """Make the empty Debian: an administrator who may use sudo, in whose home nobody else may look, and a checkout."""
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(tree)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr
    (tree / "etc/hostname").write_text("imaging\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost imaging\n")
    (tree / "etc/sudoers.d/admin").write_text(f"{ADMINISTRATOR} ALL=(ALL) NOPASSWD: ALL\n")
    (tree / "etc/sudoers.d/admin").chmod(0o440)
    subprocess.run(
        ["chroot", tree, "useradd", "-m", "-s", "/bin/bash", "-K", "HOME_MODE=0700", ADMINISTRATOR], check=True
    )
    if _CA_FILE.is_file():
        # Whoever stands between here and the registry stands there, too.
        shutil.copy(_CA_FILE, tree / str(_CA_FILE).lstrip("/"))
        (tree / "etc/pip.conf").write_text(f"[global]\ncert = {_CA_FILE}\n")
    shutil.copytree(_PROJECT, tree / CHECKOUT.lstrip("/"), ignore=_NOT_SHIPPED)
    subprocess.run(["chroot", tree, "chown", "-R", f"{ADMINISTRATOR}:", CHECKOUT], check=True)
    return tree


@contextmanager
def layered(folder: Path, *lower: Path) -> Iterator[Path]:
    """Give a tree that can be changed, made of these, the uppermost first; what is changed lies in ``folder/upper``."""
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    for made in (upper, work, merged):
        made.mkdir(parents=True)
    upper.chmod(0o755)
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


class Machine:
    """A Debian that runs: its init is systemd, and its disk is this tree."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"),
                *("--machine=imaging", "--resolv-conf=copy-host", f"--directory={self.tree}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_until_booted()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Shut it down, as its power button would."""
        assert self._nspawn is not None
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(STOPPED_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def runs(
        self, script: str, *, user: str = ADMINISTRATOR, folder: str = CHECKOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run shell commands as this user, who has just logged in; the first that fails is the last."""
        file = self.tree / "commands"
        file.unlink(missing_ok=True)
        file.write_text(f"cd {folder}\n{script}\n", encoding="utf-8")
        return self._inside("su", "--login", user, "-c", "bash -euo pipefail /commands")

    def does(self, script: str, *, user: str = ADMINISTRATOR, folder: str = CHECKOUT) -> str:
        """As ``runs``; return what was printed, and fail where a command did."""
        ran = self.runs(script, user=user, folder=folder)
        assert ran.returncode == 0, (
            f"{script}\n--- {ran.returncode}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}\n{self.log()}"
        )
        return ran.stdout

    def log(self) -> str:
        """Return what ingestd's unit has in the journal."""
        return self._inside("journalctl", "--no-pager", "-u", "ingestd", "-n", "40").stdout

    def _inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--target", str(self._init), "--all", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )

    def _wait_until_booted(self) -> None:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        deadline = time.monotonic() + BOOTED_WITHIN_SECONDS
        said = ""
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            words = children.read_text().split()
            if words:
                self._init = int(words[0])
                said = self._inside("systemctl", "is-system-running").stdout.strip()
                if said in {"running", "degraded"}:
                    self._lend_limits()
                    return
            time.sleep(0.1)
        raise AssertionError(f"no systemd came up in a container here (exit code {self._nspawn.poll()}, {said!r})")

    def _lend_limits(self) -> None:
        """Let it set limits of inotify that are its own: the kernel's are the host's as well."""
        script = "cp -r /proc/sys/fs/inotify /var/lib/inotify && mount --bind /var/lib/inotify /proc/sys/fs/inotify"
        lent = self._inside("sh", "-c", script)
        assert lent.returncode == 0, lent.stderr
