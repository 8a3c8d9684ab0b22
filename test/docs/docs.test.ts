/*
 * Checks the documentation against the program: docs/ covers every setting, command and column, every config example
 * loads, links have targets, and the man pages generated from docs/ have no errors.
 */

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { commands } from '../../src/admin/admin';
import { showColumns } from '../../src/admin/columns';
import { showTable } from '../../src/admin/show';
import { putLists } from '../../src/admin/show-lists';
import { OPTIONS, usageText } from '../../src/cli/options';
import { recordKeys } from '../../src/core/config/records';
import { settingsTable } from '../../src/core/config/settings-table';
import { statNames } from '../../src/core/pool/stats';
import { giveTo } from '../../tools/unprivileged';
import { ask, login, refusal, withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { before, describe, runSync } from '../harness/limits';
import { installed, it, PROJECT_DIR, run, tempDir, user } from '../harness/machine';
import { itUnless, noProgram } from '../harness/needs';

const DOCS = join(PROJECT_DIR, 'docs');
/** Folders in the examples, which the tests replace. */
const EXAMPLE_FOLDERS = ['/etc/tsbouncer', '/var/log/tsbouncer', '/run/tsbouncer', '/run/secrets', '/usr/local/bin'];

function page(name: string): string {
  return readFileSync(join(DOCS, name), 'utf8');
}

/** The paths of all pages, relative to the project. */
function allPages(): string[] {
  const inDocs = readdirSync(DOCS).filter((name) => name.endsWith('.md'));
  return ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', ...inDocs.map((name) => `docs/${name}`)];
}

/** The text of a section, up to the next heading. */
function section(text: string, title: string): string {
  const start = text.search(new RegExp(`^#+ ${title}$`, 'm'));
  assert.notEqual(start, -1, `no section: ${title}`);
  const rest = text.slice(text.indexOf('\n', start));
  const end = rest.search(/^#+ /m);
  return end < 0 ? rest : rest.slice(0, end);
}

/** The contents of the code blocks of a language. */
function codeBlocks(text: string, language: string): string[] {
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n([\\s\\S]*?)^\`\`\`$`, 'gm'))].map(
    (match) => match[1] as string,
  );
}

/** The first words of table rows: the entries that the tables describe. */
function entries(text: string): Set<string> {
  const rows = text.match(/^\| .* \|$/gm) ?? [];
  const found = new Set<string>();
  for (const row of rows) {
    const first = row.split(' | ')[0] as string;
    for (const word of first.matchAll(/`([^`]+)`/g)) found.add(word[1] as string);
  }
  return found;
}

function missing(wanted: Iterable<string>, found: Set<string>): string[] {
  return [...wanted].filter((word) => !found.has(word));
}

describe('docs/usage.md', () => {
  const usage = page('usage.md');

  it('docs/usage.md describes every command line option', () => {
    const found = entries(section(usage, 'Command line'));
    const wanted = OPTIONS.flatMap(({ name, letter, takesValue }) => {
      const forms = takesValue ? [`--${name}=USERNAME`] : [`--${name}`];
      return letter === '' ? forms : [...forms, takesValue ? `-${letter} USERNAME` : `-${letter}`];
    });
    assert.deepEqual(missing(wanted, found), []);
    assert.match(usageText(), /mkauth FILE CONNSTR/);
    assert.match(section(usage, 'Synopsis'), /mkauth FILE CONNSTR/);
  });

  it('docs/usage.md describes every signal', () => {
    const handled = readFileSync(join(PROJECT_DIR, 'src', 'signals.ts'), 'utf8').matchAll(
      /constants\.signals\.(SIG\w+)/g,
    );
    assert.deepEqual(missing(new Set([...handled].map((match) => match[1] as string)), entries(usage)), []);
  });
});

describe('docs/console.md', () => {
  const consolePage = page('console.md');

  it('docs/console.md describes every console command', () => {
    const found = new Set([...entries(section(consolePage, 'Commands'))].map((text) => text.split(' ')[0] as string));
    const words = commands.map(({ word }) => word.toUpperCase()).filter((word) => word !== 'SHOW' && word !== 'SELECT');
    assert.deepEqual(missing([...words, 'SET'], found), []);
    for (const [, modes] of usageHelp().matchAll(/SHUTDOWN ([A-Z_|]+)/g)) {
      const full = (modes as string).split('|').map((mode) => `SHUTDOWN ${mode}`);
      assert.deepEqual(missing(full, entries(section(consolePage, 'Commands'))), []);
    }
  });

  it('docs/console.md describes exactly the words after SHOW and their columns', () => {
    for (const { word } of showTable) {
      const text = section(consolePage, `SHOW ${word.toUpperCase()}`);
      const columns = (showColumns as Record<string, { names: readonly string[] }>)[word]?.names ?? [];
      // has the columns of SHOW CLIENTS and further columns
      if (word === 'active_sockets') continue;
      const more = word === 'sockets' ? columns.filter((name) => !showColumns.clients.names.includes(name)) : columns;
      assert.deepEqual([...entries(text)].sort(), [...more].sort(), word);
    }
  });

  it('docs/console.md describes the rows of SHOW TOTALS and SHOW LISTS', () => {
    const lists: string[] = [];
    putLists((name) => void lists.push(String(name)));
    for (const [title, names] of [
      ['SHOW TOTALS', statNames],
      ['SHOW LISTS', lists],
    ] as const) {
      const text = section(consolePage, title);
      assert.deepEqual(
        names.filter((name) => !text.includes(`\`${name}\``)),
        [],
        title,
      );
    }
  });
});

