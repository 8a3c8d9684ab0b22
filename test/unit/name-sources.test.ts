/*
 * The inputs of the name worker: resolv.conf, the hosts file, and the order of addresses after RFC 6724.
 */

import assert from 'node:assert/strict';
import { compareWays } from '../../src/workers/families';
import { addressOf, candidates, hostsAddresses, parseResolvConf } from '../../src/workers/resolvconf';
import { test } from '../harness/limits';

test('resolv.conf is parsed as by c-ares', () => {
  const text = [
    '# comment',
    'nameserver 127.0.0.1 ; the first',
    'nameserver 127.0.0.1:5300',
    'nameserver ::1',
    'nameserver [::1]:53',
    'nameserver [fe80::1%eth0]:5301',
    'nameserver 10.0.0.1,10.0.0.2',
    'nameserver 1.2.3',
    'nameserver 1.2.3.4:99999',
    'nameserver [1.2.3.4]:53',
    'nameserver one.test',
    'nameserver',
    'domain first.test second.test',
    'search a.test\tb.test # two',
    'domain late.test',
    'options ndots:3 timeout:4 attempts:5 rotate nonsense:1 ndots:x',
    'lookup bind file',
    'sortlist 10.0.0.0/8',
  ].join('\n');
  assert.deepEqual(parseResolvConf(text, {}, 'me.home.test'), {
    servers: [
      '127.0.0.1:53',
      '127.0.0.1:5300',
      '[::1]:53',
      '[::1]:53',
      '[fe80::1%eth0]:5301',
      '10.0.0.1:53',
      '10.0.0.2:53',
    ],
    search: ['a.test', 'b.test'],
    ndots: 3,
    timeoutMs: 4000,
    tries: 5,
    rotate: true,
    lookups: 'bf',
  });
  const empty = {
    servers: ['127.0.0.1:53'],
    search: ['home.test'],
    ndots: 1,
    timeoutMs: 2000,
    tries: 3,
    rotate: false,
  };
  assert.deepEqual(parseResolvConf('', {}, 'me.home.test'), { ...empty, lookups: 'fb' });
  const env = { LOCALDOMAIN: 'env.test', RES_OPTIONS: 'timeout:1 attempts:0' };
  const overruled = parseResolvConf('search a.test\noptions timeout:9', env, 'me');
  assert.deepEqual([overruled.search, overruled.timeoutMs, overruled.tries], [['env.test'], 1000, 3]);
  assert.deepEqual(candidates(overruled, 'x'), ['x.env.test', 'x']);
  assert.deepEqual(candidates(overruled, 'x.y'), ['x.y', 'x.y.env.test']);
  assert.deepEqual(candidates(overruled, 'x.'), ['x']);
});

test('the hosts file is searched for names and aliases in any case, over all lines', () => {
  const text =
    '127.0.0.1 localhost here # there\n#9.9.9.9 here\n::0001\tip6 HERE\n10.0.0.300 here\n1.2.3.4\n127.0.0.1 here\n';
  assert.deepEqual(hostsAddresses(text, 'Here.'), [
    { family: 4, host: '127.0.0.1' },
    { family: 6, host: '::1' },
  ]);
  assert.deepEqual(hostsAddresses(text, 'there'), []);
});

test('the address family is the one that RFC 6724 puts first', () => {
  const way = (to: string, from: string | null) => {
    return {
      to: addressOf(to) as NonNullable<ReturnType<typeof addressOf>>,
      from: from === null ? null : addressOf(from),
    };
  };
  const global6 = way('2001:db8::1', '2001:db8::2');
  const cases: [ReturnType<typeof way>, ReturnType<typeof way>, string][] = [
    [global6, way('10.0.0.1', '10.0.0.2'), 'IPv6 before IPv4'],
    [way('10.0.0.1', '10.0.0.2'), way('2001:db8::1', null), 'no way there'],
    [way('10.0.0.1', '10.0.0.2'), way('2001:db8::1', 'fe80::2'), 'a source of smaller scope'],
    [way('10.0.0.1', '10.0.0.2'), way('2001:db8::1', 'fd00::2'), 'a source of another label'],
    [way('10.0.0.1', '10.0.0.2'), way('fd00::1', 'fd00::2'), 'precedence: local IPv6 last'],
    [way('10.0.0.1', '10.0.0.2'), way('2002:102:304::1', '2002:102:304::2'), 'precedence: 6to4'],
    [way('::1', '::1'), way('127.0.0.1', '127.0.0.1'), 'this machine'],
  ];
  for (const [better, worse, what] of cases) {
    assert.ok(compareWays(better, worse) < 0, what);
    assert.ok(compareWays(worse, better) > 0, what);
  }
});
