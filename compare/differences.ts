/*
 * The differences that are meant, each with its reason. `npm run compare` fails on a difference that is not here, and on an
 * entry that no longer occurs. The rule behind most entries: tsbouncer follows PgBouncer 1.25, and Debian's
 * package is older; those carry `until`, the first version that behaves like tsbouncer.
 */
import type { MeantDifference } from './claim';

export const meantDifferences: readonly MeantDifference[] = [
  {
    reason: 'the line at start names the program, and what it is built on',
    step: /^log$/,
    left: /^LOG process up: PgBouncer /,
    right: /^LOG process up: tsbouncer /,
  },
];
