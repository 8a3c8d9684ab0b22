/* Packets, byte for byte: what is written, what is read back, and what broken input does. */

import assert from 'node:assert/strict';
import {
  cstr,
  equalNoCase,
  parseWordList,
  pgQuoteLiteral,
  secretEqual,
  strlistContains,
} from '../../src/core/base/strutil';
import * as m from '../../src/core/wire/messages';
import { Pkt } from '../../src/core/wire/packets';
import { PKTBUF_MAX, PktBuf, pktbufTemp } from '../../src/core/wire/pktbuf';
import {
  getHeader,
  hdr2hex,
  incompleteHeader,
  PktHdr,
  PktReader,
  parseBytea,
  parseServerError,
  pktDesc,
  scanTextRow,
  serverErrorLine,
} from '../../src/core/wire/reader';
import { test } from '../harness/limits';

function bytesOf(write: (buf: PktBuf) => void): string {
  const buf = new PktBuf(1);
  write(buf);
  assert.equal(buf.failed, false);
  return buf.written().toString('latin1');
}

const MAX = 2 ** 31 - 1;

test('ErrorResponse and NoticeResponse contain severity, SQLSTATE and message', () => {
  assert.equal(
    bytesOf((b) => m.writeErrorResponse(b, { severity: 'FATAL', sqlstate: null, msg: 'no such database: x' })),
    'E\0\0\0\x28SFATAL\0C08P01\0Mno such database: x\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeErrorResponse(b, { severity: 'ERROR', sqlstate: '57P01', msg: 'm' })),
    'E\0\0\0\x16SERROR\0C57P01\0Mm\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeNotice(b, 'hi')),
    'N\0\0\0\x18SNOTICE\0C00000\0Mhi\0\0',
  );
});

test('session packets to clients are written correctly', () => {
  assert.equal(
    bytesOf((b) => m.writeReadyForQuery(b)),
    'Z\0\0\0\x05I',
  );
  assert.equal(
    bytesOf((b) => m.writeParameterStatus(b, 'a', 'bc')),
    'S\0\0\0\x09a\0bc\0',
  );
  assert.equal(
    bytesOf((b) => m.writeCommandComplete(b, 'SHOW')),
    'C\0\0\0\x09SHOW\0',
  );
  assert.equal(
    bytesOf((b) => m.writeBackendKeyData(b, Buffer.from('12345678'))),
    'K\0\0\0\x0c12345678',
  );
  assert.equal(
    bytesOf((b) => m.writeNegotiateProtocolVersion(b, Pkt.STARTUP_V32, ['_pq_.x'])),
    'v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthenticationOk(b)),
    'R\0\0\0\x08\0\0\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthCleartext(b)),
    'R\0\0\0\x08\0\0\0\x03',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthMd5(b, Buffer.from('salt'))),
    'R\0\0\0\x0c\0\0\0\x05salt',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthSASL(b, ['SCRAM-SHA-256'])),
    'R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthSASLContinue(b, 'r=x')),
    'R\0\0\0\x0b\0\0\0\x0br=x',
  );
  assert.equal(
    bytesOf((b) => m.writeAuthSASLFinal(b, 'v=x')),
    'R\0\0\0\x0b\0\0\0\x0cv=x',
  );
});

