"""Files that hold other files, told by their first bytes: patients' images travel in them, and nothing unpacks them."""

from __future__ import annotations

_ISO_DESCRIPTOR_AT = 32_769  # ISO 9660 §6.2.1: behind the system area

# Where the magic stands, the magic, and what it is of.
_MAGICS = (
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"PK\x05\x06", "zip archive"),
    (0, b"PK\x07\x08", "zip archive"),
    (0, b"\x1f\x8b\x08", "gzip archive"),
    (0, b"BZh", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "rar archive"),
    (257, b"ustar", "tar archive"),
    (_ISO_DESCRIPTOR_AT, b"CD001", "disc image, an archive"),
)
# Office documents, books and programs are zip files as well; this is the first name in theirs.
_DOCUMENTS = (b"[Content_Types].xml", b"mimetype", b"_rels/", b"META-INF/")
_FIRST_NAME_AT = 30


def archive_kind(head: bytes) -> str:
    """Say which kind of archive begins like this, in words, or "" where none does."""
    for at, magic, kind in _MAGICS:
        if head.startswith(magic, at):
            return "" if head.startswith(_DOCUMENTS, _FIRST_NAME_AT) and kind == "zip archive" else kind
    return ""
