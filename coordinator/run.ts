/** A run from its recipe to its summary. Everything that can be wrong is refused before anything is started. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { asBraidError, BraidError, isTemporary } from '../core/errors.ts';
import { oneOf, sampled } from '../core/instruments.ts';
import type { Log } from '../core/log.ts';
import { firstLossScale } from '../core/loss-scale.ts';
import { COORDINATOR_METRICS, createMetrics, type LossOfWorker, type Metrics, type RunState } from '../core/metrics.ts';
import type { Recipe } from '../core/recipe.ts';
import { serveStatus } from '../core/status-server.ts';
import { openDataset } from '../input/dataset.ts';
import { initialWeights, parameterCount } from '../nn/variables.ts';
import { requireUnexposed, warnOfExposure } from '../proto/channel.ts';
import { serveHealth } from '../proto/health.ts';
import type { WatchRequest } from '../proto/messages.ts';
import type { Tls } from '../proto/tls.ts';
import { VERSION } from '../proto/version.ts';
import { readWeights } from './checkpoints.ts';
import { openStore, placeOf } from './checkpoints-store.ts';
import { CheckpointWriter } from './checkpoints-writer.ts';
import { tellOfMembers } from './cluster-metrics.ts';
import type { RunEvent } from './events.ts';
import { Generations } from './generations.ts';
import type { Group } from './group.ts';
import { BadSamples, Journal } from './journal.ts';
import { Ledger } from './ledger.ts';
import { type Member, Membership } from './membership.ts';
import { Meter } from './meter.ts';
import { openShares } from './method.ts';
import type { Share, Trust } from './method-share.ts';
import { type Plan, planRun } from './plan.ts';
import { Recorder } from './recorder.ts';
import { checkpointToResume, requireNoCheckpoints } from './resume.ts';
import { createRunFolder, type RunFolder, requireEmpty, runFolderAt, runNameIn } from './run-folder.ts';
import { serve } from './service.ts';
import { readSummary, type Summary, summaryOf, writeSummary } from './summary.ts';
import { EventFile } from './tensorboard.ts';
import { TraceFile } from './trace.ts';
import { Watch } from './watch.ts';

export interface RunOptions {
  recipe: Recipe;
  /** Where workers join: "unix:/path" or "host:port", port 0 for any free one. */
  listen: string;
  /** Listen also where other machines can connect, unencrypted. */
  insecure?: boolean;
  /** Who this process is to its workers, and they to it; null: nothing is encrypted. */
  tls?: Tls | null;
  /** What a worker must know to join; null: nothing. */
  token?: string | null;
  /** runs/<name>: new or empty, unless resumed. */
  runFolder: string;
  /** Go on from the run's newest checkpoint, where there is a run (true), or from the one of that name. */
  resume: boolean | string;
  /** When the run is done, go on telling how it ended, until `signal`. */
  stay?: boolean;
  /** A file for a trace of all processes, in Chrome's format. */
  trace?: string | undefined;
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
  /** What runs the method; only in `split`. */
  openShares(plan: Plan, trust: Trust): Promise<Share[]>;
  /** Seconds, monotonic. */
  now(): number;
  /** A name that no other run has. */
  nameRun(recipe: Recipe): string;
}

const realWorld: World = {
  openDataset,
  openShares,
  now: () => performance.now() / 1000,
  nameRun: ({ name }) => `${name}-${randomBytes(4).toString('hex')}`,
};

/** Of the run's secret: nobody guesses it. */
const SECRET_BYTES = 32;
/** How long a worker may take to answer Stop: a run that is over waits for nobody longer. */
const STOP_TIMEOUT_MS = 5_000;

/**
 * @throws BraidError CANCELLED when `signal` or `hard` ended the run; WORKER_LOST, NON_FINITE, REPLICAS_DIVERGED and others
 *   when something did. Checkpoints written by then stay.
 */
