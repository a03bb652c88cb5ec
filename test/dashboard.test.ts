/** `braid dashboard` of a real run, in a real browser. */
import test from 'ava';
import type { Page } from 'puppeteer-core';
import { openChromium } from '../rig/chromium.ts';
import { patterns, TrainProcess, temporaryFolder, writeRecipe } from './training.ts';

/** Whether something is on the page, sooner or later. */
const appears = (page: Page, selector: string, text: string) =>
  page.waitForFunction(
    `[...document.querySelectorAll(${JSON.stringify(selector)})].some((e) => e.textContent.includes(${JSON.stringify(text)}))`,
    { timeout: 30_000 },
  );

/** How many points of a chart are not of its background: a line has been drawn. */
const inked = (page: Page, title: string) =>
  page.evaluate(`(() => {
    const panel = [...document.querySelectorAll('.panel')].find((each) => each.querySelector('h3').textContent === ${JSON.stringify(title)});
    const canvas = panel.querySelector('canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let coloured = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (data[i + 3] > 0 && Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60) coloured++;
    }
    return coloured;
  })()`) as Promise<number>;

test('a run is seen in the browser: progress, losses, accuracies, workers, events, and its end', async (t) => {
  await using folder = temporaryFolder();
  const recipe = writeRecipe(folder, {
    name: 'seen',
    ...patterns(folder, 256, 64),
    method: { name: 'ffl' },
    training: { epochs: 2000, batch: 32 },
    cluster: { placement: 'together', replicas: 1 },
  });
  const training = new TrainProcess([recipe, '--runs', `${folder.path}/runs`], { temporary: folder.path });
  await training.printed(/^epoch /m);
  const [, address = ''] = /coordinator on (\S+),/.exec(training.output) ?? [];
  const dashboard = new TrainProcess(['--coordinator', address, '--port', '0'], { command: 'dashboard' });
  await dashboard.printed(/http:\S+\n/);
  const url = /http:\S+/.exec(dashboard.output)![0];
  const browser = await openChromium();
  try {
    const page = await browser.newPage();
    const faults: string[] = [];
    page.on('pageerror', (error) => faults.push(`${error}`));
    page.on('requestfailed', (request) => faults.push(request.url()));
    await page.setViewport({ width: 1200, height: 900 });
    await page.goto(url);
    await appears(page, '#state', 'live');
    await appears(page, '.stat output', '%');
    await appears(page, '.legend', 'fkd.1');
    await appears(page, '.legend', 'ensemble');
    await appears(page, '.list', 'worker 0 joined');
    t.regex(await page.$eval('#run', (element) => element.textContent ?? ''), /^seen-/);
    // Two points make a line.
    await page.waitForFunction('Number(document.body.dataset.drawn) > 0', { timeout: 30_000 });
    await new Promise((resolve) => setTimeout(resolve, 5_000));
    t.true((await inked(page, 'Losses')) > 100);

    await page.click('nav a[href="#cluster"]');
    await appears(page, '.panel.table td.name', `pid ${training.workers[0]}`);
    await page.click('nav a[href="#faults"]');
    await appears(page, 'h3', 'Workers lost');
    const paper = () => page.evaluate('getComputedStyle(document.documentElement).backgroundColor');
    const before = await paper();
    await page.click('#theme');
    t.notDeepEqual(await paper(), before);

    // Nobody but this machine's browser may read it, whatever name leads here.
    const stranger = await fetch(`${url}/api/dashboards/run`, { method: 'POST' });
    t.is(stranger.status, 405);

    training.child.kill('SIGKILL');
    await appears(page, '#state.lost', 'coordinator at');
    t.deepEqual(faults, []);
  } finally {
    await browser.close();
    dashboard.child.kill('SIGINT');
    training.child.kill('SIGKILL');
  }
  const { code, output } = await dashboard.ended();
  t.is(code, 0, output);
});

test('what cannot be looked at is refused with what can', async (t) => {
  const both = await new TrainProcess(['--coordinator', 'a:1', '--prometheus', 'http://b'], {
    command: 'dashboard',
  }).ended();
  t.is(both.code, 1);
  t.regex(both.output, /either --coordinator or --prometheus/);
  const port = await new TrainProcess(['--coordinator', 'a:1', '--port', 'x'], { command: 'dashboard' }).ended();
  t.regex(port.output, /--port x is no port/);
});
