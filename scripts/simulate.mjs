// Runs the simulation of the pooler (test/simulation). See CONTRIBUTING.md.
//
//     node scripts/simulate.mjs [seed] [turns]      one seed; --trace prints everything that happens
//     node scripts/simulate.mjs --minutes N         consecutive seeds from a random start
//
// For a failing seed it prints the violated invariant, the last events, and the command that repeats the run.
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { simulate } = require('../dist-test/test/simulation/run.js');

const TURNS = 3000;
const SEED_MAX = 0x7fff_ffff;

const args = process.argv.slice(2);
const trace = args.includes('--trace');
const minutesAt = args.indexOf('--minutes');
const minutes = minutesAt < 0 ? 0 : Number(args[minutesAt + 1]);
const numbers = minutes > 0 ? [] : args.filter((arg) => /^\d+$/.test(arg)).map(Number);
const [seed = Math.floor(Math.random() * SEED_MAX), turns = TURNS] = numbers;

const watch = trace ? (line) => console.log(line) : undefined;
const began = performance.now();
const end = began + minutes * 60_000;
let seeds = 0;
let turnsDone = 0;
let failures = 0;
for (let next = seed; seeds === 0 || performance.now() < end; next++) {
  const outcome = simulate({ seed: next, turns, watch });
  seeds++;
  turnsDone += outcome.turns;
  if (outcome.failure === null) continue;
  failures++;
  console.log(`seed ${next} fails in turn ${outcome.turns}: ${outcome.failure}`);
  for (const line of outcome.tail) console.log(line);
  console.log(`again with: npm run simulate -- ${next} ${turns}\n`);
}
const seconds = (performance.now() - began) / 1000;
const perMinute = Math.round((60 * seeds) / seconds);
console.log(
  `${seeds} seeds from ${seed} on, ${failures} failed; ${perMinute} seeds a minute, ${Math.round(turnsDone / seconds)} turns a second`,
);
process.exitCode = failures > 0 ? 1 : 0;
