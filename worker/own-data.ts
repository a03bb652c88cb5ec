/** Where a worker reads samples itself (data.send: ids): both splits, by indexes that must be the coordinator's. */
import { BraidError } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import { openSamples, readIndex, type Samples } from '../input/indexed.ts';
import type { PrepareRequest } from '../proto/messages.ts';

export interface OwnData {
  train: Samples;
  test: Samples;
}

/**
 * @returns null where shards come with their bytes
 * @throws BraidError INVALID_DATA when an index is not there, or not the coordinator's
 */
export async function openOwnData(
  data: Recipe['data'],
  { trainIndex, testIndex }: Pick<PrepareRequest, 'trainIndex' | 'testIndex'>,
): Promise<OwnData | null> {
  if (data.send === 'bytes') return null;
  const train = await open(data.path, trainIndex);
  try {
    return { train, test: await open(data.testPath!, testIndex) };
  } catch (error) {
    train.close();
    throw error;
  }
}

export function closeOwnData(own: OwnData | null): void {
  own?.train.close();
  own?.test.close();
}

async function open(path: string, hash: string): Promise<Samples> {
  const { index, where } = await readIndex(path);
  if (index.hash === hash) return openSamples(index, where);
  throw new BraidError(
    'INVALID_DATA',
    `${where}: found index ${short(index.hash)}, expected the coordinator's, ${short(hash)}`,
    { remedy: 'Bring this machine the same index and the same files, or set data.send to bytes.' },
  );
}

function short(hash: string): string {
  return hash.slice(0, 12);
}
