/**
 * A server of the protocol for tests: a real WebSocket server that does what docs/protocol.md says,
 * and, where a test says so, cuts, keeps silent, or loses what it should answer. Each frame that it
 * hears and sends is validated against the schemas of docs/protocol.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
import { WebSocketServer } from "ws";

const V1 = "backchannel.v1.json";

// `discriminator`, by which the schemas say what type is which, is OpenAPI's.
const ajv = new Ajv({ keywords: ["discriminator"] });
for (const sender of ["client", "server"]) {
  const file = new URL(`../../../docs/protocol/${sender}.schema.json`, import.meta.url);
  const schema = JSON.parse(readFileSync(file, "utf8"));
  // Others may say more, and it is ignored. This client says nothing that is not described.
  for (const frame of Object.values(schema.$defs)) frame.additionalProperties = false;
  ajv.addSchema(schema, sender);
}

/** Where the schema of each type is, by sender: "client" or "server". */
export const typesOf = (sender) => ajv.getSchema(sender).schema.discriminator.mapping;

export class Server {
  /** Each handshake: its URL, what it offered, and its frames as they came. */
  connections = [];
  /** By token: sessions, with the frames that they have done. */
  sessions = new Map();
  /** What was done: messages and publications, in their order. */
  done = [];
  /** By channel: publications with their positions. */
  history = new Map();
  hello = {};
  /** Types of frames that are done, and not answered. */
  mute = new Set();
  /** By type: answers it instead of the server. */
  on = {};
  /** Channels that the URL leads into. */
  own = [];
  tokens = 0;
  /** Types of frames that were said, and frames that are not as the schemas have them. */
  types = { client: new Set(), server: new Set() };
  invalid = [];
  #waiters = [];

  async start(port = 0) {
    this.wss = new WebSocketServer({
      port, host: "127.0.0.1",
      handleProtocols: (offered) => (offered.has(V1) ? V1 : false),
    });
    this.wss.on("connection", (socket, request) => this.#serve(socket, request));
    await once(this.wss, "listening");
    this.port = this.wss.address().port;
    this.url = `ws://127.0.0.1:${this.port}/ws/x`;
    return this;
  }

  /** @throws Error where a frame was invalid. */
  async stop() {
    for (const socket of this.wss.clients) socket.terminate();
    await new Promise((resolve) => this.wss.close(resolve));
    if (this.invalid.length) throw new Error(`invalid frames: ${this.invalid.join("\n")}`);
  }

  get newest() {
    return this.connections.at(-1);
  }

  /** Waits until something holds; it is looked at after each frame and each connection. */
  async until(holds) {
    while (!holds()) await new Promise((resolve) => this.#waiters.push(resolve));
  }

  #look() {
    for (const wake of this.#waiters.splice(0)) wake();
  }

  #serve(socket, request) {
    const connection = {
      socket, url: request.url, frames: [], session: null, isOpen: true,
      offered: request.headers["sec-websocket-protocol"].split(/, */),
      send: (frame, bytes) => this.send(socket, frame, bytes),
      cut: () => socket.terminate(),
    };
    this.connections.push(connection);
    socket.on("message", (message, isBinary) => {
      const frame = read(message, isBinary);
      this.#check("client", frame, isBinary);
      connection.frames.push(frame);
      const answer = this.on[frame.type] ?? this[`_${frame.type}`];
      if (answer) answer.call(this, frame, connection);
      this.#look();
    });
    socket.on("close", (code, reason) => {
      Object.assign(connection, { isOpen: false, code, reason: `${reason}` });
      this.#look();
    });
    this.#look();
  }

  #check(sender, frame, isBinary) {
    const said = JSON.parse(JSON.stringify(frame));
    // The bytes of a binary frame are its data, which its object does not have.
    if (isBinary) delete said.data;
    const where = typesOf(sender)[said.type];
    const isValid = where && ajv.getSchema(`${sender}${where}`);
    if (isValid?.(said)) this.types[sender].add(said.type);
    else {
      const why = where ? ajv.errorsText(isValid.errors) : "there is no such type";
      this.invalid.push(`${sender}: ${JSON.stringify(said)}: ${why}`);
    }
  }

