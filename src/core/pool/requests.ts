/*
 * The requests that a server still owes answers for, in order: one small integer each, in a ring that grows by doubling.
 * The pooler releases a server only when this queue is empty.
 */

/** What to do with the answer to a request (the original's ResponseAction). */
export const enum ResponseAction {
  FORWARD = 0,
  /** the client did not ask for it: drop the answer */
  SKIP = 1,
  /** the request was not sent: make up the answer at this place of the pipeline */
  FAKE = 2,
}

const INITIAL_SLOTS = 16;

export class RequestQueue {
  /** type | action << 8 */
  private slots: Uint16Array = new Uint16Array(INITIAL_SLOTS);
  private head = 0;
  count = 0;

  /** Adds a request. @param type the message's type byte */
  push(type: number, action: ResponseAction): void {
    if (this.count === this.slots.length) this.grow();
    this.slots[(this.head + this.count) & (this.slots.length - 1)] = type | (action << 8);
    this.count++;
  }

  /** Type byte of the oldest request, 0 when there is none. */
  firstType(): number {
    return this.count === 0 ? 0 : (this.slots[this.head] as number) & 0xff;
  }

  firstAction(): ResponseAction {
    return ((this.slots[this.head] as number) >> 8) as ResponseAction;
  }

  /** Drops the oldest request. */
  shift(): void {
    this.head = (this.head + 1) & (this.slots.length - 1);
    this.count--;
  }

  clear(): void {
    this.head = 0;
    this.count = 0;
    // a pipeline of thousands leaves a large ring behind; an idle server should not keep it
    if (this.slots.length > 1024) this.slots = new Uint16Array(INITIAL_SLOTS);
  }

  /** Drops requests up to and including the first whose type is `typeA` or `typeB`; all when there is none. */
  clearUntil(typeA: number, typeB: number): void {
    while (this.count > 0) {
      const type = this.firstType();
      this.shift();
      if (type === typeA || type === typeB) break;
    }
  }

  private grow(): void {
    const old = this.slots;
    const bigger = new Uint16Array(old.length * 2);
    for (let i = 0; i < this.count; i++) bigger[i] = old[(this.head + i) & (old.length - 1)] as number;
    this.slots = bigger;
    this.head = 0;
  }
}
