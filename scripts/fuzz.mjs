// Runs the fuzzer repeatedly for a given time, each time with a new seed. See CONTRIBUTING.md.
//
//     node scripts/fuzz.mjs [seconds [target …]]
//
// Failing inputs are stored in test/fuzz/corpus; every later run starts with them.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const SECONDS = 300;

const [seconds = String(SECONDS), ...targets] = process.argv.slice(2);
const seed = process.env.FUZZ_SEED ?? String(Date.now() % 0x7fff_ffff);
console.log(`FUZZ_SEED=${seed} FUZZ_SECONDS=${seconds}`);
const env = { ...process.env, FUZZ_SEED: seed, FUZZ_SECONDS: seconds };
if (targets.length > 0) env.FUZZ_TARGETS = targets.join(',');
const file = fileURLToPath(new URL('../dist-test/test/fuzz/fuzz.test.js', import.meta.url));
const { status } = spawnSync(process.execPath, ['--test', '--test-reporter=spec', file], { stdio: 'inherit', env });
process.exit(status ?? 1);
