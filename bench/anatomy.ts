/**
 * Where a step's time goes: oneDNN says of every primitive what it was, its shape and how long it took. What is left of
 * the step is TensorFlow's own operations (ReLU, additions, casts) and dispatch.
 *
 * The floor is the convolutions' multiply-adds at the speed of a large matrix product on the same threads: no schedule of
 * the same arithmetic is faster.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { flags, type StepWork } from './contenders.ts';

const STEPS = 3;

export interface Anatomy {
  /** Milliseconds of a step by kind of primitive, the longest first; "everything else" is the rest of the step. */
  milliseconds: Record<string, number>;
  floor: string;
}

export async function anatomyOf({ network, precision, threads }: StepWork): Promise<Anatomy> {
  const onDevice = flags({ precision, threads });
  // One operation at a time: times of two at once would overlap.
  const env = { ...process.env, ONEDNN_VERBOSE: 'profile_exec', TF_NUM_INTEROP_THREADS: '1' };
  const lines = await linesOf(
    [join(import.meta.dirname, 'braid-step.ts'), ...flags({ network }), ...onDevice],
    `run ${STEPS}\n`,
    env,
  );
  const { seconds } = JSON.parse(lines.at(-1)!) as { seconds: number[] };
  const step = (1000 * seconds.reduce((sum, s) => sum + s, 0)) / STEPS;

  const milliseconds: Record<string, number> = {};
  let multiplyAdds = 0;
  for (const line of lines.slice(lines.findIndex((text) => text.startsWith('{"ready"')))) {
    const fields = line.split(',');
    if (fields[0] !== 'onednn_verbose' || fields[3] !== 'exec') continue;
    const [kind, , direction] = fields.slice(5);
    const name = direction === 'undef' ? kind! : `${kind} ${direction!.replace('_training', '')}`.replaceAll('_', ' ');
    milliseconds[name] = (milliseconds[name] ?? 0) + Number(fields.at(-1)) / STEPS;
    if (kind === 'convolution') multiplyAdds += multiplyAddsOf(fields.at(-2)!) / STEPS;
  }
  const traced = Object.values(milliseconds).reduce((a, b) => a + b, 0);
  milliseconds['everything else'] = step - traced;
  const sorted = Object.entries(milliseconds).sort(([, a], [, b]) => b - a);

  const [peak] = await linesOf([join(import.meta.dirname, 'peak.ts'), ...onDevice], '', process.env);
  const rate = Number(peak);
  const floor = `${((1000 * multiplyAdds) / rate).toFixed(0)} ms: ${(multiplyAdds / 1e9).toFixed(1)} G multiply-adds of convolutions at ${(rate / 1e9).toFixed(0)} G/s, a large matrix product's`;
  return { milliseconds: Object.fromEntries(sorted), floor };
}

/** Of one oneDNN convolution, from its shape: "g128mb128_ic128oc128_ih8oh8kh3..._iw8ow8kw3...". */
function multiplyAddsOf(shape: string): number {
  const size = (name: string) => Number(new RegExp(`(?:^|[_\\d])${name}(\\d+)`).exec(shape)?.[1] ?? 1);
  return (
    (size('mb') * size('ic') * size('oc') * size('oh') * size('ow') * size('kh') * size('kw')) /
    Number(/^g(\d+)/.exec(shape)?.[1] ?? 1)
  );
}

/** What a child of this program's own prints. */
async function linesOf(args: string[], input: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'], env });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
  });
  child.stdin.end(input);
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`${args[0]} ended with code ${code}`);
  return output.trim().split('\n');
}
