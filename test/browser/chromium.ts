/*
 * Drives a headless Chromium through the pipe of its DevTools protocol: opens a page, evaluates expressions in it, and
 * makes pictures. Collects what the page reports as an error, including refusals of its security policy.
 */

import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { dropDir, eventually, executable, startProgram, tempDir, withTimeout } from '../harness/machine';

const PROGRAM = '/usr/bin/chromium';
const ARGUMENTS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage', '--hide-scrollbars'],
  '--remote-debugging-pipe',
];

/** Why tests in a browser cannot run, or null. */
export const noChromium = executable(PROGRAM) ? null : `there is no ${PROGRAM} on this machine`;

interface Answer {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

export interface Screen {
  width: number;
  height: number;
  /** dots for each pixel */
  scale?: number;
  mobile?: boolean;
  dark?: boolean;
}

export class Chromium {
  /** errors and refusals that the page has reported */
  readonly errors: string[] = [];
  private readonly profile = tempDir('chromium');
  private readonly child: ChildProcess;
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private partial = Buffer.alloc(0);
  private session = '';
  private lastId = 0;

  private constructor() {
    this.child = startProgram(PROGRAM, [...ARGUMENTS, `--user-data-dir=${this.profile}`, 'about:blank'], {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    });
    (this.child.stdio[4] as Readable).on('data', (chunk: Buffer) => this.receive(chunk));
    (this.child.stdio[3] as Writable).on('error', () => {});
  }

  /** Starts a browser with an empty profile. */
  static async start(): Promise<Chromium> {
    const browser = new Chromium();
    const { targetInfos } = (await browser.send('Target.getTargets')) as { targetInfos: Record<string, string>[] };
    const page = targetInfos.find(({ type }) => type === 'page');
    const attached = await browser.send('Target.attachToTarget', { targetId: page?.targetId, flatten: true });
    browser.session = attached.sessionId as string;
    for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await browser.send(`${domain}.enable`);
    return browser;
  }

  async screen({ width, height, scale = 1, mobile = false, dark = false }: Screen): Promise<void> {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: scale, mobile });
    const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }];
    await this.send('Emulation.setEmulatedMedia', { features });
  }

  /** Opens an address. @param password sent as a browser does after asking for it */
  async open(url: string, password: string | null = null): Promise<void> {
    const headers =
      password === null ? {} : { Authorization: `Basic ${Buffer.from(`me:${password}`).toString('base64')}` };
    await this.send('Network.setExtraHTTPHeaders', { headers });
    await this.send('Page.navigate', { url });
  }

  /** The value of an expression in the page. */
  async value<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    })) as { result: { value: T }; exceptionDetails?: { text: string; exception?: { description?: string } } };
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression is true. */
  until(what: string, expression: string, timeoutMs?: number): Promise<boolean> {
    return eventually(what, () => this.value<boolean>(`Boolean(${expression})`).catch(() => false), timeoutMs);
  }

  /** Text of the element that a selector finds. */
  text(selector: string): Promise<string> {
    return this.value(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ''`);
  }

  /** Writes a picture of the screen, or of the whole page. */
  async picture(path: string, whole = false): Promise<void> {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: whole });
    writeFileSync(path, Buffer.from(data as string, 'base64'));
  }

  async stop(): Promise<void> {
    const ended = new Promise((settle) => this.child.once('close', settle));
    await this.send('Browser.close', {}, '').catch(() => {});
    await withTimeout(ended, 'Chromium to end');
    dropDir(this.profile);
  }

  send(method: string, params: object = {}, session = this.session): Promise<Record<string, unknown>> {
    const id = ++this.lastId;
    const answer = new Promise<Record<string, unknown>>((settle, reject) => {
      this.waiting.set(id, ({ result, error }) => {
        if (error) reject(new Error(`${method}: ${error.message}`));
        else settle(result ?? {});
      });
    });
    const message = { id, method, params, ...(session === '' ? {} : { sessionId: session }) };
    (this.child.stdio[3] as Writable).write(`${JSON.stringify(message)}\0`);
    return withTimeout(answer, `Chromium to answer ${method}`);
  }

  private receive(chunk: Buffer): void {
    let rest = Buffer.concat([this.partial, chunk]);
    for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
      this.take(JSON.parse(rest.toString('utf8', 0, end)) as Answer);
      rest = rest.subarray(end + 1);
    }
    this.partial = rest;
  }

  private take(answer: Answer): void {
    const { id, method, params = {} } = answer;
    if (id !== undefined) {
      this.waiting.get(id)?.(answer);
      this.waiting.delete(id);
    } else if (method === 'Runtime.exceptionThrown') {
      const { text, exception } = params.exceptionDetails as { text: string; exception?: { description?: string } };
      this.errors.push(exception?.description ?? text);
    } else if (method === 'Log.entryAdded') {
      const { level, source, text } = params.entry as Record<string, string>;
      // a request without an answer is what some tests are about
      if (level === 'error' && source !== 'network') this.errors.push(text as string);
    }
  }
}
