/** What the schema finds wrong, in words: where it is, what is there, and what was perhaps meant. */
import type { z } from 'zod';
import { nearest } from '../errors.ts';

/** @param raw what the schema was given */
export function describe(issue: z.core.$ZodIssue, schema: z.ZodType, raw: unknown): string[] {
  const path = issue.path.join('.');
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const known = nearest(key, keysAt(schema, issue.path, raw));
      return `${[...issue.path, key].join('.')}: unknown key${known === undefined ? '' : `, did you mean ${known}?`}`;
    });
  }
  const given = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], raw);
  const found = given === undefined ? 'missing' : `${JSON.stringify(given)}`;
  return [`${path === '' ? '(top)' : path}: ${found}: ${issue.message}`];
}

/** The keys that the schema knows at a path: what an unknown one may have been meant as. */
function keysAt(root: z.ZodType, path: PropertyKey[], raw: unknown): string[] {
  let schema: unknown = root;
  let value: unknown = raw;
  for (const key of path) {
    schema = typeof key === 'number' ? unwrap(schema, value, 'element') : unwrap(schema, value, 'shape')[key as string];
    value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  }
  return Object.keys(unwrap(schema, value, 'shape') ?? {});
}

// biome-ignore lint/suspicious/noExplicitAny: walks zod's schema objects, whose types are not public
function unwrap(schema: any, value: unknown, what: 'shape' | 'element'): any {
  let at = schema;
  while (at?._zod?.def?.innerType !== undefined) at = at._zod.def.innerType;
  if (at?._zod?.def?.options !== undefined) {
    const { discriminator, options } = at._zod.def;
    const wanted = (value as Record<string, unknown> | undefined)?.[discriminator];
    at =
      options.find((o: { shape: Record<string, { value?: unknown }> }) => o.shape[discriminator]?.value === wanted) ??
      options[0];
  }
  return at?.[what];
}