test('packets to servers are written correctly', () => {
  assert.equal(
    bytesOf((b) => {
      m.startStartup(b, Pkt.STARTUP_V3);
      m.putStartupParam(b, 'user', 'joe');
      m.finishStartup(b);
    }),
    '\0\0\0\x12\0\x03\0\0user\0joe\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeCancelRequest(b, Buffer.from('12345678'))),
    '\0\0\0\x10\x04\xd2\x16\x2e12345678',
  );
  assert.equal(m.PACKET_SSL_REQUEST.toString('latin1'), '\0\0\0\x08\x04\xd2\x16\x2f');
  assert.equal(
    bytesOf((b) => m.writePassword(b, 'p\xc3\xa4')),
    'p\0\0\0\x08p\xc3\xa4\0',
  );
  assert.equal(
    bytesOf((b) => m.writeSASLInitialResponse(b, 'M', 'abc')),
    'p\0\0\0\x0dM\0\0\0\0\x03abc',
  );
  assert.equal(
    bytesOf((b) => m.writeSASLResponse(b, 'abc')),
    'p\0\0\0\x07abc',
  );
  assert.equal(
    bytesOf((b) => m.writeQuery(b, 'BEGIN')),
    'Q\0\0\0\x0aBEGIN\0',
  );
  assert.equal(m.PACKET_TERMINATE.toString('latin1'), 'X\0\0\0\x04');
  assert.equal(
    bytesOf((b) => m.writeParse(b, 's', Buffer.from('q\0\0\0'))),
    'P\0\0\0\x0as\0q\0\0\0',
  );
  assert.equal(
    bytesOf((b) => m.writeDescribeStmt(b, 's')),
    'D\0\0\0\x07Ss\0',
  );
  assert.equal(
    bytesOf((b) => m.writeCloseStmt(b, 's')),
    'C\0\0\0\x07Ss\0',
  );
  assert.equal(m.PACKET_SYNC.toString('latin1'), 'S\0\0\0\x04');
  assert.equal(m.PACKET_PARSE_COMPLETE.toString('latin1'), '1\0\0\0\x04');
  assert.equal(m.PACKET_CLOSE_COMPLETE.toString('latin1'), '3\0\0\0\x04');
  assert.equal(m.PACKET_READY_IDLE.toString('latin1'), 'Z\0\0\0\x05I');
});

test('auth_query is sent as Parse, Bind, Describe, Execute, Sync', () => {
  assert.equal(
    bytesOf((b) => m.writeExtQuery(b, 'Q $1', ['joe'])),
    'P\0\0\0\x0c\0Q $1\0\0\0' +
      'B\0\0\0\x13\0\0\0\0\0\x01\0\0\0\x03joe\0\0' +
      'D\0\0\0\x06P\0' +
      'E\0\0\0\x09\0\0\0\0\0' +
      'S\0\0\0\x04',
  );
});

test('result sets contain types, sizes, values and NULL', () => {
  const column = (oid: string, size: string): string => `\0\0\0\0\0\0${oid}${size}\xff\xff\xff\xff\0\0`;
  const description = bytesOf((b) => m.writeRowDescription(b, 'siqNbT', ['a', 'b', 'c', 'd', 'e', 'f']));
  assert.equal(
    description.slice(5),
    `\0\x06a\0${column('\0\0\0\x19', '\xff\xff')}b\0${column('\0\0\0\x17', '\0\x04')}` +
      `c\0${column('\0\0\0\x14', '\0\x08')}d\0${column('\0\0\x06\xa4', '\xff\xff')}` +
      `e\0${column('\0\0\0\x11', '\xff\xff')}f\0${column('\0\0\0\x19', '\xff\xff')}`,
  );
  assert.equal(description.charCodeAt(4), description.length - 1);

  const row = new PktBuf();
  const values = ['x', -5, 2 ** 40, 2n ** 64n - 1n, Buffer.from([0, 255]), 1_700_000_000_000_000, null];
  m.writeDataRow(row, 'siqNbTs', values);
  const reader = new PktReader(row.buf, 5, row.pos);
  const scanned = scanTextRow(reader, 8);
  assert.deepEqual(scanned?.slice(0, 5), ['x', '-5', '1099511627776', '18446744073709551615', '\\x00ff']);
  assert.match(scanned?.[5] as string, /^2023-11-1\d \d\d:\d\d:\d\d [\w+-]+$/);
  assert.deepEqual(scanned?.slice(6), [null, null]);
  assert.deepEqual(parseBytea('\\x00ff'), Buffer.from([0, 255]));
  assert.equal(parseBytea('00ff'), null);
});

