import assert from "node:assert/strict";
import { test } from "node:test";
import { dice, next, opened, pair, rejection } from "./support.mjs";

const kinds = (frames) => frames.filter(({ type }) => !/^(hello|ping)$/.test(type)).map(({ type, channel, since }) => [type, channel, ...(since ? [since] : [])]);
const take = async (iterator, count) => {
  const taken = [];
  while (taken.length < count) taken.push((await iterator.next()).value.data);
  return taken;
};

test("a subscription gets its publications, by callback and by for await", async (t) => {
  const { server, client, log } = await pair(t);
  const news = client.subscribe("news");
  const iterator = news[Symbol.asyncIterator]();
  const got = [];
  const off = news.on("publication", ({ data, position }) => got.push([data, position]));
  await news.ready;
  assert.equal(news.isIn, true);
  server.publish("news", 1);
  server.publish("other", 99);
  server.publish("news", 2);
  assert.deepEqual(await take(iterator, 2), [1, 2]);
  assert.deepEqual(got, [[1, "e.1"], [2, "e.2"]]);
  assert.equal(log.publications.length, 2);
  off();
  assert.equal(await news.publish(3), "e.3");
  assert.deepEqual(await take(iterator, 1), [3]);
  assert.equal(got.length, 2);
});

test("the same channel is the same object, asked for once", async (t) => {
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  assert.equal(client.subscribe("news"), news);
  assert.equal(client.channel("news"), news);
  await news.ready;
  assert.deepEqual(kinds(server.newest.frames), [["subscribe", "news"]]);
});

test("since brings what was published after it first", async (t) => {
  const { server, client } = await pair(t);
  const position = server.publish("news", "had");
  server.publish("news", "missed");
  const news = client.subscribe("news", { since: position });
  const iterator = news[Symbol.asyncIterator]();
  await news.ready;
  server.publish("news", "live");
  assert.deepEqual(await take(iterator, 2), ["missed", "live"]);
});

test("channels of the URL are reached without asking", async (t) => {
  const { server, client } = await pair(t, {}, (s) => (s.own = ["chat:1"]));
  const chat = client.channel("chat:1");
  await chat.ready;
  server.publish("chat:1", "hi");
  assert.equal((await next(chat, "publication")).data, "hi");
  assert.deepEqual(kinds(server.newest.frames), []);
});

test("bytes, snapshots, joins and leaves arrive at their channel", async (t) => {
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const { send } = server.newest;
  const all = Promise.all(["publication", "snapshot", "join", "leave"].map((each) => next(news, each)));
  send({ type: "snapshot", channel: "news", data: { a: 1 }, position: "e.7" });
  send({ type: "publication", channel: "news" }, Buffer.from([1, 2]));
  send({ type: "join", channel: "news", user: "bob" });
  send({ type: "leave", channel: "news", user: "bob" });
  const [publication, ...others] = await all;
  assert.deepEqual([...publication.data], [1, 2]);
  assert.deepEqual(others, [
    { channel: "news", data: { a: 1 }, position: "e.7" },
    { channel: "news", user: "bob" },
    { channel: "news", user: "bob" },
  ]);
  assert.deepEqual(await news.presence(), [{ user: "ana", devices: [{ connection: "c1", meta: {} }] }]);
});

test("a refused channel rejects ready and ends its iterators; others go on", async (t) => {
  const { client } = await pair(t);
  const secret = client.subscribe("secret:1");
  const news = client.subscribe("news");
  const reading = rejection((async () => { for await (const _ of secret); })());
  const error = await rejection(secret.ready);
  assert.deepEqual([error.code, error.message], ["refused", "not for you"]);
  assert.equal((await reading).code, "refused");
  await news.ready;
  await client.publish("news", 1);
});

