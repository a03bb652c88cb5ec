/**
 * `soak`: a real run of a coordinator and three workers under random faults, one after another and sometimes two at once.
 * In the end every step must be in the journal once, every sample must have been trained on once an epoch, and the weights
 * must be, bit for bit, those of as many steps that nothing happened to.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { stringify } from 'yaml';
import { decodeSafetensors } from '../nn/safetensors.ts';
import { trainProcess } from '../rig/braid-process.ts';
import { temporaryFolder } from '../rig/folder.ts';
import { journalSteps } from '../rig/journal.ts';
import { writePatterns } from '../rig/patterns.ts';
import type { Moment, Script } from '../rig/proxy.ts';
import type { Measurement } from './report.ts';
import { Audit } from './soak-audit.ts';
import { PLACES, SoakCluster } from './soak-cluster.ts';
import { faultsOf, KINDS, type PlannedFault } from './soak-faults.ts';
import { Lives } from './soak-memory.ts';

export interface SoakOptions {
  seconds: number;
  seed: number;
  /** Ends it early, in good order. */
  signal: AbortSignal;
  say(line: string): void;
}

const TRAIN_SAMPLES = 640;
const BATCH = 48; // 13 batches and one of 16
const HEARTBEAT = { heartbeatSeconds: 0.5, heartbeatMisses: 6 };
/** A sign of life takes a pause and, at worst, a timeout of the same length. */
const FREEZE_MS = 1000 * 2 * HEARTBEAT.heartbeatSeconds * HEARTBEAT.heartbeatMisses;
const MOST_MORE_FREEZE_MS = 4_000;
const MOST_DELAY_MS = 4_000;
/** More at once are another bench: the run needs all three workers to go on. */
const MOST_OPEN = 2;
/** A fault after which nothing has been committed for so long was not survived. */
const SURVIVAL_MS = 120_000;
const TICK_MS = 200;
const SECOND_MS = 1000;
/** Steps that may have been under way, or not yet been told of, when a fault came. */
const UNDER_WAY = 2;

interface Ended {
  seed: number;
  steps: number;
  wrong: string[];
  /** Tensors of the final state that the undisturbed run has otherwise. */
  differing: number;
  /** The first step whose losses are not those of the undisturbed run; null: none. */
  parted: number | null;
}

interface OpenFault extends PlannedFault {
  since: number;
  /** Survived when more than so many steps are committed. */
  step: number;
}

export async function benchSoak({ seconds, seed, signal, say }: SoakOptions): Promise<Measurement> {
  await using folder = temporaryFolder('braid-bench-');
  const recipe = folder.write('recipe.yaml', stringify(recipeOf(writePatterns(folder, TRAIN_SAMPLES, 90), seed)));
  const runs = join(folder.path, 'runs');
  const soak = new Soak(say);
  const cluster = await SoakCluster.start({
    recipe,
    runs,
    say,
    script: (place) => soak.scriptOf(place),
    onAnew: () => soak.audit.anew(),
  });
  const kill = () => void cluster.close();
  process.on('exit', kill);
  try {
    await soak.run(cluster, seconds, seed, signal);
    const ended = await cluster.end();
    const steps = Number(/stopped after step (\d+) of/.exec(ended.output)?.[1] ?? Number.NaN);
    say(`soak: ${steps} steps; the same again, undisturbed`);
    const calm = await trainProcess([
      ...[recipe, '--runs', join(folder.path, 'calm'), '--set', `training.maxSteps=${steps}`],
      ...['--set', 'cluster.threads=1'],
    ]);
    return soak.measurement(cluster, {
      seed,
      steps,
      wrong: [
        ...(ended.code === 75
          ? []
          : [`SIGTERM ended the coordinator with ${ended.signal ?? ended.code}: ${ended.output.slice(-1000)}`]),
        ...(calm.code === 0
          ? []
          : [`the undisturbed run ended with ${calm.signal ?? calm.code}: ${calm.output.slice(-1000)}`]),
      ],
      differing: tensorsThatDiffer(stateAfter(cluster.runFolder, steps), stateAfter(calm.run, steps)),
      parted: firstOther(cluster.runFolder, calm.run),
    });
  } finally {
    process.off('exit', kill);
    await cluster.close();
  }
}

class Soak {
  readonly audit = new Audit();
  private readonly lives = new Lives();
  private readonly open: OpenFault[] = [];
  /** By place: what its next call, or its next shard, meets. */
  private readonly pending = new Map<number, PlannedFault>();
  private readonly done = Object.fromEntries(KINDS.map((kind) => [kind, { faults: 0, survived: 0 }]));
  private readonly lost: string[] = [];
  private readonly coordinators = new Set<number>();
  private readonly workers = new Set<number>();
  private readonly frozen = new Set<number>();
  private committed = 0;
  private generation = 0;
  private seconds = 0;
  private readonly say: (line: string) => void;

