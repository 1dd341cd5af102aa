// What publishing costs Socket.IO with its Redis adapter, and what channels cost with its sharded one:
// see broker_path.py.
'use strict';
const modules = process.argv[2];
const { Server } = require(`${modules}/socket.io`);
const { createAdapter, createShardedAdapter } = require(`${modules}/@socket.io/redis-adapter`);
const { createClient } = require(`${modules}/redis`);

const COUNT = 20000;
const CHANNELS = 10000;
const BURST = 50;

async function publish(io, publishing, count) {
  for (let n = 0; n < count; n += BURST) {
    for (let m = 0; m < BURST; m++) io.to('publish').emit('m', 'x'.repeat(64));
    await publishing.ping(); // comes back after what was published before it
  }
}

// Only the sharded adapter asks the engine for what its node has members for, as we do.
async function enter(io, listening, count) {
  const adapter = io.of('/').adapter;
  for (let n = 0; n < count; n += BURST) {
    for (let m = 0; m < BURST; m++) adapter.addAll(`socket ${m}`, new Set([`${count}:${n + m}`]));
    await listening.ping();
  }
}

async function main() {
  const publishing = createClient({ url: process.env.BROKER });
  const listening = publishing.duplicate();
  await Promise.all([publishing.connect(), listening.connect()]);
  const enters = process.argv[3] === 'channels';
  const dynamic = { subscriptionMode: 'dynamic' };
  const io = new Server({
    adapter: enters
      ? createShardedAdapter(publishing, listening, dynamic) : createAdapter(publishing, listening),
  });
  const [work, all] = enters
    ? [(count) => enter(io, listening, count), CHANNELS]
    : [(count) => publish(io, publishing, count), COUNT];
  await work(all / 10);
  const memory = process.resourceUsage().maxRSS;
  const began = process.hrtime.bigint();
  const before = process.cpuUsage();
  await work(all);
  const cpu = process.cpuUsage(before);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  const bytes = (process.resourceUsage().maxRSS - memory) * 1024;
  if (enters) { // each is heard now, or this would be faster than it is
    const heard = await publishing.pubSubShardChannels();
    if (heard.length < all) throw new Error(`${heard.length} of ${all} channels are heard`);
  }
  const result = { cpu_s: (cpu.user + cpu.system) / 1e6, seconds, bytes, count: all };
  console.log(JSON.stringify(result));
  process.exit(0);
}

main();
