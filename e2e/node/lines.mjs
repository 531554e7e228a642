// Requests and answers as JSON lines over stdin and stdout, for the drivers
// beside this file. A request is {"n", "do", ...}; it is answered by {"n",
// "result"} or {"n", "error"}. What a client reports by itself is {"of",
// "event", "args"}, "of" being the client's name. The process ends when stdin
// does.
import { createInterface } from "node:readline";

/** serve runs actions, a table of async functions by name. */
export function serve(actions) {
  const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
  lines.on("line", (line) => answer(actions, JSON.parse(line)));
  lines.on("close", () => process.exit(0));
}

async function answer(actions, request) {
  try {
    const result = await actions[request.do](request);
    write({ n: request.n, result: result ?? null });
  } catch (error) {
    write({ n: request.n, error: { message: String(error.message), code: error.code ?? 0 } });
  }
}

/** report tells of an event of the client named of. */
export function report(of, event, ...args) {
  write({ of, event, args });
}

function write(value) {
  process.stdout.write(JSON.stringify(value) + "\n");
}
