"""Files that keep arriving: new studies, late images, second copies, the same identity with other content, broken ones.

``Feeder.written`` is the truth that the end is held against. A file stands in it only once it was written whole.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.builders import dataset_bytes, part10
from tests.invariants import digest_of

ROOT = "1.2.826.0.1.3680043.10.1451.7"
RECENT_STUDIES = 5
BACKLOG_MOST = 300


class Kind(StrEnum):
    """What was written."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    TRUNCATED = "truncated"
    CLUTTER = "clutter"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """One file that was written whole into the drop folder; ``sha256`` is that of its data set's bytes."""

    name: str
    kind: Kind
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sha256: str = ""
    station: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        """Its three UIDs."""
        return self.study_uid, self.series_uid, self.sop_uid

    @property
    def rejected_as(self) -> str:
        """With which reason it has to be REJECTED; "": it is whole."""
        return {Kind.TRUNCATED: "truncated", Kind.CLUTTER: "not_dicom"}.get(self.kind, "")


class Feeder(threading.Thread):
    """Writes files into folders until told to stop; each study is of one of these stations."""

    def __init__(
        self,
        *drops: Path,
        seed: int,
        pace_seconds: float = 0.15,
        stations: Sequence[str] = ("STATION",),
    ) -> None:
        super().__init__(name="feeder", daemon=True)
        self._drops = drops
        self._pace_seconds = pace_seconds
        self._stations = stations
        self._random = random.Random(seed)
        self._root = f"{ROOT}.{seed}"
        self._ended = threading.Event()
        self._studies = 0
        self._instances = 0
        self._files = 0
        self._recent: list[tuple[str, str, str]] = []  # study, series, station
        self._sources: list[tuple[Written, bytes]] = []
        self.written: list[Written] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        """Write until ``stop``; one of each kind comes first, so that the shortest run has them all."""
        steps: list[Callable[[], None]] = [
            self._new_study,
            self._second_copy,
            self._other_content,
            self._truncated,
            self._clutter,
        ]
        try:
            while not self._ended.wait(self._pace_seconds * self._random.uniform(0.3, 1.7)):
                if steps:
                    steps.pop(0)()
                elif sum(len(list(drop.iterdir())) for drop in self._drops) < BACKLOG_MOST:
                    self._random.choices(
                        [self._new_study, self._late_images, self._second_copy, self._other_content],
                        weights=[60, 20, 17, 3],
                    )[0]()
        except Exception as error:  # noqa: BLE001 - the campaign looks at it, and fails
            self.failure = error

    def stop(self) -> list[Written]:
        """Finish the file at hand and return what was written."""
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return self.written

    def _new_study(self) -> None:
        self._studies += 1
        station = self._stations[self._studies % len(self._stations)]
        study = (f"{self._root}.1.{self._studies}", f"{self._root}.2.{self._studies}", station)
        self._recent = [*self._recent, study][-RECENT_STUDIES:]
        for _ in range(self._random.randint(2, 7)):
            self._new_instance(study)

    def _late_images(self) -> None:
        study = self._random.choice(self._recent)
        for _ in range(self._random.randint(1, 3)):
            self._new_instance(study)

    def _new_instance(self, study: tuple[str, str, str]) -> None:
        self._instances += 1
        study_uid, series_uid, station = study
        self._write_instance(Kind.NEW, (study_uid, series_uid, f"{self._root}.3.{self._instances}"), station)

    def _second_copy(self) -> None:
        source, content = self._random.choice(self._sources)
        # Another preamble: the same object as another program exports it.
        content = self._random.randbytes(128) + content[128:] if self._random.random() < 0.5 else content
        name = self._write(content)
        self.written.append(
            Written(
                name=name,
                kind=Kind.DUPLICATE,
                study_uid=source.study_uid,
                series_uid=source.series_uid,
                sop_uid=source.sop_uid,
                sha256=source.sha256,
                station=source.station,
            )
        )

    def _other_content(self) -> None:
        source, _ = self._random.choice(self._sources)
        self._write_instance(Kind.CONFLICT, source.identity, source.station)

    def _write_instance(self, kind: Kind, identity: tuple[str, str, str], station: str) -> None:
        study_uid, series_uid, sop_uid = identity
        rows = self._random.choice([16, 16, 32, 64, 160])
        dataset = dataset_bytes(
            study_uid=study_uid,
            series_uid=series_uid,
            sop_uid=sop_uid,
            station=station,
            rows=rows,
            columns=rows,
            instance_number=len(self.written) + 1,
            pixels=self._random.randbytes(rows * rows * 2),
        )
        content = part10(dataset, sop_uid=sop_uid)
        written = Written(
            name=self._write(content),
            kind=kind,
            study_uid=study_uid,
            series_uid=series_uid,
            sop_uid=sop_uid,
            sha256=digest_of(dataset),
            station=station,
        )
        self.written.append(written)
        if kind is Kind.NEW:
            self._sources.append((written, content))

    def _truncated(self) -> None:
        _, content = self._sources[0]
        self.written.append(Written(name=self._write(content[: len(content) * 2 // 3]), kind=Kind.TRUNCATED))

    def _clutter(self) -> None:
        self.written.append(Written(name=self._write(b"not an image\n" * 40), kind=Kind.CLUTTER))

    def _write(self, content: bytes) -> str:
        """Write one file as modalities do: mostly aside and renamed, sometimes right there in two goes."""
        self._files += 1
        name = f"IM{self._files:06d}"
        drop = self._random.choice(self._drops)
        if self._random.random() < 0.15:
            with (drop / name).open("wb", buffering=0) as file:
                file.write(content[: len(content) // 2])
                self._ended.wait(self._random.uniform(0, 0.05))
                file.write(content[len(content) // 2 :])
        else:
            aside = drop / f".{name}.part"
            aside.write_bytes(content)
            aside.rename(drop / name)
        return name
