/*
 * Sorted lists with insertions and removals, compared with an array that is sorted each time.
 */

import assert from 'node:assert/strict';
import { type ListNode, nextOf, StatList } from '../../src/core/base/list';
import { OrderedIndex } from '../../src/core/base/ordered';
import { Random } from '../harness/hostile/random';
import { describe, it } from '../harness/limits';

class Item implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  constructor(readonly key: number) {}
}

function keys(list: StatList<Item>): number[] {
  const found: number[] = [];
  for (let item = list.head; item !== null; item = nextOf(item)) found.push(item.key);
  return found;
}

function newOrder(): { list: StatList<Item>; order: OrderedIndex<Item> } {
  const list = new StatList<Item>('items');
  return { list, order: new OrderedIndex<Item>(list, (a, b) => a.key - b.key) };
}

describe('sorted lists', () => {
  it('a sorted list keeps its order through insertions and removals', () => {
    const random = new Random(7);
    const { list, order } = newOrder();
    const items = new Map<number, Item>();
    for (let step = 0; step < 20_000; step++) {
      const key = random.below(4000);
      const known = items.get(key);
      if (known === undefined) {
        const item = new Item(key);
        items.set(key, item);
        order.insert(item);
      } else {
        items.delete(key);
        order.remove(known);
      }
      if (step % 1000 === 0)
        assert.deepEqual(
          keys(list),
          [...items.keys()].sort((a, b) => a - b),
        );
    }
    for (const item of [...items.values()]) order.remove(item);
    assert.equal(list.count, 0);
    order.insert(new Item(1));
    assert.deepEqual(keys(list), [1]);
  });

  it('a sorted list accepts elements in ascending or descending order', () => {
    const { list, order } = newOrder();
    for (let key = 5000; key < 10_000; key++) order.insert(new Item(key));
    for (let key = 4999; key >= 0; key--) order.insert(new Item(key));
    assert.deepEqual(
      keys(list),
      Array.from({ length: 10_000 }, (_, n) => n),
    );
  });

  it('a sorted list refuses an equal element, and the removal of an unknown element', () => {
    const { order } = newOrder();
    order.insert(new Item(1));
    assert.throws(() => order.insert(new Item(1)), /found existing element/);
    assert.throws(() => order.remove(new Item(1)), /not in order/);
    assert.throws(() => order.remove(new Item(2)), /not in order/);
  });
});
