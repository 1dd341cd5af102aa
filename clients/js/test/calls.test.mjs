import assert from "node:assert/strict";
import { test } from "node:test";
import { dice, next, opened, pair, rejection } from "./support.mjs";

const frames = (server, kind) => server.connections.flatMap((each) => each.frames).filter(({ type }) => type === kind);

test("a call is answered, or rejected with the server's error", async (t) => {
  const { server, client } = await pair(t);
  assert.equal(await client.call("add", { a: 1, b: 2 }), 3);
  const error = await rejection(client.call("nothing"));
  assert.deepEqual([error.code, error.message, error.field], ["unknown_type", "no event nothing", "$.event"]);
  assert.deepEqual(frames(server, "call")[0], { type: "call", id: 1, event: "add", timeout: 30, data: { a: 1, b: 2 } });
});

test("a call ends after its seconds, here and at the server", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  const error = await rejection(client.call("silent", 1, { timeout: 0.05 }));
  assert.equal(error.code, "timeout");
  await server.until(() => frames(server, "cancel").length);
  assert.deepEqual(frames(server, "cancel"), [{ type: "cancel", id: 1 }]);
});

test("an AbortSignal cancels it, also before it was sent", async (t) => {
  const { server, client } = await pair(t);
  const controller = new AbortController();
  const early = rejection(client.call("silent", 1, { signal: controller.signal }));
  controller.abort(new Error("changed my mind"));
  assert.equal((await early).message, "changed my mind");
  assert.equal((await rejection(client.call("add", 1, { signal: controller.signal }))).message, "changed my mind");
  await opened(client);
  const other = new AbortController();
  const late = rejection(client.call("silent", 1, { signal: other.signal }));
  await server.until(() => frames(server, "call").length);
  other.abort();
  assert.equal((await late).name, "AbortError");
  await server.until(() => frames(server, "cancel").length);
  assert.equal(frames(server, "call").length, 1);
});

test("a call is not sent again after a reconnect", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  await opened(client);
  const lost = rejection(client.call("silent"));
  await server.until(() => frames(server, "call").length);
  server.newest.cut();
  assert.equal((await lost).code, "disconnected");
  await next(client, "open");
  assert.equal(await client.call("add", { a: 2, b: 2 }), 4);
  assert.equal(frames(server, "call").length, 2);
});

test("the server's calls are answered: values, bytes, errors, unknown events", async (t) => {
  const { server, client } = await pair(t);
  client.answer("double", (n) => 2 * n);
  client.answer("bytes", async (data) => data.subarray(1));
  client.answer("refuse", () => { throw Object.assign(new Error("not me"), { code: "refused" }); });
  client.answer("raise", () => { throw new TypeError("broken"); });
  const off = client.answer("gone", () => 1);
  off();
  await opened(client);
  const { send } = server.newest;
  send({ type: "call", id: 1, event: "double", data: 21 });
  send({ type: "call", id: 2, event: "bytes" }, Buffer.from([1, 2, 3]));
  ["refuse", "raise", "gone"].forEach((event, n) => send({ type: "call", id: 3 + n, event, data: null }));
  const answers = () => [...frames(server, "reply"), ...frames(server, "error")];
  await server.until(() => answers().length === 5);
  const [a, b, ...errors] = answers().toSorted((x, y) => x.id - y.id);
  assert.deepEqual(a, { type: "reply", id: 1, data: 42 });
  assert.deepEqual([b.id, ...b.data], [2, 2, 3]);
  assert.deepEqual(errors, [
    { type: "error", id: 3, code: "refused", text: "not me" },
    { type: "error", id: 4, code: "failed", text: "broken" },
    { type: "error", id: 5, code: "unknown_type", text: "nothing answers gone here" },
  ]);
});

test("when nobody waits any more the handler is told, and nothing is sent", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const aborted = [];
  client.answer("wait", (name, { signal }) =>
    new Promise((resolve) => signal.addEventListener("abort", () => (aborted.push(name), resolve(name)))));
  await opened(client);
  server.newest.send({ type: "call", id: 1, event: "wait", data: "cancelled" });
  server.newest.send({ type: "cancel", id: 1 });
  server.newest.send({ type: "call", id: 2, event: "wait", data: "cut" });
  await client.deliver("fence");
  assert.deepEqual(aborted, ["cancelled"]);
  server.newest.cut();
  await next(client, "open");
  assert.deepEqual(aborted, ["cancelled", "cut"]);
  await client.deliver("fence");
  assert.deepEqual(frames(server, "reply"), []);
});

test("a token is offered for each attempt anew, and a null one is none", async (t) => {
  dice(t, 0);
  const tokens = ["one", "two", null];
  const { server, client } = await pair(t, { token: async () => tokens.shift() });
  await opened(client);
  server.newest.socket.close(4007);
  await next(client, "open");
  server.newest.cut();
  await next(client, "open");
  assert.deepEqual(server.connections.map(({ offered }) => offered), [
    ["backchannel.v1.json", "backchannel.jwt", "one"],
    ["backchannel.v1.json", "backchannel.jwt", "two"],
    ["backchannel.v1.json"],
  ]);
});

test("a token that can't be had is a failed attempt", async (t) => {
  dice(t, 0);
  let asked = 0;
  const { server, client, log } = await pair(t, { token: () => { if (!asked++) throw new Error("login is down"); return "good"; } });
  await opened(client);
  assert.match(log.states.find(({ state }) => state === "waiting").text, /login is down/);
  assert.equal(server.connections.length, 1);
});

test("a token whose end is known is renewed before, and the server's word counts", async (t) => {
  const { server, client } = await pair(t, { token: () => ({ token: `t${++asked}`, expires_in: 0.1 }) });
  let asked = 0;
  await server.until(() => frames(server, "renew").length);
  assert.deepEqual(frames(server, "renew")[0], { type: "renew", id: 1, token: "t2" });
  await client.deliver("fence"); // and the server said 3,600 seconds
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.equal(asked, 2);
});

test("a token that could not be renewed is told", async (t) => {
  const tokens = [{ token: "a", expires_in: 0.04 }, { token: "b", expires_in: 0.04 }];
  const { client } = await pair(t, { token: () => tokens.shift() }, (server) => {
    server.on.renew = ({ id }, { send }) => send({ type: "error", id, code: "refused", text: "another user's" });
  });
  const error = await next(client, "error");
  assert.equal(error.code, "renewal");
  assert.match(error.message, /another user's/);
});

test("a ticket goes into the URL, a new one each time", async (t) => {
  dice(t, 0);
  let count = 0;
  const { server, client } = await pair(t, { ticket: async () => `bct_${++count}` });
  await opened(client);
  server.newest.cut();
  await next(client, "open");
  assert.deepEqual(server.connections.map(({ url }) => url), ["/ws/x?ticket=bct_1", "/ws/x?ticket=bct_2"]);
});

test("times that are longer than a timer knows are long", async (t) => {
  const { server, client } = await pair(t, {
    queue: { seconds: Infinity },
    // Timers that overflow end after 1 ms.
    token: () => new Promise((resolve) => setTimeout(resolve, 20, null)),
  });
  await client.deliver("waited for the connection");
  const asked = [];
  server.on.call = ({ id }, { send }) => asked.push(() => send({ type: "reply", id, data: id }));
  const calls = [Infinity, 2 ** 31 / 1000, 1e300].map((timeout) => client.call("slow", 1, { timeout }));
  await server.until(() => asked.length === 3);
  await new Promise((resolve) => setTimeout(resolve, 20));
  asked.forEach((answer) => answer());
  assert.deepEqual(await Promise.all(calls), [2, 3, 4]);
});
