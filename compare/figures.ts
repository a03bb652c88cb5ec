/** The figures of comparison.html. A system keeps its colour and its dashes through all of them. */
import { MEAN_OF_BRANCHES } from '../coordinator/evaluation.ts';
import { LEARNT, oneNetwork, pick, titleOf } from './classifiers.ts';
import { errorOf, pooledBins, type Rate, type Score, type System, type SystemFigures } from './comparison.ts';
import type { Calibration, FinishedRun, Result } from './finished-run.ts';
import { statisticOf } from './statistics.ts';
import {
  clipped,
  element,
  escaped,
  type FrameOptions,
  frame,
  insideOf,
  line,
  linear,
  logarithmic,
  type Point,
  type Scale,
  text,
} from './svg.ts';

/** Ways to get an answer out of a system, each with its mark. */
const KINDS = [
  { title: 'one network (mean of branches)', mark: 'circle', of: oneNetwork },
  { title: 'fused, gated or weighted', mark: 'square', of: <T extends Named>(results: T[]) => pick(results, LEARNT) },
  {
    title: 'ensemble (mean logits)',
    mark: 'diamond',
    of: <T extends Named>(results: T[]) => pick(results, ['ensemble']),
  },
] as const;

interface Named {
  classifier: string;
}

const COLOURS = 8; // of page.css; beyond, they start again with other dashes
const DASHES = ['', '7 3', '2 3', '8 3 2 3'];
const FIRST_PART = 0.05; // of the epochs, whose errors may lie above the learning curves' frame
const POINTS = 160; // of a loss curve: more are noise at this size

/** The class that carries the colour of the system at this place. */
export const colourOf = (i: number) => `c${i % COLOURS}`;
const dashOf = (i: number): Record<string, string> => {
  const dash = DASHES[(i + Math.floor(i / COLOURS)) % DASHES.length]!;
  return dash === '' ? {} : { 'stroke-dasharray': dash };
};

const percent = (rate: number) => Number((100 * rate).toPrecision(3)).toString();

export interface Panel {
  title: string;
  svg: string;
  /** Of this panel alone, HTML. */
  legend?: string;
}

/** Systems by colour and dashes. */
export function systemLegend(systems: { label: string }[]): string {
  return legend(systems.map(({ label }, i) => ({ label, colour: colourOf(i), dash: dashOf(i) })));
}

/** Kinds of answer by mark. */
export function kindLegend(): string {
  const items = KINDS.map(
    ({ title, mark }) =>
      `<li><svg viewBox="0 0 14 14" class="chip">${markAt(mark, [7, 7])}</svg>${escaped(title)}</li>`,
  );
  return `<ul class="legend">${items.join('')}</ul>`;
}

/** Every system's error at a glance: means with one standard deviation to each side, seeds as dots. */
export function overview(systems: SystemFigures[]): string {
  const rows = systems.map(({ last }) =>
    KINDS.flatMap(({ mark, title, of }) => {
      const score: Score | undefined = of(last);
      return score === undefined ? [] : [{ mark, title, classifier: score.classifier, rate: score.top1 }];
    }),
  );
  const ends = rows.flat().flatMap(({ rate: { mean, sd, seeds } }) => {
    return [mean - (sd ?? 0), mean + (sd ?? 0), ...seeds.map(({ error }) => error)];
  });
  const lane = 17;
  const gap = 16;
  const labels = Math.min(230, 24 + 7 * Math.max(...systems.map(({ label }) => label.length)));
  const tops = rows.map((_, i) => 14 + rows.slice(0, i).reduce((sum, row) => sum + row.length * lane + gap, 0));
  const options: FrameOptions = {
    width: 860,
    height: tops.at(-1)! + rows.at(-1)!.length * lane + gap + 38,
    label: 'Top-1 error of every system: the same numbers as in the table below',
    x: { title: 'top-1 test error, %', format: percent },
    y: { title: '', format: () => '' },
    margin: { left: labels, right: 48, top: 6, bottom: 38 }, // room for the value of the worst
  };
  const inside = insideOf(options);
  const x = linear(padded(ends, 0.06), inside.x, 8);
  const y = Object.assign((value: number) => value, { ticks: [] });
  const content = rows.flatMap((row, i) => [
    text(systems[i]!.label, {
      class: 'row',
      x: labels - 12,
      y: tops[i]! + (row.length * lane) / 2 + 4,
      'text-anchor': 'end',
    }),
    element(
      'g',
      { class: colourOf(i) },
      ...row.map(({ mark, title, classifier, rate }, r) =>
        spread(rate, x, tops[i]! + (r + 0.5) * lane, mark, `${systems[i]!.label}, ${titled(classifier, title)}`),
      ),
    ),
  ]);
  return frame(options, x, y, content);
}