test('integers of every width are written and read back', () => {
  assert.equal(
    bytesOf((b) => b.putUint16(0xabcd)),
    '\xab\xcd',
  );
  assert.equal(
    bytesOf((b) => b.putUint32(0xdeadbeef)),
    '\xde\xad\xbe\xef',
  );
  assert.equal(
    bytesOf((b) => b.putUint32(-1)),
    '\xff\xff\xff\xff',
  );
  assert.equal(
    bytesOf((b) => b.putUint64(2 ** 53 - 1)),
    '\0\x1f\xff\xff\xff\xff\xff\xff',
  );
  assert.equal(
    bytesOf((b) => b.putUint64(-2)),
    '\xff\xff\xff\xff\xff\xff\xff\xfe',
  );
  assert.equal(
    bytesOf((b) => b.putUint64(0xfedcba9876543210n)),
    '\xfe\xdc\xba\x98\x76\x54\x32\x10',
  );
});

test('a packet buffer grows, can be reused, and fails beyond its limit without a partial packet', () => {
  const buf = new PktBuf(1);
  const long = 'y'.repeat(100_000);
  m.writeQuery(buf, long);
  assert.equal(buf.written().toString('latin1'), `Q\0\x01\x86\xa5${long}\0`);
  buf.reset();
  buf.putSlice(Buffer.from('abcdef'), 2, 3);
  assert.equal(buf.copy().toString(), 'cde');
  assert.equal(buf.reserve(PKTBUF_MAX), false);
  assert.equal(buf.failed, true);
  buf.putChar(1);
  buf.putString('x');
  assert.equal(buf.pos, 3);
  assert.equal(pktbufTemp(), pktbufTemp());
  pktbufTemp().putChar(1);
  assert.equal(pktbufTemp().pos, 0);
});

test('headers of regular packets and of startup packets are parsed', () => {
  const hdr = new PktHdr();
  const header = (text: string, max = MAX): boolean => {
    const buf = Buffer.from(text, 'latin1');
    return getHeader(buf, 0, buf.length, max, hdr);
  };
  assert.ok(header('Q\0\0\0\x0a'));
  assert.deepEqual([hdr.type, hdr.len, hdr.headerLen], ['Q'.charCodeAt(0), 11, 5]);
  for (const [code, type] of [
    ['\0\x03\0\0', Pkt.STARTUP_V3],
    ['\0\x03\0\x01', Pkt.STARTUP_V3],
    ['\0\x03\0\x02', Pkt.STARTUP_V32],
    ['\0\x03\0\x03', Pkt.STARTUP_V3_LATER],
    ['\0\x03\x27\x0f', Pkt.STARTUP_V3_LATER],
    ['\0\x02\0\0', Pkt.STARTUP_V2],
    ['\x04\xd2\x16\x2e', Pkt.CANCEL],
    ['\x04\xd2\x16\x2f', Pkt.SSLREQ],
    ['\x04\xd2\x16\x30', Pkt.GSSENCREQ],
  ] as const) {
    assert.ok(header(`\0\0\x01\x10${code}`));
    assert.deepEqual([hdr.type, hdr.len, hdr.headerLen], [type, 272, 8]);
  }
  assert.equal(header('\0\0\0\x08\0\x04\0\0'), false, 'protocol 4');
  assert.equal(header('\0\x01\0\x08\0\x03\0\0'), false, 'overlong startup');
  assert.equal(header('\0\0\0\x07\0\x03\0\0'), false, 'shorter than its header');
  assert.equal(header('Q\0\0\0\x03'), false);
  assert.equal(header('Q\xff\xff\xff\xff'), false);
  assert.equal(header('Q\0\0\0\x0a', 10), false, 'max_packet_size');
  assert.equal(header('Q\0\0'), false);
  assert.equal(header('\0\0\0\x08\0\x03'), false);
  const short = Buffer.from('\0\0\0\x08\0\x03', 'latin1');
  assert.equal(incompleteHeader(short, 0, 6), true);
  assert.equal(incompleteHeader(Buffer.from('Q\0\0\0'), 0, 4), true);
  assert.equal(incompleteHeader(Buffer.from('Q\0\0\0\x04'), 0, 5), false);
  assert.equal(hdr2hex(Buffer.from('0123456789'), 0, 10), '3031323334353637');
  assert.equal(pktDesc(0x51), 'Q');
  assert.equal(pktDesc(Pkt.CANCEL), '!');
});