  send(socket, frame, bytes) {
    this.#check("server", frame, bytes !== undefined);
    if (bytes === undefined) return socket.send(JSON.stringify(frame));
    socket.send(Buffer.concat([Buffer.from(`${JSON.stringify(frame)}\n`), bytes]));
  }

  publish(channel, data) {
    const kept = this.history.get(channel) ?? [];
    this.history.set(channel, kept);
    const publication = { type: "publication", channel, data, position: `e.${kept.length + 1}` };
    kept.push(publication);
    for (const { isOpen, session, send } of this.connections) {
      if (isOpen && session?.channels.has(channel)) send(publication);
    }
    return publication.position;
  }

  #since(connection, channel, since) {
    const kept = this.history.get(channel) ?? [];
    const from = kept.findIndex(({ position }) => position === since) + 1;
    if (since && !from) connection.send({ type: "lost", channel, position: `e.${kept.length}` });
    else if (since) kept.slice(from).forEach((each) => connection.send(each));
  }

  #subscribed(connection, channel, more = {}) {
    connection.session.channels.add(channel);
    const position = this.history.get(channel)?.at(-1)?.position;
    connection.send({ type: "subscribed", channel, ...(position && { position }), ...more });
  }

  _hello({ resume, positions = {} }, connection) {
    const old = this.sessions.get(resume);
    this.sessions.delete(resume);
    const session = old ?? { id: `c${this.connections.length}`, channels: new Set(this.own), done: new Map() };
    connection.session = session;
    const token = `t${++this.tokens}`;
    this.sessions.set(token, session);
    connection.send({
      type: "hello", connection: session.id, resumed: !!old, user: "ana", resume: token, window: 120,
      channels: [...session.channels], ping: 25, max_message: 1 << 20, ...this.hello,
    });
    for (const channel of session.channels) {
      this.#since(connection, channel, positions[channel]);
      this.#subscribed(connection, channel);
    }
  }

  #once(frame, connection, act) {
    const { id, again } = frame;
    const { done } = connection.session;
    if (id && done.has(id) && !again) throw new Error(`id ${id} was used before`);
    if (!done.has(id)) {
      const answer = act();
      this.done.push(frame.data);
      if (id) done.set(id, { type: "ack", id, ...answer });
    }
    if (id && !this.mute.has(frame.type)) connection.send(done.get(id));
  }

  _message(frame, connection) {
    this.#once(frame, connection, () => ({}));
  }

  _publish(frame, connection) {
    this.#once(frame, connection, () => ({ position: this.publish(frame.channel, frame.data) }));
  }

  _subscribe({ id, channel, since }, connection) {
    if (channel.startsWith("secret")) {
      return connection.send({ type: "error", id, code: "refused", text: "not for you" });
    }
    // Who is in it already gets the word alone.
    if (connection.session.channels.has(channel)) return connection.send({ type: "subscribed", id, channel });
    this.#since(connection, channel, since);
    this.#subscribed(connection, channel, { id });
  }

  _unsubscribe({ id, channel }, connection) {
    connection.session.channels.delete(channel);
    connection.send({ type: "unsubscribed", id, channel });
  }

  _presence({ id, channel }, connection) {
    const users = [{ user: "ana", devices: [{ connection: "c1", meta: {} }] }];
    connection.send({ type: "presence", id, channel, users });
  }

  _call({ id, event, data }, connection) {
    if (event === "add") connection.send({ type: "reply", id, data: data.a + data.b });
    else if (event !== "silent") {
      connection.send({ type: "error", id, code: "unknown_type", text: `no event ${event}`, field: "$.event" });
    }
  }

  _renew({ id }, connection) {
    connection.send({ type: "renewed", id, expires_in: 3600 });
  }

  _ping(_, connection) {
    connection.send({ type: "pong" });
  }
}

export function read(message, isBinary) {
  if (!isBinary) return JSON.parse(message);
  const end = message.indexOf(10);
  return { ...JSON.parse(message.subarray(0, end)), data: message.subarray(end + 1) };
}
