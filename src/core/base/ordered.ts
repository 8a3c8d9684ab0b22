/*
 * Keeps a StatList sorted while elements are added and removed: users, databases and pools, up to a hundred thousand of
 * them. The list itself stays an ordinary list. Beside it, this index holds the same elements in short sorted blocks,
 * in which the position of a new element is found by binary search.
 */
import type { ListNode, StatList } from './list';

/** A block that has grown to this length is split in two. */
const BLOCK_MAX = 512;

export class OrderedIndex<T extends ListNode> {
  private readonly list: StatList<T>;
  /** negative = the first argument sorts first; 0 only for the same element */
  private readonly compare: (a: T, b: T) => number;
  /** no block is empty */
  private blocks: T[][] = [];

  constructor(list: StatList<T>, compare: (a: T, b: T) => number) {
    this.list = list;
    this.compare = compare;
  }

  /** Inserts `node` into the list at its sorted position. Throws if an equal element is present. */
  insert(node: T): void {
    const { tail } = this.list;
    if (tail === null) this.blocks.push([]);
    const b = this.blockOf(node);
    const block = this.blocks[b] as T[];
    const at = this.placeIn(block, node);
    const after = block[at] ?? this.blocks[b + 1]?.[0];
    if (after !== undefined && this.compare(after, node) === 0)
      throw new Error(`list ${this.list.name}: found existing element`);
    if (after === undefined) this.list.append(node);
    else this.list.putBefore(node, after);
    block.splice(at, 0, node);
    if (block.length >= BLOCK_MAX) this.blocks.splice(b + 1, 0, block.splice(BLOCK_MAX >> 1));
  }

  /** Removes `node` from the list. The fields that `compare` reads must be unchanged since it was inserted. */
  remove(node: T): void {
    const b = this.blockOf(node);
    const block = this.blocks[b] ?? [];
    const at = this.placeIn(block, node);
    if (block[at] !== node) throw new Error(`list ${this.list.name}: removing an element that is not in order`);
    this.list.remove(node);
    block.splice(at, 1);
    if (block.length === 0) this.blocks.splice(b, 1);
  }

  /** Number of the block that contains `node` or would contain it: the last block that does not begin after it. */
  private blockOf(node: T): number {
    let low = 0;
    let high = this.blocks.length;
    while (high - low > 1) {
      const mid = (low + high) >> 1;
      if (this.compare((this.blocks[mid] as T[])[0] as T, node) <= 0) low = mid;
      else high = mid;
    }
    return low;
  }

  /** Index of the first element in the block that does not sort before `node`. */
  private placeIn(block: readonly T[], node: T): number {
    let low = 0;
    let high = block.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (this.compare(block[mid] as T, node) < 0) low = mid + 1;
      else high = mid;
    }
    return low;
  }
}
