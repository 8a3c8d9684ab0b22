/*
 * Name resolution when something fails: hostile name servers, a lost worker thread, a reboot in the middle.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { ask } from '../harness/answers';
import { describe } from '../harness/limits';
import { eventually, it, user } from '../harness/machine';
import {
  begun,
  dbLine,
  FAST,
  hostsRow,
  LOOKUP_FAILED,
  nameCluster,
  nameFolder,
  ONE,
  TWO,
  where,
  withNameCluster,
  withNames,
} from '../harness/name-fixtures';
import { NameServer, nameBytes, type Question, record, reply } from '../harness/name-server';
import { withRebootChain } from '../harness/reboot-chain';

withNameCluster();

/** Watches zones five times a second, and keeps addresses for ever. */
const WATCH = { dns_zone_check_period: 0.2, dns_max_ttl: 1000 };

/** A DNS label that is a pointer to itself. */
const LOOP = Buffer.from([0xc0, 0x0c]);

/** Invalid answers of a name server; none of them contains a usable address. */
const TRICKS: Record<string, (question: Question, right: Buffer) => Buffer[]> = {
  'nothing but noise': () => [Buffer.from('\xff'.repeat(700), 'latin1')],
  'an empty packet': () => [Buffer.alloc(0)],
  'half a header': (_, right) => [right.subarray(0, 7)],
  'cut off in the middle': (_, right) => [right.subarray(0, right.length - 3)],
  'counts that promise more': (_, right) => {
    right.writeUInt16BE(0xffff, 6);
    return [right];
  },
  'a record longer than the packet': (question) => [
    reply(question, 0, [Buffer.concat([record(1, Buffer.alloc(0)).subarray(0, 10), Buffer.from([0xff, 0xff, 1])])]),
  ],
  'an address of three bytes': (question) => [reply(question, 0, [record(1, Buffer.from([127, 0, 0]))])],
  'a name that contains itself': (question) => {
    const at = question.packet.length;
    const self = Buffer.from([0xc0 | (at >> 8), at & 0xff]);
    return [reply(question, 0, [Buffer.concat([self, record(1, Buffer.from([127, 0, 0, 1])).subarray(2)])])];
  },
  'an alias of itself': (question) => [reply(question, 0, [record(5, LOOP)])],
  'somebody else’s id': (_, right) => {
    right.writeUInt16BE((right.readUInt16BE(0) + 1) & 0xffff, 0);
    return [right];
  },
  'an answer to another question': (question) => {
    const other = Buffer.concat([
      question.packet.subarray(0, 12),
      nameBytes('evil.test'),
      question.packet.subarray(-4),
    ]);
    return [reply({ ...question, packet: other }, 0, [record(1, Buffer.from([127, 0, 0, 2]))])];
  },
  'the question back': (question) => [Buffer.from(question.packet)],
  'cut short, and no TCP': (question) => [reply(question, 0, [], 0x8780)],
  'a thousand packets': (_, right) => Array(1000).fill(right.subarray(0, 11)),
};

it('the pooler logs the failure of the name thread and starts another thread', async () => {
  // runs in every thread of the pooler, and ends the name thread at its first lookup
  const hook = join(nameFolder(), 'hook.js');
  const lines = [
    "const { isMainThread, workerData } = require('node:worker_threads');",
    `const { existsSync, rmSync } = require('node:fs');`,
    `const mark = ${JSON.stringify(join(nameFolder(), 'die'))};`,
    'if (!isMainThread && workerData?.resolvConf !== undefined)',
    "  workerData.port.on('message', () => { if (existsSync(mark)) { rmSync(mark); process.exit(1); } });",
  ];
  writeFileSync(hook, lines.join('\n'));
  writeFileSync(join(nameFolder(), 'die'), '');
  giveTo(user, nameFolder());
  const env = { NODE_OPTIONS: `--require ${hook}` };
  await withNames({ settings: { dns_nxdomain_ttl: 0 }, env }, async (pooler, names) => {
    names.names.set('one.test', { addresses: [TWO] });
    assert.equal(await where(await begun(pooler)), TWO);
    assert.equal(pooler.log.count(/WARNING DNS resolver thread failed: the thread ended/), 1);
    assert.equal(pooler.log.count(LOOKUP_FAILED), 1);
  });
});

it('a pool tries every address of a name, although another pool takes an address in between', async () => {
  const silent = '127.0.0.9';
  const held: Socket[] = [];
  const server = createServer((socket) => {
    socket.on('error', () => {});
    held.push(socket);
  });
  server.listen(nameCluster().port, silent);
  await once(server, 'listening');
  const line = `${dbLine('one.test')} max_protocol_version=3.0 server_tls_sslmode=disable`;
  const settings = { server_login_retry: 600, dns_max_ttl: 1000 };
  await withNames({ databases: { first: line, second: line }, settings }, async (pooler, names) => {
    names.names.set('one.test', { addresses: [silent, TWO] });
    const waiting = begun(pooler, 'first');
    await eventually('the first pool to connect', () => held.length === 1);
    assert.equal(await where(await begun(pooler, 'second')), TWO);
    server.close();
    held[0]?.destroy();
    assert.equal(await where(await waiting), TWO);
  });
});

