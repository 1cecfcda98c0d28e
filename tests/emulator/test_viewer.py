"""The lab's last exercise: a study that was just stored is opened in OHIF, in a real browser, and its pixels are drawn.

Needs Chromium and an unpacked OHIF build; ``INGESTD_OHIF`` names its folder (``npm pack @ohif/app``, then
``package/dist``). With ``INGESTD_REQUIRE_PEERS=1``, as ``.ci/run`` sets it, a missing one fails instead of skipping.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingestd.emulator import Emulator
from tests.browsing import PROGRAM, Browser
from tests.builders import fresh_uid, instance_bytes
from tests.emulator_peer import Peer
from tests.orthanc import peers_are_required

OHIF = Path(os.environ.get("INGESTD_OHIF", "/usr/share/ohif/dist"))

# The viewport's canvas has a picture: more than twenty shades, not a background.
PIXELS_ARE_DRAWN = """
[...document.querySelectorAll('canvas')].some(canvas => {
  const context = canvas.getContext('2d');
  if (!context || !canvas.width) return false;
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const shades = new Set();
  for (let at = 0; at < data.length; at += 4 * 37) shades.add(data[at]);
  return shades.size > 20;
})
"""
# OHIF up to 3.12 shows links to its viewers after a click on the study's row; since 3.13 a double click opens one.
STUDY = """
(() => {
  const named = [...document.querySelectorAll('tr *')].filter(each => each.textContent.includes('Viewed'));
  return named.pop();
})()
"""
CLICK = f"Boolean({STUDY}) && ({STUDY}.click(), true)"
VIEWER_LINK = f"""
(() => {{
  if (location.pathname.startsWith('/viewer')) return location.pathname + location.search;
  const link = document.querySelector('a[href*="/viewer?StudyInstanceUIDs="]');
  if (link) return link.getAttribute('href');
  {STUDY}?.dispatchEvent(new MouseEvent('dblclick', {{bubbles: true}}));
  return '';
}})()
"""


def what_is_missing() -> str:
    missing = [] if PROGRAM else ["Chromium (Debian package chromium)"]
    if not (OHIF / "index.html").is_file():
        missing.append("an OHIF build (INGESTD_OHIF=package/dist of `npm pack @ohif/app`)")
    return " and ".join(missing)


@pytest.mark.slow
def test_study_just_stored_is_found_opened_and_drawn(tmp_path):
    if what_is_missing():
        if peers_are_required():
            pytest.fail(f"missing: {what_is_missing()}")
        pytest.skip(f"missing: {what_is_missing()}")
    study, series = fresh_uid(), fresh_uid()
    pixels = b"".join((x * 8 + y * 3).to_bytes(2, "little") for y in range(128) for x in range(128))
    files = [
        instance_bytes(
            study_uid=study, series_uid=series, rows=128, columns=128, pixels=pixels, instance_number=number,
            patient_name="Viewed^Patient",
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    with Emulator(fsync=False, viewer=OHIF) as server, Peer(server.root) as peer, Browser(tmp_path) as browser:
        assert peer.store(*files).status_code == 200

        browser.go(f"{server.root}/")
        browser.wait_for(CLICK, what="the study in the list")
        link = browser.wait_for(VIEWER_LINK, what="the study's viewer link")
        assert study in link
        browser.go(f"{server.root}{link}")
        browser.wait_for(PIXELS_ARE_DRAWN, what="the picture")

        frames = [line for line in server.requests if "/frames/" in line.get("path", "")]
        assert frames
        assert {line["status"] for line in frames} == {200}
