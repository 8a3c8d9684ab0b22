// The man pages, generated from docs/: tsbouncer(1) from usage.md, console.md and clients.md, tsbouncer(5) from
// config.md. Part of the build.
//
//     node scripts/man.mjs [folder]   the default is dist/man
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { roffOf } from './roff.mjs';

const TOP = fileURLToPath(new URL('..', import.meta.url));

const PAGES = [
  {
    section: 1,
    source: 'usage.md',
    // each of these pages becomes a section
    more: ['console.md', 'clients.md'],
    about: 'tsbouncer \\- connection pooler for PostgreSQL',
    also: 5,
  },
  { section: 5, source: 'config.md', more: [], about: 'tsbouncer.ini \\- configuration of tsbouncer(1)', also: 1 },
];

/** The date of the pages; SOURCE_DATE_EPOCH sets it for reproducible builds. */
function day() {
  const epoch = process.env.SOURCE_DATE_EPOCH;
  return new Date(epoch === undefined ? Date.now() : Number(epoch) * 1000).toISOString().slice(0, 10);
}

function manPage({ section, source, more, about, also }, version) {
  const page = (name) => readFileSync(join(TOP, 'docs', name), 'utf8');
  const head = [
    `.\\" Generated from docs/${[source, ...more].join(', docs/')}: edit these.`,
    `.TH TSBOUNCER ${section} ${day()} "tsbouncer ${version}" "tsbouncer"`,
    '.SH NAME',
    about,
  ];
  const foot = [
    '.SH SEE ALSO',
    `.BR tsbouncer (${also}),`,
    '.BR psql (1)',
    '.PP',
    'The folder docs of the package contains more pages.',
  ];
  const body = [roffOf(page(source)), ...more.map((name) => roffOf(page(name), true))].join('');
  return `${head.join('\n')}\n${body}${foot.join('\n')}\n`;
}

const folder = process.argv[2] ?? join(TOP, 'dist', 'man');
const { version } = JSON.parse(readFileSync(join(TOP, 'package.json'), 'utf8'));
mkdirSync(folder, { recursive: true });
for (const page of PAGES) writeFileSync(join(folder, `tsbouncer.${page.section}`), manPage(page, version));
