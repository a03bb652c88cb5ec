/**
 * `cluster`: real coordinator and worker processes over gRPC, reading and augmenting CIFAR's files, against one process
 * with all the cores, and against PyTorch DistributedDataParallel.
 *
 * The one process is the bare training step, fed from memory: the most that the same cores can do. The same networks
 * through a coordinator and a single worker are a comparison of their own.
 */
import { join } from 'node:path';
import { braidTrain } from './braid-train.ts';
import { braidStep, torchDdp, type Work } from './contenders.ts';
import { type Comparison, median, medianPhases, meetsBar, type Phases } from './report.ts';
import type { Rounds } from './step.ts';
import { type Stepper, withSteppers } from './stepper.ts';
import { writeSyntheticCifar } from './synthetic-cifar.ts';

const BATCH = 128;

/** The least accepted part of the one process's throughput, and of DDP's. */
const ONE_PROCESS = { atLeast: 0.85 };
const DDP = { atLeast: 1 };

/** Images a second of one contender in one round, and where its time went. */
export interface Throughput {
  imagesPerSecond: number;
  phases: Phases;
}

/** Everyone of one alternation, by name. */
type Contenders = Record<string, (round: number) => Promise<Throughput>>;

interface Case {
  name: string;
  braid: string;
  peer: string;
  bar: { atLeast: number };
}

export interface Cluster extends Rounds {
  python: string;
  /** For the data set and the runs. */
  folder: string;
  say(line: string): void;
}

/** Two replicas of one thread each, on half of every batch. */
export async function benchTogether(cluster: Cluster): Promise<Comparison[]> {
  const { python, folder, steps } = cluster;
  cluster.say('cluster together: warming up');
  const starts = [() => braidStep({ threads: 2 }), () => torchDdp(python, dataIn(folder))];
  return await withSteppers(starts, async (one, ddp) => {
    const contenders: Contenders = {
      'two workers': (round) => train(cluster, `together-${round}`, together({ replicas: 2, threads: 1 })),
      'one process': () => take(one!, steps),
      'PyTorch DDP': () => take(ddp!, steps),
      'one worker': (round) => train(cluster, `one-worker-${round}`, together({ replicas: 1, threads: 2 })),
    };
    const cases = [
      { name: 'together / one process', braid: 'two workers', peer: 'one process', bar: ONE_PROCESS },
      { name: 'together / one worker', braid: 'two workers', peer: 'one worker', bar: ONE_PROCESS },
      { name: 'together / PyTorch DDP', braid: 'two workers', peer: 'PyTorch DDP', bar: DDP },
    ];
    return await compare(cluster, contenders, cases, { threads: 1, batch: BATCH / 2 });
  });
}

/** Two unshared networks, each on a worker of one thread; the coordinator fuses them. */
export async function benchSplit(cluster: Cluster): Promise<Comparison[]> {
  cluster.say('cluster split: warming up');
  return await withSteppers([() => braidStep({ threads: 2, unshared: true })], async (one) => {
    const contenders: Contenders = {
      'two workers': (round) => train(cluster, `split-${round}`, SPLIT),
      'one process': () => take(one!, cluster.steps),
    };
    const cases = [{ name: 'split / one process', braid: 'two workers', peer: 'one process', bar: ONE_PROCESS }];
    return await compare(cluster, contenders, cases, { threads: 1, branches: 1 });
  });
}

/** Makes the data set that the cluster's runs read. */
export function prepareCluster(folder: string): void {
  writeSyntheticCifar(dataIn(folder));
}

/** @param alone what one worker of the cluster computes: two of it side by side, saying nothing to one another, are the floor */
async function compare(cluster: Cluster, contenders: Contenders, cases: Case[], alone: Work): Promise<Comparison[]> {
  const results = await alternate(cluster, contenders);
  const comparisons = cases.map(
    ({ name, braid, peer, bar }): Comparison => ({
      bench: 'cluster',
      case: name,
      braid: medianOf(results[braid]!),
      peer: medianOf(results[peer]!),
      unit: 'images/s',
      bar,
      note: `braid: ${braid} of one thread; peer: ${peer}`,
      phases: medianPhases(results[braid]!.map(({ phases }) => phases)),
    }),
  );
  if (!comparisons.every(meetsBar)) {
    const floor = await floorSeconds(cluster, alone);
    for (const comparison of comparisons) comparison.phases['floor (no exchange)'] = floor;
  }
  return comparisons;
}

/** Every contender once a round, in turn. */
export async function alternate(
  { rounds, say }: Pick<Cluster, 'rounds' | 'say'>,
  contenders: Contenders,
): Promise<Record<string, Throughput[]>> {
  const results = Object.fromEntries(Object.keys(contenders).map((name) => [name, [] as Throughput[]]));
  for (let round = 0; round < rounds; round++) {
    const figures: string[] = [];
    for (const [name, measure] of Object.entries(contenders)) {
      const result = await measure(round);
      results[name]!.push(result);
      figures.push(`${name} ${result.imagesPerSecond.toFixed(1)}`);
    }
    say(`cluster: round ${round + 1} of ${rounds}: ${figures.join(', ')} images/s`);
  }
  return results;
}

/** Seconds a step of two processes side by side that each compute one worker's part and exchange nothing. */
async function floorSeconds({ steps, say }: Cluster, alone: Work): Promise<number> {
  say('cluster: a bar is missed: measuring two processes without exchange');
  return await withSteppers([() => braidStep(alone), () => braidStep(alone)], async (...both) => {
    const answers = await Promise.all(both.map((each) => each.run(steps)));
    return median(answers.flatMap(({ seconds }) => seconds));
  });
}

function train({ folder, steps }: Cluster, name: string, overrides: string[]): Promise<Throughput> {
  return braidTrain(folder, name, { recipe: 'recipe.yaml', batch: BATCH }, steps, [
    `data.path=${dataIn(folder)}`,
    ...overrides,
  ]);
}

/** Steps of a process that is warm. */
export async function take(stepper: Stepper, steps: number, batch = BATCH): Promise<Throughput> {
  const { seconds, phases = {} } = await stepper.run(steps);
  return { imagesPerSecond: (steps * batch) / seconds.reduce((sum, each) => sum + each, 0), phases };
}

export function together({ replicas, threads }: { replicas: number; threads: number }): string[] {
  return ['cluster.placement=together', `cluster.replicas=${replicas}`, `cluster.threads=${threads}`];
}

const SPLIT = ['trunk=none', 'cluster.placement=split', 'cluster.threads=1'];

export function medianOf(results: Throughput[]): number {
  return median(results.map(({ imagesPerSecond }) => imagesPerSecond));
}

function dataIn(folder: string): string {
  return join(folder, 'cifar100');
}