  constructor(say: (line: string) => void) {
    this.say = say;
  }

  scriptOf(place: number): Script {
    return {
      at: (moment, step) => this.meet(place, moment, step),
      left: () => {},
      shard: (request, part) => this.audit.shard(request, part),
      commit: (request) => this.audit.commit(request),
    };
  }

  /** Faults until the time is over, and then until the last of them is survived. */
  async run(cluster: SoakCluster, seconds: number, seed: number, signal: AbortSignal): Promise<void> {
    const start = performance.now();
    const faults = faultsOf(seed, PLACES);
    let next = faults.next().value as PlannedFault;
    let due = start + SECOND_MS * next.pauseSeconds;
    let sampled = 0;
    for (;;) {
      await setTimeout(TICK_MS);
      const now = performance.now();
      const over = signal.aborted || now >= start + SECOND_MS * seconds;
      await this.look(cluster, now);
      if (now >= sampled + SECOND_MS) {
        sampled = now;
        this.sample(cluster);
      }
      if (over && this.open.length === 0 && this.frozen.size === 0) break;
      if (over || now < due || this.open.length >= MOST_OPEN) continue;
      if (this.allows(next)) this.begin(cluster, next);
      next = faults.next().value as PlannedFault;
      due = now + SECOND_MS * next.pauseSeconds;
    }
    this.seconds = (performance.now() - start) / SECOND_MS;
  }

  measurement(cluster: SoakCluster, { seed, steps, wrong, differing, parted }: Ended): Measurement {
    const journal = journalSteps(cluster.runFolder).map(({ step }) => step);
    const missing = steps - new Set(journal).size;
    const outOfPlace = journal.filter((step, i) => i > 0 && step <= journal[i - 1]!).length;
    const sampler = { samples: TRAIN_SAMPLES, batch: BATCH, seed, shuffle: true };
    const { lost, doubled, otherSteps } = this.audit.check(steps, sampler);
    const totals = Object.values(this.done);
    const sum = (what: 'faults' | 'survived') => totals.reduce((all, each) => all + each[what], 0);
    const zero: Record<string, number> = {
      'faults not survived': this.lost.length,
      'processes that ended by themselves': cluster.fallen.length,
      'steps lost': missing,
      'steps twice or out of order': outOfPlace,
      'samples lost': lost,
      'samples doubled': doubled,
      'steps with other samples': otherSteps,
      'tensors of the final state that differ': differing,
    };
    return {
      bench: 'soak',
      case: `seed ${seed}`,
      figures: {
        seconds: this.seconds,
        faults: sum('faults'),
        'faults survived': sum('survived'),
        ...Object.fromEntries(
          KINDS.flatMap((kind) => [
            [`  ${kind}`, this.done[kind]!.faults],
            [`  ${kind}, survived`, this.done[kind]!.survived],
          ]),
        ),
        'steps committed': steps,
        'steps done again': cluster.stepsRedone,
        ...zero,
        generations: this.generation,
        'coordinator restarts': cluster.coordinatorStarts - 1,
        'worker restarts': cluster.workerRestarts,
        ...this.memory('coordinator', this.coordinators),
        ...this.memory('worker', this.workers),
      },
      wrong: [
        ...this.lost,
        ...cluster.fallen,
        ...wrong,
        ...(parted === null ? [] : [`step ${parted} is the first with other losses than undisturbed`]),
        ...Object.entries(zero).flatMap(([name, value]) => (value === 0 ? [] : [`${name}: ${value}`])),
      ],
    };
  }

  private memory(who: string, pids: Set<number>): Record<string, number> {
    const life = this.lives.longest(pids);
    if (life === null) return {};
    return {
      [`longest-living ${who}, seconds`]: life.seconds,
      [`${who}, resident MiB, first tenth`]: life.first,
      [`${who}, resident MiB, last tenth`]: life.last,
    };
  }

  /** Whoever is down, or about to meet something, is left alone. */
  private allows({ kind, place }: PlannedFault): boolean {
    const same = this.open.some((fault) => fault.kind === kind && fault.place === place);
    return !same && (kind === 'coordinator killed' || !(this.frozen.has(place) || this.pending.has(place)));
  }

