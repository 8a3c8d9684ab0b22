/*
 * The live page of metrics_port: its files and the state that it draws. Headers keep a browser from doing anything else
 * with the names that clients have chosen. Called by metrics.ts.
 */

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { readQuestion, type Status } from './status';

const FOLDER = join(__dirname, 'page');

const FILES: readonly { path: string; file: string; type: string }[] = [
  { path: '/', file: 'index.html', type: 'text/html; charset=utf-8' },
  ...['page', 'narrow'].map((name) => ({ path: `/${name}.css`, file: `${name}.css`, type: 'text/css; charset=utf-8' })),
  { path: '/icon.svg', file: 'icon.svg', type: 'image/svg+xml' },
  ...['page', 'charts', 'dom', 'format', 'history', 'pools'].map((name) => ({
    path: `/${name}.mjs`,
    file: `${name}.mjs`,
    type: 'text/javascript; charset=utf-8',
  })),
];

/** No script but the page's own, no inline script, no markup from text, no other site in or around the page. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

const HEADERS: Readonly<Record<string, string>> = {
  'Content-Security-Policy': POLICY,
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cache-Control': 'no-store',
};

/** Shorter answers are not worth compressing. */
const GZIP_MIN = 1400;
const STATUS = '/status.json';

interface PageFile {
  type: string;
  content: Buffer;
}

export interface Page {
  readonly files: ReadonlyMap<string, PageFile>;
  /** changes with the files, so that a page of another version notices */
  readonly assets: string;
}

/** Reads the files of the page, once: a page never mixes files of two versions. @throws Error as fs does */
export function readPage(): Page {
  const files = new Map<string, PageFile>();
  const hash = createHash('sha256');
  for (const { path, file, type } of FILES) {
    const content = readFileSync(join(FOLDER, file));
    hash.update(content);
    files.set(path, { type, content });
  }
  return { files, assets: hash.digest('hex').slice(0, 16) };
}

/** True if the page has an answer for this path. */
export function isOfPage({ files }: Page, path: string): boolean {
  return path === STATUS || files.has(path);
}

/**
 * Answers a request for which isOfPage() is true.
 * @param alive false if the loop no longer reports its state
 */
export function answerPage(
  page: Page,
  status: Status,
  request: IncomingMessage,
  to: ServerResponse,
  alive: boolean,
): void {
  const [path = '', search = ''] = (request.url ?? '').split('?');
  let file = page.files.get(path);
  if (file === undefined) {
    const text = alive ? status.text(readQuestion(search), page.assets) : null;
    if (text === null) {
      to.writeHead(503, { ...HEADERS, 'Content-Type': 'text/plain; charset=utf-8' });
      to.end('the pooler does not report its state\n');
      return;
    }
    file = { type: 'application/json; charset=utf-8', content: Buffer.from(text) };
  }
  const zip = file.content.length >= GZIP_MIN && /\bgzip\b/.test(String(request.headers['accept-encoding'] ?? ''));
  const content = zip ? gzipSync(file.content, { level: 1 }) : file.content;
  const encoding: Record<string, string> = zip ? { 'Content-Encoding': 'gzip' } : {};
  to.writeHead(200, { ...HEADERS, 'Content-Type': file.type, 'Content-Length': content.length, ...encoding });
  to.end(content);
}
