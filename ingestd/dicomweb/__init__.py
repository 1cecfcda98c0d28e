"""Our DICOMweb client: HTTP and PS3.18, streamed both ways, every answer read as it is.

Knows nothing of ledgers, spools or batches; usable on its own. Importing it costs requests and nothing heavier:
pydicom and azure-identity are imported by the calls that need them.
"""

from ingestd.dicomweb.auth import Auth, AzureAuth, BasicAuth, BearerAuth, NoAuth
from ingestd.dicomweb.change_feed import ChangeFeedEntry, ChangeFeedPage
from ingestd.dicomweb.client import DicomWebClient
from ingestd.dicomweb.deadlines import Timeouts
from ingestd.dicomweb.decoding import (
    DicomJson,
    json_of,
    keyword_of,
    tag_of,
    to_dataset,
    to_datasets,
    uid_of,
    value_of,
    values_of,
)
from ingestd.dicomweb.errors import (
    DicomWebError,
    FileChanged,
    MisconfiguredServer,
    NotAuthorized,
    NotFound,
    Refused,
    Throttled,
    TokenError,
    TooLarge,
    Unavailable,
    Unintelligible,
)
from ingestd.dicomweb.folders import batches
from ingestd.dicomweb.following import Follower
from ingestd.dicomweb.oauth import ConnectionInfo, OAuth2Auth
from ingestd.dicomweb.probing import Capabilities
from ingestd.dicomweb.retrieving import Metadata, Retrieval, Saved
from ingestd.dicomweb.searching import SearchPage, date_range
from ingestd.dicomweb.service import Operation, Partition, QueryTag, QueryTagEntry, QueryTagError
from ingestd.dicomweb.store_body import StorePart
from ingestd.dicomweb.store_result import Failed, Stored, StoreResult, failure_meaning, warning_meaning
from ingestd.dicomweb.transport import Tls

__all__ = [
    "Auth",
    "AzureAuth",
    "BasicAuth",
    "BearerAuth",
    "Capabilities",
    "ChangeFeedEntry",
    "ChangeFeedPage",
    "ConnectionInfo",
    "DicomJson",
    "DicomWebClient",
    "DicomWebError",
    "Failed",
    "FileChanged",
    "Follower",
    "Metadata",
    "MisconfiguredServer",
    "NoAuth",
    "NotAuthorized",
    "NotFound",
    "OAuth2Auth",
    "Operation",
    "Partition",
    "QueryTag",
    "QueryTagEntry",
    "QueryTagError",
    "Refused",
    "Retrieval",
    "Saved",
    "SearchPage",
    "StorePart",
    "StoreResult",
    "Stored",
    "Throttled",
    "Timeouts",
    "Tls",
    "TokenError",
    "TooLarge",
    "Unavailable",
    "Unintelligible",
    "batches",
    "date_range",
    "failure_meaning",
    "json_of",
    "keyword_of",
    "tag_of",
    "to_dataset",
    "to_datasets",
    "uid_of",
    "value_of",
    "values_of",
    "warning_meaning",
]
