"""Any sequence of stores, replacements, deletions and updates gives what a plain in-memory model of AZURE.md gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ingestd.emulator import Emulator
from tests.builders import fresh_uid
from tests.emulator_peer import ANY_FILE, Peer, reasons, scan, stored

STUDIES, SERIES, INSTANCES = range(2), range(2), range(2)
PLACES = list(product(STUDIES, SERIES, INSTANCES))
place = st.sampled_from(PLACES)


@dataclass
class Model:
    """AZURE.md 1 and 5, as dictionaries: what is stored, what the feed says, what the studies' latest values are."""

    watermark: int = 0
    current: dict[tuple[int, int, int], int] = field(default_factory=dict)
    feed: list[tuple[str, tuple[int, int, int], int]] = field(default_factory=list)
    descriptions: dict[int, str] = field(default_factory=dict)

    def store(self, where: tuple[int, int, int], description: str) -> bool:
        if where in self.current:
            return False
        self._version(where, "Create")
        if description:
            self.descriptions[where[0]] = description
        return True

    def put(self, where: tuple[int, int, int], description: str) -> None:
        self._version(where, "Update" if where in self.current else "Create")
        if description:
            self.descriptions[where[0]] = description

    def _version(self, where: tuple[int, int, int], action: str) -> None:
        self.watermark += 1
        self.current[where] = self.watermark
        self.feed.append((action, where, self.watermark))

    def delete(self, wheres: list[tuple[int, int, int]]) -> None:
        for where in sorted(wheres, key=lambda each: self.current[each]):
            self.feed.append(("Delete", where, self.current.pop(where)))
        for study in {where[0] for where in wheres}:
            if not any(where[0] == study for where in self.current):
                self.descriptions.pop(study, None)

    def update(self, study: int, description: str) -> int:
        wheres = sorted((where for where in self.current if where[0] == study), key=lambda each: self.current[each])
        for where in wheres:
            self._version(where, "Update")
            self.descriptions[study] = description
        return len(wheres)

    def state(self, where: tuple[int, int, int], watermark: int) -> str:
        now = self.current.get(where)
        return "Deleted" if now is None else "Current" if now == watermark else "Replaced"

    def inside(self, *prefix: int) -> list[tuple[int, int, int]]:
        return [where for where in self.current if where[: len(prefix)] == prefix]


_running: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with Emulator(fsync=False) as running, Peer(running.root) as peer:
        _running.update(server=running, peer=peer)
        yield
        _running.clear()


class Machine(RuleBasedStateMachine):
    """Does the same to the server and to the model, under UIDs of this run's own."""

    @initialize()
    def begin(self) -> None:
        self.peer: Peer = _running["peer"]
        self.model = Model()
        self.uids = [[fresh_uid() for _ in level] for level in (STUDIES, SERIES, INSTANCES)]
        latest = self.peer.get("/changefeed/latest?includeMetadata=false", None)
        self.first = latest.json()["sequence"] if latest.status_code == 200 else 0
        self.marks: dict[int, int] = {}

    def names(self, where: tuple[int, ...]) -> dict[str, str]:
        return {
            name: uids[number] for name, uids, number in zip(("study", "series", "sop"), self.uids, where, strict=False)
        }

    def path(self, where: tuple[int, ...]) -> str:
        kinds = ("studies", "series", "instances")
        return "".join(f"/{kind}/{uid}" for kind, uid in zip(kinds, self.names(where).values(), strict=False))

    @rule(where=place, description=st.sampled_from(["", "one", "two"]))
    def store(self, where: tuple[int, int, int], description: str) -> None:
        answer = self.peer.store(scan({0x00081030: ("LO", description)}, **self.names(where)))

        if self.model.store(where, description):
            assert (answer.status_code, len(stored(answer))) == (200, 1)
        else:
            assert (answer.status_code, reasons(answer)) == (409, [45070])

    @rule(where=place, description=st.sampled_from(["", "five", "six"]))
    def put(self, where: tuple[int, int, int], description: str) -> None:
        """AZURE.md 1.9: PUT replaces what is there and never says that it exists."""
        file = scan({0x00081030: ("LO", description)}, **self.names(where))
        answer = self.peer.store(file, method="PUT")

        self.model.put(where, description)
        assert (answer.status_code, len(stored(answer))) == (200, 1)
        path = self.path(where)
        assert self.peer.get(path, ANY_FILE).content[128:] == file[128:]

    @rule(where=place, depth=st.integers(1, 3))
    def delete(self, where: tuple[int, int, int], depth: int) -> None:
        wheres = self.model.inside(*where[:depth])
        answer = self.peer.call("DELETE", self.path(where[:depth]))

        assert answer.status_code == (204 if wheres else 404)
        self.model.delete(wheres)

    @rule(study=st.sampled_from(STUDIES), description=st.sampled_from(["three", "four"]))
    def update(self, study: int, description: str) -> None:
        body = {
            "studyInstanceUids": [self.uids[0][study]],
            "changeDataset": {"00081030": {"vr": "LO", "Value": [description]}},
        }
        answer = self.peer.call("POST", "/studies/$bulkUpdate", json=body)
        results = self.peer.finished(answer.json()["href"])["results"]

        assert results["instanceUpdated"] == self.model.update(study, description)

    @invariant()
    def feed_is_the_models(self) -> None:
        # Nothing else writes and nothing leaves the feed: this machine's entries begin where it began.
        entries = self.peer.feed(f"includeMetadata=false&limit=200&offset={self.first}")
        got = [
            (each["action"], each["studyInstanceUid"], each["seriesInstanceUid"], each["sopInstanceUid"], each["state"])
            for each in entries
        ]

        assert got == [
            (action, *self.names(where).values(), self.model.state(where, watermark))
            for action, where, watermark in self.model.feed
        ]
        assert [each["sequence"] for each in entries] == sorted(each["sequence"] for each in entries)

    @invariant()
    def etags_and_counts_are_the_models(self) -> None:
        for study in STUDIES:
            wheres = self.model.inside(study)
            answer = self.peer.get(f"{self.path((study,))}/metadata")
            if not wheres:
                assert answer.status_code == 404
                continue
            newest, count = answer.headers["ETag"].split("-")
            assert (int(count), len(answer.json())) == (len(wheres), len(wheres))
            self.expect_mark(max(self.model.current[where] for where in wheres), int(newest))

    def expect_mark(self, modelled: int, real: int) -> None:
        # Watermarks are the server's own numbers (others may have used some): same one, same order.
        assert self.marks.setdefault(modelled, real) == real
        ordered = [self.marks[each] for each in sorted(self.marks)]
        assert ordered == sorted(set(ordered))

    @invariant()
    def searches_are_the_models(self) -> None:
        for study in STUDIES:
            uid = self.uids[0][study]
            wheres = self.model.inside(study)
            answer = self.peer.get(f"/studies?StudyInstanceUID={uid}&includefield=NumberOfStudyRelatedInstances")
            if not wheres:
                assert answer.status_code == 204
                continue
            (found,) = answer.json()
            assert found["00201208"]["Value"] == [len(wheres)]
            assert found.get("00081030", {}).get("Value", [""])[0] == self.model.descriptions.get(study, "")
            series = self.peer.get(f"/studies/{uid}/series").json()
            assert len(series) == len({where[1] for where in wheres})
            instances = self.peer.get(f"/studies/{uid}/instances").json()
            assert {each["00080018"]["Value"][0] for each in instances} == {self.uids[2][where[2]] for where in wheres}


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=12, stateful_step_count=12, suppress_health_check=list(HealthCheck), derandomize=True
)
