// Clients of a Socket.IO or Engine.IO server: the official socket.io-client
// and engine.io-client, told what to do by the Go tests. A binary value
// travels as {"binary": base64}.
import { Socket as EngineSocket } from "engine.io-client";
import { io } from "socket.io-client";
import { report, serve } from "./lines.mjs";

const clients = new Map();

/** packed makes a received value fit for JSON. */
function packed(value) {
  if (value instanceof ArrayBuffer) value = Buffer.from(value);
  if (Buffer.isBuffer(value)) return { binary: value.toString("base64") };
  if (Array.isArray(value)) return value.map(packed);
  return value;
}

/** unpacked is its inverse. */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  return typeof value?.binary === "string" ? Buffer.from(value.binary, "base64") : value;
}

serve({
  // open {of, url, options}: a socket with its own connection. An event that
  // wants an answer is answered with its arguments.
  open({ of, url, options }) {
    const socket = io(url, { forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 500, ...options });
    clients.set(of, socket);
    socket.io.on("open", () => socket.io.engine.once("upgrade", () => report(of, "upgrade")));
    socket.on("connect", () => report(of, "connect", socket.id));
    socket.on("connect_error", (error) => report(of, "connect_error", { message: error.message, data: error.data ?? null }));
    socket.on("disconnect", (reason) => report(of, "disconnect", reason));
    socket.onAny((event, ...args) => {
      if (typeof args.at(-1) === "function") {
        const ack = args.pop();
        ack(...args);
      }
      report(of, event, ...packed(args));
    });
  },

  // emit {of, event, args, timeout}: with a timeout (ms) the answer is awaited.
  async emit({ of, event, args, timeout }) {
    const socket = clients.get(of);
    if (!timeout) {
      socket.emit(event, ...unpacked(args));
      return;
    }
    return new Promise((resolve, reject) =>
      socket.timeout(timeout).emit(event, ...unpacked(args), (error, ...answer) => (error ? reject(error) : resolve(packed(answer)))),
    );
  },

  // emitWithRetries {of, event, args}: for a socket with the option retries,
  // which sends again until it is answered.
  async emitWithRetries({ of, event, args }) {
    return packed([await clients.get(of).emitWithAck(event, ...unpacked(args))]);
  },

  // close {of}: leave for good.
  close({ of }) {
    clients.get(of).disconnect();
    clients.delete(of);
  },

  // openEngine {of, url, options}: an Engine.IO client.
  openEngine({ of, url, options }) {
    const socket = new EngineSocket(url, options);
    clients.set(of, socket);
    socket.on("open", () => report(of, "connect", socket.id));
    socket.on("upgrade", () => report(of, "upgrade"));
    socket.on("message", (data) => report(of, "message", packed(data)));
    socket.on("close", (reason) => report(of, "disconnect", reason));
    socket.on("error", (error) => report(of, "error", error.message));
  },

  // send {of, args}: Engine.IO messages.
  send({ of, args }) {
    for (const arg of unpacked(args)) clients.get(of).send(arg);
  },

  // closeEngine {of}: leave once everything is sent.
  closeEngine({ of }) {
    clients.get(of).close();
  },
});
