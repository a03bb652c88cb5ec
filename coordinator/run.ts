/** A run from its recipe to its summary. Everything that can be wrong is refused before anything is started. */
import { randomBytes } from 'node:crypto';
import { asBraidError, type BraidError } from '../core/errors.ts';
import type { Log } from '../core/log.ts';
import { createMetrics, type Metrics } from '../core/metrics.ts';
import type { Recipe } from '../core/recipe.ts';
import { openDataset } from '../input/dataset.ts';
import { initialWeights, parameterCount } from '../nn/variables.ts';
import { isLocal } from '../proto/channel.ts';
import { VERSION } from '../proto/version.ts';
import { readWeights } from './checkpoints.ts';
import { Crew } from './crew.ts';
import type { RunEvent } from './events.ts';
import type { NetworkState } from './group.ts';
import { serveMetrics } from './http.ts';
import { Journal } from './journal.ts';
import { type Member, Membership } from './membership.ts';
import { Meter } from './meter.ts';
import { type MethodDevice, openMethodDevice } from './method.ts';
import { type Plan, planRun } from './plan.ts';
import { Recorder } from './recorder.ts';
import { newestCheckpoint } from './resume.ts';
import { createRunFolder, type RunFolder, requireEmpty, runFolderAt } from './run-folder.ts';
import { serve } from './service.ts';
import { Shards } from './shards.ts';
import { prepareSplit } from './split.ts';
import { type Summary, summaryOf, writeSummary } from './summary.ts';
import { prepareTogether } from './together.ts';
import { train } from './train.ts';

export interface RunOptions {
  recipe: Recipe;
  /** Where workers join: "unix:/path" or "host:port", port 0 for any free one. */
  listen: string;
  /** Listen also where other machines can connect, unencrypted. */
  insecure?: boolean;
  /** runs/<name>: new or empty, unless resumed. */
  runFolder: string;
  /** Go on from the newest checkpoint in runFolder. */
  resume: boolean;
  /** Ends the run well: the step under way is finished and a checkpoint written. */
  signal: AbortSignal;
  /** Ends the run at once. */
  hard?: AbortSignal;
  onEvent(event: RunEvent): void;
  log: Log;
}

/** What a run takes from outside, for tests to replace. */
export interface World {
  openDataset: typeof openDataset;
  /** The device that runs the method; only in `split`. */
  openMethodDevice(plan: Plan): Promise<MethodDevice>;
  /** Seconds, monotonic. */
  now(): number;
  /** A name that no other run has. */
  nameRun(recipe: Recipe): string;
}

const realWorld: World = {
  openDataset,
  openMethodDevice,
  now: () => performance.now() / 1000,
  nameRun: ({ name }) => `${name}-${randomBytes(4).toString('hex')}`,
};

/** How long a worker may take to answer Stop: a run that is over waits for nobody longer. */
const STOP_TIMEOUT_MS = 5_000;

/**
 * @throws BraidError CANCELLED when `signal` or `hard` ended the run; WORKER_LOST, NON_FINITE, REPLICAS_DIVERGED and others
 *   when something did. Checkpoints written by then stay.
 */
