/*
 * Makes the pictures of docs/operating.md: the live page under load, on a desktop and on a phone.
 *
 *     npm run page-pictures [SECONDS] [FOLDER]
 *
 * Loads a pooler for that long, with an online reboot and a few warnings, and writes the pictures to docs/ or that folder.
 */

import { join } from 'node:path';
import { PROJECT_DIR } from '../harness/machine';
import { Chromium, noChromium } from './chromium';
import { type Load, startLoad } from './load';

const DESKTOP = { width: 1360, height: 900 };
const PHONE = { width: 360, height: 780, scale: 2, mobile: true };

const pause = (seconds: number) => new Promise((settle) => setTimeout(settle, seconds * 1000));

/** Things that go wrong in the life of a pooler. */
async function incidents({ chain }: Load): Promise<void> {
  const refused = { database: 'nowhere', user: 'analyst' };
  await chain.sql('SELECT 1', refused).catch(() => {});
  await chain.sql('SELECT 1', { database: 'archive', user: 'archivist' });
  await chain.sql('SELECT 1', { database: 'archive', user: 'archivist', options: '-c foo' } as object).catch(() => {});
}

async function takePictures(load: Load, folder: string): Promise<void> {
  const browser = await Chromium.start();
  try {
    for (const [name, screen, dark] of [
      ['page-desktop', DESKTOP, false],
      ['page-desktop-dark', DESKTOP, true],
      ['page-phone', PHONE, true],
      ['page-phone-light', PHONE, false],
    ] as const) {
      await browser.screen({ ...screen, dark });
      await browser.open(`http://127.0.0.1:${load.metricsPort}/`);
      await browser.until('the pools', "document.querySelectorAll('#pools tbody tr').length > 5");
      await pause(2);
      await browser.picture(join(folder, `${name}.png`));
    }
    for (const error of browser.errors) console.error(error);
  } finally {
    await browser.stop();
  }
}

async function main(): Promise<void> {
  if (noChromium !== null) throw new Error(noChromium);
  const [seconds = '60', folder = join(PROJECT_DIR, 'docs')] = process.argv.slice(2);
  const load = await startLoad(Number(seconds) + 60);
  try {
    await pause(Number(seconds) * 0.4);
    await incidents(load);
    await load.chain.reboot('ts');
    await pause(Number(seconds) * 0.6);
    await incidents(load);
    await pause(2);
    await takePictures(load, folder);
  } finally {
    await load.stop();
  }
}

main().catch((err) => {
  console.error(err);
  process.exitCode = 1;
});
