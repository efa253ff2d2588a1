#!/usr/bin/python3
"""The cloud's small doors beside the broker: a connectivity check page, and an old broker.

Runs in the lab's cloud namespace only. Port 80 answers every GET with 204 (what NetworkManager's
connectivity check may ask). Port 8886 is TLS in front of the same broker for clients that speak MQTT
3.1.1: an MQTT 5 CONNECT is refused as a broker of that age does, with return code 1 (unacceptable
protocol version), everything else passes to the plain port untouched.
"""

import asyncio
import os
import ssl
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lab import plan  # noqa: E402


async def check(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


def protocol_level(connect):
    """The protocol level byte of a whole CONNECT packet's beginning: after "MQTT"."""
    at = connect.find(b"\x00\x04MQTT")
    return connect[at + 6] if at >= 0 and len(connect) > at + 6 else 0


async def old_broker(reader, writer):
    try:
        first = await reader.read(4096)
        if protocol_level(first) > 4:
            writer.write(b"\x20\x02\x00\x01")
            await writer.drain()
        else:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", plan.PLAIN)
            up_writer.write(first)
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
    except (ConnectionError, ssl.SSLError):
        pass
    writer.close()


async def pump(source, target):
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(f"{plan.PKI}/broker.pem", f"{plan.PKI}/broker.key")
    await asyncio.start_server(check, "0.0.0.0", plan.CHECK)
    server = await asyncio.start_server(old_broker, "0.0.0.0", plan.TLS_OLD, ssl=tls)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
