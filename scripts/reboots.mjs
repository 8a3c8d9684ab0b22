// Many reboots in a row under load with TLS, in every cipher suite. See CONTRIBUTING.md.
//
//     node scripts/reboots.mjs [number]
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const REBOOTS = 100;

const [number = String(REBOOTS)] = process.argv.slice(2);
const env = { ...process.env, REBOOTS: number };
const file = fileURLToPath(new URL('../dist-test/test/soak/reboots.test.js', import.meta.url));
const { status } = spawnSync(process.execPath, ['--test', '--test-reporter=spec', file], { stdio: 'inherit', env });
process.exit(status ?? 1);
