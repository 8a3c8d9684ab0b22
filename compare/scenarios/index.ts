/*
 * All scenarios by family.
 */
import type { Scenario } from '../side';
import { cli } from './cli';
import { consoleCommands } from './console';
import { limits } from './limits';
import { login } from './login';
import { queries } from './queries';
import { reload } from './reload';
import { signals } from './signals';
import { timeouts } from './timeouts';

export const families: Record<string, readonly Scenario[]> = {
  login,
  queries,
  limits,
  timeouts,
  console: consoleCommands,
  reload,
  signals,
  cli,
};
