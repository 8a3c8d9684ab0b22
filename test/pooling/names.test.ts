/*
 * `resolv_conf` and `dns_zone_check_period`: names resolved by configured name servers, zones watched by their serial
 * numbers, and name servers that are down, slow or wrong.
 */

import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ask, login, show, withPooler } from '../harness/answers';
import { describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import {
  begun,
  dbLine,
  FAST,
  hostsRow,
  LOOKUP_FAILED,
  nameFolder,
  ONE,
  PATIENT,
  TWO,
  where,
  withNameCluster,
  withNames,
} from '../harness/name-fixtures';
import { NameServer, SERVFAIL } from '../harness/name-server';

withNameCluster();

describe('resolv_conf', () => {
  it('the name server of resolv_conf is asked for A and AAAA, and answers are used for dns_max_ttl', async () => {
    await withNames({ settings: { dns_max_ttl: 1000 } }, async (pooler, names) => {
      names.names.set('one.test', { addresses: [TWO] });
      names.trick = (question, right) => {
        // a TTL of 0
        if (question.type === 'A') right.writeUInt32BE(0, question.packet.length + 6);
        return [right];
      };
      assert.equal(await where(await begun(pooler)), TWO);
      assert.equal(await where(await begun(pooler)), TWO);
      assert.deepEqual([...names.asked].sort(), ['A one.test', 'AAAA one.test']);
      const row = await hostsRow(pooler, 'one.test');
      assert.equal(row?.addrs, `${TWO}:0`);
      assert.ok(Number(row?.ttl) > 900 && Number(row?.ttl) <= 1000, `${row?.ttl}`);
      assert.deepEqual(await show(pooler, 'DNS_ZONES'), [{ zonename: 'test', serial: '0', count: 1 }]);
    });
    await withNames({ settings: { dns_max_ttl: 0 } }, async (pooler, names) => {
      names.names.set('one.test', { addresses: [TWO] });
      await begun(pooler);
      await begun(pooler);
      assert.equal(names.count('A one.test'), 2);
    });
  });

  it('several addresses of a name take turns', async () => {
    await withNames({}, async (pooler, names) => {
      names.names.set('one.test', { addresses: [ONE, TWO] });
      const hosts = [];
      for (let i = 0; i < 4; i++) hosts.push(await where(await begun(pooler)));
      assert.deepEqual(hosts, [ONE, TWO, ONE, TWO]);
    });
  });

  it('the next address of a name is tried at once if an address refuses', async () => {
    await withNames({ settings: { server_login_retry: 600 } }, async (pooler, names) => {
      names.names.set('one.test', { addresses: ['127.0.0.9', TWO] });
      assert.equal(await where(await begun(pooler)), TWO);
      assert.equal(await where(await begun(pooler)), TWO);
      assert.equal(pooler.log.count(/closing because: connect failed/), 2);
    });
  });

  it('resolv_conf applies the search list and ndots', async () => {
    const conf = [PATIENT, 'search nowhere.test x.test', 'options ndots:2'];
    await withNames({ hosts: ['short', 'dotted.name', 'whole.test.'], conf }, async (pooler, names) => {
      names.names.set('short.x.test', { addresses: [ONE] });
      names.names.set('dotted.name', { addresses: [ONE] });
      names.names.set('whole.test', { addresses: [ONE] });
      for (const database of ['short', 'dotted.name', 'whole.test.']) await begun(pooler, database);
      assert.deepEqual(
        names.asked.filter((each) => each.startsWith('A ')),
        [
          'A short.nowhere.test',
          'A short.x.test',
          'A dotted.name.nowhere.test',
          'A dotted.name.x.test',
          'A dotted.name',
          'A whole.test',
        ],
      );
    });
    const env = { LOCALDOMAIN: 'y.test', RES_OPTIONS: 'ndots:1' };
    await withNames({ hosts: ['short'], conf, env }, async (pooler, names) => {
      names.names.set('short.y.test', { addresses: [ONE] });
      await begun(pooler, 'short');
    });
  });

  it('no name server is asked for names in the hosts file or for this machine', async () => {
    await withNames({ hosts: ['localhost', 'deep.localhost'] }, async (pooler, names) => {
      for (const host of ['localhost', 'deep.localhost']) {
        const client = await pooler.raw();
        await client.startup({ user: 'postgres', database: host });
        await eventually(
          `addresses of ${host}`,
          async () => String((await hostsRow(pooler, host))?.addrs ?? '') !== '',
        );
        await client.destroy();
      }
      assert.deepEqual(names.asked, []);
    });
  });

  it('a missing name is cached for dns_nxdomain_ttl', async () => {
    for (const [ttl, many] of [
      [1000, false],
      [0, true],
    ] as const) {
      await withNames({ settings: { dns_nxdomain_ttl: ttl } }, async (pooler, names) => {
        const client = await pooler.raw();
        await client.startup({ user: 'postgres', database: 'one.test' });
        await eventually('failures', () => pooler.log.count(/server DNS lookup failed/) >= 4);
        await pooler.logWait(LOOKUP_FAILED);
        await pooler.logWait(/DEBUG DNS lookup failed: one\.test - Domain name not found/);
        if (many) assert.ok(names.count('A one.test') >= 3);
        else assert.equal(names.count('A one.test'), 1);
        await client.destroy();
      });
    }
  });

  const failures: [string, (names: NameServer) => void, RegExp][] = [
    ['SERVFAIL', (names) => names.names.set('one.test', { rcode: SERVFAIL }), /- DNS server returned general failure/],
    ['no address', (names) => names.names.set('one.test', {}), /- DNS server returned answer with no data/],
    ['no answer', (names) => (names.trick = () => []), /- (Timeout while contacting|Could not contact) DNS servers/],
  ];
  for (const [what, fail, text] of failures) {
    it(`a client waits until names can be resolved again: ${what}`, async () => {
      await withNames({ conf: [FAST], settings: { dns_nxdomain_ttl: 0 } }, async (pooler, names) => {
        fail(names);
        const client = await login(pooler, { database: 'pgbouncer', user: 'admin', password: 'admin-password' });
        const waiting = begun(pooler);
        await pooler.logWait(LOOKUP_FAILED);
        await pooler.logWait(text);
        assert.ok((await client.query('SHOW VERSION')).length > 0, 'the loop goes on meanwhile');
        names.names.set('one.test', { addresses: [ONE] });
        names.trick = null;
        assert.equal(await where(await waiting), ONE);
      });
    });
  }

  it('an answer for one address family suffices if the other query gets no answer', async () => {
    await withNames({ conf: [FAST] }, async (pooler, names) => {
      names.names.set('one.test', { addresses: [TWO] });
      names.trick = (question, right) => (question.type === 'AAAA' ? [] : [right]);
      assert.equal(await where(await begun(pooler)), TWO);
    });
  });

  it('a missing name server is skipped, and a new name server is used once resolv_conf changes', async () => {
    const conf = ['nameserver 127.0.0.1:1', 'nameserver nonsense', FAST];
    await withNames({ conf, settings: { dns_nxdomain_ttl: 0, dns_max_ttl: 0 } }, async (pooler, names) => {
      names.names.set('one.test', { addresses: [TWO] });
      writeFileSync(
        join(nameFolder(), 'resolv.conf'),
        `nameserver 127.0.0.1:1\nnameserver ${names.address}\n${FAST}\n`,
      );
      assert.equal(await where(await begun(pooler)), TWO);
      writeFileSync(join(nameFolder(), 'resolv.conf'), `nameserver 127.0.0.1:1\n${FAST}\n#\n`);
      const waiting = begun(pooler);
      await pooler.logWait(/DEBUG DNS lookup failed: one\.test - Could not contact DNS servers/);
      names.conf(nameFolder(), FAST, '# again');
      assert.equal(await where(await waiting), TWO);
    });
  });

  it('a missing resolv_conf is logged once, and c-ares asks this machine', async () => {
    const names = await NameServer.start();
    const path = names.conf(nameFolder());
    rmSync(path);
    await names.stop();
    const settings = { resolv_conf: path, server_login_retry: 0.1, dns_nxdomain_ttl: 0 };
    const databases = { 'one.test': dbLine('one.test') };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await pooler.raw();
      await client.startup({ user: 'postgres', database: 'one.test' });
      await eventually('failures', () => pooler.log.count(LOOKUP_FAILED) >= 2);
      assert.equal(pooler.log.count(/WARNING could not open resolv_conf .*: No such file or directory/), 1);
      assert.equal(pooler.log.count(/has no effect/), 0);
      await client.destroy();
    });
  });
});

