/**
 * Clients of clients/js, as pages have them, for scripted.py: it says by lines of JSON on stdin what
 * they do, and hears by lines on stdout what they are told.
 */
import { createInterface } from "node:readline";
import { connect } from "../../src/backchannel/static/client.js";

// As patient as clients are, nothing would calm down in a run: here a twentieth of 20 seconds.
const real = Math.random;
Math.random = () => real() / 20;

const clients = new Map();
const followed = new Set();
const tell = (client, what) => process.stdout.write(`${JSON.stringify({ client, ...what })}\n`);
/** What is said, without what only makes it large. */
const light = (data) => ({ ...data, pad: undefined });

const does = {
  open({ client, url, options }) {
    const made = connect(url, options);
    clients.set(client, made);
    made.on("state", (change) => tell(client, { kind: "state", ...change }));
    made.on("message", (data) => tell(client, { kind: "message", data: light(data) }));
    made.on("error", ({ code, message }) => tell(client, { kind: "error", code, text: message }));
    made.answer("echo", (data) => data);
  },
  subscribe({ client, channel, since }, made) {
    const subscription = made.subscribe(channel, since ? { since } : {});
    if (followed.has(`${client} ${channel}`)) return;
    followed.add(`${client} ${channel}`);
    for (const kind of ["lost", "join", "leave", "subscribed", "unsubscribed"]) {
      subscription.on(kind, (event) => tell(client, { ...event, kind }));
    }
    subscription.on("publication", (event) =>
      tell(client, { ...event, kind: "publication", data: light(event.data) }));
  },
  publish: ({ channel, data }, made) => made.publish(channel, data),
  call: ({ event, data, timeout }, made) => made.call(event, data, { timeout }),
  deliver: ({ data }, made) => made.deliver(data),
  close: (_, made) => made.close(),
};

async function settle({ client, n }, doing) {
  try {
    tell(client, { kind: "done", n, value: (await doing) ?? null });
  } catch (error) {
    // What is no word of the client is a bug, and ends the process.
    if (error.name !== "BackchannelError") throw error;
    tell(client, { kind: "failed", n, code: error.code, text: error.message });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  const doing = does[asked.verb](asked, clients.get(asked.client));
  if (asked.n) settle(asked, doing);
}
process.exit();
