/** One chart: uPlot with the page's colours, and a legend that tells the values under the pointer, or the newest. */

import uPlot from '/uplot.js';
import { format } from './format.js';

const HEIGHT = 190;
/** Steps of an axis in bytes. */
const POWERS = Array.from({ length: 50 }, (_, power) => 2 ** power);
/** Steps of an axis of whole numbers. */
const WHOLE = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const COLOURS = {
  light: ['#3b6fd8', '#d9822b', '#2a8a4a', '#c8323c', '#7b52c7', '#0f8b8d', '#b0457e', '#7a6a3a', '#4c5b6b', '#8fb339'],
  dark: ['#7aa2f7', '#f0a45d', '#62c073', '#f2777a', '#b294f0', '#4fc3c5', '#e38bc0', '#cbb26a', '#9aa7b8', '#c3d66b'],
};

export class Chart {
  /** @param {HTMLElement} place   @param {import('./page.js').Panel} panel */
  constructor(place, panel) {
    this.panel = panel;
    this.plot = place.appendChild(document.createElement('div'));
    this.plot.className = 'plot';
    this.legend = place.appendChild(document.createElement('div'));
    this.legend.className = 'legend';
    /** @type {uPlot | null} */
    this.chart = null;
    /** What the chart was made for; another set of lines or theme needs another. */
    this.made = '';
    /** Pixels wide, as laid out. */
    this.width = 0;
    new ResizeObserver(() => this.fit()).observe(this.plot);
  }

  /** @param {import('./page.js').Panel} panel */
  show(panel) {
    this.panel = panel;
    const isDark = dark();
    const whole =
      panel.unit === 'count' && panel.lines.every(({ values }) => values.every((n) => Number.isInteger(n ?? 0)));
    const made = JSON.stringify([isDark, whole, panel.lines.map(({ name }) => name)]);
    if (made !== this.made) this.make(isDark, whole);
    this.made = made;
    this.chart?.setData(this.data());
    this.tell();
  }

  /** @param {boolean} isDark   @param {boolean} whole whether all values are whole numbers */
  make(isDark, whole) {
    this.chart?.destroy();
    const colours = COLOURS[isDark ? 'dark' : 'light'];
    const style = getComputedStyle(document.documentElement);
    const faint = style.getPropertyValue('--faint');
    const { unit, stacked } = this.panel;
    this.colours = this.panel.lines.map((_, i) => colours[i % colours.length] ?? '');
    const axis = {
      stroke: resolved(faint),
      font: '11px sans-serif',
      grid: { stroke: isDark ? '#282c35' : '#e9ecf0', width: 1 },
      ticks: { show: false },
    };
    this.chart = new uPlot(
      {
        width: this.plot.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { size: 6 }, sync: { key: 'braid' } },
        scales: { y: { range: (_, low, high) => rangeOf(low, high, unit, stacked === true) } },
        series: [
          {},
          ...this.colours.map((stroke) => ({
            stroke,
            width: 1.6,
            points: { show: false, size: 5, fill: stroke, filter: lone },
            ...(stacked === true && { fill: `${stroke}66` }),
          })),
        ],
        // Each line's colour reaches down to the next one.
        bands: stacked === true ? this.colours.slice(1).map((_, i) => ({ series: [i + 1, i + 2] })) : [],
        axes: [
          {
            ...axis,
            size: 30,
            space: 70,
            gap: 8,
            values: (_, times, _axis, _space, increment) => times.map((at) => clock(at, increment)),
          },
          {
            ...axis,
            size: 64,
            ...(unit.startsWith('bytes') && { incrs: POWERS }),
            ...(whole && { incrs: WHOLE }),
            values: (_, values) => values.map((number) => format(number, unit)),
          },
        ],
        hooks: { setCursor: [() => this.tell()] },
      },
      this.data(),
      this.plot,
    );
  }

  /** @returns {uPlot.AlignedData} */
  data() {
    const { times, lines, stacked } = this.panel;
    const values = lines.map((line) => line.values);
    if (stacked !== true) return /** @type {uPlot.AlignedData} */ ([times, ...values]);
    // The last line lies lowest: each is drawn over the ones before it.
    const sums = values.map((_, i) =>
      times.map((_, t) => values.slice(i).reduce((sum, line) => sum + (line[t] ?? 0), 0)),
    );
    return /** @type {uPlot.AlignedData} */ ([times, ...sums]);
  }

  tell() {
    const at = this.chart?.cursor.idx;
    const { lines, unit } = this.panel;
    const time = document.createElement('time');
    time.textContent = at == null ? '' : clock(this.panel.times[at] ?? 0, 1);
    this.legend.replaceChildren(
      ...(at == null ? [] : [time]),
      ...lines.map(({ name, values }, i) => {
        const item = document.createElement('span');
        const mark = item.appendChild(document.createElement('i'));
        mark.style.background = this.colours?.[i] ?? '';
        const number = at == null ? values.findLast((value) => value !== null) : values[at];
        item.append(`${name} `);
        item.appendChild(document.createElement('b')).textContent = format(number ?? null, unit);
        return item;
      }),
    );
  }

  fit() {
    if (this.plot.clientWidth === this.width) return;
    this.width = this.plot.clientWidth;
    this.chart?.setSize({ width: this.width, height: HEIGHT });
  }
}

/** Whether the page is: as the reader chose, or else as the system is. */
export function dark() {
  const { theme } = document.documentElement.dataset;
  return theme === undefined ? matchMedia('(prefers-color-scheme: dark)').matches : theme === 'dark';
}

/** What a custom property comes to: canvases know no `light-dark()`.   @param {string} colour */
function resolved(colour) {
  const probe = document.body.appendChild(document.createElement('span'));
  probe.style.color = colour;
  const computed = getComputedStyle(probe).color;
  probe.remove();
  return computed;
}

/**
 * The time of day, or the day at its beginning.
 * @param {number} seconds since 1970   @param {number} increment seconds to the next
 */
function clock(seconds, increment) {
  const date = new Date(1000 * seconds);
  const time = date.toLocaleTimeString('en-GB', { timeStyle: increment < 60 ? 'medium' : 'short' });
  return /^00:00(:00)?$/.test(time) ? date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' }) : time;
}

/**
 * Points without a neighbour, which no line shows.
 * @param {uPlot} chart   @param {number} series   @returns {number[]} where they are
 */
function lone({ data }, series) {
  const values = Array.from(data[series] ?? []);
  return values.flatMap((value, t) => (value != null && values[t - 1] == null && values[t + 1] == null ? [t] : []));
}

/**
 * From 0 where that shows more than it hides.
 * @param {number} low   @param {number} high   @param {string} unit   @param {boolean} stacked   @returns {[number, number]}
 */
function rangeOf(low, high, unit, stacked) {
  if (low === null || !Number.isFinite(low)) return [0, 1];
  if (unit === 'ratio') return [0, high === 0 || (high > 0.1 && high <= 1) ? 1 : 1.1 * high];
  const flat = high - low < 0.02 * Math.abs(high); // its ticks would read alike
  const floor = stacked || (low >= 0 && low < 0.6 * high) || flat ? Math.min(0, low) : low - 0.1 * (high - low);
  return [floor, high === floor ? floor + 1 : high + 0.08 * (high - floor)];
}
