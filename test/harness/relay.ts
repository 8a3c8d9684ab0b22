/*
 * Connections to a Unix socket by another user: the pooler asks the kernel who its peer is.
 */

import { spawnAs } from '../../tools/unprivileged';
import { LogTail } from './log-tail';
import { installed, startProgram } from './machine';
import { RawClient } from './raw-client';

/** A program that relays connections; the pooler sees its user as the peer. */
const RELAY = `
const net = require('node:net');
net.createServer((from) => {
  const to = net.connect(process.argv[1]);
  from.pipe(to);
  to.pipe(from);
  for (const end of [from, to]) end.on('error', () => {}).on('close', () => { from.destroy(); to.destroy(); });
}).listen(process.argv[2], () => console.error('listening'));
`;

/**
 * Connects to a Unix socket as that user.
 * @param user null = the user of this process
 * @param path where the relay listens: a path in a folder of that user
 */
export async function connectAs(
  user: { name: string; uid: number; gid: number } | null,
  socketPath: string,
  path: string,
): Promise<RawClient> {
  const relay = startProgram(installed().node, ['-e', RELAY, socketPath, path], {
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  await new LogTail(relay).wait(/listening/);
  const client = await RawClient.connect({ path });
  client.socket.once('close', () => relay.kill());
  return client;
}
