// Phones: the official socket.io-client, told what to do by the Go tests. It
// does what the app does: join_room on every connect, photo_received for every
// photo (unless told otherwise).
import { io } from "socket.io-client";
import { report, serve } from "./lines.mjs";

const phones = new Map();

// plain says of a binary picture that it is one.
const plain = (arg) =>
  Buffer.isBuffer(arg?.photoData) ? { ...arg, photoData: "binary:" + arg.photoData.toString("base64") } : arg;

serve({
  // open {of, url, user, options, receive}: a socket with its own connection.
  // receive is how it answers receive_photo: "event", "ack" or "never".
  open({ of, url, user, options, receive }) {
    const socket = io(url, { forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 500, ...options });
    const phone = { socket, receive };
    phones.set(of, phone);
    socket.io.on("open", () => socket.io.engine.once("upgrade", (transport) => report(of, "upgrade", transport.name)));
    socket.on("connect", () => {
      report(of, "connect", socket.io.engine.transport.name);
      socket.emit("join_room", { userId: user });
    });
    socket.on("connect_error", (error) => report(of, "connect_error", { message: error.message, data: error.data ?? null }));
    socket.on("disconnect", (reason) => report(of, "disconnect", reason));
    socket.onAny((event, ...args) => {
      const ack = typeof args.at(-1) === "function" ? args.pop() : undefined;
      report(of, event, ...args.map(plain));
      if (event !== "receive_photo") return;
      if (phone.receive === "event") socket.emit("photo_received", { photoId: args[0].photoId, receivedAt: Date.now() });
      if (phone.receive === "ack") ack?.({ success: true });
    });
  },

  // emit {of, event, args, timeout, binary}: with a timeout (ms) the answer is
  // awaited; binary sends the picture as an attachment.
  async emit({ of, event, args, timeout, binary }) {
    const { socket } = phones.get(of);
    if (binary) args[0].photoData = Buffer.from(args[0].photoData, "base64");
    if (timeout) return socket.timeout(timeout).emitWithAck(event, ...args);
    socket.emit(event, ...args);
  },

  // receive {of, receive}: answer photos differently from now on.
  receive({ of, receive }) {
    phones.get(of).receive = receive;
  },

  // drop {of}: lose the connection as a phone in a tunnel does; it comes back.
  drop({ of }) {
    phones.get(of).socket.io.engine.close();
  },

  // close {of}: leave for good.
  close({ of }) {
    phones.get(of).socket.disconnect();
    phones.delete(of);
  },
});
