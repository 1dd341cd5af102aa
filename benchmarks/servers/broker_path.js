// What publishing costs Socket.IO with its Redis adapter: see broker_path.py.
'use strict';
const modules = process.argv[2];
const { Server } = require(`${modules}/socket.io`);
const { createAdapter } = require(`${modules}/@socket.io/redis-adapter`);
const { createClient } = require(`${modules}/redis`);

const COUNT = 20000;
const BURST = 50;

async function publish(io, publishing, count) {
  for (let n = 0; n < count; n += BURST) {
    for (let m = 0; m < BURST; m++) io.to('publish').emit('m', 'x'.repeat(64));
    await publishing.ping(); // comes back after what was published before it
  }
}

async function main() {
  const publishing = createClient({ url: process.env.BROKER });
  const listening = publishing.duplicate();
  await Promise.all([publishing.connect(), listening.connect()]);
  const io = new Server({ adapter: createAdapter(publishing, listening) });
  await publish(io, publishing, COUNT / 10);
  const began = process.hrtime.bigint();
  const before = process.cpuUsage();
  await publish(io, publishing, COUNT);
  const cpu = process.cpuUsage(before);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  const result = { cpu_s: (cpu.user + cpu.system) / 1e6, seconds, bytes: 0, count: COUNT };
  console.log(JSON.stringify(result));
  process.exit(0);
}

main();
