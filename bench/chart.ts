/*
 * The benchmark's ratios as an SVG chart for the README: one bar per figure, tsbouncer's value divided by PgBouncer's.
 */
import { OURS, type Row, ratioOf } from './rows';

const LABEL_WIDTH = 340;
const BAR_WIDTH = 360;
const LINE_HEIGHT = 24;
const TOP = 58;
const BOTTOM = 34;
/** the right end of the scale; longer bars end there, but show their number */
const RATIO_MAX = 1.5;

interface Bar {
  name: string;
  ratio: number;
}

/** Figures with an aim for which less is better, if tsbouncer and PgBouncer were measured. */
function barsOf(rows: readonly Row[]): Bar[] {
  return rows
    .filter(({ unit, better, aims }) => unit !== '' && better === 'less' && aims.length > 0)
    .map((row) => ({ name: row.name, ratio: ratioOf(row, OURS) }))
    .filter(({ ratio }) => Number.isFinite(ratio) && ratio > 0);
}

function escapeXml(text: string): string {
  return text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

function barLine({ name, ratio }: Bar, at: number): string {
  const y = TOP + at * LINE_HEIGHT;
  const length = (Math.min(ratio, RATIO_MAX) / RATIO_MAX) * BAR_WIDTH;
  const colour = ratio <= 1 ? '#2f7d4f' : '#b3541e';
  return [
    `<text x="${LABEL_WIDTH - 10}" y="${y + 14}" text-anchor="end">${escapeXml(name)}</text>`,
    `<rect x="${LABEL_WIDTH}" y="${y + 3}" width="${length.toFixed(1)}" height="${LINE_HEIGHT - 9}" fill="${colour}"/>`,
    `<text x="${(LABEL_WIDTH + length + 8).toFixed(1)}" y="${y + 14}">${ratio.toFixed(2)}</text>`,
  ].join('\n');
}

/**
 * @param title what was compared, and on which machine
 * @returns an SVG document; '' if there is nothing to compare
 */
export function chartOf(rows: readonly Row[], title: string): string {
  const bars = barsOf(rows);
  if (bars.length === 0) return '';
  const width = LABEL_WIDTH + BAR_WIDTH + 70;
  const height = TOP + bars.length * LINE_HEIGHT + BOTTOM;
  const one = LABEL_WIDTH + BAR_WIDTH / RATIO_MAX;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13">`,
    `<title>tsbouncer compared with PgBouncer</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    `<g fill="#222222">`,
    `<text x="12" y="22" font-size="15" font-weight="bold">tsbouncer divided by PgBouncer: shorter is better</text>`,
    `<text x="12" y="42" fill="#666666">${escapeXml(title)}</text>`,
    ...bars.map(barLine),
    `<line x1="${one}" x2="${one}" y1="${TOP - 4}" y2="${height - BOTTOM + 4}" stroke="#666666" stroke-dasharray="4 3"/>`,
    `<text x="${one}" y="${height - BOTTOM + 20}" text-anchor="middle" fill="#666666">1.0 = the same as PgBouncer</text>`,
    '</g>',
    '</svg>',
    '',
  ].join('\n');
}
