"""From the configuration to the daemon: each setting goes where it is used, under the name it has there.

``workers_of`` starts what works beside the loop, ``stages_of`` joins the stages in the order in which they write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial

from ingestd.clocks import utc_now
from ingestd.config import Config, Inbox
from ingestd.daemon.admission import Admission
from ingestd.daemon.alarms import Alarms, KeyAlarm
from ingestd.daemon.feed_reading import FeedReading
from ingestd.daemon.going_back import GoingBack
from ingestd.daemon.inbox_reports import InboxReports
from ingestd.daemon.mover import Mover
from ingestd.daemon.orphans import Orphans
from ingestd.daemon.posting import Posting
from ingestd.daemon.reader_client import ReaderClient
from ingestd.daemon.retention import Retention
from ingestd.daemon.rework import Rework
from ingestd.daemon.server_copies import ServerCopies
from ingestd.daemon.server_questions import ServerQuestions
from ingestd.daemon.sources import Sources
from ingestd.daemon.spool_disk import SpoolDisk
from ingestd.daemon.stage import Ending, Gates, Stage
from ingestd.daemon.steps import Origin
from ingestd.daemon.takeover import Takeover
from ingestd.daemon.trust import Trust
from ingestd.daemon.verification import Verification
from ingestd.daemon.wallclock import WallClock
from ingestd.dicomweb import AzureAuth, BasicAuth, BearerAuth, DicomWebClient, NoAuth, OAuth2Auth, Tls
from ingestd.dicomweb.auth import Auth
from ingestd.inbox import InboxError, Inboxes, InboxPolicy, Spool, Take, Watch
from ingestd.instance.meta import file_meta_for
from ingestd.ledger import Ledger
from ingestd.lifecycle import Backoff, BatchLimits, LongestWaits, Part, ServerKind, ServerProfile
from ingestd.reader import ReaderLimits, ReaderPool, Readers
from ingestd.reconciler import Reconciler, Rules, Verify
from ingestd.sender import Sender, profile_of


def auth_of(config: Config) -> Auth:
    """Build the authentication that ``destination.auth`` describes."""
    auth = config.destination.auth
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
            tls=tls_of(config),
        )
    return NoAuth()


def tls_of(config: Config) -> Tls:
    """Say whom to trust and who we are."""
    tls = config.destination.tls
    return Tls(ca=tls.ca_file, client_certificate=tls.client_cert, client_key=tls.client_key)


def client_of(config: Config) -> DicomWebClient:
    """Build the client of the destination."""
    version = config.destination.api_version
    return DicomWebClient(
        config.destination.url,
        auth=auth_of(config),
        tls=tls_of(config),
        api_version=None if version == "auto" else version,
    )


def profile_from(config: Config) -> ServerProfile | None:
    """Give the server's profile where the configuration names its kind; None: it is asked."""
    kind = config.destination.kind
    if kind == "auto":
        return None
    version = config.destination.api_version
    if version == "auto":
        version = 1 if config.destination.url.endswith("/v1") else 2
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
        name=inbox.name,
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


def rules_of(config: Config, profile: ServerProfile) -> Rules:
    """Say what proves an arrival on this server."""
    reconcile = config.reconcile
    return Rules(
        profile=profile,
        verify=Verify(reconcile.verify),
        grace=reconcile.grace,
        absence_wait=reconcile.absence_wait,
        most_attempts=config.retry.max_attempts,
        reencode_refused=config.destination.implicit_vr == "fallback",
    )


