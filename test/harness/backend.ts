/** The backend of the loops under test (loop_backend); `npm test` with TEST_LOOP_BACKEND=epoll tests the other one. */
export const LOOP_BACKEND = process.env.TEST_LOOP_BACKEND ?? 'auto';
