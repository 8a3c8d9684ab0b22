/*
 * In a process that takes over (-R), V8 compiles each function when its file is loaded. By default it does so at the first
 * call, and most first calls would happen while clients wait. Imported by main.ts before everything else, so before there
 * is a parser of options. A wrong guess only costs time.
 */
import { setFlagsFromString } from 'node:v8';
import { DAEMON_MARKER } from './daemon-marker';

/** True if the command line has the option, alone or among other letters. */
function isGiven(name: string, letter: string): boolean {
  return process.argv.slice(2).some((arg) => arg === `--${name}` || (/^-[a-zA-Z]+$/.test(arg) && arg.includes(letter)));
}

// the launcher of a daemon (-d) takes nothing over itself
const isLauncher = isGiven('daemon', 'd') && process.env[DAEMON_MARKER] === undefined;
if (isGiven('reboot', 'R') && !isLauncher) setFlagsFromString('--no-lazy');
