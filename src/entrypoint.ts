#!/usr/bin/env node
/*
 * The entrypoint of the container image: makes a config of the environment if there is none, waits for the server if the
 * variables say so, and becomes the pooler. No other process is started, so the pooler has the container's process id
 * and its signals.
 */

import { writeSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { type ImageStart, prepareImage } from './cli/image/image';
import { ImageError } from './cli/image/variables';

const STDERR_FD = 2;
const CONNECT_MS_MAX = 5000;

function say(text: string): void {
  writeSync(STDERR_FD, Buffer.from(`entrypoint: ${text}\n`, 'latin1'));
}

/** Whether a TCP connection to the server can be made. */
function accepts(host: string, port: number): Promise<boolean> {
  return new Promise((settle) => {
    const socket = connect({ host, port, timeout: CONNECT_MS_MAX });
    const end = (connected: boolean) => {
      socket.destroy();
      settle(connected);
    };
    socket.once('connect', () => end(true));
    socket.once('timeout', () => end(false));
    socket.once('error', () => end(false));
  });
}

/** Waits until the server accepts connections. @returns false if it never did */
async function waitForServer({
  host,
  port,
  tries,
  pauseSeconds,
}: NonNullable<ImageStart['waitFor']>): Promise<boolean> {
  if (host.startsWith('/')) return true;
  for (let n = 1; ; n++) {
    if (await accepts(host, port)) return true;
    if (n >= tries) return false;
    say(`waiting for ${host}:${port}`);
    await pause(pauseSeconds * 1000);
  }
}

/** Process 1 of a container gets only signals that it handles. */
async function interruptible<T>(work: Promise<T>): Promise<T> {
  const signals = ['SIGINT', 'SIGTERM', 'SIGQUIT'] as const;
  const leave = () => process.exit(0);
  for (const signal of signals) process.on(signal, leave);
  const result = await work;
  for (const signal of signals) process.off(signal, leave);
  return result;
}

/** Continues as the pooler, with its command line. */
function becomePooler(start: ImageStart): void {
  process.argv.splice(1, process.argv.length, start.program, ...start.args);
  require('./main');
}

function prepare(): ImageStart {
  try {
    const start = prepareImage(process.argv.slice(2), process.env);
    for (const notice of start.notices) say(notice);
    return start;
  } catch (err) {
    if (!(err instanceof ImageError)) throw err;
    say(err.message);
    process.exit(1);
  }
}

function main(): void {
  const start = prepare();
  const { waitFor } = start;
  if (waitFor === null) {
    becomePooler(start);
    return;
  }
  interruptible(waitForServer(waitFor)).then((connected) => {
    if (connected) {
      becomePooler(start);
      return;
    }
    say(`${waitFor.host}:${waitFor.port} does not accept connections`);
    process.exit(1);
  });
}

main();
