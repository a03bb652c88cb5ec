/** braid data index: one file that says where each sample of a data set is. */
import { renameSync, writeFileSync } from 'node:fs';
import { dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { BraidError } from '../core/errors.ts';
import { buildIndex, openScan, type ScanOptions, type Source } from '../input/build-index.ts';
import { encodeIndex, INDEX_NAME, type IndexHeader } from '../input/index-file.ts';
import { isRemote } from '../input/store.ts';

/**
 * @param to null: into the source's own folder
 * @param known what is known of the classes beside what the files say
 * @returns where it was written, and what is in it
 */
export async function writeIndex(
  source: string,
  to: string | null,
  options: ScanOptions,
  known: Partial<Pick<IndexHeader, 'classNames' | 'classes'>> = {},
): Promise<{ path: string; header: IndexHeader; samples: number }> {
  const scan = await openScan(source, options.firstLabel);
  try {
    const path = to ?? placeFor(scan);
    const { header: found, columns } = await buildIndex(scan, options);
    const header = { ...found, ...known, source: sourceFrom(path, scan.store.where) };
    const part = `${path}.part`;
    writeFileSync(part, encodeIndex(header, columns));
    renameSync(part, path);
    return { path, header, samples: columns.label.length };
  } finally {
    scan.store.close();
  }
}

function placeFor({ name, store: { where } }: Source): string {
  if (!isRemote(where) && resolve(name) === resolve(where)) return join(where, INDEX_NAME);
  throw new BraidError(
    'INVALID_RECIPE',
    `data index: ${name} is no folder of this machine that the index could lie in`,
    {
      remedy: 'Say where the index is to be written: --to data/train.braid.',
    },
  );
}

/** Relative, so that an index and its files can be moved together. */
function sourceFrom(path: string, where: string): string {
  if (isRemote(where)) return where;
  const way = relative(dirname(resolve(path)), resolve(where));
  return isAbsolute(way) || way === '' ? way || '.' : way;
}