test("unsubscribe ends iterators at once, and nothing comes any more", async (t) => {
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  const got = [];
  news.on("publication", ({ data }) => got.push(data));
  await news.ready;
  const reading = (async () => { for await (const _ of news); return "ended"; })();
  server.on.unsubscribe = function (frame, connection) {
    server.publish("news", "under way");
    server._unsubscribe(frame, connection);
  };
  await news.unsubscribe();
  assert.equal(await reading, "ended");
  assert.deepEqual(got, []);
  assert.equal(news.isIn, false);
  client.subscribe("news");
  await news.ready;
  assert.deepEqual(kinds(server.newest.frames), [["subscribe", "news"], ["unsubscribe", "news"], ["subscribe", "news"]]);
});

test("left before it was in, it is out", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  const news = client.subscribe("news");
  await news.unsubscribe();
  await client.deliver("the server has said both");
  assert.equal(news.isIn, false);
  assert.equal(server.newest.session.channels.size, 0);
  server.publish("news", 1);
  const position = server.publish("news", 2);
  server.publish("news", 3);
  client.subscribe("news", { since: position });
  assert.equal((await next(news, "publication")).data, 3);
});

test("breaking out of for await ends only that one", async (t) => {
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const other = news[Symbol.asyncIterator]();
  setImmediate(() => server.publish("news", 1));
  for await (const { data } of news) { assert.equal(data, 1); break; }
  server.publish("news", 2);
  assert.deepEqual(await take(other, 2), [1, 2]);
});

test("a reader that does not take what waits gets an error, not all the memory", async (t) => {
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const iterator = news[Symbol.asyncIterator]();
  for (let n = 0; n <= 10_001; n++) server.newest.send({ type: "publication", channel: "news", data: n });
  await client.deliver("all have come");
  assert.equal((await iterator.next()).value.data, 0);
  const error = await rejection((async () => { for (;;) if ((await iterator.next()).done) return; })());
  assert.equal(error.code, "too_slow");
});

test("put out by the server, it is told why and does not come back into it", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const reading = (async () => { for await (const _ of news); return "ended"; })();
  server.newest.session.channels.delete("news");
  server.newest.send({ type: "unsubscribed", channel: "news", text: "a rule changed" });
  assert.deepEqual(await next(news, "unsubscribed"), { channel: "news", text: "a rule changed" });
  assert.equal(await reading, "ended");
  server.newest.cut();
  await next(client, "open");
  await client.deliver("fence");
  assert.deepEqual(kinds(server.newest.frames), [["message", undefined]]);
  assert.deepEqual(server.newest.frames[0].positions, {});
});

test("after a resume what was missed comes once and in order", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  const got = [];
  news.on("publication", ({ data }) => got.push(data));
  await news.ready;
  for (let n = 0; n < 60; n++) {
    server.publish("news", n);
    if (n % 3 === 2) {
      server.newest.cut();
      server.publish("news", `missed ${n}`);
      await next(news, "subscribed");
    }
  }
  await client.deliver("fence");
  const wanted = Array.from({ length: 60 }, (_, n) => (n % 3 === 2 ? [n, `missed ${n}`] : [n])).flat();
  assert.deepEqual(got.filter((each) => each !== "x"), wanted);
});

test("what was asked for as the connection broke is asked again after a resume", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, {}, (s) => (s.on.subscribe = (_, { cut }) => cut()));
  await opened(client);
  const news = client.subscribe("news");
  await next(client, "waiting");
  delete server.on.subscribe;
  await news.ready;
  assert.deepEqual(kinds(server.newest.frames), [["subscribe", "news"]]);
});

test("in a new session it enters again, from where it was", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t);
  const news = client.subscribe("news");
  const got = [];
  news.on("publication", ({ data }) => got.push(data));
  await news.ready;
  server.publish("news", "had");
  await next(news, "publication");
  server.sessions.clear();
  server.newest.cut();
  server.publish("news", "missed");
  await next(news, "subscribed");
  assert.deepEqual(kinds(server.newest.frames), [["subscribe", "news", "e.1"]]);
  assert.deepEqual(got, ["had", "missed"]);
  assert.deepEqual(log.lost, []);
});