function spread({ mean, sd, seeds }: Rate, x: Scale, y: number, mark: string, what: string): string {
  const [from, to] = [mean - (sd ?? 0), mean + (sd ?? 0)];
  const right = Math.max(x(to), ...seeds.map(({ error }) => x(error)), x(mean) + 5);
  return element(
    'g',
    {},
    `<title>${escaped(`${what}: ${percent(mean)} %${sd === null ? '' : ` ± ${percent(sd)}`}`)}</title>`,
    element('line', { class: 'whisker', x1: x(from), x2: x(to), y1: y, y2: y }),
    ...seeds.map(({ error }) => element('circle', { class: 'seed', cx: x(error), cy: y, r: 2.2 })),
    markAt(mark, [x(mean), y]),
    text((100 * mean).toFixed(2), { class: 'value', x: right + 7, y: y + 4 }),
  );
}

/** Test error by epoch, a panel for each kind of answer. Empty without any journal. */
export function learningCurves(systems: System[]): Panel[] {
  const panels = KINDS.map(({ title, of }) => ({ title, curves: systems.map(({ runs }) => curvesOf(runs, of)) }));
  const points = panels.flatMap(({ curves }) => curves.flat(2));
  if (points.length === 0) return [];
  const last = Math.max(...points.map(([epoch]) => epoch));
  // The first epochs of a long run are far above all that matters.
  const settled = points.filter(([epoch]) => epoch > last * FIRST_PART);
  const errors = settled.map(([, error]) => error).filter((error) => error > 0);
  if (errors.length === 0) return [];
  const domain: [number, number] = [Math.min(...errors) / 1.08, Math.min(1, Math.max(...errors) * 1.08)];
  return panels
    .filter(({ curves }) => curves.flat().length > 0)
    .map(({ title, curves }) => {
      const options: FrameOptions = {
        width: 400,
        height: 300,
        label: `Test error by epoch: ${title}`,
        x: { title: 'epoch', format: String },
        y: { title: 'top-1 test error, %', format: percent },
      };
      const inside = insideOf(options);
      const x = wholeTicks(linear([Math.min(1, last - 1), last], inside.x));
      const y = logarithmic(domain, inside.y);
      const place = (curve: Point[]) => curve.map(([epoch, error]): Point => [x(epoch), y(error)]);
      const present = curves
        .map((seeds, i) => ({ seeds, mean: meanCurve(seeds), i }))
        .filter(({ mean }) => mean.length > 0);
      const content = present.map(({ seeds, mean, i }) =>
        element(
          'g',
          { class: colourOf(i) },
          `<title>${escaped(systems[i]!.label)}</title>`,
          ...(seeds.length > 1 ? seeds.map((curve) => line(place(curve), { class: 'thin' })) : []),
          line(place(mean), { class: 'curve', ...dashOf(i) }),
        ),
      );
      const ends = present.map(({ mean, i }) => {
        const [epoch, error] = mean.at(-1)!;
        return element('circle', { class: `end ${colourOf(i)}`, cx: x(epoch), cy: y(error), r: 2.6 });
      });
      return { title, svg: frame(options, x, y, [clipped(options, ...content), ...ends]) };
    });
}

