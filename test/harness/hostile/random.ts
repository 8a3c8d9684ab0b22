/*
 * A small random generator whose seed every run prints, so that a run can be repeated. For the hostile test and the
 * soak.
 */

/** Seeded by the environment variable, else by the clock. */
export function seedFrom(variable: string): number {
  const given = process.env[variable];
  return given === undefined || given === '' ? Date.now() % 0x7fff_ffff : Number(given) >>> 0;
}

export class Random {
  constructor(private state: number) {}

  /** The next 32 bits (Mulberry32). */
  u32(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** A whole number, 0 <= n < limit. */
  below(limit: number): number {
    return limit <= 1 ? 0 : this.u32() % limit;
  }

  /** A whole number, low <= n <= high. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  /** True in one of `of` cases. */
  one(of: number): boolean {
    return this.below(of) === 0;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let at = 0; at < length; at++) bytes[at] = this.u32() & 0xff;
    return bytes;
  }

  /** Bytes without a NUL among them, as a byte string. */
  text(length: number): string {
    return this.bytes(length).toString('latin1').replaceAll('\0', '\x01');
  }

  /** A copy with some bytes changed, inserted, doubled or dropped. */
  mutate(original: Buffer): Buffer {
    let bytes = Buffer.from(original);
    for (let left = this.between(1, 4); left > 0 && bytes.length > 0; left--) {
      const at = this.below(bytes.length);
      const kind = this.below(5);
      if (kind === 0) bytes[at] = this.u32() & 0xff;
      else if (kind === 1) bytes[at] = (bytes[at] as number) ^ (1 << this.below(8));
      else if (kind === 2)
        bytes = Buffer.concat([bytes.subarray(0, at), this.bytes(this.between(1, 9)), bytes.subarray(at)]);
      else if (kind === 3) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + this.between(1, 5))]);
      else bytes = Buffer.concat([bytes, bytes.subarray(at, at + 40)]);
    }
    return bytes;
  }
}
