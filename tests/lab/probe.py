#!/usr/bin/python3
"""One TLS connection to the lab's broker, bound to a device: does the cloud answer through it?

    probe.py DEVICE [SECONDS]     prints the milliseconds it took, or what went wrong (exit status 1)

Asks no name server; runs in the gateway's namespace.
"""

import os
import socket
import ssl
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lab import plan  # noqa: E402


def main(device, seconds="2"):
    began = time.monotonic()
    trust = ssl.create_default_context(cafile=f"{plan.PKI}/ca.pem")
    try:
        with socket.socket() as raw:
            raw.settimeout(float(seconds))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            raw.connect((plan.CLOUD_ADDRESS, plan.TLS))
            trust.wrap_socket(raw, server_hostname=plan.BROKER).close()
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(round((time.monotonic() - began) * 1000))


if __name__ == "__main__":
    main(*sys.argv[1:])
