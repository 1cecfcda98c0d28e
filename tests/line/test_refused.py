"""What the server, or a proxy before it, refuses for good: it may have it all the same, and is asked first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.line.test_line import digest, drop, make_image, posts_of, server_digest
from tests.running import Site

REFUSALS = [
    ("refuse_stored", {}, ["refused"]),
    ("error_after_store", {"status": 413}, ["stored"]),
]


@pytest.fixture
def server() -> Iterator[Emulator]:
    with Emulator(fsync=False) as emulator:
        yield emulator


@pytest.mark.parametrize("kind", ["azure", "other"])
@pytest.mark.parametrize("fault, settings, posts", REFUSALS)
def test_file_that_is_stored_and_refused_is_confirmed_without_another_post(
    tmp_path: Path, server: Emulator, kind: str, fault: str, settings: dict[str, int], posts: list[str]
):
    site = Site(tmp_path / "site", server.url, destination={"kind": kind})
    server.faults.add(fault, **settings)
    image = make_image()
    drop(site, "image", image.content)

    done = site.run_once()

    assert (done.returncode, site.states()) == (0, {"CONFIRMED": 1}), done.stderr
    assert posts_of(server, image) == posts
    assert server_digest(server, image) == digest(image)
    assert [event.after for event in site.stories()[0].history] == ["PENDING", "SENDING", "UNCERTAIN", "CONFIRMED"]


@pytest.mark.slow
def test_file_that_is_refused_again_and_again_is_confirmed_where_it_was_stored(tmp_path: Path, server: Emulator):
    """A proxy answers 400 to whatever comes; nothing says that it is there, as long as nobody asks."""
    site = Site(tmp_path / "site", server.url)
    image = make_image()
    server.faults.add("error_after_store", status=400, uid=image.sop_uid)

    with site.start():
        drop(site, "other", make_image().content)
        site.wait_for({"CONFIRMED": 1})
        drop(site, "image", image.content)
        site.wait_for({"CONFIRMED": 2})

    assert server_digest(server, image) == digest(image)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["azure", "other"])
def test_file_that_is_too_large_fails_soon_with_the_reason_once_the_server_said_it_is_not_there(
    tmp_path: Path, server: Emulator, kind: str
):
    site = Site(
        tmp_path / "site", server.url, destination={"kind": kind}, reconcile={"absence_wait": "1h", "grace": "1h"}
    )
    server.faults.add("error_before_store", status=413)
    image = make_image()
    drop(site, "image", image.content)

    done = site.run_once()

    (entry,) = site.entries()
    assert (done.returncode, entry.state, entry.reason) == (1, "FAILED", "too_large")
    assert "as too large (413)" in entry.note
    assert "does not have it" in entry.note
    assert posts_of(server, image) == []
    assert [event.after for event in site.stories()[0].history] == ["PENDING", "SENDING", "UNCERTAIN", "FAILED"]
