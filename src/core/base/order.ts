/*
 * Where an element belongs in an ordered list, found in O(log n): sorted blocks of bounded length. Used by StatList, so that
 * an auth_file of 100,000 users in any order is taken in one go.
 */

/** A full block is split in two. */
const BLOCK_MAX = 512;

export class OrderIndex<T> {
  private readonly compare: (a: T, b: T) => number;
  /** no block is empty; every element of one is before every element of the next */
  private readonly blocks: T[][] = [];

  /** @param compare < 0, 0 or > 0, like a sort's; must not change its mind about two elements while they are here */
  constructor(compare: (a: T, b: T) => number) {
    this.compare = compare;
  }

  /**
   * Adds an element.
   * @returns the element behind it, or null when it is the last
   * @throws Error when an equal one is here already
   */
  insert(node: T): T | null {
    const at = this.blockOf(node);
    const block = this.blocks[at];
    if (block === undefined) {
      this.blocks.push([node]);
      return null;
    }
    const place = this.placeIn(block, node);
    const found = block[place];
    if (found !== undefined && this.compare(found, node) === 0) throw new Error('found existing element');
    block.splice(place, 0, node);
    const next = block[place + 1] ?? this.blocks[at + 1]?.[0] ?? null;
    if (block.length > BLOCK_MAX) this.blocks.splice(at + 1, 0, block.splice(BLOCK_MAX >> 1));
    return next;
  }

  /** Takes out an element that is here. */
  remove(node: T): void {
    const at = this.blockOf(node);
    const block = this.blocks[at];
    if (block === undefined) return;
    const place = this.placeIn(block, node);
    if (block[place] !== node) return;
    block.splice(place, 1);
    if (block.length === 0) this.blocks.splice(at, 1);
  }

  /** The first block whose last element is not before `node`; the last block when there is none. */
  private blockOf(node: T): number {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      const block = this.blocks[middle] as T[];
      if (this.compare(block[block.length - 1] as T, node) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Index of the first element of the block that is not before `node`. */
  private placeIn(block: T[], node: T): number {
    let low = 0;
    let high = block.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.compare(block[middle] as T, node) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
