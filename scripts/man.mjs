// The man pages, made of docs/: tsbouncer(1) of usage.md, tsbouncer(5) of config.md. Part of the build.
//
//     node scripts/man.mjs [folder]   the default is dist/man
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { roffOf } from './roff.mjs';

const TOP = fileURLToPath(new URL('..', import.meta.url));

const PAGES = [
  { section: 1, source: 'usage.md', about: 'tsbouncer \\- connection pooler for PostgreSQL', also: 5 },
  { section: 5, source: 'config.md', about: 'tsbouncer.ini \\- configuration of tsbouncer(1)', also: 1 },
];

/** The day that the pages bear; the variable is for builds that have to come out the same every time. */
function day() {
  const epoch = process.env.SOURCE_DATE_EPOCH;
  return new Date(epoch === undefined ? Date.now() : Number(epoch) * 1000).toISOString().slice(0, 10);
}

function manPage({ section, source, about, also }, version) {
  const head = [
    `.\\" Made of docs/${source}: change that.`,
    `.TH TSBOUNCER ${section} ${day()} "tsbouncer ${version}" "tsbouncer"`,
    '.SH NAME',
    about,
  ];
  const foot = [
    '.SH SEE ALSO',
    `.BR tsbouncer (${also}),`,
    '.BR psql (1)',
    '.PP',
    'The folder docs of the package has more.',
  ];
  return `${head.join('\n')}\n${roffOf(readFileSync(join(TOP, 'docs', source), 'utf8'))}${foot.join('\n')}\n`;
}

const folder = process.argv[2] ?? join(TOP, 'dist', 'man');
const { version } = JSON.parse(readFileSync(join(TOP, 'package.json'), 'utf8'));
mkdirSync(folder, { recursive: true });
for (const page of PAGES) writeFileSync(join(folder, `tsbouncer.${page.section}`), manPage(page, version));
