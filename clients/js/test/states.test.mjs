import assert from "node:assert/strict";
import { test } from "node:test";
import { Server } from "./server.mjs";
import { connect, dice, next, opened, page, pair, record, rejection } from "./support.mjs";

test("it connects, says hello first, and tells each state", async (t) => {
  const { server, client, log } = await pair(t);
  assert.equal(client.state, "connecting");
  const open = await opened(client);
  assert.deepEqual(open, { state: "open", connection: "c1", user: "ana", resumed: false });
  assert.deepEqual(log.states.map(({ state }) => state), ["connecting", "open"]);
  // The ping tells the server that its token has come.
  await server.until(() => server.newest.frames.length === 2);
  assert.deepEqual(server.newest.frames, [{ type: "hello", resume: null, positions: {} }, { type: "ping" }]);
  assert.deepEqual(server.newest.offered, ["backchannel.v1.json"]);
});

test("after a cut it comes back by itself, and goes on with its session", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t, {}, (s) => (s.own = ["chat:1"]));
  await opened(client);
  const said = next(client, "publication");
  const position = server.publish("chat:1", "one");
  await said;
  server.newest.cut();
  const open = await next(client, "open");
  assert.equal(open.resumed, true);
  assert.equal(open.connection, "c1");
  assert.deepEqual(server.newest.frames[0], {
    type: "hello", id: 1, resume: "t1", positions: { "chat:1": position },
  });
  assert.deepEqual(log.states.map(({ state }) => state), ["connecting", "open", "waiting", "connecting", "open"]);
});

test("what it waits is full jitter, as the specification counts it", async (t) => {
  dice(t, 0.001);
  const server = await new Server().start();
  await server.stop();
  const client = connect(server.url);
  const log = record(client);
  while (log.states.filter(({ state }) => state === "waiting").length < 8) await next(client, "state");
  client.close();
  const waits = log.states.filter(({ state }) => state === "waiting");
  assert.deepEqual(waits.map(({ seconds }) => seconds * 1000), [0.5, 1, 2, 4, 8, 16, 20, 20]);
  assert.deepEqual(waits.map(({ attempt }) => attempt), [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.equal(waits[0].code, 1006);
});

test("only a connection that lasted 10 seconds sets the waiting back", async (t) => {
  dice(t, 0.001);
  const { server, client } = await pair(t);
  const now = Date.now;
  t.after(() => (Date.now = now));
  const attempts = [];
  for (const lasted of [0, 9_900, 10_100, 0]) {
    await opened(client);
    const began = now();
    Date.now = () => Math.max(now(), began) + lasted;
    server.newest.cut();
    attempts.push((await next(client, "waiting")).attempt);
    Date.now = now;
    await next(client, "open");
  }
  assert.deepEqual(attempts, [1, 2, 1, 2]);
});

for (const code of [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4004, 4005, 4100, 4999]) {
  test(`after ${code} it does not come back`, async (t) => {
    dice(t, 0);
    const { server, client, log } = await pair(t);
    await opened(client);
    server.newest.socket.close(code, "enough");
    const closed = await next(client, "closed");
    assert.deepEqual(closed, { state: "closed", code, text: "enough", by: "server" });
    assert.equal(client.state, "closed");
    assert.equal(log.states.at(-1), closed);
    assert.equal((await rejection(client.deliver(1))).code, "closed");
  });
}

for (const code of [1001, 1011, 1012, 1013, 1014, 3000, 4001, 4002, 4003, 4006, 4007, 4008, 4099]) {
  test(`after ${code} it comes back`, async (t) => {
    dice(t, 0);
    const { server, client } = await pair(t);
    await opened(client);
    server.newest.socket.close(code, "later");
    assert.equal((await next(client, "waiting")).code, code);
    assert.equal((await next(client, "open")).resumed, true);
  });
}

test("after 1013 it waits as if the next attempt had failed already", async (t) => {
  dice(t, 0.001);
  const { server, client } = await pair(t);
  await opened(client);
  server.newest.socket.close(1013);
  assert.equal((await next(client, "waiting")).seconds, 0.001);
});

test("it comes back no sooner than a server that goes away wants", async (t) => {
  dice(t, 0);
  const { fire } = page(t);
  const { server, client } = await pair(t);
  await opened(client);
  const began = performance.now();
  server.newest.send({ type: "going_away", after: 0.3 });
  server.newest.socket.close(1012);
  const { seconds } = await next(client, "waiting");
  assert.ok(seconds > 0.25 && seconds <= 0.3, `${seconds}`);
  fire("online"); // not even then
  await next(client, "open");
  assert.ok(performance.now() - began > 290);
});

test("the network coming back ends the waiting at once", async (t) => {
  dice(t, 0.9999);
  const { fire } = page(t);
  const server = await new Server().start();
  const { port } = server;
  await server.stop();
  const client = connect(server.url);
  t.after(() => client.close());
  for (let n = 0; n < 6; n++) {
    await next(client, "waiting");
    if (n < 5) fire("online");
  }
  const again = await new Server().start(port);
  t.after(() => again.stop());
  const began = performance.now();
  fire("offline"); // that is none
  assert.equal(client.state, "waiting");
  fire("online");
  await next(client, "open");
  assert.ok(performance.now() - began < 1000, "the wait was up to 16 seconds");
});

for (const event of ["pageshow", "visibilitychange"]) {
  test(`${event} ends the waiting, and doubts an open connection`, async (t) => {
    dice(t, 0.9999);
    const { fire, show } = page(t);
    const come = () => (event === "pageshow" ? fire(event) : show("visible"));
    const { server, client } = await pair(t, { patience: 0.2 });
    await opened(client);
    const first = server.newest;
    show("hidden");
    await client.deliver("the first ping was answered");
    assert.deepEqual(first.frames.map(({ type }) => type), ["hello", "ping", "message"]);
    come();
    await server.until(() => first.frames.at(-1).type === "ping");
    await client.deliver("the pong came before this");
    // A server that answers is kept; one that does not, for all that the socket knows, is left.
    server.on.ping = () => {};
    come();
    const { text } = await next(client, "waiting");
    assert.match(text, /ping/);
    come();
    assert.equal((await next(client, "open")).resumed, true);
    assert.equal(server.connections.length, 2);
  });
}

test("a machine that slept finds out by itself that its socket is dead", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t, { patience: 0.1 }, (s) => (s.hello.ping = 0.15));
  await client.deliver("the first ping was answered");
  // Its timers stood still, its clock went on, and nobody answers on the old socket.
  server.on.ping = () => {};
  const now = Date.now;
  t.after(() => (Date.now = now));
  Date.now = () => now() + 3_600_000;
  const open = await next(client, "open");
  assert.equal(open.resumed, true);
  assert.match(log.states.find(({ state }) => state === "waiting").text, /ping was not answered/);
});

