"""The rendezvous server: an HTTP registry where the instances of a cluster find each other.

The registry is no STUN server; the name is the product's. Beside it, `binding/` answers the STUN
Binding requests of RFC 8489, so that instances behind a NAT learn their outer address. Imports
nothing of `comfy_cluster`: it can be installed and run alone. Importing this package loads nothing.
"""
