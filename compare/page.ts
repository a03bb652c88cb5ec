/** comparison.html: one file that needs nothing else, for light and dark screens and for paper. */
import { readFileSync } from 'node:fs';
import { titleOf } from './classifiers.ts';
import type { Comparison, System, SystemFigures } from './comparison.ts';
import {
  colourOf,
  kindLegend,
  learningCurves,
  lossCurves,
  overview,
  type Panel,
  reliability,
  systemLegend,
} from './figures.ts';
import { escaped } from './svg.ts';
import { type Table, tablesOf } from './tables.ts';

const STYLE = readFileSync(new URL('./page.css', import.meta.url), 'utf8');

export function pageOf(comparison: Comparison, systems: System[]): string {
  const tables = tablesOf(comparison).map(tableOf);
  const body = [
    `<h1>${escaped(comparison.name)}</h1>`,
    `<p class="soft">${escaped(subtitle(systems))}</p>`,
    warnings(comparison),
    section(
      'Error at a glance',
      'Mean over the seeds, one standard deviation to each side, and each seed as a dot.',
      `<div class="figure">${overview(comparison.systems)}${kindLegend()}</div>`,
    ),
    ...tables,
    panels(
      'Learning curves',
      'Error on the test set after each epoch, on a logarithmic axis: mean over the seeds, and each seed as a thin line.',
      learningCurves(systems),
      systemLegend(systems),
    ),
    panels(
      'Loss terms',
      'On the training batches, before the ramp-up weight: mean over the seeds and over neighbouring steps, on one logarithmic axis for all systems.',
      lossCurves(systems),
    ),
    panels(
      'Calibration',
      'Accuracy of the answers that were given with a confidence, after the last epoch, all seeds together. On the diagonal, confidence is what it says; below it, too high. A dot grows with its number of answers.',
      reliability(systems),
    ),
    section('What was trained', '', trained(systems)),
    section('Every seed', '', seeds(comparison.systems)),
  ].join('\n');
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(comparison.name)}</title>
<style>
${STYLE}</style>
</head>
<body>
<main>
${body}
</main>
</body>
</html>
`;
}

function section(title: string, caption: string, content: string): string {
  const line = caption === '' ? '' : `<p class="caption">${escaped(caption)}</p>`;
  return `<section>\n<h2>${escaped(title)}</h2>\n${line}${content}\n</section>`;
}

function panels(title: string, caption: string, figures: Panel[], legend = ''): string {
  if (figures.length === 0) return '';
  const each = figures.map(
    (panel) =>
      `<figure><h3>${escaped(panel.title)}</h3>${panel.svg}<figcaption>${panel.legend ?? ''}</figcaption></figure>`,
  );
  return section(title, caption, `${legend}<div class="panels">\n${each.join('\n')}\n</div>`);
}

function tableOf({ title, caption, header, rows }: Table): string {
  const body = rows.map(([name, ...cells], i) => {
    const values = cells.map(({ text, lowest }) => `<td${lowest ? ' class="lowest"' : ''}>${escaped(text)}</td>`);
    return `<tr><th scope="row" class="${colourOf(i)}"><i></i>${escaped(name!.text)}</th>${values.join('')}</tr>`;
  });
  return section(title, caption, grid(header, body));
}

function grid(header: string[], body: string[], kind: 'numbers' | 'words' = 'numbers'): string {
  const cells = header.map((cell) => `<th scope="col">${escaped(cell)}</th>`);
  return `<div class="wide-table"><table class="${kind}">\n<thead><tr>${cells.join('')}</tr></thead>\n<tbody>\n${body.join('\n')}\n</tbody>\n</table></div>`;
}

function subtitle(systems: System[]): string {
  const runs = systems.flatMap((system) => system.runs);
  const counted = (values: (number | undefined)[], what: string) => {
    const known = [...new Set(values.filter((value) => value !== undefined))];
    const word = known.length === 1 && known[0] === 1 ? what : `${what}s`;
    return known.length === 0 ? [] : [`${known.map((value) => value.toLocaleString('en')).join(' or ')} ${word}`];
  };
  return [
    ...counted([systems.length], 'system'),
    ...counted(
      systems.map((system) => system.runs.length),
      'seed',
    ),
    ...counted(
      runs.map(({ summary }) => summary.epochs),
      'epoch',
    ),
    ...counted(
      runs.map(({ summary }) => summary.trainSamples),
      'training image',
    ),
    ...counted(
      runs.map(({ summary }) => summary.testSamples),
      'test image',
    ),
  ].join(' · ');
}

function warnings({ differences, notes, failures }: Comparison): string {
  const items = [
    ...differences.map(({ field, values }) => {
      const each = Object.entries(values).map(([label, value]) => `${escaped(label)} <b>${escaped(value)}</b>`);
      return `The systems differ in <code>${escaped(field)}</code>: ${each.join('; ')}`;
    }),
    ...notes.map(escaped),
    ...failures.map(({ system, seed, error }) => `${escaped(system)}, seed ${seed}, failed: ${escaped(error)}`),
  ];
  if (items.length === 0) return '';
  return `<div class="warnings">\n<h2>Before you compare</h2>\n<ul>${items.map((item) => `<li>${item}</li>`).join('')}</ul>\n</div>`;
}

/** Networks and methods, as their recipes have them. */
function trained(systems: System[]): string {
  const body = systems.map(({ label, runs }, i) => {
    const recipe = runs[0]?.recipe;
    const name = `<tr><th scope="row" class="${colourOf(i)}"><i></i>${escaped(label)}</th>`;
    if (!recipe) return `${name}<td colspan="3">not known</td></tr>`;
    const networks = recipe.branches.map(({ network, count, ...rest }) => {
      const settings = Object.entries(rest).map(([key, value]) => `${key} ${value}`);
      return `${count} × ${network} (${settings.join(', ')})`;
    });
    return `${name}<td>${escaped(networks.join(', '))}</td><td>${recipe.trunk}</td><td>${settings(recipe.method)}</td></tr>`;
  });
  return grid(['system', 'networks', 'trunk', 'method'], body, 'words');
}

function settings({ name, ...rest }: { name: string }): string {
  const each = Object.entries(rest).map(([key, value]) => `${key} ${brief(value)}`);
  return `${escaped(name)}${each.length === 0 ? '' : ` <span class="soft">${escaped(each.join(', '))}</span>`}`;
}

function brief(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value);
  return `(${Object.entries(value)
    .map(([key, inner]) => `${key} ${brief(inner)}`)
    .join(', ')})`;
}

/** Counts of every run, folded away. */
function seeds(systems: SystemFigures[]): string {
  const each = systems.map(({ label, runs, last }) => {
    const body = runs.flatMap(({ seed }) =>
      last.flatMap(({ classifier, top1, top5 }) => {
        const [one, five] = [top1, top5].map((rate) => rate.seeds.find((at) => at.seed === seed));
        if (one === undefined || five === undefined) return [];
        return `<tr><td>${seed}</td><td>${escaped(titleOf(classifier))}</td><td>${one.correct} / ${one.samples}</td><td>${five.correct} / ${five.samples}</td></tr>`;
      }),
    );
    const folders = runs.map(({ seed, folder, devices }) => {
      return `<li>seed ${seed}: <code>${escaped(folder)}</code>${devices.length === 0 ? '' : ` on ${escaped(devices.join(', '))}`}</li>`;
    });
    return `<details><summary>${escaped(label)}</summary><ul>${folders.join('')}</ul>${grid(['seed', 'classifier', 'first is right', 'right among five'], body, 'words')}</details>`;
  });
  return each.join('\n');
}
