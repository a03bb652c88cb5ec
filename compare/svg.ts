/** SVG as text: elements, scales and a frame with axes. Colours and fonts come from the page's style sheet. */

export type Attributes = Record<string, string | number>;

export function element(tag: string, attributes: Attributes, ...children: string[]): string {
  const written = Object.entries(attributes).map(([key, value]) => ` ${key}="${escaped(rounded(value))}"`);
  return children.length === 0
    ? `<${tag}${written.join('')}/>`
    : `<${tag}${written.join('')}>${children.join('')}</${tag}>`;
}

export function text(content: string, attributes: Attributes): string {
  return element('text', attributes, escaped(content));
}

export function escaped(content: string): string {
  return content.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

function rounded(value: string | number): string {
  return typeof value === 'number' ? String(Math.round(value * 100) / 100) : value;
}

export type Point = [x: number, y: number];

export function line(points: Point[], attributes: Attributes): string {
  const d = points.map(([x, y], i) => `${i === 0 ? 'M' : 'L'}${rounded(x)} ${rounded(y)}`).join('');
  return element('path', { d, fill: 'none', ...attributes });
}

/** From a value to a place in the figure, and back in ticks. */
export interface Scale {
  (value: number): number;
  ticks: number[];
}

/** @param domain widened by nothing: give it the room it needs */
export function linear([from, to]: [number, number], [start, end]: [number, number], wanted = 5): Scale {
  const span = to - from || 1;
  const scale = (value: number) => start + ((value - from) / span) * (end - start);
  return Object.assign(scale, { ticks: linearTicks(from, to, wanted) });
}

/** Logarithmic; values at or below 0 are put at the lower end. */
export function logarithmic([from, to]: [number, number], [start, end]: [number, number]): Scale {
  const [low, high] = [Math.log(from), Math.log(to)];
  const scale = (value: number) =>
    start + ((Math.log(Math.max(value, from)) - low) / (high - low || 1)) * (end - start);
  return Object.assign(scale, { ticks: logarithmicTicks(from, to) });
}

function linearTicks(from: number, to: number, wanted: number): number[] {
  const rough = (to - from) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough)!;
  const first = Math.ceil(from / step - 1e-9);
  const count = Math.floor(to / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const MOST_TICKS = 6; // more crowd a small figure

/** The densest round numbers that fit; evenly spaced ones where the domain is too narrow for those. */
function logarithmicTicks(from: number, to: number): number[] {
  const powers = Array.from({ length: 24 }, (_, i) => i - 12);
  const of = (digits: number[]) =>
    powers
      .flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)))
      .filter((tick) => tick >= from * 0.999 && tick <= to * 1.001);
  const candidates = [[1, 1.5, 2, 3, 4, 5, 7], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].map(of);
  const fitting = candidates.find((ticks) => ticks.length <= MOST_TICKS) ?? candidates.at(-1)!;
  return fitting.length < 3 ? linearTicks(from, to, 4) : fitting;
}

export interface FrameOptions {
  width: number;
  height: number;
  /** What the figure shows, for those who cannot see it. */
  label: string;
  x: { title: string; format(tick: number): string };
  y: { title: string; format(tick: number): string };
  margin?: { left: number; right: number; top: number; bottom: number };
}

const MARGIN = { left: 46, right: 12, top: 10, bottom: 38 };

/** The inside of a frame: x from left to right, y from bottom to top. */
export function insideOf({ width, height, margin = MARGIN }: FrameOptions): {
  x: [number, number];
  y: [number, number];
} {
  return { x: [margin.left, width - margin.right], y: [height - margin.bottom, margin.top] };
}

/** Content of which nothing shows outside of the frame's inside. */
export function clipped(options: FrameOptions, ...content: string[]): string {
  const { x, y } = insideOf(options);
  const [width, height] = [x[1] - x[0], y[0] - y[1]];
  const box = { x: x[0], y: y[1], width, height, viewBox: `${x[0]} ${y[1]} ${width} ${height}` };
  return element('svg', { ...box, class: 'clipped' }, ...content);
}

/** A figure with grid, ticks and titles around `content`. */
export function frame(options: FrameOptions, x: Scale, y: Scale, content: string[]): string {
  const { width, height, label } = options;
  const { x: across, y: up } = insideOf(options);
  const grid = [
    ...y.ticks.map((tick) =>
      element('line', { class: 'grid', x1: across[0], x2: across[1], y1: y(tick), y2: y(tick) }),
    ),
    ...x.ticks.map((tick) => element('line', { class: 'grid', x1: x(tick), x2: x(tick), y1: up[0], y2: up[1] })),
  ];
  const labels = [
    ...y.ticks.map((tick) =>
      text(options.y.format(tick), { class: 'tick', x: across[0] - 6, y: y(tick) + 4, 'text-anchor': 'end' }),
    ),
    ...x.ticks.map((tick) =>
      text(options.x.format(tick), { class: 'tick', x: x(tick), y: up[0] + 15, 'text-anchor': 'middle' }),
    ),
    text(options.x.title, { class: 'title', x: (across[0] + across[1]) / 2, y: height - 5, 'text-anchor': 'middle' }),
    text(options.y.title, {
      class: 'title',
      transform: `translate(11 ${Math.round((up[0] + up[1]) / 2)}) rotate(-90)`,
      'text-anchor': 'middle',
    }),
  ];
  return element(
    'svg',
    { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label },
    ...grid,
    ...content,
    ...labels,
  );
}
