"""What can be set about one emulator; the defaults are the managed service as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Flavour(StrEnum):
    """Whose behaviour is shown where the two differ."""

    MANAGED = "managed"  # Azure Health Data Services: PUT, expiry headers, zeroed preamble, 4 GB
    OSS = "oss"  # microsoft/dicom-server, the archived open-source server: 2 GB, none of those


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The knobs of one server that are fixed while it runs; faults are not, they have a registry of their own."""

    flavour: Flavour = Flavour.MANAGED
    max_file_bytes: int = 0  # 0: the flavour's own limit
    max_transcode_bytes: int = 100 << 20
    fsync: bool = True
    partitions: bool = False
    operations: bool = True
    crash_leaves_creating: bool = False  # True: rows a crash left Creating answer 45071 until DELETE, as in the service
    auth: bool = False
    token_lifetime: int = 3600  # seconds
    cors: bool = False
    operation_delay: float = 0.0  # seconds an operation stays running, so that 202 can be seen
    viewer: Path | None = None
    control_port: int | None = None  # 0: any free port
    patience_seconds: float = 30.0  # for a request's head, and for a body or an answer that stands still

    @property
    def is_managed(self) -> bool:
        return self.flavour is Flavour.MANAGED

    @property
    def file_limit(self) -> int:
        """The largest single file, in bytes."""
        return self.max_file_bytes or (4 << 30 if self.is_managed else 2 << 30)
