/*
 * Intrusive doubly linked lists with a count, the original's StatList. An element is in at most one list at a time; the
 * list it is in is the single source of truth for its state, so moving an element is unlinking here, linking there.
 */

import { OrderIndex } from './order';

/** What an object must carry to live in a StatList. `list` is the list it is in now, or null. */
export interface ListNode {
  prev: ListNode | null;
  next: ListNode | null;
  list: StatList<ListNode> | null;
}

export class StatList<T extends ListNode> {
  readonly name: string;
  head: T | null;
  tail: T | null;
  count: number;

  private readonly order: OrderIndex<T> | null;

  /**
   * @param name what the list holds, for messages of failed assertions
   * @param compare for a list that is kept in order: elements come in by insert() only
   */
  constructor(name: string, compare: ((a: T, b: T) => number) | null = null) {
    this.order = compare === null ? null : new OrderIndex(compare);
    this.name = name;
    this.head = null;
    this.tail = null;
    this.count = 0;
  }

  /** Puts `node` last. It must not be in a list. */
  append(node: T): void {
    this.adopt(node);
    node.prev = this.tail;
    node.next = null;
    if (this.tail !== null) this.tail.next = node;
    else this.head = node;
    this.tail = node;
  }

  /** Puts `node` first. It must not be in a list. */
  prepend(node: T): void {
    this.adopt(node);
    node.prev = null;
    node.next = this.head;
    if (this.head !== null) this.head.prev = node;
    else this.tail = node;
    this.head = node;
  }

  /** Puts `node` where the order of the list wants it. O(log n). The list must have an order, and no equal element. */
  insert(node: T): void {
    if (this.order === null) throw new Error(`list ${this.name}: has no order`);
    const next = this.order.insert(node);
    if (next === null) this.append(node);
    else this.putBefore(node, next);
  }

  /** Puts `node` in front of `before`, which must be in this list. */
  putBefore(node: T, before: T): void {
    if (before.prev === null) {
      this.prepend(node);
      return;
    }
    this.adopt(node);
    node.prev = before.prev;
    node.next = before;
    before.prev.next = node;
    before.prev = node;
  }

  /** Takes `node` out. It must be in this list. */
  remove(node: T): void {
    if ((node.list as unknown) !== this) throw new Error(`list ${this.name}: removing an element that is not in it`);
    if (this.order !== null) this.order.remove(node);
    if (node.prev !== null) node.prev.next = node.next;
    else this.head = node.next as T | null;
    if (node.next !== null) node.next.prev = node.prev;
    else this.tail = node.prev as T | null;
    node.prev = null;
    node.next = null;
    node.list = null;
    this.count--;
  }

  /** Takes out and returns the first element, or null from an empty list. */
  pop(): T | null {
    const node = this.head;
    if (node !== null) this.remove(node);
    return node;
  }

  private adopt(node: T): void {
    if (node.list !== null) throw new Error(`list ${this.name}: element is already in list ${node.list.name}`);
    node.list = this as unknown as StatList<ListNode>;
    this.count++;
  }
}

/** The element after `node` in its list, or null. Fetch it before the body of a loop may unlink `node`. */
export function nextOf<T extends ListNode>(node: T): T | null {
  return node.next as T | null;
}