def file_meta_of(part: Part) -> bytes:
    """Make the preamble and File Meta for an instance whose file has none."""
    return file_meta_for(
        sop_class_uid=part.sop_class_uid,
        sop_uid=part.identity.sop_uid,
        transfer_syntax=part.content.transfer_syntax,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonWorkers:
    """What works beside the loop: processes and threads that only wake it."""

    inboxes: Inboxes
    client: DicomWebClient
    readers: Readers
    sender: Sender
    reconciler: Reconciler
    mover: Mover[int]

    def are_healthy(self) -> bool:
        rooms = (self.readers, self.inboxes, self.mover, self.sender, self.reconciler)
        return all(room.is_healthy() for room in rooms)

    def close(self) -> None:
        """Let go of everything; safe at any moment, since every durable step came before the act it guards."""
        self.inboxes.close()
        self.mover.close(5.0)
        self.reconciler.close(timedelta(0))
        self.readers.close()
        self.client.close()


def workers_of(
    config: Config, *, inboxes: Inboxes, client: DicomWebClient, spool: Spool, wake: Callable[[], None]
) -> DaemonWorkers:
    """Start the workers."""
    return DaemonWorkers(
        inboxes=inboxes,
        client=client,
        readers=ReaderPool(processes=config.reader.processes, limits=reader_limits_of(config), wake=wake),
        sender=Sender(
            client,
            profile=profile_from(config),
            wake=wake,
            utc_now=utc_now,
            most_posts=config.destination.max_posts,
            reencode_refused=config.destination.implicit_vr == "fallback",
            file_meta=file_meta_of,
        ),
        reconciler=Reconciler(client, scratch=spool.scratch(), wake=wake, utc_now=utc_now),
        mover=Mover(spool, wake=wake),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Every stage of a daemon, in the order in which they write."""

    wall: WallClock
    reader_client: ReaderClient
    key: KeyAlarm
    disk: SpoolDisk
    orphans: Orphans
    admission: Admission
    rework: Rework
    server_questions: ServerQuestions
    feed_reading: FeedReading  # all else is judged by what the feed has shown
    server_copies: ServerCopies
    verification: Verification
    going_back: GoingBack
    retention: Retention
    sources: Sources
    reports: InboxReports
    takeover: Takeover
    posting: Posting  # a claim sees everything that this tick has settled
    alarms: Alarms

    @property
    def all(self) -> tuple[Stage, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def stages_of(
    config: Config,
    *,
    policies: tuple[InboxPolicy, ...],
    spool: Spool,
    ledger: Ledger,
    workers: DaemonWorkers,
    gates: Gates,
    ending: Ending,
) -> Stages:
    """Join the stages: what each needs goes into its constructor."""
    inboxes, mover, backoff = workers.inboxes, workers.mover, backoff_of(config)

    def tells_gone(place: str) -> bool:
        """Whether a file that is not found is gone, and not the folder or the spool that it lay in."""
        return inboxes.tells_gone(place) and spool.tells_gone(place)

    alarms = Alarms()
    wall = WallClock(ledger)
    reader_client = ReaderClient(workers.readers, alarms)
    disk = SpoolDisk(spool=spool, gates=gates, alarms=alarms, low_water=config.spool.low_water)
    posting = Posting(
        sender=workers.sender,
        ledger=ledger,
        limits=limits_of(config),
        backoff=backoff,
        most_attempts=config.retry.max_attempts,
        alarms=alarms,
        claims=gates.claims,
        ending=ending,
        tells_gone=tells_gone,
    )
    server_questions = ServerQuestions(
        reconciler=workers.reconciler,
        alarms=alarms,
        wall=wall,
        rules_of=partial(rules_of, config),
        profile=lambda: workers.sender.profile,
        longest_wait=backoff.cap,
    )
    feed_reading = FeedReading(
        questions=server_questions,
        ledger=ledger,
        alarms=alarms,
        ending=ending,
        removals=gates.removals,
        posts_written=lambda: posting.results_written,
        rows_are_left=lambda: verification.more_rows,
        interval=config.reconcile.interval,
        lag=config.reconcile.lag,
    )
    server_copies = ServerCopies(server_questions, ledger)
    verification = Verification(
        questions=server_questions,
        reader_client=reader_client,
        ledger=ledger,
        posting=posting,
        trust=Trust(
            ledger=ledger,
            alarms=alarms,
            removals=gates.removals,
            sample=config.reconcile.sample,
            grace=config.reconcile.grace,
        ),
        others_wait=lambda: not server_copies.is_idle,
        tells_gone=tells_gone,
        interval=config.reconcile.interval,
        backoff=backoff,
    )
    sources = Sources(ledger=ledger, inboxes=inboxes, mover=mover, policies=policies, alarms=alarms)
    admission = Admission(
        inboxes=inboxes,
        spool=spool,
        mover=mover,
        reader_client=reader_client,
        ledger=ledger,
        gate=gates.intake,
        on_copied=sources.hurry,
        fetch=server_copies.fetch,
        tells_gone=tells_gone,
    )
    going_back = GoingBack(
        ledger=ledger,
        alarms=alarms,
        removals=gates.removals,
        disk=disk,
        questions=server_questions,
        feed=feed_reading,
        retain=config.spool.retain,
    )
    return Stages(
        wall=wall,
        reader_client=reader_client,
        key=KeyAlarm(ledger, alarms),
        disk=disk,
        orphans=Orphans(
            ledger=ledger, spool=spool, inboxes=inboxes, admission=admission, disk=disk, gates=gates, alarms=alarms
        ),
        admission=admission,
        rework=Rework(
            ledger=ledger,
            desk=reader_client,
            spool=spool,
            admission=admission,
            gate=gates.rework,
            posting=posting,
            tells_gone=tells_gone,
        ),
        server_questions=server_questions,
        feed_reading=feed_reading,
        server_copies=server_copies,
        verification=verification,
        going_back=going_back,
        retention=Retention(
            ledger=ledger,
            spool=spool,
            desk=reader_client,
            adopt=lambda candidate: admission.adopt(candidate, Origin(adopted=True)),
            wall=wall,
            gate=gates.removals,
            disk=disk,
            retain=config.spool.retain,
            up_to=lambda: going_back.up_to,
        ),
        sources=sources,
        reports=InboxReports(inboxes=inboxes, policies=policies, alarms=alarms),
        takeover=Takeover(ledger),
        posting=posting,
        alarms=alarms,
    )
