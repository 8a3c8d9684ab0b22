/*
 * Lists that are kept in order: where an element goes, however many there are and in whatever order they come.
 */
import assert from 'node:assert/strict';
import { type ListNode, nextOf, StatList } from '../src/core/base/list';
import { it } from './harness/machine';

class Numbered implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  constructor(readonly value: number) {}
}

function newList(): StatList<Numbered> {
  return new StatList<Numbered>('numbers', (a, b) => a.value - b.value);
}

function values(list: StatList<Numbered>): number[] {
  const found: number[] = [];
  for (let node = list.head; node !== null; node = nextOf(node)) found.push(node.value);
  return found;
}

/** 0 … count-1, each once, in an order that visits all of them: 7919 is a prime. */
function shuffled(count: number): number[] {
  return Array.from({ length: count }, (_, at) => (at * 7919) % count);
}

it('an ordered list of 20,000 elements inserted in any order comes out sorted', () => {
  const list = newList();
  for (const value of shuffled(20_000)) list.insert(new Numbered(value));
  assert.equal(list.count, 20_000);
  assert.deepEqual(
    values(list),
    shuffled(20_000).sort((a, b) => a - b),
  );
});

it('an ordered list stays sorted while elements leave it and come back', () => {
  const list = newList();
  const nodes = shuffled(3000).map((value) => new Numbered(value));
  for (const node of nodes) list.insert(node);
  for (const node of nodes) if (node.value % 3 !== 0) list.remove(node);
  assert.deepEqual(
    values(list),
    Array.from({ length: 1000 }, (_, at) => at * 3),
  );
  for (const node of nodes) if (node.value % 3 === 1) list.insert(node);
  assert.deepEqual(
    values(list),
    Array.from({ length: 3000 }, (_, at) => at).filter((value) => value % 3 !== 2),
  );
  while (list.pop() !== null);
  assert.equal(list.count, 0);
  list.insert(new Numbered(1));
  assert.deepEqual(values(list), [1]);
});

it('an ordered list refuses an element that equals one it has', () => {
  const list = newList();
  list.insert(new Numbered(5));
  assert.throws(() => list.insert(new Numbered(5)), /found existing element/);
  assert.deepEqual(values(list), [5]);
});
