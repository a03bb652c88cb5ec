/** A real control plane on loopback: etcd, API server, controllers and scheduler, and nodes that kwok plays. No container runs. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { freePort } from '../../rig/free-port.ts';
import { BIN, CACHE, output } from './tools.ts';

const TOKEN = 'checks';
/** kwok's stages: pods start at once and end when they are deleted. Not pod-complete, which would end Jobs by itself. */
const STAGES = [
  'node/fast/node-initialize',
  'node/heartbeat/node-heartbeat',
  'pod/fast/pod-ready',
  'pod/fast/pod-delete',
  'volume/fast/pvc-provision',
  'volume/fast/pv-bind',
];
/** Gangs are an alpha feature of the scheduler's. */
const GATES = '--feature-gates=GenericWorkload=true';

export interface Manifest {
  kind: string;
  metadata: { name: string; labels?: Record<string, string> };
  // biome-ignore lint/suspicious/noExplicitAny: of every kind
  [field: string]: any;
}

export class ControlPlane implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'braid-control-plane-'));
  private readonly children: ChildProcess[] = [];
  private readonly kubeconfig = join(this.folder, 'kubeconfig');

  static async start(kwokModule: string): Promise<ControlPlane> {
    const plane = new ControlPlane();
    try {
      await plane.boot(kwokModule);
    } catch (error) {
      await plane[Symbol.asyncDispose]();
      throw error;
    }
    return plane;
  }

  /** @throws Error with kubectl's words */
  kubectl(args: string[], input: unknown = ''): Promise<string> {
    const text = typeof input === 'string' ? input : JSON.stringify({ apiVersion: 'v1', kind: 'List', items: input });
    return output([join(BIN, 'kubectl'), '--kubeconfig', this.kubeconfig, ...args], { input: text });
  }

  async list(kind: string, selector = ''): Promise<Manifest[]> {
    const args = ['get', kind, '--namespace', 'braid', '--output', 'json', ...(selector && ['--selector', selector])];
    return JSON.parse(await this.kubectl(args as string[])).items;
  }

  /** @returns the seconds it took   @throws Error when it has not come about in time */
  async until(what: string, is: () => Promise<boolean>, seconds = 60): Promise<number> {
    const start = performance.now();
    for (;;) {
      if (await is()) return (performance.now() - start) / 1000;
      if (performance.now() - start > 1000 * seconds) throw new Error(`${what}: not within ${seconds} s`);
      await setTimeout(300);
    }
  }

  async nodes(count: number): Promise<void> {
    const nodes = Array.from({ length: count }, (_, i) => ({
      apiVersion: 'v1',
      kind: 'Node',
      metadata: {
        name: `gpu-${i}`,
        annotations: { 'kwok.x-k8s.io/node': 'fake' },
        labels: {
          'kubernetes.io/hostname': `gpu-${i}`,
          type: 'kwok',
          ...(i % 2 === 1 && { 'braid.dev/spot': 'true' }),
        },
      },
      spec: { taints: i % 2 === 1 ? [{ key: 'braid.dev/spot', effect: 'NoSchedule' }] : [] },
      status: {
        allocatable: { cpu: '128', memory: '1Ti', pods: '110', 'ephemeral-storage': '1Ti', 'nvidia.com/gpu': '8' },
        capacity: { cpu: '128', memory: '1Ti', pods: '110', 'ephemeral-storage': '1Ti', 'nvidia.com/gpu': '8' },
      },
    }));
    await this.kubectl(['create', '-f', '-'], nodes);
    await this.until(`${count} nodes are ready`, async () => {
      const { items } = JSON.parse(await this.kubectl(['get', 'nodes', '--output', 'json'])) as { items: Manifest[] };
      const ready = items.filter(({ status }) =>
        status?.conditions?.some((c: { type: string; status: string }) => c.type === 'Ready' && c.status === 'True'),
      );
      return ready.length >= count;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children.toReversed()) {
      if (child.exitCode === null) child.kill('SIGKILL');
    }
    await setTimeout(200);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async boot(kwokModule: string): Promise<void> {
    const [etcd, peer, api] = await Promise.all([freePort(), freePort(), freePort()]);
    const file = (name: string, text: string) => {
      writeFileSync(join(this.folder, name), text);
      return join(this.folder, name);
    };
    const server = `https://127.0.0.1:${api}`;
    const tokens = file('tokens.csv', `${TOKEN},admin,admin,system:masters\n`);
    const key = join(this.folder, 'service-accounts.key');
    await output(['openssl', 'genrsa', '-out', key, '2048']);
    const cluster = { server, 'insecure-skip-tls-verify': true };
    file(
      'kubeconfig',
      JSON.stringify({
        apiVersion: 'v1',
        kind: 'Config',
        'current-context': 'checks',
        clusters: [{ name: 'checks', cluster }],
        users: [{ name: 'checks', user: { token: TOKEN } }],
        contexts: [{ name: 'checks', context: { cluster: 'checks', user: 'checks' } }],
      }),
    );
    mkdirSync(join(this.folder, 'certs'));
    this.spawn('etcd', [
      ...['--data-dir', join(this.folder, 'etcd'), '--unsafe-no-fsync', '--log-level', 'error'],
      ...['--listen-client-urls', `http://127.0.0.1:${etcd}`, '--advertise-client-urls', `http://127.0.0.1:${etcd}`],
      ...[
        '--listen-peer-urls',
        `http://127.0.0.1:${peer}`,
        '--initial-advertise-peer-urls',
        `http://127.0.0.1:${peer}`,
      ],
      ...['--initial-cluster', `default=http://127.0.0.1:${peer}`],
    ]);
    this.spawn('kube-apiserver', [
      ...['--etcd-servers', `http://127.0.0.1:${etcd}`, '--bind-address', '127.0.0.1', '--secure-port', `${api}`],
      ...['--cert-dir', join(this.folder, 'certs'), '--token-auth-file', tokens, '--authorization-mode', 'RBAC'],
      ...['--service-account-issuer', server, '--service-account-key-file', key],
      ...['--service-account-signing-key-file', key, '--service-cluster-ip-range', '10.96.0.0/16', GATES],
      ...['--runtime-config', 'scheduling.k8s.io/v1beta1=true', '--allow-privileged'],
    ]);
    await this.until(
      'the API server is ready',
      () =>
        this.kubectl(['get', '--raw', '/readyz']).then(
          () => true,
          () => false,
        ),
      120,
    );
    const client = ['--kubeconfig', this.kubeconfig];
    const loose = [...client, '--leader-elect=false', '--secure-port=0'];
    this.spawn('kube-controller-manager', [
      ...loose,
      '--service-account-private-key-file',
      key,
      '--use-service-account-credentials=false',
      GATES,
    ]);
    this.spawn('kube-scheduler', [...loose, GATES]);
    await this.kubectl(['apply', '-f', join(kwokModule, 'kustomize/stage/volume/fast/storage-class.yaml')]);
    const stages = STAGES.flatMap((stage) => ['--config', join(kwokModule, 'kustomize/stage', `${stage}.yaml`)]);
    this.spawn('kwok', [...client, '--manage-all-nodes', '--server-address', '', ...stages]);
  }

  private spawn(name: string, args: string[]): void {
    const log = openSync(join(this.folder, `${name}.log`), 'a');
    this.children.push(spawn(join(BIN, name), args, { cwd: CACHE, stdio: ['ignore', log, log] }));
    closeSync(log);
  }

  /** The end of a component's log. */
  async logOf(name: string): Promise<string> {
    return output(['tail', '-n', '20', join(this.folder, `${name}.log`)]);
  }
}
