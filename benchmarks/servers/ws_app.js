// The peer: Node's `ws`.
//
// Best configuration: its native addons bufferutil and utf-8-validate, no compression, a message
// sent as the Buffer that came, without a string in between.
'use strict';
const { WebSocketServer } = require(`${process.argv[3]}/ws`);

const channels = new Map();

function join(names, ws) {
  for (const name of names) {
    if (!channels.has(name)) channels.set(name, new Set());
    channels.get(name).add(ws);
  }
  ws.on('close', () => names.forEach((name) => channels.get(name).delete(ws)));
}

function broadcast(name, data) {
  const members = channels.get(name);
  if (!members) return;
  for (const member of members) member.send(data, { binary: false });
}

const server = new WebSocketServer({
  host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: false, backlog: 4096,
});

server.on('connection', (ws, request) => {
  const path = request.url;
  if (path.startsWith('/ws/fanout/')) {
    join([path], ws);
    ws.on('message', (data) => broadcast(path, data));
  } else if (path.startsWith('/ws/multi?')) {
    join(path.split('=')[1].split(','), ws);
    ws.on('message', (data) => broadcast(data.toString('latin1', 0, 4), data));
  } else if (path === '/ws/json') {
    ws.on('message', (data) => ws.send(JSON.stringify(JSON.parse(data))));
  } else {
    if (path.startsWith('/ws/room/')) {
      join([path], ws);
      ws.user = /(?:^|; )user=([^;]*)/.exec(request.headers.cookie)[1];
    }
    ws.on('message', (data) => ws.send(data, { binary: false }));
  }
});
