// Imports run downward only, and never in a circle. `npm run imports` checks this.

/**
 * The layers of the source, lowest first; folders in the same layer share a line. If a lower layer has to call an upper
 * layer, the call is declared in core/pool/upcalls.ts.
 */
const LAYERS = [
  ['src/core/base'],
  ['src/core/wire'],
  ['src/core/config', 'src/core/auth'],
  ['src/core/pool'],
  ['src/core/net'],
  ['src/core/link'],
  ['src/core/login'],
  ['src/core/session'],
  ['src/core/life'],
  ['src/core/report'],
  ['src/admin', 'src/takeover'],
];

/** Folders of one layer that must not import one another. */
const STRANGERS = [
  ['src/takeover', 'src/admin'],
  ['src/admin', 'src/takeover'],
];

/** Node's asynchronous modules: on a thread that never yields, their callbacks would never run. */
const NEVER_ANSWERS = '^(node:)?(net|tls|dns|http|https|http2|dgram|stream|timers|child_process|cluster)(/|$)';

const inside = (folders) => `^(${folders.join('|')})/`;

const upward = LAYERS.slice(0, -1).map((folders, at) => ({
  name: `no-upward-from-${folders.map((folder) => folder.split('/').at(-1)).join('-')}`,
  comment: 'a lower layer calls an upper layer by an upcall: declared in core/pool/upcalls.ts, assigned in wire.ts',
  severity: 'error',
  from: { path: inside(folders) },
  to: { path: `^src/((main|wire|signals)\\.ts$|cli/)|${inside(LAYERS.slice(at + 1).flat())}` },
}));

const strangers = STRANGERS.map(([from, to]) => ({
  name: `no-${from.split('/').at(-1)}-to-${to.split('/').at(-1)}`,
  severity: 'error',
  from: { path: inside([from]) },
  to: { path: inside([to]) },
}));

module.exports = {
  forbidden: [
    {
      name: 'no-circular',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    { name: 'resolvable', severity: 'error', from: {}, to: { couldNotResolve: true } },
    ...upward,
    ...strangers,
    {
      name: 'no-main-from-the-top-layer',
      severity: 'error',
      from: { path: inside(LAYERS.at(-1)) },
      to: { path: '^src/((main|wire|signals)\\.ts$|cli/)' },
    },
    {
      name: 'only-main-wires',
      severity: 'error',
      from: { path: '^src/', pathNot: '^src/main\\.ts$' },
      to: { path: '^src/wire\\.ts$' },
    },
    {
      name: 'workers-know-only-messages',
      comment: 'workers run in their own threads, and import only types from the pooler',
      severity: 'error',
      from: { path: inside(['src/workers']) },
      to: { path: '^src/', pathNot: `${inside(['src/workers'])}|^src/core/base/worker-messages\\.ts$` },
    },
    {
      name: 'cli-knows-no-pooler',
      comment: 'its commands read configs and act as protocol clients; they have no pools, sockets and sessions',
      severity: 'error',
      from: { path: inside(['src/cli']) },
      to: {
        path: '^src/',
        pathNot: inside(['src/cli', 'src/core/base', 'src/core/wire', 'src/core/config', 'src/core/auth']),
      },
    },
    {
      name: 'tools-stand-alone',
      comment: 'the demo starts the pooler as a user would',
      severity: 'error',
      from: { path: '^tools/' },
      to: { path: '^(src|test|bench|compare)/' },
    },
    {
      name: 'nothing-needs-the-tools',
      severity: 'error',
      from: { path: '^src/' },
      to: { path: '^(tools|test|bench|compare)/' },
    },
    {
      name: 'nothing-that-never-answers',
      severity: 'error',
      from: { path: '^src/(core|admin|takeover)/' },
      to: { path: NEVER_ANSWERS },
    },
    {
      name: 'no-development-packages',
      severity: 'error',
      from: { path: '^src/' },
      to: { dependencyTypes: ['npm-dev'], dependencyTypesNot: ['type-only'], pathNot: '@types/' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['node', 'require', 'import', 'types'] },
  },
};