test("in a new session channels without history are lost, and those of the URL go on from where they were", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t, { onLost: (lost) => told.push(lost) }, (s) => (s.own = ["chat:1"]));
  const told = [];
  const plain = client.subscribe("plain");
  await plain.ready;
  server.publish("chat:1", "had");
  await next(client, "publication");
  const isInWhenLost = [];
  plain.on("lost", () => isInWhenLost.push(plain.isIn));
  server.sessions.clear();
  server.newest.cut();
  server.publish("chat:1", "missed");
  await next(client, "open");
  await client.deliver("fence");
  assert.deepEqual(log.lost, [{ channel: "plain" }]);
  assert.deepEqual(log.publications.map(({ data }) => data), ["had", "missed"]);
  assert.deepEqual(told, log.lost);
  assert.deepEqual(isInWhenLost, [true]);
});

test("lost by the server: its position is the one to go on from", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t);
  const news = client.subscribe("news", { since: "old.9" });
  await news.ready;
  server.publish("news", 1);
  await next(news, "publication");
  assert.deepEqual(log.lost, [{ channel: "news", position: "e.0" }]);
  server.newest.send({ type: "lost", channel: "news" });
  await next(news, "lost");
  server.newest.cut();
  await next(client, "open");
  assert.deepEqual(server.newest.frames[0].positions, {});
});

test("what was lost of no channel is told without one", async (t) => {
  const { server, client } = await pair(t);
  await opened(client);
  server.newest.send({ type: "lost" });
  assert.equal((await next(client, "lost")).channel, undefined);
});

test("left while there is no connection, it is left after the resume", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  server.newest.cut();
  await next(client, "waiting");
  await news.unsubscribe();
  await next(client, "open");
  await client.deliver("fence");
  assert.deepEqual(kinds(server.newest.frames)[0], ["unsubscribe", "news"]);
  assert.equal(news.isIn, false);
  assert.equal(server.newest.session.channels.size, 0);
});

test("a channel that the new session is not in any more is told to be out", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  await opened(client);
  const { session, send } = server.newest;
  session.channels.add("given");
  send({ type: "subscribed", channel: "given" });
  await client.channel("given").ready;
  server.sessions.clear();
  server.newest.cut();
  await next(client.channel("given"), "unsubscribed");
});

test("a broker that is away is asked again", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  dice(t, 0);
  const { server, client } = await pair(t);
  let asked = 0;
  server.on.subscribe = function (frame, connection) {
    if (asked++) return server._subscribe(frame, connection);
    connection.send({ type: "error", id: frame.id, code: "unavailable", text: "the broker is away" });
  };
  const news = client.subscribe("news");
  await opened(client);
  await client.deliver("the error came before this");
  t.mock.timers.tick(1000);
  await news.ready;
  assert.equal(asked, 2);
});

test("presence is asked again after a reconnect", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t, {}, (s) => (s.on.presence = (_, { cut }) => cut()));
  const asked = client.channel("news").presence();
  await next(client, "waiting");
  delete server.on.presence;
  assert.equal((await asked)[0].user, "ana");
});

test("when the client is closed, nothing waits for ever", async (t) => {
  const { client } = await pair(t);
  const never = client.channel("never");
  const reading = (async () => { for await (const _ of never); return "ended"; })();
  client.close();
  assert.equal((await rejection(never.ready)).code, "closed");
  assert.equal(await reading, "ended");
  assert.equal((await rejection(client.subscribe("late").ready)).code, "closed");
  for await (const _ of client.channel("late")) assert.fail();
});

test("asked for again with since, a channel goes on from where it was", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  for (let n = 1; n <= 5; n++) server.publish("news", n);
  client.subscribe("news", { since: "e.2" });
  await client.deliver("it was said that it is in");
  server.newest.cut();
  await next(client, "waiting");
  client.subscribe("news", { since: "e.1" });
  server.publish("news", 6);
  await next(news, "subscribed");
  assert.deepEqual(server.newest.frames[0].positions, { news: "e.5" });
  assert.deepEqual(log.publications.map(({ data }) => data), [1, 2, 3, 4, 5, 6]);
});

