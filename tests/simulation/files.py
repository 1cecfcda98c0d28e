"""The files of a simulated world: what is dropped, whole or in pieces, and what is true of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.builders import dataset_bytes, part10
from tests.invariants import digest_of
from tests.simulation.machine import Machine
from tests.torture.feeding import Kind, Written

ROOT = "1.2.826.0.1.3680043.10.1451.8"
_EDGE = 8


@dataclass(kw_only=True)
class Growing:
    """A file of which not all is there yet."""

    written: Written
    path: Path
    rest: list[bytes]
    at: float  # when (the machine's ``mono``) the last piece came


class Files:
    """Writes files into a folder, each of one of these stations; ``written`` is what was written whole."""

    def __init__(self, drop: Path, machine: Machine, stations: Sequence[str]) -> None:
        self._drop = drop
        self._machine = machine
        self._dice = machine.dice
        self._stations = stations
        self._studies: list[tuple[str, str]] = []
        self._instances = 0
        self._names = 0
        self._sources: list[tuple[Written, bytes]] = []
        self.written: list[Written] = []
        self.growing: list[Growing] = []

    def drop_something(self) -> str:
        """Write one or a few files; say what they are."""
        what = [self.new_study, self.late_image, self.second_copy, self.other_content, self.truncated, self.clutter]
        return self._dice.choices(what, weights=[30, 20, 15, 12, 6, 4])[0]()

    def new_study(self) -> str:
        number = len(self._studies) + 1
        self._studies.append((f"{ROOT}.1.{number}", f"{ROOT}.2.{number}"))
        count = self._dice.randint(1, 3)
        for _ in range(count):
            self._new_instance(self._studies[-1])
        return f"new study of {count}"

    def late_image(self) -> str:
        if not self._studies:
            return self.new_study()
        self._new_instance(self._dice.choice(self._studies))
        return "late image"

    def second_copy(self) -> str:
        if not self._sources:
            return self.new_study()
        source, content = self._dice.choice(self._sources)
        # Another preamble: the same object as another program exports it.
        content = self._dice.randbytes(128) + content[128:] if self._dice.random() < 0.5 else content
        self._put(replace(source, kind=Kind.DUPLICATE), content)
        return "second copy"

    def other_content(self) -> str:
        if not self._sources:
            return self.new_study()
        source, _ = self._dice.choice(self._sources)
        self._put(*self._instance(Kind.CONFLICT, *source.identity))
        return "other content"

    def truncated(self) -> str:
        _, content = self._instance(Kind.TRUNCATED, f"{ROOT}.1.0", f"{ROOT}.2.0", f"{ROOT}.3.0")
        self._put(Written(name="", kind=Kind.TRUNCATED), content[: len(content) - self._dice.randint(2, 100)])
        return "truncated"

    def clutter(self) -> str:
        self._put(Written(name="", kind=Kind.CLUTTER), b"not an image\n" * self._dice.randint(1, 60))
        return "clutter"

    def grow_some(self) -> str:
        """Write the next piece of some file that is not whole yet."""
        return self.grow(self._dice.choice(self.growing))

    def grow(self, file: Growing) -> str:
        """Write the next piece of a file; it comes last of those that grow."""
        self.growing.remove(file)
        file.at = self._machine.mono
        with file.path.open("ab") as out:
            out.write(file.rest.pop(0))
        self._stamp(file.path)
        if file.rest:
            self.growing.append(file)
        else:
            self.written.append(file.written)
        return f"{file.written.name} grows, {len(file.rest)} pieces left"

    def _new_instance(self, study: tuple[str, str]) -> None:
        self._instances += 1
        written, content = self._instance(Kind.NEW, *study, f"{ROOT}.3.{self._instances}")
        self._sources.append((written, content))
        if self._dice.random() < 0.2:
            # Cut in the pixels, so that no piece is a whole object.
            cuts = sorted(self._dice.sample(range(len(content) - 400, len(content) - _EDGE), self._dice.randint(1, 3)))
            pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
            written = replace(written, name=self._next_name())
            path = self._drop / written.name
            path.write_bytes(pieces[0])
            self._stamp(path)
            self.growing.append(Growing(written=written, path=path, rest=pieces[1:], at=self._machine.mono))
        else:
            self._put(written, content)

    def _instance(self, kind: Kind, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Written, bytes]:
        station = self._dice.choice(self._stations) if len(self._stations) > 1 else self._stations[0]
        dataset = dataset_bytes(
            study_uid=study_uid,
            series_uid=series_uid,
            sop_uid=sop_uid,
            station=station,
            rows=16,
            columns=16,
            instance_number=self._dice.randint(1, 999),
            pixels=self._dice.randbytes(16 * 16 * 2),
        )
        sha256 = digest_of(dataset)
        uids = {"study_uid": study_uid, "series_uid": series_uid, "sop_uid": sop_uid}
        return Written(name="", kind=kind, **uids, sha256=sha256, station=station), part10(dataset, sop_uid=sop_uid)

    def _next_name(self) -> str:
        self._names += 1
        return f"IM{self._names:04d}"

    def _put(self, written: Written, content: bytes) -> None:
        written = replace(written, name=self._next_name())
        aside = self._drop / f".{written.name}.part"
        aside.write_bytes(content)
        self._stamp(aside)
        aside.rename(self._drop / written.name)
        self.written.append(written)

    def _stamp(self, path: Path) -> None:
        os.utime(path, (self._machine.utc_seconds(), self._machine.utc_seconds()))
