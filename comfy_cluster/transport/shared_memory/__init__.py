"""Payloads between processes of one machine and one user: one copy into a segment, mapped there.

How it works. An instance listens on an abstract Unix socket named after its boot id. When two peers
are connected over UDP, the one with the higher index connects to the other's socket; both see by
SO_PEERCRED that the other is of the same user, and prove with what only these two peers know that
they are these two (`proof.py`, `rendezvous.py`). From then on they have a link (`link.py`), which
carries small records (`records.py`) and the descriptors of segments; UDP goes on to carry all
messages. Abstract names belong to a network namespace: containers that share nothing do not find
each other, and stay with UDP.

The sender copies a payload once into a segment, a sealed memfd (`segments.py`, `outgoing.py`), for
however many peers. A receiver maps it privately, and the tensor is that mapping: what it writes
there is its own copy of a page. When the last tensor is gone the receiver says so, and only then
the sender uses the segment again (`incoming.py`, `mappings.py`): first touch of fresh pages costs
several times what the copy costs. All memory is anonymous: what a killed process leaves, the kernel
takes back.

Linux only (`availability.py`). `carrier.py` puts it together; used by `transport/`.
"""
