"""What a browser sees at ``/``: a viewer where one was given, else a plain page that says what is stored."""

from __future__ import annotations

import html
import json
import mimetypes

from starlette.responses import FileResponse, HTMLResponse, Response

from ..errors import Problem
from ..http.request import Action, Route, ServiceRequest, route
from ..storage.index import CREATED

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ingestd emulate</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ccc}}
code{{background:#eee;padding:0 .2rem}}</style></head><body>
<h1>Azure DICOM service, emulated</h1>
<p>Give clients this address: <code>{url}</code>. It is for tests and first minutes, never for patients' data.</p>
<table><tr><th>Studies</th><td>{studies}</td></tr><tr><th>Series</th><td>{series}</td></tr>
<tr><th>Instances</th><td>{instances}</td></tr><tr><th>Change feed</th><td>{feed} entries</td></tr></table>
<h2>Newest studies</h2>
<table><tr><th>Study Instance UID</th><th>Date</th><th>Modalities</th><th>Instances</th></tr>{rows}</table>
<h2>See the images</h2>{viewer}
</body></html>
"""
_NO_VIEWER = """<p>No viewer was given. To open studies here: get an OHIF build,
<code>npm pack @ohif/app &amp;&amp; tar xf ohif-app-*.tgz</code>, then start
<code>ingestd emulate --viewer package/dist</code>.</p>"""


def get_page(request: ServiceRequest) -> Response:
    """``GET /`` without a viewer, ``GET /emulator`` with one."""
    with request.archive.index.read() as tx:
        counts = {
            "studies": tx.execute("SELECT count(*) FROM study").fetchone()[0],
            "series": tx.execute("SELECT count(*) FROM series").fetchone()[0],
            "instances": tx.execute("SELECT count(*) FROM instance WHERE status = ?", (CREATED,)).fetchone()[0],
            "feed": tx.execute("SELECT count(*) FROM feed").fetchone()[0],
        }
        rows = tx.execute(
            "SELECT s.study_uid, s.study_date, (SELECT group_concat(DISTINCT e.modality) FROM series e"
            " WHERE e.study_key = s.key) AS modalities, (SELECT count(*) FROM instance i WHERE i.study_key = s.key"
            " AND i.status = ?) AS instances FROM study s ORDER BY s.key DESC LIMIT 20",
            (CREATED,),
        ).fetchall()
    has_viewer = request.archive.settings.viewer is not None
    lines = "".join(_row(tuple(row), has_viewer=has_viewer) for row in rows)
    url = request.url
    viewer = '<p>The viewer is at <a href="/">/</a>.</p>' if has_viewer else _NO_VIEWER
    text = _PAGE.format(url=html.escape(f"{url.scheme}://{url.netloc}/v2"), rows=lines, viewer=viewer, **counts)
    return HTMLResponse(text)


def _row(row: tuple[object, ...], *, has_viewer: bool) -> str:
    uid, *others = (html.escape(str(value if value is not None else "")) for value in row)
    shown = f'<a href="/viewer?StudyInstanceUIDs={uid}">{uid}</a>' if has_viewer else uid
    return f"<tr><td>{shown}</td>{''.join(f'<td>{value}</td>' for value in others)}</tr>"


# OHIF shares memory between workers; a browser allows that only to an isolated page.
_ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def viewer_config(origin: str) -> str:
    """OHIF's app-config.js for this server. The Accept headers are quoted: unquoted ones are 406 (OHIF#3726)."""
    config = {
        "routerBasename": "/",
        "extensions": [],
        "modes": [],
        "showStudyList": True,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "showLoadingIndicator": True,
        "investigationalUseDialog": {"option": "never"},
        "defaultDataSourceName": "emulator",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "emulator",
                "configuration": {
                    "friendlyName": "ingestd emulate",
                    "name": "emulator",
                    "qidoRoot": f"{origin}/v2",
                    "wadoRoot": f"{origin}/v2",
                    "wadoUriRoot": f"{origin}/v2",
                    "qidoSupportsIncludeField": True,
                    "supportsReject": False,
                    "imageRendering": "wadors",
                    "thumbnailRendering": "wadors",
                    "enableStudyLazyLoad": True,
                    "supportsFuzzyMatching": True,
                    "supportsWildcard": False,
                    "omitQuotationForMultipartRequest": False,
                    "acceptHeader": ['multipart/related; type="application/octet-stream"; transfer-syntax=*'],
                },
            }
        ],
    }
    return f"window.config = {json.dumps(config, indent=2)};\n"


def get_viewer(request: ServiceRequest) -> Response:
    """A file of the viewer; a path that is none belongs to the viewer's own pages."""
    settings = request.archive.settings
    if settings.viewer is None:
        raise Problem(404)
    root = settings.viewer.resolve()
    path = request.url.path
    if path.endswith("/app-config.js"):
        origin = f"{request.origin}"
        return Response(viewer_config(origin), media_type="text/javascript", headers=_ISOLATED)
    try:
        asked = (root / request.scope["path"].lstrip("/")).resolve()
        is_there = asked.is_relative_to(root) and asked.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a ring, a zero byte: no file's name
        raise Problem(404) from error
    if is_there:
        kind = mimetypes.guess_type(asked.name)[0]
        return FileResponse(asked, media_type=kind or "application/octet-stream", headers=_ISOLATED)
    if "." in asked.name and asked.suffix in (".js", ".css", ".wasm", ".map", ".json", ".png", ".svg", ".ico"):
        raise Problem(404)
    return FileResponse(root / "index.html", media_type="text/html", headers=_ISOLATED)


UNVERSIONED: list[Route] = [route("GET", "emulator", get_page, Action.NONE)]
HOME: Route = route("GET", "/", get_page, Action.NONE)
VIEWER: Route = route("GET", "/", get_viewer, Action.NONE)
