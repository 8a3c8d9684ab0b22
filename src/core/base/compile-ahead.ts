/*
 * In a process that takes over (-R), V8 compiles each function when its file is loaded. By default it does so at the first
 * call, and most first calls would happen while clients wait. Imported by main.ts before everything else.
 */
import { setFlagsFromString } from 'node:v8';

/** -R, alone or among other letters. */
const REBOOT = /^(--reboot|-[a-zA-Z]*R[a-zA-Z]*)$/;

if (process.argv.slice(2).some((arg) => REBOOT.test(arg))) setFlagsFromString('--no-lazy');
