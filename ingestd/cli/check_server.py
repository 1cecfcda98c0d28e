"""What ``ingestd check`` looks at of the server: secrets, certificates, what it is and lets us do."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from ingestd.clocks import boottime
from ingestd.config import (
    AzureAuthSettings,
    BasicAuthSettings,
    BearerAuthSettings,
    Config,
    Destination,
    NoAuthSettings,
    OAuth2AuthSettings,
    is_private_group,
    name_of_group,
    others_who_may_write,
)
from ingestd.fs.places import expect_named, read_named

from .check_result import CheckResult, bad, nearest, note, ok
from .common import ExitCode
from .output import ago

MOST_SKEW = timedelta(seconds=30)
_UNMAPPED = 65534
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def secrets(destination: Destination, config: Config) -> Iterator[CheckResult]:
    auth = destination.auth
    address = urlsplit(destination.url)
    if isinstance(auth, NoAuthSettings):
        yield ok("auth", "none")
        return
    if address.scheme == "http" and address.hostname not in _LOOPBACK:
        yield note("auth", "the secret travels unencrypted over http", "use an https:// url where the server has one")
    files: list[Path | None] = []
    names: list[str | None] = []
    match auth:
        case BearerAuthSettings():
            files, names = [auth.token_file], [auth.token_env]
        case BasicAuthSettings():
            files, names = [auth.password_file], [auth.password_env]
        case AzureAuthSettings():
            files = [auth.client_secret_file, auth.certificate_file]
        case OAuth2AuthSettings():
            files, names = [auth.client_secret_file], [auth.client_secret_env]
    for file in filter(None, files):
        yield from _secret_file(file)
        yield from access_of_others("auth", file, config)
    for name in filter(None, names):
        if os.environ.get(name, "").strip():
            yield ok("auth", f"{auth.kind}, from ${name}")
        else:
            yield bad(
                "auth", f"${name} is not set, or empty", "set it where ingestd starts (systemd: EnvironmentFile=)"
            )
    if isinstance(auth, AzureAuthSettings) and not any(files):
        yield ok("auth", f"azure, credential {auth.credential}")


def access_of_others(name: str, file: Path | None, config: Config) -> Iterator[CheckResult]:
    """Say who else may write a file that decides where what goes, and whether those who drop files may read it."""
    if file is None or not file.exists():
        return
    trusted = {os.geteuid(), nearest(config.spool.path).stat().st_uid}
    if Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] != str(2**32 - 1):
        trusted.add(_UNMAPPED)  # in a sandbox, other users' files all seem to be nobody's
    if who := others_who_may_write(file, trusted=trusted):
        yield bad(name, f"{who}; it belongs to ingestd's administrator alone", f"chown it, and chmod go-w, for {file}")
    found = file.stat()
    for inbox in config.inboxes:
        drop = inbox.path.stat() if inbox.path.is_dir() else None
        if drop is None or drop.st_gid != found.st_gid or drop.st_gid in {0, _UNMAPPED}:
            continue
        if drop.st_mode & stat.S_IWGRP and found.st_mode & stat.S_IRGRP and not is_private_group(drop.st_gid):
            text = f"who may drop files (group {name_of_group(drop.st_gid)}) may read {file}"
            yield bad(name, text, f"give {inbox.path} a group of its own, as systemd/ingestd.tmpfiles does")
            return


def _secret_file(file: Path) -> Iterator[CheckResult]:
    try:
        content = read_named(file)
        mode = file.stat().st_mode
    except FileNotFoundError:
        yield bad("auth", f"{file} is not there", "write the secret into it; under systemd, use LoadCredential=")
        return
    if not content.strip():
        yield bad("auth", f"{file} is empty", "write the secret into it")
    elif stat.S_IMODE(mode) & 0o007:
        yield note("auth", f"anybody on this machine may read {file}", f"chmod 600 {file}")
    else:
        yield ok("auth", f"from {file}")


def tls(destination: Destination) -> Iterator[CheckResult]:
    tls = destination.tls
    if not destination.url.startswith("https://"):
        return
    for file in filter(None, (tls.ca_file, tls.client_cert, tls.client_key)):
        with contextlib.suppress(FileNotFoundError):  # told below, all of them
            expect_named(file)
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.client_cert:
            # A key with a passphrase would be asked for at the terminal; the daemon has none.
            context.load_cert_chain(tls.client_cert, tls.client_key, password="")
    except FileNotFoundError as error:
        names = [str(name) for name in (tls.ca_file, tls.client_cert, tls.client_key) if name and not name.exists()]
        yield bad("tls", f"{', '.join(names) or error.filename} is not there")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not readable"
        files = ", ".join(str(name) for name in (tls.ca_file, tls.client_cert, tls.client_key) if name)
        yield bad(
            "tls", f"{files}: {str(reason).lower().replace('_', ' ')}", "PEM is expected, the key without passphrase"
        )
    else:
        yield ok("tls", f"trusts {tls.ca_file or 'the public authorities'}")


def server(destination: Destination) -> Iterator[CheckResult]:
    from ingestd.daemon.settings import client_of
    from ingestd.dicomweb import DicomWebError, NotAuthorized, TokenError, Unavailable
    from ingestd.dicomweb.probing import may_store
    from ingestd.sender import probe_profile

    url = destination.url
    with client_of(destination) as client:
        try:
            client.prepare()
            began = boottime()
            page = client.search_studies(limit=1)
            took = boottime() - began
            profile = probe_profile(client)
            stores = may_store(client)
        except TokenError as error:
            yield bad("auth", str(error))
            return
        except NotAuthorized as error:
            yield bad("server", f"{url}: {error}")
            return
        except Unavailable as error:
            advice = "ingestd can start without it, takes files in, and sends them when the server is back"
            yield bad("server", f"{url}: {error}", advice, code=ExitCode.TIMEOUT)
            return
        except DicomWebError as error:
            yield bad("server", f"{url}: {error}", "is this the address of the DICOMweb service itself?")
            return
    yield ok("server", f"{url} answers in {took * 1000:.0f} ms")
    if not stores:
        advice = "give it the right to write; on Azure the role DICOM Data Owner, not DICOM Data Reader"
        yield bad("role", f"{url}: our role may read and not store (a post was answered 403)", advice)
    feed = (
        f"change feed version {profile.feed_version}" if profile.has_feed else "no change feed: it is asked by queries"
    )
    duplicates = "refuses duplicates" if profile.refuses_duplicates else "may keep an older object under the same UIDs"
    yield ok("server", f"kind {profile.kind}; {feed}; {duplicates}")
    if page.server_date is not None:
        yield _clock(page.server_date, within=timedelta(seconds=took + 1))


def _clock(server_date: datetime, *, within: timedelta) -> CheckResult:
    skew = server_date - datetime.now(UTC)
    text = f"the server's clock is {ago(abs(skew).total_seconds())} {'ahead' if skew > timedelta(0) else 'behind'}"
    if abs(skew) > MOST_SKEW + within:
        return note("clock", text, "set the clocks by NTP; ingestd allows for it, tokens and certificates may not")
    return ok("clock", "agrees with the server's")