export async function runCoordinator(options: RunOptions, world: World = realWorld): Promise<Summary> {
  const { recipe, signal, log } = options;
  const { now } = world;
  await using open = new AsyncDisposableStack();
  const never = new AbortController().signal;
  const hard = options.hard ?? never;
  const { tls = null, token = null, insecure = false } = options;

  // Refuse what is wrong.
  requireUnexposed(options.listen, { tls, insecure });
  const folder = runFolderAt(options.runFolder);
  if (!options.resume) requireEmpty(folder);
  const plan = await planRun(recipe, world.openDataset);
  open.defer(() => {
    plan.train.close();
    plan.test.close();
  });
  const place = placeOf(recipe, folder);
  const store = await openStore(place);
  const named = typeof options.resume === 'string' ? options.resume : null;
  const known = options.resume ? runNameIn(folder) : null;
  // Workers may hold the state of a run that has not come to its first checkpoint; and a first start may resume, too.
  const early = named === null && (await store.list()).length === 0;
  const checkpoint = options.resume && !early ? await checkpointToResume(store, plan, named, log) : null;
  if (checkpoint === null) await requireNoCheckpoints(store);
  if (options.resume && checkpoint === null && known === null) {
    log.warn(`${folder.path} holds no run to go on with: this one begins`);
  }
  const finished = options.resume === true && checkpoint?.manifest.step === plan.steps ? readSummary(folder) : null;
  const given = recipe.training.initialWeights === null ? null : await readWeights(recipe.training.initialWeights);
  const run = checkpoint?.manifest.run ?? known ?? world.nameRun(recipe);

  // Listen.
  const metrics = createMetrics();
  const meter = new Meter(now, metrics);
  const { replicas, maxReplicas, heartbeatSeconds, heartbeatMisses } = recipe.cluster;
  const most = (plan.workers / replicas) * (maxReplicas ?? replicas);
  const secret = randomBytes(SECRET_BYTES).toString('base64url');
  let state: RunState = 'waiting';
  sampled(metrics.runState, () => oneOf(COORDINATOR_METRICS.runState.labels.state, state));
  const onEvent = (event: RunEvent) => {
    state = stateAfter(event) ?? state;
    watch?.note(event);
    options.onEvent(event);
  };
  let watch: Watch | null = null;
  const membership = new Membership({
    run,
    secret,
    tls,
    most,
    heartbeat: { everySeconds: heartbeatSeconds, misses: heartbeatMisses },
    now,
    ...announcing({ log, onEvent }, metrics, plan.workers),
  });
  const traced = options.trace === undefined ? null : new TraceFile(options.trace, run, () => membership.here);
  const { endpoint } = recipe.tracing;
  if (endpoint !== null) {
    const { exportSpans } = await import('../proto/otlp.ts');
    open.defer(exportSpans({ endpoint, service: 'braid-coordinator', attributes: { 'braid.run': run }, log }));
  }
  const journal = new Journal(folder.metrics);
  const events = new EventFile(folder.path, () => new Date());
  const badSamples = new BadSamples(folder.badSamples);
  const recorder = new Recorder({ plan, journal, events, badSamples, metrics, meter, onEvent });
  const ledger = new Ledger(
    {
      step: checkpoint?.manifest.step ?? 0,
      round: 0,
      ...firstLossScale(recipe.training, checkpoint?.manifest.lossScale),
    },
    {
      onDecided: (update, result) => recorder.decided(update, result),
      onStep: (update, result) => recorder.step(update, result),
    },
  );
  let started: { group: Group; at: number } | null = null;
  let over = finished !== null;
  const ready = () => over || (started !== null && membership.whole);
  const http = await serveStatus({ ...recipe.metrics, registry: metrics.registry, ready });
  open.defer(http.close);
  const { healthPort } = recipe.metrics;
  if (healthPort !== null) {
    const health = await serveHealth({ ...recipe.metrics, port: healthPort, ready });
    open.defer(health.close);
    log.info(`health on ${health.address}`);
  }

  const checkpoints = new CheckpointWriter({
    place,
    keeping: recipe.checkpoint,
    newest: checkpoint && { step: checkpoint.manifest.step, path: checkpoint.path },
    hard,
    now,
    onWritten: (written, seconds) => recorder.checkpointed(written, seconds),
    onFailed: (error) => {
      metrics.checkpointFailures.inc();
      if (!hard.aborted) log.error(error.message);
    },
  });
  open.defer(() => checkpoints.close());
  const generations = new Generations({
    plan,
    membership,
    meter,
    metrics,
    ledger,
    recorder,
    run,
    checkpoints,
    signal,
    hard,
    now,
    onEvent,
    log,
    openShares: (planned) => world.openShares(planned, { secret, tls }),
    startFrom: async (group) => {
      await checkpoints.settled();
      const { newest: last } = checkpoints;
      const newest =
        last === null || last.path === checkpoint?.path ? checkpoint : await checkpointToResume(store, plan, null, log);
      if (newest !== null) {
        const { step, lossScale } = newest.manifest;
        return { ...newest, step, from: newest.path, ...(lossScale !== undefined && { lossScale }) };
      }
      const weights = given ?? initialWeights(group.variables, recipe.seed);
      return { step: 0, weights, from: given === null ? `seed ${recipe.seed}` : `${recipe.training.initialWeights}` };
    },
    onStart: (group) => {
      const parameters = parameterCount(group.variables);
      started = { group, at: now() };
      onEvent({ kind: 'started', run, totals: totalsOf(plan, ledger.position.step, parameters, folder) });
      metrics.info.set({ run, version: VERSION, method: recipe.method.name, placement: recipe.cluster.placement }, 1);
      metrics.steps.set(plan.steps);
      metrics.epochs.set(Math.ceil(plan.steps / plan.stepsPerEpoch));
      metrics.step.set(ledger.position.step);
      metrics.checkpointTime.setToCurrentTime();
    },
  });
  metrics.membersWanted.set(plan.workers);
  tellOfMembers(metrics, { membership, generations, meter, heartbeatSeconds });
  open.defer(async () => generations.close());
  const watching = new Watch({ run, plan, membership, generations, ledger, now, clock: () => new Date() });
  watch = watching;
  const offer = {
    membership,
    shards: () => generations.shards,
    meter,
    watch: async ({ metrics: asked }: WatchRequest) => watching.answer(asked ? await metrics.registry.metrics() : ''),
    token,
    secret,
  };
  const service = await serve(offer, options.listen, { tls, insecure });
  open.defer(service.close);
  warnOfExposure(log, service.address, tls, token === null ? ', and whoever reaches it can join' : '');
  createRunFolder(folder, recipe, run);
  log.info(`listening on ${service.address}`, { run, metrics: `http://${http.address}/metrics` });
  onEvent({ kind: 'listening', address: service.address, metrics: http.address, workers: plan.workers });

  try {
    const summary = finished ?? summaryAfter(await generations.train());
    over = true;
    await traced?.close();
    membership.dismiss('done');
    onEvent({ kind: 'done', summary });
    if (!hard.aborted) await stop(membership, run, plan.steps);
    if (options.stay) await aborted(AbortSignal.any([signal, hard]));
    return summary;
  } catch (thrown) {
    const error = asBraidError(thrown, signal.aborted || hard.aborted ? 'CANCELLED' : 'INTERNAL');
    if (!over) await traced?.close();
    const comesBack = isTemporary(error, signal.reason);
    membership.dismiss(comesBack ? away(error) : error);
    // Whoever does not stop a worker that keeps its state finds it again.
    if (error.code === 'CANCELLED' && !comesBack && !hard.aborted) await stop(membership, run, plan.steps);
    throw error;
  } finally {
    membership.close();
  }

  function summaryAfter(last: string): Summary {
    const { group, at } = started!;
    const parameters = parameterCount(group.variables);
    const members = generations.seats;
    const seconds = now() - at;
    const summary = summaryOf({ run, plan, members, parameters, seconds, recorder, folder, checkpoint: last });
    writeSummary(summary);
    return summary;
  }
}

