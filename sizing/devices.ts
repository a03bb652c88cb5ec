/**
 * What devices and networks can do, by their makers' data sheets: nothing in here was measured by Braid but the `cpu`.
 * `efficiency` is the part of the roofline (model.ts) that training reaches. For GPUs it is assumed: no GPU has run Braid
 * yet. `braid plan --calibrate` measures it on a machine that is there.
 */
import { BraidError, nearest } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';

type Precision = Recipe['training']['precision'];

export interface DeviceSpec {
  name: string;
  /** FLOPs a second, dense. Convolutions in f32 use TF32 where there is one, as TensorFlow does. */
  flops: Record<Precision, number>;
  /** Bytes a second of its memory. */
  bandwidth: number;
  /** Bytes; null: the machine's. */
  memory: number | null;
  efficiency: Record<Precision, number>;
  /** Where `efficiency` comes from. */
  efficiencyFrom: string;
  source: string;
  /** How many workers share it: the cores of one machine, which the figures above are for one of; 0: a worker has its own. */
  cores: number;
}

export interface NetSpec {
  name: string;
  /** Bytes a second, one way, between two machines. */
  bandwidth: number;
  /** Seconds a message takes beside its bytes. */
  latency: number;
  source: string;
}

const GB = 1e9;
const TERA = 1e12;
const ASSUMED = 0.5;
const gpu = (
  name: string,
  {
    f32,
    bf16,
    f16 = bf16,
    bandwidth,
    memory,
  }: { f32: number; bf16: number; f16?: number; bandwidth: number; memory: number },
  source: string,
): DeviceSpec => ({
  name,
  flops: { f32: f32 * TERA, bf16: bf16 * TERA, f16: f16 * TERA },
  bandwidth: bandwidth * GB,
  memory: memory * GB,
  efficiency: { f32: ASSUMED, bf16: ASSUMED, f16: ASSUMED },
  efficiencyFrom: 'assumed: Braid has not run on this GPU',
  source,
  cores: 0,
});

const DEVICES: DeviceSpec[] = [
  gpu(
    'h200',
    { f32: 494.7, bf16: 989.4, bandwidth: 4800, memory: 141 },
    'NVIDIA H200 data sheet, SXM, without sparsity',
  ),
  gpu(
    'h100',
    { f32: 494.7, bf16: 989.4, bandwidth: 3350, memory: 80 },
    'NVIDIA H100 data sheet, SXM5, without sparsity',
  ),
  gpu('a100', { f32: 156, bf16: 312, bandwidth: 2039, memory: 80 }, 'NVIDIA A100 data sheet, SXM4 80 GB'),
  gpu(
    'l4',
    { f32: 60, bf16: 121, bandwidth: 300, memory: 24 },
    'NVIDIA L4 data sheet, half of its figures with sparsity',
  ),
  // No tensor cores for bf16, which TensorFlow then computes in f32.
  gpu('v100', { f32: 15.7, bf16: 15.7, f16: 125, bandwidth: 900, memory: 32 }, 'NVIDIA V100 data sheet, SXM2 32 GB'),
  // No instructions for f16, which is widened to f32.
  {
    name: 'cpu',
    flops: { f32: 122 * GB, bf16: 245 * GB, f16: 122 * GB },
    bandwidth: 28 * GB,
    memory: null,
    efficiency: { f32: 1, bf16: 1, f16: 1 },
    efficiencyFrom: 'not calibrated',
    source:
      'bench/peak.ts on one core of an AMD EPYC with AVX-512 BF16; of bandwidth half of what two cores have in a sum of arrays, 2026-11-28',
    cores: 1,
  },
];

const ethernet = (gigabits: number): NetSpec => ({
  name: `${gigabits}Gb`,
  bandwidth: (gigabits * GB) / 8,
  latency: 100e-6,
  source: `${gigabits} Gbit/s of a link; the latency is that of two event loops, assumed`,
});

const NETS: NetSpec[] = [
  ...[1, 10, 25, 100, 200, 400].map(ethernet),
  { name: 'local', bandwidth: 10 * GB, latency: 100e-6, source: 'memory of one machine' },
];

/** @throws BraidError INVALID_RECIPE with the known ones */
export function deviceNamed(name: string): DeviceSpec {
  return named('--gpu', name, DEVICES);
}

/** @throws BraidError INVALID_RECIPE with the known ones */
export function netNamed(name: string): NetSpec {
  return named('--net', name, NETS);
}

function named<Spec extends { name: string }>(option: string, name: string, specs: Spec[]): Spec {
  const found = specs.find((spec) => spec.name.toLowerCase() === name.toLowerCase());
  if (found !== undefined) return found;
  const known = specs.map((spec) => spec.name);
  const near = nearest(name, known);
  const hint = near === undefined ? '' : `, did you mean ${near}?`;
  throw new BraidError('INVALID_RECIPE', `plan: ${option} ${name} is not known${hint}`, {
    remedy: `Known are ${known.join(', ')}: sizing/devices.ts has their figures, and is the place for another.`,
  });
}
