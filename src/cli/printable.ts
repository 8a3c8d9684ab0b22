/*
 * Texts of a server for a terminal: nothing in them moves the cursor or changes what was printed before. Used by the
 * commands that print such texts.
 */

/** Control characters of ASCII, and those behind it in UTF-8; line breaks stay. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROLS = /[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]/g;

/** @param text byte string */
export function printable(text: string): string {
  return text.replace(CONTROLS, ' ');
}

/** The same in one line. */
export function oneLine(text: string): string {
  return printable(text).replaceAll('\n', ' ');
}
