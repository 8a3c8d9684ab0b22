/*
 * The charts of the live page: the last five minutes as lines, or as areas upon each other. A chart names its present
 * numbers below itself, or those under the pointer.
 */

import { element, setAttribute, setText, shape } from './dom.mjs';
import { clock } from './format.mjs';
import { SPAN } from './history.mjs';

/** Size of the drawing; the browser stretches it. */
const WIDTH = 600;
const HEIGHT = 100;

/** The next number of 1, 2, 2.5, 5 and 10 times a power of ten. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? value;
}

/** A linear scale from 0. */
function linear(most, least) {
  const top = roundUp(Math.max(most, least));
  return { y: (value) => HEIGHT * (1 - value / top), marks: [0.5], top, bottom: 0 };
}

/** A logarithmic scale, of whole decades. */
function logarithmic(values) {
  const low = Math.floor(Math.log10(Math.max(1, Math.min(...values, 1e3))));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(10, ...values))));
  const decades = high - low;
  const y = (value) => HEIGHT * (1 - (Math.log10(Math.max(value, 10 ** low)) - low) / decades);
  const marks = Array.from({ length: decades - 1 }, (_, at) => (at + 1) / decades);
  return { y, marks, top: 10 ** high, bottom: 10 ** low };
}

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} colour name of a colour of page.css
 * @property {(values: object) => number | null} value
 * @property {(value: number) => string} format
 * @property {boolean} [hidden] only below the chart
 * @property {boolean} [rare] not below the chart while it is 0
 */

export class Chart {
  /**
   * @param {HTMLElement} figure
   * @param {{ title: string, lines: Line[], stacked?: boolean, logarithmic?: boolean, least?: number }} options
   */
  constructor(figure, options) {
    this.options = options;
    this.value = element('span', { class: 'tile-value' });
    this.grid = shape('g', { class: 'grid' });
    this.marks = shape('g', { class: 'marks' });
    this.shapes = options.lines.map(({ colour }) => {
      return shape('path', { class: options.stacked ? `area ${colour}` : `line ${colour}` });
    });
    this.cursor = shape('path', { class: 'cursor' });
    this.svg = shape(
      'svg',
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      this.grid,
      ...this.shapes,
      this.marks,
      this.cursor,
    );
    this.top = element('span', { class: 'axis axis-top' });
    this.bottom = element('span', { class: 'axis axis-bottom' });
    this.when = element('span', { class: 'axis axis-when' });
    this.legend = options.lines.map(({ label, colour }) => {
      const number = element('b');
      return { number, node: element('span', {}, element('i', { class: colour }), `${label} `, number) };
    });
    this.more = element('span', { class: 'tile-more' });
    figure.append(
      element('figcaption', {}, element('span', { class: 'tile-title' }, options.title), this.value),
      element('div', { class: 'plot' }, this.svg, this.top, this.bottom, this.when),
      element('div', { class: 'legend' }, ...this.legend.map(({ node }) => node)),
      this.more,
    );
    this.figure = figure;
    this.pointed = null;
  }

  /** Calls back with the time under the pointer, or null. */
  onPoint(tell) {
    const plot = this.svg.parentElement;
    plot.addEventListener('pointermove', (event) => {
      const { left, width } = plot.getBoundingClientRect();
      tell(this.end - SPAN * (1 - (event.clientX - left) / width));
    });
    plot.addEventListener('pointerleave', () => tell(null));
  }

  x(at) {
    return Math.round(((at - this.end) / SPAN + 1) * WIDTH * 10) / 10;
  }

  /** @param now seconds since 1970, the right end */
  draw(samples, now) {
    this.samples = samples;
    this.end = now;
    const { lines, stacked } = this.options;
    const runs = lines.map(({ value, hidden }) => (hidden ? [] : samples.runs(value)));
    const sums = stacked ? stack(runs) : runs;
    const values = sums.flat(2).map(({ y }) => y);
    const scale = this.options.logarithmic
      ? logarithmic(values)
      : linear(Math.max(0, ...values), this.options.least ?? 1);
    const format = lines[0].format;
    const label = (value) => format(value).replace(/\.0(?!\d)/, '');
    setText(this.top, label(scale.top));
    setText(this.bottom, this.options.logarithmic ? label(scale.bottom) : '');
    this.drawGrid(scale.marks);
    for (const [at, path] of this.shapes.entries()) setAttribute(path, 'd', this.path(sums[at], scale.y, sums[at - 1]));
    this.drawChanges(samples.changes);
    this.point(this.pointed);
  }

  drawGrid(marks) {
    const key = marks.join();
    if (this.gridKey === key) return;
    this.gridKey = key;
    this.grid.replaceChildren(
      ...[0, ...marks, 1].map((part) => shape('path', { d: `M0 ${HEIGHT * (1 - part)}H${WIDTH}` })),
    );
  }

  /** Marks where another process began to answer. */
  drawChanges(changes) {
    this.marks.replaceChildren(...changes.map((at) => shape('path', { d: `M${this.x(at)} 0V${HEIGHT}` })));
  }

  path(runs, y, below) {
    const point = ({ at, y: value }) => `${this.x(at)} ${Math.round(y(value) * 10) / 10}`;
    return runs
      .map((run, at) => {
        const line = `M${run.map(point).join('L')}`;
        if (!this.options.stacked) return run.length === 1 ? `${line}h1` : line;
        const floor = below?.[at] ?? run.map(({ at: when }) => ({ at: when, y: 0 }));
        return `${line}L${floor.map(point).reverse().join('L')}Z`;
      })
      .join('');
  }

  /** Shows the numbers of a time below the chart; null = the present ones. */
  point(at) {
    this.pointed = at;
    const sample = at === null ? this.samples?.last : this.samples?.near(at);
    for (const [index, { value, format, rare }] of this.options.lines.entries()) {
      const number = sample ? value(sample.values) : null;
      setText(this.legend[index].number, number === null ? '–' : format(number));
      this.legend[index].node.hidden = rare === true && !number;
    }
    const shown = at !== null && sample;
    setAttribute(this.cursor, 'd', shown ? `M${this.x(sample.at)} 0V${HEIGHT}` : '');
    setText(this.when, shown ? clock(sample.at * 1000) : '');
    this.figure.classList.toggle('pointed', Boolean(shown));
  }
}

/** Adds each list of runs to the list before it; all have the same times. */
function stack(lists) {
  let below = null;
  return lists.map((runs) => {
    const sum = runs.map((run, r) => run.map(({ at, y }, i) => ({ at, y: y + (below?.[r]?.[i]?.y ?? 0) })));
    below = sum;
    return sum;
  });
}

/** A small chart of the demand for a pool, with a line at its size. */
export class Spark {
  constructor() {
    this.area = shape('path', { class: 'area active' });
    this.over = shape('path', { class: 'limit' });
    this.node = shape(
      'svg',
      { class: 'spark', viewBox: '0 0 60 20', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      this.area,
      this.over,
    );
  }

  draw(points, size) {
    const top = Math.max(size, ...points, 1) * 1.05;
    const y = (value) => Math.round((20 - (20 * value) / top) * 10) / 10;
    const steps = points.map((value, at) => `L${at} ${y(value)}h1`).join('');
    setAttribute(this.area, 'd', `M0 20${steps}V20Z`);
    setAttribute(this.over, 'd', size > 0 ? `M0 ${y(size)}H60` : '');
  }
}
