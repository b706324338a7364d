"""Ports to the world: time, chance, the network and the disk thread, as Protocols, with their real forms.

Everything that a node does depends on these four and its inputs alone; the simulation gives it others, and the same seed gives the
same run.
"""

from dsdb.env.clock import Clock, SystemClock
from dsdb.env.disk import DiskThread, InlineDisk, Offload
from dsdb.env.network import Address, Network, NodeListener, NodeStream, TcpListener, TcpNetwork, TcpStream, parse_address
from dsdb.env.tls import TlsNetwork, TlsStream, UntrustedError

__all__ = [
    "Address",
    "Clock",
    "DiskThread",
    "InlineDisk",
    "Network",
    "NodeListener",
    "NodeStream",
    "Offload",
    "SystemClock",
    "TcpListener",
    "TcpNetwork",
    "TcpStream",
    "TlsNetwork",
    "TlsStream",
    "UntrustedError",
    "parse_address",
]