test("a connection on which something is heard is not pinged", async (t) => {
  const { server, client } = await pair(t, {}, (s) => (s.hello.ping = 0.6));
  await client.deliver("the first ping was answered");
  const talk = setInterval(() => server.newest.send({ type: "message", data: 1 }), 20);
  t.after(() => clearInterval(talk));
  for (let n = 0; n < 60; n++) await next(client, "message");
  const { frames } = server.newest;
  const pings = () => frames.filter(({ type }) => type === "ping").length;
  assert.equal(pings(), 1); // the one after hello
  clearInterval(talk);
  await server.until(() => pings() === 2);
});

test("a server that never says hello is left after twice the patience", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, { patience: 0.05 }, (s) => (s.on.hello = () => {}));
  assert.match((await next(client, "waiting")).text, /does not answer/);
  delete server.on.hello;
  await opened(client);
});

test("a server that does not speak the dialect is said to be one", async (t) => {
  dice(t, 0.9);
  const { client } = await pair(t, {}, (s) => (s.wss.options.handleProtocols = () => false));
  const { code } = await next(client, "waiting");
  assert.equal(code, 1006);
});

test("close() ends the session with its code, and what waits is told", async (t) => {
  const { server, client } = await pair(t, {}, (s) => s.mute.add("message"));
  await opened(client);
  const error = rejection(client.deliver("unanswered"));
  client.close();
  assert.deepEqual(client.last, { state: "closed", code: 1000, text: "", by: "client" });
  assert.equal((await error).code, "closed");
  await server.until(() => !server.newest.isOpen);
  assert.equal(server.newest.code, 1000);
  client.close(); // twice does nothing
});

test("a code that no client may send is refused, and nothing is closed", async (t) => {
  const { client } = await pair(t);
  await opened(client);
  assert.throws(() => client.close(1012), { name: "InvalidAccessError" });
  assert.equal(client.state, "open");
});

test("closed before it connected, it never does", async (t) => {
  const { server, client } = await pair(t);
  client.close();
  const other = connect(server.url);
  t.after(() => other.close());
  await opened(other);
  assert.equal(server.connections.length, 1);
});

test("an address that is none is an error at once", () => {
  assert.throws(() => connect("ftp://localhost/x"), /ftp:\/\/localhost\/x is no address of a WebSocket/);
  assert.throws(() => connect("/ws/relative"), TypeError); // there is no page here
  for (const url of [undefined, null, "", 8888, {}, ["ws://localhost/x"]]) {
    assert.throws(() => connect(url), { name: "TypeError", message: /is no address of a WebSocket/ });
  }
});

test("a page's own location is an address", async (t) => {
  // What is no address would be one on a page, where it is relative to that.
  const { server, client } = await pair(t);
  client.close();
  globalThis.location = new URL(server.url);
  t.after(() => delete globalThis.location);
  assert.throws(() => connect(), /undefined is no address of a WebSocket/);
  const other = connect(location);
  t.after(() => other.close());
  assert.equal((await opened(other)).state, "open");
});

test("an option that there is not is an error at once, and nothing is connected", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  assert.throws(() => connect(server.url, { onlost: () => {} }), {
    name: "TypeError",
    message: '"onlost" is none of: token ticket queue patience onLost WebSocket',
  });
  await client.deliver("the server is there");
  assert.equal(server.connections.length, 1);
});

test("an event that there is not is an error at once", async (t) => {
  const { client } = await pair(t);
  assert.throws(() => client.on("mesage", () => {}), {
    name: "TypeError",
    message: /^"mesage" is none of: state connecting open waiting closed message /,
  });
  const news = client.subscribe("news");
  assert.throws(() => news.on("message", () => {}), {
    name: "TypeError",
    message: '"message" is none of: publication lost snapshot join leave subscribed unsubscribed',
  });
  assert.throws(() => client.on(), TypeError);
});

test("a handler that throws stops nobody else", async (t) => {
  const { client } = await pair(t);
  const runner = process.rawListeners("uncaughtException"); // which takes each for a failure
  process.removeAllListeners("uncaughtException");
  t.after(() => runner.forEach((each) => process.on("uncaughtException", each)));
  const thrown = new Promise((resolve) => process.once("uncaughtException", resolve));
  client.on("open", () => { throw new Error("mine"); });
  await opened(client);
  assert.equal((await thrown).message, "mine");
  await client.deliver("still there");
});
