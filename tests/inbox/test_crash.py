"""kill -9 while files are taken: each is afterwards here or there, whole, and found again."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROUNDS = """
import hashlib, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ingestd.inbox import Spool, Taken, Removal, name_in_spool, new_name
from tests.inboxing import candidate_of, expect_of, source_of, take_in, tree

base, drop, rounds, seed = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
chance = random.Random(seed)
in_the_middle = 0
for number in range(rounds):
    spool = Spool(base / f"spool{number}")
    folder = drop / f"drop{number}"
    wanted = {}
    for place in range(30):
        content = chance.randbytes(chance.choice([0, 10, 5_000, 300_000]))
        path = folder / str(place % 4) / f"IM{place}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        wanted[f"{place % 4}/IM{place}"] = content
    items = [(candidate_of(folder, name), expect_of(folder / name), new_name()) for name in wanted]
    targets = {target: one.relative_path for one, _, target in items}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        spool.lock()
        os.write(writing, b"x")
        for start in range(0, len(items), 3):
            for one in spool.take_in(items[start : start + 3]):
                assert isinstance(one, Taken), one
                # What stands in this file is what a row would say: from here on the spool has it.
                with (base / f"rows{number}").open("a") as rows:
                    rows.write(one.candidate.relative_path + " " + one.path + "\\n")
                if not one.source_removed:
                    spool.remove_source(folder, one.candidate.relative_path, one.candidate.source)
        os._exit(0)
    os.read(reading, 1)
    os.close(reading); os.close(writing)
    written = base / f"rows{number}"
    aim = chance.randrange(9) * 3
    while aim and not (written.exists() and written.read_text().count("\\n") >= aim):
        time.sleep(0.0002)
    time.sleep(chance.random() * float(sys.argv[6]))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    spool = Spool(base / f"spool{number}")
    spool.lock()
    assert tree(spool.scratch()) == set()
    rows = dict(line.split(" ") for line in written.read_text().splitlines()) if written.exists() else {}
    for name, path in rows.items():
        assert (spool.path / path).read_bytes() == wanted[name], "a row without its file"
    unremoved = [(expect, rows[one.relative_path]) for one, expect, _ in items if one.relative_path in rows]
    spool.recover_removals(folder, unremoved)
    for candidate, _, _ in items:
        if candidate.relative_path in rows:
            removal = spool.remove_source(folder, candidate.relative_path, candidate.source)
            assert removal in (Removal.REMOVED, Removal.GONE)
    orphans = [one for one in spool.orphans(lambda paths: set(paths) & set(rows.values())) if one is not None]
    in_drop = tree(folder)
    # A copy whose source lies there still is told by its target, and begun anew.
    copies = {one.relative_path for one in orphans if targets[name_in_spool(one.relative_path)] in in_drop}
    assert not copies or folder.stat().st_dev != spool.device
    spool.discard(*copies)
    orphans = [one for one in orphans if one.relative_path not in copies]
    assert not in_drop & set(rows), "a source that has a row is still there"
    left = [(folder / name).read_bytes() for name in in_drop] + [Path(one.path).read_bytes() for one in orphans]
    missing = [content for name, content in wanted.items() if name not in rows]
    assert sorted(left) == sorted(missing), "not each file exactly once"
    again = take_in(spool, [(one, expect_of(one.path)) for one in orphans])
    again += take_in(spool, [(candidate_of(folder, name), expect_of(folder / name)) for name in in_drop])
    assert all(isinstance(one, Taken) for one in again)
    in_the_middle += 0 < len(rows) < 30 or bool(orphans)
    spool.unlock()
print(in_the_middle)
"""


@pytest.mark.parametrize("where", ["same filesystem", "other filesystem"])
def test_killed_while_taking_leaves_each_file_once_and_whole(tmp_path, where):
    drop, delay = tmp_path / "drops", "0.002"
    if where == "other filesystem":
        drop, delay = Path("/dev/shm") / f"ingestd-test-{uuid.uuid4().hex}", "0.006"
        if not drop.parent.is_dir() or drop.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is no second filesystem here")
    drop.mkdir()
    rounds = os.environ.get("INGESTD_KILLS", "20")
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                ROUNDS,
                str(Path(__file__).parents[2]),
                str(tmp_path),
                str(drop),
                rounds,
                "7",
                delay,
            ],
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["rm", "-rf", str(drop)], check=True)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= int(rounds) // 4, "the kills did not hit the middle"
