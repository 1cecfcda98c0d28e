"""From the configuration to the values that the rooms take: each setting under the name that it has there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ingestd.config import Config, Destination, Inbox
from ingestd.daemon.steps import Routing
from ingestd.dicomweb import AzureAuth, BasicAuth, BearerAuth, DicomWebClient, NoAuth, OAuth2Auth, Tls
from ingestd.dicomweb.auth import Auth
from ingestd.inbox import InboxError, InboxPolicy, Take, Watch
from ingestd.instance.meta import file_meta_for
from ingestd.lifecycle import (
    BY_PERSON,
    Backoff,
    BatchLimits,
    LongestWaits,
    Part,
    Routable,
    Route,
    ServerKind,
    ServerProfile,
    route,
)
from ingestd.reader import Inspection, ReaderLimits
from ingestd.reconciler import Rules, Verify
from ingestd.sender import profile_of


def auth_of(destination: Destination) -> Auth:
    """Build the authentication that ``auth`` describes."""
    auth = destination.auth
    if auth.kind == "bearer":
        return BearerAuth(file=auth.token_file, env=auth.token_env)
    if auth.kind == "basic":
        return BasicAuth(auth.username, password_file=auth.password_file, password_env=auth.password_env)
    if auth.kind == "azure":
        return AzureAuth(
            auth.credential,
            scope=auth.scope,
            tenant_id=auth.tenant_id,
            client_id=auth.client_id,
            secret_file=auth.client_secret_file,
            certificate_file=auth.certificate_file,
        )
    if auth.kind == "oauth2":
        return OAuth2Auth(
            auth.token_url,
            auth.client_id,
            secret_file=auth.client_secret_file,
            secret_env=auth.client_secret_env,
            scope=auth.scope,
            tls=tls_of(destination),
        )
    return NoAuth()


def tls_of(destination: Destination) -> Tls:
    """Say whom to trust and who we are."""
    tls = destination.tls
    return Tls(ca=tls.ca_file, client_certificate=tls.client_cert, client_key=tls.client_key)


def client_of(destination: Destination) -> DicomWebClient:
    """Build the client of a destination."""
    version = destination.api_version
    return DicomWebClient(
        destination.url,
        auth=auth_of(destination),
        tls=tls_of(destination),
        api_version=None if version == "auto" else version,
        rate=destination.rate,
    )


# A post to a destination that is held to a rate takes so long on a line of its own at most: what goes at once, and
# whoever stops the daemon, waits for its end.
_POST_SECONDS = 15
# All that are out should have left after this long.
_POSTS_SECONDS = 60


def most_bytes_of(destination: Destination) -> int | None:
    """Say how large a post to it may be, where that is less than any other may be."""
    return None if destination.rate is None else destination.rate * _POST_SECONDS


def most_posts_of(destination: Destination, batch_bytes: int) -> int:
    """Say how many posts of such batches may be out at once: on a slow line, more of them would only take longer."""
    if destination.rate is None:
        return destination.max_posts
    most_bytes = min(batch_bytes, destination.rate * _POST_SECONDS)
    return min(destination.max_posts, destination.rate * _POSTS_SECONDS // most_bytes)


def profile_from(destination: Destination) -> ServerProfile | None:
    """Give the server's profile where the configuration names its kind; None: it is asked."""
    kind = destination.kind
    if kind == "auto":
        return None
    version = destination.api_version
    if version == "auto":
        version = 1 if destination.url.endswith("/v1") else 2
    return profile_of(ServerKind(kind), feed_version=version if kind == "azure" else None)


# An emptied study folder goes after this long: whoever fills it slowly is done by then.
_EMPTIED_AFTER = timedelta(days=1)


def policies_of(config: Config) -> tuple[InboxPolicy, ...]:
    """Build every inbox's policy, or raise InboxError where there is none: there would be nothing to watch."""
    if not config.inboxes:
        raise InboxError(
            "no folder is watched: name one under `inboxes` in the configuration (only `ingestd send` needs none)"
        )
    return tuple(policy_of(inbox) for inbox in config.inboxes)


