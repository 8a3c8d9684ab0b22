/*
 * %include: of files, of folders and of patterns.
 */

import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { loadConfigFile } from '../../src/core/config/loader';
import { dir, load, loadBad, logged, resetSettingsAround, write } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';

resetSettingsAround();

describe('%include', () => {
  it('%include reads a file in place, including its sections', () => {
    const inner = write('verbose = 3\n[databases]\ninner =\n', 'inner one.ini');
    const parsed = load(`[pgbouncer]\nverbose = 1\n%include \t${inner} \t\nouter =\n`);
    assert.deepEqual(
      parsed.settings.map((line) => [line.name, line.value, line.file, line.line]),
      [['verbose', '3', inner, 1]],
    );
    assert.deepEqual(
      parsed.databases.map((db) => db.name),
      ['inner', 'outer'],
    );
  });

  it('an error in an included file names every file on the path to it', () => {
    const inner = write('\nlisten_port = x\n', 'bad.ini');
    assert.deepEqual(loadBad(`[pgbouncer]\n\n%include ${inner}\n`), [
      `ERROR invalid value "x" for parameter listen_port in configuration (${inner}:2)`,
      'ERROR error processing include file in configuration (FILE:3), stopping loading',
    ]);
  });

  it('%include of a missing file is an error', () => {
    const messages = loadBad('[pgbouncer]\n%include /nonexistent/x.ini\n');
    assert.match(messages[0] as string, /^ERROR could not load file "\/nonexistent\/x\.ini": no such file/i);
    assert.equal(messages[1], 'ERROR error processing include file in configuration (FILE:2), stopping loading');
  });

  it('%include of a folder reads its *.ini files in the order of their bytes', () => {
    const folder = join(dir, 'conf.d');
    mkdirSync(folder);
    const empty = load(`[pgbouncer]\n%include ${folder}\n%include ${folder}/*.ini\n%include ${folder}/a*\n`);
    assert.deepEqual(empty.databases, []);
    const names = ['b.ini', 'a.ini', 'B.ini', '\xe4.ini', '.c.ini', '#d.ini#', 'e.ini~', 'f.ini.bak', 'ini', 'g.conf'];
    for (const name of names) write(`[databases]\n"${name}" =\n`, `conf.d/${name}`);
    mkdirSync(join(folder, 'folder.ini'));
    symlinkSync('gone', join(folder, 'broken.ini'));
    symlinkSync('g.conf', join(folder, 'linked.ini'));
    const found = (what: string) => load(`[pgbouncer]\n%include ${what}\n`).databases.map((db) => db.name);
    assert.deepEqual(found(folder), ['B.ini', 'a.ini', 'b.ini', 'g.conf', '\xe4.ini']);
    assert.deepEqual(found(`${folder}/`), found(folder));
    assert.deepEqual(found(`${folder}/*.ini`), found(folder));
    assert.deepEqual(found(`${folder}/*.conf`), ['g.conf']);
    assert.deepEqual(found(`${folder}/*a*i`), ['a.ini']);
    assert.deepEqual(found(`${folder}/?.ini*`), []);
  });

  it('an error in a folder names the file and its line, or the line of %include', () => {
    const folder = join(dir, 'bad.d');
    mkdirSync(folder);
    write('[databases]\none =\n', 'bad.d/1.ini');
    write('\n[databases]\ntwo = port=x\n', 'bad.d/2.ini');
    assert.deepEqual(loadBad(`[pgbouncer]\n%include ${folder}\n`), [
      'ERROR invalid port: x',
      `ERROR invalid value "port=x" for parameter two in configuration (${folder}/2.ini:3)`,
      'ERROR error processing include file in configuration (FILE:2), stopping loading',
    ]);
    assert.match(
      loadBad('[pgbouncer]\n%include /nonexistent/*.ini\n').join(),
      /^ERROR could not read folder "\/nonexistent\/\*\.ini": no such file.* \(FILE:2\), stopping loading$/i,
    );
  });

  it('%include can be nested ten levels deep', () => {
    const chain = (depth: number): string => {
      let path = write('verbose = 5\n');
      for (let i = 1; i < depth; i++) path = write(`%include ${path}\n`);
      return `[pgbouncer]\n%include ${path}\n`;
    };
    assert.equal(load(chain(10)).settings[0]?.value, '5');
    const messages = loadBad(chain(11));
    assert.match(messages[0] as string, /^ERROR include nesting level too deep \(.*:1\), stopping loading$/);
    assert.equal(messages.length, 11);
    const self = join(dir, 'self.ini');
    write(`[pgbouncer]\n%include ${self}\n`, 'self.ini');
    assert.equal(logged(() => assert.equal(loadConfigFile(self), null)).length, 11);
  });
});
