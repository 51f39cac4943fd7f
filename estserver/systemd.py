"""What systemd is told about a service of Type=notify; without systemd, nothing."""

import os
import socket


def tell(state: str) -> None:
    """Send one assignment such as READY=1 or STOPPING=1 (sd_notify(3)). Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An @ stands for the zero octet of the abstract namespace (unix(7)).
    path = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(path)
        channel.sendall(state.encode())
