/*
 * Threads for work that would block the loop: name look-ups, LDAP, password commands and metrics. A thread receives
 * requests through a message port and wakes the loop when it has posted an answer. The loop never waits for a thread,
 * and no thread keeps the process running.
 */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { native } from './native';

const WORKERS = join(__dirname, '..', '..', 'workers');

export interface Thread {
  /** the loop thread's end of the port */
  readonly port: MessagePort;
  /** Stops the thread, whatever it is doing. Answers still in the port are lost. */
  readonly end: () => void;
}

/**
 * Starts a thread.
 * @param file the program, in src/workers
 * @param data passed to the program, along with its end of the port and the descriptor that wakes the loop
 * @throws Error if the program does not exist
 */
export function startThread(file: string, data: object = {}): Thread {
  const program = join(WORKERS, file);
  // check now: a worker that fails to load cannot report it
  accessSync(program, constants.R_OK);
  const channel = new MessageChannel();
  const worker = new Worker(program, {
    workerData: { ...data, port: channel.port2, wakeFd: native.wakeFd() },
    transferList: [channel.port2],
    // capture and discard the worker's output
    stdout: true,
    stderr: true,
  });
  // a thread that has no more memory ends with an event, which would end the process too
  worker.on('error', () => {});
  worker.unref();
  channel.port1.unref();
  return {
    port: channel.port1,
    end: () => {
      channel.port1.close();
      // the thread stops wherever it is; the loop does not wait for the promise
      void worker.terminate();
    },
  };
}