/** By seed: (epoch from 1, error). */
function curvesOf(runs: FinishedRun[], of: (results: Result[]) => Result | undefined): Point[][] {
  return runs
    .map(({ epochs }) =>
      epochs.flatMap(({ epoch, results }): Point[] => {
        const result = of(results);
        return result === undefined ? [] : [[epoch + 1, errorOf(result)]];
      }),
    )
    .filter((curve) => curve.length > 0);
}

/** Where all curves have a point. */
function meanCurve(curves: Point[][]): Point[] {
  const at = curves.map((curve) => new Map(curve));
  return (curves[0] ?? [])
    .filter(([x]) => at.every((each) => each.has(x)))
    .map(([x]) => [x, statisticOf(at.map((each) => each.get(x)!)).mean]);
}

/** Training losses by step, a panel a system: branches' terms as their mean, all as the mean over the seeds. */
export function lossCurves(systems: System[]): Panel[] {
  const panels = systems
    .map(({ label, runs }) => ({ label, terms: lossTerms(runs) }))
    .filter(({ terms }) => terms.size > 0);
  const points = panels.flatMap(({ terms }) => [...terms.values()].flat());
  const losses = points.map(([, loss]) => loss).filter((loss) => loss > 0);
  if (losses.length === 0) return [];
  const LOWEST = 1e-3; // nats; below is nothing to see
  const domain: [number, number] = [Math.max(LOWEST, Math.min(...losses)) / 1.1, Math.max(...losses, 2 * LOWEST) * 1.1];
  const names = [...new Set(panels.flatMap(({ terms }) => [...terms.keys()]))];
  const last = Math.max(...points.map(([step]) => step));
  return panels.map(({ label, terms }) => {
    const options: FrameOptions = {
      width: 400,
      height: 260,
      label: `Training losses by step: ${label}`,
      x: { title: 'step', format: thousands },
      y: { title: 'nats', format: (tick) => String(tick) },
    };
    const inside = insideOf(options);
    const x = linear([0, last], inside.x);
    const y = logarithmic(domain, inside.y);
    const items = [...terms].map(([name, curve]) => {
      const i = names.indexOf(name);
      return { label: name, curve, colour: colourOf(i), dash: dashOf(i) };
    });
    const content = items.map(({ label: name, curve, colour, dash }) =>
      element(
        'g',
        { class: colour },
        `<title>${escaped(name)}</title>`,
        line(
          curve.map(([step, loss]): Point => [x(step), y(loss)]),
          { class: 'curve', ...dash },
        ),
      ),
    );
    return { title: label, svg: frame(options, x, y, content), legend: legend(items) };
  });
}

/** By term, in the order of the journal: (step, mean over seeds and over the steps around it). The total is left out. */
function lossTerms(runs: FinishedRun[]): Map<string, Point[]> {
  const sums = new Map<string, Map<number, { step: number; loss: number; count: number }>>();
  const last = Math.max(0, ...runs.flatMap(({ steps }) => steps.at(-1)?.step ?? 0));
  for (const { step, losses } of runs.flatMap(({ steps }) => steps)) {
    for (const [term, loss] of Object.entries(losses)) {
      if (term === 'total') continue;
      const name = term.replace(/\.\d+$/, ', mean of branches');
      const bins = sums.get(name) ?? new Map();
      const bin = last < POINTS ? step : Math.min(POINTS - 1, Math.floor((step / last) * POINTS));
      const { step: steps = 0, loss: total = 0, count = 0 } = bins.get(bin) ?? {};
      bins.set(bin, { step: steps + step, loss: total + loss, count: count + 1 });
      sums.set(name, bins);
    }
  }
  return new Map(
    [...sums].map(([name, bins]) => [
      name,
      [...bins.values()].map(({ step, loss, count }): Point => [step / count, loss / count]).sort(([a], [b]) => a - b),
    ]),
  );
}

