"""Clients of a Socket.IO server: python3-socketio as Debian packages it, told
what to do by the Go tests. What travels over stdin and stdout is what
node/lines.mjs says; a binary value travels as {"binary": base64}.

The argument is the kind of client: "threads" (requests and websocket-client)
or "asyncio" (aiohttp).
"""
import asyncio
import base64
import json
import sys
import threading

import socketio

KIND = sys.argv[1]
clients = {}
stdout = threading.Lock()

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()


def write(value):
    with stdout:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


def packed(value):
    """Makes a received value fit for JSON."""
    if isinstance(value, (bytes, bytearray)):
        return {"binary": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [packed(v) for v in value]
    return value


def unpacked(value):
    """Is its inverse."""
    if isinstance(value, list):
        return [unpacked(v) for v in value]
    if isinstance(value, dict) and "binary" in value:
        return base64.b64decode(value["binary"])
    return value


def run(result):
    """Returns what a method of either kind of client returns."""
    return asyncio.run_coroutine_threadsafe(result, loop).result() if KIND == "asyncio" else result


class Recorder(socketio.Client if KIND == "threads" else socketio.AsyncClient):
    """A client that reports its events and answers those that want an answer
    with their arguments."""

    of = ""

    def told(self, event, *args):
        if event == "connect":
            args = [self.get_sid()]
        write({"of": self.of, "event": event, "args": packed(args)})
        return tuple(args)

    if KIND == "threads":

        def _trigger_event(self, event, namespace, *args):
            return self.told(event, *args)

    else:

        async def _trigger_event(self, event, namespace, *args):
            return self.told(event, *args)


def new_client():
    return Recorder(reconnection_delay=0.1, reconnection_delay_max=0.5, randomization_factor=0)


async def new_async_client():
    return new_client()


def open_client(r):
    client = run(new_async_client()) if KIND == "asyncio" else new_client()
    client.of = r["of"]
    clients[r["of"]] = client
    options = r.get("options", {})
    run(client.connect(r["url"], auth=options.get("auth"), transports=options["transports"], wait=False))


def emit(r):
    client, args = clients[r["of"]], tuple(unpacked(r["args"]))
    if not r.get("timeout"):
        run(client.emit(r["event"], args))
        return None
    answer = run(client.call(r["event"], args, timeout=r["timeout"] / 1000))
    return packed(answer if isinstance(answer, tuple) else [answer])


def close(r):
    run(clients.pop(r["of"]).disconnect())


ACTIONS = {"open": open_client, "emit": emit, "close": close}


def answer(r):
    try:
        write({"n": r["n"], "result": ACTIONS[r["do"]](r)})
    except Exception as error:
        write({"n": r["n"], "error": {"message": f"{type(error).__name__}: {error}", "code": 0}})


for line in sys.stdin:
    # A thread each: a request may wait while others come.
    threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()