export async function runCoordinator(options: RunOptions, world: World = realWorld): Promise<Summary> {
  const { recipe, signal, onEvent, log } = options;
  const { now } = world;
  await using open = new AsyncDisposableStack();
  const never = new AbortController().signal;
  const hard = options.hard ?? never;

  // Refuse what is wrong.
  const folder = runFolderAt(options.runFolder);
  if (!options.resume) requireEmpty(folder);
  const plan = await planRun(recipe, world.openDataset);
  open.defer(() => {
    plan.train.close();
    plan.test.close();
  });
  const checkpoint = options.resume ? await newestCheckpoint(folder, plan) : null;
  const given = recipe.training.initialWeights === null ? null : await readWeights(recipe.training.initialWeights);
  const firstStep = checkpoint?.manifest.step ?? 0;
  const run = checkpoint?.manifest.run ?? world.nameRun(recipe);

  // Listen.
  const metrics = createMetrics();
  const meter = new Meter(now, metrics);
  const shards = new Shards(plan);
  const membership = new Membership({ run, workers: plan.workers, ...announcing(options, metrics, plan.workers) });
  const http = await serveMetrics(metrics.registry, recipe.metrics.port);
  open.defer(http.close);
  const service = await serve({ membership, shards, replicas: plan.replicas, meter }, options.listen, {
    insecure: options.insecure ?? false,
  });
  open.defer(service.close);
  if (!isLocal(service.address)) {
    log.warn(`${service.address} is open to other machines: nothing is encrypted, and whoever reaches it can join`);
  }
  createRunFolder(folder, recipe);
  log.info(`listening on ${service.address}`, { run, metrics: `http://127.0.0.1:${http.port}/metrics` });
  onEvent({ kind: 'listening', address: service.address, metricsPort: http.port, workers: plan.workers });

  let crew: Crew | null = null;
  const either = AbortSignal.any([signal, hard]);
  let reason: BraidError | undefined;
  try {
    // Gather the workers, and give them the first state.
    const timeoutMs = recipe.cluster.joinTimeoutSeconds * 1000;
    const members = await membership.complete({ timeoutMs, signal: either });
    const { generation, lost } = membership;
    crew = new Crew({ run, generation, members, lost, timeoutMs: recipe.cluster.stepTimeoutSeconds * 1000, meter });
    const group = await (recipe.cluster.placement === 'together'
      ? prepareTogether(crew, plan, firstStep, either)
      : prepareSplit(crew, plan, shards, () => world.openMethodDevice(plan), firstStep, either));
    open.defer(() => group.close());
    const state: NetworkState = checkpoint ?? { weights: given ?? initialWeights(group.variables, recipe.seed) };
    await group.write(firstStep, state, either);

    // Train.
    const parameters = parameterCount(group.variables);
    onEvent({ kind: 'started', run, totals: totalsOf(plan, firstStep, parameters, folder) });
    metrics.info.set({ run, version: VERSION, method: recipe.method.name, placement: recipe.cluster.placement }, 1);
    metrics.steps.set(plan.steps);
    metrics.generation.set(generation);
    const journal = new Journal(folder.metrics, firstStep);
    const recorder = new Recorder({ plan, journal, metrics, meter, onEvent });
    const start = now();
    const saved = checkpoint && { step: firstStep, path: checkpoint.path };
    const last = await train({ plan, group, recorder, folder, run, firstStep, saved, signal, hard, now, onEvent });

    const seconds = now() - start;
    const summary = summaryOf({ run, plan, members, parameters, seconds, recorder, folder, checkpoint: last });
    writeSummary(summary);
    onEvent({ kind: 'done', summary });
    return summary;
  } catch (thrown) {
    reason = asBraidError(thrown, either.aborted ? 'CANCELLED' : 'INTERNAL');
    metrics.errors.inc({ code: reason.code });
    throw reason;
  } finally {
    membership.dismiss();
    if (crew !== null && !hard.aborted) await stop(crew, plan.steps);
    membership.close(reason);
  }
}

/** Who comes and goes, told to the log, the metrics and the progress view. */
function announcing({ log, onEvent }: RunOptions, metrics: Metrics, workers: number) {
  return {
    onJoin: ({ rank, name, joined: { host, pid, device } }: Member, joined: number) => {
      log.info(`${name} joined`, { device, joined, workers });
      metrics.members.set({ state: 'joined' }, joined);
      onEvent({ kind: 'joined', rank, host, pid, device, joined, workers });
    },
    onLeave: ({ name }: Member, joined: number) => {
      log.info(`${name} left`);
      metrics.members.set({ state: 'joined' }, joined);
    },
  };
}

/** Tells every worker that can still be reached to leave. */
async function stop(crew: Crew, step: number): Promise<void> {
  await Promise.allSettled(
    crew.members.map(({ worker }) =>
      worker.stop(crew.stamp(step), { signal: new AbortController().signal, timeoutMs: STOP_TIMEOUT_MS }),
    ),
  );
}

function totalsOf(plan: Plan, firstStep: number, parameters: number, folder: RunFolder) {
  return {
    steps: plan.steps,
    firstStep,
    stepsPerEpoch: plan.stepsPerEpoch,
    epochs: Math.ceil(plan.steps / plan.stepsPerEpoch),
    trainSamples: plan.train.length,
    testSamples: plan.test.length,
    workers: plan.workers,
    parameters,
    runFolder: folder.path,
  };
}
