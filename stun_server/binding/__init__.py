"""STUN's Binding (RFC 8489): from which address and port does the world see a UDP socket?

`messages.py` is the codec, pure, used by the server and by the instances that ask it.
`responder.py` answers on UDP. Nothing in this folder knows of HTTP or of the registry.
"""
