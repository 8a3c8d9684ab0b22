/*
 * The harness in one import: PostgreSQL, pooler, raw client, and the machine. See CONTRIBUTING.md.
 */
export { freePort } from '../../tools/postgres';
export * from './bouncer';
export * from './cluster';
export { runSync, waitingFor, watchQueries } from './limits';
export * from './log-tail';
export * from './machine';
export * from './needs';
export * from './raw-client';
