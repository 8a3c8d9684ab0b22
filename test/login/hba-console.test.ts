/*
 * HBA rules and the console: it is a database, whatever the client says about replication.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorIn, withPooler } from '../harness/answers';
import { it, tempDir } from '../harness/machine';
import { PROTOCOL_30, startupPacket } from '../harness/raw-client';

it('a rule for replication lets no client into the console', async () => {
  const rules = join(tempDir('hba'), 'hba.conf');
  const lines = ['host replication admin all trust', 'host pgbouncer admin all reject', 'local all all trust'];
  writeFileSync(rules, `${lines.join('\n')}\n`, { mode: 0o644 });
  await withPooler({ settings: { auth_type: 'hba', auth_hba_file: rules } }, async (pooler) => {
    for (const replication of ['off', 'database', 'on']) {
      const client = await pooler.raw();
      await client.send(startupPacket(PROTOCOL_30, { user: 'admin', database: 'pgbouncer', replication }));
      assert.equal(errorIn(await client.until('ZE'))?.M, 'login rejected', replication);
    }
  });
});
