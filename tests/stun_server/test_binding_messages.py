"""STUN's codec against RFC 5769, a second encoder, and bytes that mean harm."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stun_server.binding.integrity import has_valid_integrity, long_term_key, short_term_key
from stun_server.binding.messages import (
    BAD_REQUEST,
    LARGEST_MESSAGE,
    MOST_ATTRIBUTES,
    UNKNOWN_ATTRIBUTE,
    Address,
    AttributeType,
    MalformedMessage,
    MessageClass,
    encode_binding_error,
    encode_binding_request,
    encode_binding_success,
    is_stun_packet,
    parse_message,
)
from tests.stun_server.stun_encoder import (
    ERROR,
    ID,
    INDICATION,
    REQUEST,
    SUCCESS,
    attribute,
    message,
    signed,
    with_fingerprint,
)

# RFC 5769, sections 2.1 to 2.4.
RFC_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
SAMPLE_REQUEST = bytes.fromhex(
    "00010058 2112a442 b7e7a701bc34d686fa87dfae"
    "80220010 5354554e207465737420636c69656e74"
    "00240004 6e0001ff"
    "80290008 932ff9b151263b36"
    "00060009 6576746a3a68367659 202020"
    "00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004 e57a3bcf"
)
SAMPLE_IPV4_RESPONSE = bytes.fromhex(
    "0101003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200008 0001a147e112a643"
    "00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004 c07d4c96"
)
SAMPLE_IPV6_RESPONSE = bytes.fromhex(
    "01010048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f72 20"
    "00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004 c8fb0b4c"
)
SAMPLE_LONG_TERM_REQUEST = bytes.fromhex(
    "00010060 2112a442 78ad3433c6ad72c029da412e"
    "00060012 e3839ee38388e383aae38383e382afe382b9 0000"
    "0015001c 662f2f3439396b39353464364f4c33346f4c39465354767936347341"
    "0014000b 6578616d706c652e6f7267 00"
    "00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666"
)
SHORT_TERM_KEY = short_term_key("VOkJxbRl1RmTxUk/WvJxBt")
LONG_TERM_KEY = long_term_key("マトリックス", "example.org", password="TheMatrIX")
RFC_ADDRESS_4 = ("192.0.2.1", 32853)
RFC_ADDRESS_6 = ("2001:db8:1234:5678:11:2233:4455:6677", 32853)

# RFC 8489, appendix B.1, with erratum 6268: what RFC 5769 has no sample of.
SAMPLE_SHA256_REQUEST = bytes.fromhex(
    "00010090 2112a442 78ad3433c6ad72c029da412e"
    "001e0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"
    "00150029 6f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c39465354767936347341"
    "000000"
    "0014000b 6578616d706c652e6f7267 00"
    "001d0004 00020000"
    "001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65"
)
SHA256_KEY = hashlib.sha256("マトリックス:example.org:TheMatrIX".encode()).digest()

SAMPLES = [
    pytest.param(SAMPLE_REQUEST, SHORT_TERM_KEY, id="request"),
    pytest.param(SAMPLE_IPV4_RESPONSE, SHORT_TERM_KEY, id="ipv4 response"),
    pytest.param(SAMPLE_IPV6_RESPONSE, SHORT_TERM_KEY, id="ipv6 response"),
    pytest.param(SAMPLE_LONG_TERM_REQUEST, LONG_TERM_KEY, id="long-term request"),
    pytest.param(SAMPLE_SHA256_REQUEST, SHA256_KEY, id="sha256 request"),
]


def refusal(data: bytes) -> str:
    with pytest.raises(MalformedMessage) as caught:
        parse_message(data)
    return str(caught.value)


# RFC 5769


@pytest.mark.parametrize(("sample", "key"), SAMPLES)
def test_samples_are_signed_with_their_keys_only(sample: bytes, key: bytes) -> None:
    parsed = parse_message(sample)
    assert is_stun_packet(sample)
    assert has_valid_integrity(parsed, key)
    assert not has_valid_integrity(parsed, key + b"x")
    assert parsed.data == sample


@pytest.mark.parametrize(("sample", "key"), SAMPLES)
def test_no_signed_bit_of_a_sample_can_change_unnoticed(sample: bytes, key: bytes) -> None:
    fingerprint = parse_message(sample).first(AttributeType.FINGERPRINT)
    end = len(sample) if fingerprint is None else fingerprint.offset
    for position, bit in itertools.product(range(end), range(8)):
        changed = bytearray(sample)
        changed[position] ^= 1 << bit
        try:
            parsed = parse_message(changed)
        except MalformedMessage:
            continue
        assert not has_valid_integrity(parsed, key), (position, bit)


def test_sample_request_has_what_the_rfc_lists() -> None:
    parsed = parse_message(SAMPLE_REQUEST)
    assert parsed.is_binding_request and not parsed.is_binding_response
    assert parsed.transaction_id == RFC_ID
    assert parsed.software == "STUN test client"
    username = parsed.first(AttributeType.USERNAME)
    assert username is not None and username.value == b"evtj:h6vY"
    assert parsed.unknown_attributes == (0x0024,)  # PRIORITY, of ICE; ICE-CONTROLLED is optional


@pytest.mark.parametrize(
    ("sample", "address"),
    [(SAMPLE_IPV4_RESPONSE, RFC_ADDRESS_4), (SAMPLE_IPV6_RESPONSE, RFC_ADDRESS_6)],
)
def test_sample_responses_tell_the_address(sample: bytes, address: Address) -> None:
    parsed = parse_message(sample)
    assert parsed.is_response_to(RFC_ID) and not parsed.is_response_to(ID)
    assert parsed.xor_mapped_address == parsed.reflexive_address == address
    assert parsed.software == "test vector"
    own = encode_binding_success(RFC_ID, address)
    assert own[20:] in sample  # XOR-MAPPED-ADDRESS, byte for byte


def test_long_term_sample_request_has_what_the_rfc_lists() -> None:
    parsed = parse_message(SAMPLE_LONG_TERM_REQUEST)
    values = [
        (AttributeType(each.type).name, each.value.decode()) for each in parsed.attributes[:3]
    ]
    assert values == [
        ("USERNAME", "マトリックス"),
        ("NONCE", "f//499k954d6OL34oL9FSTvy64sA"),
        ("REALM", "example.org"),
    ]
    assert parsed.unknown_attributes == ()


# Our encoder against the tests' own


def test_requests_are_the_bytes_of_the_rfc() -> None:
    assert encode_binding_request(ID) == message(REQUEST)
    assert encode_binding_request(ID, software="abcde", fingerprint=True) == with_fingerprint(
        message(REQUEST, attribute(0x8022, b"abcde"))
    )


def test_success_responses_are_the_bytes_of_the_rfc() -> None:
    port = struct.pack(">H", 4711 ^ 0x2112)
    ipv4 = bytes(a ^ b for a, b in zip((198, 51, 100, 7), b"\x21\x12\xa4\x42", strict=True))
    expected = message(SUCCESS, attribute(0x0020, b"\0\x01" + port + ipv4))
    assert encode_binding_success(ID, ("198.51.100.7", 4711)) == expected
    mask = b"\x21\x12\xa4\x42" + ID
    packed = ipaddress.IPv6Address("2001:db8::9").packed
    ipv6 = bytes(a ^ b for a, b in zip(packed, mask, strict=True))
    expected = message(SUCCESS, attribute(0x0020, b"\0\x02" + port + ipv6), attribute(0x8022, b"s"))
    own = encode_binding_success(ID, ("2001:db8::9", 4711), software="s", fingerprint=True)
    assert own == with_fingerprint(expected)


def test_error_responses_are_the_bytes_of_the_rfc() -> None:
    assert encode_binding_error(ID, BAD_REQUEST) == message(
        ERROR, attribute(0x0009, b"\0\0\x04\0Bad Request")
    )
    own = encode_binding_error(ID, UNKNOWN_ATTRIBUTE, unknown_attributes=(0x0024, 3, 0x7FFF))
    assert own == message(
        ERROR,
        attribute(0x0009, b"\0\0\x04\x14Unknown Attribute"),
        attribute(0x000A, b"\0\x24\0\x03\x7f\xff"),
    )


@pytest.mark.parametrize("address", ["::ffff:192.0.2.1", "192.0.2.1"])
def test_an_ipv4_address_on_an_ipv6_socket_is_ipv4(address: str) -> None:
    parsed = parse_message(encode_binding_success(ID, (address, 32853)))
    assert parsed.reflexive_address == RFC_ADDRESS_4


def test_scope_of_a_link_local_address_stays_here() -> None:
    parsed = parse_message(encode_binding_success(ID, ("fe80::1%eth0", 9)))
    assert parsed.reflexive_address == ("fe80::1", 9)


def test_what_cannot_be_a_message_is_not_encoded() -> None:
    address = ("192.0.2.1", 9)
    for wrong in (b"", ID[:-1], ID + b"x"):
        with pytest.raises(ValueError, match="expected 12"):
            encode_binding_request(wrong)
        with pytest.raises(ValueError, match="expected 12"):
            encode_binding_success(wrong, address)
    for wrong_address in (("192.0.2.1", 0), ("192.0.2.1", 65536), ("localhost", 9), ("", 9)):
        with pytest.raises(ValueError):
            encode_binding_success(ID, wrong_address)
    with pytest.raises(ValueError, match="at most 127"):
        encode_binding_request(ID, software="x" * 128)
    for code in (-1, 299, 700):
        with pytest.raises(ValueError, match="300 to 699"):
            encode_binding_error(ID, code)
    for types in ((-1,), (0x10000,), range(MOST_ATTRIBUTES + 1)):
        with pytest.raises(ValueError, match="expected at most 64"):
            encode_binding_error(ID, UNKNOWN_ATTRIBUTE, unknown_attributes=types)


# Round trips

ids = st.binary(min_size=12, max_size=12)
texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=127)
ports = st.integers(1, 0xFFFF)


@given(ids, texts, st.booleans())
def test_requests_survive(transaction_id: bytes, software: str | None, fingerprint: bool) -> None:
    data = encode_binding_request(transaction_id, software=software, fingerprint=fingerprint)
    parsed = parse_message(data)
    assert parsed.is_binding_request
    assert (parsed.transaction_id, parsed.software) == (transaction_id, software)
    assert (parsed.first(AttributeType.FINGERPRINT) is not None) == fingerprint
    assert parsed.unknown_attributes == ()


@given(ids, st.ip_addresses(), ports, texts, st.booleans())
def test_addresses_survive(
    transaction_id: bytes,
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    software: str | None,
    fingerprint: bool,
) -> None:
    data = encode_binding_success(
        transaction_id, (str(ip), port), software=software, fingerprint=fingerprint
    )
    parsed = parse_message(data)
    assert parsed.is_response_to(transaction_id)
    assert not parsed.is_binding_request
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    assert parsed.reflexive_address == (str(mapped or ip), port)
    assert parsed.software == software


@given(ids, st.integers(300, 699), texts, st.lists(st.integers(0, 0xFFFF), max_size=64))
def test_errors_survive(
    transaction_id: bytes, code: int, reason: str | None, types: list[int]
) -> None:
    data = encode_binding_error(transaction_id, code, unknown_attributes=types, reason=reason)
    parsed = parse_message(data)
    assert parsed.message_class is MessageClass.ERROR
    assert parsed.is_response_to(transaction_id)
    assert parsed.error_code == code
    assert reason is None or parsed.reason == reason
    assert parsed.rejected_attributes == tuple(types)
    assert parsed.reflexive_address is None


@given(st.integers(0, 0x3FFF), ids)
def test_class_and_method_are_taken_apart(number: int, transaction_id: bytes) -> None:
    error = attribute(0x0009, b"\0\0\4\0")  # an error response of Binding must have it
    parsed = parse_message(message(number, error, transaction_id=transaction_id))
    method, class_bits = 0, 0
    for bit in range(14):  # RFC 8489, figure 3: M11 to M7, C1, M6 to M4, C0, M3 to M0
        value = number >> bit & 1
        if bit in (4, 8):
            class_bits |= value << (bit == 8)
        else:
            method |= value << (bit - (bit > 4) - (bit > 8))
    assert (parsed.message_class.value, parsed.method) == (class_bits, method)
    assert parsed.is_binding_request == (number == REQUEST)
    assert parsed.is_binding_response == (number in (SUCCESS, ERROR))


# What counts in a message


def test_mapped_address_is_read_where_there_is_no_other() -> None:
    mapped = attribute(0x0001, b"\xff\x01" + struct.pack(">H", 7) + bytes((192, 0, 2, 9)))
    parsed = parse_message(message(SUCCESS, mapped))
    assert parsed.mapped_address == parsed.reflexive_address == ("192.0.2.9", 7)
    assert parsed.xor_mapped_address is None
    xored = encode_binding_success(ID, RFC_ADDRESS_6)[20:]
    parsed = parse_message(message(SUCCESS, mapped, xored))
    assert parsed.reflexive_address == RFC_ADDRESS_6
    assert parsed.mapped_address == ("192.0.2.9", 7)


def test_the_first_of_two_equal_attributes_counts() -> None:
    first, second = (encode_binding_success(ID, ("192.0.2.1", port))[20:] for port in (1, 2))
    assert parse_message(message(SUCCESS, first, second)).reflexive_address == ("192.0.2.1", 1)


def test_addresses_in_a_request_mean_nothing() -> None:
    parsed = parse_message(message(REQUEST, attribute(0x0020, b"nonsense!")))
    assert parsed.reflexive_address is None
    assert parsed.unknown_attributes == ()


def test_unknown_attributes_are_those_that_must_be_understood() -> None:
    numbers = (0x0003, 0x7FFF, 0x8000, 0xC001, 0x0003, 0x0000, 0x0006)
    parsed = parse_message(message(REQUEST, *(attribute(each, b"12345") for each in numbers)))
    assert parsed.unknown_attributes == (0x0003, 0x7FFF, 0x0000)


def test_padding_may_be_anything() -> None:
    data = message(REQUEST, attribute(0x8022, b"abcde", fill=b"\xff"))
    assert parse_message(data).software == "abcde"


def test_what_follows_the_signature_does_not_count() -> None:
    key = b"key"
    data = signed(message(SUCCESS), key)
    xored = encode_binding_success(ID, RFC_ADDRESS_4)[20:]
    longer = message(SUCCESS, data[20:], xored)
    parsed = parse_message(longer)
    assert has_valid_integrity(parsed, key)
    assert parsed.reflexive_address is None
    parsed = parse_message(with_fingerprint(longer))
    assert [each.type for each in parsed.attributes] == [0x0008, 0x8028]


@pytest.mark.parametrize("size", [16, 20, 24, 28, 32])
def test_both_signatures_must_be_right(size: int) -> None:
    key = b"key"
    data = signed(signed(message(REQUEST), key), key, digest="sha256", size=size)
    assert has_valid_integrity(parse_message(data), key)
    assert has_valid_integrity(parse_message(with_fingerprint(data)), key)
    for position in (24, len(data) - 1):  # one byte of each signature
        changed = bytearray(data)
        changed[position] ^= 1
        assert not has_valid_integrity(parse_message(changed), key)
    assert not has_valid_integrity(parse_message(message(REQUEST)), key)


# Harm


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(REQUEST)[:19],
        b"\x80" + message(REQUEST)[1:],  # RTP
        b"\x40" + message(REQUEST)[1:],  # TURN's channels
        message(REQUEST)[:7] + b"\x43" + message(REQUEST)[8:],  # another cookie, as RFC 3489's
        message(REQUEST)[:3] + b"\x02" + message(REQUEST)[4:],
        b"\xff" * 100,
    ],
)
def test_other_packets_are_not_stun(data: bytes) -> None:
    assert not is_stun_packet(data)
    assert "no STUN header" in refusal(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (message(REQUEST) + b"\0\0\0\0", "24 bytes, but 20 by its header"),
        (message(REQUEST)[:3] + b"\x04" + message(REQUEST)[4:], "20 bytes, but 24"),
        (message(REQUEST, attribute(0x8022, b"abc", size=5)), "0x8022 ends behind"),
        (message(REQUEST, attribute(0x0006, b"", size=0xFFFF)), "0x0006 ends behind"),
        (message(REQUEST, *[attribute(0x8000, b"")] * 65), "more than 64 attributes"),
        (message(REQUEST, attribute(0x8000, bytes(1212))), "1236 bytes: more than 1232"),
        (message(REQUEST, attribute(0x8028, b"1234")), "wrong FINGERPRINT"),
        (message(REQUEST, attribute(0x8028, b"")), "wrong FINGERPRINT"),
        (message(REQUEST, with_fingerprint(message(REQUEST))[20:] * 2), "not the last"),
        (message(REQUEST, attribute(0x0008, bytes(24))), "MESSAGE_INTEGRITY of 24 bytes"),
        (message(REQUEST, attribute(0x001C, bytes(12))), "MESSAGE_INTEGRITY_SHA256 of 12"),
        (message(REQUEST, attribute(0x001C, bytes(17))), "MESSAGE_INTEGRITY_SHA256 of 17"),
        (message(SUCCESS, attribute(0x0020, b"")), "XOR_MAPPED_ADDRESS: neither"),
        (message(SUCCESS, attribute(0x0020, b"\0\3\0\1abcd")), "neither"),
        (message(SUCCESS, attribute(0x0020, b"\0\2\0\1abcd")), "neither"),
        (message(SUCCESS, attribute(0x0020, b"\0\1" + bytes(18))), "neither"),
        (message(SUCCESS, attribute(0x0001, b"\0\1\0\0abcd")), "MAPPED_ADDRESS: port 0"),
        (message(SUCCESS, attribute(0x0020, b"\0\1\x21\x12abcd")), "port 0"),
        (message(ERROR), "without ERROR-CODE"),
        (message(ERROR, attribute(0x0009, b"\0\0\4")), "300 to 699"),
        (message(ERROR, attribute(0x0009, b"\0\0\7\0")), "300 to 699"),
        (message(ERROR, attribute(0x0009, b"\0\0\4\x64")), "300 to 699"),
        (
            message(ERROR, attribute(0x0009, b"\0\0\4\0"), attribute(0x000A, b"123")),
            "pairs of bytes",
        ),
    ],
)
def test_malformed_messages_are_refused(data: bytes, text: str) -> None:
    assert text in refusal(data)


def test_limits_can_be_reached() -> None:
    assert len(parse_message(message(REQUEST, *[attribute(0x8000, b"")] * 64)).attributes) == 64
    data = message(REQUEST, attribute(0x8000, bytes(LARGEST_MESSAGE - 24)))
    assert len(parse_message(data).data) == LARGEST_MESSAGE


@pytest.mark.parametrize(("sample", "_"), SAMPLES)
def test_no_truncated_message_is_read(sample: bytes, _: bytes) -> None:
    for size in range(len(sample)):
        refusal(sample[:size])
        if size < 20:
            continue
        header_fits = sample[:2] + struct.pack(">H", size - 20) + sample[4:size]
        try:
            parsed = parse_message(header_fits)
        except MalformedMessage:
            continue
        assert size % 4 == 0
        assert parsed.first(AttributeType.FINGERPRINT) is None


def test_reason_of_a_stranger_is_short_and_readable() -> None:
    error = attribute(0x0009, b"\xff\xff\xfc\x14" + b"\xff" * 500)  # reserved bits are ignored
    parsed = parse_message(message(ERROR, error))
    assert parsed.error_code == 420
    assert len(parsed.reason) == 127


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_bytes_is_read(kind: type) -> None:
    assert is_stun_packet(kind(SAMPLE_REQUEST))
    assert parse_message(kind(SAMPLE_REQUEST)) == parse_message(SAMPLE_REQUEST)


attributes = st.builds(
    attribute,
    st.sampled_from([*map(int, AttributeType), 0x0003, 0x8000]) | st.integers(0, 0xFFFF),
    st.binary(max_size=40),
    size=st.none() | st.integers(0, 60),
)
hostile = st.builds(
    lambda number, parts, tail: message(number, *parts) + tail,
    st.sampled_from([REQUEST, INDICATION, SUCCESS, ERROR]) | st.integers(0, 0x3FFF),
    st.lists(attributes, max_size=6),
    st.just(b"") | st.binary(max_size=9),
)


@given(st.binary(max_size=200) | hostile)
def test_bytes_cause_no_other_exception(data: bytes) -> None:
    for packet in (data, with_fingerprint(data) if len(data) >= 20 else data):
        try:
            parsed = parse_message(packet)
        except MalformedMessage as error:
            assert len(str(error)) < 200
            continue
        assert is_stun_packet(packet)
        assert not has_valid_integrity(parsed, b"another's key")
        assert all(0 <= each <= 0x7FFF for each in parsed.unknown_attributes)
        assert parsed.error_code is None or 300 <= parsed.error_code <= 699
        if parsed.reflexive_address is not None:
            ipaddress.ip_address(parsed.reflexive_address[0])
            assert 0 < parsed.reflexive_address[1] <= 0xFFFF
