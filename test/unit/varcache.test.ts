/*
 * Whether a server has the values of a client: the quick comparison, which is about numbers of sets of values, must always
 * give the result of comparing the values.
 */
import assert from 'node:assert/strict';
import { initVarLookup, ServerVars, VarBit, VarCache, varNames } from '../../src/core/pool/varcache';
import { Random } from '../harness/hostile/random';
import { beforeEach, describe, it } from '../harness/limits';

const ALWAYS_TRACKED = 5;

/** As docs/config.md tells it: values are equal; a client without a value of its own takes what is unchanged. */
function needsNoSet(server: ServerVars, client: VarCache): boolean {
  return client.values.every((value, i) => {
    if (value === null && i >= ALWAYS_TRACKED) return ((server.bits[i] as number) & VarBit.CHANGED) === 0;
    return value === server.values[i];
  });
}

describe('variables of clients and servers', () => {
  beforeEach(() => initVarLookup(''));

  const value = (n: number) => (n === 0 ? 'x'.repeat(1500) : `value ${n}`);

  /** Something that changes the variables of a client or a server. */
  function change(random: Random, client: VarCache, server: ServerVars): void {
    const name = random.pick(varNames());
    const text = value(random.one(20) ? 0 : random.between(1, 2));
    const changes = [
      () => client.set(name, text),
      () => client.set(name, null),
      () => client.setUnproven(name, text),
      () => client.intern(),
      () => client.fillUnset(server),
      () => client.adoptSpelling(server, () => undefined),
      () => server.report(name, text, random.one(2)),
      () => server.setBits(name, random.below(4)),
      () => server.forget(random.one(2)),
      () => {
        const undo = server.save();
        server.diff(client, null);
        if (random.one(2)) server.restore(undo);
      },
    ];
    random.pick(changes)();
  }

  it('the quick comparison is right after any changes', () => {
    let equal = 0;
    let different = 0;
    for (let seed = 1; seed <= 40; seed++) {
      const random = new Random(seed);
      const clients = Array.from({ length: 4 }, () => new VarCache());
      const servers = Array.from({ length: 3 }, () => new ServerVars());
      for (const name of varNames()) for (const vars of [...clients, ...servers]) vars.set(name, value(1));
      for (let step = 0; step < 500; step++) {
        const client = random.pick(clients);
        const server = random.pick(servers);
        if (random.one(8)) change(random, client, server);
        const expected = needsNoSet(server, client);
        assert.equal(server.matches(client), expected, `seed ${seed}, step ${step}`);
        if (expected) equal++;
        else different++;
      }
    }
    assert.ok(equal > 2000, `${equal} comparisons found no difference`);
    assert.ok(different > 2000, `${different} comparisons found a difference`);
  });

  it('two clients with the same values have the same number from the second call on', () => {
    const [a, b] = [new VarCache(), new VarCache()];
    for (const vars of [a, b]) vars.set('application_name', 'same');
    assert.equal(a.number(), 0);
    assert.equal(b.number(), 0);
    assert.ok(a.number() > 0);
    assert.equal(b.number(), a.number());
    b.set('application_name', 'other');
    assert.equal(b.knownNumber(), 0);
    b.number();
    assert.notEqual(b.number(), a.number());
  });

  it('more sets of values than are remembered get new numbers', () => {
    const first = new VarCache();
    first.set('application_name', 'first');
    first.number();
    const number = first.number();
    for (let i = 0; i < 2100; i++) {
      const other = new VarCache();
      other.set('application_name', `application ${i}`);
      other.number();
      assert.notEqual(other.number(), number);
    }
    assert.equal(first.number(), number);
  });
});