/** The text of SHOW HELP. */
function usageHelp(): string {
  return readFileSync(join(PROJECT_DIR, 'src', 'admin', 'columns.ts'), 'utf8');
}

describe('docs/config.md', () => {
  // settings, defaults and reload rules are checked in config-loading.test.ts
  it('docs/config.md describes every key of [databases], [users] and [peers]', () => {
    const config = page('config.md');
    for (const [name, keys] of Object.entries(recordKeys)) {
      const text = section(config, `\\[${name}\\]`);
      assert.deepEqual(
        keys.filter((key) => !text.includes(`\`${key}\``)),
        [],
        name,
      );
    }
  });
});

/* ---- examples ---- */

/** Creates the folders of the examples, with all files that the examples name. */
function exampleHouse(): string {
  const house = tempDir('docs');
  for (const folder of EXAMPLE_FOLDERS) mkdirSync(join(house, folder), { recursive: true });
  for (const name of ['one', 'two']) mkdirSync(join(house, '/run/tsbouncer', name));
  const certs = new CertFolder();
  const ca = certs.authority('CA');
  const etc = join(house, '/etc/tsbouncer');
  writeFileSync(join(etc, 'ca.crt'), readFileSync(ca.cert));
  for (const name of ['server', 'client']) {
    const made = certs.issue(ca, name, { cn: name });
    writeFileSync(join(etc, `${name}.crt`), readFileSync(made.cert));
    writeFileSync(join(etc, `${name}.key`), readFileSync(made.key));
  }
  writeFileSync(join(etc, 'userlist.txt'), readFileSync(join(PROJECT_DIR, 'etc', 'userlist.txt')));
  writeFileSync(join(house, '/run/secrets/shop-password'), 'secret\n');
  writeFileSync(join(house, '/usr/local/bin/read-secret'), '', { mode: 0o755 });
  writeFileSync(join(etc, 'admins'), 'admin\nann\n');
  writeFileSync(join(etc, 'hba.conf'), '');
  writeFileSync(join(etc, 'ident.conf'), '');
  giveEverything(house);
  return house;
}

function giveEverything(folder: string): void {
  giveTo(user, folder);
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) giveEverything(join(folder, entry.name));
    else giveTo(user, join(folder, entry.name));
  }
}

/** The problems that --check reports for an example, without warnings: an example shows one setting, not a whole config. */
async function problemsOf(house: string, ini: string): Promise<string> {
  const moved = EXAMPLE_FOLDERS.reduce((text, folder) => text.replaceAll(folder, `${house}${folder}`), ini);
  const path = join(house, 'example.ini');
  writeFileSync(path, moved);
  giveTo(user, path);
  const { node, mainJs } = installed();
  const { stdout, stderr } = await run(node, [mainJs, '--check', '-q', path], { cwd: PROJECT_DIR });
  const problems = stdout.split(/(?<=\n)/).filter((line) => !line.includes(' warning: '));
  return problems.join('') + stderr;
}

