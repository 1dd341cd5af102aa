import assert from "node:assert/strict";
import { test } from "node:test";
import { dice, next, opened, pair, rejection } from "./support.mjs";

const spoken = (frames) => frames.filter(({ type }) => !/^(hello|ping)$/.test(type));
const sent = (server) => spoken(server.connections.flatMap(({ frames }) => frames));

test("messages go both ways, as JSON and as bytes", async (t) => {
  const { server, client, log } = await pair(t);
  await opened(client);
  client.send("text");
  client.send({ a: [1, null, "ä\n"] });
  client.send(undefined);
  client.send(new Uint8Array([1, 10, 255]));
  client.send(new Uint8Array([9, 8, 7, 6]).subarray(1, 3));
  client.send(new Uint8Array([3]).buffer);
  await server.until(() => server.done.length === 6);
  const [text, object, nothing, ...bytes] = server.done;
  assert.deepEqual([text, object, nothing], ["text", { a: [1, null, "ä\n"] }, null]);
  assert.deepEqual(bytes.map((each) => [...each]), [[1, 10, 255], [8, 7], [3]]);
  assert.ok(sent(server).every((frame) => !("id" in frame)));
  server.newest.send({ type: "message", data: { b: 2 } });
  const got = next(client, "message");
  server.newest.send({ type: "message" }, Buffer.from([10, 0, 10]));
  await got;
  if (log.messages.length < 2) await next(client, "message");
  assert.deepEqual(log.messages[0], { b: 2 });
  assert.ok(log.messages[1] instanceof Uint8Array);
  assert.deepEqual([...log.messages[1]], [10, 0, 10]);
});

test("what is sent is what it was when it was sent", async (t) => {
  const { server, client } = await pair(t);
  const object = { a: 1 };
  const bytes = new Uint8Array([1]);
  client.send(object);
  client.send(bytes);
  object.a = bytes[0] = 2;
  await server.until(() => server.done.length === 2);
  assert.deepEqual([server.done[0], [...server.done[1]]], [{ a: 1 }, [1]]);
});

test("what can't be JSON is an error at once, and nothing is sent", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  assert.throws(() => client.send(1n), TypeError);
  await assert.rejects(client.deliver(1n), TypeError);
  await client.deliver("fine");
  assert.deepEqual(server.done, ["fine"]);
});

test("text that UTF-8 does not have is an error at once, wherever it is, and nothing is sent", async (t) => {
  const { server, client, log } = await pair(t);
  await opened(client);
  const bad = ["\ud800", "a \udfff", "\ud83d", { a: ["\udc00"] }, { "\udbff": 1 }, "\\\ud800", "\u{1f600}\ud800"];
  for (const data of bad) {
    assert.throws(() => client.send(data), /^TypeError: lone surrogate: .*\\ud/);
    for (const wanted of [client.deliver(data), client.publish("news", data), client.call("add", data)]) {
      await assert.rejects(wanted, TypeError);
    }
  }
  for (const act of ["publish", "call"]) await assert.rejects(client[act]("\ud800", 1), TypeError);
  for (const act of ["subscribe", "channel"]) assert.throws(() => client[act]("\ud800"), TypeError);
  for (const name of [undefined, null, 7, {}, []]) {
    const what = { name: "TypeError", message: `${name} is no name` };
    for (const act of ["publish", "call"]) await assert.rejects(client[act](name, 1), what);
    for (const act of ["subscribe", "channel"]) assert.throws(() => client[act](name), what);
  }
  for (const data of ["\u{1f600}", "\\ud800", "\\\\udfff", { "\\ud800": "\u{1f600}" }]) {
    await client.deliver(data);
    assert.deepEqual(server.done.pop(), data);
  }
  assert.deepEqual([server.done, log.errors], [[], []]);
});

test("an answer with text that UTF-8 does not have is an error of the handler", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  client.answer("half", () => "\ud800");
  client.answer("raise", () => { throw new Error("not \ud800"); });
  const answers = [];
  server.on.error = (frame) => answers.push(frame);
  for (const [id, event] of [[1, "half"], [2, "raise"]]) server.newest.send({ type: "call", id, event, data: null });
  await server.until(() => answers.length === 2);
  answers.sort((a, b) => a.id - b.id);
  for (const { code, text } of answers) assert.deepEqual([code, text.isWellFormed()], ["failed", true]);
  assert.match(answers[0].text, /surrogate/);
});

test("deliver and publish resolve when it is done", async (t) => {
  const { server, client } = await pair(t);
  assert.equal(await client.deliver("hi"), undefined);
  assert.equal(await client.publish("news", { n: 1 }), "e.1");
  assert.equal(await client.publish("news", new Uint8Array([1, 2])), "e.2");
  assert.deepEqual(sent(server).map(({ id }) => id), [1, 2, 3]);
});

test("an error of the server has its code, text and field", async (t) => {
  const { client } = await pair(t, {}, (server) => {
    server.on.message = ({ id }, connection) =>
      connection.send({ type: "error", id, code: "invalid", text: "expected int", field: "$.data.age" });
  });
  const error = await rejection(client.deliver({ age: "x" }));
  assert.deepEqual(
    [error.name, error.code, error.message, error.field],
    ["BackchannelError", "invalid", "expected int", "$.data.age"],
  );
});