def policy_of(inbox: Inbox) -> InboxPolicy:
    """Say how one inbox is watched."""
    return InboxPolicy(
        name=inbox.spool_name,
        path=inbox.path,
        take=Take(inbox.take),
        settle=inbox.settle,
        incomplete_after=inbox.incomplete_after,
        unfinished_after=inbox.incomplete_after,
        watch=Watch(inbox.watch),
        priority=inbox.priority,
        ignore=inbox.ignore,
        emptied_after=_EMPTIED_AFTER if inbox.emptied_folders == "remove" else None,
    )


def limits_of(config: Config) -> BatchLimits:
    """Say when a study is due and where its batch is cut."""
    batch = config.batch
    return BatchLimits(
        quiet_period=batch.quiet_period,
        max_wait=batch.max_wait,
        max_bytes=batch.max_bytes,
        max_instances=batch.max_instances,
    )


def backoff_of(config: Config) -> Backoff:
    return Backoff(base=config.retry.base, cap=config.retry.cap)


def longest_waits_of(config: Config) -> LongestWaits:
    """Say how far ahead a wait can lie; the quiet period goes by the limits."""
    usual, reconcile = LongestWaits(), config.reconcile
    return LongestWaits(
        backoff=max(usual.backoff, backoff_of(config).longest),
        check=max(usual.check, reconcile.grace, reconcile.absence_wait or timedelta(0), config.retry.cap),
    )


def reader_limits_of(config: Config) -> ReaderLimits:
    return ReaderLimits(address_space_bytes=config.reader.memory)


def rules_of(config: Config, destination: Destination, profile: ServerProfile) -> Rules:
    """Say what proves an arrival on this server."""
    reconcile = config.reconcile
    return Rules(
        profile=profile,
        verify=Verify(destination.verify or reconcile.verify),
        grace=reconcile.grace,
        absence_wait=reconcile.absence_wait,
        most_attempts=config.retry.max_attempts,
        reencode_refused=destination.implicit_vr == "fallback",
    )


_NOWHERE = Route(rule=None, text="no rule wants it", destinations=())


def routing_of(config: Config) -> Routing:
    """Say how a file's destinations are chosen, by its inbox, its path in that, and what was read of it."""
    rules = [section.rule for section in config.rules]
    names = {inbox.spool_name: inbox.name or "" for inbox in config.inboxes}
    destinations = tuple(config.destinations)

    # Not "to every destination": the ledger knows those, too, that the configuration has no more.
    everywhere = Route(rule=None, text="", destinations=destinations)

    def choose(inbox: str, relative_path: str, found: Inspection) -> Route:
        file = Routable(
            inbox=names.get(inbox, ""),
            folder=relative_path.rpartition("/")[0],
            modality=found.modality,
            station=found.station,
            institution=found.institution,
            department=found.department,
            source_ae=found.source_ae,
            sop_class=found.sop_class_uid,
            study_description=found.study_description,
        )
        return route(file, rules, destinations) or _NOWHERE

    return choose if rules else lambda *_: everywhere


def route_to(names: Sequence[str]) -> Route:
    """Say that a person chose where a file goes."""
    return Route(rule=None, text=f"{BY_PERSON} chose {', '.join(names)}", destinations=tuple(names))


def routing_to(names: Sequence[str]) -> Routing:
    """Have all files go where a person says."""
    chosen = route_to(names)
    return lambda *_: chosen


def file_meta_of(part: Part) -> bytes:
    """Make the preamble and File Meta for an instance whose file has none."""
    return file_meta_for(
        sop_class_uid=part.sop_class_uid,
        sop_uid=part.identity.sop_uid,
        transfer_syntax=part.content.transfer_syntax,
    )