describe('examples', () => {
  for (const name of allPages()) {
    const text = readFileSync(join(PROJECT_DIR, name), 'utf8');
    const examples = codeBlocks(text, 'ini');
    if (examples.length === 0) continue;
    it(`examples in ${name} load`, async () => {
      const house = exampleHouse();
      for (const [language, file] of [
        ['hba', 'hba.conf'],
        ['ident', 'ident.conf'],
      ] as const) {
        const [first] = codeBlocks(text, language);
        if (first !== undefined) writeFileSync(join(house, '/etc/tsbouncer', file), first);
      }
      for (const ini of examples) assert.equal(await problemsOf(house, ini), '', ini);
    });
  }

  it('etc/tsbouncer.ini loads, unchanged and with any of its examples', async () => {
    const house = exampleHouse();
    const ini = readFileSync(join(PROJECT_DIR, 'etc', 'tsbouncer.ini'), 'utf8');
    assert.equal(await problemsOf(house, ini), '');
    const [records] = ini.split('[pgbouncer]') as [string];
    const all = ini.replace(records, records.replace(/^;(?=[^;\s])/gm, ''));
    assert.equal(await problemsOf(house, all), '');
  });

  it('the check of examples finds an error', async () => {
    assert.match(await problemsOf(exampleHouse(), '[pgbouncer]\nauth_type = md6\n'), /md6/);
  });

  it('the auth_query function in docs/authentication.md finds users and needs no superuser', async () => {
    const text = page('authentication.md');
    const pg = await PgCluster.start();
    try {
      const sql = codeBlocks(text, 'sql')[0] as string;
      await pg.sql(sql);
      await pg.createUser('ann', 'right', 'scram');
      await pg.createUser('boss', 'right', 'scram', 'SUPERUSER');
      const query = /^auth_query = (.*)$/m.exec(
        codeBlocks(text, 'ini').find((ini) => ini.includes('auth_query =')) as string,
      )?.[1] as string;
      const settings = { auth_type: 'scram-sha-256', auth_user: 'lookup', auth_query: query, auth_dbname: 'postgres' };
      await withPooler({ cluster: pg, settings, userlist: { lookup: 'change-me' } }, async (pooler) => {
        const client = await login(pooler, { user: 'ann', password: 'right' });
        assert.equal(await ask(client, 'SELECT current_user'), 'ann');
        for (const name of ['nobody', 'boss']) {
          assert.equal(await refusal(pooler, { user: name, password: 'right' }), 'no such user');
        }
      });
    } finally {
      await pg.stop();
    }
  });
});

/* ---- links ---- */

