"""What schemathesis cannot know of the document: loaded by it, by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from stun_server.schemas import HOST_ADDRESS

_NAMES = st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,10}){0,2}", fullmatch=True)
_IPV4 = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)
_IPV6 = st.ip_addresses(v=6, network="fd00::/8").map(str)

schemathesis.openapi.format(HOST_ADDRESS, _NAMES | _IPV4 | _IPV6)
