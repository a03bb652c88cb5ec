/** The local overlay's pods as processes, through what happens to pods; each time the run ends with the very same weights. */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { stringify } from 'yaml';
import { decodeSafetensors } from '../../nn/safetensors.ts';
import { type Folder, temporaryFolder } from '../../rig/folder.ts';
import { journalSteps } from '../../rig/journal.ts';
import { patterns } from '../../rig/patterns.ts';
import type { Manifest } from './control-plane.ts';
import { named, render } from './manifests.ts';
import { mountsIn, Network, PodProcess } from './pod-hosts.ts';
import type { Report } from './report.ts';

const INDEX = 'batch.kubernetes.io/job-completion-index';
/** What podFailurePolicy does not count as a failure. */
const EXIT_TRY_AGAIN = 75;
const LIMIT_MS = 240_000;

type Disturb = (world: World) => Promise<void>;

const DISTURBANCES: Record<string, Disturb> = {
  "a worker's node is lost in mid-epoch": async (world) => {
    await world.trained(9);
    await world.lose(world.workers[1]!);
  },
  "the coordinator's node is lost in mid-epoch": async (world) => {
    await world.trained(9);
    await world.lose(world.coordinator);
  },
  'a rolling restart, workers first': async (world) => {
    for (const [index, step] of [
      [0, 7],
      [1, 14],
    ] as const) {
      await world.trained(step);
      await endsWithTryAgain(world.workers[index]!);
    }
    await world.trained(20);
    await endsWithTryAgain(world.coordinator);
  },
  'SIGTERM to all at once, a checkpoint within the grace period': async (world) => {
    await world.trained(11);
    const { coordinator, workers } = world;
    await Promise.all([coordinator, ...workers].map(endsWithTryAgain));
    const step = /stopped after step (\d+)/.exec(coordinator.output)?.[1];
    if (!coordinator.output.includes(`checkpoint at step ${step}:`)) throw new Error(coordinator.output);
  },
};

/** @throws Error when a pod's grace period is too short for it, or it does not ask to be started again */
async function endsWithTryAgain(pod: PodProcess): Promise<void> {
  const how = await pod.terminate();
  if (how !== EXIT_TRY_AGAIN) throw new Error(`ended with ${how} after SIGTERM:\n${pod.output}`);
}

export async function checkPods(report: Report): Promise<void> {
  const manifests = await render('local');
  let expected = '';
  await report.check('undisturbed: ready while it trains, workers end with 0, the coordinator stays', async () => {
    expected = await World.play(manifests, async (world) => {
      await world.trained(5);
      const asked = [world.coordinator, ...world.workers].map(async (pod) => {
        const [lives, ready] = await Promise.all([pod.answers('livenessProbe'), pod.answers('readinessProbe')]);
        if (!lives || !ready) throw new Error(`live: ${lives}, ready: ${ready}:\n${pod.output}`);
      });
      await Promise.all(asked);
    });
  });
  for (const [what, disturb] of Object.entries(DISTURBANCES)) {
    await report.check(`${what}: the run ends with the same weights, bit for bit`, async () => {
      const found = await World.play(manifests, disturb);
      if (found !== expected) throw new Error(`state ${found}, undisturbed ${expected}`);
    });
  }
}

/** A coordinator and two workers, and a kubelet and a Job controller that start again what ends. */
class World {
  coordinator!: PodProcess;
  readonly workers: PodProcess[] = [];
  private readonly manifests: Manifest[];
  private readonly network: Network;
  private readonly folder: Folder;
  private readonly done = [0, 1].map(() => Promise.withResolvers<void>());
  private readonly lost = new Set<PodProcess>();
  private readonly all: PodProcess[] = [];
  private over = false;

  /** @returns a hash of the last checkpoint's tensors */
  static async play(manifests: Manifest[], disturb: Disturb): Promise<string> {
    await using folder = temporaryFolder('braid-pods-');
    await using network = await Network.open();
    const world = new World(manifests, network, folder);
    const late = setTimeout(LIMIT_MS, undefined, { ref: false }).then(() => {
      throw new Error(`not done within ${LIMIT_MS / 1000} s:\n${world.all.map((pod) => pod.output).join('\n--\n')}`);
    });
    try {
      return await Promise.race([world.run(disturb), late]);
    } finally {
      world.over = true;
      for (const pod of world.all) pod.kill();
      await Promise.all(world.all.map(({ ended }) => ended));
    }
  }