/** The anchors of the headings. */
function anchors(text: string): Set<string> {
  const titles = [...text.matchAll(/^#+ (.*)$/gm)].map((match) => match[1] as string);
  return new Set(
    titles.map((title) =>
      title
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  );
}

it('links between pages have targets', () => {
  const broken: string[] = [];
  for (const name of allPages()) {
    const path = join(PROJECT_DIR, name);
    for (const [, target] of readFileSync(path, 'utf8').matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target as string)) continue;
      const [file, anchor] = (target as string).split('#') as [string, string?];
      const to = file === '' ? path : resolve(dirname(path), file);
      if (!existsSync(to)) broken.push(`${name}: ${target}`);
      else if (anchor !== undefined && !anchors(readFileSync(to, 'utf8')).has(anchor))
        broken.push(`${name}: ${target}`);
    }
  }
  assert.deepEqual(broken, []);
});

it('files and folders of the source that pages name exist', () => {
  const gone: string[] = [];
  for (const name of allPages()) {
    if (name === 'CHANGELOG.md') continue;
    const text = readFileSync(join(PROJECT_DIR, name), 'utf8');
    for (const [path] of text.matchAll(
      /(?<![\w./-])(?:src|native|test|bench|compare|scripts|tools)\/(?:[\w.-]*\w\/?)*/g,
    )) {
      if (!existsSync(join(PROJECT_DIR, path))) gone.push(`${name}: ${path}`);
    }
  }
  assert.deepEqual(gone, []);
});

it('docs/pgbouncer-map.md finds each function in the file that it names', () => {
  const rows = [...page('pgbouncer-map.md').matchAll(/^\| `\w+` \| `(\w+)` \| (\S+) \|$/gm)];
  assert.ok(rows.length > 40, String(rows.length));
  const lost = rows.filter(([, name, path]) => {
    const file = join(PROJECT_DIR, path as string);
    return !(existsSync(file) && new RegExp(`\\bfunction ${name}\\b`).test(readFileSync(file, 'utf8')));
  });
  assert.deepEqual(
    lost.map(([row]) => row),
    [],
  );
});

it('docs/README.md lists every page', () => {
  const index = page('README.md');
  const pages = readdirSync(DOCS).filter((name) => name.endsWith('.md') && name !== 'README.md');
  const unlisted = pages.filter((name) => !index.includes(`(${name})`));
  assert.deepEqual(unlisted, []);
});

/* ---- man pages ---- */

const MAN_PAGES = ['tsbouncer.1', 'tsbouncer.5'];

/** A test that needs a system program. */
function itWith(program: string, name: string, body: () => void): void {
  itUnless(noProgram(program))(name, body);
}

describe('man pages', () => {
  let dir = '';
  before(() => {
    dir = tempDir('man');
    const made = runSync(process.execPath, [join(PROJECT_DIR, 'scripts', 'man.mjs'), dir]);
    assert.deepEqual([made.status, made.stderr], [0, '']);
  });

  /** Runs a formatter. @returns its output and its warnings */
  function format(program: string, ...args: string[]): { text: string; complaints: string } {
    const env = { ...process.env, MANWIDTH: '80', MANPAGER: 'cat', LC_ALL: 'C.UTF-8' };
    const { stdout, stderr, status } = runSync(program, args, { env });
    assert.equal(status, 0, `${program} ${args.join(' ')}\n${stdout}${stderr}`);
    return { text: stdout, complaints: stderr };
  }

  for (const name of MAN_PAGES) {
    itWith('groff', `groff reports no warning for ${name}`, () => {
      assert.equal(format('groff', '-ww', '-man', '-Tutf8', '-z', join(dir, name)).complaints, '');
    });
    itWith('man', `man reports no warning for ${name}`, () => {
      assert.equal(format('man', '--warnings', '-l', join(dir, name)).complaints, '');
    });
    itWith('mandoc', `mandoc reports no warning for ${name}`, () => {
      const { text, complaints } = format('mandoc', '-T', 'lint', '-W', 'warning', join(dir, name));
      assert.equal(text + complaints, '');
    });
  }

  /** The formatted page, with lines long enough for every word. */
  function read(name: string): string {
    const options = ['-man', '-Tascii', '-P-cbou', '-rHY=0', '-rLL=300n'];
    return format('groff', ...options, join(dir, name)).text.replaceAll(/\s+/g, ' ');
  }

  itWith('groff', 'tsbouncer.1 contains every option, command and column', () => {
    const text = read('tsbouncer.1');
    const wanted = [
      ...OPTIONS.map(({ name }) => `--${name}`),
      ...commands.map(({ word }) => word.toUpperCase()),
      ...showTable.map(({ word }) => `SHOW ${word.toUpperCase()}`),
      ...Object.values(showColumns).flatMap(({ names }) => names),
    ];
    assert.deepEqual(
      wanted.filter((word) => !text.includes(word)),
      [],
    );
  });

  itWith('groff', 'tsbouncer.5 contains every setting', () => {
    const text = read('tsbouncer.5');
    const wanted = [...settingsTable.map(({ name }) => name), ...Object.values(recordKeys).flat(), '[databases]'];
    assert.deepEqual(
      wanted.filter((word) => !text.includes(word)),
      [],
    );
  });

  it('the man page generator refuses unsupported Markdown', () => {
    const source = `import { roffOf } from ${JSON.stringify(join(PROJECT_DIR, 'scripts', 'roff.mjs'))}; roffOf('> quoted');`;
    const made = runSync(process.execPath, ['--input-type=module', '-e', source]);
    assert.notEqual(made.status, 0);
    assert.match(made.stderr, /blockquote is not known here/);
  });

  it('package.json lists the man pages', () => {
    const { man, files, scripts } = JSON.parse(readFileSync(join(PROJECT_DIR, 'package.json'), 'utf8'));
    assert.deepEqual(
      man,
      MAN_PAGES.map((name) => `dist/man/${name}`),
    );
    assert.ok(files.includes('dist') && files.includes('docs'));
    assert.match(scripts.build, /npm run man/);
  });
});
