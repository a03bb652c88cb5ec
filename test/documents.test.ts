/** What documents name exists: recipe keys, metrics, alerts, error codes, commands with their options, and other documents. */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { parse } from 'yaml';
import { z } from 'zod';
import { createMetrics, createWorkerMetrics } from '../core/metrics.ts';
import { recipeSchema } from '../core/recipe.ts';

const ROOT = new URL('..', import.meta.url).pathname;
const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const PAGES = [
  'README.md',
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];
const RUNBOOKS = PAGES.filter((page) => page.startsWith('docs/runbooks/'));
/** Of a span: `code` that may be broken over two lines; a block's lines are as they are. */
const CODE = /^```[\s\S]*?^```|`[^`]+`/gm;
/** Their names look like a section's keys: metrics.jsonl, data.md. */
const FILES = /\.(md|jsonl?|ya?ml|ts)$/;

/** Everything of that form in the code of pages, and the first page that has it. */
function named(pattern: RegExp, pages = PAGES): Map<string, string> {
  const found = pages.flatMap((page) =>
    (read(page).match(CODE) ?? []).flatMap((code) =>
      [...code.matchAll(pattern)].map(([text]) => [text.replaceAll(/\s+/g, ' '), page] as const),
    ),
  );
  return new Map(found.reverse());
}

/** Those that are not known, with the page. */
const unknown = (found: Map<string, string>, known: Set<string>) =>
  [...found].flatMap(([name, page]) => (known.has(name) ? [] : [`${page}: ${name}`]));

interface Schema {
  properties?: Record<string, Schema>;
  anyOf?: Schema[];
  oneOf?: Schema[];
  items?: Schema;
}

/** `training`, `training.epochs`, ...; of a list: the keys of its entries, as `branches.depth`. */
function pathsOf({ properties = {}, anyOf = [], oneOf = [], items }: Schema, prefix = ''): string[] {
  const own = Object.entries(properties).flatMap(([key, value]) => [
    `${prefix}${key}`,
    ...pathsOf(value, `${prefix}${key}.`),
  ]);
  const others = [...anyOf, ...oneOf, ...(items === undefined ? [] : [items])];
  return [...own, ...others.flatMap((each) => pathsOf(each, prefix))];
}

test('every recipe key that a document names is in the schema', (t) => {
  const schema = z.toJSONSchema(recipeSchema, { io: 'input' }) as Schema;
  const known = new Set(pathsOf(schema));
  t.true(known.has('method.rampUp.epochs') && known.has('branches.depth'));
  const sections = Object.keys(schema.properties!).join('|');
  const found = named(new RegExp(`(?<![\\w./-])(${sections})(\\.[A-Za-z]\\w*|\\.\\d+)+(?![\\w/-])`, 'g'));
  const keys = [...found].filter(([name]) => !FILES.test(name));
  t.true(keys.length > 30);
  t.deepEqual(unknown(new Map(keys.map(([name, page]) => [name.replaceAll(/\.\d+/g, ''), page])), known), []);
});

test('every metric that a document names exists', async (t) => {
  const metrics = [createMetrics(), createWorkerMetrics()];
  const all = (await Promise.all(metrics.map(({ registry }) => registry.getMetricsAsJSON()))).flat();
  const found = named(/\b(braid|process|nodejs)_\w+/g);
  t.true(found.size > 60);
  t.deepEqual(unknown(found, new Set(all.map(({ name }) => name))), []);
});

test('every alert that a document names exists', (t) => {
  const alerts: { rules: { alert: string }[] }[] = parse(read('deploy/prometheus/alerts.yml')).groups;
  const known = new Set(alerts.flatMap(({ rules }) => rules.map(({ alert }) => alert)));
  const found = new Map(
    PAGES.flatMap((page) => [...read(page).matchAll(/\bBraid[A-Z]\w+/g)].map(([name]) => [name, page])),
  );
  t.is(found.size, known.size);
  t.deepEqual(unknown(found, known), []);
});

test('every error code has a section in the page about troubleshooting and no other has, and runbooks name no others', (t) => {
  const codes = [...read('core/errors.ts').matchAll(/^ {2}\| '([A-Z_]+)'/gm)].map(([, code]) => code!);
  t.true(codes.length > 10);
  const sections = [...read('docs/troubleshooting.md').matchAll(/^## (.*)$/gm)].map(([, title]) => title!);
  t.deepEqual(sections.sort(), codes.sort());
  const inRunbooks = RUNBOOKS.flatMap((page) => [...read(page).matchAll(/\b[A-Z]+_[A-Z_]+\b/g)].map(([code]) => code));
  t.deepEqual(
    inRunbooks.filter((code) => !codes.includes(code)),
    [],
  );
});

test('every command that a document shows takes the options that it shows', async (t) => {
  const shown = named(/\bnpx braid [a-z](?:\\\n|.)*?(?=`|\s[#|>]\s|$)/gm);
  const options = new Map<string, Set<string>>();
  for (const line of shown.keys()) {
    const command = /^npx braid ((?:data|checkpoints) [a-z]+|[a-z]+)/.exec(line)![1]!;
    const all = options.get(command) ?? new Set();
    options.set(command, all);
    for (const [, option] of line.matchAll(/ (--[a-z-]+)/g)) all.add(option!);
  }
  t.true(options.size > 10);
  await Promise.all(
    [...options].map(async ([command, given]) => {
      const usage = await usageOf(command);
      t.regex(usage, new RegExp(`braid ${command}\\b`));
      for (const option of given) t.regex(usage, new RegExp(`${option}\\b`), `${command} ${option}`);
    }),
  );
});

/** What a command says when it is given an option that it does not know. */
async function usageOf(command: string): Promise<string> {
  const argv = [join(ROOT, 'cli/main.ts'), ...command.split(' '), '--no-such-option'];
  const { stderr } = await promisify(execFile)(process.execPath, argv).catch((error: { stderr: string }) => error);
  return stderr;
}

test('every link of a document leads to a file', (t) => {
  const links = PAGES.flatMap((page) =>
    [...read(page).matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map(([, target]) => [target!, page] as const),
  );
  t.true(links.length > 30);
  t.deepEqual(
    links.filter(([target, page]) => !existsSync(join(ROOT, dirname(page), target))),
    [],
  );
});
