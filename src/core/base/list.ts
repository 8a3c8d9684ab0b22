/*
 * Intrusive doubly linked lists with a count, PgBouncer's StatList. An element is in at most one list at a time. The
 * list is the single source of truth for the element's state: a change of state moves the element to another list.
 */

/** Fields that an object needs to be in a StatList. `list` is its current list, or null. */
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

  /** @param name what the list holds, for the messages of failed assertions */
  constructor(name: string) {
    this.name = name;
    this.head = null;
    this.tail = null;
    this.count = 0;
  }

  /** Appends `node`, which must not be in a list. */
  append(node: T): void {
    this.adopt(node);
    node.prev = this.tail;
    node.next = null;
    if (this.tail !== null) this.tail.next = node;
    else this.head = node;
    this.tail = node;
  }

  /** Prepends `node`, which must not be in a list. */
  prepend(node: T): void {
    this.adopt(node);
    node.prev = null;
    node.next = this.head;
    if (this.head !== null) this.head.prev = node;
    else this.tail = node;
    this.head = node;
  }

  /** Inserts `node` before `before`, which must be in this list. */
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

  /** Removes `node`, which must be in this list. */
  remove(node: T): void {
    if ((node.list as unknown) !== this) throw new Error(`list ${this.name}: removing an element that is not in it`);
    if (node.prev !== null) node.prev.next = node.next;
    else this.head = node.next as T | null;
    if (node.next !== null) node.next.prev = node.prev;
    else this.tail = node.prev as T | null;
    node.prev = null;
    node.next = null;
    node.list = null;
    this.count--;
  }

  /** Removes and returns the first element; null if the list is empty. */
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

/** The element after `node` in its list, or null. Fetch it before the loop body may unlink `node`. */
export function nextOf<T extends ListNode>(node: T): T | null {
  return node.next as T | null;
}