test("after a resume what was not answered is sent again, in order, with the same ids, and done once", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, {}, (s) => s.mute.add("message").add("publish"));
  await opened(client);
  const all = [client.deliver("a"), client.publish("news", "b"), client.deliver("c")];
  await server.until(() => server.done.length === 3);
  server.newest.cut();
  server.mute.clear();
  await next(client, "waiting");
  all.push(client.deliver("d"));
  assert.deepEqual(await Promise.all(all), [undefined, "e.1", undefined, undefined]);
  assert.deepEqual(server.done, ["a", "b", "c", "d"]);
  assert.deepEqual(
    spoken(server.newest.frames).map(({ id, again, data }) => [id, again, data]),
    [[1, true, "a"], [2, true, "b"], [3, true, "c"], [5, undefined, "d"]],
  );
});

test("what was refused or answered is not sent again", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  await client.deliver("answered");
  server.newest.cut();
  await next(client, "open");
  await client.deliver("new");
  assert.deepEqual(spoken(server.newest.frames).map(({ data }) => data), ["new"]);
});

test("in a new session the outcome is unknown, and what does no harm twice is sent as new", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, {}, (s) => s.mute.add("message"));
  await opened(client);
  const once = rejection(client.deliver("once"));
  const harmless = client.deliver("harmless", { retry: true });
  await server.until(() => server.done.length === 2);
  server.sessions.clear();
  server.mute.clear();
  server.newest.cut();
  assert.equal((await next(client, "open")).resumed, false);
  const error = await once;
  assert.equal(error.code, "unsure");
  assert.match(error.message, /unknown/);
  await harmless;
  assert.deepEqual(server.done, ["once", "harmless", "harmless"]);
  const [again] = spoken(server.newest.frames);
  assert.equal(again.again, undefined);
  assert.ok(again.id > 2);
});

test("twenty cuts with acknowledgements lost on the way double and lose nothing", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const all = [];
  for (let n = 0; n < 200; n++) {
    all.push(client.publish("news", n));
    if (n % 10 === 5) {
      await opened(client);
      server.mute.add("publish");
      all.push(client.publish("news", `${n} and a cut`));
      await server.until(() => server.done.includes(`${n} and a cut`));
      server.newest.cut();
      server.mute.clear();
    }
  }
  const positions = await Promise.all(all);
  assert.equal(new Set(positions).size, 220);
  assert.equal(new Set(server.done).size, server.done.length);
  const order = positions.map((each) => Number(each.slice(2)));
  assert.deepEqual(order, order.toSorted((a, b) => a - b));
  assert.equal(server.connections.length, 21);
});

test("what is sent while there is no connection waits, and goes in its order", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  client.send(1);
  const two = client.deliver(2);
  client.send(3);
  client.on("open", () => client.send(4));
  await two;
  await server.until(() => server.done.length === 4);
  assert.deepEqual(server.done, [1, 2, 3, 4]);
});

test("the queue is bounded in messages, and who does not fit is told", async (t) => {
  const { server, client, log } = await pair(t, { queue: { messages: 2 } });
  client.send("a");
  const b = client.deliver("b");
  client.send("c");
  const d = rejection(client.deliver("d"));
  assert.equal((await d).code, "full");
  assert.deepEqual(log.dropped.map(({ data, error }) => [data, error.code]), [["c", "full"]]);
  await b;
  assert.deepEqual(server.done, ["a", "b"]);
});

test("the queue is bounded in bytes, and has room again once it was sent", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, { queue: { bytes: 300 } });
  const first = client.deliver("x".repeat(200));
  assert.equal((await rejection(client.deliver("ä".repeat(60)))).code, "full");
  await first;
  server.newest.cut();
  await next(client, "waiting");
  await client.deliver("y".repeat(200));
});

test("what waits too long is told so, and not sent", async (t) => {
  dice(t, 0.2);
  const { server, client, log } = await pair(t, { queue: { seconds: 0.05 } });
  await opened(client);
  server.newest.socket.close(1013); // comes back in 0.2 s
  await next(client, "waiting");
  client.send("old");
  const error = await rejection(client.deliver("too"));
  assert.equal(error.code, "expired");
  assert.deepEqual(log.dropped.map(({ data }) => data), ["old"]);
  await next(client, "open");
  await client.deliver("new");
  assert.deepEqual(server.done, ["new"]);
});

test("what is larger than the server takes is refused here, and the connection is kept", async (t) => {
  const { server, client, log } = await pair(t, {}, (s) => (s.hello.max_message = 1000));
  await opened(client);
  const error = await rejection(client.deliver("ä".repeat(600)));
  assert.equal(error.code, "too_large");
  assert.match(error.message, /1000/);
  client.send(new Uint8Array(1000));
  assert.equal(log.dropped[0].error.code, "too_large");
  await client.deliver("x".repeat(900));
  assert.equal(server.connections.length, 1);
});

test("frames that it does not know, and what is no frame, hurt nobody", async (t) => {
  const { server, client, log } = await pair(t);
  await opened(client);
  const { socket, send } = server.newest;
  socket.send(JSON.stringify({ type: "telepathy", id: 1, data: 1 })); // past the schemas
  send({ type: "ack", id: 77 });
  send({ type: "reply", id: 78, data: 1 });
  send({ type: "cancel", id: 79 });
  send({ type: "error", code: "unknown_type", text: "no such frame" });
  socket.send("{");
  socket.send(Buffer.from("[]"));
  await client.deliver("fine");
  assert.deepEqual(log.errors.map(({ code }) => code), ["unknown_type", "invalid", "invalid"]);
});