describe('online reboot', () => {
  it('after a takeover the new process repeats lookups that were under way', async () => {
    const names = await NameServer.start();
    const settings = {
      pool_mode: 'transaction',
      verbose: 1,
      server_login_retry: 0.1,
      dns_nxdomain_ttl: 0,
      ...WATCH,
      resolv_conf: names.conf(nameFolder(), FAST),
    };
    const databases = { 'one.test': dbLine('one.test'), 'two.test': dbLine('two.test') };
    try {
      await withRebootChain({ cluster: nameCluster(), databases, settings }, async (chain) => {
        await chain.start('ts');
        names.names.set('test', { serial: 1 });
        names.names.set('one.test', { addresses: [ONE] });
        names.names.set('two.test', { addresses: [TWO] });
        const old = await chain.raw();
        await old.login({ database: 'one.test' });
        assert.equal(await where(old), ONE);
        await chain.now.log.wait(/zone 'test' serial changed: old=0 new=1/);
        // for the login, and for the change of the zone
        await eventually('two look-ups', () => names.count('A one.test') >= 2);
        const asked = names.count('A one.test');
        names.trick = (question, right) => (question.name === 'two.test' ? [] : [right]);
        const waiting = await chain.raw();
        const loggedIn = waiting.login({ database: 'two.test' });
        await chain.now.log.wait(/DEBUG dns: resolving two\.test/);
        await chain.reboot('ts');
        assert.equal(await where(old), ONE);
        names.trick = null;
        await loggedIn;
        assert.equal(await where(waiting), TWO);
        await chain.now.log.wait(/zone 'test' serial changed: old=0 new=1/);
        await ask(old, 'BEGIN');
        const another = await chain.raw();
        await another.login({ database: 'one.test' });
        assert.equal(await where(another), ONE);
        // one more: the new process watches the zone, too, and then knows the address
        assert.equal(names.count('A one.test'), asked + 1);
        for (const client of [old, waiting, another]) await client.destroy();
      });
    } finally {
      await names.stop();
    }
  });
});

describe('hostile name servers', () => {
  it('invalid answers of a name server are ignored, and later lookups work', async () => {
    const settings = { ...WATCH, dns_nxdomain_ttl: 0, query_wait_timeout: 0 };
    const hosts = Object.keys(TRICKS).map((_, i) => `n${i}.test`);
    await withNames({ conf: [FAST], settings, hosts }, async (pooler, names) => {
      names.names.set('test', { serial: 1 });
      for (const host of hosts) names.names.set(host, { addresses: [ONE] });
      for (const [i, [what, trick]] of Object.entries(TRICKS).entries()) {
        const host = `n${i}.test`;
        names.trick = (question, right) => (question.name === host ? trick(question, right) : [right]);
        const waiting = begun(pooler, host);
        const line = new RegExp(`WARNING DNS lookup failed: ${host}: result=0`);
        await pooler.logWait(line).catch((err) => {
          throw new Error(`${what}: ${err.message}`);
        });
        names.trick = null;
        assert.equal(await where(await waiting), ONE, what);
      }
    });
  });

  it('invalid answers of a name server do not count as serial numbers', async () => {
    await withNames({ conf: [FAST], settings: WATCH }, async (pooler, names) => {
      names.names.set('test', { serial: 1 });
      names.names.set('one.test', { addresses: [ONE] });
      await begun(pooler);
      await pooler.logWait(/serial changed: old=0 new=1/);
      for (const [what, trick] of Object.entries(TRICKS)) {
        const mark = pooler.log.mark();
        names.names.set('test', { serial: 2 });
        names.trick = (question, right) => (question.type === 'SOA' ? trick(question, right) : [right]);
        await pooler.logWait(/failure to get zone 'test' serial/, mark).catch((err) => {
          throw new Error(`${what}: ${err.message}`);
        });
        assert.equal(pooler.log.count(/serial changed/, mark), 0, what);
      }
      names.trick = null;
      await pooler.logWait(/serial changed: old=1 new=2/);
    });
  });

  it('the pooler uses an answer with thousands of addresses', async () => {
    await withNames({}, async (pooler, names) => {
      const addresses = Array.from({ length: 3500 }, (_, i) => `127.0.${i >> 8}.${i & 255}`);
      names.names.set('one.test', { addresses });
      const client = await pooler.raw();
      await client.startup({ user: 'postgres', database: 'one.test' });
      await eventually('addresses', async () => String((await hostsRow(pooler, 'one.test'))?.addrs ?? '') !== '');
      const found = String((await hostsRow(pooler, 'one.test'))?.addrs).split(',');
      assert.deepEqual([...found].sort(), addresses.map((address) => `${address}:0`).sort());
      await client.destroy();
    });
  });
});
