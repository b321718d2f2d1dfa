"""The control socket: how tools and apps speak with a controller. The front of what lies beside it.

    control_wire.py    the messages, as bytes and descriptors        control_server.py  the controller's end
    control_peer.py    who calls, what he may do and have            control_client.py  the other end
"""

from .control_client import Client
from .control_peer import Peer, Quota
from .control_server import Answer, Later, Server, Verb

__all__ = ["Answer", "Client", "Later", "Peer", "Quota", "Server", "Verb"]
