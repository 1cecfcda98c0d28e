"""YAML -> one frozen, typed ``Config``; every problem is reported at once, each naming its key and line.

Attribute names are the keys of the file (``config.example.yaml`` shows them all). Durations are ``timedelta``,
sizes are bytes, paths are absolute. ``auto`` is ``None`` where a duration stands. Nothing else in ingestd reads YAML.
"""

from .agreement import agreement_of, where_to
from .destination import (
    Auth,
    AzureAuthSettings,
    BasicAuthSettings,
    BearerAuthSettings,
    Destination,
    NoAuthSettings,
    OAuth2AuthSettings,
    TlsSection,
)
from .guarding import is_private_group, name_of_group, others_who_may_write
from .model import (
    BatchSection,
    Config,
    Inbox,
    LoggingSection,
    ReaderSection,
    ReconcileSection,
    RetrySection,
    SpoolSettings,
)
from .reading import ConfigError, find_file, load, parse
from .source import ConfigProblem
from .units import format_size, parse_duration, parse_size

__all__ = [
    "Auth",
    "AzureAuthSettings",
    "BasicAuthSettings",
    "BatchSection",
    "BearerAuthSettings",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "Destination",
    "Inbox",
    "LoggingSection",
    "NoAuthSettings",
    "OAuth2AuthSettings",
    "ReaderSection",
    "ReconcileSection",
    "RetrySection",
    "SpoolSettings",
    "TlsSection",
    "agreement_of",
    "find_file",
    "format_size",
    "is_private_group",
    "load",
    "name_of_group",
    "others_who_may_write",
    "parse",
    "parse_duration",
    "parse_size",
    "where_to",
]
