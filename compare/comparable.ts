/** Whether systems were trained alike: what must be equal before a difference in error means anything. */
import type { FinishedRun } from './finished-run.ts';

/** A field in which systems differ, and each system's value; one without a recipe has none. */
export interface Difference {
  field: string;
  values: Record<string, string>;
}

/** Which of a method's own settings the training section holds, and what changes no number. */
const OWN = ['training.fusionWeightDecay', 'data.fetch'];

/** @param systems runs by label */
export function differencesOf(systems: Map<string, FinishedRun[]>): Difference[] {
  const values = new Map<string, Map<string, Set<string>>>(); // field -> label -> values
  for (const [label, runs] of systems) {
    for (const [field, value] of runs.flatMap(fieldsOf)) {
      const labels = values.get(field) ?? new Map<string, Set<string>>();
      labels.set(label, (labels.get(label) ?? new Set()).add(value));
      values.set(field, labels);
    }
  }
  return [...values]
    .filter(([, labels]) => new Set([...labels.values()].flatMap((set) => [...set])).size > 1)
    .map(([field, labels]) => ({
      field,
      values: Object.fromEntries([...labels].map(([label, set]) => [label, [...set].join(' or ')])),
    }));
}

function fieldsOf({ recipe, summary }: FinishedRun): [string, string][] {
  const sizes = (['trainSamples', 'testSamples'] as const).flatMap((field): [string, string][] =>
    summary[field] === undefined ? [] : [[field, String(summary[field])]],
  );
  if (recipe === null) {
    return summary.epochs === undefined ? sizes : [...sizes, ['training.epochs', String(summary.epochs)]];
  }
  const { data, training } = recipe;
  return [...sizes, ...leaves({ data, training }, '').filter(([field]) => !OWN.includes(field))];
}

function leaves(value: unknown, path: string): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return [[path, JSON.stringify(value) ?? '']];
  return Object.entries(value).flatMap(([key, inner]) => leaves(inner, path === '' ? key : `${path}.${key}`));
}
