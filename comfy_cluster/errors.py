"""Every exception that ComfyUI Cluster raises on purpose, in one tree.

* `ClusterError`
    * `ConfigError`: a setting is missing, malformed or contradicts another one
    * `DiscoveryError`: the other instances cannot be found
        * `RegistrationRefused`: the registry answered, and said no
        * `RegistryUnavailable`: the registry did not answer
    * `ProtocolError`
        * `LocalProtocolError`: this instance used the protocol wrongly
        * `RemoteProtocolError`: a peer sent something that breaks the protocol
    * `TransferError`: a payload or message did not reach its peer
        * `TransferTimeout`: the time allowed for it is over
        * `TransferCancelled`: this instance, or the peer, gave it up
        * `PeerLost`: the peer is silent, restarted, or gone
    * `CodecError`
        * `UnsupportedTensor`: this value cannot be encoded
        * `CorruptPayload`: these bytes are not a valid payload
    * `WorkflowError`: a workflow cannot run on the cluster as it is

Packets from the network are never a reason for an exception: they are counted and dropped.
Exceptions outside of this tree are bugs.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Root of the tree: `except ClusterError` catches all that is not a bug."""


class ConfigError(ClusterError):
    """A setting is missing, malformed, or contradicts another one."""

    def __init__(self, message: str, *, variable: str = "", value: str | None = None) -> None:
        super().__init__(message)
        self.variable = variable
        self.value = value


class DiscoveryError(ClusterError):
    """The other instances cannot be found."""


class RegistrationRefused(DiscoveryError):
    """The registry answered and refused this instance."""


class RegistryUnavailable(DiscoveryError):
    """The registry did not answer."""


class ProtocolError(ClusterError):
    """The protocol was broken, by this side or by the other one."""


class LocalProtocolError(ProtocolError):
    """This instance used the protocol wrongly."""


class RemoteProtocolError(ProtocolError):
    """A peer sent something that breaks the protocol."""


class TransferError(ClusterError):
    """A payload or message did not reach its peer; `peer` is that peer's instance index."""

    def __init__(self, message: str, *, peer: int | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class TransferTimeout(TransferError):
    """The time that was allowed for a message or payload is over."""


class TransferCancelled(TransferError):
    """A transfer was given up, here or at the peer."""


class PeerLost(TransferError):
    """The peer is silent, was restarted, or is gone."""


class CodecError(ClusterError):
    """A tensor and its bytes could not be turned into each other."""


class UnsupportedTensor(CodecError):
    """This value cannot be encoded."""


class CorruptPayload(CodecError):
    """These bytes are not a valid payload."""


class WorkflowError(ClusterError):
    """A workflow cannot run on the cluster as it is."""
