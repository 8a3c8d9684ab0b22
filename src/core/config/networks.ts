/*
 * Settings that list networks: addresses, ADDRESS/BITS, and `unix` for the Unix socket, separated by commas.
 */

import { inetForms, isInNetwork, parseInet, parseMaskBits } from '../base/inet';
import { parseWordList } from '../base/strutil';

interface Network {
  /** 4 or 16 bytes, the bits outside the mask 0 */
  readonly address: Uint8Array;
  readonly mask: Uint8Array;
}

interface Networks {
  /** the text they were read from */
  readonly text: string;
  readonly unix: boolean;
  readonly networks: readonly Network[];
}

function parseNetwork(word: string): Network | null {
  const slash = word.indexOf('/');
  const address = parseInet(slash < 0 ? word : word.slice(0, slash));
  if (address === null) return null;
  const mask = parseMaskBits(slash < 0 ? String(8 * address.length) : word.slice(slash + 1), address.length);
  return mask === null ? null : { address: address.map((byte, i) => byte & (mask[i] as number)), mask };
}

function parseNetworks(text: string): Networks | null {
  const networks: Network[] = [];
  let unix = false;
  for (const word of parseWordList(text)) {
    const network = parseNetwork(word);
    if (network !== null) networks.push(network);
    else if (word === 'unix') unix = true;
    else return null;
  }
  return { text, unix, networks };
}

/** True if the text is a valid list. */
export function isNetworkList(text: string): boolean {
  return parseNetworks(text) !== null;
}

let last: Networks = { text: '', unix: false, networks: [] };

/**
 * True if an address is in one of the networks.
 * @param text a valid list
 * @param host an IP address; null = the Unix socket
 */
export function inNetworks(text: string, host: string | null): boolean {
  if (last.text !== text) last = parseNetworks(text) ?? last;
  if (host === null) return last.unix;
  const forms = inetForms(host);
  return last.networks.some(({ address, mask }) => isInNetwork(forms, address, mask));
}
