/**
 * Pods as local processes: the container's very arguments and environment, expanded as a kubelet does, each in a network
 * namespace of its own with an address that changes with every start, and names in a hosts file in place of DNS.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Manifest } from './control-plane.ts';
import { output } from './tools.ts';

const MAIN = new URL('../../cli/main.ts', import.meta.url).pathname;
const PROBE = new URL('./probe.ts', import.meta.url).pathname;
const ip = (...args: string[]) => output(['ip', ...args]);

/** A switch, and whoever is plugged in. */
export class Network implements AsyncDisposable {
  readonly id = `brd${process.pid % 10_000}`;
  private readonly names = new Map<string, string>();
  private readonly spaces: string[] = [];
  private next = 2;

  static async open(): Promise<Network> {
    const network = new Network();
    await ip('netns', 'add', network.id);
    network.spaces.push(network.id);
    await ip('-n', network.id, 'link', 'add', 'br0', 'type', 'bridge');
    await ip('-n', network.id, 'link', 'set', 'br0', 'up');
    return network;
  }

  /** A namespace with a new address, which `name` leads to from now on. */
  async join(name: string): Promise<string> {
    const number = this.next++;
    const space = `${this.id}-${number}`;
    const address = `10.77.0.${number}`;
    await ip('netns', 'add', space);
    mkdirSync(`/etc/netns/${space}`, { recursive: true }); // before another join writes to all
    this.spaces.push(space);
    const wire = [
      'link',
      'add',
      `v${number}`,
      'netns',
      this.id,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      space,
    ];
    await ip(...wire);
    await ip('-n', this.id, 'link', 'set', `v${number}`, 'master', 'br0', 'up');
    await ip('-n', space, 'address', 'add', `${address}/24`, 'dev', 'eth0');
    await ip('-n', space, 'link', 'set', 'eth0', 'up');
    await ip('-n', space, 'link', 'set', 'lo', 'up');
    this.names.set(name, address);
    for (const other of this.spaces.slice(1)) writeFileSync(`/etc/netns/${other}/hosts`, this.hosts());
    return space;
  }

  /** Its node is gone: no packet comes or goes, and nobody says goodbye. */
  async cut(space: string): Promise<void> {
    await ip('-n', this.id, 'link', 'set', `v${space.split('-')[1]}`, 'down');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const space of this.spaces.toReversed()) {
      await ip('netns', 'delete', space).catch(() => {});
      rmSync(`/etc/netns/${space}`, { recursive: true, force: true });
    }
  }

  private hosts(): string {
    return `127.0.0.1 localhost\n${[...this.names].map(([name, address]) => `${address} ${name}\n`).join('')}`;
  }
}

/** One container of one pod. */
export class PodProcess {
  readonly space: string;
  output = '';
  private readonly container: Manifest;
  private readonly graceSeconds: number;
  private readonly child: ChildProcess;
  readonly ended: Promise<number | NodeJS.Signals>;

  /**
   * @param labels of the pod, for the downward API
   * @param mounts by mount path of the container, what is there on this machine
   */
  static async start(
    network: Network,
    name: string,
    spec: Manifest['spec'],
    { labels, mounts }: { labels: Record<string, string>; mounts: Record<string, string> },
  ): Promise<PodProcess> {
    return new PodProcess(await network.join(name), spec, labels, mounts);
  }

  private constructor(
    space: string,
    spec: Manifest['spec'],
    labels: Record<string, string>,
    mounts: Record<string, string>,
  ) {
    const container: Manifest = spec.containers[0];
    this.space = space;
    this.container = container;
    this.graceSeconds = spec.terminationGracePeriodSeconds;
    const env = environmentOf(container, labels);
    const here = (arg: string) =>
      arg.replace(/(^|=)(\/data|\/etc\/braid)(?=\/)/, (_, lead, path) => `${lead}${mounts[path]}`);
    const args = (container['args'] as string[]).map((arg) => here(expand(arg, env)));
    const own = { PATH: process.env['PATH']!, TF_CPP_MIN_LOG_LEVEL: '2', TMPDIR: mounts['/tmp']! };
    this.child = spawn('ip', ['netns', 'exec', space, process.execPath, MAIN, ...args], {
      env: { ...own, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const stream of [this.child.stdout!, this.child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.output += text;
      });
    }
    this.ended = once(this.child, 'close').then(([code, signal]) => code ?? signal);
  }

  /** At once. `ip netns exec` becomes the process: its signals are the pod's. */
  kill(): void {
    this.child.kill('SIGKILL');
  }

  /** As a kubelet does: SIGTERM, and SIGKILL once the grace period is over. @returns how it ended */
  async terminate(): Promise<number | NodeJS.Signals> {
    this.child.kill('SIGTERM');
    const late = setTimeout(() => this.kill(), 1000 * this.graceSeconds);
    const how = await this.ended;
    clearTimeout(late);
    return how;
  }

  /** As a kubelet asks. */
  async answers(probe: 'livenessProbe' | 'readinessProbe'): Promise<boolean> {
    const { port, service } = this.container[probe].grpc;
    const asked = output(['ip', 'netns', 'exec', this.space, process.execPath, PROBE, `127.0.0.1:${port}`, service]);
    return asked.then(
      () => true,
      () => false,
    );
  }
}

function environmentOf(container: Manifest, labels: Record<string, string>): Record<string, string> {
  const env: Record<string, string> = {};
  for (const { name, value, valueFrom } of container['env'] ?? []) {
    const field = valueFrom?.fieldRef?.fieldPath as string | undefined;
    const label = /^metadata\.labels\['(.+)'\]$/.exec(field ?? '')?.[1];
    if (valueFrom?.resourceFieldRef !== undefined) env[name] = '1';
    else if (field === 'metadata.namespace') env[name] = 'braid';
    else if (label !== undefined) env[name] = labels[label]!;
    else env[name] = expand(value, env);
  }
  return env;
}

function expand(text: string, env: Record<string, string>): string {
  return text.replace(/\$\((\w+)\)/g, (all, name) => env[name] ?? all);
}

/** Folders that stand for a pod's mounts. */
export function mountsIn(folder: string): Record<string, string> {
  const mounts = Object.fromEntries(['/data', '/etc/braid', '/tmp'].map((path) => [path, join(folder, path)]));
  for (const path of Object.values(mounts)) mkdirSync(path, { recursive: true });
  return mounts;
}
