// Runs when the package is installed: does nothing if it has an addon for this machine, and compiles one otherwise. Does
// nothing in a checkout either, where `npm run build` compiles it.
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, readSync, realpathSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = fileURLToPath(new URL('..', import.meta.url));

/** Major version of Node by the version of its binary interface, which is in an addon's name. */
export const NODE_OF_ABI = { 115: 20, 127: 22, 137: 24, 147: 26 };

/** What compiles the addon, and the variables that name another program in its place. */
const TOOLS = {
  python3: ['npm_config_python', 'NODE_GYP_FORCE_PYTHON', 'PYTHON'],
  make: ['MAKE'],
  'g++': ['CXX'],
};

/** Whether this Node uses musl. src/core/base/addon-file.ts has the same rule. */
function isMusl() {
  const header = Buffer.alloc(4096);
  try {
    const fd = openSync('/proc/self/exe', 'r');
    readSync(fd, header);
    closeSync(fd);
  } catch {
    // without /proc, in a chroot
  }
  return header.includes('/ld-musl-');
}

/** The kind of this machine, as a folder of prebuilds/. */
const thisMachine = () => `${process.platform}-${process.arch}${isMusl() ? '-musl' : ''}`;

/** The path of the addon for a machine and a Node, in the package. The defaults are those that run this script. */
export function prebuiltName(machine = thisMachine(), abi = process.versions.modules) {
  return join('prebuilds', machine, `node-${abi}.node`);
}

/** The argument for node-gyp with the folder of Node's headers, if they are installed beside it; else it fetches them. */
export function headersArgument() {
  const prefix = dirname(dirname(process.execPath));
  const installed = existsSync(join(prefix, 'include', 'node', 'node_api.h'));
  return installed && !process.env.npm_config_nodedir ? [`--nodedir=${prefix}`] : [];
}

/** The addons in this package, for people. */
function available() {
  const prebuilds = join(top, 'prebuilds');
  const machines = existsSync(prebuilds) ? readdirSync(prebuilds) : [];
  const list = machines.map((machine) => {
    const abis = readdirSync(join(prebuilds, machine)).map((name) => /^node-(\d+)\.node$/.exec(name)?.[1]);
    const nodes = abis.filter((abi) => abi !== undefined).map((abi) => NODE_OF_ABI[abi] ?? `with ABI ${abi}`);
    return `${machine} (Node ${nodes.join(', ')})`;
  });
  return list.length === 0 ? 'none' : list.join(', ');
}

function isMissing(program) {
  if (TOOLS[program].some((variable) => process.env[variable])) return false;
  return !(process.env.PATH ?? '').split(delimiter).some((folder) => existsSync(join(folder, program)));
}

function fail(text) {
  console.error(`tsbouncer: ${text}`);
  process.exit(1);
}

function compile() {
  const me = `Node ${process.version} (ABI ${process.versions.modules}) on ${thisMachine()}`;
  console.log(`tsbouncer: no addon for ${me} in this package, compiling it. The package has: ${available()}`);
  const missing = Object.keys(TOOLS).filter(isMissing);
  if (missing.length > 0) fail(`cannot compile the addon without ${missing.join(', ')}: install them, or another Node`);
  const gyp = process.env.npm_config_node_gyp;
  const [program, ...first] = gyp === undefined ? ['node-gyp'] : [process.execPath, gyp];
  const { status } = spawnSync(program, [...first, 'rebuild', ...headersArgument()], { cwd: top, stdio: 'inherit' });
  if (status !== 0) fail('could not compile the addon: the lines above say why');
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const isCheckout = existsSync(join(top, 'tsconfig.json'));
  if (!isCheckout && !existsSync(join(top, prebuiltName()))) compile();
}
