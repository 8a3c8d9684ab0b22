/*
 * The command line and the environment of `npm run bench`, and the sizes that follow from them.
 */
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    details: { type: 'boolean', default: false },
    settings: { type: 'boolean', default: false },
    variants: { type: 'boolean', default: false },
    variant: { type: 'string', multiple: true, default: [] },
    json: { type: 'string' },
    svg: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    threads: { type: 'string' },
    only: { type: 'string', multiple: true, default: [] },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

export const USAGE = `Usage: npm run bench -- [OPTION]...
  --quick            one short round of fewer rows, for a look or for CI
  --rounds N         rounds per figure (default 3); medians are printed
  --seconds N        length of one run (default 4)
  --threads N        threads of the load generator (default 1)
  --only WORD        only figures whose name has WORD in it, as simple, tls, prepared, reconnecting, reboot, streams;
                     may be repeated; scale: what large numbers cost, which is not measured otherwise (some minutes)
  --settings         instead of everything else, what each setting costs that PgBouncer does not have: tsbouncer with the
                     setting, divided by tsbouncer without it (by default 4 rounds of 1 s; about five minutes)
  --variants         also run tsbouncer with loop_backend=epoll, with loop_backend=uring, and with a thread of
                     io_threads that always works
  --variant SETTING=VALUE[,SETTING=VALUE]...
                     also run tsbouncer with these settings; may be repeated. A part without = continues the
                     value before it, which has a comma then
  --details          also print user and system time, and the time of single threads
  --json FILE        also write everything, single rounds included, to FILE
  --svg FILE         also draw the ratios of the figures with an aim, as in the README
BENCH_ALSO="NAME=COMMAND;..." also runs other programs; each gets the path of an ini as its last argument.
BENCH_COPY_MB sets the size of COPY (default 1024), PGBOUNCER_BIN the path of PgBouncer.`;

function numberOf(name: string, text: string | undefined, otherwise: number): number {
  const value = Number(text ?? otherwise);
  if (Number.isFinite(value) && value > 0) return value;
  console.error(`--${name} is not a valid number: ${text}`);
  process.exit(2);
}

/** What tsbouncer runs with as well. */
const DEFAULT_VARIANTS = ['loop_backend=epoll', 'loop_backend=uring', 'io_threads=1,io_threads_load=0'];

export const options = {
  help: values.help,
  quick: values.quick,
  details: values.details,
  json: values.json,
  svg: values.svg,
  only: values.only.map((word) => word.toLowerCase()),
  settings: values.settings,
  rounds: numberOf('rounds', values.rounds, values.quick ? 1 : values.settings ? 4 : 3),
  seconds: numberOf('seconds', values.seconds, values.quick || values.settings ? 1 : 4),
  threads: numberOf('threads', values.threads, 1),
  /** left out, with a remark, if this version does not have the setting */
  defaultVariants: values.variants ? DEFAULT_VARIANTS : [],
  variants: values.variant,
  also: process.env.BENCH_ALSO ?? '',
};

export const COPY_MB = Number(process.env.BENCH_COPY_MB ?? (options.quick ? 128 : 1024));
/** clients of pgbench */
export const PGBENCH_CLIENTS = options.quick ? [64] : [1, 16, 64];
/** clients, servers or pools whose memory is measured */
export const IDLE_OBJECTS = options.quick ? 500 : 5000;
export const POOLS = options.quick ? 1000 : 5000;
export const REBOOT_IDLE_CLIENTS = options.quick ? [1000] : [1000, 5000];
/** fewer and more streams than the loop receives from in one turn */
export const STREAMS = options.quick ? [200] : [16, 500];
/** clients of the load generator */
export const LOAD_CLIENTS = options.quick ? [500] : [1, 40, 120, 500, 2000, 10_000];
export const LOAD_TLS_CLIENTS = options.quick ? [40] : LOAD_CLIENTS;
export const RECONNECTING_CLIENTS = options.quick ? [40] : [16, 40, 500];
export const BURST_CLIENTS = options.quick ? 1000 : 10_000;
export const LOGIN_STORM = options.quick ? 300 : 1000;
export const SERVERS = options.quick ? 30 : 100;
/** s of load before a measured period */
export const WARM_UP_SECONDS = options.quick || options.settings ? 0.2 : 0.5;
/** s of load on a pooler that has just started, until its code is compiled */
export const FIRST_LOAD_SECONDS = options.quick ? 0.5 : 1;
/** ms; memory that is released periodically has been released by then */
export const REST_MS = options.quick ? 500 : 5000;
export const KB = 1024;
