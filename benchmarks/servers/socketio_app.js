// The peer: Socket.IO on Node.
//
// Best configuration: WebSocket only, with ws's native addons, no compression. As one of several nodes
// with its Redis adapter, which publishes what it sends and writes it to its own clients at once; with
// RECOVERY, with connection state recovery and the adapter that has it.
'use strict';
const { Server } = require(`${process.argv[3]}/socket.io`);
const http = require('node:http');

const server = http.createServer();
const io = new Server(server, {
  transports: ['websocket'], perMessageDeflate: false, httpCompression: false, serveClient: false,
  ...(process.env.RECOVERY && { connectionStateRecovery: { maxDisconnectionDuration: 120000 } }),
});

io.on('connection', (socket) => {
  const path = socket.handshake.query.path;
  if (path.startsWith('/ws/fanout/') || path.startsWith('/ws/live/')) {
    socket.join(path);
    socket.on('m', (message) => io.to(path).emit('m', message));
    return;
  }
  if (path.startsWith('/ws/room/')) {
    socket.join(path);
    socket.data.user = /(?:^|; )user=([^;]*)/.exec(socket.handshake.headers.cookie)[1];
  }
  socket.on('m', (message) => socket.emit('m', message));
});

async function connect(url) {
  const publishing = require(`${process.argv[3]}/redis`).createClient({ url });
  if (process.env.RECOVERY) {
    const { createAdapter } = require(`${process.argv[3]}/@socket.io/redis-streams-adapter`);
    await publishing.connect();
    io.adapter(createAdapter(publishing));
    return;
  }
  const { createAdapter } = require(`${process.argv[3]}/@socket.io/redis-adapter`);
  const listening = publishing.duplicate();
  await Promise.all([publishing.connect(), listening.connect()]);
  io.adapter(createAdapter(publishing, listening));
}

const ready = process.env.BROKER ? connect(process.env.BROKER) : Promise.resolve();
ready.then(() => server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 }));
