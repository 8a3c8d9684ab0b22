/*
 * All scenarios by family.
 */
import type { Scenario } from '../side';
import { cli } from './cli';
import { consoleCommands } from './console';
import { limits } from './limits';
import { login } from './login';
import { peers } from './peers';
import { prepared } from './prepared';
import { queries } from './queries';
import { reboots } from './reboot';
import { reload } from './reload';
import { ruled } from './rules';
import { signals } from './signals';
import { timeouts } from './timeouts';
import { tls } from './tls';

export const families: Record<string, readonly Scenario[]> = {
  login,
  tls,
  rules: ruled,
  queries,
  prepared,
  peers,
  limits,
  timeouts,
  console: consoleCommands,
  reload,
  signals,
  reboot: reboots,
  cli,
};
