/*
 * The harness in one import: a PostgreSQL, a pooler, a raw client, and the machine around them. docs: CONTRIBUTING.md.
 */
export { freePort } from '../../tools/postgres';
export * from './bouncer';
export * from './cluster';
export { runSync, waitingFor, watchQueries } from './limits';
export * from './log-tail';
export * from './machine';
export * from './needs';
export * from './raw-client';
