// MQTT clients: the official mqtt.js, told what to do by the Go tests.
// Payloads travel as base64.
import { createHash } from "node:crypto";
import mqtt from "mqtt";
import { report, serve } from "./lines.mjs";

const clients = new Map();

const promised = (fn) =>
  new Promise((resolve, reject) => fn((error, ...results) => (error ? reject(error) : resolve(results))));

serve({
  // open {of, url, options}; with options.digest a message is reported with the
  // SHA-256 of its payload instead of the payload.
  open({ of, url, options: { digest, ...options } }) {
    const client = mqtt.connect(url, { reconnectPeriod: 100, ...options });
    clients.set(of, client);
    client.on("connect", (packet) =>
      report(of, "connect", {
        present: packet.sessionPresent,
        assigned: packet.properties?.assignedClientIdentifier ?? "",
        maximumQoS: packet.properties?.maximumQoS ?? 2,
      }),
    );
    client.on("message", (topic, payload, packet) =>
      report(of, "message", {
        topic,
        ...(digest
          ? { sha256: createHash("sha256").update(payload).digest("hex") }
          : { payload: payload.toString("base64") }),
        qos: packet.qos,
        retain: packet.retain,
        dup: packet.dup,
        contentType: packet.properties?.contentType ?? "",
        properties: packet.properties?.userProperties ?? {},
      }),
    );
    client.on("error", (error) => report(of, "error", { message: error.message, code: error.code ?? 0 }));
    client.on("disconnect", (packet) => report(of, "disconnect", { code: packet.reasonCode ?? 0 }));
    client.on("close", () => report(of, "close"));
  },

  // subscribe {of, topic, options}: the granted QoS or the reason code; a
  // refusal is mqtt.js's error.
  async subscribe({ of, topic, options }) {
    const [granted] = await promised((done) => clients.get(of).subscribe(topic, options, done));
    return granted.map((g) => g.qos);
  },

  // publish {of, topic, payload, options}: returns when it is acknowledged.
  async publish({ of, topic, payload, options }) {
    await promised((done) => clients.get(of).publish(topic, Buffer.from(payload, "base64"), options, done));
  },

  // drop {of}: lose the connection; the client comes back by itself.
  drop({ of }) {
    clients.get(of).stream?.destroy();
  },

  // abandon {of}: drop the connection and all that is under way.
  abandon({ of }) {
    clients.get(of).end(true);
    clients.delete(of);
  },

  // close {of}: DISCONNECT and leave.
  async close({ of }) {
    await promised((done) => clients.get(of).end(false, {}, done));
    clients.delete(of);
  },
});