test('a packet reader never reads beyond its end, and stays failed', () => {
  const buf = Buffer.from('ab\0cd\0', 'latin1');
  const reader = new PktReader(buf, 3, 5);
  assert.equal(reader.str(), null, 'the NUL behind the end is not ours');
  assert.equal(reader.fail, true);
  assert.equal(reader.u8(), 0);
  const whole = new PktReader(buf, 0, 100);
  assert.equal(whole.end, 6);
  assert.equal(whole.str(), 'ab');
  assert.equal(whole.u16(), 0x6364);
  assert.equal(whole.u32(), 0);
  assert.equal(whole.fail, true);
  assert.equal(whole.rest(), '');
  for (const len of [-1, Number.NaN, 7, 2 ** 32]) assert.equal(new PktReader(buf, 0, 6).bytes(len), null);
  assert.equal(new PktReader(buf, 7, 6).fail, true);
  assert.equal(new PktReader(buf, -1, 6).fail, true);
  assert.equal(new PktReader(buf, 3, 6).rest(), 'cd\0');
});

test('server errors are parsed even if they are broken', () => {
  const parse = (text: string) => {
    const buf = Buffer.from(text, 'latin1');
    return parseServerError(buf, 0, buf.length);
  };
  const error = parse('SFATAL\0VFATAL\0C57P01\0Mbye\0\0');
  assert.deepEqual(error, { level: 'FATAL', sqlstate: '57P01', msg: 'bye', detail: null, hint: null });
  assert.equal(serverErrorLine('S: login failed', error), 'S: login failed: FATAL: bye');
  assert.deepEqual(parse('SERROR\0Mno end'), { level: 'ERROR', sqlstate: null, msg: null, detail: null, hint: null });
  assert.deepEqual([parse('Mx\0Dbecause\0Htry\0\0').detail, parse('Mx\0Dbecause\0Htry\0\0').hint], ['because', 'try']);
  assert.equal(serverErrorLine('x', parse('')), 'x: partial error message, cannot log');
});

test('broken DataRows are refused', () => {
  const scan = (text: string) => scanTextRow(new PktReader(Buffer.from(text, 'latin1')), 2);
  assert.equal(scan('\0'), null);
  assert.equal(scan('\0\x01\0\0\0\x09ab'), null);
  assert.equal(scan('\0\x02\0\0\0\x01a\0\0'), null);
  assert.deepEqual(scan('\0\x01\xff\xff\xff\xff'), [null, null]);
});

test('lists of words are parsed', () => {
  assert.ok(strlistContains('a, bc,d', 'bc'));
  assert.ok(strlistContains('abc bc', 'bc'));
  assert.ok(!strlistContains('abc,bcd', 'bc'));
  assert.ok(!strlistContains('', 'a'));
  for (const list of ['', 'abc', 'a,,b', ',', ' , ', 'a,', ',a']) assert.ok(!strlistContains(list, ''), list);
  assert.ok(strlistContains('aa,a', 'a') && strlistContains('ba,,a', 'a') && !strlistContains('aaa', 'a'));
  assert.deepEqual(parseWordList(' a , b c,,d,'), ['a', 'b c', '', 'd']);
  assert.deepEqual(parseWordList(''), []);
  assert.deepEqual(parseWordList(' '), ['']);
});

test('literals are quoted, case is ignored for ASCII only, and secrets are compared in full', () => {
  assert.equal(pgQuoteLiteral("it's"), "'it''s'");
  assert.equal(pgQuoteLiteral("a\\'b"), "E'a\\\\''b'");
  assert.equal(pgQuoteLiteral(null), 'NULL');
  assert.equal(pgQuoteLiteral(''), "''");
  assert.ok(equalNoCase('ShOw', 'sHoW'));
  assert.ok(!equalNoCase('\xc4', '\xe4'));
  assert.equal(cstr('ab\0c'), 'ab');
  assert.ok(secretEqual('a', Buffer.from('a')));
  assert.ok(!secretEqual('a', 'ab'));
});
