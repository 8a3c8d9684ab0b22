// Imports run downward only, and never in a circle. `npm run imports` holds it.

/**
 * The floors of the house from the ground up. Rooms on one floor share a line. What a lower floor has to ask of an upper
 * one is declared in core/pool/upcalls.ts.
 */
const FLOORS = [
  ['src/core/base'],
  ['src/core/wire'],
  ['src/core/config', 'src/core/auth'],
  ['src/core/pool'],
  ['src/core/net'],
  ['src/core/link'],
  ['src/core/login'],
  ['src/core/session'],
  ['src/core/life'],
  ['src/admin', 'src/takeover'],
];

/** Rooms on one floor that must not import one another. */
const STRANGERS = [
  ['src/takeover', 'src/admin'],
  ['src/admin', 'src/takeover'],
];

/** Node's own asynchronous modules: on a thread that never yields they would never answer. */
const NEVER_ANSWERS = '^(node:)?(net|tls|dns|http|https|http2|dgram|stream|timers|child_process|cluster)(/|$)';

const inside = (rooms) => `^(${rooms.join('|')})/`;

const upward = FLOORS.slice(0, -1).map((rooms, at) => ({
  name: `no-upward-from-${rooms.map((room) => room.split('/').at(-1)).join('-')}`,
  comment: 'what a lower floor has to ask of an upper one is an upcall: core/pool/upcalls.ts, assigned in wire.ts',
  severity: 'error',
  from: { path: inside(rooms) },
  to: { path: `^src/((main|wire|signals)\\.ts$|cli/)|${inside(FLOORS.slice(at + 1).flat())}` },
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
      comment:
        'records of one room may name one another as types (a pool its database, a database its pools): such names are gone at run time',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    { name: 'resolvable', severity: 'error', from: {}, to: { couldNotResolve: true } },
    ...upward,
    ...strangers,
    {
      name: 'no-main-from-the-top-floor',
      severity: 'error',
      from: { path: inside(FLOORS.at(-1)) },
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
      comment: 'a thread of its own: what it imports of the pooler are types',
      severity: 'error',
      from: { path: inside(['src/workers']) },
      to: { path: '^src/', pathNot: `${inside(['src/workers'])}|^src/core/base/worker-messages\\.ts$` },
    },
    {
      name: 'cli-knows-no-pooler',
      comment:
        'its commands read configs and speak the protocol as a client; pools, sockets and sessions are not theirs',
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