/** Accuracy by confidence, a panel a system; empty where no run has calibration data. */
export function reliability(systems: System[]): Panel[] {
  return systems.flatMap(({ label, runs }) => {
    const items = KINDS.flatMap(({ title, of }, i) => {
      const found = runs.flatMap(({ summary: { results } }) => of(results) ?? []);
      const calibrations = found.flatMap(({ calibration }) => calibration ?? []);
      if (calibrations.length === 0) return [];
      const ece = statisticOf(calibrations.map(({ ece }) => ece)).mean;
      const name = titled(found[0]!.classifier, title);
      return [
        {
          label: `${name}: ECE ${percent(ece)} %`,
          bins: pooledBins(calibrations),
          colour: colourOf(i),
          dash: dashOf(i),
        },
      ];
    });
    return items.length === 0 ? [] : [reliabilityOf(label, items)];
  });
}

function reliabilityOf(label: string, items: (LegendItem & { bins: Calibration['bins'] })[]): Panel {
  const options: FrameOptions = {
    width: 400,
    height: 320,
    label: `Accuracy by confidence: ${label}`,
    x: { title: 'confidence, %', format: percent },
    y: { title: 'accuracy, %', format: percent },
  };
  const inside = insideOf(options);
  const [x, y] = [linear([0, 1], inside.x), linear([0, 1], inside.y)];
  const all = Math.max(...items.map(({ bins }) => bins.reduce((sum, { samples }) => sum + samples, 0)));
  const content = items.map(({ label: name, bins, colour, dash }) => {
    const seen = bins.filter(({ samples }) => samples > 0);
    const points = seen.map(({ confidence, accuracy }): Point => [x(confidence), y(accuracy)]);
    return element(
      'g',
      { class: colour },
      `<title>${escaped(name)}</title>`,
      line(points, { class: 'curve', ...dash }),
      ...seen.map(({ samples, confidence, accuracy }) =>
        element(
          'circle',
          { class: 'bin', cx: x(confidence), cy: y(accuracy), r: 1.8 + 7 * Math.sqrt(samples / all) },
          `<title>${escaped(`${name}. ${samples} answers: confidence ${percent(confidence)} %, accuracy ${percent(accuracy)} %`)}</title>`,
        ),
      ),
    );
  });
  const diagonal = line(
    [
      [x(0), y(0)],
      [x(1), y(1)],
    ],
    { class: 'diagonal' },
  );
  return { title: label, svg: frame(options, x, y, [diagonal, ...content]), legend: legend(items) };
}

/** "fused", "gated" where a kind has several names; the kind's own title otherwise. */
function titled(classifier: string, title: string): string {
  if (classifier === MEAN_OF_BRANCHES || classifier === 'ensemble') return title;
  return classifier === 'branch.0' ? 'one network' : titleOf(classifier);
}

interface LegendItem {
  label: string;
  colour: string;
  dash: Record<string, string>;
}

function legend(items: LegendItem[]): string {
  const entries = items.map(
    ({ label, colour, dash }) =>
      `<li><svg viewBox="0 0 26 10" class="chip wide ${colour}">${line(
        [
          [1, 5],
          [25, 5],
        ],
        { class: 'curve', ...dash },
      )}</svg>${escaped(label)}</li>`,
  );
  return `<ul class="legend">${entries.join('')}</ul>`;
}

function markAt(mark: string, [x, y]: Point): string {
  if (mark === 'circle') return element('circle', { class: 'mark', cx: x, cy: y, r: 4.6 });
  const side = mark === 'square' ? 8.4 : 7.8;
  const turn = mark === 'diamond' ? { transform: `rotate(45 ${x.toFixed(2)} ${y.toFixed(2)})` } : {};
  return element('rect', { class: 'mark', x: x - side / 2, y: y - side / 2, width: side, height: side, ...turn });
}

function padded(values: number[], part: number): [number, number] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || high || 1) * part;
  return [Math.max(0, low - room), high + room];
}

function wholeTicks(scale: Scale): Scale {
  return Object.assign(scale, { ticks: scale.ticks.filter(Number.isInteger) });
}

function thousands(value: number): string {
  return value >= 1000 ? `${value / 1000}k` : String(value);
}
