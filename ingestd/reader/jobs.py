"""What is asked of a reader and what comes back. Files that are read are named by their places (``places``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ingestd.instance.facts import Inspection, Limits
from ingestd.lifecycle import SourceStat


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectJob:
    """Read one file whole and say what it is. ``key`` is the caller's own and comes back untouched.

    With ``expect``, a file that is another one, or has changed, is CHANGED. With ``durable`` the descriptor is
    fsynced after it was read; if that fails the answer is ``waits``, never a verdict. With ``patient``, a file that is
    more hole than data is ZEROS without being read: its writer may still fill it.
    """

    key: int
    path: str  # os.fsdecode'd; surrogates are kept
    expect: SourceStat | None = None
    durable: bool = False
    patient: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CanonicalJob:
    """Take the canonical digest of one file."""

    key: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencodeJob:
    """Write the file anew as Explicit VR Little Endian at ``destination``, durably, and inspect that.

    A file that is there is replaced; ``destination`` + ".part" may be left behind by a crash.
    """

    key: int
    path: str
    destination: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareJob:
    """Say whether two files hold the same object; the canonical digests are taken only if nothing less decides.

    A file whose data set has another digest than is given here ("": any) is not the one that was meant: it is ``lost``.
    """

    key: int
    ours: str
    theirs: str
    our_digest: str = ""
    their_digest: str = ""


Job: TypeAlias = InspectJob | CanonicalJob | ReencodeJob | CompareJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """What one job came to. Exactly one of the result fields, ``died``, ``waits``, ``refused`` or ``lost`` is set.

    ``inspection`` answers an InspectJob, and a ReencodeJob with the facts of the destination. ``sameness`` is
    "same", "other" or "other_encoding" (lifecycle.Sameness). ``died``: this job killed its child, burnt CPU past its
    limit or met a fault of ours; count it as poison (``cause`` says how, for the log; no names, no values). ``waits``:
    nothing is known of the file; try later. ``refused``: the file was read and the job cannot be done on it (not
    whole, an encoding that is not re-encoded); do not try again. An InspectJob is never refused. ``lost``: "ours" or
    "theirs" is not the file that a CompareJob is about any more.

    ``differs`` says beside ``sameness``, in words without patient data, what is not the same; beside ``waits`` it says
    that theirs was read and is no whole object, and why.
    """

    job: Job
    inspection: Inspection | None = None
    canonical: str | None = None
    sameness: str | None = None
    differs: str = ""
    died: bool = False
    cause: str = ""
    waits: str = ""
    refused: str = ""
    lost: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderLimits:
    """What a child may use.

    A job that used more CPU time than ``seconds`` + bytes of work / ``bytes_per_second`` has died (bytes of work: read,
    inflated and written so far; its size alone earns it nothing). One that neither used CPU nor did any work for
    ``stall_seconds`` waits; slow is not stalled.
    """

    seconds: float = 10.0
    bytes_per_second: int = 2_500_000
    stall_seconds: float = 120.0
    address_space_bytes: int = 512 << 20
    open_files: int = 64
    ahead_jobs: int = 64  # jobs handed to a child before it has answered the first
    ahead_bytes: int = 8_000_000
    instance: Limits = field(default_factory=Limits)
