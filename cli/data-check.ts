/** braid data check: reads and decodes every sample once, in parallel, and names what is broken. */
import { planRun } from '../coordinator/plan.ts';
import { asBraidError, type BraidError } from '../core/errors.ts';
import { loadRecipe } from '../core/recipe.ts';
import { openScan, type ScanOptions, scanAll } from '../input/build-index.ts';
import { type Dataset, openDataset } from '../input/dataset.ts';
import { ImagePool } from '../worker/input/image-pool.ts';

const SAMPLES_AT_ONCE = 256; // asked for; the pool takes them as it can

type Print = (line: string) => void;

/** Both splits, as the recipe opens them. @returns how many samples are broken */
export async function checkRecipeData(
  file: string,
  sets: string[],
  signal: AbortSignal,
  print: Print,
): Promise<number> {
  const recipe = loadRecipe(file, sets);
  const { train, test } = await planRun(recipe, (data, split) => openDataset(data, split, true));
  const pool = new ImagePool();
  try {
    const anySize = recipe.data.resizedCrop !== null;
    let broken = 0;
    for (const dataset of [train, test]) broken += await checkDataset(pool, dataset, anySize, signal, print);
    return broken;
  } finally {
    train.close();
    test.close();
    await pool.close();
  }
}

/** All that a source has, whether or not it has been indexed. */
export async function checkSource(name: string, options: ScanOptions, print: Print): Promise<number> {
  const source = await openScan(name, options.firstLabel);
  const pool = new ImagePool();
  const classes = new Classes();
  let broken = 0;
  const tell = (line: string) => {
    broken++;
    print(line);
  };
  const checking = new Set<Promise<void>>();
  try {
    await scanAll(
      source,
      options,
      async (_, { name: where, bytes, label, damage }) => {
        classes.count(label);
        const check = async () => {
          const problem = damage ?? (await pool.check(async () => bytes, null));
          if (problem !== null) tell(`${where}: ${problem}`);
        };
        const checked = check().finally(() => checking.delete(checked));
        checking.add(checked);
        if (checking.size >= SAMPLES_AT_ONCE) await Promise.race(checking);
      },
      (error: BraidError) => tell(`${error.message}: the rest of the file is not read`),
    );
    await Promise.all(checking);
    print(`${name}: ${classes.samples} images (${source.format}), ${classes}, ${verdict(broken)}`);
    return broken;
  } finally {
    await Promise.allSettled(checking);
    source.store.close();
    await pool.close();
  }
}

/** @param anySize whether images may be of other sizes than the data set's, which they are cropped to later */
async function checkDataset(
  pool: ImagePool,
  dataset: Dataset,
  anySize: boolean,
  signal: AbortSignal,
  print: Print,
): Promise<number> {
  const { image, encoding, length } = dataset;
  const classes = new Classes();
  let broken = 0;
  let next = 0;
  const problemOf = async (sample: number): Promise<string | null> => {
    try {
      const read = () => dataset.read(sample);
      if (encoding !== 'image-file') {
        await read();
        return null;
      }
      const problem = await pool.check(read, anySize ? null : image);
      return problem === null ? null : `${dataset.where(sample)}: ${problem}`;
    } catch (thrown) {
      return asBraidError(thrown).message;
    }
  };
  const check = async () => {
    while (next < length) {
      signal.throwIfAborted();
      const sample = next++;
      classes.count(dataset.label(sample));
      const problem = await problemOf(sample);
      if (problem === null) continue;
      broken++;
      print(`${problem} (sample ${sample})`);
    }
  };
  await Promise.all(Array.from({ length: SAMPLES_AT_ONCE }, check));
  const { height, width, channels } = image;
  print(`${dataset.name}: ${length} images of ${height}x${width}x${channels}, ${classes}, ${verdict(broken)}`);
  return broken;
}

/** "3 classes of 10 to 12 images" */
class Classes {
  samples = 0;
  private readonly counts = new Map<number, number>();

  count(label: number): void {
    this.samples++;
    this.counts.set(label, (this.counts.get(label) ?? 0) + 1);
  }

  toString(): string {
    const counts = [...this.counts.values()].sort((a, b) => a - b);
    const [fewest, most] = [counts[0], counts.at(-1)];
    return `${counts.length} classes of ${fewest === most ? fewest : `${fewest} to ${most}`} images`;
  }
}

function verdict(broken: number): string {
  return broken === 0 ? 'all sound' : `${broken} damaged`;
}
