/** Shows what the server reads, anew every other second. Which panels there are, and what is in them, is the server's. */
import { Chart, dark } from './chart.js';
import { format } from './format.js';

/**
 * @typedef {object} Panel
 * @property {'stat' | 'chart' | 'table' | 'events'} kind
 * @property {string} title
 * @property {string} about
 * @property {number} width of 24
 * @property {string} unit
 * @property {{ warning: number, critical?: number }} [thresholds]
 * @property {boolean} [stacked]
 * @property {string} [none] what it means that there is no line
 * @property {number[]} times seconds since 1970
 * @property {{ name: string, values: (number | null)[] }[]} lines
 * @property {{ title: string, unit: string }[]} columns
 * @property {{ names: string[], values: (number | null)[] }[]} cells
 * @property {string[]} by
 * @property {{ at: string, text: string }[]} events
 *
 * @typedef {object} Reading
 * @property {string} run
 * @property {string} source
 * @property {string | null} lost why there is nothing newer
 * @property {{ title: string, panels: Panel[] }[]} rows
 */

const REFRESH_MS = 2_000;

const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (document.querySelector(selector));
const main = find('main');
const nav = find('nav');
const run = find('#run');
const state = find('#state');
/** @type {((panel: Panel) => void)[]} */
let shown = [];
/** The dashboard, and its panels, that the page is laid out for. */
let laidOut = '';

/** @type {{ name: string, title: string }[]} */
const dashboards = await (await fetch('api/dashboards')).json();
for (const { name, title } of dashboards) {
  const link = nav.appendChild(document.createElement('a'));
  link.href = `#${name}`;
  link.textContent = title;
}

const chosen = () =>
  dashboards.find(({ name }) => location.hash === `#${name}`) ??
  /** @type {{ name: string, title: string }} */ (dashboards[0]);

async function refresh() {
  const { name, title } = chosen();
  document.title = `${title} · Braid`;
  for (const link of nav.querySelectorAll('a')) {
    link.toggleAttribute('aria-current', link.hash === `#${name}`);
  }
  try {
    const response = await fetch(`api/dashboards/${name}`);
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    if (name !== chosen().name) return; // another was chosen meanwhile
    draw(name, body);
    state.textContent = body.lost ?? `live, ${body.source}`;
    state.className = body.lost === null ? '' : 'lost';
  } catch (thrown) {
    state.textContent =
      thrown instanceof TypeError ? 'braid dashboard has ended' : /** @type {Error} */ (thrown).message;
    state.className = 'lost';
  }
}

/** @param {string} name   @param {Reading} reading */
function draw(name, reading) {
  run.textContent = reading.run;
  const layout = JSON.stringify([name, reading.rows.map(({ panels }) => panels.map(({ title }) => title))]);
  if (layout !== laidOut) {
    shown = [];
    main.replaceChildren(...reading.rows.flatMap(row));
    laidOut = layout;
  }
  reading.rows.flatMap(({ panels }) => panels).forEach((panel, i) => void shown[i]?.(panel));
  document.body.dataset.drawn = String(Date.now());
}

/** @param {Reading['rows'][number]} row */
function row({ title, panels }) {
  const heading = document.createElement('h2');
  heading.textContent = title;
  const grid = document.createElement('div');
  grid.className = 'row';
  grid.append(...panels.map(frame));
  return [heading, grid];
}

/** @param {Panel} panel */
function frame(panel) {
  const section = document.createElement('section');
  section.className = `panel ${panel.kind}`;
  section.style.setProperty('--width', String(panel.width));
  const heading = section.appendChild(document.createElement('h3'));
  heading.textContent = panel.title;
  heading.title = panel.about;
  const body = section.appendChild(document.createElement('div'));
  if (panel.kind === 'chart') {
    /** @type {Chart | null} */
    let chart = null;
    shown.push((next) => {
      if (next.lines.length > 0) {
        if (chart === null) body.replaceChildren();
        chart ??= new Chart(body, next);
        chart.show(next);
      } else if (chart === null) body.replaceChildren(none(next.none ?? 'nothing yet'));
    });
  } else {
    const fill = { stat, table, events }[panel.kind];
    shown.push((next) => body.replaceChildren(fill(next)));
  }
  return section;
}

/** @param {Panel} panel */
function stat({ lines, unit, thresholds, title }) {
  const number = lines[0]?.values.at(-1) ?? null;
  const all = document.createDocumentFragment();
  const output = all.appendChild(document.createElement('output'));
  output.textContent = format(number, unit);
  if (number !== null && thresholds !== undefined) {
    if (number >= (thresholds.critical ?? Number.POSITIVE_INFINITY)) output.className = 'critical';
    else if (number >= thresholds.warning) output.className = 'warning';
  }
  if (unit === 'ratio') {
    const bar = all.appendChild(document.createElement('progress'));
    bar.value = number ?? 0;
    bar.setAttribute('aria-label', title);
  }
  return all;
}

/** @param {Panel} panel */
function table({ by, columns, cells }) {
  if (cells.length === 0) return none('nothing yet');
  const scroll = document.createElement('div');
  scroll.className = 'scroll';
  const all = scroll.appendChild(document.createElement('table'));
  const head = all.createTHead().insertRow();
  for (const title of [...by, ...columns.map((column) => column.title)]) {
    head.appendChild(document.createElement('th')).textContent = title;
  }
  const body = all.createTBody();
  for (const { names, values } of cells) {
    const line = body.insertRow();
    for (const name of names) {
      const cell = line.insertCell();
      cell.className = 'name';
      cell.textContent = name;
    }
    for (const [i, number] of values.entries()) line.insertCell().textContent = format(number, columns[i]?.unit ?? '');
  }
  return scroll;
}

/** @param {Panel} panel */
function events({ events }) {
  if (events.length === 0) return none('nothing so far');
  const list = document.createElement('ul');
  list.className = 'list';
  for (const { at, text } of events.toReversed()) {
    const item = list.appendChild(document.createElement('li'));
    item.appendChild(document.createElement('time')).textContent = new Date(at).toLocaleTimeString('en-GB');
    item.append(text);
  }
  return list;
}

/** @param {string} text */
function none(text) {
  const empty = document.createElement('p');
  empty.className = 'none';
  empty.textContent = text;
  return empty;
}

find('#theme').addEventListener('click', () => {
  document.documentElement.dataset.theme = dark() ? 'light' : 'dark';
  refresh();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', refresh);
addEventListener('hashchange', refresh);
await refresh();
setInterval(refresh, REFRESH_MS);
