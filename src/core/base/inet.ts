/*
 * IP addresses as bytes, read and written as inet_pton() and inet_ntop() do. For HBA rules, and for other code that
 * compares addresses rather than printing them.
 */

const IPV4_BYTES = 4;
const IPV6_BYTES = 16;
const GROUPS = 8;

/** Dotted decimal: four numbers without leading zeros. @returns null if the text is not an IPv4 address */
export function parseInet4(text: string): Uint8Array | null {
  const parts = text.split('.');
  if (parts.length !== IPV4_BYTES) return null;
  const bytes = new Uint8Array(IPV4_BYTES);
  for (let i = 0; i < IPV4_BYTES; i++) {
    const part = parts[i] as string;
    if (!/^(0|[1-9][0-9]{0,2})$/.test(part)) return null;
    const value = Number(part);
    if (value > 255) return null;
    bytes[i] = value;
  }
  return bytes;
}

/** The 16-bit groups on one side of a `::`, or null. Only the very last group may be an IPv4 address. */
function parseGroups(text: string, last: boolean): number[] | null {
  if (text === '') return [];
  const parts = text.split(':');
  const groups: number[] = [];
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i] as string;
    if (last && i === parts.length - 1 && part.includes('.')) {
      const v4 = parseInet4(part);
      if (v4 === null) return null;
      groups.push((v4[0] as number) * 256 + (v4[1] as number), (v4[2] as number) * 256 + (v4[3] as number));
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      groups.push(Number.parseInt(part, 16));
    } else {
      return null;
    }
  }
  return groups;
}

/** Any spelling of RFC 4291, without a zone. @returns null if the text is not an IPv6 address */
export function parseInet6(text: string): Uint8Array | null {
  if (text.length > 45) return null;
  const sides = text.split('::');
  if (sides.length > 2) return null;
  const head = parseGroups(sides[0] as string, sides.length === 1);
  const tail = sides.length === 2 ? parseGroups(sides[1] as string, true) : [];
  if (head === null || tail === null) return null;
  const missing = GROUPS - head.length - tail.length;
  // `::` stands for at least one group
  if (sides.length === 2 ? missing < 1 : missing !== 0) return null;
  const groups = [...head, ...new Array<number>(missing).fill(0), ...tail];
  const bytes = new Uint8Array(IPV6_BYTES);
  for (let i = 0; i < GROUPS; i++) {
    bytes[2 * i] = (groups[i] as number) >> 8;
    bytes[2 * i + 1] = (groups[i] as number) & 0xff;
  }
  return bytes;
}

/** Either family: 4 or 16 bytes. A zone (`%eth0`) is not part of the address. @returns null if it is not an address */
export function parseInet(text: string): Uint8Array | null {
  return parseInet6(text) ?? parseInet4(text);
}

const MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/**
 * The addresses that rules may have for a client: its own, and the IPv4 address in `::ffff:10.0.0.1`. An IPv4 client has
 * that form on a socket for both families, which systemd makes for `ListenStream=6432`.
 */
export function inetForms(text: string): Uint8Array[] {
  // the zone names the local interface, and is not part of the address
  const address = parseInet(text.replace(/%.*$/, ''));
  if (address === null) return [];
  const isMapped = address.length === IPV6_BYTES && MAPPED.every((byte, at) => address[at] === byte);
  return isMapped ? [address, address.slice(MAPPED.length)] : [address];
}

/** Whether one of the forms of an address (inetForms) is in a network. One with bits outside its mask has no addresses. */
export function isInNetwork(forms: readonly Uint8Array[], network: Uint8Array, mask: Uint8Array): boolean {
  const fits = (form: Uint8Array): boolean =>
    form.length === network.length && form.every((byte, i) => (byte & (mask[i] as number)) === network[i]);
  return forms.some(fits);
}

function maskOfBits(bits: number, length: number): Uint8Array {
  const mask = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    const here = Math.min(8, Math.max(0, bits - 8 * i));
    mask[i] = 0xff & (0xff << (8 - here));
  }
  return mask;
}

/** The mask of the number after the slash. @param length of the address. @returns null if it is not such a number */
export function parseMaskBits(text: string, length: number): Uint8Array | null {
  if (!/^[0-9]{1,9}$/.test(text)) return null;
  const bits = Number(text);
  return bits > 8 * length ? null : maskOfBits(bits, length);
}

/** The usual spelling of 4 or 16 bytes; RFC 5952 for IPv6. */
export function formatInet(bytes: Uint8Array): string {
  if (bytes.length === IPV4_BYTES) return bytes.join('.');
  const groups: number[] = [];
  for (let i = 0; i < IPV6_BYTES; i += 2) groups.push((bytes[i] as number) * 256 + (bytes[i + 1] as number));
  let start = -1;
  let length = 1;
  for (let i = 0; i < GROUPS; i++) {
    let n = 0;
    while (i + n < GROUPS && groups[i + n] === 0) n++;
    if (n > length) {
      start = i;
      length = n;
    }
  }
  const hex = (part: number[]) => part.map((group) => group.toString(16)).join(':');
  if (start < 0) return hex(groups);
  return `${hex(groups.slice(0, start))}::${hex(groups.slice(start + length))}`;
}
