#!/usr/bin/python3
"""A small MQTT 3.1.1 client of the lab's own: a numbered publisher and a recorder.

    client.py publish   --port 1883 --rate 20 --topic load/data --out FILE   until SIGTERM
    client.py publish   --port 1883 --rate 0  --topic load/data --out FILE   one message for each SIGUSR1
    client.py subscribe --port 1883 --topic '#' --out FILE                   until SIGTERM

Independent of the daemon on purpose: no line is shared with it. The publisher offers message n at its
time whatever the network does, keeps the session (clean session off) and on a new connection sends
again, marked DUP, what was not acknowledged. Both write one JSON object a line, with wall time: the
publisher {"n", "offered"}, {"n", "acked"}; the recorder {"topic", "payload", "at", "dup", "retain"},
{"subscribed"}. After SIGTERM the publisher offers nothing new and waits --settle seconds for what is
still unacknowledged. It talks to 127.0.0.1 in the namespace it was started in, and to nothing else.
"""

import argparse
import asyncio
import json
import signal
import time

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9


def text(value):
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def packet(first, body):
    length, size = b"", len(body)
    while True:
        size, low = size >> 7, size & 127
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([first]) + length + body


async def read_packet(reader):
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return first, await reader.readexactly(length)


class Client:
    """One session that is connected again for ever; subclasses say what it is for."""

    def __init__(self, options):
        self.options = options
        self.out = open(options.out, "a", buffering=1)
        self.writer = None
        self.ending = asyncio.Event()

    def note(self, **fields):
        self.out.write(json.dumps(fields) + "\n")

    async def serve(self):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.options.port)
                clean_session_off, keep_alive_off = b"\x00", b"\x00\x00"
                writer.write(packet(0x10, text("MQTT") + b"\x04" + clean_session_off + keep_alive_off
                                    + text(self.options.id)))
                first, body = await read_packet(reader)
                if first >> 4 != CONNACK or body[1] != 0:
                    raise ConnectionError(f"CONNECT was answered with {first:#x} {body.hex()}")
                self.note(connected=time.time())
                self.connected(writer)
                while True:
                    self.received(*await read_packet(reader))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.note(disconnected=time.time(), error=repr(error))
                self.writer = None
            await asyncio.sleep(0.02)


class Publisher(Client):
    def __init__(self, options):
        super().__init__(options)
        self.pending = {}
        self.number = 0
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.offer)

    def connected(self, writer):
        self.writer = writer
        for number in sorted(self.pending):
            self.send(number, again=True)

    def send(self, number, again=False):
        body = text(self.options.topic) + (number % 65535 + 1).to_bytes(2, "big") + self.pending[number]
        self.writer.write(packet(0x3A if again else 0x32, body))

    def received(self, first, body):
        if first >> 4 == PUBACK:
            identifier = int.from_bytes(body[:2], "big")
            for number in self.pending:
                if number % 65535 + 1 == identifier:
                    del self.pending[number]
                    self.note(n=number, acked=time.time())
                    break

    def offer(self):
        self.number += 1
        now = time.time()
        payload = f"{self.number} {now:.6f} ".encode()
        self.pending[self.number] = payload.ljust(self.options.size, b".")
        self.note(n=self.number, offered=now)
        if self.writer:
            self.send(self.number)

    async def work(self):
        serving = asyncio.create_task(self.serve())
        ending = asyncio.create_task(self.ending.wait())
        begin = time.monotonic()
        while not ending.done():
            if self.options.rate:
                self.offer()
            until = begin + self.number / self.options.rate - time.monotonic() if self.options.rate else 3600
            await asyncio.wait([ending], timeout=max(0, until))
        end = time.monotonic() + self.options.settle
        while self.pending and time.monotonic() < end:
            await asyncio.sleep(0.05)
        serving.cancel()


class Recorder(Client):
    def connected(self, writer):
        self.writer = writer
        writer.write(packet(0x82, b"\x00\x01" + text(self.options.topic) + b"\x01"))

    def received(self, first, body):
        if first >> 4 == SUBACK:
            self.note(subscribed=time.time())
        elif first >> 4 == PUBLISH:
            at, qos = time.time(), first >> 1 & 3
            size = int.from_bytes(body[:2], "big")
            topic, rest = body[2:2 + size].decode(), body[2 + size:]
            if qos:
                self.writer.write(packet(0x40, rest[:2]))
                rest = rest[2:]
            self.note(topic=topic, payload=rest.decode(errors="replace").rstrip("."), at=at,
                      dup=bool(first & 8), retain=bool(first & 1))

    async def work(self):
        serving = asyncio.create_task(self.serve())
        await self.ending.wait()
        serving.cancel()


async def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("verb", choices=["publish", "subscribe"])
    options.add_argument("--port", type=int, default=1883)
    options.add_argument("--topic", required=True)
    options.add_argument("--id", default="lab-client")
    options.add_argument("--out", required=True)
    options.add_argument("--rate", type=float, default=20)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--settle", type=float, default=30)
    options = options.parse_args()
    client = (Publisher if options.verb == "publish" else Recorder)(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, client.ending.set)
    await client.work()


if __name__ == "__main__":
    asyncio.run(main())
