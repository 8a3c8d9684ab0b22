/*
 * The live page in headless Chromium: what it shows, on which screens, that no name becomes markup, and what happens when
 * the pooler cannot be reached or is rebooted. Not part of `npm test`, because Chromium is large: `npm run page-test`.
 */

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { ask, login, refusal, start, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { PROJECT_DIR, tempDir } from '../harness/machine';
import { itUnless } from '../harness/needs';
import { withRebootChain } from '../harness/reboot-chain';
import { Chromium, noChromium, type Screen } from './chromium';

const it = itUnless(noChromium);
const PICTURES = join(PROJECT_DIR, '.page-test');
const HOSTILE = '<img src=x onerror="window.hurt=1">';

const SCREENS: Record<string, Screen> = {
  'desktop-light': { width: 1360, height: 900 },
  'desktop-dark': { width: 1360, height: 900, dark: true },
  tablet: { width: 820, height: 1100, mobile: true },
  phone: { width: 360, height: 780, scale: 2, mobile: true, dark: true },
};

let pg: PgCluster;
let browser: Chromium;
before(async () => {
  if (noChromium !== null) return;
  mkdirSync(PICTURES, { recursive: true });
  pg = await PgCluster.start();
  browser = await Chromium.start();
});
after(async () => {
  if (noChromium !== null) return;
  await browser.stop();
  await pg.stop();
});

const state = () => browser.text('#state');
const address = (port: number) => `http://127.0.0.1:${port}/`;

/** Waits for a state of the page. */
function stateBecomes(pattern: RegExp): Promise<boolean> {
  return browser.until(`the state ${pattern}`, `${pattern}.test(document.getElementById('state').textContent)`);
}

function noErrors(): void {
  assert.deepEqual(browser.errors.splice(0), []);
}

describe('the live page', () => {
  it('shows pools by saturation and fits every screen', async () => {
    const port = await freePort();
    const settings = { pool_mode: 'transaction', metrics_port: port, default_pool_size: 2 };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      await pg.sql('CREATE DATABASE quiet');
      const other = await login(pooler, { database: 'quiet' });
      await ask(other, 'SELECT 1');
      const clients = await Promise.all([1, 2, 3, 4, 5].map(() => login(pooler)));
      for (const client of clients.slice(0, 2)) await ask(client, 'BEGIN');
      for (const client of clients.slice(2)) await start(client, 'SELECT 1');
      await browser.open(address(port));
      await browser.until(
        'the waiting clients',
        "document.querySelector('#tile-wait .tile-value').textContent === '3'",
      );
      await browser.until('the pool', "document.querySelector('#pools tbody .database')?.textContent === 'postgres'");
      assert.equal(await browser.text('#pools tbody [data-short="waiting"]'), '3');
      assert.match(await browser.text('#pools tbody .share'), /^\d{2,} %$/);
      assert.equal(await state(), 'running');
      for (const [name, screen] of Object.entries(SCREENS)) {
        await browser.screen(screen);
        await browser.picture(join(PICTURES, `${name}.png`), true);
        const width = await browser.value<number>('document.documentElement.scrollWidth');
        assert.ok(width <= screen.width, `${name} is ${width} wide`);
      }
      await browser.screen(SCREENS['desktop-light'] as Screen);
      await browser.value(`{ const field = document.getElementById('filter'); field.value = 'QUI';
        field.dispatchEvent(new Event('input')); }`);
      await browser.until('one pool', "document.querySelectorAll('#pools tbody tr').length === 1");
      assert.equal(await browser.text('#pools tbody .database'), 'quiet');
      await browser.value("document.querySelector('#pools thead th.name button').click()");
      assert.equal(await browser.value("document.querySelector('#pools [aria-sort]').className"), 'name');
      noErrors();
      for (const client of [...clients, other]) await client.destroy();
    });
  });

  it('shows names that are markup as text, in pools and in lines of the log', async () => {
    const port = await freePort();
    const settings = { metrics_port: port };
    await pg.sql(`CREATE ROLE "${HOSTILE.replaceAll('"', '""')}" LOGIN`);
    const options = { cluster: pg, settings, userlist: { [HOSTILE]: 'x' } };
    await withPooler(options, async (pooler) => {
      const client = await login(pooler, { user: HOSTILE });
      await ask(client, 'SELECT 1');
      await refusal(pooler, { user: `${HOSTILE}2` });
      await browser.open(address(port));
      await browser.until(
        'the user',
        `[...document.querySelectorAll('.user')].some((node) => node.textContent === ${JSON.stringify(HOSTILE)})`,
      );
      await browser.until(
        'the line',
        `document.getElementById('lines').textContent.includes(${JSON.stringify(HOSTILE)})`,
      );
      assert.equal(await browser.value('document.images.length'), 0);
      assert.equal(await browser.value('typeof window.hurt'), 'undefined');
      noErrors();
      // the policy itself refuses what the page never does
      const refused = await browser.value<string>(`(() => {
        try { document.body.innerHTML = ${JSON.stringify(HOSTILE)}; return 'accepted'; } catch (err) { return err.name; }
      })()`);
      assert.equal(refused, 'TypeError');
      browser.errors.length = 0;
      await client.destroy();
    });
  });

  it('says so before the first pool, and since when the pooler cannot be reached', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
      await browser.open(address(port));
      await stateBecomes(/^running$/);
      assert.match(await browser.text('#pools-empty'), /^No client has logged in yet/);
      await browser.picture(join(PICTURES, 'empty.png'));
      process.kill(pooler.pid, 'SIGSTOP');
      await stateBecomes(/^not reachable$/);
      assert.match(await browser.text('#banner'), /cannot be reached. No answer since \d\d:\d\d:\d\d \(\d+ s\)/);
      await browser.picture(join(PICTURES, 'not-reachable.png'));
      process.kill(pooler.pid, 'SIGCONT');
      await stateBecomes(/^running$/);
      assert.equal(await browser.value("document.getElementById('banner').hidden"), true);
      await pooler.admin('PAUSE');
      await stateBecomes(/^paused$/);
      await pooler.admin('RESUME');
      await stateBecomes(/^running$/);
      noErrors();
    });
  });

  it('goes on with the new process of an online reboot, and keeps what it has seen', async () => {
    const port = await freePort();
    await withRebootChain({ cluster: pg, settings: { metrics_port: port } }, async (chain) => {
      const first = await chain.start('ts');
      await browser.open(address(port));
      await stateBecomes(/^running$/);
      await browser.value('window.sameDocument = true');
      const second = await chain.reboot('ts');
      await stateBecomes(/^rebooted \d\d:\d\d:\d\d$/);
      assert.match(await browser.text('#process'), new RegExp(`process ${second.pid} `));
      assert.match(await browser.text('#reboots'), new RegExp(`process ${first.pid} → ${second.pid}`));
      assert.equal(await browser.value('window.sameDocument'), true);
      await browser.until('the mark', "document.querySelectorAll('#tile-queries .marks path').length === 1");
      noErrors();
    });
  });

  it('works with a token as the password of the browser', async () => {
    const port = await freePort();
    const file = join(tempDir('token'), 'token');
    writeFileSync(file, 'secret\n', { mode: 0o644 });
    await withPooler({ cluster: pg, settings: { metrics_port: port, metrics_token_file: file } }, async () => {
      await browser.open(address(port), 'secret');
      await stateBecomes(/^running$/);
      noErrors();
      await browser.open('about:blank');
    });
  });
});
