"""Our DICOMweb client: HTTP and PS3.18, streamed both ways, every answer read as it is.

Knows nothing of ledgers, spools or batches; usable on its own. Importing it costs requests and nothing heavier:
pydicom and azure-identity are imported by the calls that need them.
"""

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

__all__ = [
    "DicomWebError",
    "FileChanged",
    "MisconfiguredServer",
    "NotAuthorized",
    "NotFound",
    "Refused",
    "Throttled",
    "TokenError",
    "TooLarge",
    "Unavailable",
    "Unintelligible",
]