/** Checks zones five times a second and caches addresses indefinitely. */
const WATCH = { dns_zone_check_period: 0.2, dns_max_ttl: 1000 };

describe('dns_zone_check_period', () => {
  it('a higher serial number renews lookups, and servers on removed addresses are closed', async () => {
    await withNames({ settings: WATCH, hosts: ['one.test', 'two.test'] }, async (pooler, names) => {
      names.names.set('test', { serial: 7 });
      names.names.set('one.test', { addresses: [ONE] });
      names.names.set('two.test', { addresses: [ONE] });
      const client = await begun(pooler);
      await begun(pooler, 'two.test');
      await pooler.logWait(/LOG zone 'test' serial changed: old=0 new=7/);
      await pooler.logWait(/DEBUG zone 'test' unchanged: serial=7/);
      assert.deepEqual(await show(pooler, 'DNS_ZONES'), [{ zonename: 'test', serial: '7', count: 2 }]);
      const lists = await show(pooler, 'LISTS', { list: 'dns_zones' });
      assert.equal(lists[0]?.items, 1);

      const before = [names.count('A one.test'), names.count('A two.test')];
      names.names.set('one.test', { addresses: [TWO] });
      names.names.set('test', { serial: 8 });
      await pooler.logWait(/LOG zone 'test' serial changed: old=7 new=8/);
      await eventually('new addresses', async () => (await hostsRow(pooler, 'one.test'))?.addrs === `${TWO}:0`);
      assert.deepEqual(
        [names.count('A one.test'), names.count('A two.test')],
        before.map((count) => count + 1),
      );
      assert.equal(await where(client), ONE, 'a transaction goes on');
      await ask(client, 'COMMIT');
      await pooler.logWait(/S-[^\n]*@127\.0\.0\.1:\d+ closing because: /);
      assert.equal(await where(client), TWO);
      assert.equal(pooler.log.count(/two\.test\/[^\n]*closing because/), 0);
    });
  });

  it('an address removed while lookups fail is noticed when lookups work again', async () => {
    await withNames({ settings: { ...WATCH, dns_nxdomain_ttl: 0 } }, async (pooler, names) => {
      names.names.set('test', { serial: 1 });
      names.names.set('one.test', { addresses: [ONE] });
      const client = await begun(pooler);
      await pooler.logWait(/serial changed: old=0 new=1/);
      names.names.set('one.test', { rcode: SERVFAIL });
      names.names.set('test', { serial: 2 });
      await pooler.logWait(LOOKUP_FAILED);
      names.names.set('one.test', { addresses: [TWO] });
      names.names.set('test', { serial: 3 });
      await eventually('new addresses', async () => (await hostsRow(pooler, 'one.test'))?.addrs === `${TWO}:0`);
      await ask(client, 'COMMIT');
      await pooler.logWait(/S-[^\n]*@127\.0\.0\.1:\d+ closing because: /);
    });
  });

  it('after an online reboot, the zones of the servers that were taken over are checked, and their addresses', async () => {
    await withNames({ settings: WATCH }, async (pooler, names) => {
      names.names.set('test', { serial: 1 });
      names.names.set('one.test', { addresses: [ONE] });
      const client = await begun(pooler);
      const next = pooler.beside(['-R']);
      await next.waitUp();
      await pooler.expectEnd();
      assert.equal((await hostsRow(next, 'one.test'))?.addrs, `${ONE}:0`);
      await next.logWait(/serial changed: old=0 new=1/);
      names.names.set('one.test', { addresses: [TWO] });
      names.names.set('test', { serial: 2 });
      await eventually('new addresses', async () => (await hostsRow(next, 'one.test'))?.addrs === `${TWO}:0`);
      assert.equal(await where(client), ONE, 'a transaction goes on');
      await ask(client, 'COMMIT');
      await next.logWait(/S-[^\n]*@127\.0\.0\.1:\d+ closing because: /);
      assert.equal(await where(client), TWO);
      await next.stop();
    });
  });

  it('zones of names in a list of hosts are checked too', async () => {
    await withNames({ settings: WATCH, hosts: [] }, async (pooler, names) => {
      names.names.set('test', { serial: 1 });
      names.names.set('one.test', { addresses: [ONE] });
      names.names.set('two.test', { addresses: [ONE] });
      pooler.rewrite({ databases: { list: dbLine('one.test,two.test') } });
      await pooler.admin('RELOAD');
      const clients = [await begun(pooler, 'list'), await begun(pooler, 'list')];
      await pooler.logWait(/serial changed: old=0 new=1/);
      names.names.set('one.test', { addresses: [TWO] });
      names.names.set('test', { serial: 2 });
      await eventually('new addresses', async () => (await hostsRow(pooler, 'one.test'))?.addrs === `${TWO}:0`);
      for (const client of clients) await ask(client, 'COMMIT');
      await pooler.logWait(/S-[^\n]*closing because: /);
      assert.equal((await show(pooler, 'SERVERS')).length, 1, 'the server of the other name stays');
    });
  });

  it('serial numbers wrap around, and a lower serial number has no effect', async () => {
    await withNames({ settings: WATCH }, async (pooler, names) => {
      const zone = async (serial: number, text: RegExp) => {
        const mark = pooler.log.mark();
        names.names.set('test', { serial });
        await pooler.logWait(text, mark);
      };
      names.names.set('one.test', { addresses: [ONE] });
      names.names.set('test', { serial: 0x7fffffff });
      await begun(pooler);
      await pooler.logWait(/serial changed: old=0 new=2147483647/);
      await zone(0xfffffff0, /serial changed: old=2147483647 new=4294967280/);
      await zone(0xffffffef, /unchanged: serial=4294967279/);
      await zone(3, /serial changed: old=4294967280 new=3/);
      assert.equal((await show(pooler, 'DNS_ZONES'))[0]?.serial, '3');
    });
  });

  it('the first serial number of a zone may be of any size', async () => {
    await withNames({ settings: WATCH }, async (pooler, names) => {
      names.names.set('one.test', { addresses: [ONE] });
      names.names.set('test', { serial: 0xf0000000 });
      await begun(pooler);
      await pooler.logWait(/serial changed: old=0 new=4026531840/);
      names.names.set('one.test', { addresses: [TWO] });
      names.names.set('test', { serial: 0xf0000001 });
      await eventually('new addresses', async () => (await hostsRow(pooler, 'one.test'))?.addrs === `${TWO}:0`);
    });
  });

  it('an unknown or removed zone has no effect, and other zones are still checked', async () => {
    await withNames(
      { conf: [FAST], settings: WATCH, hosts: ['one.test', 'two.gone', 'nodot'] },
      async (pooler, names) => {
        for (const name of ['one.test', 'two.gone', 'nodot']) names.names.set(name, { addresses: [ONE] });
        names.names.set('test', { serial: 1 });
        names.names.set('gone', { serial: 5 });
        await begun(pooler, 'two.gone');
        await begun(pooler);
        await begun(pooler, 'nodot');
        await pooler.logWait(/zone 'gone' serial changed: old=0 new=5/);
        await pooler.logWait(/zone 'test' serial changed: old=0 new=1/);
        names.names.delete('gone');
        await pooler.logWait(/DEBUG failure to get zone 'gone' serial/);
        names.names.set('test', { serial: 2 });
        await pooler.logWait(/zone 'test' serial changed: old=1 new=2/);
        assert.deepEqual(await show(pooler, 'DNS_ZONES'), [
          { zonename: 'gone', serial: '5', count: 1 },
          { zonename: 'test', serial: '2', count: 1 },
        ]);
        assert.equal((await hostsRow(pooler, 'two.gone'))?.addrs, `${ONE}:0`);
        names.trick = () => [];
        await eventually('silence noticed', () => pooler.log.count(/failure to get zone 'test' serial/) >= 1);
        names.trick = null;
        names.names.set('test', { serial: 3 });
        await pooler.logWait(/zone 'test' serial changed: old=2 new=3/);
      },
    );
  });

  it('RELOAD starts and stops the zone checks', async () => {
    await withNames({}, async (pooler, names) => {
      names.names.set('one.test', { addresses: [ONE] });
      names.names.set('test', { serial: 1 });
      await begun(pooler);
      const set = async (period: number) => {
        pooler.rewrite({ settings: { dns_zone_check_period: period } });
        await pooler.admin('RELOAD');
      };
      await set(0.1);
      await pooler.logWait(/serial changed: old=0 new=1/);
      await set(0);
      names.names.set('test', { serial: 2 });
      // one check may have been under way, and the janitor runs three times a second
      await eventually('an end of the asking', async () => {
        const asked = names.count('SOA test');
        await new Promise((wake) => setTimeout(wake, 1000));
        return names.count('SOA test') === asked;
      });
      const mark = pooler.log.mark();
      names.names.set('test', { serial: 3 });
      await set(0.1);
      await pooler.logWait(/serial changed: old=[12] new=3/, mark);
    });
  });
});

/* ---- the files, and which family ---- */
