// Builds the addon. When Node's headers are installed next to the node binary they are used, so that no network is
// needed; otherwise node-gyp fetches the headers of the running version. Compiles only what has changed, unless the last
// build was with other headers.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { headersArgument } from '../scripts/install-addon.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const nodeGyp = require.resolve('node-gyp/bin/node-gyp.js');
const options = [...process.argv.slice(2), ...headersArgument()];
// `make` compares commands and times, but other headers may be older than the last build
const stamp = join(root, 'build', 'built-with');
const headers = `${process.version} ${process.execPath}\nnode-addon-api ${require('node-addon-api').version}\n`;
const isSame = existsSync(stamp) && readFileSync(stamp, 'utf8') === headers;
const args = [nodeGyp, ...(isSame ? ['configure', 'build'] : ['rebuild']), ...options];
// binding.gyp asks `node` for the folder of node-addon-api: let that be the Node that runs this script
const path = `${dirname(process.execPath)}:${process.env.PATH ?? ''}`;
const env = { JOBS: 'max', ...process.env, PATH: path };
const { status, error } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env });
if (error) console.error(String(error));
if (status === 0) writeFileSync(stamp, headers);
process.exit(status ?? 1);