/** For workers: the coordinator ends, and is to be started again. */
function away({ message, code }: BraidError): BraidError {
  return code === 'WORKER_LOST'
    ? new BraidError(code, message)
    : new BraidError('WORKER_LOST', `the coordinator is away: ${message}`);
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, 'abort');
}

/** null: the same as before. */
function stateAfter({ kind }: RunEvent): RunState | null {
  if (kind === 'started' || kind === 'regrouped' || kind === 'epoch') return 'training';
  if (kind === 'evaluating') return 'evaluating';
  return kind === 'disturbed' ? 'waiting' : null;
}

/** Who comes and goes, told to the log, the metrics and the progress view. */
function announcing({ log, onEvent }: Pick<RunOptions, 'log' | 'onEvent'>, metrics: Metrics, workers: number) {
  return {
    onJoin: ({ id, name, joined: { host, pid, device } }: Member, joined: number) => {
      log.info(`${name} joined`, { device, joined, workers });
      onEvent({ kind: 'joined', member: id, host, pid, device, joined, workers });
    },
    onLeave: ({ name }: Member, why: string, loss: LossOfWorker | null) => {
      log.info(`${name} left: ${why}`);
      if (loss !== null) metrics.workersLost.inc({ reason: loss });
    },
  };
}

/** Tells every worker that can still be reached to leave. */
async function stop({ here, generation }: Membership, run: string, step: number): Promise<void> {
  const call = { signal: new AbortController().signal, timeoutMs: STOP_TIMEOUT_MS };
  await Promise.allSettled(here.map(({ worker }) => worker.stop({ run, generation, step }, call)));
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
