"""Each worker has a part of ``scratch`` of its own, which nobody takes from it."""

from __future__ import annotations

from pathlib import Path

from ingestd.inbox import Spool


def test_part_of_one_who_comes_at_the_same_time_stays(tmp_path: Path):
    first, second = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    (tmp_path / "spool" / "scratch" / "1").mkdir()
    work: list[int] = [2]

    def others() -> list[int]:
        found = [each for each in work if each != 2]
        work.append(3)
        second.share_scratch(3, lambda: [2])
        return found

    first.share_scratch(2, others)

    assert sorted(each.name for each in (tmp_path / "spool" / "scratch").iterdir()) == ["2", "3"]