test("asked for again while what was missed comes, it has that once", async (t) => {
  dice(t, 0);
  const { server, client, log } = await pair(t);
  for (let n = 1; n <= 4; n++) server.publish("news", n);
  server.on.subscribe = ({ channel }, { send }) => server.history.get(channel).slice(2).forEach((each) => send(each));
  const news = client.subscribe("news", { since: "e.2" });
  const four = new Promise((resolve) => news.on("publication", ({ data }) => data === 4 && resolve()));
  await four;
  client.subscribe("news", { since: "e.2" });
  delete server.on.subscribe;
  server.newest.cut();
  await news.ready;
  assert.deepEqual(log.publications.map(({ data }) => data), [3, 4]);
});

test("left and asked for with since at once, it has what it asked for", async (t) => {
  const { server, client, log } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  for (let n = 1; n <= 3; n++) server.publish("news", n);
  await client.deliver("all have come");
  const left = news.unsubscribe();
  client.subscribe("news", { since: "e.1" });
  await Promise.all([left, news.ready]);
  assert.deepEqual(log.publications.map(({ data }) => data), [1, 2, 3, 2, 3]);
});

test("for await over a channel that was refused throws, and over one that was left ends, at once", async (t) => {
  const { server, client } = await pair(t);
  const read = async (channel) => { for await (const { data } of channel) return data; return "ended"; };
  const secret = client.subscribe("secret:1");
  await rejection(secret.ready);
  assert.equal((await rejection(read(secret))).code, "refused");
  const news = client.subscribe("news");
  await news.ready;
  await news.unsubscribe();
  assert.equal(await read(news), "ended");
  const put = client.subscribe("put");
  await put.ready;
  server.newest.session.channels.delete("put");
  server.newest.send({ type: "unsubscribed", channel: "put", text: "a rule changed" });
  await next(put, "unsubscribed");
  assert.equal(await read(put), "ended");
  client.subscribe("news");
  const reading = read(news);
  await news.ready;
  server.publish("news", "in again");
  assert.equal(await reading, "in again");
});

test("a channel that is being left when the client closes is left", async (t) => {
  const { client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const left = news.unsubscribe();
  client.close();
  await left;
  await news.unsubscribe();
  await client.subscribe("late").unsubscribe();
});

test("left, asked for again, and the connection breaks: it is in as it was said last", async (t) => {
  dice(t, 0);
  const { server, client } = await pair(t);
  const news = client.subscribe("news");
  await news.ready;
  const answer = server._unsubscribe;
  server.on.unsubscribe = () => {};
  void news.unsubscribe();
  client.subscribe("news");
  await client.deliver("the server has both");
  server.newest.cut();
  await next(news, "subscribed");
  await client.deliver("it is not left now");
  assert.equal(news.isIn, true);
  assert.deepEqual([...server.newest.session.channels], ["news"]);

  let asked = 0;
  server.on.unsubscribe = (frame, connection) => asked++ || answer.call(server, frame, connection);
  server.on.subscribe = () => {};
  const first = news.unsubscribe();
  client.subscribe("news");
  const second = news.unsubscribe();
  await first;
  await client.deliver("the server has all three");
  assert.equal(asked, 2);
  server.on.unsubscribe = answer;
  delete server.on.subscribe;
  server.newest.session.channels.add("news");
  server.newest.cut();
  await second;
  await next(client, "open");
  await client.deliver("it is left now");
  assert.equal(news.isIn, false);
  assert.deepEqual([...server.newest.session.channels], []);
});

test("a name that is none is refused by the server, and told", async (t) => {
  const { server, client } = await pair(t);
  server.on.subscribe = ({ id }, { send }) => send({ type: "error", id, code: "invalid", text: "no name" });
  server.invalid.push = () => 0; // the frame is none by its schema
  assert.equal((await rejection(client.subscribe("").ready)).code, "invalid");
});
