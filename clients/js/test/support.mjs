/** What the tests share: a server and clients that end with their test, and awaiting events. */
import { connect } from "../../../src/backchannel/static/client.js";
import { Server } from "./server.mjs";

export { connect };
export { BackchannelError } from "../../../src/backchannel/static/client.js";

/** A server and a client of it: `const { server, client } = await pair(t, options, set up)`. */
export async function pair(t, options = {}, prepare = () => {}) {
  const server = await new Server().start();
  prepare(server);
  const client = connect(server.url, options);
  t.after(async () => {
    client.close();
    await server.stop();
  });
  return { server, client, log: record(client) };
}

/** Keeps all that a client tells, and awaits the next of a kind. */
export function record(client) {
  const log = { states: [], messages: [], lost: [], dropped: [], errors: [], publications: [] };
  client.on("state", (change) => log.states.push(change));
  client.on("message", (data) => log.messages.push(data));
  client.on("lost", (lost) => log.lost.push(lost));
  client.on("dropped", (dropped) => log.dropped.push(dropped));
  client.on("error", (error) => log.errors.push(error));
  client.on("publication", (publication) => log.publications.push(publication));
  return log;
}

export const next = (source, event) =>
  new Promise((resolve) => {
    const off = source.on(event, (value) => (off(), resolve(value)));
  });

export const opened = (client) => (client.state === "open" ? client.last : next(client, "open"));

/** What a promise is rejected with. */
export const rejection = (promise) =>
  promise.then(
    (value) => { throw new Error(`resolved with ${JSON.stringify(value)}`); },
    (error) => error,
  );

/** A dice that is always the same, for times that are random: put back at the end of the test. */
export function dice(t, value) {
  const real = Math.random;
  Math.random = () => value;
  t.after(() => (Math.random = real));
}

/** Stands in for the page: `fire("online")`, and whether it can be seen. */
export function page(t) {
  const target = new EventTarget();
  const doc = { hidden: false };
  globalThis.addEventListener = target.addEventListener.bind(target);
  globalThis.removeEventListener = target.removeEventListener.bind(target);
  globalThis.document = doc;
  t.after(() => {
    for (const name of ["addEventListener", "removeEventListener", "document"]) delete globalThis[name];
  });
  return {
    fire: (name) => target.dispatchEvent(new Event(name)),
    show: (how) => {
      doc.hidden = how === "hidden";
      target.dispatchEvent(new Event("visibilitychange")); // to which it bubbles
    },
  };
}
