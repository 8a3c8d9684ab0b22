/*
 * Clients over IPv4 whose address comes in the form of IPv6, ::ffff:1.2.3.4: through a listening socket of both families,
 * as systemd makes them.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { spawnAs } from '../../tools/unprivileged';
import { installed, itUnless, noPython, PgCluster, python, startProgram, user } from '../harness';
import { errorIn } from '../harness/answers';
import { tempDir } from '../harness/machine';
import { PoolerProcess, withRebootChain } from '../harness/reboot-chain';

/** Opens a socket of both families, and executes the pooler, as systemd does. */
const ACTIVATOR = `
import os, socket, sys
tcp = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
os.dup2(tcp.fileno(), 20)
os.dup2(20, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
os.execv(sys.argv[2], sys.argv[2:])
`;

itUnless(noPython)('HBA rules for IPv4 apply to clients of a listening socket of both families', async () => {
  const rules = join(tempDir('hba'), 'hba.conf');
  const lines = [
    'host all postgres 127.0.0.1/32 reject',
    'host all ann 127.0.0.1/32 trust',
    'host all postgres all trust',
  ];
  writeFileSync(rules, `${lines.join('\n')}\n`, { mode: 0o644 });
  const cluster = await PgCluster.start();
  try {
    await cluster.sql('CREATE ROLE ann LOGIN');
    const settings = { auth_type: 'hba', auth_hba_file: rules };
    await withRebootChain({ cluster, settings, userlist: { ann: '' } }, async (chain) => {
      const { node, mainJs } = installed();
      const args = ['-c', ACTIVATOR, String(chain.port), node, mainJs, chain.ini];
      const options = { cwd: chain.dir, stdio: ['ignore', 'ignore', 'pipe'] as ['ignore', 'ignore', 'pipe'] };
      const child = startProgram(python, args, { ...options, ...spawnAs(user) });
      chain.generations.push(await new PoolerProcess('ts', child).waitUp());
      const refused = await (await chain.raw()).login();
      assert.equal(errorIn(refused)?.M, 'login rejected');
      const client = await chain.raw();
      assert.equal((await client.login({ user: 'ann' })).at(-1)?.type, 'Z');
      await chain.now.log.wait(/ann@\[::ffff:127\.0\.0\.1\]:\d+ login attempt/);
      await client.end();
    });
  } finally {
    await cluster.stop();
  }
});