  private begin(cluster: SoakCluster, planned: PlannedFault): void {
    const { kind, place, exchange, length } = planned;
    const proxy = cluster.workers.proxies[place]!;
    const { child } = cluster.workers.processes[place]!;
    switch (kind) {
      case 'coordinator killed':
        cluster.coordinator.child.kill('SIGKILL');
        break;
      case 'worker killed':
        child.kill('SIGKILL');
        break;
      case 'worker frozen':
        child.kill('SIGSTOP');
        this.frozen.add(place);
        void setTimeout(FREEZE_MS + length * MOST_MORE_FREEZE_MS).then(() => {
          child.kill('SIGCONT');
          this.frozen.delete(place);
        });
        break;
      case 'connection cut':
        if (exchange) proxy.cutExchange();
        else void proxy.cut();
        break;
      case 'garbage bytes':
        if (exchange) proxy.garbleExchange();
        else this.pending.set(place, planned);
        break;
      case 'delay':
        this.pending.set(place, planned);
    }
    if (this.pending.get(place) !== planned) this.comesAbout(planned, this.committed);
  }

  private async meet(place: number, moment: Moment, step: number): Promise<'pass' | 'garble'> {
    const fault = this.pending.get(place);
    if (fault === undefined || (fault.kind === 'garbage bytes' && moment !== 'shards')) return 'pass';
    this.pending.delete(place);
    this.comesAbout(fault, Math.max(step, this.committed));
    if (fault.kind === 'garbage bytes') return 'garble';
    await setTimeout(fault.length * MOST_DELAY_MS);
    return 'pass';
  }

  private comesAbout(fault: PlannedFault, step: number): void {
    const { kind, place } = fault;
    const who = kind === 'coordinator killed' ? '' : `, place ${place}`;
    this.say(`soak: ${this.committed} steps, generation ${this.generation}: ${kind}${who}`);
    this.done[kind]!.faults++;
    this.open.push({ ...fault, since: performance.now(), step: step + UNDER_WAY });
  }

  /** How far the run is, and which faults it has survived. */
  private async look(cluster: SoakCluster, now: number): Promise<void> {
    const seen = await cluster.watch();
    if (seen !== null) {
      this.committed = Math.max(this.committed, seen.step);
      this.generation = Math.max(this.generation, seen.generation);
    }
    for (const fault of [...this.open]) {
      const { kind, place, step, since } = fault;
      const survived = seen !== null && seen.step > step;
      if (!survived && now < since + SURVIVAL_MS) continue;
      this.open.splice(this.open.indexOf(fault), 1);
      if (survived) this.done[kind]!.survived++;
      else this.lost.push(`not survived: ${kind}, place ${place}, at step ${step}; generation ${this.generation}`);
    }
  }

  private sample({ coordinator, workers }: SoakCluster): void {
    for (const [pids, child] of [
      [this.coordinators, coordinator.child] as const,
      ...workers.processes.map((worker) => [this.workers, worker.child] as const),
    ]) {
      if (child.pid === undefined) continue;
      pids.add(child.pid);
      this.lives.sample(child.pid);
    }
  }
}

function recipeOf(data: string, seed: number): object {
  return {
    name: 'soak',
    seed,
    data: { format: 'idx', path: data, classes: 4, mean: [100], std: [70], augment: { pad: 1, flip: false } },
    branches: [{ network: 'resnet', depth: 8, width: 4, count: 2 }],
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 1_000_000, batch: BATCH, learningRate: 0.02, milestones: [] },
    evaluation: { batch: 32, everyEpochs: 5 },
    cluster: { placement: 'together', replicas: PLACES, ...HEARTBEAT, joinTimeoutSeconds: 120 },
    checkpoint: { everySteps: 50 },
    metrics: { logEverySteps: 1 },
  };
}

/** Weights and momenta, by file and name. */
function stateAfter(run: string, steps: number): Map<string, Buffer> {
  const checkpoint = join(run, 'checkpoints', `step-${String(steps).padStart(8, '0')}`);
  const state = new Map<string, Buffer>();
  for (const name of ['model', 'optimizer']) {
    const file = join(checkpoint, `${name}.safetensors`);
    for (const [tensor, { data }] of decodeSafetensors(readFileSync(file), file).tensors) {
      state.set(`${name} ${tensor}`, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    }
  }
  return state;
}

function tensorsThatDiffer(a: Map<string, Buffer>, b: Map<string, Buffer>): number {
  return [...new Set([...a.keys(), ...b.keys()])].filter((name) => {
    const [one, other] = [a.get(name), b.get(name)];
    return one === undefined || other === undefined || !one.equals(other);
  }).length;
}

function firstOther(run: string, undisturbed: string): number | null {
  const losses = new Map(journalSteps(undisturbed).map((line) => [line.step, line.losses.total]));
  return journalSteps(run).find((line) => losses.get(line.step) !== line.losses.total)?.step ?? null;
}
