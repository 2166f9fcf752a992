"""Signed STUN messages (RFC 8489, sections 9 and 14.5 to 14.6): keys, and whether a key fits.

Binding needs none of it, and the responder asks for none (section 12). Pure, like `messages.py`.
"""

from __future__ import annotations

import hashlib
import hmac

from stun_server.binding.messages import HEADER_SIZE, Attribute, AttributeType, Message

_DIGESTS = {
    AttributeType.MESSAGE_INTEGRITY: "sha1",
    AttributeType.MESSAGE_INTEGRITY_SHA256: "sha256",
}


def short_term_key(password: str) -> bytes:
    """The key of short-term credentials (RFC 8489, section 9.1.1).

    The password is used as it is: who needs OpaqueString of RFC 8265 prepares it before.
    """
    return password.encode()


def long_term_key(username: str, realm: str, *, password: str) -> bytes:
    """The key of long-term credentials, made with MD5 (RFC 8489, section 9.2.2): 16 bytes.

    The three texts are used as they are: who needs OpaqueString of RFC 8265 prepares them before.
    """
    text = f"{username}:{realm}:{password}".encode()
    return hashlib.md5(text, usedforsecurity=False).digest()  # the RFC's choice, not ours


def has_valid_integrity(message: Message, key: bytes) -> bool:
    """Whether the message is signed with `key`, checked in constant time (sections 14.5, 14.6).

    Each of MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256 that is there must be right. False if
    there is none: a message without a signature is not a signed one.
    """
    results = [
        _is_right(message, each, key, digest)
        for number, digest in _DIGESTS.items()
        if (each := message.first(number)) is not None
    ]
    return bool(results) and all(results)


def _is_right(message: Message, attribute: Attribute, key: bytes, digest: str) -> bool:
    """All before the attribute is signed, with a size in the header that ends behind it."""
    size = attribute.offset + 4 + len(attribute.value) - HEADER_SIZE
    signed = message.data[:2] + size.to_bytes(2, "big") + message.data[4 : attribute.offset]
    expected = hmac.digest(key, signed, digest)[: len(attribute.value)]
    return hmac.compare_digest(expected, attribute.value)
