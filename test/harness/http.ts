/* Requests to the HTTP port of a pooler. */

import { type IncomingHttpHeaders, request } from 'node:http';
import { eventually } from './machine';

interface HttpAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

/** One request on a connection of its own. */
export function httpGet(port: number, path: string, headers: Record<string, string> = {}): Promise<HttpAnswer> {
  return new Promise((settle, reject) => {
    const asked = request({ host: '127.0.0.1', port, path, headers, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (part: string) => {
        body += part;
      });
      response.on('end', () => settle({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
    asked.on('error', reject);
    asked.end();
  });
}

/** What the live page gets, as soon as `ready` accepts it. */
export function statusJson<T>(port: number, what: string, ready: (status: T) => boolean, query = ''): Promise<T> {
  return eventually(what, async () => {
    const { status, body } = await httpGet(port, `/status.json${query}`).catch(() => ({ status: 0, body: '' }));
    const parsed = status === 200 ? (JSON.parse(body) as T) : null;
    return parsed !== null && ready(parsed) ? parsed : null;
  });
}
