"""A checksum at the end of a small object, so that damage is noticed before the object is believed."""

import zlib

NUM_BYTES = 4


def with_checksum(content: bytes) -> bytes:
    """Return contents followed by their CRC-32.

    >>> without_checksum(with_checksum(b"abc")), without_checksum(b"abcdefg")
    (b'abc', None)
    """
    return content + zlib.crc32(content).to_bytes(NUM_BYTES, "little")


def without_checksum(content: bytes) -> bytes | None:
    """Return what ``with_checksum`` was given; None if the contents are damaged."""
    body = content[:-NUM_BYTES]
    return body if with_checksum(body) == content else None
