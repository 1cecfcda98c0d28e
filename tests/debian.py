"""An empty Debian 12, made by debootstrap and booted with its own systemd, on which README is carried out as written.

A tree is made once and never changed: each machine runs on a layer of its own above it (overlayfs). The network is the
host's, so that packages come as they come here, and a server in the test is the machine's server, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest

from tests.orthanc import peers_are_required
from tests.patience import PATIENCE

SUITE = "bookworm"
# What a machine has on which somebody was given a shell; nothing of Python, and no /etc/sysusers.d.
PACKAGES = ("systemd", "systemd-sysv", "sudo", "procps", "dbus", "ca-certificates")
ADMINISTRATOR = "admin"
CHECKOUT = f"/home/{ADMINISTRATOR}/ingestd"
ENOUGH_MEMORY = 6 << 30
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
    return "\n".join(blocks(heading))


def blocks(heading: str) -> list[str]:
    """Return the shell commands of a chapter of README, block by block."""
    found: list[list[str]] = []
    inside, fence = False, ""
    for line in (_PROJECT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
            found += [[]] if inside and fence == "```sh" else []
        elif fence:
            if inside and fence == "```sh":
                found[-1].append(line)
        elif line.startswith("#"):
            inside = line.lstrip("# ") == heading
    assert found, f"README has no chapter {heading!r} with commands"
    return ["\n".join(lines) for lines in found]


@contextmanager
def empty_debian(temporary: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the tree that all workers of a run share: the first who asks makes it, and the last removes it.

    The test is skipped where there can be none, and fails where peers are required.
    """
    if reason := why_not():
        (pytest.fail if peers_are_required() else pytest.skip)(reason)
    folder = temporary.getbasetemp()
    place = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "debian"
    tree = place / "tree"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not tree.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not tree.exists():
                make_room(place)
                make_tree(place / "new").rename(tree)
            # For a moment it has no lock, and whoever was the last may remove it.
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield tree
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_room(place)


def make_room(folder: Path) -> None:
    """Make a folder for disks of machines, in memory where there is enough: packages are installed sync by sync."""
    folder.mkdir()
    if psutil.virtual_memory().available > ENOUGH_MEMORY:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder], check=True)


def remove_room(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)
    shutil.rmtree(folder)


def make_tree(tree: Path) -> Path:
    """Make the empty Debian: an administrator who may use sudo, in whose home nobody else may look, and a checkout."""
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(tree)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr
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
    """A Debian that runs: its init is systemd, and its disk is this tree.

    ``name`` is its host's; ``shares`` are folders of ours that it has at these places, as others may; ``hosts`` are
    names of this same machine that it knows, too: all have one network.
    """

    def __init__(
        self, tree: Path, name: str = "imaging", *, shares: Mapping[Path, str] | None = None, hosts: Sequence[str] = ()
    ) -> None:
        self.tree = tree
        self.name = name
        self.shares = shares or {}
        self._hosts = "".join(f"127.0.0.1 {host}\n" for host in hosts)
        self._cgroups: list[Path] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        (self.tree / "etc/hostname").write_text(f"{self.name}\n")
        (self.tree / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{self._hosts}")
        self._cgroups = [folder / f"{self.name}-{os.getpid()}" for folder in _cgroup_folders()]
        for cgroup in self._cgroups:
            cgroup.mkdir()
        # In a cgroup of its own, or two machines would take each other's services for theirs.
        enter = "".join(f"echo $$ >{cgroup}/cgroup.procs; " for cgroup in self._cgroups)
        self._nspawn = subprocess.Popen(
            [
                *("sh", "-ec", f'{enter}exec "$@"', "sh"),
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"),
                *(f"--machine={self.name}", "--resolv-conf=copy-host", f"--directory={self.tree}"),
                *(f"--bind={ours}:{theirs}" for ours, theirs in self.shares.items()),
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
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._remove_cgroups()

    def lose_power(self) -> None:
        """End all that runs on it, at once: with its init goes every process."""
        assert self._nspawn is not None
        os.kill(self._init, signal.SIGKILL)
        self._nspawn.wait(PATIENCE)
        self._remove_cgroups()

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

    def _remove_cgroups(self) -> None:
        while self._cgroups:
            cgroup = self._cgroups.pop()
            for folder in sorted((cgroup, *cgroup.rglob("*/")), reverse=True):
                folder.rmdir()

    def _wait_until_booted(self) -> None:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        deadline = time.monotonic() + PATIENCE
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


def waited_for(machine: Machine, **counts: int) -> None:
    """Wait until so many files are in these states, and no others are known."""
    deadline = time.monotonic() + PATIENCE
    found: dict[str, int] = {}
    while found != counts and time.monotonic() < deadline:
        said = json.loads(machine.runs("sudo -u ingestd ingestd status --json").stdout)
        found = {state: count for state, count in said["states"].items() if count}
        time.sleep(0.2)
    assert found == counts, machine.log()


def _cgroup_folders() -> list[Path]:
    """Where a systemd has its cgroups: in the unified hierarchy, and in one by its name where there is one."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines())
    return [
        Path(at) for _, at, kind, options, *_ in mounts if kind == "cgroup2" or "name=systemd" in options.split(",")
    ]
