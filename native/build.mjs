// Builds the addon. When Node's headers are installed next to the node binary they are used, so that no network is
// needed; otherwise node-gyp fetches the headers of the running version.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { headersArgument } from '../scripts/install-addon.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const nodeGyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
const args = [nodeGyp, 'rebuild', ...process.argv.slice(2), ...headersArgument()];
// binding.gyp asks `node` for the folder of node-addon-api: let that be the Node that runs this script
const env = { ...process.env, PATH: `${dirname(process.execPath)}:${process.env.PATH ?? ''}` };
const { status, error } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env });
if (error) console.error(String(error));
process.exit(status ?? 1);
