import { startLoop } from '../../src/core/base/native';

/** The backend of the loops under test (loop_backend); `npm test` with TEST_LOOP_BACKEND=epoll tests the other one. */
export const LOOP_BACKEND = process.env.TEST_LOOP_BACKEND ?? 'auto';
/** The threads that move bytes (io_threads); `npm test` with TEST_IO_THREADS=2 tests with two, which always work. */
export const IO_THREADS = Number(process.env.TEST_IO_THREADS ?? 0);

/** Starts the loop of a test. */
export function startTestLoop(recvMax: number): void {
  startLoop({ backend: LOOP_BACKEND, recvMax, threads: IO_THREADS, load: 0, handshakeThreads: IO_THREADS });
}
