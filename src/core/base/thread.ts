/*
 * Threads for what would hold up the loop. One is asked through a message port, and wakes the loop when an answer lies in
 * that port; nobody waits for it, and it keeps no process alive. Used by the name look-ups and by LDAP.
 */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { native } from './native';

const WORKERS = join(__dirname, '..', '..', 'workers');

export interface Thread {
  /** our end of the port */
  readonly port: MessagePort;
  /** Ends the thread, whatever it is doing. Answers that lie in the port are lost. */
  readonly end: () => void;
}

/**
 * Starts a thread.
 * @param file the program, in src/workers
 * @param data what it gets besides its end of the port and the descriptor that wakes the loop
 * @throws Error when the program is not there
 */
export function startThread(file: string, data: object = {}): Thread {
  const program = join(WORKERS, file);
  // what fails in the thread's first moments nobody would ever hear of
  accessSync(program, constants.R_OK);
  const channel = new MessageChannel();
  const worker = new Worker(program, {
    workerData: { ...data, port: channel.port2, wakeFd: native.wakeFd() },
    transferList: [channel.port2],
    // of what it may write there nothing would ever be read
    stdout: true,
    stderr: true,
  });
  worker.unref();
  channel.port1.unref();
  return {
    port: channel.port1,
    end: () => {
      channel.port1.close();
      // the thread stops wherever it is; the promise says when, and the loop waits for nothing
      void worker.terminate();
    },
  };
}
