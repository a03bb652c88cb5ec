/** runs/<comparison>/: comparison.json for programs, .md for terminals and pull requests, .html for eyes. */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BraidError } from '../core/errors.ts';
import type { Comparison, System } from './comparison.ts';
import { markdownOf } from './markdown.ts';
import { pageOf } from './page.ts';

/** @returns the paths written */
export function writeComparison(folder: string, comparison: Comparison, systems: System[]): string[] {
  const files = {
    'comparison.json': `${JSON.stringify(comparison, null, 2)}\n`,
    'comparison.md': markdownOf(comparison),
    'comparison.html': pageOf(comparison, systems),
  };
  try {
    mkdirSync(folder, { recursive: true });
    return Object.entries(files).map(([name, text]) => {
      const path = join(folder, name);
      writeFileSync(`${path}.aside`, text);
      renameSync(`${path}.aside`, path);
      return path;
    });
  } catch (cause) {
    throw new BraidError('SETUP', `cannot write to ${folder}: ${(cause as Error).message}`, {
      remedy: 'Run where there is write permission and room on the disk, or name another folder with --runs.',
      cause,
    });
  }
}
