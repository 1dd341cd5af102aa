import assert from "node:assert/strict";
import { test } from "node:test";
import { dice, next, opened, pair, rejection } from "./support.mjs";
import { Server, typesOf } from "./server.mjs";

// Every frame of every test is validated; here each type that there is goes over the wire at least once.
test("every type of frame is as the schemas have it, in both directions", async (t) => {
  dice(t, 0);
  const token = () => ({ token: "t", expires_in: 0.2 });
  const { server, client, log } = await pair(t, { patience: 0.5, token }, (s) => (s.hello.ping = 0.1));
  client.answer("double", (n) => 2 * n);
  const pongs = () => server.connections.flatMap(({ frames }) => frames).filter(({ type }) => type === "ping");
  await opened(client);
  client.send("text");
  client.send(new Uint8Array([1, 2]));
  await client.deliver({ type: "say" });
  const news = client.subscribe("news", { since: "e.0" });
  await news.ready;
  await news.publish(new Uint8Array([3]));
  await news.presence();
  await client.call("add", { a: 1, b: 2 });
  await rejection(client.call("silent", 1, { timeout: 0.05 }));
  await rejection(client.subscribe("secret:1").ready);
  const { send } = server.newest;
  const told = Promise.all(["join", "leave", "snapshot", "lost"].map((each) => next(news, each)));
  send({ type: "join", channel: "news", user: "bob" });
  send({ type: "leave", channel: "news", user: "bob" });
  send({ type: "lost", channel: "news" });
  send({ type: "snapshot", channel: "news", data: [], position: "e.9" });
  send({ type: "message", data: "hi" });
  for (const [id, event] of [[1, "double"], [2, "unheard"], [3, "double"]]) send({ type: "call", id, event, data: id });
  send({ type: "cancel", id: 3 });
  await told;
  await server.until(() => server.types.client.has("renew") && pongs().length > 1);
  await client.deliver("a fence");
  assert.ok(log.messages.includes("hi"));
  await news.unsubscribe();
  send({ type: "going_away", after: 0.01 });
  server.newest.socket.close(1012);
  assert.equal((await next(client, "open")).resumed, true);
  for (const sender of ["client", "server"]) {
    assert.deepEqual([...server.types[sender]].sort(), Object.keys(typesOf(sender)).sort());
  }
});

test("what is not as the schemas have it is noticed", async () => {
  const server = await new Server().start();
  const socket = new WebSocket(server.url, ["backchannel.v1.json"]);
  const say = (frame) => socket.send(JSON.stringify(frame));
  await next({ on: (name, then) => (socket.addEventListener(name, then), () => {}) }, "open");
  say({ type: "hello", resume: 7 });
  say({ type: "hello", token: "in the wrong place" });
  say({ type: "telepathy" });
  await server.until(() => server.connections[0].frames.length === 3);
  server.newest.send({ type: "ack" });
  await assert.rejects(server.stop(), (error) => {
    const wrong = error.message.split("\n").map((line) => line.replace(/^invalid frames: /, ""));
    assert.match(wrong[0], /^client: .*"resume":7.*must be string/);
    assert.match(wrong[1], /^client: .*additional properties/);
    assert.match(wrong[2], /^client: .*there is no such type/);
    assert.match(wrong.at(-1), /^server: .*required property 'id'/);
    return true;
  });
});