  private constructor(manifests: Manifest[], network: Network, folder: Folder) {
    this.manifests = manifests;
    this.network = network;
    this.folder = folder;
    for (const { promise } of this.done) promise.catch(() => {}); // awaited when the disturbance is over
    folder.write('etc/braid/token/token', 'a-token-of-the-checks');
    folder.write('etc/braid/recipe/recipe.yaml', stringify(recipeIn(folder)));
  }

  /** Returns when so many steps have been committed. */
  async trained(steps: number): Promise<void> {
    while (!this.over && journalSteps(join(this.folder.path, 'data/runs/pods')).length < steps) await setTimeout(50);
  }

  /** A pod's node is gone, and another takes its place. */
  async lose(pod: PodProcess): Promise<void> {
    this.lost.add(pod);
    await this.network.cut(pod.space);
    pod.kill();
    if (pod === this.coordinator) await this.startCoordinator();
    else await this.startWorker(this.workers.indexOf(pod));
  }

  private async run(disturb: Disturb): Promise<string> {
    await this.startWorker(0); // in any order
    await this.startCoordinator();
    await this.startWorker(1);
    await disturb(this);
    await Promise.all(this.done.map(({ promise }) => promise));
    if (!(await this.coordinator.answers('readinessProbe')))
      throw new Error('the coordinator is not ready when all is done');
    this.over = true;
    const code = await this.coordinator.terminate();
    if (code !== 0) throw new Error(`the coordinator ended with ${code}:\n${this.coordinator.output}`);
    const checkpoints = join(this.folder.path, 'data/runs/pods/checkpoints');
    const last = join(checkpoints, readdirSync(checkpoints).sort().at(-1)!);
    const hash = createHash('sha256');
    for (const file of ['model', 'optimizer']) {
      const { tensors } = decodeSafetensors(readFileSync(join(last, `${file}.safetensors`)), file);
      for (const [name, { data }] of [...tensors].sort()) hash.update(name).update(data); // not the run's own name
    }
    return hash.digest('hex');
  }

  private async startCoordinator(): Promise<void> {
    const { spec } = named(this.manifests, 'StatefulSet', 'braid-coordinator').spec.template;
    const name = 'braid-coordinator-0.braid-coordinator.braid.svc';
    const pod = await PodProcess.start(this.network, name, spec, { labels: {}, mounts: mountsIn(this.folder.path) });
    this.coordinator = pod;
    this.all.push(pod);
    void pod.ended.then(async () => {
      if (!this.over && !this.lost.has(pod)) await this.startCoordinator();
    });
  }

  private async startWorker(index: number): Promise<void> {
    const { spec } = named(this.manifests, 'Job', 'braid-worker').spec.template;
    const name = `braid-worker-${index}.braid-worker.braid.svc`;
    const labels = { [INDEX]: String(index) };
    const pod = await PodProcess.start(this.network, name, spec, { labels, mounts: mountsIn(this.folder.path) });
    this.all.push(pod);
    this.workers[index] = pod;
    void pod.ended.then(async (code) => {
      if (this.over || this.lost.has(pod)) return;
      if (code === 0) this.done[index]!.resolve();
      else if (code === 1) this.done[index]!.reject(new Error(`worker ${index} ended with 1:\n${pod.output}`));
      else await this.startWorker(index);
    });
  }
}

function recipeIn(folder: Folder): object {
  return {
    name: 'pods',
    ...patterns(folder, 250, 90),
    method: { name: 'ffl', rampUp: { kind: 'constant', value: 0.5 } },
    training: { epochs: 16, batch: 64, milestones: [8] },
    evaluation: { batch: 32, everyEpochs: 8 },
    cluster: { replicas: 2, heartbeatSeconds: 0.5, heartbeatMisses: 6 },
    checkpoint: { everySteps: 10 },
    metrics: { logEverySteps: 1 },
  };
}
