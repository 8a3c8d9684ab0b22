/*
 * Packets of a client for the fuzz targets.
 */

import { cstring, int16, int32, message } from '../harness/raw-client';

export const parse = (name: string, sql: string) => message('P', cstring(name), cstring(sql), int16(0));
export const bind = (portal: string, name: string) =>
  message('B', cstring(portal), cstring(name), int16(0), int16(0), int16(0));
export const describe = (kind: string, name: string) => message('D', cstring(kind + name));
export const close = (kind: string, name: string) => message('C', cstring(kind + name));
export const execute = (portal: string) => message('E', cstring(portal), int32(0));
export const query = (sql: string) => message('Q', cstring(sql));
export const SYNC = message('S');
export const FLUSH = message('H');
